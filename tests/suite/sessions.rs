//! How sessions begin: an invite that the node completes, and an accept that arrives exactly once.

use skiserver::{
    address::{DeviceAddress, UserAddress},
    client::{Pack, talk},
    proto::{
        skiserver::LogoutRequest,
        skissm::{
            AcceptMsg, AcceptRequest, AcceptResponse, E2eeAddress, InviteMsg, InviteRequest,
            InviteResponse, PeerGroup, ResponseCode, e2ee_address::Peer,
        },
    },
};

use crate::lab::{Lab, Spoil, User, answer, assert_code, establish, refuses_each};

use ResponseCode::{BadRequest, Forbidden, NotFound, Ok as Granted, ServiceUnavailable};

async fn invite(from: &User, message: &InviteMsg) -> InviteResponse {
    let request = InviteRequest {
        msg: Some(message.clone()),
    };
    answer(from.unary().invite(request)).await
}

async fn accept(from: &User, message: &AcceptMsg) -> AcceptResponse {
    let request = AcceptRequest {
        msg: Some(message.clone()),
    };
    answer(from.unary().accept(request)).await
}

async fn invitation(from: &User, to: &User) -> InviteMsg {
    talk::invitation(from, &from.bundle(to).await).unwrap()
}

async fn logout(user: &User) {
    let request = LogoutRequest {
        user_address: Some(user.address().to_proto()),
    };
    assert_code(&answer(user.unary().logout(request)).await, Granted);
}

fn address(text: &str) -> Option<E2eeAddress> {
    Some(DeviceAddress::parse(text).unwrap().to_proto())
}

fn user_only(text: &str) -> Option<E2eeAddress> {
    Some(UserAddress::parse(text).unwrap().to_proto())
}

fn group(domain: &str) -> Option<E2eeAddress> {
    Some(E2eeAddress {
        domain: domain.to_owned(),
        peer: Some(Peer::Group(PeerGroup {
            group_name: "picnic".to_owned(),
            group_id: "picnic".to_owned(),
        })),
    })
}

#[tokio::test]
async fn an_invite_is_completed_with_the_inviters_key_and_the_nodes_time() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;

    for bob in [&here, &there] {
        let mut sent = invitation(&alice, bob).await;
        sent.invite_t = 12;
        sent.alice_identity_key = b"mallory".as_slice().into();
        let now = lab.clock.now_ms();

        let reply = invite(&alice, &sent).await;

        assert_code(&reply, Granted);
        assert_eq!(reply.session_id, sent.session_id);
        assert!((now..now + 60_000).contains(&reply.invite_t), "{reply:?}");
        let received = bob.stream().await.next_invite().await;
        sent.from = Some(alice.address().to_proto_named("alice"));
        sent.alice_identity_key = alice.keys().identity().asym_public_key.clone();
        sent.invite_t = reply.invite_t;
        assert_eq!(received.from, sent.from);
        assert_eq!(received.said, sent, "everything else is as it was");
    }
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn a_session_with_keys_of_the_default_pack_begins_over_two_domains() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let alice = lab.user_with("alice@a.test", Pack::DEFAULT).await;
    let bob = lab.user_with("bob@b.test", Pack::DEFAULT).await;

    establish(&alice, &bob).await;

    alice.send(&bob, "hello").await;
    assert_eq!(bob.stream().await.next_text().await, "hello");
}

#[tokio::test]
async fn an_invite_that_is_sent_again_has_the_first_ones_time_and_is_queued_once() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;

    for bob in [&here, &there] {
        let sent = invitation(&alice, bob).await;
        let first = invite(&alice, &sent).await;
        lab.clock.turn(5_000);
        let again = invite(&alice, &sent).await;

        assert_code(&again, Granted);
        assert_eq!(again.invite_t, first.invite_t);
        assert_eq!(again.session_id, sent.session_id);
        let mut stream = bob.stream().await;
        assert_eq!(stream.next_invite().await.said.invite_t, first.invite_t);
        lab.assert_silent(&mut stream).await;
        lab.clock.turn(5_000);
        let consumed = invite(&alice, &sent).await;
        assert_eq!(consumed.invite_t, first.invite_t);
        let another = InviteMsg {
            session_id: talk::fresh_id(),
            ..sent
        };
        let another = invite(&alice, &another).await;
        assert!(another.invite_t >= first.invite_t + 10_000, "{another:?}");
    }
}

fn invited(request: &mut InviteRequest) -> &mut InviteMsg {
    request.msg.as_mut().unwrap()
}

