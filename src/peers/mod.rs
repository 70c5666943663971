//! The way out: other domains' nodes. What must arrive goes through lanes that survive everything; what is asked
//! is asked now or not at all.

mod backoff;
pub mod channel;
mod dial;
pub mod discovery;
mod dispatch;
mod lanes;
mod notices;
mod peer;
mod race;
mod sender;
mod tls;
pub mod wire;

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicI64, Ordering},
    },
};

use bytes::Bytes;
use tokio::sync::{Notify, Semaphore};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    address::{Domain, Home},
    clock::Clock,
    error::Result,
    identity::Identity,
    limits::Limits,
    node::Node,
    store::{Store, Wake, outbox},
};
use channel::Channels;
use discovery::Discovery;
use peer::Peer;
use tls::Tls;
use wire::{HEALTH, Wire};

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

/// Every method with its number in the outbox, which never changes, and its path.
const METHODS: [(Method, i64, &str); 4] = [
    (
        Method::SubmitProtoMsg,
        1,
        "/skiserver.E2eeS2SService/SubmitProtoMsg",
    ),
    (
        Method::SendOne2oneMsg,
        2,
        "/skiserver.E2eeS2SService/SendOne2oneMsg",
    ),
    (Method::Invite, 3, "/skiserver.E2eeS2SService/Invite"),
    (
        Method::RemoveUserDevice,
        4,
        "/skiserver.E2eeS2SService/RemoveUserDevice",
    ),
];

impl Method {
    fn number(self) -> i64 {
        self.row().1
    }

    fn path(self) -> &'static str {
        self.row().2
    }

    fn from_number(number: i64) -> Option<Self> {
        METHODS.iter().find(|row| row.1 == number).map(|row| row.0)
    }

    fn row(self) -> (Self, i64, &'static str) {
        let [submit, send, invite, remove] = METHODS;
        match self {
            Self::SubmitProtoMsg => submit,
            Self::SendOne2oneMsg => send,
            Self::Invite => invite,
            Self::RemoveUserDevice => remove,
        }
    }
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
pub struct Peers {
    wire: Arc<dyn Wire>,
    clock: Clock,
    by_domain: Mutex<HashMap<Domain, Arc<Peer>>>,
    last_place: AtomicI64,
    /// Domains whose lanes want a task.
    starts: Mutex<Vec<Arc<Peer>>>,
    /// The outbox may hold rows that no lane knows.
    is_stale: AtomicBool,
    /// Told when one of the two above changed.
    work: Notify,
    deliveries: Semaphore,
    probes: Semaphore,
}

/// Rows read in one go when lanes are filled from disk.
const PAGE_ROWS: u32 = 1_000;

impl Peers {
    /// Lanes over mutual TLS, all empty. Connections are opened in tasks of `tracker`, and no more after `kill`.
    pub fn new(
        home: &Home,
        identity: Arc<Identity>,
        discovery: Arc<Discovery>,
        clock: &Clock,
        limits: &Limits,
        tracker: &TaskTracker,
        kill: &CancellationToken,
    ) -> Result<Self> {
        let own = home.identity();
        let channels = Channels::new(
            &own,
            Arc::clone(&identity),
            discovery,
            clock,
            limits,
            tracker.clone(),
            kill.clone(),
        )?;
        let bytes_max = limits.request_bytes_max;
        Ok(Self::over(
            Arc::new(Tls::new(channels, identity, bytes_max)),
            clock,
            limits,
        ))
    }

    /// Lanes over a wire, all empty. Nothing is sent from the outbox before [`start`].
    pub fn over(wire: Arc<dyn Wire>, clock: &Clock, limits: &Limits) -> Self {
        let permits = |n: u32| Semaphore::new(usize::try_from(n).unwrap_or(1).max(1));
        Self {
            wire,
            clock: clock.clone(),
            by_domain: Mutex::default(),
            last_place: AtomicI64::new(0),
            starts: Mutex::default(),
            is_stale: AtomicBool::new(false),
            work: Notify::new(),
            deliveries: permits(limits.deliveries_max),
            probes: permits(limits.probes_max),
        }
    }

    /// Takes over what a commit stored: the tasks of these domains go on. Never blocks.
    pub fn wake(&self, wake: &Wake) {
        for (domain, lane, place) in &wake.stored {
            self.stored(domain, lane, *place, 0);
        }
        if wake.reopened {
            self.is_stale.store(true, Ordering::SeqCst);
            self.work.notify_one();
        }
    }

    /// Notes that a domain proved itself to us: whatever waits for it is tried now.
    pub fn contact(&self, domain: &Domain) {
        self.peer(domain).contact(self.clock.now_ms());
    }

    fn stored(&self, domain: &Domain, lane: &str, place: i64, bytes: i64) {
        let peer = self.peer(domain);
        if peer.stored(lane, place, bytes) {
            self.start_serving(peer);
        }
    }

    fn start_serving(&self, peer: Arc<Peer>) {
        lock(&self.starts).push(peer);
        self.work.notify_one();
    }

    /// The state of a domain, made when it is first needed.
    fn peer(&self, domain: &Domain) -> Arc<Peer> {
        let mut peers = lock(&self.by_domain);
        if let Some(peer) = peers.get(domain) {
            return Arc::clone(peer);
        }
        let peer = Arc::new(Peer::new(domain.clone()));
        peers.insert(domain.clone(), Arc::clone(&peer));
        peer
    }

    fn all(&self) -> Vec<Arc<Peer>> {
        lock(&self.by_domain).values().cloned().collect()
    }

    /// Drops the state of domains that nobody uses. Others take theirs under the same lock.
    fn forget_idle(&self, now: i64) {
        lock(&self.by_domain)
            .retain(|_, peer| Arc::strong_count(peer) > 1 || !peer.is_forgettable(now));
    }

    /// A place after all places before: the time in µs, or one more than the last.
    fn next_place(&self) -> i64 {
        let now = self.clock.now_ms().saturating_mul(1_000);
        let next = |last: i64| Some(now.max(last.saturating_add(1)));
        let before = self
            .last_place
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, next);
        let before = before.unwrap_or_else(|last| last);
        now.max(before.saturating_add(1))
    }

    /// Adds every row of the outbox that no lane knows.
    async fn load(&self, store: &Store) -> Result<()> {
        let last = outbox::last_place(store).await?;
        self.last_place.fetch_max(last, Ordering::SeqCst);
        let mut after = 0;
        loop {
            let page = outbox::places(store, after, PAGE_ROWS).await?;
            let Some(last) = page.last() else {
                return Ok(());
            };
            after = last.place;
            for row in &page {
                self.stored(&row.domain, &row.lane, row.place, row.bytes);
            }
        }
    }
}

/// Takes over what the outbox holds, greets the domains last heard of, and starts delivering. Doors open after
/// this returned.
pub async fn start(node: &Arc<Node>) -> Result<()> {
    node.peers.load(&node.store).await?;
    node.tasks.spawn(node.peers.wire.tidy(node.stop.clone()));
    node.tasks.spawn(sender::run(Arc::clone(node)));
    node.tasks.spawn(sender::greet(Arc::clone(node)));
    node.tasks.spawn(notices::run(Arc::clone(node)));
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
