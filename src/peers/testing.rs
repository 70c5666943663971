//! A node on a temporary database whose wire is a test: every call of it comes to the test, which answers.

use crate::testing::Must as _;

use std::{
    collections::HashSet,
    future::Future,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt as _, future::BoxFuture};
use prost::Message as _;
use tokio::sync::{Mutex as AsyncMutex, mpsc, oneshot};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Method, Outgoing, Peers, lock,
    wire::{PeerError, Wire},
};
use crate::{
    address::{Domain, Home},
    clock::Clock,
    config::Config,
    delivery::live::Live,
    error::Result,
    limits::Limits,
    node::Node,
    proto::skissm::ProtoMsg,
    rates::Rates,
    reply::Verdict,
    signing::Signer,
    store::{Append, Faults, Store, StoreOptions, Wake, Wakes, mailbox},
};

/// The device that sends in these tests.
pub(super) const ALICE: &str = "alice@a.test/phone";

const PATIENCE: Duration = Duration::from_secs(30);

const CONFIG: &str = r#"
domain = "a.test"
[tls]
certificate = "node.pem"
key = "node.key"
[codes]
delivery = "file"
file = { path = "codes.jsonl" }
"#;

/// One call on the wire, which waits for its answer.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) domain: String,
    pub(super) path: String,
    pub(super) request: Bytes,
    answer: oneshot::Sender<Result<Bytes, PeerError>>,
}

impl Call {
    pub(super) fn says(&self) -> &str {
        std::str::from_utf8(&self.request).must()
    }

    pub(super) fn ok(self) {
        self.code(200);
    }

    pub(super) fn code(self, code: i32) {
        let msg = "words of the peer".to_owned();
        self.bytes(Verdict { code, msg }.encode_to_vec());
    }

    pub(super) fn bytes(self, bytes: Vec<u8>) {
        self.answer.send(Ok(bytes.into())).must();
    }

    pub(super) fn silence(self) {
        let why = "connection refused".to_owned();
        self.answer.send(Err(PeerError::Silent(why))).must();
    }

    pub(super) fn fail(self) {
        let why = "no such method".to_owned();
        self.answer.send(Err(PeerError::Failed(why))).must();
    }
}

/// The wire. Calls to dead domains are taken and never answered.
pub(super) struct Scripted {
    calls: mpsc::UnboundedSender<Call>,
    pub(super) dead: Mutex<HashSet<Domain>>,
    pub(super) denied: Mutex<HashSet<Domain>>,
}

impl Wire for Scripted {
    fn may_talk(&self, domain: &Domain) -> bool {
        !lock(&self.denied).contains(domain)
    }

    fn call<'a>(
        &'a self,
        domain: &'a Domain,
        path: &'a str,
        request: Bytes,
        _deadline: Duration,
    ) -> BoxFuture<'a, Result<Bytes, PeerError>> {
        if lock(&self.dead).contains(domain) {
            return std::future::pending().boxed();
        }
        let (answer, answered) = oneshot::channel();
        let call = Call {
            domain: domain.to_string(),
            path: path.to_owned(),
            request,
            answer,
        };
        let _ = self.calls.send(call);
        async move { answered.await.must() }.boxed()
    }

    fn tidy(&self, _: CancellationToken) -> BoxFuture<'static, ()> {
        async {}.boxed()
    }
}

struct Bell {
    peers: Arc<Peers>,
    mail: mpsc::UnboundedSender<i64>,
}

impl Wakes for Bell {
    fn wake(&self, wake: Wake) {
        self.peers.wake(&wake);
        for device in &wake.mailboxes {
            let _ = self.mail.send(*device);
        }
    }
}

/// A node and the ends of what it does.
pub(super) struct Rig {
    pub(super) node: Arc<Node>,
    pub(super) wire: Arc<Scripted>,
    pub(super) faults: Arc<Faults>,
    calls: AsyncMutex<mpsc::UnboundedReceiver<Call>>,
    mail: AsyncMutex<mpsc::UnboundedReceiver<i64>>,
    folder: Arc<tempfile::TempDir>,
}

impl Rig {
    pub(super) async fn new() -> Self {
        Self::with(Limits::default()).await
    }

    pub(super) async fn with(limits: Limits) -> Self {
        let folder = Arc::new(tempfile::tempdir().must());
        let rig = Self::open(folder, Clock::default(), limits).await;
        rig.start().await;
        rig
    }

