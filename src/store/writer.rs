//! The one writer. It drains what waits, runs merged writes in one transaction, commits once, then wakes and
//! answers; between batches it serves whole transactions in their turn.

use std::{
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

use sqlx::sqlite::SqliteConnectOptions;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::{
    Append, Appended, Conn, Faults, Row, STOPPED, StoreOptions, UNKNOWN, Value, Wake, Wakes,
    append, mailbox, outbox,
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    limits::Limits,
};

type Reply<T> = oneshot::Sender<Result<T>>;

/// A write that is merged with others of its kind.
pub(super) enum Merge {
    Append(Append, Reply<Appended>),
    Consume([i64; 3], Reply<bool>),
    Received(i64, Vec<i64>, Reply<()>),
    Answered(i64, Reply<()>),
}

pub(super) enum Job {
    Merge(Merge),
    Begin(Reply<Tx>),
    Close(oneshot::Sender<()>),
}

/// Jobs of one batch; more would only lengthen the wait of the first.
const BATCH_MAX: usize = 512;

/// How often a database that could not be opened again is tried.
const REOPEN_EVERY: Duration = Duration::from_secs(1);

pub(super) struct Writer {
    /// `None` after an error at commit, until the database could be opened again.
    conn: Option<Conn>,
    connect: SqliteConnectOptions,
    clock: Clock,
    limits: Arc<Limits>,
    faults: Arc<Faults>,
    wakes: Arc<OnceLock<Arc<dyn Wakes>>>,
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
        let mut closing = None;
        while closing.is_none() {
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
                    Job::Close(done) => closing = Some(done),
                }
            }
            self.batch(merges).await;
        }
        inbox.close();
        if let Some(conn) = self.conn.take() {
            conn.close().await;
        }
        if let Some(done) = closing {
            let _ = done.send(());
        }
    }

    /// The open connection, opened again if the last commit failed.
    async fn conn(&mut self) -> Result<&mut Conn> {
        if self.conn.is_none() {
            let conn = Conn::open(&self.connect).await.map_err(|error| {
                tracing::error!(%error, "the database can't be opened again; no write is taken");
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
        let outcome = self.attempt(&batch).await;
        match outcome {
            Outcome::Committed(answers, wake) => self.answer(replies, answers, wake),
            Outcome::Unknown => replies.fail(|| UNKNOWN),
            Outcome::RolledBack(error) if alone => {
                tracing::warn!(%error, "a write failed");
                replies.fail(|| Error::internal("the write failed"));
            }
            Outcome::RolledBack(error) => {
                tracing::warn!(%error, "a batch failed; each of its writes runs alone");
                for merge in replies.rejoin(batch) {
                    Box::pin(self.batch(vec![merge])).await;
                }
            }
        }
    }

    async fn attempt(&mut self, batch: &Batch) -> Outcome {
        let (clock, limits, faults) = (
            self.clock.clone(),
            Arc::clone(&self.limits),
            Arc::clone(&self.faults),
        );
        let conn = match self.conn().await {
            Ok(conn) => conn,
            Err(_) => return Outcome::Unknown,
        };
        let started = Instant::now();
        let work = async {
            conn.execute("BEGIN IMMEDIATE", []).await?;
            let answers = batch.run(conn, clock.now_ms(), &limits).await?;
            if Faults::take(&faults.fail_batch) {
                return Err(Error::internal("a fault was asked for"));
            }
            Ok(answers)
        };
        match work.await {
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

    /// Commits. After an error nobody knows the outcome, so the connection is given up.
    async fn commit(&mut self) -> Result<()> {
        let Some(conn) = &mut self.conn else {
            return Err(UNKNOWN);
        };
        let failing = Faults::take(&self.faults.fail_commit);
        let committed = conn.execute("COMMIT", []).await;
        let committed = if failing {
            Err(Error::internal("a fault was asked for"))
        } else {
            committed
        };
        if let Err(error) = committed {
            tracing::error!(%error, "a commit failed; the database is opened again");
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
        if self.faults.silent.load(std::sync::atomic::Ordering::SeqCst) {
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
        let started = match self.conn().await {
            Ok(conn) => conn.execute("BEGIN IMMEDIATE", []).await,
            Err(error) => Err(error),
        };
        let (Ok(_), Some(conn)) = (started, self.conn.take()) else {
            let _ = reply.send(Err(UNKNOWN));
            return;
        };
        let (end, ended) = oneshot::channel();
        let lease = Arc::new(Mutex::new(Some(conn)));
        let tx = Tx {
            lease: Arc::clone(&lease),
            end: Some(end),
            clock: self.clock.clone(),
            limits: Arc::clone(&self.limits),
        };
        let _ = reply.send(Ok(tx));
        let patience = Duration::from_millis(self.limits.transaction_ms.into());
        let asked = tokio::time::timeout(patience, ended).await;
        // Taking the connection out of the lease makes every later call of the transaction fail.
        self.conn = lease.lock().await.take();
        match asked {
            Ok(Ok((wake, done))) => {
                let committed = self.commit().await;
                if self.faults.silent.load(std::sync::atomic::Ordering::SeqCst) {
                    std::mem::forget(done);
                    return;
                }
                if committed.is_ok() {
                    self.wake(wake);
                }
                let _ = done.send(committed);
            }
            Ok(Err(_)) => self.rollback().await,
            Err(_) => {
                tracing::warn!("a transaction was open for too long and was rolled back");
                metrics::counter!("skiserver_store_slow_transactions_total").increment(1);
                self.rollback().await;
            }
        }
    }
}

/// An open transaction. Dropping it rolls back; only [`Tx::commit`] keeps what it did.
pub struct Tx {
    lease: Arc<Mutex<Option<Conn>>>,
    end: Option<oneshot::Sender<(Wake, Reply<()>)>>,
    clock: Clock,
    limits: Arc<Limits>,
}

const TOO_OLD: Error = Error::Busy("the transaction took too long");

impl Tx {
    /// Runs a statement and tells how many rows it touched.
    pub async fn execute(
        &mut self,
        sql: &'static str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<u64> {
        self.lease
            .lock()
            .await
            .as_mut()
            .ok_or(TOO_OLD)?
            .execute(sql, values)
            .await
    }

    /// Runs a statement and answers its rows.
    pub async fn rows(
        &mut self,
        sql: &'static str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<Row>> {
        self.lease
            .lock()
            .await
            .as_mut()
            .ok_or(TOO_OLD)?
            .rows(sql, values)
            .await
    }

    /// Runs a statement and answers its first row.
    pub async fn row(
        &mut self,
        sql: &'static str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Option<Row>> {
        Ok(self.rows(sql, values).await?.into_iter().next())
    }

    /// Runs a statement for many rows.
    pub async fn many<const N: usize>(
        &mut self,
        sql: &super::sql::ManyRows<N>,
        rows: Vec<[Value; N]>,
    ) -> Result<Vec<Row>> {
        self.lease
            .lock()
            .await
            .as_mut()
            .ok_or(TOO_OLD)?
            .many(sql, rows)
            .await
    }

    /// Queues messages and records inside this transaction: one result for each, and whom to wake.
    pub async fn append(&mut self, appends: Vec<Append>) -> Result<(Vec<Result<Appended>>, Wake)> {
        let now = self.clock.now_ms();
        let mut lease = self.lease.lock().await;
        let conn = lease.as_mut().ok_or(TOO_OLD)?;
        append::run(conn, &appends.iter().collect::<Vec<_>>(), now, &self.limits).await
    }

    /// Runs several statements of one aggregate.
    pub(super) async fn with<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Conn) -> Result<T>,
    ) -> Result<T> {
        work(self.lease.lock().await.as_mut().ok_or(TOO_OLD)?).await
    }

    /// Commits, and has the writer wake whom `wake` names. An error means that the outcome is unknown or that
    /// nothing was kept; it is never answered as success.
    pub async fn commit(mut self, wake: Wake) -> Result<()> {
        let (done, outcome) = oneshot::channel();
        let end = self.end.take().ok_or(TOO_OLD)?;
        end.send((wake, done)).map_err(|_| TOO_OLD)?;
        outcome.await.map_err(|_| STOPPED)?
    }
}

enum Outcome {
    Committed(Answers, Wake),
    RolledBack(Error),
    /// An error at commit: nobody knows.
    Unknown,
}

/// The merged writes of one batch, by kind.
struct Batch {
    appends: Vec<Append>,
    consumes: Vec<[i64; 3]>,
    received: Vec<(i64, Vec<i64>)>,
    answered: Vec<i64>,
}

struct Replies {
    appends: Vec<Reply<Appended>>,
    consumes: Vec<Reply<bool>>,
    received: Vec<Reply<()>>,
    answered: Vec<Reply<()>>,
}

struct Answers {
    appends: Vec<Result<Appended>>,
    consumes: Vec<bool>,
}

impl Batch {
    fn new(merges: Vec<Merge>) -> (Self, Replies) {
        let mut batch = Self {
            appends: Vec::new(),
            consumes: Vec::new(),
            received: Vec::new(),
            answered: Vec::new(),
        };
        let mut replies = Replies {
            appends: Vec::new(),
            consumes: Vec::new(),
            received: Vec::new(),
            answered: Vec::new(),
        };
        for merge in merges {
            match merge {
                Merge::Append(append, reply) => {
                    batch.appends.push(append);
                    replies.appends.push(reply);
                }
                Merge::Consume(row, reply) => {
                    batch.consumes.push(row);
                    replies.consumes.push(reply);
                }
                Merge::Received(device, msg_ts, reply) => {
                    batch.received.push((device, msg_ts));
                    replies.received.push(reply);
                }
                Merge::Answered(place, reply) => {
                    batch.answered.push(place);
                    replies.answered.push(reply);
                }
            }
        }
        (batch, replies)
    }

    async fn run(&self, conn: &mut Conn, now: i64, limits: &Limits) -> Result<(Answers, Wake)> {
        let mut wake = Wake::default();
        let mut answers = Answers {
            appends: Vec::new(),
            consumes: Vec::new(),
        };
        if !self.appends.is_empty() {
            let appends: Vec<&Append> = self.appends.iter().collect();
            let (results, woken) = append::run(conn, &appends, now, limits).await?;
            answers.appends = results;
            wake.merge(woken);
        }
        if !self.consumes.is_empty() {
            answers.consumes = mailbox::consume(conn, &self.consumes).await?;
            let gone = self
                .consumes
                .iter()
                .zip(&answers.consumes)
                .filter(|(_, was)| **was);
            wake.consumed = gone
                .map(|(&[device, msg_t, _], _)| (device, msg_t))
                .collect();
        }
        for (device, msg_ts) in &self.received {
            mailbox::received(conn, *device, msg_ts, limits.mailbox_received_max).await?;
        }
        if !self.answered.is_empty() {
            outbox::answered(conn, &self.answered).await?;
        }
        Ok((answers, wake))
    }
}

impl Replies {
    fn send(self, answers: Answers) {
        for (reply, answer) in self.appends.into_iter().zip(answers.appends) {
            let _ = reply.send(answer);
        }
        for (reply, answer) in self.consumes.into_iter().zip(answers.consumes) {
            let _ = reply.send(Ok(answer));
        }
        for reply in self.received.into_iter().chain(self.answered) {
            let _ = reply.send(Ok(()));
        }
    }

    fn fail(self, error: impl Fn() -> Error) {
        for reply in self.appends {
            let _ = reply.send(Err(error()));
        }
        for reply in self.consumes {
            let _ = reply.send(Err(error()));
        }
        for reply in self.received.into_iter().chain(self.answered) {
            let _ = reply.send(Err(error()));
        }
    }

    fn rejoin(self, batch: Batch) -> Vec<Merge> {
        let appends = batch.appends.into_iter().zip(self.appends);
        let consumes = batch.consumes.into_iter().zip(self.consumes);
        let received = batch.received.into_iter().zip(self.received);
        let answered = batch.answered.into_iter().zip(self.answered);
        let mut merges: Vec<Merge> = appends.map(|(a, r)| Merge::Append(a, r)).collect();
        merges.extend(consumes.map(|(c, r)| Merge::Consume(c, r)));
        merges.extend(received.map(|((d, t), r)| Merge::Received(d, t, r)));
        merges.extend(answered.map(|(p, r)| Merge::Answered(p, r)));
        merges
    }
}
