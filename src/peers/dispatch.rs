//! Requests of operations to other domains: those that must arrive take a place in their lane first, then go
//! directly or into the outbox; those for data go now or not at all.

use std::{any::Any, sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;

use super::{
    Method, Outgoing, Peers,
    peer::{Peer, Ticket},
    wire::PeerError,
};
use crate::{
    address::Domain,
    error::{Error, Result},
    limits::Limits,
    node::Node,
    reply::{self, Fate, Reply, Verdict},
    store::{Append, Body, Parcel},
};

const DENIED: Error = Error::Forbidden("the policy here does not let anything out to that domain");
const DAY_MS: i64 = 86_400_000;

/// What came of one attempt to bring a request to its domain.
#[derive(Debug)]
pub(super) enum Attempt {
    /// The peer has it on disk.
    Done,
    /// The peer will never take it.
    Refused(i32, String),
    /// The peer is there but does not take it just now.
    PutOff(String),
    /// The domain is silent.
    Silent,
}

impl Peers {
    /// Takes a place in the lane for a request that a transaction stores. The second part must live until
    /// the commit: dropped before, it gives the place back.
    pub fn parcel(
        &self,
        node: &Node,
        outgoing: Outgoing,
    ) -> Result<(Parcel, Box<dyn Any + Send + Sync>)> {
        let ticket = self.take(&outgoing, false, &node.limits)?;
        let parcel = self.pack(outgoing, &ticket, &node.limits);
        Ok((parcel, Box::new(ticket)))
    }

    /// Brings a request to its domain: directly if its lane is empty, else through the outbox. `Ok` means that
    /// it is on disk there or here, and `with` is on disk here. A final refusal is [`Error::Refused`].
    pub async fn relay(&self, node: &Node, outgoing: Outgoing, mut with: Append) -> Result<()> {
        if !self.wire.may_talk(&outgoing.domain) {
            return Err(DENIED);
        }
        let mut ticket = self.take(&outgoing, true, &node.limits)?;
        if ticket.is_direct {
            match self.send_directly(&ticket, &outgoing, &node.limits).await {
                Attempt::Done => {
                    drop(ticket);
                    if !is_empty(&with) {
                        node.store.append(with).await?;
                    }
                    return Ok(());
                }
                Attempt::Refused(code, message) => {
                    let domain = outgoing.domain;
                    return Err(Error::Refused {
                        domain,
                        code,
                        message,
                    });
                }
                Attempt::PutOff(_) | Attempt::Silent => ticket.keep_for_row(),
            }
        }
        with.parcels
            .push(self.pack(outgoing, &ticket, &node.limits));
        node.store.append(with).await?;
        Ok(())
    }

    /// Asks another domain for data, now or not at all. `rpc` is the method's name in the service of peers.
    pub async fn ask<Rq: Message + 'static, Rs: Reply>(
        &self,
        node: &Node,
        domain: &Domain,
        rpc: &'static str,
        request: Rq,
    ) -> Result<Rs> {
        if !self.wire.may_talk(domain) {
            return Err(DENIED);
        }
        let peer = self.peer(domain);
        let unreachable = || Error::Unreachable(domain.clone());
        let _ask = peer.ask().ok_or_else(unreachable)?;
        let path = format!("/skiserver.E2eeS2SService/{rpc}");
        let patience = Duration::from_millis(node.limits.ask_ms.into());
        let request = Bytes::from(request.encode_to_vec());
        let answer = self.call(&peer, &path, request, patience, false, &node.limits);
        let answer = answer.await.map_err(|error| {
            tracing::info!(%domain, rpc, %error, "a peer did not answer");
            unreachable()
        })?;
        let answer = Rs::decode(answer).map_err(|error| {
            tracing::warn!(%domain, rpc, %error, "a peer's answer can't be read");
            unreachable()
        })?;
        reply::from_peer(domain, answer)
    }

    /// One attempt to bring a request of the outbox to its domain.
    pub(super) async fn attempt(
        &self,
        peer: &Arc<Peer>,
        method: Method,
        request: Bytes,
        patience: Duration,
        is_probe: bool,
        limits: &Limits,
    ) -> Attempt {
        let answer = self.call(peer, method.path(), request, patience, is_probe, limits);
        let attempt = match answer.await.map(Verdict::decode) {
            Ok(Ok(verdict)) => match verdict.fate() {
                Fate::Done => Attempt::Done,
                Fate::Final(code, text) => Attempt::Refused(code, text),
                Fate::Retry(why) => Attempt::PutOff(why),
            },
            Ok(Err(_)) => Attempt::PutOff("its answer can't be read".to_owned()),
            Err(PeerError::Failed(why)) => Attempt::PutOff(why),
            Err(PeerError::Silent(_)) => Attempt::Silent,
        };
        let outcome = match &attempt {
            Attempt::Done => "done",
            Attempt::Refused(..) => "refused",
            Attempt::PutOff(_) => "put_off",
            Attempt::Silent => "silent",
        };
        metrics::counter!("skiserver_deliveries_total", "outcome" => outcome).increment(1);
        attempt
    }

    /// One call, and what it says about its domain. [`PeerError::Silent`] means that everything for the domain
    /// waits; silence that only this call met is [`PeerError::Failed`].
    pub(super) async fn call(
        &self,
        peer: &Arc<Peer>,
        path: &str,
        request: Bytes,
        patience: Duration,
        is_probe: bool,
        limits: &Limits,
    ) -> Result<Bytes, PeerError> {
        let began = peer.begin();
        let call = self.wire.call(&peer.domain, path, request, patience);
        let answer = tokio::time::timeout(patience, call)
            .await
            .unwrap_or_else(|_| Err(PeerError::Silent("no answer in time".to_owned())));
        let now = self.clock.now_ms();
        match answer {
            Err(PeerError::Silent(why)) => {
                if peer.silent(began, is_probe, &why, now, limits) {
                    Err(PeerError::Silent(why))
                } else {
                    Err(PeerError::Failed(why))
                }
            }
            other => {
                peer.answered(now);
                other
            }
        }
    }

    async fn send_directly(
        &self,
        ticket: &Ticket,
        outgoing: &Outgoing,
        limits: &Limits,
    ) -> Attempt {
        let patience = Duration::from_millis(limits.fast_path_ms.into());
        let request = outgoing.request.clone();
        self.attempt(
            &ticket.peer,
            outgoing.method,
            request,
            patience,
            false,
            limits,
        )
        .await
    }

    fn take(&self, outgoing: &Outgoing, may_go_direct: bool, limits: &Limits) -> Result<Ticket> {
        let bytes = i64::try_from(outgoing.request.len()).unwrap_or(i64::MAX);
        let now = self.clock.now_ms();
        self.peer(&outgoing.domain)
            .take(&outgoing.lane, bytes, may_go_direct, now, limits, || {
                self.next_place()
            })
    }

    fn pack(&self, outgoing: Outgoing, ticket: &Ticket, limits: &Limits) -> Parcel {
        Parcel {
            place: ticket.place,
            domain: outgoing.domain,
            lane: outgoing.lane,
            method: outgoing.method.number(),
            body: Body::new(outgoing.request),
            sender: outgoing.sender,
            recipient: outgoing.recipient,
            msg_id: outgoing.msg_id,
            expires_at: self.clock.now_ms() + i64::from(limits.outbox_days) * DAY_MS,
        }
    }
}

fn is_empty(append: &Append) -> bool {
    append.once.is_none()
        && append.mail.is_empty()
        && append.pairs.is_empty()
        && append.invite.is_none()
        && append.parcels.is_empty()
}
