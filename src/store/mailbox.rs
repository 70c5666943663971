//! Messages waiting for a device, until it consumes them.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::{Conn, Mail, Row, Store, Value, sql::many_rows};
use crate::{
    error::Result,
    limits::{Limits, MAILBOX_SHARES},
};

/// One message as the stream reads it.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// Its place in the device's order, and its tag's time.
    pub msg_t: i64,
    /// Makes its id unguessable by counting.
    pub nonce: i64,
    /// The field number of its payload.
    pub kind: i64,
    /// On how many streams it is known to have been received.
    pub received_on: i64,
    /// The `ProtoMsg` without tag, receiver and signatures.
    pub body: Bytes,
}

many_rows!(
    DELETE_MAIL,
    3,
    "WITH v (device_key, msg_t, nonce) AS (VALUES",
    "(CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT))",
    ") DELETE FROM mailbox WHERE (device_key, msg_t, nonce) IN (SELECT device_key, msg_t, nonce FROM v)
       RETURNING device_key, msg_t, nonce, body_hash, bytes"
);
many_rows!(
    RELIEVE,
    3,
    "WITH v (device_key, n, size) AS (VALUES",
    "(CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT))",
    ") UPDATE devices SET queued_rows = queued_rows - v.n, queued_bytes = queued_bytes - v.size
       FROM v WHERE devices.device_key = v.device_key"
);
many_rows!(
    UNREFER,
    2,
    "WITH v (body_hash, n) AS (VALUES",
    "(?, CAST(? AS BIGINT))",
    ") UPDATE bodies SET refs = refs - v.n FROM v WHERE bodies.body_hash = v.body_hash"
);
many_rows!(
    DELETE_BODY,
    1,
    "DELETE FROM bodies WHERE refs <= 0 AND body_hash IN (",
    "?",
    ")"
);
many_rows!(
    COUNT_RECEIVED,
    2,
    "WITH v (device_key, msg_t) AS (VALUES",
    "(CAST(? AS BIGINT), CAST(? AS BIGINT))",
    ") UPDATE mailbox SET received_on = received_on + 1 FROM v
       WHERE mailbox.device_key = v.device_key AND mailbox.msg_t = v.msg_t
       RETURNING mailbox.device_key, mailbox.msg_t, mailbox.nonce, mailbox.received_on"
);

const PAGE: &str = "SELECT m.msg_t, m.nonce, m.kind, m.received_on, b.body
    FROM mailbox m JOIN bodies b ON b.body_hash = m.body_hash
    WHERE m.device_key = $1 AND m.msg_t > $2 ORDER BY m.msg_t LIMIT $3";
const SHARE: &str = "SELECT COUNT(*), COALESCE(SUM(bytes), 0) FROM mailbox
    WHERE device_key = $1 AND sender = $2 AND sender <> ''";
const EMPTY_MAILBOX: &str = "DELETE FROM mailbox WHERE device_key = $1
    RETURNING device_key, msg_t, nonce, body_hash, bytes";
const DELETE_OLD: &str = "DELETE FROM mailbox WHERE (device_key, msg_t) IN
      (SELECT device_key, msg_t FROM mailbox WHERE device_key = $1 AND msg_t < $2 ORDER BY msg_t LIMIT $3)
    RETURNING device_key, msg_t, nonce, body_hash, bytes";

/// Messages after `after`, in the device's order, at most `limit`.
pub async fn page(store: &Store, device_key: i64, after: i64, limit: u32) -> Result<Vec<Waiting>> {
    let rows = store
        .rows(PAGE, [device_key.into(), after.into(), limit.into()])
        .await?;
    rows.iter()
        .map(|row| {
            Ok(Waiting {
                msg_t: row.int(0)?,
                nonce: row.int(1)?,
                kind: row.int(2)?,
                received_on: row.int(3)?,
                body: row.blob(4)?,
            })
        })
        .collect()
}

