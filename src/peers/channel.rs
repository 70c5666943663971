//! One mutually authenticated HTTP/2 channel a domain, opened when it is needed and opened anew when certificates
//! or trust change. Knows deadlines and the policy, and no RPC.

#[cfg(test)]
mod door;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    error::Error as _,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderName, HeaderValue};
use hyper_util::rt::TokioIo;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{
    Code, Response, Status,
    body::Body,
    transport::{Channel, Endpoint, channel::ResponseFuture},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::{
    dial::{DialError, Dialler, Means},
    discovery::Discovery,
    wire::is_silence,
};
use crate::{
    address::Domain,
    clock::Clock,
    identity::Identity,
    limits::{self, Limits},
    proto::skiserver::e2ee_s2s_service_client::E2eeS2sServiceClient,
};

/// The metadata in which a node names its domain in every request to a peer door.
pub const OWN_DOMAIN: HeaderName = HeaderName::from_static("skiserver-domain");

/// The RPCs of a peer door over one of our channels.
pub type PeerClient = E2eeS2sServiceClient<PeerChannel>;

/// Why a peer gave no answer. Whether it did what it was asked to is unknown, except if it was never asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// No connection, a broken one, or something that is no answer. The text says what, for the operator.
    #[error("{0}")]
    Transport(String),
    /// It answered, but not this call.
    #[error("{0}")]
    Failed(String),
    /// Nothing came in the time that the caller gave.
    #[error("no answer in time")]
    Deadline,
    /// It was not asked, because our policy is against it.
    #[error("the policy here does not let this node talk to it")]
    Denied,
}

/// The channels to all domains that were called lately.
pub struct Channels {
    own: HeaderValue,
    bytes_max: usize,
    clock: Clock,
    means: Arc<Means>,
    held: Mutex<HashMap<Domain, Held>>,
}

struct Held {
    channel: PeerChannel,
    generation: u64,
    used_at_ms: i64,
}

impl Channels {
    /// Channels of a node of the domain `own`. They are opened in tasks of `tracker`, and no more after `kill`.
    pub fn new(
        own: &Domain,
        identity: Arc<Identity>,
        discovery: Arc<Discovery>,
        clock: &Clock,
        limits: &Limits,
        tracker: TaskTracker,
        kill: CancellationToken,
    ) -> crate::error::Result<Self> {
        Ok(Self {
            own: HeaderValue::from_str(own.as_str()).map_err(crate::error::Error::internal)?,
            bytes_max: limits.request_bytes_max,
            clock: clock.clone(),
            means: Arc::new(Means::new(identity, discovery, limits, tracker, kill)),
            held: Mutex::default(),
        })
    }

