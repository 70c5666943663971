//! The merged write that queues messages: deduplication keys, mailbox rows, outbox rows and the records that
//! go with them, for a whole batch of operations with one statement of each kind.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::{Conn, Value, Wake, sql::many_rows};
use crate::{
    address::{DeviceAddress, Domain, Local, UserAddress},
    error::{Error, Result},
    limits::Limits,
};

/// What one operation writes, all of it or nothing.
#[derive(Debug, Default)]
pub struct Append {
    /// Makes the operation happen once.
    pub once: Option<Once>,
    /// Messages for devices of this domain.
    pub mail: Vec<Mail>,
    /// Sessions that this operation proves, one for each side that is ours.
    pub pairs: Vec<Pair>,
    /// An invite that one of our devices sends.
    pub invite: Option<InviteRecord>,
    /// Requests to other domains.
    pub parcels: Vec<Parcel>,
}

/// A deduplication key: SHA-256 of what identifies the operation.
#[derive(Debug, Clone)]
pub struct Once {
    /// The key.
    pub key: [u8; 32],
    /// A number that repeats are answered with.
    pub answer: i64,
    /// When the key may be forgotten, Unix ms.
    pub expires_at: i64,
}

/// The encoded form of something stored once, and its SHA-256.
#[derive(Debug, Clone)]
pub struct Body {
    hash: [u8; 32],
    bytes: Bytes,
}

impl Body {
    /// Hashes `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        Self {
            hash: crate::signing::sha256(&[&bytes]),
            bytes,
        }
    }
}

/// One message for one or more devices of this domain.
#[derive(Debug, Clone)]
pub struct Mail {
    /// Which devices.
    pub to: Recipient,
    /// The field number of the payload in `ProtoMsg`.
    pub kind: i64,
    /// The acting device, or empty for messages of the server.
    pub sender: String,
    /// The `ProtoMsg` without tag, receiver and signatures.
    pub body: Body,
    /// A full mailbox refuses it, instead of growing past its bound.
    pub refusable: bool,
}

/// Who gets a message.
#[derive(Debug, Clone)]
pub enum Recipient {
    /// One device. If it is gone, the whole operation is [`Error::NotFound`].
    Device(Local<DeviceAddress>),
    /// All devices of a user but those named. A user without any device is [`Error::NotFound`].
    Devices(Local<UserAddress>, Vec<String>),
}

/// One side of a session: our device and the address of the other.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Ours.
    pub device: Local<DeviceAddress>,
    /// The other, ours or not.
    pub peer: DeviceAddress,
}

/// An invite that one of our devices sends.
#[derive(Debug, Clone)]
pub struct InviteRecord {
    /// The inviter.
    pub from: Local<DeviceAddress>,
    /// The invited.
    pub to: DeviceAddress,
    /// The session that the inviter prepared.
    pub session_id: String,
    /// When, Unix ms.
    pub invite_t: i64,
    /// When the record may be forgotten, Unix ms.
    pub expires_at: i64,
}

/// One request to another domain, at its place in its lane.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// Its place in the outbox, taken before anything else.
    pub place: i64,
    /// Where it goes.
    pub domain: Domain,
    /// The receiving user or group.
    pub lane: String,
    /// Which RPC, as `peers` numbers them.
    pub method: i64,
    /// The encoded request.
    pub body: Body,
    /// The device that is told about lateness and refusal; nobody if empty.
    pub sender: String,
    /// The recipient as that device knows it.
    pub recipient: String,
    /// The message as that device knows it, or empty.
    pub msg_id: String,
    /// When it expires, Unix ms.
    pub expires_at: i64,
}

/// What came of an [`Append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is on disk.
    New,
    /// It was there before; the number that the first was stored with.
    Repeat(i64),
}

