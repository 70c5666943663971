//! The sweep that keeps senders informed: messages that are late, expired or refused for good are told, grouped
//! by sender and recipient, once; and what is known of peers is written down.

use std::{collections::HashMap, sync::Arc, time::Duration};

use serde::Serialize;

use super::peer::Peer;
use crate::{
    address::DeviceAddress,
    delivery::{self, Letter},
    error::{Error, Result},
    limits::{
        LATE_AGAIN_MS, NOTICE_MSG_IDS_MAX, OUTBOX_BATCH_ROWS, OUTBOX_SWEEP_SECONDS, PEERS_DAYS,
    },
    node::Node,
    proto::skissm::{SystemManagerMsg, SystemOp, proto_msg::Payload},
    reply,
    store::{
        Tx, Wake,
        outbox::{self, EXPIRED, Place, Thread},
        peers,
    },
};

/// Threads looked at in one sweep.
const THREADS_MAX: u32 = 1_000;
/// Notes on peers written in one transaction.
const NOTES_MAX: usize = 256;
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;
const DENIED: &str = "the policy of this domain forbids it";

/// The fate of messages, as clients read it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Late,
    Expired,
    Refused,
}

/// The payload of the notice.
#[derive(Debug, Serialize)]
struct Notice<'a> {
    v: u32,
    state: State,
    to: &'a str,
    count: i64,
    msg_ids: &'a [String],
    reason: &'a str,
    next_try_ms: i64,
}

/// When senders were last told of an end: a thread whose messages end one by one makes no flood.
#[derive(Debug, Default)]
pub(super) struct Told(HashMap<(String, String, State), i64>);

/// Sweeps every few seconds until the node drains.
pub(super) async fn run(node: Arc<Node>) {
    let pause = Duration::from_secs(OUTBOX_SWEEP_SECONDS);
    let mut told = Told::default();
    loop {
        let sweep = sweep(&node, &mut told);
        match node.stop.run_until_cancelled(sweep).await {
            None => return,
            Some(Ok(())) => {}
            Some(Err(error)) => tracing::error!(%error, "the sweep of the outbox failed"),
        }
        if node
            .stop
            .run_until_cancelled(node.clock.sleep(pause))
            .await
            .is_none()
        {
            return;
        }
    }
}

/// Looks through the outbox and the peers once.
pub(super) async fn sweep(node: &Node, told: &mut Told) -> Result<()> {
    let now = node.clock.now_ms();
    let all = node.peers.all();
    let silent = all.iter().filter(|peer| peer.is_silent()).count();
    metrics::gauge!("skiserver_peers_silent").set(u32::try_from(silent).unwrap_or(u32::MAX));
    for peer in all.iter().filter(|peer| peer.has_rows()) {
        if !node.peers.wire.may_talk(&peer.domain) {
            refuse_all(node, peer).await?;
        }
    }
    expire(node, now).await?;
    tell_ended(node, told, now).await?;
    tell_late(node, now).await?;
    write_notes(node, &all, now).await?;
    drop(all);
    node.peers.forget_idle(now);
    Ok(())
}

/// The policy changed: what waits for the domain is refused in its place.
async fn refuse_all(node: &Node, peer: &Peer) -> Result<()> {
    loop {
        let mut tx = node.store.begin().await?;
        let refused = outbox::refuse_domain(
            &mut tx,
            &peer.domain,
            reply::FORBIDDEN,
            DENIED,
            OUTBOX_BATCH_ROWS,
        );
        let refused = refused.await?;
        tx.commit(Wake::default()).await?;
        if withdraw(node, &refused) {
            return Ok(());
        }
    }
}

/// Marks what expired; the senders are told with everything else that ended.
async fn expire(node: &Node, now: i64) -> Result<()> {
    loop {
        let mut tx = node.store.begin().await?;
        let expired = outbox::expire(&mut tx, now, OUTBOX_BATCH_ROWS).await?;
        tx.commit(Wake::default()).await?;
        if withdraw(node, &expired) {
            return Ok(());
        }
    }
}

/// Takes ended rows out of their lanes; whether the batch was the last.
fn withdraw(node: &Node, ended: &[Place]) -> bool {
    for row in ended {
        node.peers.peer(&row.domain).withdraw(&row.lane, row.place);
    }
    ended.len() < usize::try_from(OUTBOX_BATCH_ROWS).unwrap_or(0)
}

async fn tell_ended(node: &Node, told: &mut Told, now: i64) -> Result<()> {
    let spacing_ms = i64::from(node.limits.late_notice_minutes) * MINUTE_MS;
    told.0.retain(|_, at| now - *at < spacing_ms);
    for (thread, code) in outbox::ended(&node.store, THREADS_MAX).await? {
        let state = if code == EXPIRED {
            State::Expired
        } else {
            State::Refused
        };
        let key = (thread.sender.clone(), thread.recipient.clone(), state);
        if told.0.contains_key(&key) {
            continue;
        }
        end(node, &thread, code, state, now).await?;
        if !thread.sender.is_empty() {
            told.0.insert(key, now);
        }
    }
    Ok(())
}

