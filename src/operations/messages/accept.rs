//! Accepts: delivered exactly once, only as the answer to a recorded invite, and the proof of a session.

use prost::Message as _;

use super::{INVITE_DAYS, acting, bounded, is_gone, name_in, tell_gone};
use crate::{
    address::{DeviceAddress, Local, Route},
    caller::Caller,
    delivery::Letter,
    error::{Error, Result},
    node::Node,
    packs::Pack,
    peers::{Method, Outgoing},
    proto::skissm::{AcceptMsg, AcceptRequest, AcceptResponse, proto_msg::Payload},
    signing::sha256,
    store::{Append, Once, Pair, Recipient, contacts},
};

pub(super) struct Accept {
    pub(super) from: DeviceAddress,
    pub(super) to: DeviceAddress,
    pub(super) message: AcceptMsg,
}

impl Accept {
    pub(super) fn parse(node: &Node, caller: &Caller, message: Option<AcceptMsg>) -> Result<Self> {
        let mut message = message.ok_or(Error::Invalid("msg"))?;
        let from = DeviceAddress::from_proto(message.from.as_ref())?;
        caller.speaks_for(&from)?;
        let to = DeviceAddress::from_proto(message.to.as_ref())?;
        if from == to {
            return Err(Error::Invalid("to"));
        }
        Pack::parse(message.e2ee_pack_id)?.check_accept(&message)?;
        bounded(node, &message, "msg")?;
        message.from = Some(acting(caller, &from, name_in(message.from.as_ref())));
        message.to = Some(to.to_proto_named(name_in(message.to.as_ref())));
        Ok(Self { from, to, message })
    }

    /// It carries no session id, so its secrets tell one from another (contract 8.2).
    fn once(&self, node: &Node) -> Once {
        let secrets = sha256(&[&self.message.encaps_ciphertext, &self.message.ratchet_key]);
        let (from, to) = (self.from.to_string(), self.to.to_string());
        node.once_for_days(
            INVITE_DAYS,
            "accept",
            &[from.as_bytes(), to.as_bytes(), &secrets],
        )
    }

    fn letter(&self) -> Letter {
        Letter {
            from: self.message.from.clone(),
            payload: Payload::AcceptMsg(self.message.clone()),
        }
    }

    /// Queues the accept for the inviter, one of ours, if it did invite; otherwise it is dropped unseen.
    pub(super) async fn deliver(
        &self,
        node: &Node,
        to: Local<DeviceAddress>,
        mut pairs: Vec<Pair>,
    ) -> Result<()> {
        if !contacts::invited(&node.store, &to, &self.from).await? {
            // The invites of a device that is gone went with it.
            if contacts::was_here(&node.store, &to).await? {
                return Err(Error::NotFound("device"));
            }
            metrics::counter!("skiserver_dropped_total", "why" => "accept_without_invite")
                .increment(1);
            return Ok(());
        }
        pairs.push(Pair {
            device: to.clone(),
            peer: self.from.clone(),
        });
        let append = Append {
            once: Some(self.once(node)),
            mail: vec![
                self.letter()
                    .mail(Recipient::Device(to), self.from.to_string(), false),
            ],
            pairs,
            ..Append::default()
        };
        node.store.append(append).await.map(drop)
    }
}

/// Queues the accept of an invite for the inviter, and records the session. A repeat changes nothing.
pub async fn accept(
    node: &Node,
    caller: &Caller,
    request: AcceptRequest,
) -> Result<AcceptResponse> {
    let device = caller.device()?;
    let accept = Accept::parse(node, caller, request.msg)?;
    let ours = vec![Pair {
        device: device.address.clone(),
        peer: accept.to.clone(),
    }];
    let outcome = match node.home.route(&accept.to) {
        Route::Here(to) => accept.deliver(node, to, ours).await,
        Route::There(to) => {
            let submission =
                accept
                    .letter()
                    .submission(to.to_proto(), &accept.once(node), Vec::new());
            let outgoing = Outgoing {
                domain: to.domain().clone(),
                lane: to.user.to_string(),
                method: Method::SubmitProtoMsg,
                request: submission.encode_to_vec().into(),
                sender: device.address.to_string(),
                recipient: to.user.to_string(),
                msg_id: String::new(),
            };
            let with = Append {
                pairs: ours,
                ..Append::default()
            };
            node.peers.relay(node, outgoing, with).await
        }
    };
    match outcome {
        // The client would repeat anything but success for ever.
        Err(error) if is_gone(&error) => tell_gone(node, device, &accept.to).await?,
        Err(Error::Forbidden(_) | Error::Refused { .. }) => {
            metrics::counter!("skiserver_dropped_total", "why" => "accept_refused").increment(1);
        }
        other => other?,
    }
    Ok(AcceptResponse::default())
}
