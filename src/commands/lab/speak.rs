//! What a talking device says: it invites those it does not know, then sends at a modest rate to everybody it has
//! a session with. An attempt without an answer is repeated byte for byte.

use std::{collections::VecDeque, ops::ControlFlow, time::Duration};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::{
    ledger::Number,
    town::{Member, Session, Town},
};
use crate::client::talk;

/// Each device sends one message in this time.
const PACE: Duration = Duration::from_millis(250);
/// The length of a ciphertext: the time inside, and up to this many bytes.
const BODY_BYTES: std::ops::Range<usize> = 64..640;

/// Invites and sends until told to stop.
pub(super) async fn speak(
    town: &Town,
    me: Number,
    stop: &CancellationToken,
    end: &CancellationToken,
) {
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
    let asked = talk::bundles(&member.device, &person.address);
    let bundles = match end.run_until_cancelled(asked).await {
        Some(Ok(bundles)) => bundles,
        Some(Err(error)) if town.try_again_after(&error).is_some() => return ControlFlow::Break(()),
        Some(Err(_)) | None => return ControlFlow::Continue(()),
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
pub(super) fn body(sent_us: u64, from: Number, to: Number, number: u32) -> Bytes {
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
}