/// The tag of the newest message ever queued for the device.
pub async fn newest(store: &Store, device_key: i64) -> Result<i64> {
    let row = store
        .row(
            "SELECT last_msg_t FROM devices WHERE device_key = $1",
            [device_key.into()],
        )
        .await?;
    row.map_or(Ok(0), |row| row.int(0))
}

/// All messages that wait on this node.
pub async fn count(store: &Store) -> Result<i64> {
    let row = store
        .row("SELECT COALESCE(SUM(queued_rows), 0) FROM devices", [])
        .await?;
    row.map_or(Ok(0), |row| row.int(0))
}

/// Deletes consumed messages; for each, whether it was there. A repeat inside the batch counts once.
pub(super) async fn consume(conn: &mut Conn, consumed: &[[i64; 3]]) -> Result<Vec<bool>> {
    let unique: HashSet<[i64; 3]> = consumed.iter().copied().collect();
    let rows = unique.into_iter().map(|row| row.map(Value::Int)).collect();
    let deleted = conn.many(&DELETE_MAIL, rows).await?;
    let mut gone: HashSet<[i64; 3]> = HashSet::new();
    for row in &deleted {
        gone.insert([row.int(0)?, row.int(1)?, row.int(2)?]);
    }
    release(conn, &deleted).await?;
    Ok(consumed.iter().map(|row| gone.remove(row)).collect())
}

/// Counts a stream on which messages are known received; drops those that reached `streams_max`.
pub(super) async fn received(
    conn: &mut Conn,
    device_key: i64,
    msg_ts: &[i64],
    streams_max: u32,
) -> Result<()> {
    let rows = msg_ts
        .iter()
        .map(|msg_t| [device_key.into(), (*msg_t).into()])
        .collect();
    let mut spent = Vec::new();
    for row in conn.many(&COUNT_RECEIVED, rows).await? {
        if row.int(3)? >= i64::from(streams_max) {
            spent.push([row.int(0)?.into(), row.int(1)?.into(), row.int(2)?.into()]);
        }
    }
    let dropped = conn.many(&DELETE_MAIL, spent).await?;
    if !dropped.is_empty() {
        metrics::counter!("skiserver_mailbox_dropped_total", "why" => "received")
            .increment(dropped.len() as u64);
    }
    release(conn, &dropped).await
}

/// Deletes everything that waits for a device, in an open transaction.
pub(crate) async fn empty(tx: &mut super::Tx, device_key: i64) -> Result<()> {
    let deleted = tx.rows(EMPTY_MAILBOX, [device_key.into()]).await?;
    tx.with(async |conn| release(conn, &deleted).await).await
}

/// Deletes at most `limit` messages of a device that are older than `before`; how many it were.
pub(crate) async fn expire(
    tx: &mut super::Tx,
    device_key: i64,
    before: i64,
    limit: u32,
) -> Result<usize> {
    let deleted = tx
        .rows(DELETE_OLD, [device_key.into(), before.into(), limit.into()])
        .await?;
    tx.with(async |conn| release(conn, &deleted).await).await?;
    Ok(deleted.len())
}

/// A device that a message is for, with what waits for it on disk.
pub(super) struct Slot {
    pub(super) device_key: i64,
    pub(super) rows: i64,
    pub(super) bytes: i64,
}

/// What mailboxes still take while a batch is made up: what is on disk, and what the batch adds.
pub(super) struct Room<'a> {
    most: Load,
    share: Load,
    added: HashMap<i64, Load>,
    added_by: HashMap<(i64, &'a str), Load>,
    stored_by: HashMap<(i64, &'a str), Load>,
}

#[derive(Clone, Copy, Default)]
struct Load {
    rows: i64,
    bytes: i64,
}

impl Load {
    fn plus(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            bytes: self.bytes + other.bytes,
        }
    }

    fn reaches(self, bound: Self) -> bool {
        self.rows >= bound.rows || self.bytes >= bound.bytes
    }
}

