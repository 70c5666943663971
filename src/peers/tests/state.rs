//! The states of a lane and of a domain by themselves, where order and time matter most.

use crate::testing::Must as _;

use std::sync::Arc;

use crate::{
    limits::{BARRIER_PATIENCE_MS, CONTACT_CLEARS_EVERY_MS, CONTACT_NOTED_EVERY_MS, Limits},
    peers::{
        lanes::{Hold, Lanes},
        peer::{Next, Peer},
        testing::domain,
    },
};

const NOW: i64 = 1_000_000;

fn stored(rows: &[(&str, i64)]) -> Lanes {
    let mut lanes = Lanes::default();
    for (lane, place) in rows {
        lanes.hold(lane, *place, Hold::Stored, 10);
    }
    lanes
}

fn started(lanes: &mut Lanes, now: i64) -> Vec<(String, i64)> {
    std::iter::from_fn(|| lanes.start(now, true))
        .map(|(lane, place)| (lane.to_string(), place))
        .collect()
}

#[test]
fn each_lane_starts_its_first_place_only() {
    let mut lanes = stored(&[("a", 1), ("a", 2), ("b", 3), ("c", 5)]);
    lanes.hold("c", 4, Hold::Reserved, 10);

    let first = started(&mut lanes, NOW);
    lanes.done("a", 1);
    let second = started(&mut lanes, NOW);

    assert_eq!(first, [("a".to_owned(), 1), ("b".to_owned(), 3)]);
    assert_eq!(second, [("a".to_owned(), 2)]);
}

#[test]
fn a_row_found_late_does_not_start_beside_one_of_its_lane() {
    let mut lanes = stored(&[("a", 5)]);
    assert_eq!(started(&mut lanes, NOW).len(), 1);

    lanes.hold("a", 3, Hold::Stored, 10);

    assert_eq!(started(&mut lanes, NOW), []);
    lanes.done("a", 5);
    assert_eq!(started(&mut lanes, NOW), [("a".to_owned(), 3)]);
}

#[test]
fn counts_follow_every_change() {
    let mut lanes = Lanes::default();
    lanes.hold("a", 1, Hold::Direct, 10);
    lanes.hold("a", 2, Hold::Reserved, 20);
    assert_eq!(
        (lanes.rows(), lanes.bytes(), lanes.stored(), lanes.called()),
        (2, 30, 0, 1)
    );

    lanes.hold("a", 1, Hold::Reserved, 0);
    lanes.hold("a", 1, Hold::Stored, 0);
    assert!(!lanes.release("a", 1), "a row on disk keeps its place");
    assert!(lanes.release("a", 2));
    assert_eq!(
        (lanes.rows(), lanes.bytes(), lanes.stored(), lanes.called()),
        (1, 10, 1, 0)
    );

    assert_eq!(started(&mut lanes, NOW).len(), 1);
    lanes.withdraw("a", 1);
    assert_eq!(
        (lanes.rows(), lanes.called()),
        (1, 1),
        "a delivery ends by itself"
    );
    lanes.done("a", 1);
    assert_eq!(
        (lanes.rows(), lanes.bytes(), lanes.stored(), lanes.called()),
        (0, 0, 0, 0)
    );
}

#[test]
fn a_barrier_waits_for_places_that_are_not_yet_on_disk() {
    let mut lanes = stored(&[("", 2), ("a", 3)]);
    lanes.hold("b", 1, Hold::Reserved, 10);

    assert_eq!(started(&mut lanes, NOW), []);
    lanes.release("b", 1);
    assert_eq!(started(&mut lanes, NOW), [(String::new(), 2)]);
    assert_eq!(
        started(&mut lanes, NOW),
        [],
        "what is after it waits for its end"
    );
    lanes.done("", 2);
    assert_eq!(started(&mut lanes, NOW), [("a".to_owned(), 3)]);
}

