//! `skiserver`: one node of a federated, end-to-end-encrypted messaging network.
//!
//! Calls point one way: doors → operations → delivery, peers → store. The other modules are the words they share.

pub mod address;
pub mod caller;
pub mod client;
pub mod clock;
pub mod commands;
pub mod config;
pub mod doors;
pub mod error;
pub mod identity;
pub mod lab;
pub mod limits;
pub mod peers;
pub mod proto;
