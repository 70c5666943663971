//! Builds a node, opens its doors, starts its workers and stops them in order. Tests start it too.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::net::TcpListener;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Server;

use crate::{
    address::Home,
    clock::Clock,
    config::Config,
    delivery::live::Live,
    doors::{
        admin,
        listener::{DoorKind, serve_door},
        peer::PeerDoor,
        stream::StreamDoor,
        user::{BackupDoor, UserDoor},
    },
    error::{Error, Result},
    identity::Identity,
    limits::{self, Limits},
    node::Node,
    peers::{Peers, discovery::Discovery},
    proto::{
        self,
        skiserver::{
            e2ee_backup_service_server::E2eeBackupServiceServer,
            e2ee_bidi_service_server::E2eeBidiServiceServer,
            e2ee_s2s_service_server::E2eeS2sServiceServer,
            e2ee_unary_service_server::E2eeUnaryServiceServer,
        },
    },
    rates::{Budgets, Rates},
    signing::Signer,
    store::{Faults, Store, StoreOptions, Wake, Wakes},
};

/// What a test may replace.
#[derive(Debug, Clone, Default)]
pub struct StartOptions {
    /// Time.
    pub clock: Clock,
    /// What crash tests break.
    pub faults: Arc<Faults>,
}

/// A node that takes calls.
pub struct Running {
    /// The node.
    pub node: Arc<Node>,
    /// Where the client door listens.
    pub client: SocketAddr,
    /// Where the peer door listens.
    pub peer: SocketAddr,
    /// Where the admin door listens.
    pub admin: SocketAddr,
    identity: Arc<Identity>,
    discovery: Arc<Discovery>,
    kill: CancellationToken,
    doors: TaskTracker,
    /// Ends when the connections of the TLS doors are closed.
    served: TaskTracker,
}

/// Passes commits on to streams and senders.
struct Bell {
    live: Arc<Live>,
    peers: Arc<Peers>,
    tokens: Arc<crate::doors::auth::Tokens>,
}

impl Wakes for Bell {
    fn wake(&self, wake: Wake) {
        self.tokens.wake(&wake);
        self.live.wake(&wake);
        self.peers.wake(&wake);
    }
}

/// Opens the store and the doors and starts the workers. Returns once the node takes calls.
pub async fn start(config: Config, options: StartOptions) -> Result<Running> {
    let config = Arc::new(config);
    let limits = Arc::new(config.limits.clone());
    let (tasks, doors) = (TaskTracker::new(), TaskTracker::new());
    let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
    let identity = Arc::new(Identity::load(&config, &options.clock).map_err(Error::internal)?);
    let store_options = StoreOptions {
        path: config.store.path.clone(),
        readers: config.store.readers,
        limits: Arc::clone(&limits),
        clock: options.clock.clone(),
        faults: options.faults,
    };
    // The writer ends when the store is closed, after everything else.
    let store = Store::open(store_options, &doors).await?;
    let home = Home::new(config.domain()?);
    let discovery = Arc::new(Discovery::new(&config, &options.clock).map_err(Error::internal)?);
    let signer = Signer::load(&store, &home, config.operator(), &options.clock).await?;
    let node = Arc::new(Node {
        live: Arc::new(Live::new(limits.streams_max)),
        peers: Arc::new(Peers::new(
            &home,
            Arc::clone(&identity),
            Arc::clone(&discovery),
            &options.clock,
            &limits,
            &doors,
            &kill,
        )?),
        rates: Rates::new(&limits),
        budgets: Budgets::new(limits.requests_per_peer_max),
        codes: crate::gateways::CodeGateway::new(&config)?,
        passwords: crate::passwords::Passwords::new(&limits)?,
        tokens: Arc::default(),
        clock: options.clock,
        home,
        config,
        limits,
        store,
        signer,
        tasks,
        stop,
    });
    node.store.on_commit(Arc::new(Bell {
        live: Arc::clone(&node.live),
        peers: Arc::clone(&node.peers),
        tokens: Arc::clone(&node.tokens),
    }));
    let client = listen(node.config.doors.client).await?;
    let peer = listen(node.config.doors.peer).await?;
    let admin = listen(node.config.doors.admin).await?;
    let running = Running {
        client: client.local_addr().map_err(Error::internal)?,
        peer: peer.local_addr().map_err(Error::internal)?,
        admin: admin.local_addr().map_err(Error::internal)?,
        node,
        identity,
        discovery,
        kill,
        doors,
        served: TaskTracker::new(),
    };
    // Lanes know what waits before the first request could overtake it.
    running.start_workers().await?;
    running.open_client_door(client)?;
    running.open_peer_door(peer).await;
    running.open_admin_door(admin);
    Ok(running)
}

async fn listen(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .map_err(|error| Error::internal(format!("can't listen on {address}: {error}")))
}

/// A transport with the bounds that every door has.
fn transport(limits: &Limits) -> Server {
    let beat = Duration::from_secs(limits.heartbeat_seconds.into());
    Server::builder()
        .max_concurrent_streams(limits.requests_per_connection_max)
        .http2_keepalive_interval(Some(beat))
        .http2_keepalive_timeout(Some(beat))
}

/// Peers dial anew at an age, so that certificates are shown again; users' streams may stay for ever. Without a
/// grace: tonic would cut connections then, instead of asking for a new one.
fn peer_transport(limits: &Limits) -> Server {
    let age = Duration::from_mins(limits.connection_age_minutes.into());
    transport(limits).max_connection_age(age)
}

