//! One open stream of a device: what the node pushes, and the few things that a client says on it.

use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::{ClientError, device::PATIENCE, door::Bidi};
use crate::{
    address::DeviceAddress,
    proto::skissm::{
        AcquireSyncMsg, ClientHeartbeatMsg, ProtoMsg, ProtoMsgTag, proto_msg::Payload,
    },
};

/// Messages on their way out; a client says very little.
const OUTGOING_MAX: usize = 16;

/// One open stream. Dropping it closes it.
pub struct Inbox {
    address: DeviceAddress,
    outgoing: mpsc::Sender<ProtoMsg>,
    incoming: Streaming<ProtoMsg>,
}

impl Inbox {
    pub(super) async fn open(mut bidi: Bidi, address: DeviceAddress) -> Result<Self, ClientError> {
        let (outgoing, messages) = mpsc::channel(OUTGOING_MAX);
        let call = bidi.communicate(ReceiverStream::new(messages));
        let incoming = tokio::time::timeout(PATIENCE, call)
            .await
            .map_err(|_| ClientError::Late("Communicate"))??
            .into_inner();
        Ok(Self {
            address,
            outgoing,
            incoming,
        })
    }

    /// Says how far the device got: messages up to `last` are not sent again; without it, all unconsumed are.
    pub async fn sync(&self, last: Option<ProtoMsgTag>) -> Result<(), ClientError> {
        self.say(Payload::AcquireSyncMsg(AcquireSyncMsg {
            last_proto_msg_tag: last,
        }))
        .await
    }

    /// Asks for a heartbeat of the node.
    pub async fn heartbeat(&self, client_t: i64) -> Result<(), ClientError> {
        self.say(Payload::ClientHeartbeatMsg(ClientHeartbeatMsg { client_t }))
            .await
    }

    /// Says anything, also what a good client would not.
    pub async fn say(&self, payload: Payload) -> Result<(), ClientError> {
        let message = ProtoMsg {
            from: Some(self.address.to_proto()),
            payload: Some(payload),
            ..ProtoMsg::default()
        };
        self.outgoing
            .send(message)
            .await
            .map_err(|_| ClientError::Setup("the stream is closed".to_owned()))
    }

    /// What comes next, heartbeats included; nothing if the node closed the stream without an error.
    pub async fn next(&mut self) -> Result<Option<ProtoMsg>, ClientError> {
        Ok(self.incoming.message().await?)
    }

    /// The next message that is no heartbeat.
    pub async fn next_message(&mut self) -> Result<Option<ProtoMsg>, ClientError> {
        loop {
            match self.next().await? {
                Some(ProtoMsg {
                    payload: Some(Payload::ServerHeartbeatMsg(_)),
                    ..
                }) => {}
                other => return Ok(other),
            }
        }
    }
}
