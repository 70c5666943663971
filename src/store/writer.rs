//! The one writer. It drains what waits, runs merged writes in one transaction, commits once, then wakes and
//! answers; between batches it serves whole transactions in their turn.

use std::{
    sync::{Arc, OnceLock, atomic::Ordering},
    time::{Duration, Instant},
};

use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{
    Conn, Faults, StoreOptions, Tx, UNKNOWN, Wake, Wakes,
    batch::{Answers, Batch, Merge, Replies, Reply},
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    limits::Limits,
};

/// What the writer is given, in the order in which it does it.
pub(super) enum Job {
    Merge(Merge),
    Begin(Reply<Tx>),
    Maintain(Reply<()>),
    Close(oneshot::Sender<()>),
}

/// Jobs of one batch; more would only lengthen the wait of the first.
const BATCH_MAX: usize = 512;

/// How often a database that could not be opened again is tried.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

/// Another process holds the file, or the disk refuses even a beginning.
const NOT_BEGUN: Error = Error::Busy("the database takes no writes");

pub(super) struct Writer {
    /// `None` after an error at commit, until the database could be opened again.
    conn: Option<Conn>,
    connect: SqliteConnectOptions,
    clock: Clock,
    limits: Arc<Limits>,
    faults: Arc<Faults>,
    wakes: Arc<OnceLock<Arc<dyn Wakes>>>,
}

enum Outcome {
    Committed(Answers, Wake),
    RolledBack(Error),
    /// No write was tried.
    NotBegun(Error),
    /// An error at commit: nobody knows.
    Unknown,
}

impl Writer {
    pub(super) fn new(
        conn: Conn,
        connect: SqliteConnectOptions,
        options: &StoreOptions,
        wakes: Arc<OnceLock<Arc<dyn Wakes>>>,
    ) -> Self {
        Self {
            conn: Some(conn),
            connect,
            clock: options.clock.clone(),
            limits: Arc::clone(&options.limits),
            faults: Arc::clone(&options.faults),
            wakes,
        }
    }

