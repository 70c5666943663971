//! The way in.

pub mod auth;
