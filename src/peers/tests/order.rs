//! Lanes, barriers and restarts: what is delivered in which order.

use crate::testing::Must as _;

use std::sync::atomic::Ordering;

use crate::{
    error::Error,
    limits::Limits,
    peers::testing::{Call, Rig, outgoing, within},
    store::{Append, Pair},
};

const BOB: &str = "bob@b.test";
const CAROL: &str = "carol@b.test";
const DAVE: &str = "dave@b.test";

#[tokio::test]
async fn a_request_to_an_empty_lane_is_answered_by_its_peer_and_never_stored() {
    let rig = Rig::new().await;

    let relayed = rig.relay(BOB, "1");
    let call = rig.hears("1").await;
    assert_eq!(call.path, "/skiserver.E2eeS2SService/SendOne2oneMsg");
    assert_eq!(call.domain, "b.test");
    call.ok();

    relayed.await.must().must();
    assert_eq!(rig.outbox_rows().await, 0);
}

#[tokio::test]
async fn a_final_refusal_of_a_direct_request_is_the_answer_and_stores_nothing() {
    let rig = Rig::new().await;
    for code in [400, 403, 404, 409] {
        let relayed = rig.relay(BOB, "1");
        rig.hears("1").await.code(code);

        let outcome = relayed.await.must();

        assert!(
            matches!(&outcome, Err(Error::Refused { code: c, message, .. })
                if *c == code && message == "words of the peer"),
            "{outcome:?}"
        );
        assert_eq!(rig.outbox_rows().await, 0);
    }
}

#[tokio::test]
async fn a_direct_request_without_an_answer_keeps_its_place_before_later_ones() {
    let rig = Rig::new().await;

    let first = rig.relay(BOB, "1");
    let direct = rig.hears("1").await;
    rig.relay(BOB, "2").await.must().must();
    rig.relay(BOB, "3").await.must().must();
    direct.silence();
    first.await.must().must();
    rig.retry(BOB).await;

    for says in ["1", "2", "3"] {
        rig.hears(says).await.ok();
    }
    rig.until_rows(0).await;
}

#[tokio::test]
async fn requests_behind_a_direct_one_follow_it_once_it_is_answered() {
    let rig = Rig::new().await;

    let first = rig.relay(BOB, "1");
    let direct = rig.hears("1").await;
    rig.relay(BOB, "2").await.must().must();
    assert!(rig.pending_call().await.is_none());
    direct.ok();
    first.await.must().must();

    rig.hears("2").await.ok();
    rig.until_rows(0).await;
}

#[tokio::test]
async fn what_goes_with_a_request_is_on_disk_either_way() {
    let rig = Rig::new().await;
    rig.alice().await;
    let with = |peer: &str| Append {
        pairs: vec![Pair {
            device: rig
                .node
                .home
                .device_from_columns("alice".into(), "phone".into()),
            peer: crate::address::DeviceAddress::parse(peer).must(),
        }],
        ..Append::default()
    };

    let direct = rig.relay_with(outgoing(BOB, "1"), with("bob@b.test/x"));
    rig.hears("1").await.ok();
    direct.await.must().must();
    let stored = rig.relay_with(outgoing(BOB, "2"), with("bob@b.test/y"));
    rig.hears("2").await.code(503);
    stored.await.must().must();

    assert_eq!(rig.number("SELECT COUNT(*) FROM sessions").await, 2);
    assert_eq!(rig.outbox_rows().await, 1);
}

#[tokio::test]
async fn a_direct_request_is_stored_when_its_time_is_over() {
    let limits = Limits {
        fast_path_ms: 5,
        ..Limits::default()
    };
    let rig = Rig::with(limits).await;

    let relayed = rig.relay(BOB, "1");
    let _silent = rig.hears("1").await;

    within(relayed).await.must().must();
    assert_eq!(rig.outbox_rows().await, 1);
}

#[tokio::test]
async fn lanes_of_one_domain_do_not_wait_for_each_other() {
    let rig = Rig::new().await;
    rig.prove(BOB).await;
    for (lane, says) in [(BOB, "b1"), (CAROL, "c1"), (BOB, "b2"), (CAROL, "c2")] {
        rig.store(outgoing(lane, says)).await;
    }

    let [bob, carol] = rig.calls().await;
    assert_eq!((bob.says(), carol.says()), ("b1", "c1"));
    carol.ok();
    rig.hears("c2").await.ok();
    bob.ok();

    rig.hears("b2").await.ok();
    rig.until_rows(0).await;
}

#[tokio::test]
async fn a_lane_that_is_put_off_stops_no_other_and_is_tried_again_in_order() {
    let rig = Rig::new().await;
    rig.prove(BOB).await;
    rig.store(outgoing(BOB, "b1")).await;
    rig.store(outgoing(BOB, "b2")).await;
    rig.hears("b1").await.code(503);

    let carol = rig.relay(CAROL, "c1");
    rig.hears("c1").await.ok();
    carol.await.must().must();
    rig.retry(BOB).await;

    rig.hears("b1").await.fail();
    rig.retry(BOB).await;
    rig.hears("b1").await.ok();
    rig.hears("b2").await.ok();
    rig.until_rows(0).await;
}