impl Running {
    fn open_client_door(&self, listener: TcpListener) -> Result<()> {
        let node = &self.node;
        let bytes_max = node.limits.request_bytes_max;
        let unary = E2eeUnaryServiceServer::new(UserDoor(Arc::clone(node)))
            .max_decoding_message_size(bytes_max);
        let backup = E2eeBackupServiceServer::new(BackupDoor(Arc::clone(node)))
            .max_decoding_message_size(bytes_max);
        let bidi = E2eeBidiServiceServer::new(StreamDoor(Arc::clone(node)))
            .max_decoding_message_size(bytes_max);
        let (health, service) = tonic_health::server::health_reporter();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .build_v1()
            .map_err(Error::internal)?;
        let routes = transport(&node.limits)
            .add_service(service)
            .add_service(reflection)
            .add_service(unary)
            .add_service(backup)
            .add_service(bidi);
        self.doors.spawn(async move {
            health
                .set_serving::<E2eeUnaryServiceServer<UserDoor>>()
                .await;
            health
                .set_serving::<E2eeBidiServiceServer<StreamDoor>>()
                .await;
            health
                .set_serving::<E2eeBackupServiceServer<BackupDoor>>()
                .await;
        });
        self.serve(DoorKind::Client, listener, routes);
        Ok(())
    }

    async fn open_peer_door(&self, listener: TcpListener) {
        let node = &self.node;
        let bytes_max = node.limits.request_bytes_max;
        let s2s = E2eeS2sServiceServer::new(PeerDoor(Arc::clone(node)))
            .max_decoding_message_size(bytes_max);
        let (health, service) = tonic_health::server::health_reporter();
        health.set_serving::<E2eeS2sServiceServer<PeerDoor>>().await;
        // A peer that asks our health proves itself with it, and what waits for it is tried.
        let known = Arc::clone(node);
        let service = tonic::service::interceptor::InterceptedService::new(
            service,
            move |request: tonic::Request<()>| {
                crate::doors::certificate::domain(&known, request.metadata(), request.extensions())
                    .map(|_| request)
                    .map_err(|_| crate::reply::denied("the certificate does not prove the domain"))
            },
        );
        let routes = peer_transport(&node.limits)
            .add_service(service)
            .add_service(s2s);
        self.serve(DoorKind::Peer, listener, routes);
    }

    fn serve(
        &self,
        kind: DoorKind,
        listener: TcpListener,
        routes: tonic::transport::server::Router,
    ) {
        let node = &self.node;
        let (stop, kill) = (node.stop.clone(), self.kill.clone());
        let identity = Arc::clone(&self.identity);
        let incoming = serve_door(
            listener,
            kind,
            identity,
            &node.limits,
            &self.doors,
            stop.clone(),
            kill,
        );
        self.served.spawn(async move {
            if let Err(error) = routes
                .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
                .await
            {
                tracing::error!(%error, ?kind, "a door closed");
            }
        });
    }

    fn open_admin_door(&self, listener: TcpListener) {
        let routes = admin::router(Arc::clone(&self.node));
        let stop = self.kill.clone().cancelled_owned();
        self.doors.spawn(async move {
            if let Err(error) = axum::serve(listener, routes)
                .with_graceful_shutdown(stop)
                .await
            {
                tracing::error!(%error, "the admin door closed");
            }
        });
    }

    async fn start_workers(&self) -> Result<()> {
        let node = &self.node;
        node.tasks
            .spawn(Arc::clone(&self.identity).watch(node.stop.clone()));
        node.tasks
            .spawn(crate::store::retention::run(Arc::clone(node)));
        node.tasks
            .spawn(crate::telemetry::upkeep(node.stop.clone()));
        node.tasks.spawn(sweep_rates(Arc::clone(node)));
        crate::peers::start(node).await
    }

    /// Reads certificates, keys, authorities and revocation lists again, and the federation's settings from
    /// `config` if one is given. What can't be used leaves the old in use.
    pub fn reload(&self, config: Option<&Config>) -> bool {
        let Some(config) = config else {
            return self.identity.reload();
        };
        if let Err(problem) = self.discovery.configure(config) {
            tracing::error!(%problem, "the configuration can't be used; what was loaded before stays in use");
            return false;
        }
        self.identity.configure(config).unwrap_or_else(|problem| {
            tracing::error!(%problem, "the configuration can't be used; what was loaded before stays in use");
            false
        })
    }

    /// Drains: no new connections, streams end, calls under way finish within `drain_seconds`, then the store
    /// closes. Everything that was answered is on disk before this returns.
    pub async fn stop(self) {
        let grace = Duration::from_secs(self.node.limits.drain_seconds.into());
        self.node.stop.cancel();
        self.node.tasks.close();
        if tokio::time::timeout(grace, self.node.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("calls were still under way at the end of the drain");
        }
        // Answers and reasons are on their way; a connection closes once they are through.
        self.served.close();
        let flush = Duration::from_millis(limits::DRAIN_FLUSH_MS);
        let _ = tokio::time::timeout(flush, self.served.wait()).await;
        self.kill.cancel();
        self.node.store.close().await;
        self.doors.close();
        let closed = async { tokio::join!(self.doors.wait(), self.served.wait()) };
        if tokio::time::timeout(grace, closed).await.is_err() {
            tracing::warn!("connections were still open at the end of the drain");
        }
    }
}

async fn sweep_rates(node: Arc<Node>) {
    let pause = Duration::from_mins(1);
    while node
        .stop
        .run_until_cancelled(node.clock.sleep(pause))
        .await
        .is_some()
    {
        node.rates.sweep();
        node.budgets.sweep();
    }
}
