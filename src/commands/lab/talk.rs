//! What each device of a talking lab does: it invites those it does not know, sends at a modest rate, takes
//! everything that arrives, checks it and consumes it. When its node is away it waits and goes on.

use std::{collections::VecDeque, ops::ControlFlow, sync::Arc, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    ledger::{Arrival, Number, Totals},
    town::{Member, Session, Town},
};
use crate::{
    client::{ClientError, Inbox, talk, verify},
    lab::manifest::Manifest,
    proto::skissm::{
        AcceptMsg, E2eeMsg, InviteMsg, ProtoMsg, ProtoMsgTag, SystemManagerMsg, SystemOp, e2ee_msg,
        proto_msg::Payload,
    },
};

/// Each device sends one message in this time.
const PACE: Duration = Duration::from_millis(250);
/// Each device shows on its stream that it is alive at this interval.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// A stream that broke is opened again after this time.
const REOPEN: Duration = Duration::from_millis(300);
/// At the end, what is under way may take this long without anything moving.
const STILL_MAX: Duration = Duration::from_secs(10);
/// The length of a ciphertext: the time inside, and up to this many bytes.
const BODY_BYTES: std::ops::Range<usize> = 64..640;

/// A conversation of everybody with everybody.
pub(super) struct Talk {
    town: Arc<Town>,
    tasks: TaskTracker,
    stop_sending: CancellationToken,
    end: CancellationToken,
}

impl Talk {
    /// Registers people at every node and lets them talk.
    pub(super) async fn start(manifest: &Manifest) -> Result<Self, ClientError> {
        let talk = Self {
            town: Arc::new(Town::settle(manifest).await?),
            tasks: TaskTracker::new(),
            stop_sending: CancellationToken::new(),
            end: CancellationToken::new(),
        };
        for me in 0..talk.town.members.len() {
            let town = Arc::clone(&talk.town);
            let (stop, end) = (talk.stop_sending.clone(), talk.end.clone());
            talk.tasks
                .spawn(async move { speak(&town, me, &stop, &end).await });
            let (town, end) = (Arc::clone(&talk.town), talk.end.clone());
            talk.tasks.spawn(async move {
                end.run_until_cancelled(Box::pin(listen(&town, me, &end)))
                    .await
            });
        }
        talk.tasks.close();
        Ok(talk)
    }

    /// What is known so far.
    pub(super) fn town(&self) -> &Town {
        &self.town
    }

    /// Sends nothing more, and waits until everything that was answered has arrived and is consumed: at most
    /// [`STILL_MAX`] after the last thing that moved, or until `hurry`.
    pub(super) async fn finish(&self, hurry: &CancellationToken) -> Totals {
        self.stop_sending.cancel();
        let mut last = Totals::default();
        let mut moved_at = Instant::now();
        while moved_at.elapsed() < STILL_MAX {
            let totals = self.town.ledger.totals();
            if totals.lost == 0
                && totals.consumed >= totals.received
                && totals.answered >= totals.sent
            {
                break;
            }
            if totals != last {
                last = totals;
                moved_at = Instant::now();
            }
            if hurry
                .run_until_cancelled(sleep(Duration::from_millis(50)))
                .await
                .is_none()
            {
                break;
            }
        }
        self.end.cancel();
        self.tasks.wait().await;
        self.town.ledger.totals()
    }
}

/// Invites and sends until told to stop.
async fn speak(town: &Town, me: Number, stop: &CancellationToken, end: &CancellationToken) {
    let Some(member) = town.member(me) else {
        return;
    };
    let mut strangers = strangers(town, me);
    let mut turn = 0;
    let mut pace = interval(PACE);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while stop.run_until_cancelled(pace.tick()).await.is_some() {
        if let Some(person) = strangers.pop_front()
            && invite(town, me, person, end).await.is_break()
        {
            strangers.push_back(person);
        }
        let session = next_session(member, &mut turn);
        if let Some(session) = session
            && send(town, me, &session, end).await.is_none()
        {
            return;
        }
    }
}

/// Everybody whom this device invites. For each pair of devices exactly one does.
fn strangers(town: &Town, me: Number) -> VecDeque<usize> {
    let Some(member) = town.member(me) else {
        return VecDeque::new();
    };
    let siblings = town
        .people
        .get(member.owner)
        .map_or(&[][..], |person| &person.devices);
    // A later device knows its elder sibling from the start; asking for the own user leads to it.
    let first = if siblings.first() == Some(&me) {
        member.owner + 1
    } else {
        member.owner
    };
    (first..town.people.len()).collect()
}

