//! A device's open stream, with a suspicious reader: every message is verified as a client would, and nothing
//! is awaited for ever.

use skiserver::{
    client::{Device, Inbox, talk, verify},
    proto::skissm::{
        AcceptMsg, AddUserDeviceMsg, E2eeAddress, E2eeMsg, InviteMsg, ProtoMsg, ProtoMsgTag,
        RemoveUserDeviceMsg, ServerHeartbeatMsg, SupplyOpksMsg, SystemManagerMsg, e2ee_msg,
        proto_msg::Payload,
    },
};
use tonic::Status;

use super::{PATIENCE, refusals::within};

/// An open stream. Dropping it closes it.
pub(crate) struct OpenStream {
    device: Device,
    inbox: Inbox,
    order: verify::Order,
}

/// A message and what it says.
#[derive(Debug, Clone)]
pub(crate) struct Received<T> {
    /// Names it for `consume`.
    pub(crate) tag: ProtoMsgTag,
    /// The acting device.
    pub(crate) from: Option<E2eeAddress>,
    /// The payload.
    pub(crate) said: T,
}

impl OpenStream {
    /// Opens the device's stream without a word on it.
    pub(crate) async fn open(device: &Device) -> Self {
        Self {
            inbox: device.open().await.unwrap(),
            device: device.clone(),
            order: verify::Order::default(),
        }
    }

    /// Whose stream it is.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// What the client says goes out here.
    pub(crate) fn inbox(&self) -> &Inbox {
        &self.inbox
    }

    /// The next message, heartbeats left out. It is verified: receiver, tag, order and signature.
    pub(crate) async fn next(&mut self) -> ProtoMsg {
        let what = format!("a message for {}", self.device.address());
        let message = within(PATIENCE, &what, self.inbox.next_message()).await;
        let message = message
            .unwrap_or_else(|error| panic!("{what}: {error}"))
            .unwrap_or_else(|| panic!("{what}: the stream ended"));
        self.verified(message)
    }

    /// The next heartbeat, which must come before any message.
    pub(crate) async fn next_heartbeat(&mut self) -> ServerHeartbeatMsg {
        let what = format!("a heartbeat for {}", self.device.address());
        let message = within(PATIENCE, &what, self.inbox.next()).await;
        let message = message.unwrap().unwrap();
        verify::message(&message, self.device.certificate(), self.device.address()).unwrap();
        match message.payload {
            Some(Payload::ServerHeartbeatMsg(heartbeat)) => heartbeat,
            other => panic!("{what}: {other:?} came"),
        }
    }

    /// From here on tags may begin again further back: a client asked for what it had skipped.
    pub(crate) fn goes_back(&mut self) {
        self.order = verify::Order::default();
    }

    /// Asks for heartbeats and reads as many: what the node had to send at once comes before they are through.
    pub(crate) async fn assert_idle(&mut self) {
        for beat in 0..20 {
            self.inbox.heartbeat(beat).await.unwrap();
            self.next_heartbeat().await;
        }
    }

    /// Reads to the end, which must be an error, and answers it. Messages on the way are dropped.
    pub(crate) async fn ended(&mut self) -> Status {
        let what = format!("the end of the stream of {}", self.device.address());
        let end = async {
            loop {
                match self.inbox.next().await {
                    Ok(Some(_)) => {}
                    Ok(None) => panic!("{what}: without a reason"),
                    Err(skiserver::client::ClientError::Rpc(status)) => return *status,
                    Err(other) => panic!("{what}: {other}"),
                }
            }
        };
        within(PATIENCE, &what, end).await
    }

    fn verified(&mut self, message: ProtoMsg) -> ProtoMsg {
        let (certificate, address) = (self.device.certificate(), self.device.address());
        verify::message(&message, certificate, address)
            .unwrap_or_else(|wrong| panic!("{wrong}: {message:?}"));
        let tag = message.tag.as_ref().unwrap();
        self.order.take(tag).unwrap();
        message
    }

    /// Tells the node that a message was handled; it must still be there.
    pub(crate) async fn consume(&self, tag: &ProtoMsgTag) {
        let was_there = talk::consume(&self.device, &tag.proto_msg_id).await;
        assert!(was_there.unwrap(), "{tag:?} was still in the mailbox");
    }

