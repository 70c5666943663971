//! Invites: the inviter's key and the server's time are filled in by its home, a re-send changes nothing.

use prost::Message as _;

use super::{
    INVITE_DAYS, PATIENCE, acting, bounded, client_id, is_gone, name_in, tell_gone, version,
};
use crate::{
    address::{DeviceAddress, Local, Remote, Route},
    caller::{Caller, Device},
    delivery::Letter,
    error::{Error, Result},
    node::Node,
    packs::Pack,
    peers::{Method, Outgoing},
    proto::skissm::{InviteMsg, InviteRequest, InviteResponse, proto_msg::Payload},
    store::{Append, Appended, InviteRecord, Once, Recipient, contacts},
};

/// Secrets of a handshake without a one-time key, and with one. Fewer crash receivers (contract 3.1).
const SECRETS_WITHOUT_OPK: usize = 2;
const SECRETS_WITH_OPK: usize = 3;

struct Invite {
    from: DeviceAddress,
    to: DeviceAddress,
    message: InviteMsg,
}

impl Invite {
    fn parse(node: &Node, caller: &Caller, request: InviteRequest) -> Result<Self> {
        let mut message = request.msg.ok_or(Error::Invalid("msg"))?;
        let from = DeviceAddress::from_proto(message.from.as_ref())?;
        caller.speaks_for(&from)?;
        let to = DeviceAddress::from_proto(message.to.as_ref())?;
        version(&message.version)?;
        client_id(&message.session_id, "session_id")?;
        if from == to {
            return Err(Error::Invalid("to"));
        }
        if message.alice_base_key.is_empty() {
            return Err(Error::Invalid("alice_base_key"));
        }
        let secrets = if message.bob_one_time_pre_key_id == 0 {
            SECRETS_WITHOUT_OPK
        } else {
            SECRETS_WITH_OPK
        };
        let count = message.pre_shared_input_list.len();
        if !(secrets..=SECRETS_WITH_OPK).contains(&count)
            || message
                .pre_shared_input_list
                .iter()
                .any(bytes::Bytes::is_empty)
        {
            return Err(Error::Invalid("pre_shared_input_list"));
        }
        bounded(node, &message, "msg")?;
        message.from = Some(acting(caller, &from, name_in(message.from.as_ref())));
        message.to = Some(to.to_proto_named(name_in(message.to.as_ref())));
        Ok(Self { from, to, message })
    }

    fn once(&self, node: &Node) -> Once {
        let (from, to) = (self.from.to_string(), self.to.to_string());
        let parts = [
            from.as_bytes(),
            to.as_bytes(),
            self.message.session_id.as_bytes(),
        ];
        Once {
            answer: self.message.invite_t,
            ..node.once("invite", &parts)
        }
    }

    fn record(&self, node: &Node, from: Local<DeviceAddress>) -> InviteRecord {
        InviteRecord {
            from,
            to: self.to.clone(),
            session_id: self.message.session_id.clone(),
            invite_t: self.message.invite_t,
            expires_at: node.clock.now_ms() + INVITE_DAYS * 86_400_000,
        }
    }

    fn mail(&self, to: Local<DeviceAddress>) -> crate::store::Mail {
        let letter = Letter {
            from: self.message.from.clone(),
            payload: Payload::InviteMsg(self.message.clone()),
        };
        letter.mail(Recipient::Device(to), self.from.to_string(), true)
    }
}

/// Queues an invite for the device that it names. A repeat is answered with the first one's time.
pub async fn invite(
    node: &Node,
    caller: &Caller,
    request: InviteRequest,
) -> Result<InviteResponse> {
    let mut invite = Invite::parse(node, caller, request)?;
    let session_id = invite.message.session_id.clone();
    let invite_t = match caller {
        Caller::Device(device) => {
            invite.message.alice_identity_key =
                contacts::identity_key(&node.store, device.key).await?;
            Pack::parse(invite.message.e2ee_pack_id)?.check_invite(&invite.message)?;
            invite.message.invite_t = node.clock.now_ms();
            if !contacts::has_session(&node.store, device.key, &invite.to).await? {
                node.rates
                    .first_contacts
                    .wait(&device.key, PATIENCE)
                    .await?;
            }
            match node.home.route(&invite.to) {
                Route::Here(to) => send_here(node, device, &invite, to).await?,
                Route::There(to) => send_there(node, device, invite, to).await?,
            }
        }
        Caller::Peer(domain) => {
            let to = node.home.local(&invite.to)?;
            Pack::parse(invite.message.e2ee_pack_id)?.check_invite(&invite.message)?;
            if invite.message.invite_t <= 0 {
                return Err(Error::Invalid("invite_t"));
            }
            if !contacts::user_has_session(
                &node.store,
                &to.user(),
                &to.device_id,
                &invite.from.user,
            )
            .await?
            {
                // At once: a peer that waits too long for an answer takes the whole domain for silent.
                if !node.rates.peer_contacts.allows(&domain.as_str().to_owned()) {
                    return Err(Error::Busy("too many invites from strangers"));
                }
            }
            let once = Some(invite.once(node));
            let mail = vec![invite.mail(to)];
            first_time(
                node.store
                    .append(Append {
                        once,
                        mail,
                        ..Append::default()
                    })
                    .await?,
                &invite,
            )
        }
        Caller::Nobody(_) => return Err(Error::Unauthenticated("a token is needed")),
    };
    Ok(InviteResponse {
        session_id,
        invite_t,
        ..InviteResponse::default()
    })
}

fn first_time(appended: Appended, invite: &Invite) -> i64 {
    match appended {
        Appended::New => invite.message.invite_t,
        Appended::Repeat(invite_t) => invite_t,
    }
}

async fn send_here(
    node: &Node,
    device: &Device,
    invite: &Invite,
    to: Local<DeviceAddress>,
) -> Result<i64> {
    let append = Append {
        once: Some(invite.once(node)),
        mail: vec![invite.mail(to.clone())],
        invite: Some(invite.record(node, device.address.clone())),
        ..Append::default()
    };
    let outcome = node.store.append(append).await;
    if let Err(Error::NotFound(_)) = outcome
        && contacts::was_here(&node.store, &to).await?
    {
        tell_gone(node, device, &to).await?;
    }
    Ok(first_time(outcome?, invite))
}

/// The record comes first: the accept may be back before the peer's answer is.
async fn send_there(
    node: &Node,
    device: &Device,
    mut invite: Invite,
    to: Remote<DeviceAddress>,
) -> Result<i64> {
    let record = Append {
        once: Some(invite.once(node)),
        invite: Some(invite.record(node, device.address.clone())),
        ..Append::default()
    };
    invite.message.invite_t = first_time(node.store.append(record).await?, &invite);
    let invite_t = invite.message.invite_t;
    let outgoing = Outgoing {
        domain: to.domain().clone(),
        lane: to.user.to_string(),
        method: Method::Invite,
        request: InviteRequest {
            msg: Some(invite.message),
        }
        .encode_to_vec()
        .into(),
        sender: device.address.to_string(),
        recipient: to.user.to_string(),
        msg_id: String::new(),
    };
    let outcome = node.peers.relay(node, outgoing, Append::default()).await;
    if outcome.as_ref().is_err_and(is_gone) {
        tell_gone(node, device, &to).await?;
    }
    outcome.map(|()| invite_t)
}
