//! A federation inside the test process: real nodes on loopback, found by a real name server, trusting a
//! throw-away authority. Each node has a runtime of its own, so that dropping the runtime is a crash.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use skiserver::{
    address::Domain,
    client::Door,
    clock::Clock,
    config::Config,
    lab::{
        ca::{Authority, LeafRequest},
        dns::DnsServer,
        node::{self, Doors, NodeFolder},
        ports,
    },
    limits::Limits,
    node::Node,
    server::{self, Running, StartOptions},
    store::Faults,
    telemetry,
};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

pub(crate) mod raw;
pub(crate) mod refusals;
pub(crate) mod scripted;
pub(crate) mod snapshot;
pub(crate) mod stream;
pub(crate) mod user;
pub(crate) mod wait;

mod proof;

pub(crate) use refusals::{Spoil, answer, assert_code, refuses_each};
pub(crate) use scripted::{Act, Scripted};
pub(crate) use stream::OpenStream;
pub(crate) use user::{User, establish};

/// Longer than anything here takes on the slowest machine. Who waits in vain for so long panics and says for what.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Resolvers keep what the lab's name server says for this long.
const TTL_SECONDS: u32 = 5;

/// A running federation. Dropping it ends everything in it.
pub(crate) struct Lab {
    /// The time of all nodes; tests turn it.
    pub(crate) clock: Clock,
    /// The only name server.
    pub(crate) dns: DnsServer,
    /// Whom all nodes trust.
    pub(crate) authority: Authority,
    nodes: Mutex<BTreeMap<String, Place>>,
    /// Runs what is no node: the name server and scripted peers.
    ground: Option<Runtime>,
    /// The last field, so that it goes when nobody writes any more.
    folder: TempDir,
}

/// One node: what stays the same from one life to the next, and its life, if it has one.
struct Place {
    domain: Domain,
    folder: NodeFolder,
    config: Config,
    door: Door,
    up: Option<Up>,
}

/// The life of a node.
struct Up {
    runtime: Runtime,
    running: Running,
    faults: Arc<Faults>,
}

impl Lab {
    /// Starts a node for each domain, with bounds that suit tests.
    pub(crate) async fn start<const N: usize>(domains: [&str; N]) -> Self {
        Self::configured(domains, |_| {}).await
    }

    /// Starts a node for each domain, with a configuration that `change` had the last word on.
    pub(crate) async fn configured<const N: usize>(
        domains: [&str; N],
        change: impl Fn(&mut Config),
    ) -> Self {
        prepare_process();
        let ground = runtime("ground", 1);
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let dns = ground.spawn(DnsServer::start(anywhere)).await.unwrap();
        let lab = Self {
            clock: Clock::default(),
            dns: dns.unwrap(),
            authority: Authority::generate("test authority").unwrap(),
            nodes: Mutex::default(),
            ground: Some(ground),
            folder: tempfile::tempdir().unwrap(),
        };
        for domain in domains {
            lab.add(domain, &change).await;
        }
        lab
    }

    /// Adds a node to a running lab.
    pub(crate) async fn add(&self, domain: &str, change: impl Fn(&mut Config)) {
        let name = Domain::parse(domain).unwrap();
        let [client, peer, admin] = free_ports();
        let doors = Doors {
            client,
            peer,
            admin,
        };
        let folder = NodeFolder::new(self.folder.path().join(domain));
        folder
            .prepare(&name, &doors, self.dns.address(), &self.authority)
            .unwrap();
        self.name(&name, peer);
        let mut config = Config::load(&folder.config()).unwrap();
        suit_tests(&mut config);
        change(&mut config);
        let authority = self.authority.certificate_pem();
        let door = Door::new(name.clone(), client, authority, folder.auth_codes()).unwrap();
        let place = Place {
            domain: name,
            folder,
            config,
            door,
            up: None,
        };
        self.places().insert(domain.to_owned(), place);
        self.start_node(domain).await;
    }

    /// Tells the name server where a domain's peer door is.
    pub(crate) fn name(&self, domain: &Domain, peer: SocketAddr) {
        let zone = node::zone(domain, peer, TTL_SECONDS).unwrap();
        self.dns.set(domain, &zone).unwrap();
    }

    /// Starts a node that was stopped or killed: at the same ports, on the same database.
    pub(crate) async fn start_node(&self, domain: &str) {
        let config = self.with(domain, |place| {
            assert!(place.up.is_none(), "{domain} is already running");
            place.config.clone()
        });
        let faults = Arc::<Faults>::default();
        let options = StartOptions {
            clock: self.clock.clone(),
            faults: Arc::clone(&faults),
        };
        let runtime = runtime(domain, 2);
        let handle = runtime.handle().clone();
        let start = move || handle.block_on(server::start(config, options));
        let running = tokio::task::spawn_blocking(start).await.unwrap();
        let up = Up {
            running: running.unwrap_or_else(|error| panic!("{domain} does not start: {error:?}")),
            runtime,
            faults,
        };
        self.with(domain, |place| place.up = Some(up));
    }

    /// Ends a node as a power cut does: nothing is drained, nothing is said, and what was on its way is lost.
    pub(crate) async fn kill(&self, domain: &str) {
        let up = self.take_down(domain);
        tokio::task::spawn_blocking(|| up.end()).await.unwrap();
    }