#[tokio::test]
async fn a_barrier_waits_for_what_is_before_it_and_holds_what_is_after_it() {
    let rig = Rig::new().await;
    rig.prove(BOB).await;
    for (lane, says) in [
        (BOB, "b1"),
        (CAROL, "c1"),
        ("", "barrier"),
        (BOB, "b2"),
        (DAVE, "d1"),
    ] {
        rig.store(outgoing(lane, says)).await;
    }
    let [bob, carol] = rig.calls().await;
    assert_eq!((bob.says(), carol.says()), ("b1", "c1"));

    // No lane may be passed by going directly either.
    rig.relay("eve@b.test", "e1").await.must().must();
    bob.ok();
    rig.until_rows(5).await;
    assert!(rig.pending_call().await.is_none());
    carol.ok();
    let barrier = rig.hears("barrier").await;
    assert_eq!(barrier.path, "/skiserver.E2eeS2SService/RemoveUserDevice");
    assert!(rig.pending_call().await.is_none());
    barrier.ok();

    let after: [Call; 3] = rig.calls().await;
    assert_eq!(after.each_ref().map(Call::says), ["b2", "d1", "e1"]);
    after.into_iter().for_each(Call::ok);
    rig.until_rows(0).await;
}

#[tokio::test]
async fn a_restart_delivers_everything_in_order() {
    let rig = Rig::new().await;
    rig.relay(BOB, "lost");
    rig.hears("lost").await.silence();
    let mut expected: Vec<Vec<String>> = Vec::new();
    for lane in 0..4 {
        expected.push((0..25).map(|n| format!("{lane}:{n}")).collect());
    }
    rig.until_rows(1).await;
    for n in 0..25 {
        for lane in 0..4 {
            let to = format!("user{lane}@b.test");
            rig.relay(&to, &format!("{lane}:{n}")).await.must().must();
        }
    }
    assert_eq!(rig.outbox_rows().await, 101);

    let rig = rig.again().await;

    let mut got: Vec<Vec<String>> = vec![Vec::new(); 4];
    for _ in 0..101 {
        let call = rig.call().await;
        if let Some((lane, _)) = call.says().split_once(':') {
            got[lane.parse::<usize>().must()].push(call.says().to_owned());
        }
        call.ok();
    }
    assert_eq!(got, expected);
    rig.until_rows(0).await;
}

#[tokio::test]
async fn a_place_given_back_lets_its_lane_go_on() {
    let rig = Rig::new().await;
    let (_, ticket) = rig
        .node
        .peers
        .parcel(&rig.node, outgoing(BOB, "never"))
        .must();
    rig.relay(BOB, "2").await.must().must();
    assert!(rig.pending_call().await.is_none());

    drop(ticket);

    rig.hears("2").await.ok();
    rig.until_rows(0).await;
}

#[tokio::test]
async fn a_relay_that_is_cancelled_leaves_its_lane_free() {
    let rig = Rig::new().await;
    let relayed = rig.relay(BOB, "1");
    let _unanswered = rig.hears("1").await;

    relayed.abort();
    assert!(relayed.await.unwrap_err().is_cancelled());

    let next = rig.relay(BOB, "2");
    rig.hears("2").await.ok();
    next.await.must().must();
    assert_eq!(rig.outbox_rows().await, 0);
}

#[tokio::test]
async fn a_row_whose_commit_was_uncertain_is_found_when_the_database_is_opened_again() {
    let rig = Rig::new().await;
    let (parcel, ticket) = rig.node.peers.parcel(&rig.node, outgoing(BOB, "1")).must();
    let append = Append {
        parcels: vec![parcel],
        ..Append::default()
    };
    rig.faults.fail_commit.store(true, Ordering::SeqCst);

    let outcome = rig.node.store.append(append).await;
    drop(ticket);

    assert!(matches!(outcome, Err(Error::Busy(_))), "{outcome:?}");
    rig.hears("1").await.ok();
    rig.until_rows(0).await;
}

#[tokio::test]
async fn a_domain_with_too_much_waiting_takes_no_more() {
    let limits = Limits {
        outbox_rows_max: 3,
        outbox_bytes_max: 30,
        ..Limits::default()
    };
    let rig = Rig::with(limits).await;
    let _first = rig.relay(BOB, "1");
    let _direct = rig.hears("1").await;

    let large = rig.relay(CAROL, &"x".repeat(40)).await.must();
    rig.relay(BOB, "2").await.must().must();
    rig.relay(BOB, "3").await.must().must();
    let many = rig.relay(CAROL, "4").await.must();

    assert!(matches!(large, Err(Error::Busy(_))), "{large:?}");
    assert!(matches!(many, Err(Error::Busy(_))), "{many:?}");
    assert!(
        rig.node
            .peers
            .parcel(&rig.node, outgoing(CAROL, "5"))
            .is_err()
    );
}

#[tokio::test]
async fn a_row_is_delivered_again_if_its_end_could_not_be_written() {
    let rig = Rig::new().await;
    rig.store(outgoing(BOB, "1")).await;
    rig.store(outgoing(BOB, "2")).await;
    let call = rig.hears("1").await;
    rig.faults.fail_batch.store(true, Ordering::SeqCst);

    call.ok();
    rig.retry(BOB).await;

    rig.hears("1").await.ok();
    rig.hears("2").await.ok();
    rig.until_rows(0).await;
}