#[test]
fn a_lane_put_off_for_long_holds_back_no_barrier() {
    let limits = Limits::default();
    let mut lanes = stored(&[("full", 1), ("", 2), ("a", 3)]);
    assert_eq!(started(&mut lanes, NOW), [("full".to_owned(), 1)]);
    lanes.put_off("full", 1, "code 503", NOW, &limits);

    let soon = NOW + BARRIER_PATIENCE_MS - 1;
    assert_eq!(started(&mut lanes, soon), [("full".to_owned(), 1)]);
    lanes.put_off("full", 1, "code 503", soon, &limits);
    let late = lanes.start(NOW + BARRIER_PATIENCE_MS, true);

    assert_eq!(late, Some((Arc::from(""), 2)));
}

#[test]
fn silence_of_the_domain_lets_no_barrier_pass_anything() {
    let limits = Limits::default();
    let mut lanes = stored(&[("a", 1), ("", 2)]);
    assert_eq!(started(&mut lanes, NOW).len(), 1);
    lanes.put_off("a", 1, "code 503", NOW, &limits);
    let late = NOW + BARRIER_PATIENCE_MS * 10;

    for _ in 0..50 {
        assert_eq!(lanes.start(late, false), Some((Arc::from("a"), 1)));
        lanes.put_back("a", 1);
    }
    lanes.forget_backoffs();

    assert_eq!(started(&mut lanes, late), [("a".to_owned(), 1)]);
}

#[test]
fn probes_try_one_lane_after_the_other() {
    let mut lanes = stored(&[("a", 1), ("b", 2), ("c", 3), ("", 4), ("d", 5)]);
    let mut probed = std::collections::BTreeSet::new();

    while probed.len() < 3 {
        let (lane, place) = lanes.start(NOW, false).must();
        lanes.put_back(&lane, place);
        probed.insert(place);
    }

    assert_eq!(probed, [1, 2, 3].into());
}

#[test]
fn a_barrier_put_off_for_long_holds_back_nothing() {
    let limits = Limits::default();
    let mut lanes = stored(&[("", 1), ("a", 2)]);
    assert_eq!(started(&mut lanes, NOW), [(String::new(), 1)]);
    lanes.put_off("", 1, "code 503", NOW, &limits);
    assert!(!lanes.is_free("b", NOW));

    let late = NOW + BARRIER_PATIENCE_MS;

    assert!(lanes.is_free("b", late));
    let mut all = started(&mut lanes, late);
    all.sort_by_key(|(_, place)| *place);
    assert_eq!(all, [(String::new(), 1), ("a".to_owned(), 2)]);
}

fn peer_with(rows: i64) -> Arc<Peer> {
    let peer = Arc::new(Peer::new(domain("b.test")));
    for place in 1..=rows {
        peer.stored(&format!("lane{place}"), place, 10);
    }
    peer
}

fn deliveries(peer: &Arc<Peer>, now: i64) -> Vec<crate::peers::peer::Job> {
    let limits = Arc::new(Limits::default());
    std::iter::from_fn(|| match peer.next(now, &limits) {
        Next::Deliver(job) => Some(job),
        Next::Wait(_) | Next::Idle => None,
    })
    .collect()
}

#[test]
fn an_unknown_domain_gets_one_probe_and_a_proven_one_its_window() {
    let peer = peer_with(100);

    let probes = deliveries(&peer, NOW);
    assert_eq!(probes.len(), 1);
    assert!(probes[0].is_probe);
    peer.answered(NOW);
    let window = deliveries(&peer, NOW);

    assert_eq!(window.len(), 31, "the first is still under way");
    assert!(window.iter().all(|job| !job.is_probe));
}

#[test]
fn a_domain_that_called_us_is_tried_among_the_healthy() {
    let peer = peer_with(2);

    peer.contact(NOW);

    let jobs = deliveries(&peer, NOW);
    assert_eq!(jobs.len(), 1);
    assert!(!jobs[0].is_probe);
}