many_rows!(
    INSERT_ONCE,
    3,
    "INSERT INTO done_once (done_key, answer, expires_at) VALUES",
    "(?, ?, ?)",
    "ON CONFLICT DO NOTHING RETURNING done_key"
);
many_rows!(
    SELECT_ONCE,
    1,
    "SELECT done_key, answer FROM done_once WHERE done_key IN (",
    "?",
    ")"
);
many_rows!(
    DELETE_ONCE,
    1,
    "DELETE FROM done_once WHERE done_key IN (",
    "?",
    ")"
);
many_rows!(
    FIND_DEVICES,
    3,
    "WITH v (mail, user_id, device_id) AS (VALUES",
    "(CAST(? AS BIGINT), CAST(? AS TEXT), CAST(? AS TEXT))",
    ") SELECT v.mail, d.device_key, d.device_id, d.queued_rows, d.queued_bytes FROM v
       JOIN devices d ON d.user_id = v.user_id AND (v.device_id = '' OR v.device_id = d.device_id)
       ORDER BY v.mail, d.device_key"
);
many_rows!(
    INSERT_BODY,
    3,
    "INSERT INTO bodies (body_hash, refs, body) VALUES",
    "(?, ?, ?)",
    "ON CONFLICT (body_hash) DO UPDATE SET refs = bodies.refs + excluded.refs"
);
many_rows!(
    ADVANCE,
    4,
    "WITH v (device_key, n, size, now) AS (VALUES",
    "(CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT), CAST(? AS BIGINT))",
    ") UPDATE devices SET
         last_msg_t = v.n + CASE WHEN last_msg_t >= v.now THEN last_msg_t ELSE v.now - 1 END,
         queued_rows = queued_rows + v.n,
         queued_bytes = queued_bytes + v.size
       FROM v WHERE devices.device_key = v.device_key
       RETURNING devices.device_key, devices.last_msg_t"
);
many_rows!(
    INSERT_MAIL,
    7,
    "INSERT INTO mailbox (device_key, msg_t, nonce, kind, sender, body_hash, bytes) VALUES",
    "(?, ?, ?, ?, ?, ?, ?)",
    ""
);
many_rows!(
    INSERT_PAIR,
    6,
    "WITH v (user_id, device_id, peer, peer_user, peer_domain, now) AS (VALUES",
    "(CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS TEXT), CAST(? AS BIGINT))",
    ") INSERT INTO sessions (device_key, peer, peer_user, peer_domain, created_at)
       SELECT d.device_key, v.peer, v.peer_user, v.peer_domain, v.now FROM v
       JOIN devices d ON d.user_id = v.user_id AND d.device_id = v.device_id WHERE true
       ON CONFLICT DO NOTHING"
);
many_rows!(
    INSERT_INVITE,
    5,
    "INSERT INTO invites (from_device, to_device, session_id, invite_t, expires_at) VALUES",
    "(?, ?, ?, ?, ?)",
    "ON CONFLICT DO NOTHING"
);

/// Runs a batch: one result for each operation, and whom to wake once it is committed. An `Err` of the whole
/// means that the transaction can't go on.
pub(super) async fn run(
    conn: &mut Conn,
    appends: &[&Append],
    now: i64,
    limits: &Limits,
) -> Result<(Vec<Result<Appended>>, Wake)> {
    let mut results = deduplicate(conn, appends).await?;
    let letters = resolve(conn, appends, &mut results, limits).await?;
    forget_refused(conn, appends, &results).await?;
    let mut wake = Wake::default();
    let written: Vec<&Append> = (appends.iter().zip(&results))
        .filter(|(_, result)| matches!(result, Ok(Appended::New)))
        .map(|(append, _)| *append)
        .collect();
    insert_bodies(conn, &letters, &written).await?;
    insert_mail(conn, letters, now, &mut wake).await?;
    insert_records(conn, &written, now).await?;
    super::outbox::insert(
        conn,
        written.iter().flat_map(|a| &a.parcels),
        now,
        &mut wake,
    )
    .await?;
    Ok((results, wake))
}

