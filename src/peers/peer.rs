//! One other domain: its lanes, whether it answers, and what may be asked of it just now. One lock, never held
//! across an await.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use super::{
    backoff::Backoff,
    lanes::{BARRIER, Hold, Lanes},
};
use crate::{
    address::Domain,
    error::{Error, Result},
    limits::{ASKS_OF_SILENT_PEER_MAX, CONTACT_CLEARS_EVERY_MS, CONTACT_NOTED_EVERY_MS, Limits},
    store::peers::Note,
};

/// What the last news of a domain was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Heard {
    /// None yet, or silence.
    #[default]
    Nothing,
    /// It called us; whether we reach it is open.
    Contact,
    /// It answered us.
    Answer,
}

#[derive(Debug, Default)]
struct State {
    lanes: Lanes,
    /// Present while the domain is silent; sends and probes wait for its end.
    outage: Option<Backoff>,
    heard: Heard,
    /// Counts answers and failures, so that a call knows what happened since it began.
    events: u64,
    answered_at_event: u64,
    failed_at_event: u64,
    asks: u32,
    /// A task serves the lanes.
    is_served: bool,
    contact_at: i64,
    noted_at: i64,
    cleared_at: i64,
    is_news: bool,
}

/// One other domain.
#[derive(Debug)]
pub(super) struct Peer {
    /// Which.
    pub(super) domain: Domain,
    state: Mutex<State>,
    /// Told whenever something may start, or ended.
    pub(super) changed: Notify,
    /// Whether anything was heard of the domain since it was silent, for deliveries that queue as probes.
    heard: watch::Sender<bool>,
}

/// Why a request waits that nothing delays.
pub(super) const IN_TURN: &str = "it waits for its turn";

/// How a call began, to tell news from what is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Began {
    event: u64,
    in_outage: bool,
}

/// What the task of a domain does next.
pub(super) enum Next {
    /// Deliver this one, and ask again.
    Deliver(Job),
    /// Wait for a change, or until this time, Unix ms.
    Wait(Option<i64>),
    /// Nothing on disk waits: the task ends.
    Idle,
}

