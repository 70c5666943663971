//! Silent domains: the breaker, probes, contacts, and that one domain's silence is not another's.

use crate::testing::Must as _;

use crate::{
    error::Error,
    limits::Limits,
    peers::{
        notices::{Told, sweep},
        testing::{Call, Rig, domain, outgoing},
        wire::HEALTH,
    },
    proto::skiserver::{AcquireGroupMemberInfosRequest, AcquireGroupMemberInfosResponse},
    store::{Wake, peers::Note},
};
use prost::Message as _;

const BOB: &str = "bob@b.test";
const CAROL: &str = "carol@b.test";

async fn ask(rig: &Rig) -> crate::error::Result<AcquireGroupMemberInfosResponse> {
    let request = AcquireGroupMemberInfosRequest::default();
    let peers = &rig.node.peers;
    peers
        .ask(
            &rig.node,
            &domain("b.test"),
            "AcquireGroupMemberInfos",
            request,
        )
        .await
}

fn answer(code: i32) -> Vec<u8> {
    AcquireGroupMemberInfosResponse {
        code,
        ..Default::default()
    }
    .encode_to_vec()
}

#[tokio::test]
async fn while_a_domain_is_silent_requests_are_stored_at_once_and_one_probe_tries() {
    let rig = Rig::new().await;
    let first = rig.relay(BOB, "b1");
    rig.hears("b1").await.silence();
    first.await.must().must();

    rig.relay(CAROL, "c1").await.must().must();
    rig.retry(BOB).await;

    let probe = rig.call().await;
    rig.relay("dave@b.test", "d1").await.must().must();
    assert!(rig.pending_call().await.is_none());
    let mut said = vec![probe.says().to_owned()];
    probe.ok();
    let rest = [rig.call().await, rig.call().await];
    said.extend(rest.iter().map(|call| call.says().to_owned()));
    rest.into_iter().for_each(Call::ok);
    said.sort();
    assert_eq!(said, ["b1", "c1", "d1"]);
    rig.until_rows(0).await;
}

#[tokio::test]
async fn an_outage_is_tried_again_and_again_until_the_domain_answers() {
    let rig = Rig::new().await;
    rig.store(outgoing(BOB, "b1")).await;

    for _ in 0..20 {
        rig.hears("b1").await.silence();
        rig.retry(BOB).await;
    }

    rig.hears("b1").await.ok();
    rig.until_rows(0).await;
}

#[tokio::test]
async fn a_request_from_a_silent_domain_has_it_tried_at_once() {
    let rig = Rig::new().await;
    rig.store(outgoing(BOB, "b1")).await;
    for _ in 0..9 {
        rig.hears("b1").await.silence();
        rig.retry(BOB).await;
    }
    rig.hears("b1").await.silence();
    let peer = rig.node.peers.peer(&domain("b.test"));
    while peer.is_called() {
        tokio::task::yield_now().await;
    }

    rig.node.peers.contact(&domain("b.test"));

    rig.hears("b1").await.ok();
    rig.until_rows(0).await;
}

#[tokio::test]
async fn dead_domains_do_not_starve_a_healthy_one() {
    let limits = Limits {
        probes_max: 4,
        deliveries_max: 4,
        ..Limits::default()
    };
    let rig = Rig::with(limits).await;
    for n in 0..1_000 {
        let name = format!("dead{n}.test");
        crate::peers::lock(&rig.wire.dead).insert(domain(&name));
        rig.store(outgoing(&format!("someone@{name}"), "never"))
            .await;
    }

    let direct = rig.relay(BOB, "b1");
    let call = rig.hears("b1").await;
    rig.relay(BOB, "b2").await.must().must();
    call.ok();
    direct.await.must().must();
    rig.hears("b2").await.ok();
    rig.store(outgoing("carol@c.test", "c1")).await;
    rig.node.peers.contact(&domain("c.test"));
    rig.hears("c1").await.ok();

    rig.until_rows(1_000).await;
}

