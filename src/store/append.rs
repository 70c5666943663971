//! The merged write that queues messages: deduplication keys, mailbox rows, outbox rows and the records that
//! go with them, for a whole batch of operations with one statement of each kind.

use std::collections::HashMap;

use bytes::Bytes;

use super::{
    Append, Appended, Conn, Mail, Recipient, Value, Wake,
    mailbox::{Room, Slot},
    outbox,
    sql::many_rows,
};
use crate::{
    error::{Error, Result},
    limits::Limits,
};

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

/// What becomes of one operation of a batch.
#[derive(Clone, Copy)]
enum Verdict {
    New,
    /// It was done before, and answered with this number.
    Repeat(i64),
    /// It repeats an operation of the same batch: the index of that one, and its answer.
    Twin(usize, i64),
    Refused(Refusal),
}

#[derive(Clone, Copy)]
enum Refusal {
    Gone,
    Full,
    Share,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Gone => Self::NotFound("device"),
            Refusal::Full => Self::Busy("the mailbox is full"),
            // Final, so that one device's share does not hold up everybody else's messages at a peer.
            Refusal::Share => Self::Conflict("the mailbox holds too much of this sender"),
        }
    }
}

/// Runs a batch: one result for each operation, and whom to wake once it is committed. An `Err` of the whole
/// means that the transaction can't go on.
pub(super) async fn run(
    conn: &mut Conn,
    appends: &[&Append],
    now: i64,
    limits: &Limits,
) -> Result<(Vec<Result<Appended>>, Wake)> {
    let mut verdicts = deduplicate(conn, appends).await?;
    let letters = resolve(conn, appends, &mut verdicts, limits).await?;
    forget_refused(conn, appends, &verdicts).await?;
    let mut wake = Wake::default();
    let written: Vec<&Append> = (appends.iter().zip(&verdicts))
        .filter(|(_, verdict)| matches!(verdict, Verdict::New))
        .map(|(append, _)| *append)
        .collect();
    insert_bodies(conn, &letters, &written).await?;
    insert_mail(conn, letters, now, &mut wake).await?;
    insert_records(conn, &written, now).await?;
    let parcels = written.iter().flat_map(|append| &append.parcels);
    outbox::insert(conn, parcels, now, &mut wake).await?;
    Ok((results(&verdicts), wake))
}

/// The answers. A repeat fares like what it repeats: if that was refused, nothing of either is on disk.
fn results(verdicts: &[Verdict]) -> Vec<Result<Appended>> {
    let result = |verdict: &Verdict| match *verdict {
        Verdict::New => Ok(Appended::New),
        Verdict::Repeat(answer) => Ok(Appended::Repeat(answer)),
        Verdict::Refused(refusal) => Err(refusal.into()),
        Verdict::Twin(first, answer) => match verdicts.get(first) {
            Some(Verdict::Refused(refusal)) => Err((*refusal).into()),
            Some(Verdict::Repeat(stored)) => Ok(Appended::Repeat(*stored)),
            _ => Ok(Appended::Repeat(answer)),
        },
    };
    verdicts.iter().map(result).collect()
}

