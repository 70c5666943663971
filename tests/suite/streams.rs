//! The stream of a device: one order for backlog and live traffic, a window that nothing stalls, a start that the
//! client decides, and an end with a reason.

use skiserver::{
    client::talk,
    lab::ca::DAY_MS,
    proto::{
        skiserver::AcquireServerInfoRequest,
        skissm::{ProtoMsg, ProtoMsgTag, proto_msg::Payload},
    },
};
use tonic::Code;

use crate::lab::{Lab, OpenStream, User, answer, stream::text_of};

/// Sends messages that are numbered.
async fn send(from: &User, to: &User, numbers: std::ops::Range<u32>) {
    for number in numbers {
        from.send(to, &number.to_string()).await;
    }
}

/// Reads messages that are numbered and consumes none.
async fn read(stream: &mut OpenStream, numbers: std::ops::Range<u32>) -> Vec<ProtoMsgTag> {
    let mut tags = Vec::new();
    for number in numbers {
        let message: ProtoMsg = stream.next().await;
        assert_eq!(text_of(&message), number.to_string());
        tags.push(message.tag.unwrap());
    }
    tags
}

#[tokio::test]
async fn a_backlog_comes_before_live_traffic_in_one_order() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    send(&alice, &bob, 0..20).await;
    let mut stream = bob.stream().await;

    let (tags, ()) = tokio::join!(read(&mut stream, 0..40), send(&alice, &bob, 20..40));

    for tag in &tags {
        stream.consume(tag).await;
    }
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn everything_that_many_send_at_once_comes_once() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let bob = lab.user("bob@a.test").await;
    let senders = lab
        .users(["u1@a.test", "u2@a.test", "u3@b.test", "u4@b.test"])
        .await;
    let mut stream = bob.stream().await;
    let receive = async {
        let mut next = [0; 4];
        for _ in 0..100 {
            let letter = stream.next_letter().await; // tags increase, none comes twice
            let from = letter.from.unwrap();
            let of = |user: &&User| {
                skiserver::address::DeviceAddress::from_proto(Some(&from)).unwrap()
                    == *user.address()
            };
            let sender = senders.iter().position(|user| of(&user)).unwrap();
            let text = crate::lab::stream::text(&letter.said);
            assert_eq!(
                text,
                next[sender].to_string(),
                "each sender's order is kept"
            );
            next[sender] += 1;
        }
    };

    let sends = senders.iter().map(|sender| send(sender, &bob, 0..25));
    tokio::join!(receive, futures_util::future::join_all(sends));

    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn after_256_unconsumed_messages_the_rest_waits_for_a_consumption() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    send(&alice, &bob, 0..300).await;
    let mut stream = bob.stream().await;

    let tags = read(&mut stream, 0..256).await;
    stream.assert_idle().await;

    stream.consume(&tags[0]).await;
    read(&mut stream, 256..257).await;
    stream.assert_idle().await;
    stream.consume(&tags[255]).await; // everything before it is received, then
    read(&mut stream, 257..300).await;
}

#[tokio::test]
async fn unconsumed_messages_do_not_stall_a_stream_for_more_than_30_seconds() {
    let lab = Lab::configured(["a.test"], |config| config.limits.stream_window_max = 8).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    send(&alice, &bob, 0..20).await;
    let mut stream = bob.stream().await;

    read(&mut stream, 0..8).await;
    stream.assert_idle().await;
    lab.clock.turn(30_000);
    read(&mut stream, 8..16).await;
    lab.clock.turn(30_000);
    read(&mut stream, 16..20).await;

    drop(stream);
    read(&mut bob.stream().await, 0..8).await; // they stayed stored
}

#[tokio::test]
async fn a_second_stream_ends_the_first_and_says_why() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let mut first = bob.stream().await;
    alice.send(&bob, "0").await;
    read(&mut first, 0..1).await;

    let mut second = bob.stream().await;

    let reason = first.ended().await;
    assert_eq!(reason.code(), Code::Aborted);
    assert!(reason.message().contains("another stream"), "{reason:?}");
    read(&mut second, 0..1).await;
    alice.send(&bob, "1").await;
    read(&mut second, 1..2).await;
}