/// Tells the sender of a thread what ended, and deletes it: the first rows together with the notice.
async fn end(node: &Node, thread: &Thread, code: i64, state: State, now: i64) -> Result<()> {
    let mut tx = node.store.begin().await?;
    let ended = outbox::ended_sum(&mut tx, thread, code, NOTICE_MSG_IDS_MAX).await?;
    let reason = match state {
        State::Expired => "it could not be delivered in time".to_owned(),
        _ if ended.text.is_empty() => format!("code {code}"),
        _ => ended.text,
    };
    let notice = Notice {
        v: 1,
        state,
        to: &thread.recipient,
        count: ended.count,
        msg_ids: &ended.msg_ids,
        reason: &reason,
        next_try_ms: 0,
    };
    let wake = tell(node, &mut tx, thread, &notice, now).await?;
    let last = ended.last_place;
    let mut deleted = outbox::delete_ended(&mut tx, thread, code, last, OUTBOX_BATCH_ROWS).await?;
    tx.commit(wake).await?;
    count(state, ended.count);
    while deleted >= usize::try_from(OUTBOX_BATCH_ROWS).unwrap_or(usize::MAX) {
        let mut tx = node.store.begin().await?;
        deleted = outbox::delete_ended(&mut tx, thread, code, last, OUTBOX_BATCH_ROWS).await?;
        tx.commit(Wake::default()).await?;
    }
    Ok(())
}

async fn tell_late(node: &Node, now: i64) -> Result<()> {
    let late_before = now - i64::from(node.limits.late_notice_minutes) * MINUTE_MS;
    let told_before = now - LATE_AGAIN_MS;
    for thread in outbox::late(&node.store, late_before, told_before, THREADS_MAX).await? {
        let mut tx = node.store.begin().await?;
        let late = outbox::late_sum(&mut tx, &thread, late_before, NOTICE_MSG_IDS_MAX).await?;
        if late.count == 0 {
            continue;
        }
        // Messages that became late after the notice wait for the next one.
        let is_told = late.told_at > told_before;
        let told_at = if is_told { late.told_at } else { now };
        let wake = if is_told {
            Wake::default()
        } else {
            count(State::Late, late.count);
            let (reason, next_try_ms) = node.peers.peer(&thread.domain).outlook(&thread.lane, now);
            let notice = Notice {
                v: 1,
                state: State::Late,
                to: &thread.recipient,
                count: late.count,
                msg_ids: &late.msg_ids,
                reason: &reason,
                next_try_ms,
            };
            tell(node, &mut tx, &thread, &notice, now).await?
        };
        let batch = OUTBOX_BATCH_ROWS;
        let mut marked = outbox::mark_late(&mut tx, &thread, late_before, told_at, batch).await?;
        tx.commit(wake).await?;
        while marked >= batch.into() {
            let mut tx = node.store.begin().await?;
            marked = outbox::mark_late(&mut tx, &thread, late_before, told_at, batch).await?;
            tx.commit(Wake::default()).await?;
        }
    }
    Ok(())
}

/// Queues a notice for the sending device; one that is gone needs none.
async fn tell(
    node: &Node,
    tx: &mut Tx,
    thread: &Thread,
    notice: &Notice<'_>,
    now: i64,
) -> Result<Wake> {
    let Ok(sender) = DeviceAddress::parse(&thread.sender) else {
        return Ok(Wake::default());
    };
    let letter = Letter {
        from: None,
        payload: Payload::SystemManagerMsg(SystemManagerMsg {
            modified_date: now,
            op: SystemOp::NotificationMsg.into(),
            payload: serde_json::to_vec(notice).map_err(Error::internal)?.into(),
        }),
    };
    delivery::queue(node, tx, &letter, "notice", [sender]).await
}

fn count(state: State, messages: i64) {
    let state = match state {
        State::Late => "late",
        State::Expired => "expired",
        State::Refused => "refused",
    };
    let messages = u64::try_from(messages).unwrap_or(0);
    metrics::counter!("skiserver_outbox_told_total", "state" => state).increment(messages);
}

async fn write_notes(node: &Node, all: &[Arc<Peer>], now: i64) -> Result<()> {
    let news: Vec<_> = all
        .iter()
        .filter_map(|peer| Some((peer, peer.news()?)))
        .collect();
    for batch in news.chunks(NOTES_MAX) {
        let notes: Vec<_> = batch.iter().map(|(_, note)| note.clone()).collect();
        if let Err(error) = write(node, &notes, now).await {
            for (peer, _) in batch {
                peer.is_news_again();
            }
            return Err(error);
        }
    }
    Ok(())
}

async fn write(node: &Node, notes: &[peers::Note], now: i64) -> Result<()> {
    let mut tx = node.store.begin().await?;
    peers::note(&mut tx, notes).await?;
    peers::forget(&mut tx, now - PEERS_DAYS * DAY_MS, OUTBOX_BATCH_ROWS).await?;
    tx.commit(Wake::default()).await
}
