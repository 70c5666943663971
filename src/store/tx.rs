//! An open transaction, for everything that is not a merged write. Only store calls are awaited while it is open.

use std::sync::Arc;

use tokio::sync::{Mutex, MutexGuard, oneshot};

use super::{
    Append, Appended, Conn, Row, UNKNOWN, Value, Wake, append, batch::Reply, sql::ManyRows,
};
use crate::{
    clock::Clock,
    error::{Error, Result},
    limits::Limits,
};

/// Where a transaction finds its connection. The writer takes it back by emptying this.
pub(super) type Lease = Arc<Mutex<Option<Conn>>>;

/// How a transaction tells the writer that it wants to be committed.
pub(super) type End = oneshot::Sender<(Wake, Reply<()>)>;

/// An open transaction. Dropping it rolls back; only [`Tx::commit`] keeps what it did.
pub struct Tx {
    lease: Lease,
    end: End,
    clock: Clock,
    limits: Arc<Limits>,
}

const TOO_OLD: Error = Error::Busy("the transaction took too long");

impl Tx {
    pub(super) fn new(lease: Lease, end: End, clock: Clock, limits: Arc<Limits>) -> Self {
        Self {
            lease,
            end,
            clock,
            limits,
        }
    }

    /// Runs a statement and tells how many rows it touched.
    pub async fn execute(
        &mut self,
        sql: &'static str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<u64> {
        conn(&mut self.lease.lock().await)?
            .execute(sql, values)
            .await
    }

    /// Runs a statement and answers its rows.
    pub async fn rows(
        &mut self,
        sql: &'static str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<Row>> {
        conn(&mut self.lease.lock().await)?.rows(sql, values).await
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
        sql: &ManyRows<N>,
        rows: Vec<[Value; N]>,
    ) -> Result<Vec<Row>> {
        conn(&mut self.lease.lock().await)?.many(sql, rows).await
    }

    /// Queues messages and records inside this transaction: one result for each, and whom to wake.
    pub async fn append(&mut self, appends: Vec<Append>) -> Result<(Vec<Result<Appended>>, Wake)> {
        let now = self.clock.now_ms();
        let appends: Vec<&Append> = appends.iter().collect();
        let mut lease = self.lease.lock().await;
        append::run(conn(&mut lease)?, &appends, now, &self.limits).await
    }

    /// Runs several statements of one aggregate.
    pub(super) async fn with<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut Conn) -> Result<T>,
    ) -> Result<T> {
        work(conn(&mut self.lease.lock().await)?).await
    }

    /// Commits, and has the writer wake whom `wake` names. An error means that nothing was kept or that nobody
    /// knows; it is never answered as success.
    pub async fn commit(self, wake: Wake) -> Result<()> {
        let (done, outcome) = oneshot::channel();
        self.end.send((wake, done)).map_err(|_| TOO_OLD)?;
        outcome.await.map_err(|_| UNKNOWN)?
    }
}

fn conn<'a>(lease: &'a mut MutexGuard<'_, Option<Conn>>) -> Result<&'a mut Conn> {
    lease.as_mut().ok_or(TOO_OLD)
}