#[tokio::test]
async fn streams_of_two_devices_do_not_disturb_each_other() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let tablet = lab.second_device(&bob, "tablet").await;
    let (mut phones, mut tablets) = (bob.stream().await, tablet.stream().await);
    phones.next_added_device().await;

    alice.send(&tablet, "for the tablet").await;
    alice.send(&bob, "for the phone").await;

    assert_eq!(phones.next_text().await, "for the phone");
    assert_eq!(tablets.next_text().await, "for the tablet");
}

#[tokio::test]
async fn a_client_that_says_nothing_gets_its_messages_after_ten_seconds() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    send(&alice, &bob, 0..3).await;

    let mut stream = OpenStream::open(&bob).await;
    stream.assert_idle().await;
    lab.clock.turn(10_000);

    read(&mut stream, 0..3).await;
}

#[tokio::test]
async fn with_a_tag_nothing_at_or_before_it_comes() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    send(&alice, &bob, 0..5).await;
    let tags = read(&mut bob.stream().await, 0..5).await;

    read(&mut bob.stream_after(&tags[2]).await, 3..5).await;

    let mut last = bob.stream_after(&tags[4]).await;
    lab.assert_silent(&mut last).await;
    let rows = lab.number("a.test", "SELECT COUNT(*) FROM mailbox");
    assert_eq!(rows.await, 5, "they stay stored");
    read(&mut bob.stream().await, 0..5).await;
}

#[tokio::test]
async fn a_tag_counts_also_when_its_message_is_gone_or_its_id_unknown() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    send(&alice, &bob, 0..5).await;
    let mut stream = bob.stream().await;
    let tags = read(&mut stream, 0..5).await;
    stream.consume(&tags[2]).await;
    let by_time = ProtoMsgTag {
        proto_msg_id: "of another software".to_owned(),
        ..tags[2].clone()
    };

    for tag in [&tags[2], &by_time] {
        read(&mut bob.stream_after(tag).await, 3..5).await;
    }
}

#[tokio::test]
async fn a_tag_from_the_future_or_without_an_id_counts_as_absent() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    send(&alice, &bob, 0..3).await;
    let tags = read(&mut bob.stream().await, 0..3).await;
    let unknown = |proto_msg_t| ProtoMsgTag {
        proto_msg_t,
        proto_msg_id: "of another software".to_owned(),
    };
    let nameless = ProtoMsgTag {
        proto_msg_id: String::new(),
        ..tags[1].clone()
    };

    for tag in [
        unknown(tags[2].proto_msg_t + 1),
        unknown(i64::MAX),
        unknown(0),
        unknown(-1),
        unknown(i64::MIN),
        nameless,
    ] {
        read(&mut bob.stream_after(&tag).await, 0..3).await;
    }
}

#[tokio::test]
async fn a_consumed_message_never_comes_again() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    send(&alice, &bob, 0..4).await;
    let mut stream = bob.stream().await;
    let tags = read(&mut stream, 0..4).await;
    stream.consume(&tags[0]).await;
    stream.consume(&tags[2]).await;

    let mut again = bob.stream().await;

    read(&mut again, 1..2).await;
    read(&mut again, 3..4).await;
    lab.assert_silent(&mut again).await;
}