#[tokio::test]
async fn an_invite_is_refused_for_each_wrong_field() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    lab.second_device(&alice, "tablet").await;
    let good = InviteRequest {
        msg: Some(invitation(&alice, &bob).await),
    };
    assert_eq!(good.msg.as_ref().unwrap().pre_shared_input_list.len(), 3);
    let spoils: &[Spoil<InviteRequest>] = &[
        ("no message", |r| r.msg = None, BadRequest),
        ("no inviter", |r| invited(r).from = None, BadRequest),
        (
            "an inviter without kind",
            |r| invited(r).from.as_mut().unwrap().peer = None,
            BadRequest,
        ),
        (
            "a group as inviter",
            |r| invited(r).from = group("a.test"),
            BadRequest,
        ),
        (
            "an inviter without device",
            |r| invited(r).from = user_only("alice@a.test"),
            BadRequest,
        ),
        (
            "somebody else as inviter",
            |r| invited(r).from = address("bob@a.test/phone"),
            Forbidden,
        ),
        (
            "a sibling as inviter",
            |r| invited(r).from = address("alice@a.test/tablet"),
            Forbidden,
        ),
        (
            "a namesake as inviter",
            |r| invited(r).from = address("alice@b.test/phone"),
            Forbidden,
        ),
        ("nobody invited", |r| invited(r).to = None, BadRequest),
        (
            "a group invited",
            |r| invited(r).to = group("b.test"),
            BadRequest,
        ),
        (
            "no device invited",
            |r| invited(r).to = user_only("bob@b.test"),
            BadRequest,
        ),
        (
            "an impossible domain",
            |r| invited(r).to.as_mut().unwrap().domain = "b_test".into(),
            BadRequest,
        ),
        (
            "an overlong version",
            |r| invited(r).version = "1".repeat(100),
            BadRequest,
        ),
        (
            "no session id",
            |r| invited(r).session_id.clear(),
            BadRequest,
        ),
        (
            "an overlong session id",
            |r| invited(r).session_id = "s".repeat(129),
            BadRequest,
        ),
        (
            "a session id with a zero byte",
            |r| invited(r).session_id = "s\0".into(),
            BadRequest,
        ),
        (
            "no base key",
            |r| invited(r).alice_base_key.clear(),
            BadRequest,
        ),
        (
            "a base key of another length than its pack's",
            |r| drop(invited(r).alice_base_key.split_off(31)),
            BadRequest,
        ),
        (
            "a secret of another length than its pack's",
            |r| drop(invited(r).pre_shared_input_list[1].split_off(31)),
            BadRequest,
        ),
        (
            "a pack that nobody has",
            |r| invited(r).e2ee_pack_id = 7,
            BadRequest,
        ),
        (
            "no secrets",
            |r| invited(r).pre_shared_input_list.clear(),
            BadRequest,
        ),
        (
            "one secret",
            |r| invited(r).pre_shared_input_list.truncate(1),
            BadRequest,
        ),
        (
            "two secrets with a one-time key",
            |r| invited(r).pre_shared_input_list.truncate(2),
            BadRequest,
        ),
        (
            "one secret without a one-time key",
            |r| {
                invited(r).bob_one_time_pre_key_id = 0;
                invited(r).pre_shared_input_list.truncate(1);
            },
            BadRequest,
        ),
        (
            "an empty secret",
            |r| invited(r).pre_shared_input_list[1].clear(),
            BadRequest,
        ),
        (
            "more secrets than any handshake has",
            |r| {
                let secret = invited(r).pre_shared_input_list[0].clone();
                invited(r).pre_shared_input_list.resize(64, secret);
            },
            BadRequest,
        ),
        (
            "two megabytes",
            |r| invited(r).alice_base_key = vec![1; 2 << 20].into(),
            BadRequest,
        ),
        (
            "an unknown user here",
            |r| invited(r).to = address("eve@a.test/phone"),
            NotFound,
        ),
        (
            "an unknown device here",
            |r| invited(r).to = address("alice@a.test/watch"),
            NotFound,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        alice.unary().invite(request).await
    })
    .await;
}

#[tokio::test]
async fn two_secrets_do_without_a_one_time_key() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let mut sent = invitation(&alice, &bob).await;
    sent.bob_one_time_pre_key_id = 0;
    sent.pre_shared_input_list.truncate(2);

    assert_code(&invite(&alice, &sent).await, Granted);
}

