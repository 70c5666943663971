//! What the talking devices sent, what their nodes answered and what arrived: the judge of a run. Its memory does
//! not grow with the number of messages.

use std::{
    collections::{BTreeSet, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

/// Latencies of this long a time, twice, are behind the shown percentiles.
const WINDOW: Duration = Duration::from_secs(10);
/// Failures that are kept in words; the rest are counted.
const FAILURES_MAX: usize = 20;
/// Items of one line that may be missing while later ones came.
const SKIPPED_MAX: usize = 1_000;

/// A device of the run, by number.
pub(super) type Number = usize;

/// What one device sends another: an invite or an accept first, messages after it, numbered from 1 without gaps.
/// An item is only sent when the one before was answered.
#[derive(Debug, Default)]
struct Line {
    answered: u32,
    highest: u32,
    skipped: BTreeSet<u32>,
}

impl Line {
    /// Items that were answered and did not arrive.
    fn missing(&self) -> u64 {
        let skipped = self.skipped.range(..=self.answered).count();
        u64::from(self.answered.saturating_sub(self.highest)) + skipped as u64
    }
}

/// How an item arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Arrival {
    /// In its turn.
    InOrder,
    /// Before one that was sent earlier, or after one that was sent later.
    OutOfOrder,
    /// Not for the first time.
    Repeated,
}

/// Counts of one domain's users, or of all.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Items that were sent, each counted once however often it was tried.
    pub(super) sent: u64,
    /// Items that were answered with 200.
    pub(super) answered: u64,
    /// Items that arrived.
    pub(super) received: u64,
    /// Items that arrived and whose consumption was answered.
    pub(super) consumed: u64,
    /// Items that were answered and have not arrived.
    pub(super) lost: u64,
    /// Items that arrived again.
    pub(super) repeated: u64,
}

struct Domain {
    totals: Totals,
    users: u64,
    recent: Histogram<u32>,
    before: Histogram<u32>,
    turned_at: Instant,
}

struct Book {
    domains: Vec<Domain>,
    lines: HashMap<(Number, Number), Line>,
    failures: Vec<String>,
    failures_total: u64,
    unanswered: u64,
}

/// Everything that is known about a run.
pub(super) struct Ledger {
    /// The domain of each device.
    homes: Vec<usize>,
    book: Mutex<Book>,
    started: Instant,
}

/// What the table shows about one domain.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(super) struct Figures {
    /// Users of the run.
    pub(super) users: u64,
    /// The counts.
    pub(super) totals: Totals,
    /// The median time from the first attempt to send to the arrival, if anything arrived lately.
    pub(super) p50: Option<Duration>,
    /// The 99th percentile of it.
    pub(super) p99: Option<Duration>,
}

impl Ledger {
    /// An empty book. `homes` says of each device which domain it is of, `users` how many each domain has.
    pub(super) fn new(homes: Vec<usize>, users: &[u64]) -> Self {
        let domains = users
            .iter()
            .map(|users| Domain {
                totals: Totals::default(),
                users: *users,
                recent: histogram(),
                before: histogram(),
                turned_at: Instant::now(),
            })
            .collect();
        Self {
            homes,
            book: Mutex::new(Book {
                domains,
                lines: HashMap::new(),
                failures: Vec::new(),
                failures_total: 0,
                unanswered: 0,
            }),
            started: Instant::now(),
        }
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, book: &mut Book, device: Number, change: impl FnOnce(&mut Totals)) {
        let home = self
            .homes
            .get(device)
            .and_then(|home| book.domains.get_mut(*home));
        if let Some(domain) = home {
            change(&mut domain.totals);
        }
    }

    /// Microseconds since the run began, to be carried inside a message.
    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    /// `from` is about to send an item.
    pub(super) fn sent(&self, from: Number) {
        self.count(&mut self.book(), from, |totals| totals.sent += 1);
    }

