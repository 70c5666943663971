//! One-to-one messages from the sender's call to the receiver's consumption, on one domain and over two.

use skiserver::{
    address::DeviceAddress,
    client::talk,
    proto::skissm::{
        ConsumeProtoMsgRequest, E2eeAddress, E2eeMsg, GroupMsgPayload, One2oneMsgPayload,
        PeerGroup, ProtoMsgOpState, ResponseCode, SendOne2oneMsgRequest, SendOne2oneMsgResponse,
        e2ee_address::Peer, e2ee_msg::Payload,
    },
};

use crate::lab::{
    Lab, Spoil, User, answer, assert_code, refuses_each,
    stream::{text, text_of},
};

use ResponseCode::{
    BadRequest, Forbidden, NotFound, Ok as Granted, RequestConflict, ServiceUnavailable,
};

async fn send(from: &User, letter: &E2eeMsg) -> SendOne2oneMsgResponse {
    let request = SendOne2oneMsgRequest {
        msg: Some(letter.clone()),
    };
    answer(from.unary().send_one2one_msg(request)).await
}

fn address(text: &str) -> Option<E2eeAddress> {
    Some(DeviceAddress::parse(text).unwrap().to_proto())
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

fn msg(request: &mut SendOne2oneMsgRequest) -> &mut E2eeMsg {
    request.msg.as_mut().unwrap()
}

fn payload(request: &mut SendOne2oneMsgRequest) -> &mut One2oneMsgPayload {
    match &mut msg(request).payload {
        Some(Payload::One2oneMsg(payload)) => payload,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_message_arrives_as_it_was_sent_but_for_the_senders_name() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;

    for bob in [&here, &there] {
        let mut letter = alice.letter(bob.address(), "hello");
        letter.version = "\u{1}".to_owned();
        letter.notif_level = 12;
        if let Some(Peer::User(user)) = &mut letter.from.as_mut().unwrap().peer {
            user.user_name = "Mallory".to_owned();
        }
        assert_code(&send(&alice, &letter).await, Granted);

        let received = bob.stream().await.next_letter().await;

        letter.from = Some(alice.address().to_proto_named("alice"));
        assert_eq!(received.from, letter.from);
        assert_eq!(received.said, letter);
    }
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn messages_of_the_largest_size_arrive_and_larger_ones_do_not() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;
    let bytes_max = lab.config("a.test").limits.message_bytes_max;

    for bob in [&here, &there] {
        let ciphertext = vec![7; bytes_max - 2_000];
        let large = talk::one_to_one(&alice, bob.address(), "session", 1, ciphertext.into());
        assert_code(&send(&alice, &large).await, Granted);
        let received = bob.stream().await.next_letter().await;
        assert_eq!(received.said.payload, large.payload);

        let ciphertext = vec![7; bytes_max];
        let larger = talk::one_to_one(&alice, bob.address(), "session", 1, ciphertext.into());
        let before = lab.snapshot().await;
        assert_code(&send(&alice, &larger).await, BadRequest);
        before.assert_same(&lab.snapshot().await, "too large a message");
    }
}

#[tokio::test]
async fn a_message_is_refused_for_each_wrong_field() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    lab.second_device(&alice, "tablet").await;
    let good = SendOne2oneMsgRequest {
        msg: Some(alice.letter(bob.address(), "hello")),
    };
    let spoils: &[Spoil<SendOne2oneMsgRequest>] = &[
        ("no message", |r| r.msg = None, BadRequest),
        ("no sender", |r| msg(r).from = None, BadRequest),
        (
            "a sender without kind",
            |r| msg(r).from.as_mut().unwrap().peer = None,
            BadRequest,
        ),
        (
            "a group as sender",
            |r| msg(r).from = group("a.test"),
            BadRequest,
        ),
        (
            "a sender without device",
            |r| msg(r).from = user_only("alice@a.test"),
            BadRequest,
        ),
        (
            "somebody else as sender",
            |r| msg(r).from = address("bob@a.test/phone"),
            Forbidden,
        ),
        (
            "a sibling as sender",
            |r| msg(r).from = address("alice@a.test/tablet"),
            Forbidden,
        ),
        (
            "a namesake as sender",
            |r| msg(r).from = address("alice@b.test/phone"),
            Forbidden,
        ),
        ("no receiver", |r| msg(r).to = None, BadRequest),
        (
            "a receiver without kind",
            |r| msg(r).to.as_mut().unwrap().peer = None,
            BadRequest,
        ),
        (
            "a group as receiver",
            |r| msg(r).to = group("b.test"),
            BadRequest,
        ),
        (
            "a receiver without device",
            |r| msg(r).to = user_only("bob@b.test"),
            BadRequest,
        ),
        (
            "a receiver without domain",
            |r| msg(r).to.as_mut().unwrap().domain.clear(),
            BadRequest,
        ),
        (
            "a receiver at an impossible domain",
            |r| msg(r).to.as_mut().unwrap().domain = "b test".into(),
            BadRequest,
        ),
        (
            "an overlong version",
            |r| msg(r).version = "1".repeat(100),
            BadRequest,
        ),
        ("no session id", |r| msg(r).session_id.clear(), BadRequest),
        (
            "an overlong session id",
            |r| msg(r).session_id = "s".repeat(129),
            BadRequest,
        ),
        (
            "a session id with a line feed",
            |r| msg(r).session_id = "s\n".into(),
            BadRequest,
        ),
        ("no message id", |r| msg(r).msg_id.clear(), BadRequest),
        (
            "an overlong message id",
            |r| msg(r).msg_id = "m".repeat(129),
            BadRequest,
        ),
        ("an unknown level", |r| msg(r).notif_level = 99, BadRequest),
        ("no payload", |r| msg(r).payload = None, BadRequest),
        (
            "a payload for a group",
            |r| msg(r).payload = Some(Payload::GroupMsg(GroupMsgPayload::default())),
            BadRequest,
        ),
        (
            "no ciphertext",
            |r| payload(r).ciphertext.clear(),
            BadRequest,
        ),
        (
            "a ciphertext of 16 bytes",
            |r| payload(r).ciphertext = vec![1; 16].into(),
            BadRequest,
        ),
        (
            "no ratchet key",
            |r| payload(r).ratchet_key.clear(),
            BadRequest,
        ),
        (
            "an unknown user here",
            |r| msg(r).to = address("eve@a.test/phone"),
            NotFound,
        ),
        (
            "an unknown device here",
            |r| msg(r).to = address("alice@a.test/watch"),
            NotFound,
        ),
        (
            "an unknown user there",
            |r| msg(r).to = address("eve@b.test/phone"),
            NotFound,
        ),
        (
            "an unknown device there",
            |r| msg(r).to = address("bob@b.test/watch"),
            NotFound,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        alice.unary().send_one2one_msg(request).await
    })
    .await;
}

fn user_only(text: &str) -> Option<E2eeAddress> {
    let user = skiserver::address::UserAddress::parse(text).unwrap();
    Some(user.to_proto())
}

#[tokio::test]
async fn a_ciphertext_of_17_bytes_is_long_enough() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let letter = talk::one_to_one(&alice, bob.address(), "session", 1, vec![1; 17].into());

    assert_code(&send(&alice, &letter).await, Granted);
}

