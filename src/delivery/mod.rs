//! Getting a `ProtoMsg` to devices: rows in the caller's write, here or at a peer. Decides nothing about content.

use bytes::Bytes;
use prost::Message as _;

use crate::{
    address::{DeviceAddress, Local, Route},
    error::{Error, Result},
    node::Node,
    payload,
    peers::{Method, Outgoing},
    proto::{
        skiserver::SubmitProtoMsgRequest,
        skissm::{E2eeAddress, ProtoMsg, ProtoMsgTag, RemoveUserDeviceMsg, proto_msg::Payload},
    },
    signing::sha256,
    store::{Append, Body, Mail, Once, Recipient, Tx, Wake},
};

pub mod live;

/// A payload on its way, before its receivers are known.
#[derive(Debug, Clone)]
pub struct Letter {
    /// The acting device; nobody for messages of the server.
    pub from: Option<E2eeAddress>,
    /// What is said.
    pub payload: Payload,
}

impl Letter {
    /// The `ProtoMsg` without tag, receiver and signatures, as mailboxes store it.
    pub fn body(&self) -> Body {
        Body::new(Bytes::from(self.message(None).encode_to_vec()))
    }

    /// The field number of the payload.
    pub fn kind(&self) -> i64 {
        payload::kind(&self.payload)
    }

    /// One message for devices of this domain.
    pub fn mail(&self, to: Recipient, sender: String, refusable: bool) -> Mail {
        Mail {
            to,
            kind: self.kind(),
            sender,
            body: self.body(),
            refusable,
        }
    }

    /// The submission to another domain. `id` stays the same for every attempt.
    pub fn submission(
        &self,
        to: E2eeAddress,
        id: &Once,
        ignored: Vec<String>,
    ) -> SubmitProtoMsgRequest {
        let mut message = self.message(Some(to));
        message.tag = Some(ProtoMsgTag {
            proto_msg_t: 0,
            proto_msg_id: submission_id(&id.key),
        });
        SubmitProtoMsgRequest {
            proto_msg: Some(message),
            ignored_device_id_list: ignored,
        }
    }

    fn message(&self, to: Option<E2eeAddress>) -> ProtoMsg {
        ProtoMsg {
            tag: None,
            from: self.from.clone(),
            to,
            payload: Some(self.payload.clone()),
            signature_list: Vec::new(),
        }
    }
}

/// The id under which a submission is deduplicated: base64url of what caused it.
pub fn submission_id(key: &[u8; 32]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(key)
}

/// Queues a letter for each device named, here or elsewhere, in the caller's transaction. Devices of this
/// domain that are gone are left out. `event` names what happened, and with the receiver it is the key under
/// which a peer deduplicates.
pub async fn queue(
    node: &Node,
    tx: &mut Tx,
    letter: &Letter,
    event: &str,
    receivers: impl IntoIterator<Item = DeviceAddress>,
) -> Result<Wake> {
    let mut appends = Vec::new();
    let mut held = Vec::new();
    for receiver in receivers {
        match node.home.route(&receiver) {
            Route::Here(device) => appends.push(Append {
                mail: vec![letter.mail(Recipient::Device(device), String::new(), false)],
                ..Append::default()
            }),
            Route::There(device) => {
                let id = node.once("submit", &[event.as_bytes(), device.to_string().as_bytes()]);
                let outgoing = Outgoing {
                    domain: device.domain().clone(),
                    lane: device.user.to_string(),
                    method: Method::SubmitProtoMsg,
                    request: letter
                        .submission(device.to_proto(), &id, Vec::new())
                        .encode_to_vec()
                        .into(),
                    sender: String::new(),
                    recipient: device.user.to_string(),
                    msg_id: String::new(),
                };
                let (parcel, ticket) = node.peers.parcel(node, outgoing)?;
                held.push(ticket);
                appends.push(Append {
                    parcels: vec![parcel],
                    ..Append::default()
                });
            }
        }
    }
    let (results, mut wake) = tx.append(appends).await?;
    wake.held.extend(held);
    for result in results {
        match result {
            Ok(_) | Err(Error::NotFound(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(wake)
}

/// Tells a device of ours that another is gone, so that it forgets its sessions; once a day for each pair, because
/// a late repeat would end sessions with a device that registered again.
pub fn farewell(node: &Node, told: &Local<DeviceAddress>, gone: &DeviceAddress) -> Append {
    let letter = Letter {
        from: Some(gone.to_proto()),
        payload: Payload::RemoveUserDeviceMsg(RemoveUserDeviceMsg {
            user_address: Some(gone.to_proto()),
        }),
    };
    let parts = [told.to_string(), gone.to_string()];
    let parts = [parts[0].as_bytes(), parts[1].as_bytes()];
    Append {
        once: Some(node.once_for_days(1, "gone", &parts)),
        mail: vec![letter.mail(Recipient::Device(told.clone()), String::new(), false)],
        ..Append::default()
    }
}

/// The hash that names an operation for deduplication: a scope and length-prefixed parts.
pub fn once_key(scope: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut framed = vec![scope.as_bytes().to_vec()];
    for part in parts {
        framed.push((part.len() as u64).to_be_bytes().to_vec());
        framed.push(part.to_vec());
    }
    sha256(&framed.iter().map(Vec::as_slice).collect::<Vec<_>>())
}