/// Marks repeats: of earlier batches, and of an operation before it in this one.
async fn deduplicate(conn: &mut Conn, appends: &[&Append]) -> Result<Vec<Result<Appended>>> {
    let mut first: HashMap<[u8; 32], i64> = HashMap::new();
    let mut results = Vec::with_capacity(appends.len());
    let mut fresh = Vec::new();
    for append in appends {
        results.push(Ok(match &append.once {
            Some(once) if first.contains_key(&once.key) => Appended::Repeat(first[&once.key]),
            Some(once) => {
                first.insert(once.key, once.answer);
                fresh.push([once.key.into(), once.answer.into(), once.expires_at.into()]);
                Appended::New
            }
            None => Appended::New,
        }));
    }
    if fresh.is_empty() {
        return Ok(results);
    }
    let inserted = conn.many(&INSERT_ONCE, fresh).await?;
    let inserted = inserted
        .iter()
        .map(|row| row.hash(0))
        .collect::<Result<HashSet<_>>>()?;
    let known: Vec<[Value; 1]> = first
        .keys()
        .filter(|key| !inserted.contains(*key))
        .map(|key| [key.into()])
        .collect();
    let mut answers = HashMap::new();
    for row in conn.many(&SELECT_ONCE, known).await? {
        answers.insert(row.hash(0)?, row.int(1)?);
    }
    for (append, result) in appends.iter().zip(&mut results) {
        if let Some(answer) = append.once.as_ref().and_then(|once| answers.get(&once.key)) {
            *result = Ok(Appended::Repeat(*answer));
        }
    }
    Ok(results)
}

/// One message for one device that exists.
struct Letter<'a> {
    device_key: i64,
    mail: &'a Mail,
}

/// Expands recipients to devices, and refuses operations for devices that are gone or whose mailbox is full.
async fn resolve<'a>(
    conn: &mut Conn,
    appends: &[&'a Append],
    results: &mut [Result<Appended>],
    limits: &Limits,
) -> Result<Vec<Letter<'a>>> {
    let mut asked = Vec::new();
    let mut mails = Vec::new();
    for (index, append) in appends.iter().enumerate() {
        if !matches!(results.get(index), Some(Ok(Appended::New))) {
            continue;
        }
        for mail in &append.mail {
            let (user, device_id) = match &mail.to {
                Recipient::Device(device) => (&device.user.user_id, device.device_id.as_str()),
                Recipient::Devices(user, _) => (&user.user_id, ""),
            };
            asked.push([
                Value::Int(i64::try_from(mails.len()).unwrap_or(0)),
                user.into(),
                device_id.into(),
            ]);
            mails.push((index, mail));
        }
    }
    let mut found: Vec<Vec<Slot>> = Vec::new();
    found.resize_with(mails.len(), Vec::new);
    for row in conn.many(&FIND_DEVICES, asked).await? {
        if let Some(slots) = usize::try_from(row.int(0)?)
            .ok()
            .and_then(|i| found.get_mut(i))
        {
            slots.push(Slot {
                device_key: row.int(1)?,
                device_id: row.text(2)?,
                rows: row.int(3)?,
                bytes: row.int(4)?,
            });
        }
    }
    for ((index, mail), slots) in mails.iter().zip(&found) {
        if let Err(error) = admit(conn, mail, slots, limits).await?
            && let Some(result) = results.get_mut(*index)
        {
            *result = Err(error);
        }
    }
    let mut letters = Vec::new();
    for ((index, mail), slots) in mails.into_iter().zip(found) {
        if !matches!(results.get(index), Some(Ok(_))) {
            continue;
        }
        let kept = slots.into_iter().filter(|slot| match &mail.to {
            Recipient::Device(_) => true,
            Recipient::Devices(_, except) => !except.contains(&slot.device_id),
        });
        letters.extend(kept.map(|slot| Letter {
            device_key: slot.device_key,
            mail,
        }));
    }
    Ok(letters)
}

struct Slot {
    device_key: i64,
    device_id: String,
    rows: i64,
    bytes: i64,
}

async fn admit(
    conn: &mut Conn,
    mail: &Mail,
    slots: &[Slot],
    limits: &Limits,
) -> Result<Result<()>> {
    if slots.is_empty() {
        return Ok(Err(Error::NotFound("device")));
    }
    if !mail.refusable {
        return Ok(Ok(()));
    }
    let rows_max = i64::from(limits.mailbox_rows_max);
    let bytes_max = i64::try_from(limits.mailbox_bytes_max).unwrap_or(i64::MAX);
    for slot in slots {
        if slot.rows >= rows_max || slot.bytes >= bytes_max {
            return Ok(Err(Error::Busy("the mailbox is full")));
        }
        if (slot.rows >= rows_max / 10 || slot.bytes >= bytes_max / 10)
            && super::mailbox::sender_has_its_share(
                conn,
                slot.device_key,
                &mail.sender,
                rows_max / 10,
                bytes_max / 10,
            )
            .await?
        {
            return Ok(Err(Error::Busy(
                "the mailbox holds too much of this sender",
            )));
        }
    }
    Ok(Ok(()))
}