#[tokio::test]
async fn a_later_sync_brings_what_was_skipped_and_repeats_nothing() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    send(&alice, &bob, 0..6).await;
    let tags = read(&mut bob.stream().await, 0..6).await;
    let mut stream = bob.stream_after(&tags[3]).await;
    read(&mut stream, 4..6).await;

    stream.inbox().sync(Some(tags[1].clone())).await.unwrap();
    stream.goes_back();
    read(&mut stream, 2..4).await;
    stream.inbox().sync(None).await.unwrap();
    stream.goes_back();
    read(&mut stream, 0..2).await;
    stream.inbox().sync(None).await.unwrap();

    stream.goes_back();
    alice.send(&bob, "6").await;
    read(&mut stream, 6..7).await;
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn a_later_sync_skips_what_was_not_sent_yet() {
    let lab = Lab::configured(["a.test"], |config| config.limits.stream_window_max = 2).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    send(&alice, &bob, 0..6).await;
    let mut stream = bob.stream().await;
    let tags = read(&mut stream, 0..2).await;
    let far = ProtoMsgTag {
        proto_msg_t: lab
            .number(
                "a.test",
                "SELECT MAX(last_msg_t) - 2 FROM devices WHERE user_id = 'bob'",
            )
            .await,
        proto_msg_id: "of another software".to_owned(),
    };

    stream.inbox().sync(Some(far)).await.unwrap();
    stream.assert_idle().await;
    stream.consume(&tags[1]).await;

    let message = stream.next().await;
    assert_ne!(text_of(&message), "2", "it was skipped");
    let number: u32 = text_of(&message).parse().unwrap();
    read(&mut stream, number + 1..6).await;
}

#[tokio::test]
async fn a_backlog_waits_for_consumptions_under_way() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    send(&alice, &bob, 0..2).await;
    let first = read(&mut bob.stream().await, 0..2).await.remove(0);
    let bobs = "SELECT device_key FROM devices WHERE user_id = 'bob'";
    let device_key = lab.number("a.test", bobs).await;
    let under_way = lab.node("a.test").live.consuming(device_key);

    let mut stream = bob.stream().await;
    lab.clock.turn(1_000);
    for _ in 0..20 {
        let call = alice
            .unary()
            .acquire_server_info(AcquireServerInfoRequest::default())
            .await;
        answer(std::future::ready(call)).await; // time enough for a stream that does not wait
    }
    assert!(talk::consume(&bob, &first.proto_msg_id).await.unwrap());
    drop(under_way);

    read(&mut stream, 1..2).await;
}

/// A stream on which bob's accept came to alice and stayed unconsumed, and the message after it was consumed.
async fn receive_an_accept(lab: &Lab, alice: &User, bob: &User) {
    alice.invite(bob).await;
    let invite = bob.stream().await.next_invite().await.said;
    let acceptance = talk::acceptance(bob, &invite).unwrap();
    talk::accept(bob, &acceptance).await.unwrap();
    bob.send(alice, "0").await;
    let mut stream = alice.stream().await;
    let accept = stream.next().await;
    assert!(
        matches!(accept.payload, Some(Payload::AcceptMsg(_))),
        "{accept:?}"
    );
    assert_eq!(stream.next_text().await, "0");
    lab.clock.turn(3_000);
    let known = "SELECT COUNT(*) FROM mailbox WHERE received_on = 1";
    lab.becomes("a.test", known, 1).await;
}

#[tokio::test]
async fn an_accept_known_to_be_received_comes_only_to_clients_that_ask() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    receive_an_accept(&lab, &alice, &bob).await;
    bob.send(&alice, "1").await;

    let mut silent = OpenStream::open(&alice).await;
    lab.clock.turn(10_000);
    read(&mut silent, 1..2).await;
    let mut asking = alice.stream().await;

    asking.next_accept().await;
    read(&mut asking, 1..2).await;
}

#[tokio::test]
async fn a_message_known_to_be_received_on_enough_streams_is_dropped() {
    let lab = Lab::configured(["a.test"], |config| config.limits.mailbox_received_max = 2).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    receive_an_accept(&lab, &alice, &bob).await;
    bob.send(&alice, "1").await;

    let mut stream = alice.stream().await;
    let accept = stream.next().await;
    assert!(
        matches!(accept.payload, Some(Payload::AcceptMsg(_))),
        "{accept:?}"
    );
    assert_eq!(stream.next_text().await, "1");
    lab.clock.turn(3_000);

    lab.becomes("a.test", "SELECT COUNT(*) FROM mailbox", 0)
        .await;
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn an_unconsumed_message_is_kept_for_thirty_days() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    alice.send(&bob, "0").await;
    lab.clock.turn(29 * DAY_MS);
    alice.send(&bob, "1").await;
    let rows = lab.number("a.test", "SELECT COUNT(*) FROM mailbox");
    assert_eq!(rows.await, 2);

    lab.clock.turn(2 * DAY_MS);

    let rows = "SELECT COUNT(*) FROM mailbox";
    lab.becomes_in_time("a.test", rows, 1).await;
    let bob = User(bob.login().await.unwrap());
    read(&mut bob.stream().await, 1..2).await;
}

