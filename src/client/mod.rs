//! A real client of one device: gRPC over TLS 1.3, random bytes of the true sizes where the cryptography of the
//! end-to-end layer would be, and a suspicious eye on everything that a node sends. Used by `skiserver lab --talk`
//! and the tests. It knows a node by its doors only.

pub mod codes;
pub mod device;
pub mod door;
pub mod inbox;
pub mod keys;
pub mod talk;
pub mod verify;

pub use device::{Device, Who};
pub use door::Door;
pub use inbox::Inbox;
pub use keys::{Keys, Pack};
pub use verify::Wrong;

use crate::proto::skissm::ResponseCode;

/// Why a call did not do what it should.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No usable answer: no connection, a refused handshake, a gRPC error, no answer in time.
    #[error("{}: {}", .0.code(), .0.message())]
    Rpc(Box<tonic::Status>),
    /// No answer within the client's patience.
    #[error("{0} was not answered in time")]
    Late(&'static str),
    /// The node answered with another code than 200.
    #[error("{rpc}: {code} {message}")]
    Refused {
        /// Which call.
        rpc: &'static str,
        /// The code of the answer.
        code: i32,
        /// The words of the answer.
        message: String,
    },
    /// The answer breaks the contract.
    #[error("wrong: {0}")]
    Wrong(#[from] Wrong),
    /// The client itself can't be set up.
    #[error("{0}")]
    Setup(String),
}

impl From<tonic::Status> for ClientError {
    fn from(status: tonic::Status) -> Self {
        Self::Rpc(Box::new(status))
    }
}

/// Refuses every code but 200: no other counts as success.
pub fn granted(rpc: &'static str, code: i32, message: &str) -> Result<(), ClientError> {
    if code == ResponseCode::Ok as i32 {
        Ok(())
    } else {
        Err(ClientError::Refused {
            rpc,
            code,
            message: message.to_owned(),
        })
    }
}
