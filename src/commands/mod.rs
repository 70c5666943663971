//! The command line: one file a command. The only place that prints.

pub mod certs;
pub mod config;
pub mod health;
pub mod invite;
pub mod lab;
pub mod serve;
