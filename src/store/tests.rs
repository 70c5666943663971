//! The store by itself. Here are its builders: a store in a folder of its own, users with devices, what the
//! writer told, and a check of every counter against the rows that it counts.

use crate::testing::Must as _;

use std::{
    path::PathBuf,
    sync::{Arc, Mutex},
};

use bytes::Bytes;
use tokio_util::task::TaskTracker;

use super::{
    Append, Appended, Body, Faults, Mail, Once, Parcel, Recipient, Store, StoreOptions, Value,
    Wake, Wakes, mailbox,
};
use crate::{
    address::{DeviceAddress, Domain, Home, Local, UserAddress},
    clock::Clock,
    error::{Error, Result},
    limits::Limits,
};

mod faults;
mod mailboxes;
mod model;
mod once;
mod outbox;
mod writer;

/// What the writer told, in order.
#[derive(Default)]
pub(crate) struct Told(Mutex<Vec<Wake>>);

impl Wakes for Told {
    fn wake(&self, wake: Wake) {
        self.0.lock().must().push(wake);
    }
}

impl Told {
    pub(crate) fn take(&self) -> Vec<Wake> {
        std::mem::take(&mut *self.0.lock().must())
    }
}

/// A store in a folder of its own.
pub(crate) struct Fixture {
    pub(crate) store: Store,
    pub(crate) clock: Clock,
    pub(crate) told: Arc<Told>,
    faults: Arc<Faults>,
    home: Home,
    path: PathBuf,
    tasks: TaskTracker,
    _folder: tempfile::TempDir,
}

/// One device of the fixture.
#[derive(Clone)]
pub(crate) struct TestDevice {
    pub(crate) key: i64,
    pub(crate) address: Local<DeviceAddress>,
}

const SERVER_KEY: &str =
    "INSERT INTO server_keys (key_id, algorithm, public_key, private_key, certificate,
    created_at) VALUES (1, 0, $1, $1, $1, 0) ON CONFLICT DO NOTHING";
const USER: &str =
    "INSERT INTO users (user_id, folded_id, user_name, created_at) VALUES ($1, $1, $1, 0)
    ON CONFLICT DO NOTHING";
const DEVICE: &str = "INSERT INTO devices (user_key, user_id, device_id, e2ee_pack_id, asym_public_key,
      sign_public_key, spk_id, spk_public_key, spk_signature, signing_key_id, password_hash, registered_at,
      active_at)
    SELECT user_key, user_id, $2, 1, $3, $3, 1, $3, $3, 1, '', 0, 0 FROM users WHERE user_id = $1
    RETURNING device_key";

impl Fixture {
    pub(crate) async fn new() -> Self {
        Self::with(|_| {}).await
    }

    /// A store with other limits. Transactions may take long, because the machine that tests may be slow.
    pub(crate) async fn with(change: impl FnOnce(&mut Limits)) -> Self {
        let folder = tempfile::tempdir().must();
        let path = folder.path().join("store.db");
        let mut limits = Limits {
            transaction_ms: 20_000,
            ..Limits::default()
        };
        change(&mut limits);
        let clock = Clock::default();
        let faults = Arc::new(Faults::default());
        let tasks = TaskTracker::new();
        let options = StoreOptions {
            path: path.clone(),
            readers: 2,
            limits: Arc::new(limits),
            clock: clock.clone(),
            faults: Arc::clone(&faults),
        };
        let store = Store::open(options, &tasks).await.must();
        let told = Arc::new(Told::default());
        store.on_commit(Arc::<Told>::clone(&told));
        Self {
            store,
            clock,
            told,
            faults,
            home: Home::new(Domain::parse("a.test").must()),
            path,
            tasks,
            _folder: folder,
        }
    }

    /// Opens the same file again, as the next process does.
    async fn again(&self) -> Result<Store> {
        let options = StoreOptions {
            path: self.path.clone(),
            readers: 1,
            limits: Arc::default(),
            clock: self.clock.clone(),
            faults: Arc::default(),
        };
        Store::open(options, &self.tasks).await
    }

    /// Registers a device, and its user if there is none.
    pub(crate) async fn device(&self, user: &str, device: &str) -> TestDevice {
        let key = Value::from(&[7_u8; 32]);
        let mut tx = self.store.begin().await.must();
        tx.execute(SERVER_KEY, [key.clone()]).await.must();
        tx.execute(USER, [user.into()]).await.must();
        let row = tx.row(DEVICE, [user.into(), device.into(), key]).await;
        let key = row.must().must().int(0).must();
        tx.commit(Wake::default()).await.must();
        TestDevice {
            key,
            address: self
                .home
                .device_from_columns(user.to_owned(), device.to_owned()),
        }
    }

