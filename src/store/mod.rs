//! All the SQL, one file per aggregate. This file opens the database, owns its one writer and lends readers;
//! it holds no query. No decisions, no network.

use std::{
    path::PathBuf,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use sqlx::{
    SqlitePool,
    sqlite::{
        SqliteAutoVacuum, SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions,
        SqliteSynchronous,
    },
};
use tokio::sync::{mpsc, oneshot};

use crate::{
    address::Domain,
    clock::Clock,
    error::{Error, Result},
    limits::{FREE_PAGES_KEPT, Limits},
};

mod append;
mod batch;
pub mod cache;
pub mod codes;
pub mod contacts;
pub mod devices;
pub mod friends;
pub mod invitations;
pub mod keys;
pub mod mailbox;
pub mod outbox;
pub mod peers;
pub mod retention;
pub mod server_keys;
pub mod sessions;
pub(crate) mod sql;
pub mod tokens;
mod tx;
pub mod users;
mod writer;
mod writes;

pub use sql::{Conn, Row, Value};
pub use tx::Tx;
pub use writes::{Append, Appended, Body, InviteRecord, Mail, Once, Pair, Parcel, Recipient};

use batch::Merge;
use writer::{Job, Writer};

/// What the writer tells after a commit is on disk. Losing one loses no message: streams and senders read tables.
#[derive(Debug, Default)]
pub struct Wake {
    /// Devices that got mail.
    pub mailboxes: Vec<i64>,
    /// Messages that a device consumed.
    pub consumed: Vec<(i64, i64)>,
    /// Devices whose streams and cached tokens end, because the device, its tokens or its keys changed.
    pub ended: Vec<i64>,
    /// Places of the outbox that are on disk.
    pub stored: Vec<(Domain, String, i64)>,
    /// What must live until the commit: places in lanes that are given back if it fails.
    pub held: Vec<Box<dyn std::any::Any + Send + Sync>>,
    /// The outcome of a commit was unknown and the database was opened again: memory must be read anew.
    pub reopened: bool,
}

impl Wake {
    /// Adds what another part of the same transaction changed.
    pub fn merge(&mut self, other: Self) {
        self.mailboxes.extend(other.mailboxes);
        self.consumed.extend(other.consumed);
        self.ended.extend(other.ended);
        self.stored.extend(other.stored);
        self.held.extend(other.held);
        self.reopened |= other.reopened;
    }

    fn is_empty(&self) -> bool {
        self.mailboxes.is_empty()
            && self.consumed.is_empty()
            && self.ended.is_empty()
            && self.stored.is_empty()
            && !self.reopened
    }
}

/// Who is woken after a commit. Must not block.
pub trait Wakes: Send + Sync {
    /// Called by the writer, once per commit, before the operations of that commit are answered.
    fn wake(&self, wake: Wake);
}

/// What crash tests break on purpose. In a running node nothing is ever set.
#[derive(Debug, Default)]
pub struct Faults {
    /// The next commit reports an error, though it is on disk or not.
    pub fail_commit: AtomicBool,
    /// Commits succeed but nobody is woken or answered, as if the process ended in between.
    pub silent: AtomicBool,
    /// The next merged batch fails once before its commit.
    pub fail_batch: AtomicBool,
}

/// How a store is opened.
pub struct StoreOptions {
    /// The database file; it is made if it does not exist.
    pub path: PathBuf,
    /// Connections that only read.
    pub readers: u32,
    /// Bounds of mailboxes and transactions.
    pub limits: Arc<Limits>,
    /// Time.
    pub clock: Clock,
    /// For crash tests.
    pub faults: Arc<Faults>,
}

/// The database. Copies share one writer and one pool of readers.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    jobs: mpsc::Sender<Job>,
    readers: SqlitePool,
    wakes: Arc<OnceLock<Arc<dyn Wakes>>>,
    limits: Arc<Limits>,
}

/// Jobs that wait for the writer; beyond that, callers wait.
const JOBS_MAX: usize = 4_096;