#[tokio::test]
async fn a_heartbeat_is_answered_at_once_and_stored_nowhere() {
    let lab = Lab::start(["a.test"]).await;
    let bob = lab.user("bob@a.test").await;
    let mut stream = bob.stream().await;
    let before = lab.snapshot().await;
    let now = lab.clock.now_ms();

    stream.inbox().heartbeat(now).await.unwrap();
    let heartbeat = stream.next_heartbeat().await; // it has no tag, no signature and the exact address

    assert_eq!(heartbeat.hostname, "a.test");
    assert!((now..now + 60_000).contains(&heartbeat.server_t));
    before.assert_same(&lab.snapshot().await, "a heartbeat");
}

#[tokio::test]
async fn a_heartbeat_comes_unasked_every_30_seconds() {
    let lab = Lab::start(["a.test"]).await;
    let bob = lab.user("bob@a.test").await;
    let mut stream = bob.stream().await;
    stream.assert_idle().await; // it is open at both ends; and each answer sets the timer anew
    let mut last = lab.clock.now_ms();

    for _ in 0..2 {
        lab.clock.turn(30_000);
        let server_t = stream.next_heartbeat().await.server_t;
        assert!(server_t >= last + 30_000, "{server_t}");
        last = server_t;
        stream.inbox().heartbeat(last).await.unwrap(); // or the node would miss ours
        stream.next_heartbeat().await;
    }
}

#[tokio::test]
async fn a_client_that_stops_its_heartbeats_is_given_up() {
    let lab = Lab::start(["a.test"]).await;
    let bob = lab.user("bob@a.test").await;
    let mut stream = bob.stream().await;
    stream.assert_idle().await;

    lab.clock.turn(76_000);

    let reason = stream.ended().await;
    assert_eq!(reason.code(), Code::Unavailable, "{reason:?}");
}

#[tokio::test]
async fn a_client_that_never_sent_heartbeats_is_not_expected_to() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let mut stream = bob.stream().await;
    alice.send(&bob, "0").await;
    read(&mut stream, 0..1).await;

    for number in 1..4 {
        lab.clock.turn(600_000);
        stream.next_heartbeat().await;
        alice.send(&bob, &number.to_string()).await;
        read(&mut stream, number..number + 1).await;
    }
}

#[tokio::test]
async fn whatever_else_a_client_says_is_ignored() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let mut stream = bob.stream().await;
    let before = lab.snapshot().await;

    let letter = Payload::E2eeMsg(bob.letter(alice.address(), "not this way"));
    stream.inbox().say(letter).await.unwrap();
    let odd = Payload::SupplyOpksMsg(skiserver::proto::skissm::SupplyOpksMsg::default());
    stream.inbox().say(odd).await.unwrap();
    stream.assert_idle().await;

    before.assert_same(&lab.snapshot().await, "an odd word");
    alice.send(&bob, "0").await;
    read(&mut stream, 0..1).await;
}

#[tokio::test]
async fn a_node_has_a_bounded_number_of_streams() {
    let lab = Lab::configured(["a.test"], |config| config.limits.streams_max = 2).await;
    let [alice, bob, carol] = lab
        .users(["alice@a.test", "bob@a.test", "carol@a.test"])
        .await;
    let mut first = alice.stream().await;
    let mut second = bob.stream().await;
    first.assert_idle().await;
    second.assert_idle().await;

    let refused = carol.open().await.err().unwrap();

    let text = refused.to_string();
    assert!(text.contains("too many streams"), "{text}");
    bob.stream().await.assert_idle().await; // a device's own second stream replaces its first
}
