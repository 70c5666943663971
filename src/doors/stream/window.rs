//! What one stream sent and has not seen consumed: how much more may be sent, and what the device is known to
//! have received though it never consumed it.

use std::collections::{BTreeMap, BTreeSet};

/// Messages remembered after they left the window; older ones are forgotten first.
const LINGERING_MAX: usize = 1_024;

/// The unconsumed messages of one stream, by their `proto_msg_t`.
#[derive(Debug)]
pub(super) struct Window {
    size: usize,
    patience_ms: i64,
    /// In the window, with the time they were sent.
    open: BTreeMap<i64, i64>,
    /// Left the window by their age.
    aged: BTreeSet<i64>,
    /// Something sent after them was consumed.
    received: BTreeSet<i64>,
}

impl Window {
    pub(super) fn new(size: u32, patience_seconds: u32) -> Self {
        Self {
            size: usize::try_from(size).unwrap_or(usize::MAX),
            patience_ms: i64::from(patience_seconds) * 1_000,
            open: BTreeMap::new(),
            aged: BTreeSet::new(),
            received: BTreeSet::new(),
        }
    }

    pub(super) fn has_room(&self) -> bool {
        self.open.len() < self.size
    }

    pub(super) fn sent(&mut self, msg_t: i64, now: i64) {
        self.open.insert(msg_t, now);
    }

    /// A message was consumed: it leaves, and what was sent before it is known to be received.
    pub(super) fn consumed(&mut self, msg_t: i64) {
        let was_sent = self.open.remove(&msg_t).is_some()
            | self.aged.remove(&msg_t)
            | self.received.remove(&msg_t);
        if !was_sent {
            return;
        }
        let later = self.open.split_off(&msg_t);
        let earlier = std::mem::replace(&mut self.open, later);
        self.received.extend(earlier.into_keys());
        let later = self.aged.split_off(&msg_t);
        let earlier = std::mem::replace(&mut self.aged, later);
        self.received.extend(earlier);
        forget_oldest(&mut self.received);
    }

    /// More was consumed than anybody counted: nothing holds delivery up.
    pub(super) fn clear(&mut self) {
        self.open.clear();
    }

    /// Lets go of what was sent long ago.
    pub(super) fn age(&mut self, now: i64) {
        let patience = self.patience_ms;
        let old: Vec<i64> = self
            .open
            .iter()
            .filter(|(_, at)| **at + patience <= now)
            .map(|(t, _)| *t)
            .collect();
        for msg_t in old {
            self.open.remove(&msg_t);
            self.aged.insert(msg_t);
        }
        forget_oldest(&mut self.aged);
    }

    /// When the next message leaves by its age.
    pub(super) fn next_age_at(&self) -> Option<i64> {
        self.open.values().min().map(|at| at + self.patience_ms)
    }

    pub(super) fn has_received(&self) -> bool {
        !self.received.is_empty()
    }

    /// What became known as received and was not consumed since; each message once.
    pub(super) fn take_received(&mut self) -> Vec<i64> {
        std::mem::take(&mut self.received).into_iter().collect()
    }
}

fn forget_oldest(set: &mut BTreeSet<i64>) {
    while set.len() > LINGERING_MAX {
        set.pop_first();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn consuming_the_last_opens_the_whole_window() {
        let mut window = Window::new(3, 30);
        for t in 1..=3 {
            window.sent(t, 0);
        }
        assert!(!window.has_room());

        window.consumed(3);

        assert!(window.has_room());
        assert_eq!(window.take_received(), [1, 2]);
        assert!(!window.has_received(), "each is told once");
    }

    #[test]
    fn consuming_out_of_order_leaves_nothing_received() {
        let mut window = Window::new(3, 30);
        window.sent(1, 0);
        window.sent(2, 0);

        window.consumed(2);
        window.consumed(1);

        assert_eq!(window.take_received(), Vec::<i64>::new());
    }

    #[test]
    fn a_message_leaves_by_age_and_can_still_become_received() {
        let mut window = Window::new(1, 30);
        window.sent(1, 0);
        window.age(29_999);
        assert!(!window.has_room());

        window.age(30_000);
        assert!(window.has_room());
        window.sent(2, 30_000);
        window.consumed(2);

        assert_eq!(window.take_received(), [1]);
    }

    #[test]
    fn what_this_stream_never_sent_proves_nothing() {
        let mut window = Window::new(2, 30);
        window.sent(1, 0);

        window.consumed(9);

        assert!(!window.has_received());
    }
}