impl Store {
    /// Opens the database, brings its tables up to date and starts the writer on `tracker`. A database written
    /// by a newer version is refused.
    pub async fn open(
        options: StoreOptions,
        tracker: &tokio_util::task::TaskTracker,
    ) -> Result<Self> {
        let shared = SqliteConnectOptions::new()
            .filename(&options.path)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(5))
            .statement_cache_capacity(256)
            .pragma("temp_store", "MEMORY");
        // What only the writer may set: each of these can write to the file.
        let connect = (shared.clone())
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .auto_vacuum(SqliteAutoVacuum::Incremental)
            .pragma("journal_size_limit", "67108864");
        let mut conn = Conn::open(&connect).await?;
        migrate(&mut conn).await?;
        let readers = SqlitePoolOptions::new()
            .max_connections(options.readers)
            .min_connections(options.readers)
            .acquire_timeout(Duration::from_secs(5))
            .idle_timeout(None)
            .max_lifetime(None)
            .connect_with(shared.read_only(true))
            .await
            .map_err(Error::internal)?;
        let (jobs, inbox) = mpsc::channel(JOBS_MAX);
        let wakes = Arc::new(OnceLock::new());
        let writer = Writer::new(conn, connect, &options, Arc::clone(&wakes));
        tracker.spawn(writer.run(inbox));
        Ok(Self {
            inner: Arc::new(Inner {
                jobs,
                readers,
                wakes,
                limits: options.limits,
            }),
        })
    }

    /// Names who is woken after commits. Only the first call counts.
    pub fn on_commit(&self, wakes: Arc<dyn Wakes>) {
        let _ = self.inner.wakes.set(wakes);
    }

    /// Starts a transaction, in its turn on the writer. Between this and the end of the [`Tx`] only store calls
    /// may be awaited: after `transaction_ms` it is rolled back.
    pub async fn begin(&self) -> Result<Tx> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Begin(reply)).await?;
        answer.await.map_err(|_| STOPPED)?
    }

    /// Queues messages and records, merged with what others write at the same time. Once it returns `Ok`,
    /// everything in `append` is on disk; otherwise nothing of it is.
    pub async fn append(&self, append: Append) -> Result<Appended> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Merge(Merge::Append(Box::new(append), reply)))
            .await?;
        answer.await.map_err(|_| STOPPED)?
    }

    /// Deletes a message that its device consumed; `false` if it is not there.
    pub async fn consume(&self, device_key: i64, msg_t: i64, nonce: i64) -> Result<bool> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Merge(Merge::Consume(
            [device_key, msg_t, nonce],
            reply,
        )))
        .await?;
        answer.await.map_err(|_| STOPPED)?
    }

    /// Counts one more stream on which the device received these messages without consuming them. Those that
    /// reached the limit are dropped.
    pub async fn received(&self, device_key: i64, msg_ts: Vec<i64>) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Merge(Merge::Received(device_key, msg_ts, reply)))
            .await?;
        answer.await.map_err(|_| STOPPED)?
    }

    /// Deletes a request that its peer answered.
    pub async fn answered(&self, place: i64) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Merge(Merge::Answered(place, reply)))
            .await?;
        answer.await.map_err(|_| STOPPED)?
    }

    /// Reads what is committed.
    pub async fn rows(
        &self,
        sql: &'static str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<Row>> {
        sql::read(&self.inner.readers, sql, values).await
    }

    /// Reads one row, if there is one.
    pub async fn row(
        &self,
        sql: &'static str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Option<Row>> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Gives free pages back to the disk and carries the log over into the database file, a bounded amount at
    /// a time, between two batches.
    pub async fn maintain(&self) -> Result<()> {
        let (reply, answer) = oneshot::channel();
        self.submit(Job::Maintain(reply)).await?;
        answer.await.map_err(|_| STOPPED)?
    }

    /// The bounds that this store keeps.
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    /// Ends the writer after what it was given, and the readers.
    pub async fn close(&self) {
        let (reply, done) = oneshot::channel();
        if self.submit(Job::Close(reply)).await.is_ok() {
            let _ = done.await;
        }
        self.inner.readers.close().await;
    }

    async fn submit(&self, job: Job) -> Result<()> {
        self.inner.jobs.send(job).await.map_err(|_| STOPPED)
    }
}

const STOPPED: Error = Error::Busy("the store is closing");
const UNKNOWN: Error = Error::Busy("the store could not confirm the write");

async fn migrate(conn: &mut Conn) -> Result<()> {
    let known = sqlx::migrate!("src/store/migrations/sqlite");
    known.run(conn.raw()).await.map_err(|error| match error {
        sqlx::migrate::MigrateError::VersionMissing(version) => Error::internal(format!(
            "the database has migration {version}, which this version does not know: it was written by a newer skiserver"
        )),
        other => Error::internal(other),
    })
}

async fn maintain(conn: &mut Conn) -> Result<()> {
    let free = number(conn, "PRAGMA freelist_count", 0).await?;
    metrics::gauge!("skiserver_store_free_pages").set(gauge(free));
    if free > FREE_PAGES_KEPT {
        conn.execute("PRAGMA incremental_vacuum(1024)", []).await?;
    }
    // Passive: it waits for no reader and blocks no writer; what it can't move it moves the next time.
    let log = number(conn, "PRAGMA wal_checkpoint(PASSIVE)", 1).await?;
    metrics::gauge!("skiserver_store_log_pages").set(gauge(log));
    Ok(())
}

async fn number(conn: &mut Conn, sql: &'static str, column: usize) -> Result<i64> {
    let rows = conn.rows(sql, []).await?;
    rows.first().map_or(Ok(0), |row| row.int(column))
}

fn gauge(pages: i64) -> f64 {
    f64::from(u32::try_from(pages).unwrap_or(u32::MAX))
}

impl Faults {
    fn take(flag: &AtomicBool) -> bool {
        flag.swap(false, Ordering::SeqCst)
    }
}

#[cfg(test)]
pub(crate) mod tests;
