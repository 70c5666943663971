//! The accept loop of the two TLS doors: limits, handshake, and the connections that tonic serves. It ends when
//! it is told to, and its connections end when they are told to, whatever the other side does.

use std::{
    collections::{HashMap, hash_map::Entry},
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::Duration,
};

use futures_util::Stream;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    time::Sleep,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::{
    sync::{CancellationToken, WaitForCancellationFutureOwned},
    task::TaskTracker,
};
use tonic::transport::server::Connected;

pub use crate::identity::{PeerCertificates, Refused};
use crate::{
    identity::Identity,
    limits::{self, Limits},
};

/// Which of the two TLS doors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoorKind {
    /// Users' apps, without certificates.
    Client,
    /// Other domains, with certificates.
    Peer,
}

impl DoorKind {
    fn name(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Peer => "peer",
        }
    }
}

/// What a handler finds in a request's extensions about the connection that it came on.
#[derive(Debug, Clone)]
pub struct ConnectInfo {
    /// The other end's network address.
    pub remote: SocketAddr,
    /// What the other end presented; only at the peer door, and there always.
    pub peer: Option<Arc<PeerCertificates>>,
}

/// Accepts connections until `stop`, and yields those that passed the handshake. Their reads and writes fail
/// once `kill` is cancelled. No error of a single connection or of the listener ends the stream.
pub fn serve_door(
    listener: TcpListener,
    kind: DoorKind,
    identity: Arc<Identity>,
    limits: &Limits,
    tracker: &TaskTracker,
    stop: CancellationToken,
    kill: CancellationToken,
) -> impl Stream<Item = io::Result<Conn>> + Send + use<> {
    let (ready, accepted) = mpsc::channel(limits::ACCEPTED_MAX);
    let door = Door {
        kind,
        identity,
        places: Places::new(limits),
        handshake: Duration::from_millis(limits.handshake_ms.into()),
        first_byte: Duration::from_millis(limits.first_byte_ms.into()),
        tracker: tracker.clone(),
        stop,
        kill,
        ready,
    };
    tracker.spawn(Arc::new(door).accept(listener));
    ReceiverStream::new(accepted)
}

struct Door {
    kind: DoorKind,
    identity: Arc<Identity>,
    places: Places,
    handshake: Duration,
    first_byte: Duration,
    tracker: TaskTracker,
    stop: CancellationToken,
    kill: CancellationToken,
    ready: mpsc::Sender<io::Result<Conn>>,
}

impl Door {
    async fn accept(self: Arc<Self>, listener: TcpListener) {
        while let Some(accepted) = self.stop.run_until_cancelled(listener.accept()).await {
            match accepted {
                Ok((tcp, remote)) => self.welcome(tcp, remote),
                Err(error) => {
                    // Out of file descriptors, mostly: trying again at once would only burn the processor.
                    tracing::warn!(door = self.kind.name(), %error, "can't accept connections");
                    tokio::time::sleep(Duration::from_millis(limits::ACCEPT_PAUSE_MS)).await;
                }
            }
        }
    }

    fn welcome(self: &Arc<Self>, tcp: TcpStream, remote: SocketAddr) {
        let Some(place) = self.places.take(remote.ip()) else {
            self.refuse("limit");
            tracing::debug!(door = self.kind.name(), %remote, "too many connections");
            return;
        };
        let door = self.clone();
        self.tracker.spawn(async move {
            let greeted = door
                .stop
                .run_until_cancelled(door.greet(tcp, remote, place));
            let Some(Some(conn)) = greeted.await else {
                return;
            };
            // Nobody takes it once the server is draining, and that is an end like any other.
            let _ = door.ready.send(Ok(conn)).await;
        });
    }

    async fn greet(&self, tcp: TcpStream, remote: SocketAddr, place: Place) -> Option<Conn> {
        let failure = match tokio::time::timeout(self.handshake, self.shake_hands(tcp)).await {
            Ok(Ok((tls, peer))) => {
                return Some(Conn {
                    tls,
                    info: ConnectInfo { remote, peer },
                    first_byte: Some(Box::pin(tokio::time::sleep(self.first_byte))),
                    killed: Box::pin(self.kill.clone().cancelled_owned()),
                    _place: place,
                });
            }
            Ok(Err(failure)) => failure,
            Err(_) => "not done in time".to_owned(),
        };
        self.refuse("handshake");
        if self.kind == DoorKind::Peer {
            tracing::info!(%remote, failure, "a handshake at the peer door failed");
        } else {
            tracing::debug!(%remote, failure, "a handshake at the client door failed");
        }
        None
    }

