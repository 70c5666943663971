//! One connection to a domain's node: found, proved by its certificate as that domain's whatever its host is
//! called, and not refusing ours.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use bytes::{Buf, Bytes};
use rustls::pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::discovery::{Discovery, Endpoint};
use crate::{
    address::Domain,
    identity::Identity,
    limits::{self, Limits},
};

/// Why there is no connection, for a person to read.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{domain}: {reason}")]
pub(super) struct DialError {
    domain: Domain,
    reason: String,
}

/// What a dialler needs, the same for all domains.
pub(super) struct Means {
    pub(super) identity: Arc<Identity>,
    pub(super) discovery: Arc<Discovery>,
    pub(super) tracker: TaskTracker,
    pub(super) kill: CancellationToken,
    connect: Duration,
    handshake: Duration,
}

impl Means {
    pub(super) fn new(
        identity: Arc<Identity>,
        discovery: Arc<Discovery>,
        limits: &Limits,
        tracker: TaskTracker,
        kill: CancellationToken,
    ) -> Self {
        Self {
            identity,
            discovery,
            tracker,
            kill,
            connect: Duration::from_millis(limits.connect_ms.into()),
            handshake: Duration::from_millis(limits.handshake_ms.into()),
        }
    }
}

/// Opens connections to one domain and remembers what went wrong on them.
pub(super) struct Dialler {
    domain: Domain,
    means: Arc<Means>,
    failed: Mutex<Option<(Instant, DialError)>>,
    broken: Arc<Mutex<Option<String>>>,
}

struct Dialled {
    at: Instant,
    outcome: Result<PeerStream, DialError>,
}

impl Dialler {
    pub(super) fn new(domain: Domain, means: Arc<Means>) -> Self {
        Self {
            domain,
            means,
            failed: Mutex::default(),
            broken: Arc::default(),
        }
    }

    /// What ended the last connection that broke. The status of a call seldom says it.
    pub(super) fn broken(&self) -> Option<String> {
        lock(&self.broken).clone()
    }

    /// A connection that was opened just now.
    pub(super) async fn connect(self: Arc<Self>) -> Result<PeerStream, DialError> {
        loop {
            if let Some(failure) = self.recent_failure() {
                return Err(failure);
            }
            // A task of its own, because whoever waits here may be given up in the middle and then nobody
            // polls; what was reached meanwhile serves the next call, if that comes soon.
            let attempt = self.means.tracker.spawn(self.clone().attempt());
            let dialled = attempt
                .await
                .map_err(|error| self.failure(error.to_string()))?;
            if dialled.at.elapsed() < Duration::from_millis(limits::DIALLED_MS) {
                return dialled.outcome;
            }
        }
    }

    async fn attempt(self: Arc<Self>) -> Dialled {
        let outcome = match self.means.kill.run_until_cancelled(self.dial()).await {
            Some(outcome) => outcome,
            None => Err(self.failure("this node is going down")),
        };
        let at = Instant::now();
        *lock(&self.failed) = outcome.as_ref().err().map(|failure| (at, failure.clone()));
        Dialled { at, outcome }
    }

    /// The calls of a queue would otherwise dial one after another, each for as long as it takes.
    fn recent_failure(&self) -> Option<DialError> {
        let failed = lock(&self.failed);
        let (at, failure) = failed.as_ref()?;
        let shared = Duration::from_millis(limits::DIAL_FAILURE_SHARED_MS);
        (at.elapsed() < shared).then(|| failure.clone())
    }

    fn failure(&self, reason: impl Into<String>) -> DialError {
        DialError {
            domain: self.domain.clone(),
            reason: reason.into(),
        }
    }

    async fn dial(&self) -> Result<PeerStream, DialError> {
        let name = ServerName::try_from(self.domain.as_str().to_owned())
            .map_err(|_| self.failure("TLS does not take it for a name"))?;
        let mut passed_over: Vec<SocketAddr> = Vec::new();
        let mut failure = None;
        while passed_over.len() < limits::DIAL_HANDSHAKES_MAX {
            let deadline = Instant::now() + self.means.connect;
            let connected = self
                .means
                .discovery
                .connect(&self.domain, &passed_over, deadline)
                .await;
            let (tcp, endpoint) = match connected {
                Ok(connected) => connected,
                Err(error) => {
                    // Why the better places were no good matters more than that there are no others.
                    failure = failure.or_else(|| Some(self.failure(error.to_string())));
                    break;
                }
            };
            let handshake = tokio::time::timeout(self.means.handshake, self.secure(tcp, &name));
            let reason = match handshake.await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(reason)) => reason,
                Err(_) => "the TLS handshake is not done in time".to_owned(),
            };
            let Endpoint { host, address, .. } = &endpoint;
            failure = Some(self.failure(format!("{host} ({address}): {reason}")));
            passed_over.push(endpoint.address);
            self.means.discovery.failed(&self.domain, &endpoint).await;
        }
        Err(failure.unwrap_or_else(|| self.failure("not tried")))
    }

    async fn secure(
        &self,
        tcp: TcpStream,
        name: &ServerName<'static>,
    ) -> Result<PeerStream, String> {
        let handshake = self.means.identity.current().dial(&self.domain);
        let connector = TlsConnector::from(handshake.config.clone());
        let mut tls =
            connector
                .connect(name.clone(), tcp)
                .await
                .map_err(|error| match handshake.refused() {
                    Some(reason) => reason.to_string(),
                    None => format!("TLS failed: {error}"),
                })?;
        // In TLS 1.3 our side is done before theirs has looked at our certificate. Their first frame, which
        // HTTP/2 sends at once, or their alert tells how it went; without waiting, a call would find out.
        let mut greeting = vec![0; 512];
        let limit = Duration::from_millis(limits::PEER_GREETING_MS);
        let length = match tokio::time::timeout(limit, tls.read(&mut greeting)).await {
            Ok(Ok(0)) => return Err("hangs up after the TLS handshake".to_owned()),
            Ok(Ok(length)) => length,
            Ok(Err(error)) => return Err(format!("refuses our certificate: {error}")),
            Err(_) => 0,
        };
        greeting.truncate(length);
        *lock(&self.broken) = None;
        Ok(PeerStream {
            tls,
            greeting: greeting.into(),
            broken: self.broken.clone(),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A connection to a peer. It writes down what breaks it.
pub(super) struct PeerStream {
    tls: TlsStream<TcpStream>,
    greeting: Bytes,
    broken: Arc<Mutex<Option<String>>>,
}

impl PeerStream {
    fn note<T>(&self, outcome: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if let Poll::Ready(Err(error)) = &outcome {
            lock(&self.broken).get_or_insert_with(|| error.to_string());
        }
        outcome
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.greeting.has_remaining() {
            let length = self.greeting.len().min(buffer.remaining());
            buffer.put_slice(&self.greeting.split_to(length));
            return Poll::Ready(Ok(()));
        }
        let outcome = Pin::new(&mut self.tls).poll_read(cx, buffer);
        self.note(outcome)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.tls).poll_write(cx, bytes);
        self.note(outcome)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outcome = Pin::new(&mut self.tls).poll_write_vectored(cx, slices);
        self.note(outcome)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.tls).poll_flush(cx);
        self.note(outcome)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let outcome = Pin::new(&mut self.tls).poll_shutdown(cx);
        self.note(outcome)
    }
}