#[tokio::test]
async fn a_message_that_is_sent_again_is_queued_once() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;

    for bob in [&here, &there] {
        let letter = alice.letter(bob.address(), "once");
        let mut stream = bob.stream().await;
        for _ in 0..3 {
            assert_code(&send(&alice, &letter).await, Granted);
        }

        assert_eq!(stream.next_text().await, "once");
        lab.assert_silent(&mut stream).await;
        assert_code(&send(&alice, &letter).await, Granted);
        lab.assert_silent(&mut stream).await; // not after it was consumed either
    }
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn the_same_message_sent_ten_times_at_once_is_queued_once() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;

    for bob in [&here, &there] {
        let letter = alice.letter(bob.address(), "once");
        let sends = (0..10).map(|_| send(&alice, &letter));
        for reply in futures_util::future::join_all(sends).await {
            assert_code(&reply, Granted);
        }

        let mut stream = bob.stream().await;
        assert_eq!(stream.next_text().await, "once");
        lab.assert_silent(&mut stream).await;
    }
}

#[tokio::test]
async fn a_message_id_alone_makes_no_repeat() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob, carol] = lab
        .users(["alice@a.test", "bob@a.test", "carol@a.test"])
        .await;
    let first = alice.letter(bob.address(), "first");
    let mut second = alice.letter(bob.address(), "second");
    second.msg_id.clone_from(&first.msg_id);
    let mut others = carol.letter(bob.address(), "third");
    others.msg_id.clone_from(&first.msg_id);

    assert_code(&send(&alice, &first).await, Granted);
    assert_code(&send(&alice, &second).await, Granted);
    assert_code(&send(&carol, &others).await, Granted);

    let mut stream = bob.stream().await;
    for text in ["first", "second", "third"] {
        assert_eq!(stream.next_text().await, text);
    }
}

