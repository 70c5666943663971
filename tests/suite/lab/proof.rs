//! That the lab itself does what its words say.

use skiserver::proto::{skiserver::AcquireGroupMemberInfosRequest, skissm::ResponseCode};

use super::*;

#[tokio::test]
async fn people_of_two_domains_talk_and_nothing_is_left() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let (mut ours, mut theirs) = (alice.stream().await, bob.stream().await);

    user::establish_on(&mut ours, &mut theirs).await;
    alice.send(&bob, "hello").await;
    bob.send(&alice, "good day").await;

    assert_eq!(theirs.next_text().await, "hello");
    assert_eq!(ours.next_text().await, "good day");
    lab.assert_silent(&mut ours).await;
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn a_killed_node_comes_back_with_what_it_had() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    alice.send(&bob, "before").await;
    let before = lab.snapshot().await;

    lab.kill("a.test").await;
    lab.start_node("a.test").await;

    before.assert_same(&lab.snapshot().await, "the crash");
    assert_eq!(bob.stream().await.next_text().await, "before");
}

#[tokio::test]
async fn a_stopped_node_comes_back_with_what_it_had() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    alice.send(&bob, "before").await;

    lab.stop("a.test").await;
    lab.start_node("a.test").await;

    assert_eq!(bob.stream().await.next_text().await, "before");
}

#[tokio::test]
async fn a_snapshot_sees_what_changes() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let before = lab.snapshot().await;

    alice.send(&bob, "hello").await;

    let changed = before.changed(&lab.snapshot().await);
    assert!(
        changed.contains(&"a.test: mailbox".to_owned()),
        "{changed:?}"
    );
}

#[tokio::test]
async fn a_scripted_peer_hears_and_answers() {
    let lab = Lab::start(["a.test"]).await;
    let evil = Scripted::join(&lab, "evil.test").await;
    let alice = lab.user("alice@a.test").await;
    let eve = evil.target("eve", "phone");
    evil.next(
        "GetPreKeyBundle",
        [Act::reply(&eve.answer(vec![eve.bundle()]))],
    );

    let bundles = skiserver::client::talk::bundles(&alice, &eve.address.user).await;
    let asked = evil.hears("GetPreKeyBundle", 1).await;
    let mut node = evil.calls(&lab, "a.test");
    let infos = node.acquire_group_member_infos(AcquireGroupMemberInfosRequest {
        user_address: Some(alice.address().user.to_proto()),
    });

    assert_eq!(bundles.unwrap().len(), 1);
    assert_eq!(asked[0].domain, "a.test");
    assert_code(&answer(infos).await, ResponseCode::Ok);
}
