//! What a talking device does with everything that arrives: it checks it, does what it asks for, and consumes it, one
//! message after the other. When its node is away it waits and goes on where it was.

use std::time::Duration;

use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use super::{
    ledger::{Arrival, Number},
    speak::body,
    town::{Member, Session, Town},
};
use crate::{
    client::{ClientError, Inbox, talk, verify},
    proto::skissm::{
        AcceptMsg, E2eeMsg, InviteMsg, ProtoMsg, ProtoMsgTag, SystemManagerMsg, SystemOp, e2ee_msg,
        proto_msg::Payload,
    },
};

/// Each device shows on its stream that it is alive at this interval.
const HEARTBEAT: Duration = Duration::from_secs(20);
/// A stream that broke is opened again after this time.
const REOPEN: Duration = Duration::from_millis(300);

/// Keeps the stream open and handles what comes, one after the other.
pub(super) async fn listen(town: &Town, me: Number, end: &CancellationToken) {
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
    use bytes::Bytes;

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
