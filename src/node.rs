//! The handles that each operation is given. No logic.

use std::sync::Arc;

use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    address::Home,
    clock::Clock,
    config::Config,
    delivery::{live::Live, once_key},
    doors::auth::Tokens,
    gateways::CodeGateway,
    limits::Limits,
    passwords::Passwords,
    peers::Peers,
    rates::{Budgets, Rates},
    signing::Signer,
    store::{Once, Store},
};

#[cfg(test)]
pub(crate) mod testing;

/// One running node.
pub struct Node {
    /// What is ours.
    pub home: Home,
    /// Settings, checked at start.
    pub config: Arc<Config>,
    /// Bounds, from the settings.
    pub limits: Arc<Limits>,
    /// Time.
    pub clock: Clock,
    /// The database.
    pub store: Store,
    /// Open streams.
    pub live: Arc<Live>,
    /// Other domains.
    pub peers: Arc<Peers>,
    /// The server's signing keys.
    pub signer: Signer,
    /// Rate buckets.
    pub rates: Rates,
    /// What each peer may have under way at our door.
    pub budgets: Budgets,
    /// The way for auth codes.
    pub codes: CodeGateway,
    /// Password hashes.
    pub passwords: Passwords,
    /// Devices behind tokens.
    pub tokens: Arc<Tokens>,
    /// Everything that runs; a shutdown waits for it.
    pub tasks: TaskTracker,
    /// Cancelled when the node drains.
    pub stop: CancellationToken,
}

/// How long a deduplication key outlives the longest life of an outbox row.
const ONCE_DAYS_MORE: i64 = 1;
const DAY_MS: i64 = 86_400_000;

impl Node {
    /// A deduplication key that outlives any row of an outbox.
    pub fn once(&self, scope: &str, parts: &[&[u8]]) -> Once {
        let days = i64::from(self.limits.outbox_days) + ONCE_DAYS_MORE;
        self.once_for_days(days, scope, parts)
    }

    /// A deduplication key with a life of its own.
    pub fn once_for_days(&self, days: i64, scope: &str, parts: &[&[u8]]) -> Once {
        Once {
            key: once_key(scope, parts),
            answer: 0,
            expires_at: self.clock.now_ms() + days * DAY_MS,
        }
    }
}