    /// The node of `from` answered 200 for the next item to `to`.
    pub(super) fn answered(&self, from: Number, to: Number) {
        let mut book = self.book();
        book.lines.entry((from, to)).or_default().answered += 1;
        self.count(&mut book, from, |totals| totals.answered += 1);
    }

    /// `to` got the item with this number.
    pub(super) fn arrived(&self, from: Number, to: Number, number: u32) -> Arrival {
        let mut book = self.book();
        let line = book.lines.entry((from, to)).or_default();
        let arrival = if line.highest.checked_add(1) == Some(number) {
            line.highest = number;
            Arrival::InOrder
        } else if number > line.highest {
            let room = SKIPPED_MAX.saturating_sub(line.skipped.len());
            line.skipped.extend((line.highest + 1..number).take(room));
            line.highest = number;
            Arrival::OutOfOrder
        } else if line.skipped.remove(&number) {
            Arrival::OutOfOrder
        } else {
            Arrival::Repeated
        };
        self.count(&mut book, to, |totals| match arrival {
            Arrival::Repeated => totals.repeated += 1,
            Arrival::InOrder | Arrival::OutOfOrder => totals.received += 1,
        });
        arrival
    }

    /// The node of `device` answered that an arrived item is consumed.
    pub(super) fn consumed(&self, device: Number) {
        self.count(&mut self.book(), device, |totals| totals.consumed += 1);
    }

    /// An item took from `sent_us` until now to arrive at `device`.
    pub(super) fn took(&self, device: Number, sent_us: u64) {
        let latency_us = self.now_us().saturating_sub(sent_us);
        let mut book = self.book();
        let home = self
            .homes
            .get(device)
            .and_then(|home| book.domains.get_mut(*home));
        if let Some(domain) = home {
            if domain.turned_at.elapsed() > WINDOW {
                domain.before = std::mem::replace(&mut domain.recent, histogram());
                domain.turned_at = Instant::now();
            }
            domain.recent.saturating_record(latency_us);
        }
    }

    /// An attempt had no usable answer and will be repeated.
    pub(super) fn unanswered(&self) {
        self.book().unanswered += 1;
    }

    /// Something is wrong that no repetition mends: a broken promise of a node.
    pub(super) fn fail(&self, what: String) {
        let mut book = self.book();
        book.failures_total += 1;
        if book.failures.len() < FAILURES_MAX {
            book.failures.push(what);
        }
    }

    /// Counts over all domains, with what has not arrived yet as lost.
    pub(super) fn totals(&self) -> Totals {
        let book = self.book();
        let mut all = Totals::default();
        for domain in &book.domains {
            all.sent += domain.totals.sent;
            all.answered += domain.totals.answered;
            all.received += domain.totals.received;
            all.consumed += domain.totals.consumed;
            all.repeated += domain.totals.repeated;
        }
        all.lost = book.lines.values().map(Line::missing).sum();
        all
    }

    /// Lost items by the domain that should have received them.
    pub(super) fn lost_by_domain(&self) -> Vec<u64> {
        let book = self.book();
        let mut lost = vec![0; book.domains.len()];
        for ((_, to), line) in &book.lines {
            if let Some(count) = self.homes.get(*to).and_then(|home| lost.get_mut(*home)) {
                *count += line.missing();
            }
        }
        lost
    }

    /// What the table shows.
    pub(super) fn figures(&self) -> Vec<Figures> {
        self.book()
            .domains
            .iter()
            .map(|domain| {
                let mut both = domain.before.clone();
                // Both have the same bounds, so adding can't fail.
                let _ = both.add(&domain.recent);
                let at = |quantile| {
                    (!both.is_empty())
                        .then(|| Duration::from_micros(both.value_at_quantile(quantile)))
                };
                Figures {
                    users: domain.users,
                    totals: domain.totals,
                    p50: at(0.5),
                    p99: at(0.99),
                }
            })
            .collect()
    }