#[tokio::test]
async fn who_invites_a_device_that_is_gone_is_told_to_forget_it() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;

    for bob in [&here, &there] {
        let sent = invitation(&alice, bob).await;
        logout(bob).await;

        let reply = invite(&alice, &sent).await;
        let again = invite(&alice, &sent).await;

        assert_code(&reply, NotFound);
        assert_code(&again, NotFound);
        let mut stream = alice.stream().await;
        let told = stream.next_removed_device().await.said;
        assert_eq!(told.user_address, Some(bob.address().to_proto()));
        lab.assert_silent(&mut stream).await; // once is enough
    }
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn a_device_that_invites_too_many_strangers_is_told_to_come_back() {
    let lab = Lab::configured(["a.test"], |config| {
        config.limits.first_contacts_per_sender_hour = 1;
    })
    .await;
    let [alice, bob, carol] = lab
        .users(["alice@a.test", "bob@a.test", "carol@a.test"])
        .await;
    establish(&alice, &bob).await;
    let stranger = invitation(&alice, &carol).await;
    let before = lab.snapshot().await;

    assert_code(&invite(&alice, &stranger).await, ServiceUnavailable);

    before.assert_same(&lab.snapshot().await, "a throttled invite");
    alice.invite(&bob).await; // no stranger
}

#[tokio::test]
async fn an_accept_arrives_as_it_was_sent_and_both_domains_know_the_session() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;

    for bob in [&here, &there] {
        alice.invite(bob).await;
        let invite = bob.stream().await.next_invite().await.said;
        let mut sent = talk::acceptance(bob, &invite).unwrap();
        sent.to = Some(alice.address().to_proto());
        assert_code(&accept(bob, &sent).await, Granted);

        let received = alice.stream().await.next_accept().await;

        sent.from = Some(bob.address().to_proto_named("bob"));
        assert_eq!(received.from, sent.from);
        assert_eq!(received.said, sent);
    }
    let pairs = "SELECT d.user_id || ' ' || s.peer FROM sessions s
         JOIN devices d ON d.device_key = s.device_key ORDER BY 1";
    assert_eq!(
        lab.texts("a.test", pairs).await,
        [
            "alice bob@a.test/phone",
            "alice bob@b.test/phone",
            "bob alice@a.test/phone"
        ]
    );
    assert_eq!(lab.texts("b.test", pairs).await, ["bob alice@a.test/phone"]);
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn an_accept_that_is_sent_again_arrives_once() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;

    let mut accepts = Vec::new();
    for bob in [&here, &there] {
        alice.invite(bob).await;
        let invite = bob.stream().await.next_invite().await.said;
        let sent = talk::acceptance(bob, &invite).unwrap();
        let mut stream = alice.stream().await;
        for _ in 0..3 {
            assert_code(&accept(bob, &sent).await, Granted);
        }

        stream.next_accept().await;
        lab.assert_silent(&mut stream).await;
        accepts.push((bob, sent));
    }
    lab.clock.turn(30 * 86_400_000);
    let mut stream = renewed(&alice).await.stream().await;
    for (bob, sent) in accepts {
        assert_code(&accept(&renewed(bob).await, &sent).await, Granted);
        lab.assert_silent(&mut stream).await;
    }
}

async fn renewed(user: &User) -> User {
    User(user.login().await.unwrap())
}

fn accepted(request: &mut AcceptRequest) -> &mut AcceptMsg {
    request.msg.as_mut().unwrap()
}