/// An operation that was refused may be tried again, so its key goes.
async fn forget_refused(
    conn: &mut Conn,
    appends: &[&Append],
    results: &[Result<Appended>],
) -> Result<()> {
    let refused: Vec<[Value; 1]> = (appends.iter().zip(results))
        .filter(|(_, result)| result.is_err())
        .filter_map(|(append, _)| append.once.as_ref().map(|once| [once.key.into()]))
        .collect();
    conn.many(&DELETE_ONCE, refused).await?;
    Ok(())
}

async fn insert_bodies(conn: &mut Conn, letters: &[Letter<'_>], written: &[&Append]) -> Result<()> {
    let mut bodies: HashMap<[u8; 32], (i64, &Bytes)> = HashMap::new();
    let mailed = letters.iter().map(|letter| &letter.mail.body);
    let sent = written
        .iter()
        .flat_map(|append| &append.parcels)
        .map(|parcel| &parcel.body);
    for body in mailed.chain(sent) {
        bodies.entry(body.hash).or_insert((0, &body.bytes)).0 += 1;
    }
    let rows = bodies
        .into_iter()
        .map(|(hash, (refs, bytes))| [hash.into(), refs.into(), bytes.into()]);
    conn.many(&INSERT_BODY, rows.collect()).await?;
    Ok(())
}

async fn insert_mail(
    conn: &mut Conn,
    letters: Vec<Letter<'_>>,
    now: i64,
    wake: &mut Wake,
) -> Result<()> {
    let mut devices: HashMap<i64, (i64, i64)> = HashMap::new();
    for letter in &letters {
        let sums = devices.entry(letter.device_key).or_default();
        sums.0 += 1;
        sums.1 += letter.mail.body.stored_bytes();
    }
    let rows = devices
        .iter()
        .map(|(key, (n, size))| [(*key).into(), (*n).into(), (*size).into(), now.into()]);
    let mut next_t = HashMap::new();
    for row in conn.many(&ADVANCE, rows.collect()).await? {
        let (key, last) = (row.int(0)?, row.int(1)?);
        next_t.insert(key, last - devices.get(&key).map_or(0, |(n, _)| *n) + 1);
    }
    let mut rows = Vec::with_capacity(letters.len());
    for letter in letters {
        let Some(msg_t) = next_t.get_mut(&letter.device_key) else {
            return Err(Error::internal("a device vanished inside a transaction"));
        };
        let mail = letter.mail;
        rows.push([
            letter.device_key.into(),
            (*msg_t).into(),
            fastrand::i64(0..1 << 32).into(),
            mail.kind.into(),
            (&mail.sender).into(),
            mail.body.hash.into(),
            mail.body.stored_bytes().into(),
        ]);
        *msg_t += 1;
    }
    conn.many(&INSERT_MAIL, rows).await?;
    wake.mailboxes.extend(devices.into_keys());
    Ok(())
}

async fn insert_records(conn: &mut Conn, written: &[&Append], now: i64) -> Result<()> {
    let pairs = written.iter().flat_map(|append| &append.pairs).map(|pair| {
        [
            (&pair.device.user.user_id).into(),
            (&pair.device.device_id).into(),
            pair.peer.to_string().into(),
            pair.peer.user.to_string().into(),
            pair.peer.domain().as_str().into(),
            now.into(),
        ]
    });
    conn.many(&INSERT_PAIR, pairs.collect()).await?;
    let invites = written
        .iter()
        .filter_map(|append| append.invite.as_ref())
        .map(|invite| {
            [
                invite.from.to_string().into(),
                invite.to.to_string().into(),
                (&invite.session_id).into(),
                invite.invite_t.into(),
                invite.expires_at.into(),
            ]
        });
    conn.many(&INSERT_INVITE, invites.collect()).await?;
    Ok(())
}

impl Body {
    pub(super) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// What a row that refers to this body counts against its bound.
    pub(super) fn stored_bytes(&self) -> i64 {
        i64::try_from(self.bytes.len()).unwrap_or(i64::MAX)
    }
}
