//! The way out: other domains.

use std::any::Any;

use bytes::Bytes;
use prost::Message;

use crate::{
    address::Domain,
    error::{Error, Result},
    node::Node,
    reply::Reply,
    store::{Append, Parcel},
};

/// An RPC that the outbox may carry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A stored `ProtoMsg`.
    SubmitProtoMsg,
    /// A one-to-one message.
    SendOne2oneMsg,
    /// An invite.
    Invite,
    /// The removal of a device: a barrier for its domain.
    RemoveUserDevice,
}

/// A request to another domain that must arrive, in the order of its lane.
#[derive(Debug, Clone)]
pub struct Outgoing {
    /// Where it goes.
    pub domain: Domain,
    /// The receiving user or group; empty for a barrier.
    pub lane: String,
    /// Which RPC.
    pub method: Method,
    /// The encoded request.
    pub request: Bytes,
    /// The device that hears about lateness and refusal; nobody if empty.
    pub sender: String,
    /// The recipient as that device knows it.
    pub recipient: String,
    /// The message as that device knows it, or empty.
    pub msg_id: String,
}

/// Everything about other domains.
pub struct Peers {}

impl Peers {
    /// Takes a place in the lane for a request that a transaction stores. The second part must live until
    /// the commit: dropped before, it gives the place back.
    pub fn parcel(
        &self,
        _node: &Node,
        _outgoing: Outgoing,
    ) -> Result<(Parcel, Box<dyn Any + Send + Sync>)> {
        Err(Error::NotYet)
    }

    /// Brings a request to its domain: directly if its lane is empty, else through the outbox. `Ok` means that
    /// it is on disk there or here, and `with` is on disk here. A final refusal is [`Error::Refused`].
    pub async fn relay(&self, _node: &Node, _outgoing: Outgoing, _with: Append) -> Result<()> {
        Err(Error::NotYet)
    }

    /// Asks another domain for data, now or not at all.
    pub async fn ask<Rq: Message + 'static, Rs: Reply>(
        &self,
        _node: &Node,
        _domain: &Domain,
        _rpc: &'static str,
        _request: Rq,
    ) -> Result<Rs> {
        Err(Error::NotYet)
    }

    /// Notes that a domain proved itself to us: whatever waits for it is tried now.
    pub fn contact(&self, _domain: &Domain) {}
}
