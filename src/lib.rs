//! `skiserver`: one node of a federated, end-to-end-encrypted messaging network.
//!
//! Calls point one way: doors → operations → delivery, peers → store. The other modules are the words they share.

pub mod delivery;
pub mod doors;
pub mod operations;
pub mod peers;
pub mod store;

pub mod address;
pub mod authenticator;
pub mod caller;
pub mod client;
pub mod clock;
pub mod commands;
pub mod config;
pub mod error;
pub mod gateways;
pub mod identity;
pub mod lab;
pub mod limits;
pub mod node;
pub mod packs;
pub mod passwords;
pub mod payload;
pub mod proto;
pub mod rates;
pub mod reply;
pub mod server;
pub mod signing;
pub mod telemetry;
#[cfg(test)]
mod testing;