    async fn shake_hands(
        &self,
        tcp: TcpStream,
    ) -> Result<(TlsStream<TcpStream>, Option<Arc<PeerCertificates>>), String> {
        tcp.set_nodelay(true).map_err(|error| error.to_string())?;
        let snapshot = self.identity.current();
        if self.kind == DoorKind::Client {
            let accepted = TlsAcceptor::from(snapshot.client_door()).accept(tcp).await;
            return accepted
                .map(|tls| (tls, None))
                .map_err(|error| error.to_string());
        }
        let handshake = snapshot.peer_door();
        let accepted = TlsAcceptor::from(handshake.config.clone())
            .accept(tcp)
            .await;
        let tls = accepted.map_err(|error| match handshake.refused() {
            Some(reason) => reason.to_string(),
            None => error.to_string(),
        })?;
        let chain = tls.get_ref().1.peer_certificates().unwrap_or_default();
        let peer = PeerCertificates::new(self.identity.clone(), chain.to_vec());
        Ok((tls, Some(Arc::new(peer))))
    }

    fn refuse(&self, reason: &'static str) {
        metrics::counter!(
            "skiserver_connections_refused_total",
            "door" => self.kind.name(), "reason" => reason
        )
        .increment(1);
    }
}

/// How many connections a door holds, in all and from one address.
struct Places {
    all: Arc<Semaphore>,
    from: Arc<Mutex<HashMap<IpAddr, u32>>>,
    per_address_max: u32,
}

impl Places {
    fn new(limits: &Limits) -> Self {
        let all = usize::try_from(limits.connections_max).unwrap_or(usize::MAX);
        Self {
            all: Arc::new(Semaphore::new(all.min(Semaphore::MAX_PERMITS))),
            from: Arc::default(),
            per_address_max: limits.connections_per_address_max,
        }
    }

    fn take(&self, address: IpAddr) -> Option<Place> {
        let address = subscriber(address);
        let permit = self.all.clone().try_acquire_owned().ok()?;
        let mut from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        let held = from.entry(address).or_default();
        if *held >= self.per_address_max {
            return None;
        }
        *held += 1;
        Some(Place {
            address,
            from: self.from.clone(),
            _permit: permit,
        })
    }
}

/// Whoever has one IPv6 address has its /64.
fn subscriber(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((v6.to_bits() & !u128::from(u64::MAX)).into()),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// One connection's share of the limits, given back when it is dropped.
struct Place {
    address: IpAddr,
    from: Arc<Mutex<HashMap<IpAddr, u32>>>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut from = self.from.lock().unwrap_or_else(PoisonError::into_inner);
        if let Entry::Occupied(mut held) = from.entry(self.address) {
            *held.get_mut() -= 1;
            if *held.get() == 0 {
                held.remove();
            }
        }
    }
}

/// A connection after its handshake. It fails when the first byte is late and when the node kills it.
pub struct Conn {
    tls: TlsStream<TcpStream>,
    info: ConnectInfo,
    first_byte: Option<Pin<Box<Sleep>>>,
    killed: Pin<Box<WaitForCancellationFutureOwned>>,
    _place: Place,
}

impl Connected for Conn {
    type ConnectInfo = ConnectInfo;

    fn connect_info(&self) -> ConnectInfo {
        self.info.clone()
    }
}

impl Conn {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.killed.as_mut().poll(cx).is_ready() {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl AsyncRead for Conn {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut self.tls).poll_read(cx, buffer);
        if let Some(limit) = &mut self.first_byte {
            if buffer.filled().len() > before {
                self.first_byte = None;
            } else if outcome.is_pending() && limit.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        outcome
    }
}

impl AsyncWrite for Conn {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests;
