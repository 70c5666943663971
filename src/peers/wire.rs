//! The wire as the rest of `peers` sees it: one encoded request to one domain, one encoded answer back. What is
//! stored is sent as it is; nothing is decoded to be encoded again.

use std::time::Duration;

use bytes::{Buf as _, BufMut as _, Bytes};
use futures_util::future::BoxFuture;
use http::uri::PathAndQuery;
use tokio_util::sync::CancellationToken;
use tonic::{
    Code, Request, Response, Status,
    body::Body,
    client::{Grpc, GrpcService},
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    codegen::{Body as HttpBody, StdError},
};

use crate::address::Domain;

/// The path of the call that asks a peer's health: it proves both sides to each other and changes nothing.
pub(super) const HEALTH: &str = "/grpc.health.v1.Health/Check";

/// Why a peer's answer did not come. Neither says whether the peer took the request.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PeerError {
    /// The domain could not be reached, did not prove itself, let nobody in, or was silent until the deadline:
    /// other calls will fare no better.
    #[error("{0}")]
    Silent(String),
    /// The domain answered, but not this call.
    #[error("{0}")]
    Failed(String),
}

/// Whether a status says that the domain, not only this call, is out of reach: what breaks a connection shows as
/// any of these, and so does a door that does not know us.
pub(super) fn is_silence(status: &Status) -> bool {
    matches!(
        status.code(),
        Code::Unavailable
            | Code::Unknown
            | Code::Cancelled
            | Code::DeadlineExceeded
            | Code::Unauthenticated
            | Code::PermissionDenied
    )
}

/// How requests reach other domains.
pub trait Wire: Send + Sync {
    /// Whether the policy lets us exchange anything with `domain`.
    fn may_talk(&self, domain: &Domain) -> bool;

    /// Sends one encoded request to the method at `path`, and answers with the encoded response. `deadline`
    /// covers everything from finding the domain to its last byte; whoever calls keeps it too.
    fn call<'a>(
        &'a self,
        domain: &'a Domain,
        path: &'a str,
        request: Bytes,
        deadline: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>>;

    /// Closes what nobody used for some time, until `stop`.
    fn tidy(&self, stop: CancellationToken) -> BoxFuture<'static, ()>;
}

/// One unary call with encoded messages over an open channel.
pub(super) async fn unary<S>(
    channel: S,
    path: &str,
    request: Bytes,
    bytes_max: usize,
) -> Result<Response<Bytes>, Status>
where
    S: GrpcService<Body>,
    S::ResponseBody: HttpBody + Send + 'static,
    <S::ResponseBody as HttpBody>::Error: Into<StdError>,
{
    let path = PathAndQuery::try_from(path).map_err(|error| Status::from_error(error.into()))?;
    let mut grpc = Grpc::new(channel).max_decoding_message_size(bytes_max);
    grpc.ready()
        .await
        .map_err(|error| Status::from_error(error.into()))?;
    grpc.unary(Request::new(request), path, Encoded).await
}

/// Leaves messages as they are.
#[derive(Debug, Clone, Copy)]
struct Encoded;

impl Codec for Encoded {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Encoded {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