    async fn next_as<T>(
        &mut self,
        pick: impl FnOnce(Payload) -> Result<T, Payload>,
    ) -> Received<T> {
        let message = self.next().await;
        let wanted = std::any::type_name::<T>();
        Received {
            tag: message.tag.unwrap(),
            from: message.from,
            said: pick(message.payload.unwrap())
                .unwrap_or_else(|other| panic!("wanted {wanted}, got {other:?}")),
        }
    }

    /// The next message, which is an invite. It is consumed.
    pub(crate) async fn next_invite(&mut self) -> Received<InviteMsg> {
        let pick = |payload| match payload {
            Payload::InviteMsg(said) => Ok(said),
            other => Err(other),
        };
        self.consumed(pick).await
    }

    /// The next message, which is an accept. It is consumed.
    pub(crate) async fn next_accept(&mut self) -> Received<AcceptMsg> {
        let pick = |payload| match payload {
            Payload::AcceptMsg(said) => Ok(said),
            other => Err(other),
        };
        self.consumed(pick).await
    }

    /// The next message, which is an encrypted one. It is consumed.
    pub(crate) async fn next_letter(&mut self) -> Received<E2eeMsg> {
        let pick = |payload| match payload {
            Payload::E2eeMsg(said) => Ok(said),
            other => Err(other),
        };
        self.consumed(pick).await
    }

    /// The text of the next message, which is one that [`super::User::send`] sent. It is consumed.
    pub(crate) async fn next_text(&mut self) -> String {
        text(&self.next_letter().await.said)
    }

    /// The text of the next message, which stays unconsumed.
    pub(crate) async fn peek_text(&mut self) -> Received<String> {
        let message = self.next().await;
        Received {
            tag: message.tag.clone().unwrap(),
            from: message.from.clone(),
            said: text_of(&message),
        }
    }

    /// The next message, which says that somebody has a new device. It is consumed.
    pub(crate) async fn next_added_device(&mut self) -> Received<AddUserDeviceMsg> {
        let pick = |payload| match payload {
            Payload::AddUserDeviceMsg(said) => Ok(said),
            other => Err(other),
        };
        self.consumed(pick).await
    }

    /// The next message, which says that a device is gone. It is consumed.
    pub(crate) async fn next_removed_device(&mut self) -> Received<RemoveUserDeviceMsg> {
        let pick = |payload| match payload {
            Payload::RemoveUserDeviceMsg(said) => Ok(said),
            other => Err(other),
        };
        self.consumed(pick).await
    }

    /// The next message, which asks for one-time keys. It is consumed.
    pub(crate) async fn next_supply(&mut self) -> Received<SupplyOpksMsg> {
        let pick = |payload| match payload {
            Payload::SupplyOpksMsg(said) => Ok(said),
            other => Err(other),
        };
        self.consumed(pick).await
    }

    /// The next message, which is one of the server's own. It is consumed.
    pub(crate) async fn next_notice(&mut self) -> Received<SystemManagerMsg> {
        let pick = |payload| match payload {
            Payload::SystemManagerMsg(said) => Ok(said),
            other => Err(other),
        };
        self.consumed(pick).await
    }

    async fn consumed<T>(
        &mut self,
        pick: impl FnOnce(Payload) -> Result<T, Payload>,
    ) -> Received<T> {
        let received = self.next_as(pick).await;
        self.consume(&received.tag).await;
        received
    }
}

/// What [`super::User::send`] put into a message.
pub(crate) fn text(message: &E2eeMsg) -> String {
    let Some(e2ee_msg::Payload::One2oneMsg(payload)) = &message.payload else {
        panic!("not a one-to-one message: {message:?}");
    };
    let text = std::str::from_utf8(&payload.ciphertext).unwrap();
    text.trim_end_matches('.').to_owned()
}

/// The text of a message as it came.
pub(crate) fn text_of(message: &ProtoMsg) -> String {
    match &message.payload {
        Some(Payload::E2eeMsg(letter)) => text(letter),
        other => panic!("no text: {other:?}"),
    }
}
