//! Answers of DNS with their ages. A good one outlives its time while the name servers fail.

use std::sync::Arc;

use moka::future::Cache;

use super::Unreachable;
use crate::limits;

/// An answer that has just come in, and how long it may be used.
pub(super) struct Fresh<V> {
    value: V,
    life_ms: i64,
    outlives: bool,
}

impl<V> Fresh<V> {
    /// Lives as long as the shortest of its records, within our own bounds.
    pub(super) fn until(value: V, ttl_seconds: Option<u32>) -> Self {
        let seconds = ttl_seconds
            .unwrap_or_default()
            .clamp(limits::DNS_TTL_MIN_SECONDS, limits::DNS_TTL_MAX_SECONDS);
        Self {
            value,
            life_ms: i64::from(seconds) * 1_000,
            outlives: true,
        }
    }

    /// DNS says that there is nothing, which is believed for seconds. If we can go on without, it is as good as
    /// any other answer while the name servers fail.
    pub(super) fn negative(value: V, outlives: bool) -> Self {
        Self {
            value,
            life_ms: limits::DNS_NEGATIVE_MS,
            outlives,
        }
    }
}

/// The answers to one kind of question, by name.
pub(super) struct Answers<V: Clone + Send + Sync + 'static>(Cache<String, Arc<Known<V>>>);

#[derive(Clone)]
struct Known<V> {
    /// When it was last asked for.
    asked_at_ms: i64,
    /// Until then nobody asks again.
    fresh_until_ms: i64,
    /// When the value came in.
    answered_at_ms: i64,
    /// Whether it is used after its time if nothing better can be had.
    outlives: bool,
    outcome: Result<V, Unreachable>,
}

impl<V: Clone + Send + Sync + 'static> Answers<V> {
    pub(super) fn new() -> Self {
        Self(Cache::new(limits::DNS_ANSWERS_MAX))
    }

    /// The remembered answer, or that of `ask`, or, if that fails, the remembered one though its time is over.
    pub(super) async fn recall(
        &self,
        name: &str,
        now_ms: i64,
        ask: impl Future<Output = Result<Fresh<V>, Unreachable>>,
    ) -> Result<V, Unreachable> {
        let known = self.0.get(name).await;
        if let Some(known) = &known
            && (known.asked_at_ms..known.fresh_until_ms).contains(&now_ms)
        {
            return known.outcome.clone();
        }
        let now_known = match ask.await {
            Ok(fresh) => Known {
                asked_at_ms: now_ms,
                fresh_until_ms: now_ms + fresh.life_ms,
                answered_at_ms: now_ms,
                outlives: fresh.outlives,
                outcome: Ok(fresh.value),
            },
            Err(failure) => {
                let usable = known.filter(|known| {
                    let age_ms = now_ms - known.answered_at_ms;
                    known.outlives && age_ms < limits::DNS_STALE_MS
                });
                if usable.is_some() {
                    tracing::warn!(name, %failure, "an old answer of DNS is used");
                }
                Known {
                    asked_at_ms: now_ms,
                    fresh_until_ms: now_ms + limits::DNS_NEGATIVE_MS,
                    answered_at_ms: usable.as_ref().map_or(now_ms, |k| k.answered_at_ms),
                    outlives: usable.is_some(),
                    outcome: usable.map_or(Err(failure), |known| known.outcome.clone()),
                }
            }
        };
        let outcome = now_known.outcome.clone();
        self.0.insert(name.to_owned(), Arc::new(now_known)).await;
        outcome
    }

    /// The next question goes to DNS.
    pub(super) async fn expire(&self, name: &str) {
        if let Some(known) = self.0.get(name).await {
            let expired = Known {
                fresh_until_ms: i64::MIN,
                ..Known::clone(&known)
            };
            self.0.insert(name.to_owned(), Arc::new(expired)).await;
        }
    }
}
