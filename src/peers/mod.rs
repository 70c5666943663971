//! The way out: other domains' nodes, found by DNS and proved by their certificates.

pub mod channel;
mod dial;
pub mod discovery;
mod race;
