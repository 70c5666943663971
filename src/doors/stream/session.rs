//! The life of one stream: when delivery starts, what is sent next, heartbeats, and how it ends.

use std::{collections::VecDeque, sync::Arc, time::Duration};

use prost::Message as _;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use super::window::Window;
use crate::{
    caller::Device,
    delivery::live::{End, Seat},
    error::{Error, Result},
    node::Node,
    operations::messages::MessageId,
    payload,
    proto::skissm::{
        AcquireSyncMsg, ProtoMsg, ProtoMsgTag, ServerHeartbeatMsg, proto_msg::Payload,
    },
    reply,
    store::mailbox::{self, Waiting},
};

/// Messages read at once.
const PAGE_ROWS: u32 = 16;
/// How long a message that is known received may still be consumed before it is counted.
const RECEIVED_AFTER_MS: i64 = 2_000;
/// How long the start waits for consume calls under way.
const CONSUMING_PATIENCE: Duration = Duration::from_secs(5);
/// A store that fails is asked again after this time.
const STORE_RETRY_MS: i64 = 1_000;

/// What the loop does next.
enum Next {
    Go,
    End(Option<Status>),
}

/// Messages that a later `AcquireSyncMsg` asked for although delivery had started behind them.
struct Rewind {
    position: i64,
    end: i64,
}

pub(super) struct Session {
    node: Arc<Node>,
    device: Device,
    seat: Seat,
    out: mpsc::Sender<Result<ProtoMsg, Status>>,
    window: Window,
    buffer: VecDeque<Waiting>,
    opened_at: i64,
    sync: Option<AcquireSyncMsg>,
    started: bool,
    /// Everything up to here was sent on this stream or skipped.
    position: i64,
    /// Everything up to here was skipped, not sent.
    floor: i64,
    rewind: Option<Rewind>,
    /// The mailbox may hold more after `position`.
    more: bool,
    /// Leave out what must not be repeated and was received on an earlier stream.
    careful: bool,
    retry_at: i64,
    received_at: Option<i64>,
    beat_at: i64,
    client_beat_at: Option<i64>,
}

impl Session {
    pub(super) fn new(
        node: Arc<Node>,
        device: Device,
        seat: Seat,
        out: mpsc::Sender<Result<ProtoMsg, Status>>,
    ) -> Self {
        let now = node.clock.now_ms();
        Self {
            window: Window::new(
                node.limits.stream_window_max,
                node.limits.stream_window_seconds,
            ),
            beat_at: now + i64::from(node.limits.heartbeat_seconds) * 1_000,
            node,
            device,
            seat,
            out,
            buffer: VecDeque::new(),
            opened_at: now,
            sync: None,
            started: false,
            position: 0,
            floor: 0,
            rewind: None,
            more: false,
            careful: false,
            retry_at: 0,
            received_at: None,
            client_beat_at: None,
        }
    }

    pub(super) async fn run(mut self, mut inbound: Streaming<ProtoMsg>) {
        let mut listening = true;
        let status = loop {
            if let Err(error) = self.fill().await {
                tracing::warn!(%error, device = %*self.device.address, "a mailbox could not be read");
                self.retry_at = self.node.clock.now_ms() + STORE_RETRY_MS;
            }
            let ready = !self.buffer.is_empty() && self.window.has_room();
            let next = tokio::select! {
                end = self.seat.ended() => Next::End(Some(ended(end))),
                () = self.node.stop.cancelled() => Next::End(Some(reply::unavailable("this node is closing"))),
                () = self.out.closed() => Next::End(None),
                permit = self.out.clone().reserve_owned(), if ready => match permit {
                    Ok(permit) => {
                        self.send(permit);
                        Next::Go
                    }
                    Err(_) => Next::End(None),
                },
                () = self.seat.news() => {
                    self.take_news();
                    Next::Go
                }
                message = inbound.message(), if listening => match message {
                    Ok(Some(message)) => self.hear(message).await,
                    // A client may close its half and go on reading.
                    Ok(None) => {
                        listening = false;
                        Next::Go
                    }
                    Err(_) => Next::End(None),
                },
                () = self.node.clock.sleep_until(self.next_timer()) => self.on_timer().await,
            };
            if let Next::End(status) = next {
                break status;
            }
        };
        if let Some(status) = status {
            let _ = self.out.try_send(Err(status));
        }
        self.tell_received().await;
    }

