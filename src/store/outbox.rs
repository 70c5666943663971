//! Messages waiting for a peer, until it takes them.

use bytes::Bytes;

use super::{Conn, Parcel, Row, Store, Tx, Value, Wake, mailbox, sql::many_rows};
use crate::{
    address::Domain,
    error::{Error, Result},
};

many_rows!(INSERT, 11,
    "INSERT INTO outbox (place, domain, lane, method, body_hash, bytes, sender, recipient, msg_id, created_at,
        expires_at) VALUES",
    "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", "");
many_rows!(
    DELETE,
    1,
    "DELETE FROM outbox WHERE place IN (",
    "?",
    ") RETURNING body_hash"
);

const PLACES: &str =
    "SELECT domain, lane, place, bytes, method FROM outbox WHERE refused_code = 0 AND place > $1
    ORDER BY place LIMIT $2";
const ONE: &str =
    "SELECT o.place, o.domain, o.lane, o.method, o.sender, o.recipient, o.msg_id, o.created_at,
      o.expires_at, b.body
    FROM outbox o JOIN bodies b ON b.body_hash = o.body_hash
    WHERE o.place = $1 AND o.refused_code = 0";
const LAST_PLACE: &str = "SELECT COALESCE(MAX(place), 0) FROM outbox";
const REFUSE: &str = "UPDATE outbox SET refused_code = $2, refused_text = $3 WHERE place = $1";
const REFUSE_DOMAIN: &str = "UPDATE outbox SET refused_code = $2, refused_text = $3 WHERE place IN
      (SELECT place FROM outbox WHERE domain = $1 AND refused_code = 0 ORDER BY place LIMIT $4)
    RETURNING domain, lane, place, bytes, method";
const EXPIRE: &str = "UPDATE outbox SET refused_code = $1, refused_text = '' WHERE place IN
      (SELECT place FROM outbox WHERE expires_at <= $2 AND refused_code = 0 ORDER BY expires_at LIMIT $3)
    RETURNING domain, lane, place, bytes, method";
const ENDED: &str = "SELECT DISTINCT domain, lane, sender, recipient, refused_code FROM outbox
    WHERE refused_code <> 0 LIMIT $1";
const ENDED_SUM: &str =
    "SELECT COUNT(*), COALESCE(MAX(place), 0), COALESCE(MAX(refused_text), '') FROM outbox
    WHERE domain = $1 AND lane = $2 AND sender = $3 AND recipient = $4 AND refused_code = $5";
const ENDED_IDS: &str = "SELECT msg_id FROM outbox
    WHERE domain = $1 AND lane = $2 AND sender = $3 AND recipient = $4 AND refused_code = $5
      AND msg_id <> '' ORDER BY place LIMIT $6";
const DELETE_ENDED: &str = "DELETE FROM outbox WHERE place IN (SELECT place FROM outbox
      WHERE domain = $1 AND lane = $2 AND sender = $3 AND recipient = $4 AND refused_code = $5
        AND place <= $6 ORDER BY place LIMIT $7)
    RETURNING body_hash";
const LATE: &str = "SELECT DISTINCT domain, lane, sender, recipient FROM outbox
    WHERE sender <> '' AND late_told_at = 0 AND created_at <= $1 AND refused_code = 0 LIMIT $2";
const LATE_AGAIN: &str = "SELECT DISTINCT domain, lane, sender, recipient FROM outbox
    WHERE sender <> '' AND late_told_at > 0 AND late_told_at <= $1 AND refused_code = 0 LIMIT $2";
const LATE_SUM: &str = "SELECT COUNT(*), COALESCE(MAX(late_told_at), 0) FROM outbox
    WHERE domain = $1 AND lane = $2 AND sender = $3 AND recipient = $4 AND refused_code = 0
      AND created_at <= $5";
const LATE_IDS: &str = "SELECT msg_id FROM outbox
    WHERE domain = $1 AND lane = $2 AND sender = $3 AND recipient = $4 AND refused_code = 0
      AND created_at <= $5 AND msg_id <> '' ORDER BY place LIMIT $6";
const MARK_LATE: &str =
    "UPDATE outbox SET late_told_at = $6 WHERE place IN (SELECT place FROM outbox
      WHERE domain = $1 AND lane = $2 AND sender = $3 AND recipient = $4 AND refused_code = 0
        AND created_at <= $5 AND late_told_at < $6 ORDER BY place LIMIT $7)";
const COUNTS: &str =
    "SELECT domain, COUNT(*), COALESCE(MIN(created_at), 0) FROM outbox GROUP BY domain";

/// One stored request with its body.
#[derive(Debug, Clone)]
pub struct Stored {
    /// Its place.
    pub place: i64,
    /// Where it goes.
    pub domain: Domain,
    /// Its lane there.
    pub lane: String,
    /// Which RPC.
    pub method: i64,
    /// Who is told of its fate; nobody if empty.
    pub sender: String,
    /// The recipient as the sender knows it.
    pub recipient: String,
    /// The message as the sender knows it.
    pub msg_id: String,
    /// Since when it waits, Unix ms.
    pub created_at: i64,
    /// When it expires, Unix ms.
    pub expires_at: i64,
    /// The encoded request.
    pub body: Bytes,
}

