//! Drains the outbox: one task for each domain with waiting rows, each lane in order, side by side up to a
//! window. A row leaves the disk before its lane goes on, so a kill at any moment loses nothing.

use std::{sync::Arc, time::Duration};

use futures_util::{
    StreamExt as _,
    stream::{self, FuturesUnordered},
};
use prost::Message as _;
use tokio::sync::SemaphorePermit;

use super::{
    HEALTH, Method, Peers,
    dispatch::Attempt,
    peer::{Job, Next, Peer},
};
use crate::{
    address::{DeviceAddress, Domain},
    delivery,
    error::{Error, Result},
    limits::{GREETED_PEERS_DAYS, GREETED_PEERS_MAX},
    node::Node,
    proto::{
        skiserver::SubmitProtoMsgRequest,
        skissm::{E2eeAddress, InviteRequest, SendOne2oneMsgRequest, proto_msg::Payload},
    },
    reply,
    store::{
        Wake,
        outbox::{self, Stored},
        peers,
    },
};

const DAY_MS: i64 = 86_400_000;
/// After the outbox could not be read it is read again after this time.
const READ_AGAIN: Duration = Duration::from_secs(1);

/// Starts the task of each domain that needs one, until the node drains.
pub(super) async fn run(node: Arc<Node>) {
    let peers = &node.peers;
    loop {
        for peer in std::mem::take(&mut *super::lock(&peers.starts)) {
            node.tasks.spawn(serve(Arc::clone(&node), peer));
        }
        if peers
            .is_stale
            .swap(false, std::sync::atomic::Ordering::SeqCst)
            && let Err(error) = peers.load(&node.store).await
        {
            tracing::error!(%error, "the outbox can't be read");
            peers
                .is_stale
                .store(true, std::sync::atomic::Ordering::SeqCst);
            let pause = node.clock.sleep(READ_AGAIN);
            if node.stop.run_until_cancelled(pause).await.is_none() {
                return;
            }
            continue;
        }
        if node
            .stop
            .run_until_cancelled(peers.work.notified())
            .await
            .is_none()
        {
            return;
        }
    }
}

/// Asks the health of every domain heard of lately, so that both sides know at once that they are back.
pub(super) async fn greet(node: Arc<Node>) {
    let since = node.clock.now_ms() - GREETED_PEERS_DAYS * DAY_MS;
    let known = match peers::heard_of(&node.store, since, GREETED_PEERS_MAX).await {
        Ok(known) => known,
        Err(error) => {
            tracing::warn!(%error, "peers can't be read, so none is greeted");
            return;
        }
    };
    let side_by_side = usize::try_from(node.limits.probes_max).unwrap_or(1).max(1);
    let greetings = stream::iter(known).for_each_concurrent(side_by_side, |domain| {
        let node = Arc::clone(&node);
        async move { greet_one(&node, &domain).await }
    });
    node.stop.run_until_cancelled(greetings).await;
}

async fn greet_one(node: &Node, domain: &Domain) {
    let peers = &node.peers;
    if !peers.wire.may_talk(domain) {
        return;
    }
    let peer = peers.peer(domain);
    let patience = Duration::from_millis(node.limits.ask_ms.into());
    let request = bytes::Bytes::new();
    let answer = peers.call(&peer, HEALTH, request, patience, false, &node.limits);
    if let Err(error) = answer.await {
        tracing::info!(%domain, %error, "a domain does not answer our greeting");
    }
}

/// Has the task started again if it ends while rows wait, which only a panic brings about.
struct Served<'a>(&'a Peers, &'a Arc<Peer>);

impl Drop for Served<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() && self.1.abandoned() {
            self.0.start_serving(Arc::clone(self.1));
        }
    }
}

