//! What each RPC does: plain async functions. No tonic, no SQL, no response codes.

pub mod members;
pub mod messages;