#[tokio::test]
async fn a_device_writes_to_its_sibling() {
    let lab = Lab::start(["a.test"]).await;
    let phone = lab.user("alice@a.test").await;
    let tablet = lab.second_device(&phone, "tablet").await;
    let mut stream = tablet.stream().await;

    phone.send(&tablet, "a copy").await;

    assert_eq!(stream.next_text().await, "a copy");
    let mut own = phone.stream().await;
    own.next_added_device().await;
    lab.assert_silent(&mut own).await; // the server makes no copies
}

#[tokio::test]
async fn tags_are_milliseconds_that_increase_whatever_the_clock_does() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, carol, bob] = lab
        .users(["alice@a.test", "carol@b.test", "bob@a.test"])
        .await;
    let now = lab.clock.now_ms();

    let (ours, theirs) = (&alice, &carol);
    let sends = (0..20).flat_map(|_| [ours.send(&bob, "hello"), theirs.send(&bob, "hello")]);
    futures_util::future::join_all(sends).await;

    let mut stream = bob.stream().await; // it verifies that tags increase and are milliseconds
    for _ in 0..40 {
        let tag = stream.next_letter().await.tag;
        assert!((now..now + 60_000).contains(&tag.proto_msg_t), "{tag:?}");
    }
    lab.clock.turn(-3_600_000);
    alice.send(&bob, "an hour before").await;
    assert_eq!(stream.next_text().await, "an hour before");
}

#[tokio::test]
async fn a_consumed_message_is_gone_and_asking_again_is_404() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let mut stream = bob.stream().await;

    for state in [
        ProtoMsgOpState::Unspecified,
        ProtoMsgOpState::Succeededed,
        ProtoMsgOpState::FailedSignature,
        ProtoMsgOpState::FailedDecryption,
        ProtoMsgOpState::FailedEscape,
    ] {
        alice.send(&bob, state.as_str_name()).await;
        let message = stream.next().await;
        let request = ConsumeProtoMsgRequest {
            proto_msg_id: message.tag.unwrap().proto_msg_id,
            state: state.into(),
        };

        let first = answer(bob.unary().consume_proto_msg(request.clone())).await;
        let second = answer(bob.unary().consume_proto_msg(request)).await;

        assert_code(&first, Granted);
        assert_code(&second, NotFound);
    }
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn a_consumption_is_refused_for_each_wrong_field() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    alice.send(&bob, "hello").await;
    let tag = bob.stream().await.peek_text().await.tag;
    let good = ConsumeProtoMsgRequest {
        proto_msg_id: tag.proto_msg_id,
        state: 0,
    };
    let spoils: &[Spoil<ConsumeProtoMsgRequest>] = &[
        ("no id", |r| r.proto_msg_id.clear(), BadRequest),
        ("an unknown state", |r| r.state = 9, BadRequest),
        (
            "an unknown id",
            |r| r.proto_msg_id = "unknown".into(),
            NotFound,
        ),
        (
            "an endless id",
            |r| r.proto_msg_id = "1".repeat(100_000),
            NotFound,
        ),
        ("half an id", |r| r.proto_msg_id.truncate(6), NotFound),
        ("an id and more", |r| r.proto_msg_id.push('0'), NotFound),
        (
            "an id in capitals",
            |r| r.proto_msg_id.make_ascii_uppercase(),
            NotFound,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        bob.unary().consume_proto_msg(request).await
    })
    .await;
}