/// Marks repeats: of earlier batches, and of an operation before it in this one.
async fn deduplicate(conn: &mut Conn, appends: &[&Append]) -> Result<Vec<Verdict>> {
    let mut firsts: HashMap<[u8; 32], (usize, i64)> = HashMap::new();
    let mut verdicts = Vec::with_capacity(appends.len());
    let mut fresh = Vec::new();
    for (index, append) in appends.iter().enumerate() {
        let Some(once) = &append.once else {
            verdicts.push(Verdict::New);
            continue;
        };
        if let Some((first, answer)) = firsts.get(&once.key) {
            verdicts.push(Verdict::Twin(*first, *answer));
            continue;
        }
        firsts.insert(once.key, (index, once.answer));
        fresh.push([once.key.into(), once.answer.into(), once.expires_at.into()]);
        verdicts.push(Verdict::New);
    }
    for row in conn.many(&INSERT_ONCE, fresh).await? {
        firsts.remove(&row.hash(0)?);
    }
    let known = firsts.keys().map(|key| [key.into()]).collect();
    for row in conn.many(&SELECT_ONCE, known).await? {
        let repeat = firsts.get(&row.hash(0)?).map(|(index, _)| *index);
        if let Some(verdict) = repeat.and_then(|index| verdicts.get_mut(index)) {
            *verdict = Verdict::Repeat(row.int(1)?);
        }
    }
    Ok(verdicts)
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
    verdicts: &mut [Verdict],
    limits: &Limits,
) -> Result<Vec<Letter<'a>>> {
    let mut found = find(conn, appends, verdicts).await?.into_iter();
    let mut room = Room::new(limits);
    let mut letters = Vec::new();
    for (append, verdict) in appends.iter().zip(verdicts) {
        if !matches!(verdict, Verdict::New) {
            continue;
        }
        let mails: Vec<(&Mail, Option<Vec<Slot>>)> =
            append.mail.iter().zip(found.by_ref()).collect();
        if let Some(refusal) = refusal(conn, &mut room, &mails).await? {
            *verdict = Verdict::Refused(refusal);
            continue;
        }
        for (mail, slots) in mails {
            for slot in slots.unwrap_or_default() {
                room.take(&slot, mail);
                letters.push(Letter {
                    device_key: slot.device_key,
                    mail,
                });
            }
        }
    }
    Ok(letters)
}

/// For each message of each new operation, in that order, its devices; `None` if there is nobody at all.
async fn find(
    conn: &mut Conn,
    appends: &[&Append],
    verdicts: &[Verdict],
) -> Result<Vec<Option<Vec<Slot>>>> {
    let mails: Vec<&Mail> = (appends.iter().zip(verdicts))
        .filter(|(_, verdict)| matches!(verdict, Verdict::New))
        .flat_map(|(append, _)| &append.mail)
        .collect();
    let asked = mails.iter().zip(0..).map(|(mail, index)| {
        let (user, device_id) = match &mail.to {
            Recipient::Device(device) => (&device.user.user_id, device.device_id.as_str()),
            Recipient::Devices(user, _) => (&user.user_id, ""),
        };
        [Value::Int(index), user.into(), device_id.into()]
    });
    let mut found: Vec<Option<Vec<Slot>>> = Vec::new();
    found.resize_with(mails.len(), || None);
    for row in conn.many(&FIND_DEVICES, asked.collect()).await? {
        let index = usize::try_from(row.int(0)?).map_err(Error::internal)?;
        let (Some(mail), Some(slots)) = (mails.get(index), found.get_mut(index)) else {
            return Err(Error::internal("a row for no message"));
        };
        let slots = slots.get_or_insert_default();
        let device_id = row.text(2)?;
        if !matches!(&mail.to, Recipient::Devices(_, except) if except.contains(&device_id)) {
            slots.push(Slot {
                device_key: row.int(1)?,
                rows: row.int(3)?,
                bytes: row.int(4)?,
            });
        }
    }
    Ok(found)
}

async fn refusal<'a>(
    conn: &mut Conn,
    room: &mut Room<'a>,
    mails: &[(&'a Mail, Option<Vec<Slot>>)],
) -> Result<Option<Refusal>> {
    for (mail, slots) in mails {
        let Some(slots) = slots else {
            return Ok(Some(Refusal::Gone));
        };
        if !mail.refusable {
            continue;
        }
        for slot in slots {
            if room.is_full(slot) {
                return Ok(Some(Refusal::Full));
            }
            if room.is_full_of(conn, slot, &mail.sender).await? {
                return Ok(Some(Refusal::Share));
            }
        }
    }
    Ok(None)
}

/// An operation that was refused may be tried again, so its key goes.
async fn forget_refused(conn: &mut Conn, appends: &[&Append], verdicts: &[Verdict]) -> Result<()> {
    let refused: Vec<[Value; 1]> = (appends.iter().zip(verdicts))
        .filter(|(_, verdict)| matches!(verdict, Verdict::Refused(_)))
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
        bodies.entry(body.hash()).or_insert((0, body.bytes())).0 += 1;
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
            mail.body.hash().into(),
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
