//! Who this node is towards others, and whom it believes: certificates, keys, authorities, revocation lists,
//! pins and the policy, as one snapshot that is replaced whole when a file changes.

mod load;
mod presented;
mod tls;
pub mod trust;

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use rustls::{ClientConfig, ServerConfig, pki_types::UnixTime, sign::CertifiedKey};
use tokio_util::sync::CancellationToken;

pub use load::Problem;
pub use presented::{PeerCertificates, Refused};
pub use tls::Handshake;
pub use trust::{Reason, Trust};

use crate::{address::Domain, clock::Clock, config::Config, limits};
use load::{Files, Fingerprint, Sources};
use tls::Builders;

/// One consistent state of an identity. Connections under way keep the one that they began with.
pub struct Snapshot {
    generation: u64,
    builders: Arc<Builders>,
    client_door: Arc<ServerConfig>,
    peer: Arc<CertifiedKey>,
    trust: Arc<Trust>,
}

impl Snapshot {
    /// Grows with every change, never repeats.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// What other domains are measured by.
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// For a handshake at the client door.
    pub fn client_door(&self) -> Arc<ServerConfig> {
        self.client_door.clone()
    }

    /// For a handshake at the peer door: refuses whoever speaks for no domain at all.
    pub fn peer_door(&self) -> Handshake<ServerConfig> {
        self.builders.peer_door(&self.peer, &self.trust)
    }

    /// For a handshake with `domain`, which we dialled: refuses whoever does not speak for it.
    pub fn dial(&self, domain: &Domain) -> Handshake<ClientConfig> {
        self.builders.dial(&self.peer, &self.trust, domain)
    }
}

/// This node's identity, always in a usable state: what can't be loaded leaves the old in use.
pub struct Identity {
    clock: Clock,
    current: ArcSwap<Snapshot>,
    state: Mutex<State>,
}

/// What the current snapshot was made from.
struct State {
    sources: Sources,
    client: Arc<CertifiedKey>,
    /// Of the client pair, the peer pair and the trust, as last looked at: a broken file is reported once.
    seen: [Fingerprint; 3],
}

impl Identity {
    /// Loads everything that `config` names; nothing may be missing or broken at the start.
    pub fn load(config: &Config, clock: &Clock) -> Result<Self, Problem> {
        let builders = Builders::new(clock).map_err(|error| Problem::new("TLS", error))?;
        let builders = Arc::new(builders);
        let sources = Sources::new(config)?;
        let files = Files::read(&sources);
        let client = load::client_pair(&sources, &files, builders.provider());
        let peer = load::peer_pair(&sources, &files, builders.provider());
        let (trust_seen, trust) = load::trust(&sources, &files, builders.provider());
        let own = client.key?;
        let snapshot = Snapshot {
            generation: 1,
            client_door: builders.client_door(&own),
            peer: peer.key?,
            trust: Arc::new(trust?),
            builders,
        };
        let identity = Self {
            clock: clock.clone(),
            state: Mutex::new(State {
                sources,
                client: own,
                seen: [client.fingerprint, peer.fingerprint, trust_seen],
            }),
            current: ArcSwap::from_pointee(snapshot),
        };
        identity.complain_of_own(&identity.current());
        Ok(identity)
    }

    /// The state for the next handshake or decision.
    pub fn current(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// The time for the next decision.
    pub(crate) fn now_ms(&self) -> i64 {
        self.clock.now_ms()
    }

    /// Takes over the settings of a configuration that was read anew, and reloads.
    pub fn configure(&self, config: &Config) -> Result<bool, Problem> {
        let sources = Sources::new(config)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.sources = sources;
        Ok(self.refresh(&mut state))
    }

    /// Reads all files again; true if anything changed. A part that can't be loaded stays as it was, with an
    /// error in the log.
    pub fn reload(&self) -> bool {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        self.refresh(&mut state)
    }

    /// Reloads every few seconds until `stop`. Only changed contents do anything.
    pub async fn watch(self: Arc<Self>, stop: CancellationToken) {
        let pause = Duration::from_secs(limits::IDENTITY_RELOAD_SECONDS);
        while stop
            .run_until_cancelled(self.clock.sleep(pause))
            .await
            .is_some()
        {
            let identity = self.clone();
            if let Err(error) = tokio::task::spawn_blocking(move || identity.reload()).await {
                tracing::error!(%error, "the reload of certificates failed");
            }
        }
    }

    fn refresh(&self, state: &mut State) -> bool {
        let old = self.current();
        let provider = old.builders.provider();
        let files = Files::read(&state.sources);
        let client = load::client_pair(&state.sources, &files, provider);
        let peer = load::peer_pair(&state.sources, &files, provider);
        let (trust_seen, trust) = load::trust(&state.sources, &files, provider);
        let seen = [client.fingerprint, peer.fingerprint, trust_seen];
        if seen == state.seen {
            return false;
        }
        let [client_was, peer_was, trust_was] = std::mem::replace(&mut state.seen, seen);
        let mut problems = Vec::new();
        let client = replacement(client.key, client.fingerprint != client_was, &mut problems);
        let peer = replacement(peer.key, peer.fingerprint != peer_was, &mut problems);
        let trust = replacement(trust.map(Arc::new), trust_seen != trust_was, &mut problems);
        problems.dedup(); // one pair for both doors is one problem
        for problem in problems {
            tracing::error!(%problem, "can't be used; what was loaded before stays in use");
        }
        if client.is_none() && peer.is_none() && trust.is_none() {
            return false;
        }
        if let Some(client) = client {
            state.client = client;
        }
        let next = Snapshot {
            generation: old.generation + 1,
            builders: old.builders.clone(),
            client_door: old.builders.client_door(&state.client),
            peer: peer.unwrap_or_else(|| old.peer.clone()),
            trust: trust.unwrap_or_else(|| old.trust.clone()),
        };
        tracing::info!(
            generation = next.generation,
            "certificates and trust are replaced"
        );
        self.complain_of_own(&next);
        self.current.store(Arc::new(next));
        true
    }

    /// A certificate out of its time is used, because there is no better, but every peer will refuse it.
    fn complain_of_own(&self, snapshot: &Snapshot) {
        let Some(leaf) = snapshot.peer.cert.first() else {
            return;
        };
        let now = i64::try_from(unix_time(self.now_ms()).as_secs()).unwrap_or(i64::MAX);
        if let Ok(leaf) = trust::parse(leaf) {
            let validity = leaf.validity();
            if now < validity.not_before.timestamp() || now > validity.not_after.timestamp() {
                tracing::error!("this node's own certificate is not valid at this time");
            }
        }
    }
}

/// What takes the place of the old part, if it changed and can be used.
fn replacement<T>(
    loaded: Result<T, Problem>,
    is_changed: bool,
    problems: &mut Vec<Problem>,
) -> Option<T> {
    match loaded {
        Ok(part) if is_changed => Some(part),
        Err(problem) if is_changed => {
            problems.push(problem);
            None
        }
        _ => None,
    }
}

/// The clock's time as certificates count it.
pub(crate) fn unix_time(now_ms: i64) -> UnixTime {
    let ms = u64::try_from(now_ms).unwrap_or_default();
    UnixTime::since_unix_epoch(Duration::from_millis(ms))
}