/// A place that is taken on disk.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where it goes.
    pub domain: Domain,
    /// Its lane there.
    pub lane: String,
    /// Its place.
    pub place: i64,
    /// The size of its body.
    pub bytes: i64,
    /// Which RPC.
    pub method: i64,
}

/// The `refused_code` of a request that expired.
pub const EXPIRED: i64 = -1;

/// Requests of one sender to one recipient, in one lane.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Thread {
    /// Where they go.
    pub domain: Domain,
    /// Their lane there.
    pub lane: String,
    /// Who is told of their fate; nobody if empty.
    pub sender: String,
    /// The recipient as the sender knows it.
    pub recipient: String,
}

/// What a sender is told about the requests of one thread that ended with the same code.
#[derive(Debug, Clone)]
pub struct Ended {
    /// How many.
    pub count: i64,
    /// The last of them.
    pub last_place: i64,
    /// The peer's words.
    pub text: String,
    /// The first messages among them, as the sender knows them.
    pub msg_ids: Vec<String>,
}

/// What a sender is told about the requests of one thread that are late.
#[derive(Debug, Clone)]
pub struct Late {
    /// How many.
    pub count: i64,
    /// When the sender was last told about the thread, Unix ms; 0 if never.
    pub told_at: i64,
    /// The first messages among them, as the sender knows them.
    pub msg_ids: Vec<String>,
}

pub(super) async fn insert(
    conn: &mut Conn,
    parcels: impl Iterator<Item = &Parcel>,
    now: i64,
    wake: &mut Wake,
) -> Result<()> {
    let mut rows = Vec::new();
    for parcel in parcels {
        wake.stored
            .push((parcel.domain.clone(), parcel.lane.clone(), parcel.place));
        rows.push([
            parcel.place.into(),
            parcel.domain.as_str().into(),
            (&parcel.lane).into(),
            parcel.method.into(),
            parcel.body.hash().into(),
            parcel.body.stored_bytes().into(),
            (&parcel.sender).into(),
            (&parcel.recipient).into(),
            (&parcel.msg_id).into(),
            now.into(),
            parcel.expires_at.into(),
        ]);
    }
    conn.many(&INSERT, rows).await?;
    Ok(())
}

pub(super) async fn answered(conn: &mut Conn, places: &[i64]) -> Result<()> {
    let rows = places.iter().map(|place| [Value::Int(*place)]).collect();
    let deleted = conn.many(&DELETE, rows).await?;
    let hashes = deleted
        .iter()
        .map(|row| row.hash(0))
        .collect::<Result<_>>()?;
    mailbox::release_bodies(conn, hashes).await
}

/// Places after `after`, at most `limit`, in order; those refused for good are left out.
pub async fn places(store: &Store, after: i64, limit: u32) -> Result<Vec<Place>> {
    let rows = store.rows(PLACES, [after.into(), limit.into()]).await?;
    rows.iter().map(place).collect()
}

/// The highest place that any request holds, or 0.
pub async fn last_place(store: &Store) -> Result<i64> {
    let row = store.row(LAST_PLACE, []).await?;
    row.map_or(Ok(0), |row| row.int(0))
}

/// One request with its body, if it still waits.
pub async fn one(store: &Store, place: i64) -> Result<Option<Stored>> {
    let Some(row) = store.row(ONE, [place.into()]).await? else {
        return Ok(None);
    };
    Ok(Some(Stored {
        place: row.int(0)?,
        domain: domain(&row, 1)?,
        lane: row.text(2)?,
        method: row.int(3)?,
        sender: row.text(4)?,
        recipient: row.text(5)?,
        msg_id: row.text(6)?,
        created_at: row.int(7)?,
        expires_at: row.int(8)?,
        body: row.blob(9)?,
    }))
}

/// For each domain with waiting requests: how many, and since when the oldest waits.
pub async fn counts(store: &Store) -> Result<Vec<(Domain, i64, i64)>> {
    let rows = store.rows(COUNTS, []).await?;
    rows.iter()
        .map(|row| Ok((domain(row, 0)?, row.int(1)?, row.int(2)?)))
        .collect()
}

/// Deletes requests in an open transaction.
pub(crate) async fn delete(tx: &mut Tx, places: &[i64]) -> Result<()> {
    tx.with(async |conn| answered(conn, places).await).await
}

/// Marks a request as refused for good; it stays until its sender was told.
pub(crate) async fn refuse(tx: &mut Tx, place: i64, code: i32, text: &str) -> Result<()> {
    tx.execute(REFUSE, [place.into(), code.into(), text.into()])
        .await?;
    Ok(())
}

/// Marks at most `limit` requests to a domain as refused for good, and tells which.
pub(crate) async fn refuse_domain(
    tx: &mut Tx,
    domain: &Domain,
    code: i32,
    text: &str,
    limit: u32,
) -> Result<Vec<Place>> {
    let values = [
        domain.as_str().into(),
        code.into(),
        text.into(),
        limit.into(),
    ];
    tx.rows(REFUSE_DOMAIN, values)
        .await?
        .iter()
        .map(place)
        .collect()
}