    /// Without greeting and sweep: these tests sweep by themselves.
    pub(super) async fn without_sweep() -> Self {
        let folder = Arc::new(tempfile::tempdir().must());
        let rig = Self::open(folder, Clock::default(), Limits::default()).await;
        rig.start_sender();
        rig
    }

    pub(super) fn start_sender(&self) {
        self.node
            .tasks
            .spawn(super::sender::run(Arc::clone(&self.node)));
    }

    /// The same database once more, as another start of the node finds it.
    pub(super) async fn again(self) -> Self {
        let rig = self.reopened().await;
        rig.start().await;
        rig
    }

    /// Like [`Rig::again`], but nothing is started.
    pub(super) async fn reopened(self) -> Self {
        self.node.stop.cancel();
        self.node.tasks.close();
        within(self.node.tasks.wait()).await;
        self.node.store.close().await;
        let limits = (*self.node.limits).clone();
        Self::open(Arc::clone(&self.folder), self.node.clock.clone(), limits).await
    }

    pub(super) async fn start(&self) {
        super::start(&self.node).await.must();
    }

    async fn open(folder: Arc<tempfile::TempDir>, clock: Clock, limits: Limits) -> Self {
        let limits = Arc::new(limits);
        let faults = Arc::new(Faults::default());
        let tasks = TaskTracker::new();
        let options = StoreOptions {
            path: PathBuf::from(folder.path()).join("node.db"),
            readers: 2,
            limits: Arc::clone(&limits),
            clock: clock.clone(),
            faults: Arc::clone(&faults),
        };
        let store = Store::open(options, &TaskTracker::new()).await.must();
        let home = Home::new(domain("a.test"));
        let signer = Signer::load(&store, &home, "A", &clock).await.must();
        let (calls, called) = mpsc::unbounded_channel();
        let wire = Arc::new(Scripted {
            calls,
            dead: Mutex::default(),
            denied: Mutex::default(),
        });
        let peers = Arc::new(Peers::over(Arc::clone(&wire) as _, &clock, &limits));
        let (mail, mailed) = mpsc::unbounded_channel();
        store.on_commit(Arc::new(Bell {
            peers: Arc::clone(&peers),
            mail,
        }));
        let config: Config = toml::from_str(CONFIG).must();
        let node = Arc::new(Node {
            home,
            codes: crate::gateways::CodeGateway::new(&config).must(),
            passwords: crate::passwords::Passwords::new(&limits).must(),
            budgets: crate::rates::Budgets::new(limits.requests_per_peer_max),
            tokens: Arc::default(),
            config: Arc::new(config),
            live: Arc::new(Live::new(limits.streams_max)),
            rates: Rates::new(&limits),
            limits,
            clock,
            store,
            peers,
            signer,
            tasks,
            stop: CancellationToken::new(),
        });
        Self {
            node,
            wire,
            faults,
            calls: AsyncMutex::new(called),
            mail: AsyncMutex::new(mailed),
            folder,
        }
    }

    /// The next call on the wire.
    pub(super) async fn call(&self) -> Call {
        let mut calls = self.calls.lock().await;
        within(calls.recv()).await.must()
    }

    /// The next call, which must say this.
    pub(super) async fn hears(&self, says: &str) -> Call {
        let call = self.call().await;
        assert_eq!(call.says(), says);
        call
    }

    /// The next calls, which started side by side, in the order of what they say.
    pub(super) async fn calls<const N: usize>(&self) -> [Call; N] {
        let mut calls = Vec::new();
        while calls.len() < N {
            calls.push(self.call().await);
        }
        calls.sort_by(|a, b| a.says().cmp(b.says()));
        calls.try_into().must()
    }

    /// A call that came already, if one did.
    pub(super) async fn pending_call(&self) -> Option<Call> {
        self.calls.lock().await.try_recv().ok()
    }

    /// Relays in a task of its own, as doors do.
    pub(super) fn relay(&self, lane: &str, says: &str) -> tokio::task::JoinHandle<Result<()>> {
        self.relay_with(outgoing(lane, says), Append::default())
    }

    pub(super) fn relay_with(
        &self,
        outgoing: Outgoing,
        with: Append,
    ) -> tokio::task::JoinHandle<Result<()>> {
        let node = Arc::clone(&self.node);
        let relayed = async move { node.peers.relay(&node, outgoing, with).await };
        self.node.tasks.spawn(relayed)
    }