impl<'a> Room<'a> {
    pub(super) fn new(limits: &Limits) -> Self {
        let most = Load {
            rows: limits.mailbox_rows_max.into(),
            bytes: i64::try_from(limits.mailbox_bytes_max).unwrap_or(i64::MAX),
        };
        Self {
            most,
            share: Load {
                rows: (most.rows / MAILBOX_SHARES).max(1),
                bytes: (most.bytes / MAILBOX_SHARES).max(1),
            },
            added: HashMap::new(),
            added_by: HashMap::new(),
            stored_by: HashMap::new(),
        }
    }

    /// Counts a message that the batch adds.
    pub(super) fn take(&mut self, slot: &Slot, mail: &'a Mail) {
        let one = Load {
            rows: 1,
            bytes: mail.body.stored_bytes(),
        };
        let added = self.added.entry(slot.device_key).or_default();
        *added = added.plus(one);
        let by = (slot.device_key, mail.sender.as_str());
        let added_by = self.added_by.entry(by).or_default();
        *added_by = added_by.plus(one);
    }

    /// Whether the mailbox takes nothing that can be refused.
    pub(super) fn is_full(&self, slot: &Slot) -> bool {
        self.load(slot).reaches(self.most)
    }

    /// Whether one sender fills its share. The disk is asked only once a mailbox holds that much at all.
    pub(super) async fn is_full_of(
        &mut self,
        conn: &mut Conn,
        slot: &Slot,
        sender: &'a str,
    ) -> Result<bool> {
        if !self.load(slot).reaches(self.share) {
            return Ok(false);
        }
        let by = (slot.device_key, sender);
        let stored = if let Some(stored) = self.stored_by.get(&by) {
            *stored
        } else {
            let stored = stored_by(conn, slot.device_key, sender).await?;
            self.stored_by.insert(by, stored);
            stored
        };
        let added = self.added_by.get(&by).copied().unwrap_or_default();
        Ok(stored.plus(added).reaches(self.share))
    }

    fn load(&self, slot: &Slot) -> Load {
        let stored = Load {
            rows: slot.rows,
            bytes: slot.bytes,
        };
        let added = self.added.get(&slot.device_key).copied();
        stored.plus(added.unwrap_or_default())
    }
}

async fn stored_by(conn: &mut Conn, device_key: i64, sender: &str) -> Result<Load> {
    let rows = conn.rows(SHARE, [device_key.into(), sender.into()]).await?;
    rows.first().map_or(Ok(Load::default()), |row| {
        Ok(Load {
            rows: row.int(0)?,
            bytes: row.int(1)?,
        })
    })
}

/// Gives back what deleted rows counted: the device's totals, and bodies that lost their last row.
async fn release(conn: &mut Conn, deleted: &[Row]) -> Result<()> {
    let mut devices: HashMap<i64, (i64, i64)> = HashMap::new();
    let mut bodies = Vec::with_capacity(deleted.len());
    for row in deleted {
        let sums = devices.entry(row.int(0)?).or_default();
        sums.0 += 1;
        sums.1 += row.int(4)?;
        bodies.push(row.hash(3)?);
    }
    let rows = devices
        .into_iter()
        .map(|(key, (n, size))| [key.into(), n.into(), size.into()]);
    conn.many(&RELIEVE, rows.collect()).await?;
    release_bodies(conn, bodies).await
}

/// Takes one reference from each body named, and deletes those that have none left.
pub(super) async fn release_bodies(conn: &mut Conn, hashes: Vec<[u8; 32]>) -> Result<()> {
    let mut refs: HashMap<[u8; 32], i64> = HashMap::new();
    for hash in hashes {
        *refs.entry(hash).or_default() += 1;
    }
    let rows = refs.iter().map(|(hash, n)| [hash.into(), (*n).into()]);
    conn.many(&UNREFER, rows.collect()).await?;
    conn.many(
        &DELETE_BODY,
        refs.into_keys().map(|hash| [hash.into()]).collect(),
    )
    .await?;
    Ok(())
}
