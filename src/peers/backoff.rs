//! When something that failed is tried again: full jitter from one second, with a longer ceiling after the
//! first hour.

use crate::limits::{Limits, RETRY_EARLY_MS, RETRY_FIRST_MS};

/// Failures of one lane or one domain, one after the other.
#[derive(Debug, Clone)]
pub(super) struct Backoff {
    /// Since when everything failed, Unix ms.
    pub(super) since: i64,
    /// When it is tried again, Unix ms.
    pub(super) retry_at: i64,
    /// What the last failure was, in words.
    pub(super) why: String,
    failures: u32,
}

impl Backoff {
    /// One failure more than `before`.
    pub(super) fn after(before: Option<Self>, now: i64, why: &str, limits: &Limits) -> Self {
        let (since, failures) = before.map_or((now, 0), |b| (b.since, b.failures));
        let ceiling = ceiling_ms(failures, now - since, limits);
        Self {
            since,
            retry_at: now + fastrand::i64(1..=ceiling),
            why: why.to_owned(),
            failures: failures.saturating_add(1),
        }
    }

    /// The same, due at once and with short pauses again.
    pub(super) fn hurried(self) -> Self {
        Self {
            retry_at: i64::MIN,
            failures: 0,
            ..self
        }
    }
}

fn ceiling_ms(failures: u32, lasting_ms: i64, limits: &Limits) -> i64 {
    let max_seconds = if lasting_ms < RETRY_EARLY_MS {
        limits.retry_early_max_seconds
    } else {
        limits.retry_late_max_seconds
    };
    let grown = RETRY_FIRST_MS << failures.min(20);
    grown.min(i64::from(max_seconds) * 1_000).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_ceiling_of_the_hour() {
        let limits = Limits::default();

        let early: Vec<i64> = (0..6).map(|n| ceiling_ms(n, 0, &limits)).collect();
        let late = ceiling_ms(40, RETRY_EARLY_MS, &limits);

        assert_eq!(early, [1_000, 2_000, 4_000, 8_000, 15_000, 15_000]);
        assert_eq!(late, 300_000);
    }

    #[test]
    fn every_failure_is_jittered_below_its_ceiling_and_remembers_the_first() {
        let limits = Limits::default();
        let mut backoff = None;

        for failure in 0..100 {
            let now = 1_000 + failure * 60_000;
            let next = Backoff::after(backoff.take(), now, "silence", &limits);
            assert!(next.retry_at > now);
            assert!(next.retry_at <= now + ceiling_ms(u32::MAX, now - 1_000, &limits));
            assert_eq!(next.since, 1_000);
            backoff = Some(next);
        }
    }
}