/// Marks at most `limit` requests whose time is over, and tells which.
pub(crate) async fn expire(tx: &mut Tx, now: i64, limit: u32) -> Result<Vec<Place>> {
    let values = [EXPIRED.into(), now.into(), limit.into()];
    tx.rows(EXPIRE, values).await?.iter().map(place).collect()
}

/// Threads with requests that were refused for good or expired, and the code of these; at most `limit`.
pub async fn ended(store: &Store, limit: u32) -> Result<Vec<(Thread, i64)>> {
    let rows = store.rows(ENDED, [limit.into()]).await?;
    rows.iter()
        .map(|row| Ok((thread(row)?, row.int(4)?)))
        .collect()
}

/// What ended with this code in a thread, naming at most `ids_max` messages.
pub(crate) async fn ended_sum(
    tx: &mut Tx,
    thread: &Thread,
    code: i64,
    ids_max: u32,
) -> Result<Ended> {
    let row = tx.row(ENDED_SUM, thread.values([code])).await?;
    let row = row.ok_or_else(|| Error::internal("a sum without a row"))?;
    let ids = tx
        .rows(ENDED_IDS, thread.values([code, ids_max.into()]))
        .await?;
    Ok(Ended {
        count: row.int(0)?,
        last_place: row.int(1)?,
        text: row.text(2)?,
        msg_ids: ids.iter().map(|row| row.text(0)).collect::<Result<_>>()?,
    })
}

/// Deletes at most `limit` of the requests that ended with this code in a thread, up to `last_place`; how many
/// it were.
pub(crate) async fn delete_ended(
    tx: &mut Tx,
    thread: &Thread,
    code: i64,
    last_place: i64,
    limit: u32,
) -> Result<usize> {
    let values = thread.values([code, last_place, limit.into()]);
    let deleted = tx.rows(DELETE_ENDED, values).await?;
    let hashes = deleted
        .iter()
        .map(|row| row.hash(0))
        .collect::<Result<Vec<_>>>()?;
    let count = hashes.len();
    tx.with(async |conn| mailbox::release_bodies(conn, hashes).await)
        .await?;
    Ok(count)
}

/// Threads with requests that wait since `late_before` and whose sender was not told, or not since
/// `told_before`; at most `limit` of each.
pub async fn late(
    store: &Store,
    late_before: i64,
    told_before: i64,
    limit: u32,
) -> Result<Vec<Thread>> {
    let mut threads = Vec::new();
    for (sql, before) in [(LATE, late_before), (LATE_AGAIN, told_before)] {
        for row in &store.rows(sql, [before.into(), limit.into()]).await? {
            let thread = thread(row)?;
            if !threads.contains(&thread) {
                threads.push(thread);
            }
        }
    }
    Ok(threads)
}

/// What is late in a thread, and when its sender was last told, naming at most `ids_max` messages.
pub(crate) async fn late_sum(
    tx: &mut Tx,
    thread: &Thread,
    late_before: i64,
    ids_max: u32,
) -> Result<Late> {
    let row = tx.row(LATE_SUM, thread.values([late_before])).await?;
    let row = row.ok_or_else(|| Error::internal("a sum without a row"))?;
    let ids = tx
        .rows(LATE_IDS, thread.values([late_before, ids_max.into()]))
        .await?;
    Ok(Late {
        count: row.int(0)?,
        told_at: row.int(1)?,
        msg_ids: ids.iter().map(|row| row.text(0)).collect::<Result<_>>()?,
    })
}

/// Notes at most `limit` late requests of a thread as told; how many it were.
pub(crate) async fn mark_late(
    tx: &mut Tx,
    thread: &Thread,
    late_before: i64,
    told_at: i64,
    limit: u32,
) -> Result<u64> {
    let values = thread.values([late_before, told_at, limit.into()]);
    tx.execute(MARK_LATE, values).await
}

impl Thread {
    /// The columns that name the thread, and what else a statement takes.
    fn values<const N: usize>(&self, more: [i64; N]) -> Vec<Value> {
        let names = [
            self.domain.as_str(),
            &self.lane,
            &self.sender,
            &self.recipient,
        ];
        let mut values: Vec<Value> = names.into_iter().map(Value::from).collect();
        values.extend(more.map(Value::Int));
        values
    }
}

fn thread(row: &Row) -> Result<Thread> {
    Ok(Thread {
        domain: domain(row, 0)?,
        lane: row.text(1)?,
        sender: row.text(2)?,
        recipient: row.text(3)?,
    })
}

fn place(row: &Row) -> Result<Place> {
    Ok(Place {
        domain: domain(row, 0)?,
        lane: row.text(1)?,
        place: row.int(2)?,
        bytes: row.int(3)?,
        method: row.int(4)?,
    })
}

fn domain(row: &Row, column: usize) -> Result<Domain> {
    Domain::parse(&row.text(column)?).map_err(Error::internal)
}