    /// Ends a node as a signal does: it drains.
    pub(crate) async fn stop(&self, domain: &str) {
        let Up {
            runtime, running, ..
        } = self.take_down(domain);
        runtime.spawn(running.stop()).await.unwrap();
        tokio::task::spawn_blocking(|| runtime.shutdown_timeout(PATIENCE))
            .await
            .unwrap();
    }

    fn take_down(&self, domain: &str) -> Up {
        let up = self.with(domain, |place| place.up.take());
        up.unwrap_or_else(|| panic!("{domain} is not running"))
    }

    /// Changes a node's configuration. Trust and policy hold at once, everything else from its next start.
    pub(crate) fn reconfigure(&self, domain: &str, change: impl FnOnce(&mut Config)) {
        self.with(domain, |place| {
            change(&mut place.config);
            if let Some(up) = &place.up {
                up.running.reload(Some(&place.config));
            }
        });
    }

    /// Gives a node another certificate, which it uses at once.
    pub(crate) fn renew(&self, domain: &str, authority: &Authority, request: &LeafRequest) {
        self.with(domain, |place| {
            place.folder.renew(authority, request).unwrap();
            if let Some(up) = &place.up {
                assert!(up.running.reload(None), "the new certificate is in use");
            }
        });
    }

    /// A running node from the inside.
    pub(crate) fn node(&self, domain: &str) -> Arc<Node> {
        self.up(domain, |up| Arc::clone(&up.running.node))
    }

    /// What breaks in a running node on purpose.
    pub(crate) fn faults(&self, domain: &str) -> Arc<Faults> {
        self.up(domain, |up| Arc::clone(&up.faults))
    }

    /// The client door of a node.
    pub(crate) fn door(&self, domain: &str) -> Door {
        self.with(domain, |place| place.door.clone())
    }

    /// What a node starts with: where its doors are, its limits.
    pub(crate) fn config(&self, domain: &str) -> Config {
        self.with(domain, |place| place.config.clone())
    }

    /// The database of a node, running or not.
    pub(crate) fn database(&self, domain: &str) -> PathBuf {
        self.with(domain, |place| place.folder.database())
    }

    /// Where a node's files are.
    pub(crate) fn folder(&self, domain: &str) -> NodeFolder {
        self.with(domain, |place| place.folder.clone())
    }

    /// The runtime of what is no node.
    pub(crate) fn ground(&self) -> &Runtime {
        self.ground.as_ref().unwrap()
    }

    fn places(&self) -> MutexGuard<'_, BTreeMap<String, Place>> {
        self.nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with<T>(&self, domain: &str, look: impl FnOnce(&mut Place) -> T) -> T {
        let mut places = self.places();
        let place = places.get_mut(domain);
        look(place.unwrap_or_else(|| panic!("{domain} is not in this lab")))
    }

    fn up<T>(&self, domain: &str, look: impl FnOnce(&Up) -> T) -> T {
        self.with(domain, |place| {
            let up = place.up.as_ref();
            look(up.unwrap_or_else(|| panic!("{} is not running", place.domain)))
        })
    }
}

impl Up {
    /// Must not be called on a runtime's thread.
    fn end(self) {
        // Tasks are dropped wherever they are; the node itself goes after everything that could use it.
        self.runtime.shutdown_timeout(PATIENCE);
        drop(self.running);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let places = std::mem::take(&mut *self.places());
        let ups: Vec<Up> = places.into_values().filter_map(|place| place.up).collect();
        let ground = self.ground.take();
        // A runtime can't be dropped on the thread of another one.
        let end = std::thread::spawn(move || {
            ups.into_iter().for_each(Up::end);
            ground.map(|ground| ground.shutdown_timeout(PATIENCE))
        });
        let _ = end.join();
    }
}

/// Short waits, so that nobody sleeps; patience for slow machines; cheap passwords.
fn suit_tests(config: &mut Config) {
    config.store.readers = 2;
    let limits = &mut config.limits;
    limits.drain_seconds = 5;
    suit_slow_machines(limits);
}

/// The bounds of a real node, but for waits and costs that tests can't afford.
pub(crate) fn real_limits() -> Limits {
    let mut limits = Limits::default();
    suit_slow_machines(&mut limits);
    limits
}

fn suit_slow_machines(limits: &mut Limits) {
    limits.stream_settle_ms = 5;
    limits.transaction_ms = 5_000;
    limits.handshake_ms = 15_000;
    limits.argon2_memory_kib = 8;
    limits.argon2_passes = 1;
}

fn runtime(name: &str, threads: usize) -> Runtime {
    Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name(name)
        .enable_all()
        .build()
        .unwrap()
}

/// Ports that no other lab of this process was given, so that a node finds its own again after a crash.
pub(crate) fn free_ports<const N: usize>() -> [SocketAddr; N] {
    static GIVEN: Mutex<BTreeSet<SocketAddr>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let taken: Vec<SocketAddr> = given.iter().copied().collect();
    let fresh = ports::free(N, &taken).unwrap();
    given.extend(&fresh);
    fresh.try_into().unwrap()
}

/// What is done once in a process: the provider of TLS, metrics, and logs that libtest shows when a test fails.
fn prepare_process() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let _ = telemetry::render(); // the first use installs the recorder
    let filter = std::env::var("SUITE_LOG").unwrap_or_else(|_| "error".to_owned());
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_test_writer()
        .try_init();
}
