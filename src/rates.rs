//! Rate buckets, one per caller, target or address, and how much each peer may have under way. They live in
//! memory only and are bounded by being swept.

use std::{
    collections::HashMap,
    hash::Hash,
    num::NonZeroU32,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{
    address::Domain,
    error::{Error, Result},
    limits::{self, Limits},
};

/// A bucket for each key, all of one size.
pub struct Rate<K: Hash + Eq + Clone>(DefaultKeyedRateLimiter<K>);

impl<K: Hash + Eq + Clone> Rate<K> {
    fn per(period: Duration, count: u32) -> Self {
        let burst = NonZeroU32::new(count).unwrap_or(NonZeroU32::MIN);
        let quota = Quota::with_period(period / burst.get()).unwrap_or(Quota::per_second(burst));
        Self(RateLimiter::keyed(quota.allow_burst(burst)))
    }

    /// Takes one from the bucket; `false` if it is empty.
    pub fn allows(&self, key: &K) -> bool {
        self.0.check_key(key).is_ok()
    }

    /// Takes one from the bucket, or refuses with `what`.
    pub fn check(&self, key: &K, what: &'static str) -> Result<()> {
        if self.allows(key) {
            Ok(())
        } else {
            Err(Error::Throttled(what))
        }
    }

    /// Waits at most `patience` for the bucket; a send that still finds it empty is refused as busy.
    pub async fn wait(&self, key: &K, patience: Duration) -> Result<()> {
        tokio::time::timeout(patience, self.0.until_key_ready(key))
            .await
            .map_err(|_| Error::Busy("too many requests"))
    }

    fn sweep(&self) {
        self.0.retain_recent();
        self.0.shrink_to_fit();
    }
}

/// Failures of each key within a period. Unlike a bucket it costs nothing to ask, so what succeeds is free.
pub struct Failures {
    period: Duration,
    max: u32,
    counts: Mutex<HashMap<String, (Instant, u32)>>,
}

impl Failures {
    fn per(period: Duration, max: u32) -> Self {
        Self {
            period,
            max,
            counts: Mutex::default(),
        }
    }

    /// Refuses with `what` while the key failed too often.
    pub fn check(&self, key: &str, what: &'static str) -> Result<()> {
        match self.counts().get(key) {
            Some((since, count)) if *count >= self.max && since.elapsed() < self.period => {
                Err(Error::Throttled(what))
            }
            _ => Ok(()),
        }
    }

    /// Counts a failure. The period of a key starts with its first.
    pub fn count(&self, key: String) {
        let mut counts = self.counts();
        if counts.len() >= limits::FAILURES_KEPT_MAX {
            counts.retain(|_, (since, _)| since.elapsed() < self.period);
        }
        if counts.len() >= limits::FAILURES_KEPT_MAX {
            return;
        }
        let entry = counts.entry(key).or_insert_with(|| (Instant::now(), 0));
        if entry.0.elapsed() >= self.period {
            *entry = (Instant::now(), 0);
        }
        entry.1 += 1;
    }

    fn sweep(&self) {
        let mut counts = self.counts();
        counts.retain(|_, (since, _)| since.elapsed() < self.period);
        counts.shrink_to_fit();
    }

    fn counts(&self) -> MutexGuard<'_, HashMap<String, (Instant, u32)>> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All buckets of the node.
pub struct Rates {
    /// Auth codes per authenticator.
    pub codes: Rate<String>,
    /// Account calls per network address.
    pub addresses: Rate<std::net::IpAddr>,
    /// Failed logins per network address and device: a stranger elsewhere locks nobody out.
    pub logins: Failures,
    /// Bundle calls per caller.
    pub bundle_calls: Rate<i64>,
    /// One-time keys per calling device and target device.
    pub caller_keys: Rate<(i64, String)>,
    /// One-time keys per peer domain and target device.
    pub peer_keys: Rate<(String, String)>,
    /// Invites to strangers per device.
    pub first_contacts: Rate<i64>,
    /// Invites to strangers per peer domain.
    pub peer_contacts: Rate<String>,
    /// Messages per device.
    pub messages: Rate<i64>,
}

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

impl Rates {
    /// Buckets of the configured sizes.
    pub fn new(limits: &Arc<Limits>) -> Self {
        Self {
            codes: Rate::per(HOUR, limits.auth_codes_per_authenticator_hour),
            addresses: Rate::per(MINUTE, limits.account_calls_per_address_minute),
            logins: Failures::per(HOUR, limits.login_failures_per_device_hour),
            bundle_calls: Rate::per(MINUTE, limits.bundle_calls_per_caller_minute),
            caller_keys: Rate::per(HOUR, limits.opks_per_caller_hour),
            peer_keys: Rate::per(HOUR, limits.opks_per_peer_hour),
            first_contacts: Rate::per(HOUR, limits.first_contacts_per_sender_hour),
            peer_contacts: Rate::per(HOUR, limits.first_contacts_per_peer_hour),
            messages: Rate::per(MINUTE, limits.messages_per_sender_minute),
        }
    }

    /// Forgets buckets that are full again. Called on a timer.
    pub fn sweep(&self) {
        self.codes.sweep();
        self.addresses.sweep();
        self.logins.sweep();
        self.bundle_calls.sweep();
        self.caller_keys.sweep();
        self.peer_keys.sweep();
        self.first_contacts.sweep();
        self.peer_contacts.sweep();
        self.messages.sweep();
    }
}

/// How many requests of each peer are under way at our door.
pub struct Budgets {
    per_peer: usize,
    peers: Mutex<HashMap<Domain, Arc<Semaphore>>>,
}

impl Budgets {
    /// A budget of `per_peer` requests for each peer.
    pub fn new(per_peer: u32) -> Self {
        Self {
            per_peer: usize::try_from(per_peer).unwrap_or(usize::MAX),
            peers: Mutex::default(),
        }
    }

    /// A place for one request, until it is dropped; `None` if the peer has too many under way.
    pub fn enter(&self, domain: &Domain) -> Option<OwnedSemaphorePermit> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let places = peers
            .entry(domain.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(self.per_peer)));
        Arc::clone(places).try_acquire_owned().ok()
    }

    /// Forgets peers that have nothing under way. Called on a timer.
    pub fn sweep(&self) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|_, places| places.available_permits() < self.per_peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_count_for_their_key_until_its_period_is_over() {
        let failures = Failures::per(HOUR, 2);
        let fail = || failures.count("alice".to_owned());

        fail();
        assert!(failures.check("alice", "wait").is_ok());
        fail();
        assert!(matches!(
            failures.check("alice", "wait"),
            Err(Error::Throttled("wait"))
        ));
        assert!(failures.check("bob", "wait").is_ok());

        let short = Failures::per(Duration::ZERO, 1);
        short.count("alice".to_owned());
        assert!(short.check("alice", "wait").is_ok(), "the period is over");
        short.sweep();
        assert_eq!(short.counts().len(), 0);
    }
}
