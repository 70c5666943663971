//! What each RPC does: plain async functions. No tonic, no SQL, no response codes.

pub mod accounts;
pub mod invitations;
pub mod keys;
pub mod members;
pub mod messages;