#[test]
fn silence_met_by_many_calls_counts_once_and_an_answer_meanwhile_excuses_the_domain() {
    let limits = Limits::default();
    let peer = peer_with(1);
    let before = [peer.begin(), peer.begin()];

    peer.answered(NOW);
    assert!(!peer.silent(before[0], true, "silence", NOW, &limits));
    assert!(!peer.is_silent());
    let after = [peer.begin(), peer.begin()];
    assert!(peer.silent(after[0], true, "silence", NOW, &limits));
    let retry_at = peer.outlook("lane1", NOW).1;
    assert!(peer.silent(after[1], true, "silence", NOW + 1, &limits));
    assert!(!peer.silent(before[1], true, "silence", NOW, &limits));

    assert_eq!(peer.outlook("lane1", NOW).1, retry_at);
}

#[test]
fn calls_for_data_do_not_prolong_an_outage() {
    let limits = Limits::default();
    let peer = peer_with(1);
    assert!(peer.silent(peer.begin(), false, "silence", NOW, &limits));
    let retry_at = peer.outlook("lane1", NOW).1;

    for _ in 0..100 {
        assert!(peer.silent(peer.begin(), false, "silence", NOW + 10, &limits));
    }

    assert_eq!(peer.outlook("lane1", NOW).1, retry_at);
}

#[test]
fn a_domain_that_calls_us_but_is_out_of_reach_ends_its_backoff_seldom() {
    let limits = Limits::default();
    let peer = peer_with(1);
    let fail = |now| {
        peer.silent(peer.begin(), true, "silence", now, &limits);
        assert!(peer.is_silent());
    };

    fail(NOW);
    peer.contact(NOW);
    assert!(!peer.is_silent());
    fail(NOW + 1);
    peer.contact(NOW + 2);
    assert!(peer.is_silent());
    peer.contact(NOW + CONTACT_CLEARS_EVERY_MS);
    assert!(!peer.is_silent());
}

#[test]
fn a_contact_hurries_lanes_that_are_put_off_but_does_not_excuse_them() {
    let limits = Limits::default();
    let mut lanes = stored(&[("full", 1), ("", 2)]);
    let mut now = NOW;
    for _ in 0..10 {
        assert_eq!(lanes.start(now, true), Some((Arc::from("full"), 1)));
        lanes.put_off("full", 1, "code 503", now, &limits);
        lanes.hurry();
        now += BARRIER_PATIENCE_MS / 10;
    }

    let after = started(&mut lanes, now);

    assert_eq!(after, [("full".to_owned(), 1), (String::new(), 2)]);
}

#[test]
fn a_contact_is_written_down_once_a_minute() {
    let peer = peer_with(0);
    peer.contact(NOW);
    assert_eq!(peer.news().must().contact_at, NOW);

    peer.contact(NOW + CONTACT_NOTED_EVERY_MS - 1);
    assert!(peer.news().is_none());
    peer.contact(NOW + CONTACT_NOTED_EVERY_MS);

    assert_eq!(peer.news().must().contact_at, NOW + CONTACT_NOTED_EVERY_MS);
}

#[test]
fn a_domain_is_forgotten_only_when_nothing_of_it_is_left() {
    let peer = peer_with(1);
    peer.answered(NOW);
    assert!(!peer.is_forgettable(NOW + CONTACT_NOTED_EVERY_MS));
    let job = deliveries(&peer, NOW).pop().must();
    job.done();
    assert!(matches!(
        peer.next(NOW, &Arc::new(Limits::default())),
        Next::Idle
    ));
    assert!(
        !peer.is_forgettable(NOW + CONTACT_NOTED_EVERY_MS),
        "its note is not written"
    );
    assert!(peer.news().is_some());

    assert!(!peer.is_forgettable(NOW));
    assert!(peer.is_forgettable(NOW + CONTACT_NOTED_EVERY_MS));
}

#[test]
fn a_delivery_that_is_dropped_is_tried_again() {
    let peer = peer_with(1);
    let job = deliveries(&peer, NOW).pop().must();

    drop(job);

    let later = NOW + 1_000;
    assert_eq!(deliveries(&peer, later).len(), 1);
}