#[tokio::test]
async fn nobody_consumes_for_another_device() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let sibling = lab.second_device(&bob, "tablet").await;
    bob.stream().await.next_added_device().await;
    alice.send(&bob, "for the phone").await;
    let tag = bob.stream().await.peek_text().await.tag;
    let before = lab.snapshot().await;

    for other in [&alice, &sibling] {
        let was_there = talk::consume(other, &tag.proto_msg_id).await.unwrap();
        assert!(!was_there);
    }

    before.assert_same(&lab.snapshot().await, "a foreign consumption");
    assert!(talk::consume(&bob, &tag.proto_msg_id).await.unwrap());
}

#[tokio::test]
async fn one_sender_fills_a_tenth_of_a_mailbox_and_all_together_the_whole() {
    let lab = Lab::configured(["a.test"], |config| config.limits.mailbox_rows_max = 20).await;
    let bob = lab.user("bob@a.test").await;
    let mut senders = Vec::new();
    for number in 0..11 {
        senders.push(lab.user(&format!("u{number}@a.test")).await);
    }

    for (number, sender) in senders[..10].iter().enumerate() {
        sender.send(&bob, "one").await;
        sender.send(&bob, "two").await;
        let third = sender.letter(bob.address(), "three");
        let before = lab.snapshot().await;
        // The share of one is a final word; a mailbox that is full may have room later.
        let refusal = if number < 9 {
            RequestConflict
        } else {
            ServiceUnavailable
        };
        assert_code(&send(sender, &third).await, refusal);
        before.assert_same(&lab.snapshot().await, "too much of one sender");
    }
    let late = senders[10].letter(bob.address(), "late");
    assert_code(&send(&senders[10], &late).await, ServiceUnavailable);

    let mut stream = bob.stream().await;
    let first = stream.peek_text().await;
    stream.consume(&first.tag).await;
    assert_code(&send(&senders[10], &late).await, Granted);
}

#[tokio::test]
async fn a_mailbox_is_bounded_by_bytes_too() {
    let lab = Lab::configured(["a.test"], |config| {
        config.limits.mailbox_bytes_max = 100_000
    })
    .await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let large = |sequence| {
        let ciphertext = vec![7; 6_000];
        talk::one_to_one(
            &alice,
            bob.address(),
            "session",
            sequence,
            ciphertext.into(),
        )
    };

    assert_code(&send(&alice, &large(1)).await, Granted);
    assert_code(&send(&alice, &large(2)).await, Granted);
    assert_code(&send(&alice, &large(3)).await, RequestConflict);
}

#[tokio::test]
async fn a_sender_that_is_too_fast_waits_and_is_told_to_come_back() {
    let lab = Lab::configured(["a.test"], |config| {
        config.limits.messages_per_sender_minute = 2;
    })
    .await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    alice.send(&bob, "one").await;
    alice.send(&bob, "two").await;
    let third = alice.letter(bob.address(), "three");
    let before = lab.snapshot().await;

    assert_code(&send(&alice, &third).await, ServiceUnavailable);

    before.assert_same(&lab.snapshot().await, "a throttled send");
    bob.send(&alice, "others are free").await;
}

#[tokio::test]
async fn the_order_of_one_sender_is_kept_over_two_domains() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let mut stream = bob.stream().await;

    for number in 0..50 {
        alice.send(&bob, &number.to_string()).await;
    }

    for number in 0..50 {
        let message = stream.next().await;
        assert_eq!(text_of(&message), number.to_string());
        stream.consume(message.tag.as_ref().unwrap()).await;
    }
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn every_session_of_a_device_gets_its_own_copy() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let mut one = alice.letter(bob.address(), "the same text");
    one.session_id = "one".to_owned();
    let two = E2eeMsg {
        session_id: "two".to_owned(),
        ..one.clone()
    };

    assert_code(&send(&alice, &one).await, Granted);
    assert_code(&send(&alice, &two).await, Granted);

    let mut stream = bob.stream().await;
    for session in ["one", "two"] {
        let letter = stream.next_letter().await.said;
        assert_eq!(
            (letter.session_id.as_str(), text(&letter)),
            (session, "the same text".into())
        );
    }
}