    /// Stores a request as a transaction does.
    pub(super) async fn store(&self, outgoing: Outgoing) {
        let (parcel, _ticket) = self.node.peers.parcel(&self.node, outgoing).must();
        let append = Append {
            parcels: vec![parcel],
            ..Append::default()
        };
        self.node.store.append(append).await.must();
    }

    /// Has the domain answer once, so that its window is open.
    pub(super) async fn prove(&self, lane: &str) {
        let relayed = self.relay(lane, "proof");
        self.hears("proof").await.ok();
        relayed.await.must().must();
    }

    pub(super) async fn outbox_rows(&self) -> i64 {
        self.number("SELECT COUNT(*) FROM outbox").await
    }

    pub(super) async fn number(&self, sql: &'static str) -> i64 {
        let row = self.node.store.row(sql, []).await.must().must();
        row.int(0).must()
    }

    /// Waits until the outbox holds this many rows.
    pub(super) async fn until_rows(&self, rows: i64) {
        self.until("SELECT COUNT(*) FROM outbox", rows).await;
    }

    /// Waits until a query answers this.
    pub(super) async fn until(&self, sql: &'static str, number: i64) {
        let wait = async {
            while self.number(sql).await != number {
                tokio::task::yield_now().await;
            }
        };
        within(wait).await;
    }

    /// Waits until nothing is under way and the lane backs off, and turns the clock to its next try.
    pub(super) async fn retry(&self, lane: &str) {
        let peer = self.node.peers.peer(&outgoing(lane, "").domain);
        let wait = async {
            loop {
                let now = self.node.clock.now_ms();
                let (why, retry_at) = peer.outlook(lane, now);
                if !peer.is_called() && why != super::peer::IN_TURN {
                    self.node.clock.turn(retry_at - now);
                    return;
                }
                tokio::task::yield_now().await;
            }
        };
        within(wait).await;
    }

    /// Registers Alice's phone; its key.
    pub(super) async fn alice(&self) -> i64 {
        let mut tx = self.node.store.begin().await.must();
        let user = "INSERT INTO users (user_id, folded_id, user_name, created_at) VALUES ('alice', 'alice', 'Alice', 1)";
        tx.execute(user, []).await.must();
        let device = "INSERT INTO devices (user_key, user_id, device_id, e2ee_pack_id, asym_public_key,
            sign_public_key, spk_id, spk_public_key, spk_signature, signing_key_id, password_hash, registered_at,
            active_at) VALUES (1, 'alice', 'phone', 1, x'', x'', 1, x'', x'', 1, '', 1, 1) RETURNING device_key";
        let row = tx.row(device, []).await.must().must();
        tx.commit(Wake::default()).await.must();
        row.int(0).must()
    }

    /// The messages that wait for a device once the next one came in.
    pub(super) async fn next_mail(&self, device_key: i64) -> Vec<ProtoMsg> {
        let mut mail = self.mail.lock().await;
        assert_eq!(within(mail.recv()).await, Some(device_key));
        drop(mail);
        self.mailbox(device_key).await
    }

    pub(super) async fn mailbox(&self, device_key: i64) -> Vec<ProtoMsg> {
        let page = mailbox::page(&self.node.store, device_key, 0, 100).await;
        let messages = page.must().into_iter().map(|m| ProtoMsg::decode(m.body));
        messages.collect::<Result<_, _>>().must()
    }
}

/// Fails a test that would wait for ever.
pub(super) async fn within<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, work).await.must()
}

pub(super) fn domain(name: &str) -> Domain {
    Domain::parse(name).must()
}

/// A message of Alice to the user that a lane names.
pub(super) fn outgoing(lane: &str, says: &str) -> Outgoing {
    let domain_name = lane.split_once('@').map_or("b.test", |(_, domain)| domain);
    Outgoing {
        domain: domain(domain_name),
        lane: lane.to_owned(),
        method: if lane.is_empty() {
            Method::RemoveUserDevice
        } else {
            Method::SendOne2oneMsg
        },
        request: Bytes::copy_from_slice(says.as_bytes()),
        sender: ALICE.to_owned(),
        recipient: lane.to_owned(),
        msg_id: says.to_owned(),
    }
}