    /// Decides the start when its time has come, and reads the next page if there is room for it.
    async fn fill(&mut self) -> Result<()> {
        let now = self.node.clock.now_ms();
        if now < self.retry_at {
            return Ok(());
        }
        if !self.started && now >= self.start_at() {
            self.start().await?;
        }
        while self.started
            && self.buffer.is_empty()
            && self.window.has_room()
            && self.read_page().await?
        {}
        Ok(())
    }

    /// Reads the next page into the empty buffer; `false` if there is nothing more to read.
    async fn read_page(&mut self) -> Result<bool> {
        let (store, device_key) = (&self.node.store, self.device.key);
        if let Some(rewind) = &mut self.rewind {
            let page = mailbox::page(store, device_key, rewind.position, PAGE_ROWS).await?;
            let end = rewind.end;
            self.buffer = page.into_iter().take_while(|m| m.msg_t <= end).collect();
            match self.buffer.back() {
                Some(last) => rewind.position = last.msg_t,
                None => self.rewind = None,
            }
            return Ok(true);
        }
        if !self.more {
            return Ok(false);
        }
        let page = mailbox::page(store, device_key, self.position, PAGE_ROWS).await?;
        self.more = page.len() >= PAGE_ROWS as usize;
        if let Some(last) = page.last() {
            self.position = last.msg_t;
        }
        let careful = self.careful;
        self.buffer = page
            .into_iter()
            .filter(|m| !(careful && is_harmful_twice(m)))
            .collect();
        Ok(true)
    }

    /// The earliest time at which delivery may start.
    fn start_at(&self) -> i64 {
        let limits = &self.node.limits;
        let wait_ms = if self.sync.is_some() {
            limits.stream_settle_ms
        } else {
            limits.stream_sync_wait_ms
        };
        self.opened_at + i64::from(wait_ms)
    }

    /// Starts after the client's tag, or with the oldest message. Waits for consume calls under way: a client
    /// that comes back first repeats those it stored.
    async fn start(&mut self) -> Result<()> {
        let _ = tokio::time::timeout(CONSUMING_PATIENCE, self.node.live.consumed(self.device.key))
            .await;
        self.careful = self.sync.is_none();
        self.position = match self.sync.take() {
            Some(sync) => self.position_of(&sync).await?,
            None => 0,
        };
        self.floor = self.position;
        self.started = true;
        self.more = true;
        Ok(())
    }

    /// The place that a tag names; 0 if it is absent or newer than anything ever queued.
    async fn position_of(&self, sync: &AcquireSyncMsg) -> Result<i64> {
        let Some(tag) = sync
            .last_proto_msg_tag
            .as_ref()
            .filter(|tag| !tag.proto_msg_id.is_empty())
        else {
            return Ok(0);
        };
        let msg_t = MessageId::parse(&tag.proto_msg_id).map_or(tag.proto_msg_t, |id| id.msg_t);
        let newest = mailbox::newest(&self.node.store, self.device.key).await?;
        Ok(if (1..=newest).contains(&msg_t) {
            msg_t
        } else {
            0
        })
    }

    async fn hear(&mut self, message: ProtoMsg) -> Next {
        match message.payload {
            Some(Payload::ClientHeartbeatMsg(_)) => {
                self.client_beat_at = Some(self.node.clock.now_ms());
                self.beat();
            }
            Some(Payload::AcquireSyncMsg(sync)) if !self.started => self.sync = Some(sync),
            Some(Payload::AcquireSyncMsg(sync)) => match self.position_of(&sync).await {
                Ok(position) => self.move_to(position),
                Err(error) => tracing::warn!(%error, "a sync request could not be answered"),
            },
            _ => metrics::counter!("skiserver_stream_ignored_total").increment(1),
        }
        Next::Go
    }

    /// Moves the start of a running stream. What it already sent is not sent again; what the client has handled
    /// meanwhile is not sent at all, though it was read ahead.
    fn move_to(&mut self, position: i64) {
        if position < self.floor {
            self.rewind = Some(Rewind {
                position,
                end: self.floor,
            });
            self.floor = position;
            return;
        }
        self.buffer.retain(|m| m.msg_t > position);
        self.position = self.position.max(position);
        if let Some(rewind) = &mut self.rewind {
            rewind.position = rewind.position.max(position);
        }
    }