/// Fetches a person's bundles and invites each device. Breaks off if the person can't be reached yet.
async fn invite(
    town: &Town,
    me: Number,
    person: usize,
    end: &CancellationToken,
) -> ControlFlow<()> {
    let (Some(member), Some(person)) = (town.member(me), town.people.get(person)) else {
        return ControlFlow::Continue(());
    };
    let bundles = match talk::bundles(&member.device, &person.address).await {
        Ok(bundles) => bundles,
        Err(error) if town.try_again_after(&error).is_some() => return ControlFlow::Break(()),
        Err(_) => return ControlFlow::Continue(()),
    };
    let expected = person
        .devices
        .iter()
        .filter(|device| **device != me)
        .count();
    if bundles.len() != expected {
        let found = bundles.len();
        town.ledger.fail(format!(
            "{found} bundles instead of {expected} of {}",
            person.address
        ));
    }
    for bundle in bundles {
        let Some(peer) = town
            .number(bundle.user_address.as_ref())
            .filter(|peer| *peer != me)
        else {
            town.ledger.fail("a bundle of an unknown device".to_owned());
            continue;
        };
        let keys = town.member(peer).map(|peer| peer.device.keys().identity());
        if bundle.identity_key_public.as_ref() != keys {
            town.ledger
                .fail(format!("a bundle of {} with other keys", person.address));
        }
        let Ok(message) = talk::invitation(&member.device, &bundle) else {
            continue;
        };
        // The accept may arrive before the answer to the invite.
        member.sessions().push(Session {
            peer,
            id: message.session_id.clone(),
            next: 2,
            ready: false,
        });
        town.ledger.sent(me);
        let call = || talk::invite(&member.device, &message);
        if town.until_answered(end, call).await.is_some() {
            town.ledger.answered(me, peer);
        }
    }
    ControlFlow::Continue(())
}

/// The sessions that are ready, in turn.
fn next_session(member: &Member, turn: &mut usize) -> Option<Session> {
    let mut sessions = member.sessions();
    let count = sessions.len();
    for _ in 0..count {
        *turn = (*turn + 1) % count;
        if let Some(session) = sessions.get_mut(*turn).filter(|session| session.ready) {
            session.next += 1;
            return Some(Session {
                next: session.next - 1,
                ..session.clone()
            });
        }
    }
    None
}

/// Sends one message. None if it was refused or the end came: the line has a gap then, and nobody may go on.
async fn send(town: &Town, me: Number, session: &Session, end: &CancellationToken) -> Option<()> {
    let member = town.member(me)?;
    let to = town.member(session.peer)?.device.address();
    let body = body(town.ledger.now_us(), me, session.peer, session.next);
    let message = talk::one_to_one(&member.device, to, &session.id, session.next, body);
    town.ledger.sent(me);
    town.until_answered(end, || talk::send(&member.device, &message))
        .await?;
    town.ledger.answered(me, session.peer);
    Some(())
}

/// A ciphertext that both sides can make: the time of sending, then bytes that follow from the rest.
fn body(sent_us: u64, from: Number, to: Number, number: u32) -> Bytes {
    let seed = [sent_us, from as u64, to as u64, u64::from(number)]
        .into_iter()
        .fold(0, |seed: u64, part| {
            seed.rotate_left(16).wrapping_mul(31).wrapping_add(part)
        });
    let mut random = fastrand::Rng::with_seed(seed);
    let length = random.usize(BODY_BYTES);
    let mut body = BytesMut::with_capacity(8 + length);
    body.put_u64(sent_us);
    body.extend(std::iter::repeat_with(|| random.u8(..)).take(length));
    body.freeze()
}

/// Keeps the stream open and handles what comes, one after the other.
async fn listen(town: &Town, me: Number, end: &CancellationToken) {
    let Some(member) = town.member(me) else {
        return;
    };
    let mut order = verify::Order::default();
    loop {
        match open(member, &order).await {
            Ok(inbox) => read(town, me, inbox, &mut order, end).await,
            Err(error) if town.try_again_after(&error).is_none() => return,
            Err(_) => {}
        }
        sleep(REOPEN).await;
    }
}

