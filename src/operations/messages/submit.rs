//! What peers submit: only payloads that have no call of their own, each checked against what we know.

use super::accept::Accept;
use crate::{
    address::{DeviceAddress, Domain, Local, UserAddress, identifier},
    caller::Caller,
    delivery::Letter,
    error::{Error, Result},
    limits,
    node::Node,
    proto::{
        skiserver::{SubmitProtoMsgRequest, SubmitProtoMsgResponse},
        skissm::{AddUserDeviceMsg, E2eeAddress, ProtoMsg, proto_msg::Payload},
    },
    store::{Append, Recipient, contacts},
};

/// Takes a message from a peer for one device or all devices of a user of ours. A repeat changes nothing.
/// Foreign tags and signatures stay outside.
pub async fn submit(
    node: &Node,
    caller: &Caller,
    request: SubmitProtoMsgRequest,
) -> Result<SubmitProtoMsgResponse> {
    let Caller::Peer(peer) = caller else {
        return Err(Error::Forbidden("only peers submit"));
    };
    let message = request.proto_msg.ok_or(Error::Invalid("protoMsg"))?;
    let id = message
        .tag
        .as_ref()
        .map(|tag| tag.proto_msg_id.as_str())
        .unwrap_or_default();
    identifier(id, limits::MSG_ID_BYTES_MAX, "proto_msg_id")?;
    let to = Receiver::parse(node, &message, request.ignored_device_id_list)?;
    let from = message.from.clone();
    match message.payload.as_ref().ok_or(Error::Invalid("payload"))? {
        Payload::AcceptMsg(accept) => {
            let accept = Accept::parse(node, caller, Some(accept.clone()))?;
            let device = to.device.ok_or(Error::Invalid("to"))?;
            if *device != accept.to || DeviceAddress::from_proto(from.as_ref())? != accept.from {
                return Err(Error::Invalid("to"));
            }
            accept.deliver(node, device, Vec::new()).await?;
        }
        Payload::AddUserDeviceMsg(added) => {
            let (user, payload) = added_device(peer, from.as_ref(), added)?;
            deliver_to_acquaintance(node, peer, id, to, &user, payload).await?;
        }
        Payload::UpdateUserMsg(update) => {
            let user = UserAddress::from_proto(update.user_address.as_ref())?;
            caller.speaks_for_domain_of(&user)?;
            let payload = Letter {
                from: update.user_address.clone(),
                payload: Payload::UpdateUserMsg(update.clone()),
            };
            deliver_to_acquaintance(node, peer, id, to, &user, payload).await?;
        }
        Payload::CreateGroupMsg(_)
        | Payload::AddGroupMembersMsg(_)
        | Payload::AddGroupMemberDeviceMsg(_)
        | Payload::RemoveGroupMembersMsg(_)
        | Payload::LeaveGroupMsg(_)
        | Payload::GroupManagerMsg(_) => return Err(Error::NotYet),
        Payload::E2eeMsg(message) if is_for_group(message) => return Err(Error::NotYet),
        _ => return Err(Error::Invalid("payload")),
    }
    Ok(SubmitProtoMsgResponse::default())
}

fn is_for_group(message: &crate::proto::skissm::E2eeMsg) -> bool {
    use crate::proto::skissm::e2ee_msg;
    matches!(message.payload, Some(e2ee_msg::Payload::GroupMsg(_)))
}

/// The envelope's receiver, proved to be ours.
struct Receiver {
    user: Local<UserAddress>,
    /// Only this device, if one is named.
    device: Option<Local<DeviceAddress>>,
    ignored: Vec<String>,
}

impl Receiver {
    fn parse(node: &Node, message: &ProtoMsg, ignored: Vec<String>) -> Result<Self> {
        let user = node
            .home
            .local(&UserAddress::from_proto(message.to.as_ref())?)?;
        let device = match DeviceAddress::from_proto(message.to.as_ref()) {
            Ok(device) => Some(node.home.local(&device)?),
            Err(_) if names_a_device(message.to.as_ref()) => return Err(Error::Invalid("to")),
            Err(_) => None,
        };
        if ignored.len() > limits::IGNORED_DEVICES_MAX {
            return Err(Error::Invalid("ignoredDeviceIdList"));
        }
        for id in &ignored {
            identifier(id, limits::DEVICE_ID_BYTES_MAX, "ignoredDeviceIdList")?;
        }
        Ok(Self {
            user,
            device,
            ignored,
        })
    }

    fn recipient(self) -> Recipient {
        match self.device {
            Some(device) => Recipient::Device(device),
            None => Recipient::Devices(self.user, self.ignored),
        }
    }
}

fn names_a_device(address: Option<&E2eeAddress>) -> bool {
    use crate::proto::skissm::e2ee_address::Peer;
    matches!(address.and_then(|a| a.peer.as_ref()), Some(Peer::User(user)) if !user.device_id.is_empty())
}

fn added_device(
    peer: &Domain,
    from: Option<&E2eeAddress>,
    added: &AddUserDeviceMsg,
) -> Result<(UserAddress, Letter)> {
    let device = DeviceAddress::from_proto(added.user_address.as_ref())?;
    if device.domain() != peer {
        return Err(Error::Forbidden("the acting address is of another domain"));
    }
    if DeviceAddress::from_proto(from)? != device {
        return Err(Error::Invalid("from"));
    }
    if added.old_address_list.len() > limits::IGNORED_DEVICES_MAX {
        return Err(Error::Invalid("old_address_list"));
    }
    for old in &added.old_address_list {
        if DeviceAddress::from_proto(Some(old))?.user != device.user {
            return Err(Error::Invalid("old_address_list"));
        }
    }
    let letter = Letter {
        from: added.user_address.clone(),
        payload: Payload::AddUserDeviceMsg(added.clone()),
    };
    Ok((device.user, letter))
}

/// Queues what only people who know each other may send; from strangers it is dropped unseen, so that nobody
/// learns who knows whom (contract 13.1, rule 10).
async fn deliver_to_acquaintance(
    node: &Node,
    peer: &Domain,
    id: &str,
    to: Receiver,
    user: &UserAddress,
    letter: Letter,
) -> Result<()> {
    let device_id = to
        .device
        .as_ref()
        .map(|device| device.device_id.as_str())
        .unwrap_or_default();
    let knows = contacts::user_has_session(&node.store, &to.user, device_id, user).await?
        || contacts::are_friends(&node.store, &to.user, user).await?;
    if !knows {
        metrics::counter!("skiserver_dropped_total", "why" => "stranger").increment(1);
        return Ok(());
    }
    let append = Append {
        once: Some(node.once("submit", &[peer.as_str().as_bytes(), id.as_bytes()])),
        mail: vec![letter.mail(to.recipient(), user.to_string(), false)],
        ..Append::default()
    };
    node.store.append(append).await.map(drop)
}