    /// The first failures in words, and how many there were.
    pub(super) fn failures(&self) -> (Vec<String>, u64) {
        let book = self.book();
        (book.failures.clone(), book.failures_total)
    }

    /// Attempts that had no usable answer.
    pub(super) fn unanswered_total(&self) -> u64 {
        self.book().unanswered
    }
}

fn histogram() -> Histogram<u32> {
    // One microsecond to an hour, two significant digits: bounds that the library documents as valid.
    Histogram::new_with_bounds(1, 3_600_000_000, 2)
        .unwrap_or_else(|error| unreachable!("constant bounds: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two devices of the first domain, one of the second.
    fn ledger() -> Ledger {
        Ledger::new(vec![0, 0, 1], &[2, 1])
    }

    #[test]
    fn what_was_answered_and_did_not_arrive_is_lost() {
        let ledger = ledger();
        for _ in 0..3 {
            ledger.sent(0);
            ledger.answered(0, 2);
        }
        assert_eq!(ledger.arrived(0, 2, 1), Arrival::InOrder);
        ledger.consumed(2);

        let totals = ledger.totals();

        assert_eq!((totals.sent, totals.answered), (3, 3));
        assert_eq!((totals.received, totals.consumed), (1, 1));
        assert_eq!((totals.lost, totals.repeated), (2, 0));
        assert_eq!(ledger.lost_by_domain(), [0, 2]);
    }

    #[test]
    fn what_arrived_without_an_answer_hides_no_loss() {
        let ledger = ledger();
        ledger.answered(0, 1);
        ledger.answered(0, 1);

        assert_eq!(ledger.arrived(0, 1, 2), Arrival::OutOfOrder);
        assert_eq!(ledger.arrived(0, 1, 3), Arrival::InOrder);

        assert_eq!(ledger.totals().lost, 1);
    }

    #[test]
    fn an_early_item_and_the_late_one_are_out_of_order_but_not_lost() {
        let ledger = ledger();
        ledger.answered(0, 1);
        ledger.answered(0, 1);

        assert_eq!(ledger.arrived(0, 1, 2), Arrival::OutOfOrder);
        assert_eq!(ledger.arrived(0, 1, 1), Arrival::OutOfOrder);

        assert_eq!(ledger.totals().lost, 0);
        assert_eq!(ledger.totals().received, 2);
    }

    #[test]
    fn an_item_that_comes_again_is_repeated_and_counts_once() {
        let ledger = ledger();
        ledger.answered(0, 1);

        assert_eq!(ledger.arrived(0, 1, 1), Arrival::InOrder);
        assert_eq!(ledger.arrived(0, 1, 1), Arrival::Repeated);

        let totals = ledger.totals();
        assert_eq!((totals.received, totals.repeated, totals.lost), (1, 1, 0));
    }

    #[test]
    fn directions_and_pairs_are_apart() {
        let ledger = ledger();

        assert_eq!(ledger.arrived(0, 1, 1), Arrival::InOrder);
        assert_eq!(ledger.arrived(1, 0, 1), Arrival::InOrder);
        assert_eq!(ledger.arrived(2, 0, 1), Arrival::InOrder);
    }

    #[test]
    fn figures_are_those_of_the_receiving_domain() {
        let ledger = ledger();
        ledger.sent(0);
        ledger.took(2, 0);

        let figures = ledger.figures();

        assert_eq!(figures[0].totals.sent, 1);
        assert_eq!(figures[0].p50, None);
        assert!(figures[1].p50.is_some() && figures[1].p99 >= figures[1].p50);
        assert_eq!((figures[0].users, figures[1].users), (2, 1));
    }

    #[test]
    fn failures_beyond_the_first_are_counted() {
        let ledger = ledger();
        for n in 0..30 {
            ledger.fail(n.to_string());
        }

        let (kept, total) = ledger.failures();

        assert_eq!((kept.len(), total), (FAILURES_MAX, 30));
    }
}