/// Opens a stream that goes on where the last one ended.
async fn open(member: &Member, order: &verify::Order) -> Result<Inbox, ClientError> {
    let inbox = member.device.open().await?;
    inbox.sync(order.last().cloned()).await?;
    Ok(inbox)
}

/// Reads one stream to its end.
async fn read(
    town: &Town,
    me: Number,
    mut inbox: Inbox,
    order: &mut verify::Order,
    end: &CancellationToken,
) {
    let mut beat = interval(HEARTBEAT);
    loop {
        tokio::select! {
            next = inbox.next() => match next {
                Ok(Some(message)) => {
                    if take(town, me, message, order, end).await.is_none() {
                        return;
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    town.try_again_after(&error);
                    return;
                }
            },
            _ = beat.tick() => {
                if inbox.heartbeat(town.clock.now_ms()).await.is_err() {
                    return;
                }
            }
        }
    }
}

/// Checks one message, does what it asks for, and consumes it. None if the end came first.
async fn take(
    town: &Town,
    me: Number,
    message: ProtoMsg,
    order: &mut verify::Order,
    end: &CancellationToken,
) -> Option<()> {
    let member = town.member(me)?;
    let address = member.device.address();
    if let Err(wrong) = verify::message(&message, member.device.certificate(), address) {
        town.ledger.fail(format!("{address}: {wrong}"));
    }
    // Without a tag there is nothing to consume.
    let Some(tag) = message.tag else {
        return Some(());
    };
    if let Err(wrong) = order.take(&tag) {
        town.ledger.fail(format!("{address}: {wrong}"));
    }
    let is_new = match message.payload {
        Some(Payload::InviteMsg(invite)) => invited(town, me, &invite, end).await?,
        Some(Payload::AcceptMsg(accept)) => accepted(town, me, &accept),
        Some(Payload::E2eeMsg(message)) => received(town, me, &message),
        other => {
            besides(town, me, other, end).await?;
            false
        }
    };
    consume(town, me, &tag, end).await?;
    if is_new {
        town.ledger.consumed(me);
    }
    Some(())
}

async fn consume(
    town: &Town,
    me: Number,
    tag: &ProtoMsgTag,
    end: &CancellationToken,
) -> Option<()> {
    let device = &town.member(me)?.device;
    let call = || talk::consume(device, &tag.proto_msg_id);
    let (was_there, attempts) = town.until_answered(end, call).await?;
    // After an attempt without an answer the message may be gone already.
    if !was_there && attempts == 1 {
        town.ledger.fail(format!(
            "{}: a message on the stream was not there to consume",
            device.address()
        ));
    }
    Some(())
}

/// Notes an arrival. False if it counts for nothing because it came before.
fn arrived(town: &Town, from: Number, me: Number, number: u32, what: &str) -> bool {
    let arrival = town.ledger.arrived(from, me, number);
    if arrival == Arrival::OutOfOrder {
        let name = |n| {
            town.member(n)
                .map(|member| member.device.address().to_string())
        };
        let (from, to) = (name(from).unwrap_or_default(), name(me).unwrap_or_default());
        town.ledger.fail(format!(
            "{what} {number} from {from} to {to} came out of order"
        ));
    }
    arrival != Arrival::Repeated
}

async fn invited(
    town: &Town,
    me: Number,
    invite: &InviteMsg,
    end: &CancellationToken,
) -> Option<bool> {
    let member = town.member(me)?;
    let Some(from) = town.number(invite.from.as_ref()) else {
        town.ledger.fail("an invite from a stranger".to_owned());
        return Some(false);
    };
    let inviter = town.member(from)?.device.keys();
    if invite.alice_identity_key != inviter.identity().asym_public_key {
        town.ledger
            .fail("an invite with another identity key".to_owned());
    }
    // A client that knows the session just consumes the invite, so a repetition does no harm.
    if member
        .sessions()
        .iter()
        .any(|session| session.id == invite.session_id)
    {
        return Some(false);
    }
    let is_new = arrived(town, from, me, 1, "invite");
    let accept = match talk::acceptance(&member.device, invite) {
        Ok(accept) => accept,
        Err(error) => {
            town.ledger.fail(error.to_string());
            return Some(is_new);
        }
    };
    town.ledger.sent(me);
    if town
        .until_answered(end, || talk::accept(&member.device, &accept))
        .await
        .is_some()
    {
        town.ledger.answered(me, from);
        let id = invite.session_id.clone();
        member.sessions().push(Session {
            peer: from,
            id,
            next: 2,
            ready: true,
        });
    }
    Some(is_new)
}

fn accepted(town: &Town, me: Number, accept: &AcceptMsg) -> bool {
    let Some((member, from)) = town.member(me).zip(town.number(accept.from.as_ref())) else {
        town.ledger.fail("an accept from a stranger".to_owned());
        return false;
    };
    match member
        .sessions()
        .iter_mut()
        .find(|session| session.peer == from)
    {
        Some(session) => session.ready = true,
        None => town.ledger.fail("an accept without an invite".to_owned()),
    }
    arrived(town, from, me, 1, "accept")
}

fn received(town: &Town, me: Number, message: &E2eeMsg) -> bool {
    let (Some(from), Some(e2ee_msg::Payload::One2oneMsg(content))) =
        (town.number(message.from.as_ref()), &message.payload)
    else {
        town.ledger
            .fail("a message that nobody here sent".to_owned());
        return false;
    };
    let sent_us = content
        .ciphertext
        .first_chunk()
        .copied()
        .map_or(0, u64::from_be_bytes);
    if content.ciphertext != body(sent_us, from, me, content.sequence) {
        town.ledger.fail("a message arrived changed".to_owned());
    }
    let known = town.member(me).is_some_and(|member| {
        let sessions = member.sessions();
        sessions
            .iter()
            .any(|s| s.peer == from && s.id == message.session_id)
    });
    if !known {
        town.ledger
            .fail("a message of an unknown session".to_owned());
    }
    town.ledger.took(me, sent_us);
    arrived(town, from, me, content.sequence, "message")
}

/// Everything that is not part of a conversation.
async fn besides(
    town: &Town,
    me: Number,
    payload: Option<Payload>,
    end: &CancellationToken,
) -> Option<()> {
    let device = &town.member(me)?.device;
    match payload {
        Some(Payload::SupplyOpksMsg(wanted)) => {
            let call = || talk::supply(device, wanted.opks_num);
            town.until_answered(end, call).await?;
        }
        Some(Payload::RemoveUserDeviceMsg(_)) => {
            town.ledger
                .fail("a device is said to be removed, and none was".to_owned());
        }
        Some(Payload::SystemManagerMsg(notice)) => {
            if let Some(state) = given_up(&notice) {
                town.ledger
                    .fail(format!("{}: messages are {state}", device.address()));
            }
        }
        _ => {}
    }
    Some(())
}

/// The state in a notice about messages that the node will not deliver any more.
fn given_up(notice: &SystemManagerMsg) -> Option<String> {
    if notice.op != SystemOp::NotificationMsg as i32 {
        return None;
    }
    let notice: serde_json::Value = serde_json::from_slice(&notice.payload).ok()?;
    let state = notice.get("state")?.as_str()?;
    matches!(state, "expired" | "refused").then(|| state.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_follows_from_what_both_sides_know() {
        let first = body(12, 1, 2, 3);

        assert_eq!(first, body(12, 1, 2, 3));
        assert_eq!(
            first.first_chunk().copied().map(u64::from_be_bytes),
            Some(12)
        );
        for other in [body(13, 1, 2, 3), body(12, 2, 1, 3), body(12, 1, 2, 4)] {
            assert_ne!(first, other);
        }
    }

    #[test]
    fn only_a_final_notice_is_a_failure() {
        let notice = |op: SystemOp, payload: &'static str| SystemManagerMsg {
            modified_date: 1,
            op: op as i32,
            payload: Bytes::from_static(payload.as_bytes()),
        };
        let state = |op, payload| given_up(&notice(op, payload));

        assert_eq!(
            state(SystemOp::NotificationMsg, r#"{"v":1,"state":"late"}"#),
            None
        );
        assert_eq!(
            state(SystemOp::WelcomeMsg, r#"{"v":1,"state":"refused"}"#),
            None
        );
        assert_eq!(state(SystemOp::NotificationMsg, "hello"), None);
        assert_eq!(
            state(SystemOp::NotificationMsg, r#"{"v":1,"state":"refused"}"#).as_deref(),
            Some("refused")
        );
    }
}