    pub(super) async fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        let mut jobs = Vec::with_capacity(BATCH_MAX);
        let mut closing = Vec::new();
        while closing.is_empty() {
            let more = tokio::select! {
                count = inbox.recv_many(&mut jobs, BATCH_MAX) => count > 0,
                () = tokio::time::sleep(REOPEN_EVERY), if self.conn.is_none() => true,
            };
            if !more {
                break;
            }
            let _ = self.conn().await;
            let mut merges = Vec::with_capacity(jobs.len());
            for job in jobs.drain(..) {
                match job {
                    Job::Merge(merge) => merges.push(merge),
                    Job::Begin(reply) => {
                        self.batch(std::mem::take(&mut merges)).await;
                        self.transaction(reply).await;
                    }
                    Job::Maintain(reply) => {
                        let _ = reply.send(self.maintain().await);
                    }
                    Job::Close(done) => closing.push(done),
                }
            }
            self.batch(merges).await;
        }
        inbox.close();
        if let Some(conn) = self.conn.take() {
            conn.close().await;
        }
        for done in closing {
            let _ = done.send(());
        }
    }

    /// The open connection, opened again if the last commit failed.
    async fn conn(&mut self) -> Result<&mut Conn> {
        if self.conn.is_none() {
            let conn = Conn::open(&self.connect).await.map_err(|error| {
                let cause = cause(&error);
                tracing::error!(%cause, "the database can't be opened again; no write is taken");
                UNKNOWN
            })?;
            self.conn = Some(conn);
            self.wake(Wake {
                reopened: true,
                ..Wake::default()
            });
        }
        self.conn.as_mut().ok_or(UNKNOWN)
    }

    async fn batch(&mut self, merges: Vec<Merge>) {
        if merges.is_empty() {
            return;
        }
        metrics::histogram!("skiserver_store_batch_writes")
            .record(u32::try_from(merges.len()).unwrap_or(u32::MAX));
        let alone = merges.len() == 1;
        let (batch, replies) = Batch::new(merges);
        match self.attempt(&batch).await {
            Outcome::Committed(answers, wake) => self.answer(replies, answers, wake),
            Outcome::Unknown => {
                // Whoever keeps places in memory reads them anew before a caller can go on.
                let _ = self.conn().await;
                replies.fail(|| UNKNOWN);
            }
            Outcome::NotBegun(error) => {
                let cause = cause(&error);
                tracing::error!(%cause, "the database takes no writes");
                replies.fail(|| NOT_BEGUN);
            }
            Outcome::RolledBack(error) if alone => {
                let mut error = Some(error);
                replies.fail(|| error.take().unwrap_or(UNKNOWN));
            }
            Outcome::RolledBack(error) => {
                let cause = cause(&error);
                tracing::warn!(%cause, "a batch failed; each of its writes runs alone");
                metrics::counter!("skiserver_store_split_batches_total").increment(1);
                for merge in replies.rejoin(batch) {
                    Box::pin(self.batch(vec![merge])).await;
                }
            }
        }
    }

    async fn attempt(&mut self, batch: &Batch) -> Outcome {
        let started = Instant::now();
        if let Err(error) = self.begin().await {
            return Outcome::NotBegun(error);
        }
        match self.write(batch).await {
            Ok((answers, wake)) => match self.commit().await {
                Ok(()) => {
                    metrics::histogram!("skiserver_store_commit_seconds").record(started.elapsed());
                    Outcome::Committed(answers, wake)
                }
                Err(_) => Outcome::Unknown,
            },
            Err(error) => {
                self.rollback().await;
                Outcome::RolledBack(error)
            }
        }
    }

    async fn write(&mut self, batch: &Batch) -> Result<(Answers, Wake)> {
        let now = self.clock.now_ms();
        let conn = self.conn.as_mut().ok_or(UNKNOWN)?;
        let written = batch.run(conn, now, &self.limits).await?;
        if Faults::take(&self.faults.fail_batch) {
            return Err(Error::internal("a fault was asked for"));
        }
        Ok(written)
    }

    async fn begin(&mut self) -> Result<()> {
        let begun = self.conn().await?.execute("BEGIN IMMEDIATE", []).await;
        if begun.is_err() {
            self.rollback().await;
        }
        begun.map(|_| ())
    }

    /// Commits. After an error nobody knows the outcome, so the connection is given up.
    async fn commit(&mut self) -> Result<()> {
        let conn = self.conn.as_mut().ok_or(UNKNOWN)?;
        let failing = Faults::take(&self.faults.fail_commit);
        let committed = conn.execute("COMMIT", []).await;
        let committed = if failing {
            Err(Error::internal("a fault was asked for"))
        } else {
            committed
        };
        if let Err(error) = committed {
            let cause = cause(&error);
            tracing::error!(%cause, "a commit failed; the database is opened again");
            metrics::counter!("skiserver_store_commit_errors_total").increment(1);
            if let Some(conn) = self.conn.take() {
                conn.close().await;
            }
            return Err(UNKNOWN);
        }
        Ok(())
    }

    async fn rollback(&mut self) {
        let Some(conn) = &mut self.conn else { return };
        // SQLite may have rolled back by itself already, for instance on a full disk.
        if conn.execute("ROLLBACK", []).await.is_err()
            && conn
                .execute("BEGIN", [])
                .await
                .and(conn.execute("ROLLBACK", []).await)
                .is_err()
            && let Some(conn) = self.conn.take()
        {
            conn.close().await;
        }
    }

    fn answer(&self, replies: Replies, answers: Answers, wake: Wake) {
        if self.faults.silent.load(Ordering::SeqCst) {
            std::mem::forget(replies);
            return;
        }
        self.wake(wake);
        replies.send(answers);
    }

    fn wake(&self, wake: Wake) {
        if let Some(wakes) = self.wakes.get()
            && !wake.is_empty()
        {
            wakes.wake(wake);
        }
    }

    /// Lends the connection to one transaction until it ends, is dropped or is too old.
    async fn transaction(&mut self, reply: Reply<Tx>) {
        let begun = self.begin().await;
        let conn = match (begun, self.conn.take()) {
            (Ok(()), Some(conn)) => conn,
            (begun, kept) => {
                self.conn = kept;
                let cause = begun.err().as_ref().map(cause).unwrap_or_default();
                tracing::error!(%cause, "the database takes no writes");
                let _ = reply.send(Err(NOT_BEGUN));
                return;
            }
        };
        let (end, ended) = oneshot::channel();
        let lease = Arc::new(Mutex::new(Some(conn)));
        let tx = Tx::new(
            Arc::clone(&lease),
            end,
            self.clock.clone(),
            Arc::clone(&self.limits),
        );
        let _ = reply.send(Ok(tx));
        let patience = Duration::from_millis(self.limits.transaction_ms.into());
        let asked = tokio::time::timeout(patience, ended).await;
        // Taking the connection out of the lease makes every later call of the transaction fail.
        self.conn = lease.lock().await.take();
        match asked {
            Ok(Ok((wake, done))) => self.finish(wake, done).await,
            Ok(Err(_)) => self.rollback().await,
            Err(_) => {
                tracing::warn!("a transaction was open for too long and was rolled back");
                metrics::counter!("skiserver_store_slow_transactions_total").increment(1);
                self.rollback().await;
            }
        }
    }

    async fn finish(&mut self, wake: Wake, done: Reply<()>) {
        let committed = self.commit().await;
        if self.faults.silent.load(Ordering::SeqCst) {
            std::mem::forget(done);
            return;
        }
        if committed.is_ok() {
            self.wake(wake);
        } else {
            let _ = self.conn().await;
        }
        let _ = done.send(committed);
    }

    async fn maintain(&mut self) -> Result<()> {
        super::maintain(self.conn().await?).await
    }
}

/// What went wrong, for the log: an internal error shows only itself to callers.
fn cause(error: &Error) -> String {
    match error {
        Error::Internal(cause) => cause.to_string(),
        other => other.to_string(),
    }
}
