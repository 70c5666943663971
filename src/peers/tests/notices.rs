//! What senders are told about messages that are late, expired or refused: once, grouped, and true.

use crate::testing::Must as _;

use serde_json::Value;

use crate::{
    limits::OUTBOX_BATCH_ROWS,
    peers::{
        Outgoing, lock,
        notices::{Told, sweep},
        testing::{Rig, domain, outgoing},
    },
    proto::skissm::{ProtoMsg, SystemOp, proto_msg::Payload},
};

const BOB: &str = "bob@b.test";
const CAROL: &str = "carol@b.test";
const MINUTE_MS: i64 = 60_000;
const DAY_MS: i64 = 86_400_000;

fn notice(message: &ProtoMsg) -> Value {
    assert_eq!(message.from, None);
    let Some(Payload::SystemManagerMsg(system)) = &message.payload else {
        panic!("{message:?}");
    };
    assert_eq!(system.op(), SystemOp::NotificationMsg);
    serde_json::from_slice(&system.payload).must()
}

async fn notices(rig: &Rig, device_key: i64) -> Vec<Value> {
    let mut notices: Vec<Value> = rig.mailbox(device_key).await.iter().map(notice).collect();
    notices.sort_by_key(|n| (n["state"].to_string(), n["to"].to_string()));
    notices
}

/// Two messages to Bob and one to Carol wait for a domain that is dead.
async fn waiting() -> (Rig, i64) {
    let rig = Rig::without_sweep().await;
    let alice = rig.alice().await;
    let first = rig.relay(BOB, "b1");
    rig.hears("b1").await.silence();
    first.await.must().must();
    lock(&rig.wire.dead).insert(domain("b.test"));
    rig.relay(BOB, "b2").await.must().must();
    rig.relay(CAROL, "c1").await.must().must();
    (rig, alice)
}

#[tokio::test]
async fn late_messages_are_told_once_for_each_recipient_and_daily_after() {
    let (rig, alice) = waiting().await;
    let mut told = Told::default();
    rig.node.clock.turn(9 * MINUTE_MS);
    sweep(&rig.node, &mut told).await.must();
    assert_eq!(notices(&rig, alice).await, Vec::<Value>::new());

    rig.node.clock.turn(2 * MINUTE_MS);
    sweep(&rig.node, &mut told).await.must();

    let first = notices(&rig, alice).await;
    let [bob, carol] = first.as_slice() else {
        panic!("{first:?}");
    };
    assert_eq!(bob["v"], 1);
    assert_eq!(bob["state"], "late");
    assert_eq!(bob["to"], BOB);
    assert_eq!(bob["count"], 2);
    assert_eq!(bob["msg_ids"], serde_json::json!(["b1", "b2"]));
    assert_eq!(bob["reason"], "connection refused");
    assert!(bob["next_try_ms"].as_i64().must() > 0);
    assert_eq!((&carol["to"], &carol["count"]), (&CAROL.into(), &1.into()));

    // One more message becomes late, which is no news to its sender until tomorrow.
    rig.relay(BOB, "b3").await.must().must();
    for _ in 0..4 {
        rig.node.clock.turn(5 * 60 * MINUTE_MS);
        sweep(&rig.node, &mut told).await.must();
    }
    assert_eq!(notices(&rig, alice).await.len(), 2);
    rig.node.clock.turn(4 * 60 * MINUTE_MS);
    sweep(&rig.node, &mut told).await.must();
    sweep(&rig.node, &mut told).await.must();

    let all = notices(&rig, alice).await;
    let counts: Vec<_> = all
        .iter()
        .map(|n| (n["to"].clone(), n["count"].clone()))
        .collect();
    let expected = [(BOB, 2), (BOB, 3), (CAROL, 1), (CAROL, 1)];
    assert_eq!(
        counts,
        expected.map(|(to, count)| (to.into(), count.into()))
    );
}

#[tokio::test]
async fn expired_messages_are_told_once_and_leave_nothing() {
    let (rig, alice) = waiting().await;
    let mut told = Told::default();

    rig.node.clock.turn(7 * DAY_MS + 1);
    sweep(&rig.node, &mut told).await.must();
    sweep(&rig.node, &mut told).await.must();

    let all = notices(&rig, alice).await;
    let [bob, carol] = all.as_slice() else {
        panic!("{all:?}");
    };
    assert_eq!(bob["state"], "expired");
    assert_eq!(bob["msg_ids"], serde_json::json!(["b1", "b2"]));
    assert_eq!(bob["next_try_ms"], 0);
    assert_eq!(carol["count"], 1);
    assert_eq!(rig.outbox_rows().await, 0);
    assert_eq!(
        rig.number("SELECT COUNT(*) FROM bodies").await,
        2,
        "the two notices"
    );
}

#[tokio::test]
async fn refused_messages_are_told_together_and_later_ones_after_a_pause() {
    let rig = Rig::without_sweep().await;
    let alice = rig.alice().await;
    let mut told = Told::default();
    for says in ["1", "2"] {
        rig.store(outgoing(BOB, says)).await;
        rig.hears(says).await.code(403);
    }
    rig.until("SELECT COUNT(*) FROM outbox WHERE refused_code = 403", 2)
        .await;
    sweep(&rig.node, &mut told).await.must();
    rig.store(outgoing(BOB, "3")).await;
    rig.hears("3").await.code(403);
    rig.until("SELECT COUNT(*) FROM outbox WHERE refused_code = 403", 1)
        .await;
    sweep(&rig.node, &mut told).await.must();

    let first = notices(&rig, alice).await;
    rig.node.clock.turn(10 * MINUTE_MS);
    sweep(&rig.node, &mut told).await.must();
    let both = notices(&rig, alice).await;

    assert_eq!(first.len(), 1);
    assert_eq!(first[0]["state"], "refused");
    assert_eq!(first[0]["count"], 2);
    assert_eq!(first[0]["reason"], "words of the peer");
    let counts: Vec<_> = both.iter().map(|n| n["count"].clone()).collect();
    assert_eq!(counts, [2, 1]);
    assert_eq!(rig.outbox_rows().await, 0);
}

#[tokio::test]
async fn a_change_of_policy_refuses_what_waits_with_one_notice_however_much_it_is() {
    let rig = Rig::without_sweep().await;
    let alice = rig.alice().await;
    let blocker = rig.relay(BOB, "never");
    let _direct = rig.hears("never").await;
    let rows = OUTBOX_BATCH_ROWS + 50;
    for n in 0..rows {
        rig.store(outgoing(BOB, &format!("{n}"))).await;
    }
    rig.store(Outgoing {
        sender: String::new(),
        ..outgoing(CAROL, "of nobody")
    })
    .await;
    blocker.abort();
    lock(&rig.wire.denied).insert(domain("b.test"));

    sweep(&rig.node, &mut Told::default()).await.must();

    let all = notices(&rig, alice).await;
    let [one] = all.as_slice() else {
        panic!("{all:?}");
    };
    assert_eq!(one["state"], "refused");
    assert_eq!(one["count"], rows);
    assert_eq!(one["msg_ids"].as_array().must().len(), 100);
    assert_eq!(rig.outbox_rows().await, 0);
}