    fn take_news(&mut self) {
        self.more = true;
        match self.seat.consumed() {
            Some(consumed) => consumed
                .into_iter()
                .for_each(|msg_t| self.window.consumed(msg_t)),
            None => self.window.clear(),
        }
        if self.received_at.is_none() && self.window.has_received() {
            self.received_at = Some(self.node.clock.now_ms() + RECEIVED_AFTER_MS);
        }
    }

    /// Hands the next message to the transport: tag, receiver and signature are made now.
    fn send(&mut self, permit: mpsc::OwnedPermit<Result<ProtoMsg, Status>>) {
        let Some(waiting) = self.buffer.pop_front() else {
            return;
        };
        match self.sealed(&waiting) {
            Ok(message) => {
                self.window.sent(waiting.msg_t, self.node.clock.now_ms());
                metrics::counter!("skiserver_messages_delivered_total").increment(1);
                permit.send(Ok(message));
            }
            Err(error) => {
                tracing::error!(%error, device = %*self.device.address, "a stored message can't be sent");
            }
        }
    }

    fn sealed(&self, waiting: &Waiting) -> Result<ProtoMsg> {
        let mut message = ProtoMsg::decode(waiting.body.clone()).map_err(Error::internal)?;
        let id = MessageId {
            msg_t: waiting.msg_t,
            kind: waiting.kind,
            nonce: waiting.nonce,
        };
        message.tag = Some(ProtoMsgTag {
            proto_msg_t: waiting.msg_t,
            proto_msg_id: id.to_string(),
        });
        message.to = Some(self.device.address.to_proto());
        if self.node.config.keys.sign_messages {
            self.node
                .signer
                .sign_message(self.device.signing_key_id, &mut message)?;
        }
        Ok(message)
    }

    fn next_timer(&self) -> i64 {
        let start = (!self.started).then(|| self.start_at());
        let retry = (self.retry_at > self.node.clock.now_ms()).then_some(self.retry_at);
        let timers = [
            start,
            retry,
            self.received_at,
            self.window.next_age_at(),
            self.silent_at(),
        ];
        let earliest = timers.into_iter().flatten().min().unwrap_or(i64::MAX);
        earliest.min(self.beat_at).min(self.device.token_expires_at)
    }

    async fn on_timer(&mut self) -> Next {
        let now = self.node.clock.now_ms();
        if now >= self.device.token_expires_at {
            return Next::End(Some(reply::unauthenticated("the token has expired")));
        }
        if self.silent_at().is_some_and(|at| now >= at) {
            return Next::End(Some(reply::unavailable("no heartbeat came")));
        }
        if now >= self.beat_at {
            self.beat();
        }
        if self.received_at.is_some_and(|at| now >= at) {
            self.tell_received().await;
        }
        self.window.age(now);
        Next::Go
    }

    /// When a client that once sent heartbeats counts as gone: two are missing.
    fn silent_at(&self) -> Option<i64> {
        let patience_ms = i64::from(self.node.limits.heartbeat_seconds) * 2_500;
        self.client_beat_at.map(|at| at + patience_ms)
    }

    /// Heartbeats have no tag, no signature and no place in the mailbox; one that finds no room is left out.
    fn beat(&mut self) {
        let now = self.node.clock.now_ms();
        self.beat_at = now + i64::from(self.node.limits.heartbeat_seconds) * 1_000;
        let _ = self.out.try_send(Ok(ProtoMsg {
            to: Some(self.device.address.to_proto()),
            payload: Some(Payload::ServerHeartbeatMsg(ServerHeartbeatMsg {
                hostname: self.node.home.name().to_owned(),
                server_t: now,
            })),
            ..ProtoMsg::default()
        }));
    }

    async fn tell_received(&mut self) {
        self.received_at = None;
        let received = self.window.take_received();
        if received.is_empty() {
            return;
        }
        if let Err(error) = self.node.store.received(self.device.key, received).await {
            tracing::warn!(%error, "received messages could not be counted");
        }
    }
}

/// Messages that destroy sessions or groups when a client handles them twice, and that it has received before.
fn is_harmful_twice(waiting: &Waiting) -> bool {
    let harmful = [
        payload::ACCEPT,
        payload::CREATE_GROUP,
        payload::ADD_GROUP_MEMBERS,
        payload::ADD_GROUP_MEMBER_DEVICE,
    ];
    waiting.received_on > 0 && harmful.contains(&waiting.kind)
}

fn ended(end: End) -> Status {
    match end {
        End::Replaced => reply::ended("another stream of this device took over"),
        End::Revoked => reply::unauthenticated("the token is no longer valid"),
    }
}
