//! All lanes of one domain and what may start next: each lane in the order of its places, one request of a lane
//! at a time, nothing past a barrier. Knows no time but what it is told, no lock, no network.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    sync::Arc,
};

use super::backoff::Backoff;
use crate::limits::{BARRIER_PATIENCE_MS, Limits, PROBED_LANES_MAX};

/// What holds a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hold {
    /// A write, or the decision to write.
    Reserved,
    /// A call made before anything is stored.
    Direct,
    /// A row on disk.
    Stored,
    /// A row on disk that is being delivered.
    UnderWay,
}

impl Hold {
    fn is_called(self) -> bool {
        matches!(self, Self::Direct | Self::UnderWay)
    }

    fn is_stored(self) -> bool {
        matches!(self, Self::Stored | Self::UnderWay)
    }
}

#[derive(Debug, Clone, Copy)]
struct Waiting {
    hold: Hold,
    bytes: i64,
}

/// Where a lane waits for its turn.
#[derive(Debug, Clone, Copy)]
enum Turn {
    Ready(i64),
    Delayed(i64),
}

#[derive(Debug, Default)]
struct Lane {
    waiting: BTreeMap<i64, Waiting>,
    is_under_way: bool,
    /// Present while the peer puts the first request off.
    backoff: Option<Backoff>,
    turn: Option<Turn>,
}

/// All lanes of one domain.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    by_name: HashMap<Arc<str>, Lane>,
    /// Every place, in order.
    order: BTreeMap<i64, Arc<str>>,
    /// Lanes whose first place may start, by that place.
    ready: BTreeSet<(i64, Arc<str>)>,
    /// Lanes that back off, by the time they are tried again.
    delayed: BTreeSet<(i64, Arc<str>)>,
    called: usize,
    stored: usize,
    bytes: i64,
}

/// The lane of barriers. Every other lane has a name.
pub(super) const BARRIER: &str = "";

impl Lanes {
    /// Places that are taken.
    pub(super) fn rows(&self) -> usize {
        self.order.len()
    }

    /// The size of everything that is waiting.
    pub(super) fn bytes(&self) -> i64 {
        self.bytes
    }

    /// Places that are rows on disk.
    pub(super) fn stored(&self) -> usize {
        self.stored
    }

    /// Calls that are under way.
    pub(super) fn called(&self) -> usize {
        self.called
    }

    /// When a lane that backs off is tried again, if any does.
    pub(super) fn next_retry(&self) -> Option<i64> {
        self.delayed.first().map(|(at, _)| *at)
    }

    /// What delays a lane, if anything does.
    pub(super) fn backoff(&self, lane: &str) -> Option<&Backoff> {
        self.by_name.get(lane)?.backoff.as_ref()
    }

    /// Whether a request of this lane could be sent before it is stored: nothing of the lane waits or is under
    /// way, and no barrier waits.
    pub(super) fn is_free(&self, lane: &str, now: i64) -> bool {
        lane != BARRIER && !self.by_name.contains_key(lane) && self.barrier(now, true).is_none()
    }

    /// Takes a place, or changes what holds it. A place that is on disk stays so.
    pub(super) fn hold(&mut self, lane: &str, place: i64, hold: Hold, bytes: i64) {
        let name = self.name(lane);
        let entry = self.by_name.entry(Arc::clone(&name)).or_default();
        let before = entry.waiting.get(&place).copied();
        if before.is_some_and(|w| w.hold.is_stored()) {
            return;
        }
        let bytes = before.map_or(bytes, |w| w.bytes);
        entry.waiting.insert(place, Waiting { hold, bytes });
        if let Some(before) = before {
            self.discount(before);
        } else {
            self.order.insert(place, Arc::clone(&name));
        }
        self.count(Waiting { hold, bytes });
        self.line_up(&name);
    }

    /// Gives back a place that nothing on disk holds; `false` if it is kept, or was not there.
    pub(super) fn release(&mut self, lane: &str, place: i64) -> bool {
        match self.held(lane, place) {
            Some(hold) if !hold.is_stored() => self.remove(lane, place),
            _ => false,
        }
    }

    /// Forgets a row that left the disk, unless it is being delivered: then its delivery ends by itself.
    pub(super) fn withdraw(&mut self, lane: &str, place: i64) {
        if self.held(lane, place) == Some(Hold::Stored) {
            self.remove(lane, place);
        }
    }

    /// Takes the request that starts next: the oldest of a domain that is proven to answer. To find out whether
    /// it does, any of the oldest lanes will do, so that no single request can make a domain look silent.
    pub(super) fn start(&mut self, now: i64, is_proven: bool) -> Option<(Arc<str>, i64)> {
        while let Some((at, _)) = self.delayed.first()
            && *at <= now
            && let Some((_, name)) = self.delayed.pop_first()
        {
            if let Some(lane) = self.by_name.get_mut(&name)
                && let Some((&place, _)) = lane.waiting.first_key_value()
            {
                lane.turn = Some(Turn::Ready(place));
                self.ready.insert((place, name));
            }
        }
        let (place, name) = self.next(now, is_proven)?;
        let lane = self.by_name.get_mut(&name)?;
        lane.waiting.get_mut(&place)?.hold = Hold::UnderWay;
        lane.is_under_way = true;
        self.called += 1;
        self.line_up(&name);
        Some((name, place))
    }

    /// Ends a delivery whose row is gone.
    pub(super) fn done(&mut self, lane: &str, place: i64) {
        if let Some(entry) = self.by_name.get_mut(lane) {
            entry.is_under_way = false;
            entry.backoff = None;
        }
        self.remove(lane, place);
    }

