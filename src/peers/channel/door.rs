//! A real peer door for the tests of channels, which tells who called.

use crate::testing::Must as _;

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc},
};
use tokio_stream::Empty;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::{Request, Response, Status, transport::Server};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_check_response::ServingStatus,
    health_server::{Health, HealthServer},
};

use crate::{
    address::Domain,
    doors::listener::{ConnectInfo, DoorKind, Refused, serve_door},
    identity::testing::Folder,
    limits::Limits,
};

/// What a request told the door.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) named: String,
    pub(super) speaks_for: Result<Domain, Refused>,
    pub(super) remote: SocketAddr,
}

/// Answers each call after telling the test about it; one about `slow` waits until it is released.
#[derive(Clone)]
struct Probe {
    seen: mpsc::UnboundedSender<Seen>,
    release: Arc<Notify>,
}

#[tonic::async_trait]
impl Health for Probe {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let info = request.extensions().get::<ConnectInfo>().must();
        let named = request.metadata().get("skiserver-domain").must();
        let named = named.to_str().must().to_owned();
        let peer = info.peer.clone().must();
        let seen = Seen {
            speaks_for: peer.speaks_for(Some(&Domain::parse(&named).must())),
            named,
            remote: info.remote,
        };
        self.seen.send(seen).must();
        if request.get_ref().service == "slow" {
            self.release.notified().await;
        }
        Ok(Response::new(HealthCheckResponse {
            status: ServingStatus::Serving.into(),
        }))
    }

    type WatchStream = Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Ok(Response::new(tokio_stream::empty()))
    }
}

/// A running peer door.
pub(super) struct Door {
    pub(super) address: SocketAddr,
    pub(super) seen: mpsc::UnboundedReceiver<Seen>,
    pub(super) release: Arc<Notify>,
    tracker: TaskTracker,
    stop: CancellationToken,
    kill: CancellationToken,
}

impl Door {
    pub(super) async fn open(node: &Folder, address: &str) -> Self {
        Self::serve(node, address, Server::builder()).await
    }

    pub(super) async fn serve(node: &Folder, address: &str, mut server: Server) -> Self {
        let listener = TcpListener::bind(address).await.must();
        let address = listener.local_addr().must();
        let (sender, seen) = mpsc::unbounded_channel();
        let release = Arc::new(Notify::new());
        let (tracker, stop, kill) = (
            TaskTracker::new(),
            CancellationToken::new(),
            CancellationToken::new(),
        );
        let connections = serve_door(
            listener,
            DoorKind::Peer,
            node.identity(),
            &Limits::default(),
            &tracker,
            stop.clone(),
            kill.clone(),
        );
        let probe = Probe {
            seen: sender,
            release: release.clone(),
        };
        let server = server
            .add_service(HealthServer::new(probe))
            .serve_with_incoming_shutdown(connections, stop.clone().cancelled_owned());
        tracker.spawn(server);
        Self {
            address,
            seen,
            release,
            tracker,
            stop,
            kill,
        }
    }

    pub(super) async fn shut(self) {
        self.stop.cancel();
        self.kill.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }

    pub(super) async fn next(&mut self) -> Seen {
        self.seen.recv().await.must()
    }
}
