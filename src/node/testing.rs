//! A node without doors on a database of its own, for tests of operations.

use crate::testing::Must as _;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    address::{Domain, Home},
    clock::Clock,
    config::Config,
    delivery::live::Live,
    doors::auth::Tokens,
    gateways::CodeGateway,
    node::Node,
    passwords::Passwords,
    peers::{
        Peers,
        wire::{PeerError, Wire},
    },
    rates::{Budgets, Rates},
    signing::Signer,
    store::{Store, StoreOptions, Wake, Wakes},
};

/// A node of `a.test`; its files go when this is dropped.
pub(crate) struct Bench {
    pub(crate) node: Node,
    folder: tempfile::TempDir,
}

/// Commits reach caches and streams, as on a real node.
struct Bell {
    live: Arc<Live>,
    peers: Arc<Peers>,
    tokens: Arc<Tokens>,
}

impl Wakes for Bell {
    fn wake(&self, wake: Wake) {
        self.tokens.wake(&wake);
        self.live.wake(&wake);
        self.peers.wake(&wake);
    }
}

impl std::ops::Deref for Bench {
    type Target = Node;
    fn deref(&self) -> &Node {
        &self.node
    }
}

impl Bench {
    /// A node with the lab's costs and codes in a file.
    pub(crate) async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// The same, after a change to its configuration.
    pub(crate) async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().must();
        let mut config: Config = toml::from_str(
            r#"
            domain = "a.test"
            tls = { certificate = "unused.pem", key = "unused.key" }
            codes = { delivery = "file", file = { path = "" } }
            limits = { argon2_memory_kib = 8, argon2_passes = 1, account_calls_per_address_minute = 10000 }
            "#,
        )
        .must();
        config.codes.file.as_mut().must().path = folder.path().join("codes.jsonl");
        change(&mut config);
        let (config, limits) = (Arc::new(config.clone()), Arc::new(config.limits));
        let (home, clock) = (Home::new(config.domain().must()), Clock::default());
        let tasks = TaskTracker::new();
        let options = StoreOptions {
            path: folder.path().join("node.db"),
            readers: 2,
            limits: Arc::clone(&limits),
            clock: clock.clone(),
            faults: Arc::default(),
        };
        let store = Store::open(options, &tasks).await.must();
        let signer = Signer::load(&store, &home, config.operator(), &clock)
            .await
            .must();
        let node = Node {
            codes: CodeGateway::new(&config).must(),
            passwords: Passwords::new(&limits).must(),
            rates: Rates::new(&limits),
            budgets: Budgets::new(limits.requests_per_peer_max),
            tokens: Arc::default(),
            live: Arc::new(Live::new(limits.streams_max)),
            peers: Arc::new(Peers::over(Arc::new(NoWire), &clock, &limits)),
            stop: CancellationToken::new(),
            home,
            config,
            limits,
            clock,
            store,
            signer,
            tasks,
        };
        node.store.on_commit(Arc::new(Bell {
            live: Arc::clone(&node.live),
            peers: Arc::clone(&node.peers),
            tokens: Arc::clone(&node.tokens),
        }));
        Self { node, folder }
    }

    /// The newest code for an authenticator, spelled as it was asked for.
    pub(crate) fn code(&self, authenticator: &str) -> Option<String> {
        let text = std::fs::read_to_string(self.folder.path().join("codes.jsonl")).ok()?;
        let lines = text.lines().rev();
        lines
            .map(|line| serde_json::from_str::<serde_json::Value>(line).must())
            .find(|line| line["authenticator"] == authenticator)
            .map(|line| line["code"].as_str().must().to_owned())
    }
}

/// No other domain can be reached.
struct NoWire;

impl Wire for NoWire {
    fn may_talk(&self, _: &Domain) -> bool {
        true
    }

    fn call<'a>(
        &'a self,
        _: &'a Domain,
        _: &'a str,
        _: Bytes,
        _: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        let silent = PeerError::Silent("there is no wire".to_owned());
        Box::pin(std::future::ready(Err(silent)))
    }

    fn tidy(&self, _: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(std::future::ready(()))
    }
}