    /// Ends a delivery that the peer put off: its lane waits.
    pub(super) fn put_off(&mut self, lane: &str, place: i64, why: &str, now: i64, limits: &Limits) {
        if let Some(lane) = self.by_name.get_mut(lane) {
            lane.backoff = Some(Backoff::after(lane.backoff.take(), now, why, limits));
        }
        self.put_back(lane, place);
    }

    /// Ends a delivery that found nobody: its row stays.
    pub(super) fn put_back(&mut self, lane: &str, place: i64) {
        let name = self.name(lane);
        let Some(entry) = self.by_name.get_mut(lane) else {
            return;
        };
        entry.is_under_way = false;
        if let Some(waiting) = entry.waiting.get_mut(&place)
            && waiting.hold == Hold::UnderWay
        {
            waiting.hold = Hold::Stored;
            self.called -= 1;
        }
        self.line_up(&name);
    }

    /// Lets every lane that is put off try again at once.
    pub(super) fn hurry(&mut self) {
        self.end_pauses(|backoff| backoff.map(Backoff::hurried));
    }

    /// Lets every lane begin anew, after an outage of the domain.
    pub(super) fn forget_backoffs(&mut self) {
        self.end_pauses(|_| None);
    }

    fn end_pauses(&mut self, change: impl Fn(Option<Backoff>) -> Option<Backoff>) {
        for (_, name) in std::mem::take(&mut self.delayed) {
            if let Some(lane) = self.by_name.get_mut(&name) {
                lane.turn = None;
                lane.backoff = change(lane.backoff.take());
                self.line_up(&name);
            }
        }
    }

    fn next(&self, now: i64, is_proven: bool) -> Option<(i64, Arc<str>)> {
        let barrier = self.barrier(now, is_proven);
        let last = barrier.unwrap_or(i64::MAX);
        let mut startable = self.ready.iter().take_while(|(place, _)| *place < last);
        let first = if is_proven {
            startable.next()
        } else {
            fastrand::choice(startable.take(PROBED_LANES_MAX).collect::<Vec<_>>())
        };
        first.cloned().or_else(|| {
            let at_barrier = self
                .ready
                .first()
                .filter(|(place, _)| Some(*place) == barrier);
            at_barrier
                .filter(|_| !self.is_held_back(last, now, is_proven))
                .cloned()
        })
    }

    /// The place that nothing after it may pass.
    fn barrier(&self, now: i64, is_proven: bool) -> Option<i64> {
        let lane = self.by_name.get(BARRIER)?;
        if is_proven && lane.is_overdue(now) {
            return None;
        }
        lane.waiting.keys().next().copied()
    }

    /// Whether anything before `barrier` has yet to end.
    fn is_held_back(&self, barrier: i64, now: i64, is_proven: bool) -> bool {
        let before = self.order.range(..barrier);
        let mut waits_for = before.filter(|(_, name)| {
            let lane = self.by_name.get(*name);
            !(is_proven && lane.is_some_and(|lane| lane.is_overdue(now)))
        });
        waits_for.next().is_some()
    }

    fn held(&self, lane: &str, place: i64) -> Option<Hold> {
        Some(self.by_name.get(lane)?.waiting.get(&place)?.hold)
    }

    fn remove(&mut self, lane: &str, place: i64) -> bool {
        let name = self.name(lane);
        let Some(waiting) = self
            .by_name
            .get_mut(lane)
            .and_then(|l| l.waiting.remove(&place))
        else {
            return false;
        };
        self.order.remove(&place);
        self.discount(waiting);
        self.line_up(&name);
        true
    }

    fn count(&mut self, waiting: Waiting) {
        self.called += usize::from(waiting.hold.is_called());
        self.stored += usize::from(waiting.hold.is_stored());
        self.bytes += waiting.bytes;
    }

    fn discount(&mut self, waiting: Waiting) {
        self.called -= usize::from(waiting.hold.is_called());
        self.stored -= usize::from(waiting.hold.is_stored());
        self.bytes -= waiting.bytes;
    }

    fn name(&self, lane: &str) -> Arc<str> {
        let known = self.by_name.get_key_value(lane);
        known.map_or_else(|| Arc::from(lane), |(name, _)| Arc::clone(name))
    }

    /// Puts a lane where its first place and its backoff want it; one without places goes.
    fn line_up(&mut self, name: &Arc<str>) {
        let Some(lane) = self.by_name.get_mut(name) else {
            return;
        };
        match lane.turn.take() {
            Some(Turn::Ready(place)) => self.ready.remove(&(place, Arc::clone(name))),
            Some(Turn::Delayed(at)) => self.delayed.remove(&(at, Arc::clone(name))),
            None => false,
        };
        let Some((&place, first)) = lane.waiting.first_key_value() else {
            self.by_name.remove(name);
            return;
        };
        if lane.is_under_way || first.hold != Hold::Stored {
            return;
        }
        if let Some(backoff) = &lane.backoff {
            lane.turn = Some(Turn::Delayed(backoff.retry_at));
            self.delayed.insert((backoff.retry_at, Arc::clone(name)));
        } else {
            lane.turn = Some(Turn::Ready(place));
            self.ready.insert((place, Arc::clone(name)));
        }
    }
}

impl Lane {
    fn is_overdue(&self, now: i64) -> bool {
        self.backoff
            .as_ref()
            .is_some_and(|b| now - b.since >= BARRIER_PATIENCE_MS)
    }
}