/// Delivers what waits for one domain, until nothing does.
async fn serve(node: Arc<Node>, peer: Arc<Peer>) {
    let _served = Served(&node.peers, &peer);
    let mut under_way = FuturesUnordered::new();
    loop {
        let until = loop {
            match peer.next(node.clock.now_ms(), &node.limits) {
                Next::Deliver(job) => under_way.push(Box::pin(deliver(&node, job))),
                Next::Wait(until) => break until,
                Next::Idle => return,
            }
        };
        let timer = async {
            match until {
                Some(at) => node.clock.sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = node.stop.cancelled() => return,
            Some(()) = under_way.next() => {}
            () = peer.changed.notified() => {}
            () = timer => {}
        }
    }
}

async fn deliver(node: &Node, job: Job) {
    let peers = &node.peers;
    let Some(_permit) = admit(peers, &job).await else {
        return;
    };
    let row = match outbox::one(&node.store, job.place).await {
        Ok(Some(row)) => row,
        Ok(None) => return job.done(),
        Err(error) => return put_off(node, job, &error.to_string()),
    };
    // A call must not end after its row: what expires by then is left to its notice.
    let patience = Duration::from_millis(node.limits.deliver_ms.into());
    if row.expires_at <= node.clock.now_ms() + i64::from(node.limits.deliver_ms) {
        return job.done();
    }
    let Some(method) = Method::from_number(row.method) else {
        return put_off(node, job, "this version does not know its method");
    };
    if !peers.wire.may_talk(&row.domain) {
        return put_off(node, job, "the policy here forbids it");
    }
    let (request, limits) = (row.body.clone(), &node.limits);
    let attempt = peers.attempt(&job.peer, method, request, patience, job.is_probe, limits);
    let settled = match attempt.await {
        Attempt::Done => node.store.answered(row.place).await,
        Attempt::Refused(code, text) => refuse(node, &row, method, code, &text).await,
        Attempt::PutOff(why) => return put_off(node, job, &why),
        Attempt::Silent => return job.put_back(),
    };
    match settled {
        Ok(()) => job.done(),
        Err(error) => put_off(node, job, &error.to_string()),
    }
}

/// Waits for a place among all deliveries. Probes have places of their own, so that silent domains, however
/// many, take none of the others'; a domain that is heard of while its probe waits moves over.
async fn admit<'a>(peers: &'a Peers, job: &Job) -> Option<SemaphorePermit<'a>> {
    if job.is_probe {
        tokio::select! {
            permit = peers.probes.acquire() => return permit.ok(),
            () = job.peer.heard() => {}
        }
    }
    peers.deliveries.acquire().await.ok()
}

fn put_off(node: &Node, job: Job, why: &str) {
    tracing::debug!(domain = %job.peer.domain, why, "a request is tried again later");
    job.put_off(why, node.clock.now_ms());
}

/// Ends a row that its peer refused for good. A sender whose message met a device that is gone is told so in
/// the form that its client acts upon; any other sender gets a notice later.
async fn refuse(node: &Node, row: &Stored, method: Method, code: i32, text: &str) -> Result<()> {
    tracing::info!(domain = %row.domain, ?method, code, "a peer refused a request for good");
    let sender = DeviceAddress::parse(&row.sender).ok();
    let gone = if reply::is_not_found(code) {
        target(method, row)
    } else {
        None
    };
    let mut tx = node.store.begin().await?;
    let wake = match (sender, gone) {
        (None, _) => {
            outbox::delete(&mut tx, &[row.place]).await?;
            Wake::default()
        }
        (Some(sender), Some(gone)) => {
            outbox::delete(&mut tx, &[row.place]).await?;
            let told = node.home.local(&sender)?;
            let (results, wake) = tx
                .append(vec![delivery::farewell(node, &told, &gone)])
                .await?;
            match results.into_iter().next() {
                // The sender itself may be gone by now.
                None | Some(Ok(_) | Err(Error::NotFound(_))) => wake,
                Some(Err(error)) => return Err(error),
            }
        }
        (Some(_), None) => {
            outbox::refuse(&mut tx, row.place, code, text).await?;
            Wake::default()
        }
    };
    tx.commit(wake).await
}

/// The device that a stored request is for, if it is one that clients address by device.
fn target(method: Method, row: &Stored) -> Option<DeviceAddress> {
    let body = row.body.clone();
    let to: Option<E2eeAddress> = match method {
        Method::SendOne2oneMsg => SendOne2oneMsgRequest::decode(body).ok()?.msg?.to,
        Method::Invite => InviteRequest::decode(body).ok()?.msg?.to,
        Method::SubmitProtoMsg => {
            let message = SubmitProtoMsgRequest::decode(body).ok()?.proto_msg?;
            match message.payload? {
                Payload::AcceptMsg(accept) => accept.to,
                _ => None,
            }
        }
        Method::RemoveUserDevice => None,
    };
    DeviceAddress::from_proto(to.as_ref()).ok()
}