#[tokio::test]
async fn an_accept_is_refused_for_each_wrong_field() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    lab.second_device(&bob, "tablet").await;
    let mut stream = bob.stream().await;
    stream.next_added_device().await;
    alice.invite(&bob).await;
    let invite = stream.next_invite().await.said;
    let good = AcceptRequest {
        msg: Some(talk::acceptance(&bob, &invite).unwrap()),
    };
    let spoils: &[Spoil<AcceptRequest>] = &[
        ("no message", |r| r.msg = None, BadRequest),
        ("no accepter", |r| accepted(r).from = None, BadRequest),
        (
            "a group as accepter",
            |r| accepted(r).from = group("b.test"),
            BadRequest,
        ),
        (
            "an accepter without device",
            |r| accepted(r).from = user_only("bob@b.test"),
            BadRequest,
        ),
        (
            "somebody else as accepter",
            |r| accepted(r).from = address("carol@b.test/phone"),
            Forbidden,
        ),
        (
            "a sibling as accepter",
            |r| accepted(r).from = address("bob@b.test/tablet"),
            Forbidden,
        ),
        ("nobody accepted", |r| accepted(r).to = None, BadRequest),
        (
            "a group accepted",
            |r| accepted(r).to = group("a.test"),
            BadRequest,
        ),
        (
            "no device accepted",
            |r| accepted(r).to = user_only("alice@a.test"),
            BadRequest,
        ),
        (
            "no ciphertext",
            |r| accepted(r).encaps_ciphertext.clear(),
            BadRequest,
        ),
        (
            "a ciphertext of another length than its pack's",
            |r| drop(accepted(r).encaps_ciphertext.split_off(31)),
            BadRequest,
        ),
        (
            "a ratchet key of another length than its pack's",
            |r| drop(accepted(r).ratchet_key.split_off(31)),
            BadRequest,
        ),
        (
            "no ratchet key",
            |r| accepted(r).ratchet_key.clear(),
            BadRequest,
        ),
        (
            "two megabytes",
            |r| accepted(r).ratchet_key = vec![1; 2 << 20].into(),
            BadRequest,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        bob.unary().accept(request).await
    })
    .await;
}

#[tokio::test]
async fn an_accept_without_an_invite_is_dropped_unseen() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;
    let mut stream = alice.stream().await;

    for bob in [&here, &there] {
        let pack = bob.keys().pack();
        let planted = AcceptMsg {
            from: Some(bob.address().to_proto()),
            to: Some(alice.address().to_proto()),
            e2ee_pack_id: pack.id,
            encaps_ciphertext: vec![1; pack.ciphertext].into(),
            ratchet_key: vec![2; pack.asym_key].into(),
        };
        assert_code(&accept(bob, &planted).await, Granted);

        lab.assert_silent(&mut stream).await;
    }
    let planted = lab.number("a.test", "SELECT COUNT(*) FROM sessions");
    assert_eq!(planted.await, 0);
}

#[tokio::test]
async fn an_invite_can_be_accepted_for_forty_days() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob, carol] = lab
        .users(["alice@a.test", "bob@a.test", "carol@a.test"])
        .await;
    let mut accepts = Vec::new();
    for other in [&bob, &carol] {
        alice.invite(other).await;
        let invite = other.stream().await.next_invite().await.said;
        accepts.push(talk::acceptance(other, &invite).unwrap());
    }

    lab.clock.turn(39 * 86_400_000);
    let (alice, bob) = (renewed(&alice).await, renewed(&bob).await);
    assert_code(&accept(&bob, &accepts[0]).await, Granted);
    let mut stream = alice.stream().await;
    stream.next_accept().await;
    lab.clock.turn(2 * 86_400_000);
    let carol = renewed(&carol).await;
    assert_code(&accept(&carol, &accepts[1]).await, Granted);

    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn who_accepts_a_device_that_is_gone_is_told_to_forget_it() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [here, there, bob] = lab
        .users(["alice@a.test", "alice@b.test", "bob@a.test"])
        .await;

    for alice in [&here, &there] {
        alice.invite(&bob).await;
        let mut stream = bob.stream().await;
        let invite = stream.next_invite().await.said;
        let sent = talk::acceptance(&bob, &invite).unwrap();
        logout(alice).await;

        assert_code(&accept(&bob, &sent).await, Granted);

        let told = stream.next_removed_device().await.said;
        let told = DeviceAddress::from_proto(told.user_address.as_ref()).unwrap();
        assert_eq!(told, *alice.address());
        lab.assert_silent(&mut stream).await;
    }
}

#[tokio::test]
async fn invites_that_cross_are_both_accepted() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let (mut ours, mut theirs) = (alice.stream().await, bob.stream().await);

    tokio::join!(alice.invite(&bob), bob.invite(&alice));
    let (to_bob, to_alice) = tokio::join!(theirs.next_invite(), ours.next_invite());
    let (by_bob, by_alice) = (
        talk::acceptance(&bob, &to_bob.said).unwrap(),
        talk::acceptance(&alice, &to_alice.said).unwrap(),
    );
    let (first, second) = tokio::join!(accept(&bob, &by_bob), accept(&alice, &by_alice));

    assert_code(&first, Granted);
    assert_code(&second, Granted);
    assert_eq!(
        ours.next_accept().await.said.ratchet_key,
        by_bob.ratchet_key
    );
    assert_eq!(
        theirs.next_accept().await.said.ratchet_key,
        by_alice.ratchet_key
    );
}
