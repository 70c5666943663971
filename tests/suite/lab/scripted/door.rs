//! The scripted peer's door: mutual TLS, and connections that can be cut from outside.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use rustls::{
    RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use skiserver::lab::ca::Issued;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::transport::server::Connected;

use super::{Mood, Stage};

/// Shows `issued` and wants a certificate that `trusted` vouches for.
pub(super) fn tls(issued: &Issued, trusted: &str) -> Arc<ServerConfig> {
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots(trusted)))
        .build()
        .unwrap();
    let (chain, key) = pair(issued);
    let mut tls = ServerConfig::builder()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec()];
    Arc::new(tls)
}

pub(super) fn roots(pem: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        roots.add(certificate.unwrap()).unwrap();
    }
    roots
}

pub(super) fn pair(issued: &Issued) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let chain = CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes());
    let key = PrivateKeyDer::from_pem_slice(issued.key_pem.as_bytes());
    (chain.map(Result::unwrap).collect(), key.unwrap())
}

/// Listens and serves, on tasks of their own, until their runtime ends.
#[expect(
    clippy::disallowed_methods,
    reason = "no node's task: it ends with its runtime"
)]
pub(super) async fn open(
    address: SocketAddr,
    tls: Arc<ServerConfig>,
    stage: Stage,
    mood: watch::Receiver<Mood>,
) {
    let listener = TcpListener::bind(address).await.unwrap();
    let (ready, connections) = mpsc::channel(16);
    tokio::spawn(accept(listener, TlsAcceptor::from(tls), mood, ready));
    let (health, service) = tonic_health::server::health_reporter();
    health.set_serving::<Stage>().await;
    let routes = tonic::transport::Server::builder()
        .add_service(service)
        .add_service(stage);
    tokio::spawn(routes.serve_with_incoming(ReceiverStream::new(connections)));
}

#[expect(
    clippy::disallowed_methods,
    reason = "no node's task: it ends with its runtime"
)]
async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    mut mood: watch::Receiver<Mood>,
    ready: mpsc::Sender<io::Result<Wire>>,
) {
    // Renewed when the mood changes: what was open is cut.
    let mut cut = CancellationToken::new();
    loop {
        let tcp = tokio::select! {
            accepted = listener.accept() => accepted.unwrap().0,
            changed = mood.changed() => {
                std::mem::take(&mut cut).cancel();
                if changed.is_err() {
                    return;
                }
                continue;
            }
        };
        let now = *mood.borrow();
        match now {
            Mood::Gone => drop(tcp),
            Mood::Deaf => {
                let cut = cut.clone();
                tokio::spawn(async move {
                    cut.cancelled().await;
                    drop(tcp);
                });
            }
            Mood::Awake => {
                let (acceptor, ready, cut) = (acceptor.clone(), ready.clone(), cut.child_token());
                tokio::spawn(async move {
                    if let Ok(tls) = acceptor.accept(tcp).await {
                        let _ = ready.send(Ok(Wire::new(tls, cut))).await;
                    }
                });
            }
        }
    }
}

/// A connection that fails once it is cut.
struct Wire {
    tls: TlsStream<TcpStream>,
    cut: CancellationToken,
    is_cut: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl Wire {
    fn new(tls: TlsStream<TcpStream>, cut: CancellationToken) -> Self {
        Self {
            tls,
            is_cut: Box::pin(cut.clone().cancelled_owned()),
            cut,
        }
    }
}

impl Connected for Wire {
    type ConnectInfo = CancellationToken;

    fn connect_info(&self) -> CancellationToken {
        self.cut.clone()
    }
}

impl AsyncRead for Wire {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.is_cut.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.tls).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.cut.is_cancelled() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
