//! `E2eeBidiService`: one device's stream. The mailbox is its only source; live traffic merely wakes it, so
//! backlog and live have one order. Calls the store for pages; no SQL.

use std::{pin::Pin, sync::Arc};

use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::auth;
use crate::{
    error::Error,
    node::Node,
    proto::{skiserver::e2ee_bidi_service_server::E2eeBidiService, skissm::ProtoMsg},
    reply,
};

mod session;
mod window;

/// Messages handed to the transport ahead of what it took: a slow reader costs no more memory than these.
const AHEAD_MAX: usize = 4;

/// The stream service of the client door.
pub struct StreamDoor(pub Arc<Node>);

#[tonic::async_trait]
impl E2eeBidiService for StreamDoor {
    type CommunicateStream = Pin<Box<dyn Stream<Item = Result<ProtoMsg, Status>> + Send>>;

    /// Opens the device's only stream; one that was open ends.
    async fn communicate(
        &self,
        request: Request<Streaming<ProtoMsg>>,
    ) -> Result<Response<Self::CommunicateStream>, Status> {
        let node = &self.0;
        let device = match auth::device(node, request.metadata()).await {
            Ok(device) => device,
            Err(Error::Unauthenticated(text)) => return Err(reply::unauthenticated(text)),
            Err(error) => {
                tracing::warn!(%error, "a stream could not be opened");
                return Err(reply::unavailable("try again"));
            }
        };
        let seat = node
            .live
            .sit(device.key)
            .map_err(|_| reply::unavailable("too many streams"))?;
        // Whoever ended the device before this stream had its seat could not end the stream.
        if auth::device(node, request.metadata()).await.is_err() {
            return Err(reply::unauthenticated("the token is no longer valid"));
        }
        let (out, messages) = mpsc::channel(AHEAD_MAX);
        let session = session::Session::new(Arc::clone(node), device, seat, out);
        node.tasks.spawn(session.run(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(messages))))
    }
}