    /// Runs one RPC at `domain`, connecting first if needed, within `limit` in all. A call that began before
    /// certificates changed ends on the connection that it began on. One that met a connection just as it
    /// closed is made once more: `rpc` must bear repeating, as every call between nodes does.
    pub async fn call<Q, T, F>(
        &self,
        domain: &Domain,
        limit: Duration,
        request: Q,
        rpc: impl Fn(PeerChannel, Q) -> F,
    ) -> Result<T, PeerError>
    where
        Q: Clone,
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let attempts = async {
            let channel = self.channel(domain)?;
            let dialler = channel.dialler.clone();
            let mut outcome = rpc(channel, request.clone()).await;
            if outcome.as_ref().is_err_and(is_unsent) {
                outcome = rpc(self.channel(domain)?, request.clone()).await;
            }
            outcome.map_err(|status| {
                let text = explain(domain, &status, &dialler);
                if is_silence(&status) {
                    PeerError::Transport(text)
                } else {
                    PeerError::Failed(text)
                }
            })
        };
        match tokio::time::timeout(limit, attempts).await {
            Ok(outcome) => outcome.map(Response::into_inner),
            Err(_) => Err(PeerError::Deadline),
        }
    }

    /// Whether the node of `domain` can be reached and says that it serves.
    pub async fn health(&self, domain: &Domain, limit: Duration) -> Result<(), PeerError> {
        let request = HealthCheckRequest::default();
        let answer = self.call(domain, limit, request, |channel, request| async {
            HealthClient::new(channel).check(request).await
        });
        match answer.await?.status() {
            ServingStatus::Serving => Ok(()),
            other => {
                let reason = format!("{domain}: says that it is {other:?}");
                Err(PeerError::Transport(reason))
            }
        }
    }

    /// Closes what nobody used for some minutes, until `stop`.
    pub async fn tidy(&self, stop: CancellationToken) {
        let pause = Duration::from_mins(1);
        while stop
            .run_until_cancelled(self.clock.sleep(pause))
            .await
            .is_some()
        {
            let now_ms = self.clock.now_ms();
            let is_used = |held: &Held| now_ms - held.used_at_ms < limits::PEER_CHANNEL_IDLE_MS;
            self.lock().retain(|_, held| is_used(held));
        }
    }

    fn channel(&self, domain: &Domain) -> Result<PeerChannel, PeerError> {
        let snapshot = self.means.identity.current();
        let now_ms = self.clock.now_ms();
        let mut held = self.lock();
        if !snapshot.trust().may_talk(domain) {
            held.remove(domain);
            return Err(PeerError::Denied);
        }
        let generation = snapshot.generation();
        if let Some(known) = held.get_mut(domain)
            && known.generation == generation
        {
            known.used_at_ms = now_ms;
            return Ok(known.channel.clone());
        }
        let channel = self.open(domain).map_err(|error| {
            let reason = error.source().map_or_else(String::new, ToString::to_string);
            PeerError::Transport(format!("{domain}: {error} {reason}"))
        })?;
        if held.len() >= limits::PEER_CHANNELS_MAX && !held.contains_key(domain) {
            let oldest = held.iter().min_by_key(|(_, held)| held.used_at_ms);
            if let Some(oldest) = oldest.map(|(domain, _)| domain.clone()) {
                held.remove(&oldest);
            }
        }
        let new = Held {
            channel: channel.clone(),
            generation,
            used_at_ms: now_ms,
        };
        held.insert(domain.clone(), new);
        Ok(channel)
    }

    /// The scheme is a white lie: with `https`, tonic would want to do TLS itself if any crate of the build
    /// switched that feature on. Peers see the origin.
    fn open(&self, domain: &Domain) -> Result<PeerChannel, tonic::transport::Error> {
        let origin = Endpoint::from_shared(format!("https://{domain}"))?;
        let endpoint = Endpoint::from_shared(format!("http://{domain}"))?
            .origin(origin.uri().clone())
            .http2_keep_alive_interval(Duration::from_secs(limits::PEER_PING_SECONDS))
            .keep_alive_timeout(Duration::from_secs(limits::PEER_PING_TIMEOUT_SECONDS))
            .keep_alive_while_idle(true);
        let dialler = Arc::new(Dialler::new(domain.clone(), self.means.clone()));
        let connector = {
            let dialler = dialler.clone();
            tower::service_fn(move |_| {
                let connecting = dialler.clone().connect();
                async { connecting.await.map(TokioIo::new) }
            })
        };
        Ok(PeerChannel {
            channel: endpoint.connect_with_connector_lazy(connector),
            own: self.own.clone(),
            bytes_max: self.bytes_max,
            dialler,
        })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Domain, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A channel to one domain, for the generated clients. Every request on it names our domain.
#[derive(Clone)]
pub struct PeerChannel {
    channel: Channel,
    own: HeaderValue,
    bytes_max: usize,
    dialler: Arc<Dialler>,
}

impl PeerChannel {
    /// The RPCs of the peer door, with our limits on sizes.
    pub fn client(self) -> PeerClient {
        let bytes_max = self.bytes_max;
        E2eeS2sServiceClient::new(self)
            .max_decoding_message_size(bytes_max)
            .max_encoding_message_size(bytes_max)
    }
}

impl tower::Service<http::Request<Body>> for PeerChannel {
    type Response = http::Response<Body>;
    type Error = tonic::transport::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower::Service::poll_ready(&mut self.channel, cx)
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        request.headers_mut().insert(OWN_DOMAIN, self.own.clone());
        tower::Service::call(&mut self.channel, request)
    }
}

/// Whether our own side gave the request up, because the connection that it was meant for closed.
fn is_unsent(status: &Status) -> bool {
    status.code() == Code::Cancelled && status.source().is_some()
}

/// The dialler's own words if there is no connection, else the status with what broke the connection.
fn explain(domain: &Domain, status: &Status, dialler: &Dialler) -> String {
    let mut cause = status.source();
    while let Some(error) = cause {
        if let Some(failure) = error.downcast_ref::<DialError>() {
            return readable(&failure.to_string());
        }
        cause = error.source();
    }
    let mut text = format!("{domain}: {:?}: {}", status.code(), status.message());
    if status.source().is_some()
        && let Some(broken) = dialler.broken()
    {
        text = format!("{text} ({broken})");
    }
    readable(&text)
}

/// Some of it is a peer's, so it is cut and holds no control characters.
fn readable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(limits::PEER_TEXT_CHARS_MAX)
        .collect()
}
