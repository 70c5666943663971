//! Consuming: a message leaves its mailbox when its device says so, and only then.

use std::fmt;

use crate::{
    caller::Caller,
    error::{Error, Result},
    node::Node,
    proto::skissm::{ConsumeProtoMsgRequest, ConsumeProtoMsgResponse, ProtoMsgOpState},
};

/// The id of a message in its device's queue. Opaque to clients; it holds what finds the row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MessageId {
    /// The message's place and time.
    pub msg_t: i64,
    /// The field number of its payload, for counting what clients reject.
    pub kind: i64,
    /// A number that nobody guesses.
    pub nonce: i64,
}

impl MessageId {
    /// Reads what [`fmt::Display`] writes.
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text
            .split('.')
            .map(|part| i64::from_str_radix(part, 16).ok().filter(|n| *n >= 0));
        let id = Self {
            msg_t: parts.next()??,
            kind: parts.next()??,
            nonce: parts.next()??,
        };
        // One spelling for each id, so that an id names at most one message.
        (parts.next().is_none() && id.to_string() == text).then_some(id)
    }
}

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}.{:x}.{:x}", self.msg_t, self.kind, self.nonce)
    }
}

/// Deletes a message of the calling device. One that is not there, or is another device's, is not found.
pub async fn consume(
    node: &Node,
    caller: &Caller,
    request: ConsumeProtoMsgRequest,
) -> Result<ConsumeProtoMsgResponse> {
    let device = caller.device()?;
    let state = ProtoMsgOpState::try_from(request.state).map_err(|_| Error::Invalid("state"))?;
    if request.proto_msg_id.is_empty() {
        return Err(Error::Invalid("proto_msg_id"));
    }
    let id = MessageId::parse(&request.proto_msg_id).ok_or(Error::NotFound("message"))?;
    let _under_way = node.live.consuming(device.key);
    if !node.store.consume(device.key, id.msg_t, id.nonce).await? {
        return Err(Error::NotFound("message"));
    }
    if !matches!(
        state,
        ProtoMsgOpState::Unspecified | ProtoMsgOpState::Succeededed
    ) {
        let labels = [
            ("kind", id.kind.to_string()),
            ("state", state.as_str_name().to_owned()),
        ];
        metrics::counter!("skiserver_messages_rejected_total", &labels).increment(1);
    }
    Ok(ConsumeProtoMsgResponse::default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_has_one_spelling() {
        let id = MessageId {
            msg_t: 1_795_000_000_123,
            kind: 51,
            nonce: 7,
        };

        assert_eq!(MessageId::parse(&id.to_string()), Some(id));
        for other in [
            "", "1", "1.2", "1.2.3.4", "01.2.3", "+1.2.3", "-1.2.3", "1.2.G", "1.2.3 ",
        ] {
            assert_eq!(MessageId::parse(other), None, "{other:?}");
        }
    }
}