#[tokio::test]
async fn an_ask_gets_the_answer_or_what_it_stands_for() {
    let rig = Rig::new().await;
    let (found, call) = tokio::join!(ask(&rig), async {
        let call = rig.call().await;
        assert_eq!(
            call.path,
            "/skiserver.E2eeS2SService/AcquireGroupMemberInfos"
        );
        call.bytes(answer(200));
    });
    let ((), found) = (call, found.must());
    assert_eq!(found.code, 200);

    let (refused, ()) = tokio::join!(ask(&rig), async { rig.call().await.bytes(answer(404)) });
    assert!(
        matches!(refused, Err(Error::Refused { code: 404, .. })),
        "{refused:?}"
    );
    let (garbage, ()) = tokio::join!(ask(&rig), async { rig.call().await.bytes(vec![0xff; 9]) });
    assert!(matches!(garbage, Err(Error::Unreachable(_))), "{garbage:?}");
    let (failed, ()) = tokio::join!(ask(&rig), async { rig.call().await.fail() });
    assert!(matches!(failed, Err(Error::Unreachable(_))), "{failed:?}");
    let (silent, ()) = tokio::join!(ask(&rig), async { rig.call().await.silence() });
    assert!(matches!(silent, Err(Error::Unreachable(_))), "{silent:?}");
}

#[tokio::test]
async fn a_silent_domain_is_asked_by_few_at_a_time_until_it_answers() {
    let rig = Rig::new().await;
    let (first, ()) = tokio::join!(ask(&rig), async { rig.call().await.silence() });
    assert!(first.is_err());

    let asks = async { tokio::join!(ask(&rig), ask(&rig), ask(&rig), ask(&rig)) };
    let more = async {
        let calls = [
            rig.call().await,
            rig.call().await,
            rig.call().await,
            rig.call().await,
        ];
        let fifth = ask(&rig).await;
        assert!(matches!(fifth, Err(Error::Unreachable(_))), "{fifth:?}");
        for call in calls {
            call.bytes(answer(200));
        }
    };
    let ((a, b, c, d), ()) = tokio::join!(asks, more);

    assert!([a, b, c, d].iter().all(Result::is_ok));
    let relayed = rig.relay(BOB, "direct");
    rig.hears("direct").await.ok();
    relayed.await.must().must();
    assert_eq!(rig.outbox_rows().await, 0);
}

#[tokio::test]
async fn nothing_goes_to_a_domain_that_the_policy_denies() {
    let rig = Rig::new().await;
    crate::peers::lock(&rig.wire.denied).insert(domain("b.test"));

    let relayed = rig.relay(BOB, "1").await.must();
    let asked = ask(&rig).await;

    assert!(matches!(relayed, Err(Error::Forbidden(_))), "{relayed:?}");
    assert!(matches!(asked, Err(Error::Forbidden(_))), "{asked:?}");
    assert!(rig.pending_call().await.is_none());
}

#[tokio::test]
async fn a_start_greets_the_domains_heard_of_lately_and_a_good_answer_proves_them() {
    let rig = Rig::new().await;
    let now = rig.node.clock.now_ms();
    let day_ms = 86_400_000;
    let note = |name: &str, days: i64| Note {
        domain: domain(name),
        contact_at: now - days * day_ms,
        failing_since: 0,
        error: String::new(),
    };
    let mut tx = rig.node.store.begin().await.must();
    let notes = [note("new.test", 6), note("old.test", 8)];
    crate::store::peers::note(&mut tx, &notes).await.must();
    tx.commit(Wake::default()).await.must();

    let rig = rig.again().await;

    let greeting = rig.call().await;
    assert_eq!(
        (greeting.domain.as_str(), greeting.path.as_str()),
        ("new.test", HEALTH)
    );
    assert!(greeting.request.is_empty());
    greeting.bytes(Vec::new());
    assert!(rig.pending_call().await.is_none());
}

#[tokio::test]
async fn contacts_and_outages_are_written_down() {
    let rig = Rig::without_sweep().await;
    let mut told = Told::default();
    let contact = "SELECT last_contact_at FROM peers WHERE domain = 'b.test'";
    let failing = "SELECT failing_since FROM peers WHERE domain = 'b.test'";
    let before = rig.node.clock.now_ms();
    rig.prove(BOB).await;
    sweep(&rig.node, &mut told).await.must();
    assert!(rig.number(contact).await >= before);
    assert_eq!(rig.number(failing).await, 0);

    let relayed = rig.relay(BOB, "1");
    rig.hears("1").await.silence();
    relayed.await.must().must();
    sweep(&rig.node, &mut told).await.must();
    assert!(rig.number(failing).await >= before);

    rig.retry(BOB).await;
    rig.hears("1").await.ok();
    rig.until_rows(0).await;
    sweep(&rig.node, &mut told).await.must();
    assert_eq!(rig.number(failing).await, 0);
}
