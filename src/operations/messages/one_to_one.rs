//! One-to-one messages: parsed, deduplicated by content, queued here or relayed.

use prost::Message as _;

use super::{PATIENCE, acting, bounded, client_id, name_in, version};
use crate::{
    address::{DeviceAddress, Route},
    caller::Caller,
    delivery::Letter,
    error::{Error, Result},
    node::Node,
    peers::{Method, Outgoing},
    proto::skissm::{
        E2eeMsg, NotifLevel, SendOne2oneMsgRequest, SendOne2oneMsgResponse, e2ee_msg,
        proto_msg::Payload,
    },
    signing::sha256,
    store::{Append, Once, Recipient},
};

/// Ciphertexts up to this length crash receivers (contract 3.1).
const CIPHERTEXT_BYTES_MIN: usize = 17;

struct OneToOne {
    from: DeviceAddress,
    to: DeviceAddress,
    message: E2eeMsg,
}

impl OneToOne {
    fn parse(node: &Node, caller: &Caller, request: SendOne2oneMsgRequest) -> Result<Self> {
        let mut message = request.msg.ok_or(Error::Invalid("msg"))?;
        let from = DeviceAddress::from_proto(message.from.as_ref())?;
        caller.speaks_for(&from)?;
        let to = DeviceAddress::from_proto(message.to.as_ref())?;
        if from == to {
            return Err(Error::Invalid("to"));
        }
        version(&message.version)?;
        client_id(&message.session_id, "session_id")?;
        client_id(&message.msg_id, "msg_id")?;
        NotifLevel::try_from(message.notif_level).map_err(|_| Error::Invalid("notif_level"))?;
        let Some(e2ee_msg::Payload::One2oneMsg(payload)) = &message.payload else {
            return Err(Error::Invalid("payload"));
        };
        if payload.ciphertext.len() < CIPHERTEXT_BYTES_MIN {
            return Err(Error::Invalid("ciphertext"));
        }
        if payload.ratchet_key.is_empty() {
            return Err(Error::Invalid("ratchet_key"));
        }
        bounded(node, &message, "msg")?;
        message.from = Some(acting(caller, &from, name_in(message.from.as_ref())));
        message.to = Some(to.to_proto_named(name_in(message.to.as_ref())));
        Ok(Self { from, to, message })
    }

    /// Never the message id alone: clients repeat it (contract 9.3).
    fn once(&self, node: &Node) -> Once {
        let content = sha256(&[&self.message.encode_to_vec()]);
        let (from, to) = (self.from.to_string(), self.to.to_string());
        node.once(
            "one2one",
            &[
                from.as_bytes(),
                to.as_bytes(),
                self.message.msg_id.as_bytes(),
                &content,
            ],
        )
    }
}

/// Queues an encrypted message for the device that it names. Answers once it is on disk, here or there.
pub async fn send_one_to_one(
    node: &Node,
    caller: &Caller,
    request: SendOne2oneMsgRequest,
) -> Result<SendOne2oneMsgResponse> {
    let parsed = OneToOne::parse(node, caller, request)?;
    if let Caller::Device(device) = caller {
        node.rates.messages.wait(&device.key, PATIENCE).await?;
    }
    match node.home.route(&parsed.to) {
        Route::Here(to) => {
            let once = Some(parsed.once(node));
            let letter = Letter {
                from: parsed.message.from.clone(),
                payload: Payload::E2eeMsg(parsed.message),
            };
            let mail = vec![letter.mail(Recipient::Device(to), parsed.from.to_string(), true)];
            node.store
                .append(Append {
                    once,
                    mail,
                    ..Append::default()
                })
                .await?;
        }
        Route::There(to) => {
            if let Caller::Peer(_) = caller {
                return Err(Error::NotHere);
            }
            let outgoing = Outgoing {
                domain: to.domain().clone(),
                lane: to.user.to_string(),
                method: Method::SendOne2oneMsg,
                msg_id: parsed.message.msg_id.clone(),
                request: SendOne2oneMsgRequest {
                    msg: Some(parsed.message),
                }
                .encode_to_vec()
                .into(),
                sender: parsed.from.to_string(),
                recipient: to.user.to_string(),
            };
            node.peers.relay(node, outgoing, Append::default()).await?;
        }
    }
    Ok(SendOne2oneMsgResponse::default())
}