impl Peer {
    pub(super) fn new(domain: Domain) -> Self {
        Self {
            domain,
            state: Mutex::default(),
            changed: Notify::new(),
            heard: watch::Sender::new(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a place that `place` makes, for a request of this size. It is for a call before the write if
    /// `may_go_direct` and nothing speaks against it.
    pub(super) fn take(
        self: &Arc<Self>,
        lane: &str,
        bytes: i64,
        may_go_direct: bool,
        now: i64,
        limits: &Limits,
        place: impl FnOnce() -> i64,
    ) -> Result<Ticket> {
        let mut state = self.state();
        let lanes = &state.lanes;
        let rows_max = usize::try_from(limits.outbox_rows_max).unwrap_or(usize::MAX);
        let bytes_max = i64::try_from(limits.outbox_bytes_max).unwrap_or(i64::MAX);
        let is_full = lanes.rows() >= rows_max || lanes.bytes().saturating_add(bytes) > bytes_max;
        // The end of a device is small and rare, and must not wait for a domain that is silent.
        if is_full && lane != BARRIER {
            return Err(Error::Busy("too much waits for that domain"));
        }
        let is_direct = may_go_direct
            && state.outage.is_none()
            && lanes.called() < window(limits)
            && lanes.is_free(lane, now);
        let place = place();
        let hold = if is_direct {
            Hold::Direct
        } else {
            Hold::Reserved
        };
        state.lanes.hold(lane, place, hold, bytes);
        Ok(Ticket {
            peer: Arc::clone(self),
            lane: lane.to_owned(),
            place,
            is_direct,
        })
    }

    /// Marks a place as on disk. `true` if a task has to be started.
    pub(super) fn stored(&self, lane: &str, place: i64, bytes: i64) -> bool {
        let mut state = self.state();
        state.lanes.hold(lane, place, Hold::Stored, bytes);
        self.changed.notify_one();
        !std::mem::replace(&mut state.is_served, true)
    }

    /// Forgets a row that left the disk.
    pub(super) fn withdraw(&self, lane: &str, place: i64) {
        self.state().lanes.withdraw(lane, place);
        self.changed.notify_one();
    }

    /// What may start now.
    pub(super) fn next(self: &Arc<Self>, now: i64, limits: &Arc<Limits>) -> Next {
        let mut state = self.state();
        if state.lanes.stored() == 0 {
            state.is_served = false;
            return Next::Idle;
        }
        if let Some(outage) = &state.outage
            && outage.retry_at > now
        {
            return Next::Wait(Some(outage.retry_at));
        }
        // Whether the domain can be reached is tried with one request.
        let is_proven = state.outage.is_none() && state.heard == Heard::Answer;
        let room = if is_proven { window(limits) } else { 1 };
        if state.lanes.called() >= room {
            return Next::Wait(None);
        }
        match state.lanes.start(now, is_proven) {
            Some((lane, place)) => Next::Deliver(Job {
                peer: Arc::clone(self),
                lane,
                place,
                is_probe: state.heard == Heard::Nothing,
                started_at: now,
                limits: Arc::clone(limits),
                is_ended: false,
            }),
            None => Next::Wait(state.lanes.next_retry()),
        }
    }

    /// Says that no task serves the lanes; `true` if one is still needed.
    pub(super) fn abandoned(&self) -> bool {
        let mut state = self.state();
        let is_needed = std::mem::take(&mut state.is_served) && state.lanes.stored() > 0;
        state.is_served = is_needed;
        is_needed
    }

    /// A call begins.
    pub(super) fn begin(&self) -> Began {
        let state = self.state();
        Began {
            event: state.events,
            in_outage: state.outage.is_some(),
        }
    }

    /// Returns once anything is heard of the domain.
    pub(super) async fn heard(&self) {
        let _ = self.heard.subscribe().wait_for(|heard| *heard).await;
    }

    /// The domain answered a call of ours, whatever it said.
    pub(super) fn answered(&self, now: i64) {
        let mut state = self.state();
        state.events += 1;
        state.answered_at_event = state.events;
        state.contact_at = now;
        if state.outage.take().is_some() {
            tracing::info!(domain = %self.domain, "the domain answers again");
            state.lanes.forget_backoffs();
            state.is_news = true;
        }
        if is_past(state.noted_at, CONTACT_NOTED_EVERY_MS, now) {
            state.noted_at = now;
            state.is_news = true;
        }
        if std::mem::replace(&mut state.heard, Heard::Answer) != Heard::Answer {
            self.heard.send_replace(true);
            self.changed.notify_one();
        }
    }

    /// The domain proved itself at our door: whatever waits for it may be tried.
    pub(super) fn contact(&self, now: i64) {
        let mut state = self.state();
        state.contact_at = now;
        let is_due = is_past(state.noted_at, CONTACT_NOTED_EVERY_MS, now);
        if state.outage.is_some() && is_past(state.cleared_at, CONTACT_CLEARS_EVERY_MS, now) {
            state.outage = None;
            state.cleared_at = now;
            state.is_news = true;
            state.lanes.forget_backoffs();
            self.changed.notify_one();
        } else if is_due {
            state.lanes.hurry();
            self.changed.notify_one();
        }
        if is_due {
            state.noted_at = now;
            state.is_news = true;
        }
        if state.outage.is_none() && state.heard == Heard::Nothing {
            state.heard = Heard::Contact;
            self.heard.send_replace(true);
            self.changed.notify_one();
        }
    }

    /// A call met silence. Unless the domain answered another one meanwhile, everything for it waits; `false`
    /// if it did, so that only this call is to blame. Probes (`is_probe`) prolong an outage, other calls don't.
    pub(super) fn silent(
        &self,
        began: Began,
        is_probe: bool,
        why: &str,
        now: i64,
        limits: &Limits,
    ) -> bool {
        let mut state = self.state();
        if state.answered_at_event > began.event {
            return false;
        }
        let is_known = state.failed_at_event > began.event || (began.in_outage && !is_probe);
        if is_known && state.outage.is_some() {
            return true;
        }
        state.events += 1;
        state.failed_at_event = state.events;
        if state.outage.is_none() {
            tracing::warn!(domain = %self.domain, why, "the domain is silent");
            state.is_news = true;
        }
        state.outage = Some(Backoff::after(state.outage.take(), now, why, limits));
        state.heard = Heard::Nothing;
        self.heard.send_replace(false);
        true
    }

    /// Lets a call for data begin. A domain that was silent when last asked gets few at a time.
    pub(super) fn ask(self: &Arc<Self>) -> Option<Ask> {
        let mut state = self.state();
        if state.outage.is_some() && state.asks >= ASKS_OF_SILENT_PEER_MAX {
            return None;
        }
        state.asks += 1;
        Some(Ask(Arc::clone(self)))
    }

    /// What a sender is told about a lane: what delays it, and when it is tried next.
    pub(super) fn outlook(&self, lane: &str, now: i64) -> (String, i64) {
        let state = self.state();
        let backoff = state.outage.as_ref().or_else(|| state.lanes.backoff(lane));
        backoff.map_or_else(
            || (IN_TURN.to_owned(), now),
            |b| (b.why.clone(), b.retry_at.max(now)),
        )
    }

    /// What is to be written down about the domain, once. Of a domain that never spoke to us and that nothing
    /// waits for, nothing.
    pub(super) fn news(&self) -> Option<Note> {
        let mut state = self.state();
        let is_known = state.contact_at != 0 || state.lanes.stored() > 0;
        if !std::mem::take(&mut state.is_news) || !is_known {
            return None;
        }
        Some(Note {
            domain: self.domain.clone(),
            contact_at: state.contact_at,
            failing_since: state.outage.as_ref().map_or(0, |o| o.since),
            error: state
                .outage
                .as_ref()
                .map_or_else(String::new, |o| o.why.clone()),
        })
    }

    /// The note was not written.
    pub(super) fn is_news_again(&self) {
        self.state().is_news = true;
    }

    /// Whether nothing would be lost by forgetting the domain.
    pub(super) fn is_forgettable(&self, now: i64) -> bool {
        let state = self.state();
        let at_rest = |since: i64| is_past(since, CONTACT_NOTED_EVERY_MS, now);
        state.lanes.rows() == 0
            && state.asks == 0
            && !state.is_served
            && !state.is_news
            && at_rest(state.noted_at)
            && at_rest(state.contact_at)
            && state.outage.as_ref().is_none_or(|o| at_rest(o.retry_at))
    }

    /// Whether anything waits.
    pub(super) fn has_rows(&self) -> bool {
        self.state().lanes.rows() > 0
    }

    /// Whether a call of a lane is under way.
    #[cfg(test)]
    pub(super) fn is_called(&self) -> bool {
        self.state().lanes.called() > 0
    }

    /// Whether nothing is heard of the domain, though it was asked.
    pub(super) fn is_silent(&self) -> bool {
        self.state().outage.is_some()
    }
}

fn window(limits: &Limits) -> usize {
    usize::try_from(limits.lanes_per_peer_max)
        .unwrap_or(usize::MAX)
        .max(1)
}

/// Whether `span_ms` passed since `then`, also if the clock was turned back.
fn is_past(then: i64, span_ms: i64, now: i64) -> bool {
    !(0..span_ms).contains(&(now - then))
}

/// A call for data under way.
#[derive(Debug)]
pub(super) struct Ask(Arc<Peer>);

impl Drop for Ask {
    fn drop(&mut self) {
        let mut state = self.0.state();
        state.asks = state.asks.saturating_sub(1);
    }
}

/// A place in a lane. Dropping it gives the place back, unless a row on disk holds it by then.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) peer: Arc<Peer>,
    lane: String,
    pub(super) place: i64,
    /// The request may be sent before it is stored.
    pub(super) is_direct: bool,
}

impl Ticket {
    /// Ends the call before the write: the place is kept for the row.
    pub(super) fn keep_for_row(&mut self) {
        self.is_direct = false;
        self.peer
            .state()
            .lanes
            .hold(&self.lane, self.place, Hold::Reserved, 0);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.peer.state().lanes.release(&self.lane, self.place) {
            self.peer.changed.notify_one();
        }
    }
}

/// A delivery under way. Dropped without an end, its request is tried again later.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) peer: Arc<Peer>,
    lane: Arc<str>,
    pub(super) place: i64,
    /// It finds out whether the domain is there at all.
    pub(super) is_probe: bool,
    started_at: i64,
    limits: Arc<Limits>,
    is_ended: bool,
}

impl Job {
    /// The row is gone: the lane goes on.
    pub(super) fn done(mut self) {
        self.is_ended = true;
        self.peer.state().lanes.done(&self.lane, self.place);
    }

    /// The peer put the row off: its lane waits.
    pub(super) fn put_off(mut self, why: &str, now: i64) {
        self.is_ended = true;
        self.pause(why, now);
    }

    /// The domain is silent: the row stays where it is.
    pub(super) fn put_back(mut self) {
        self.is_ended = true;
        self.peer.state().lanes.put_back(&self.lane, self.place);
    }

    fn pause(&self, why: &str, now: i64) {
        let mut state = self.peer.state();
        state
            .lanes
            .put_off(&self.lane, self.place, why, now, &self.limits);
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.is_ended {
            self.pause("it was interrupted", self.started_at);
        }
    }
}
