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
    FROM outbox o JOIN bodies b ON b.body_hash = o.body_hash WHERE o.place = $1";
const REFUSE: &str = "UPDATE outbox SET refused_code = $2, refused_text = $3 WHERE place = $1";
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
    rows.iter()
        .map(|row| {
            Ok(Place {
                domain: domain(row, 0)?,
                lane: row.text(1)?,
                place: row.int(2)?,
                bytes: row.int(3)?,
                method: row.int(4)?,
            })
        })
        .collect()
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

fn domain(row: &Row, column: usize) -> Result<Domain> {
    Domain::parse(&row.text(column)?).map_err(Error::internal)
}