    /// A device of this domain that is not registered.
    fn stranger(&self, user: &str) -> Local<DeviceAddress> {
        self.home
            .device_from_columns(user.to_owned(), "gone".to_owned())
    }

    /// Runs writes so that the writer finds them all waiting: they are one batch.
    async fn together<T>(&self, writes: Vec<impl Future<Output = T>>) -> Vec<T> {
        let tx = self.store.begin().await.must();
        let count = writes.len();
        let release = async {
            while self.waiting() < count {
                tokio::task::yield_now().await;
            }
            drop(tx);
        };
        // Unconstrained, because a budget that runs out in the middle changes the order.
        let writes = tokio::task::unconstrained(futures_util::future::join_all(writes));
        let (answers, ()) = tokio::join!(writes, release);
        answers
    }

    /// Jobs that the writer has not taken yet.
    fn waiting(&self) -> usize {
        let jobs = &self.store.inner.jobs;
        jobs.max_capacity() - jobs.capacity()
    }

    /// One number from what is committed.
    pub(crate) async fn number(&self, sql: &'static str) -> i64 {
        let row = self.store.row(sql, []).await.must();
        row.must().int(0).must()
    }

    /// The bodies that wait for a device, in order.
    pub(crate) async fn bodies(&self, device: &TestDevice) -> Vec<Bytes> {
        let page = mailbox::page(&self.store, device.key, 0, 10_000).await;
        page.must().into_iter().map(|row| row.body).collect()
    }

    /// Every counter equals what it counts, and no body is kept for nothing.
    pub(crate) async fn assert_consistent(&self) {
        for (what, sql) in CONTRADICTIONS {
            assert_eq!(self.number(sql).await, 0, "{what}");
        }
    }
}

const CONTRADICTIONS: [(&str, &str); 3] = [
    (
        "devices count their mailbox",
        "SELECT COUNT(*) FROM devices d
         WHERE d.queued_rows <> (SELECT COUNT(*) FROM mailbox m WHERE m.device_key = d.device_key)
           OR d.queued_bytes
             <> (SELECT COALESCE(SUM(m.bytes), 0) FROM mailbox m WHERE m.device_key = d.device_key)",
    ),
    (
        "bodies count the rows that refer to them, and go with the last",
        "SELECT COUNT(*) FROM bodies b WHERE b.refs <= 0
           OR b.refs <> (SELECT COUNT(*) FROM mailbox m WHERE m.body_hash = b.body_hash)
             + (SELECT COUNT(*) FROM outbox o WHERE o.body_hash = b.body_hash)",
    ),
    (
        "every row has its body",
        "SELECT (SELECT COUNT(*) FROM mailbox) + (SELECT COUNT(*) FROM outbox) - COALESCE(SUM(refs), 0)
         FROM bodies",
    ),
];

/// A body that only this text has.
pub(crate) fn body(text: &str) -> Body {
    Body::new(Bytes::copy_from_slice(text.as_bytes()))
}

/// A message for one device, which a full mailbox refuses.
pub(crate) fn mail(to: &Local<DeviceAddress>, text: &str) -> Append {
    let mail = Mail {
        to: Recipient::Device(to.clone()),
        kind: 51,
        sender: "alice@a.test/phone".to_owned(),
        body: body(text),
        refusable: true,
    };
    Append {
        mail: vec![mail],
        ..Append::default()
    }
}

/// A request to another domain.
pub(crate) fn parcel(place: i64, domain: &str, text: &str) -> Append {
    let parcel = Parcel {
        place,
        domain: Domain::parse(domain).must(),
        lane: "bob".to_owned(),
        method: 1,
        body: body(text),
        sender: "alice@a.test/phone".to_owned(),
        recipient: "bob@b.test".to_owned(),
        msg_id: "m".to_owned(),
        expires_at: i64::MAX,
    };
    Append {
        parcels: vec![parcel],
        ..Append::default()
    }
}

fn user_of(device: &TestDevice) -> Local<UserAddress> {
    device.address.user()
}

fn once(name: &str, answer: i64) -> Once {
    Once {
        key: crate::signing::sha256(&[name.as_bytes()]),
        answer,
        expires_at: i64::MAX,
    }
}

fn is_busy<T>(result: &Result<T>) -> bool {
    matches!(result, Err(Error::Busy(_)))
}

fn is_new(result: &Result<Appended>) -> bool {
    matches!(result, Ok(Appended::New))
}
