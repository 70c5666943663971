//! What waits for another domain: taken with 200, kept over everything, brought in order and once, and its
//! senders told the truth about what can't be brought.

use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use skiserver::{
    address::{DeviceAddress, Domain},
    client::{ClientError, talk},
    config::Policy,
    lab::dns::Fault,
    proto::{
        skiserver::{LogoutRequest, SubmitProtoMsgRequest},
        skissm::{
            E2eeMsg, ResponseCode, SendOne2oneMsgRequest, SendOne2oneMsgResponse, SystemManagerMsg,
            SystemOp, proto_msg::Payload,
        },
    },
};
use tonic::Code;

use crate::lab::{
    Act, Lab, Scripted, User, answer, assert_code,
    scripted::{Heard, Mood},
    stream::text,
    user,
};

use ResponseCode::{
    BadRequest, Forbidden, NotFound, Ok as Granted, RequestConflict, ServiceUnavailable,
};

/// Longer than any pause between two attempts in a lab, so that turning the clock by it has everything tried.
const PAUSE_MS: i64 = 6_000;
const SECOND_MS: i64 = 1_000;
const MINUTE_MS: i64 = 60_000;
const HOUR_MS: i64 = 3_600_000;
const DAY_MS: i64 = 86_400_000;

const WAITING: &str = "SELECT COUNT(*) FROM outbox WHERE refused_code = 0";
const SEND: &str = "SendOne2oneMsg";

fn device(address: &str) -> DeviceAddress {
    DeviceAddress::parse(address).unwrap()
}

/// Sends a message, whoever it is for. Answered with 200, or the test fails.
async fn send(from: &User, to: &str, text: &str) -> E2eeMsg {
    let letter = from.letter(&device(to), text);
    talk::send(from, &letter).await.unwrap();
    letter
}

async fn try_to_send(from: &User, to: &str) -> SendOne2oneMsgResponse {
    let request = SendOne2oneMsgRequest {
        msg: Some(from.letter(&device(to), "hello")),
    };
    answer(from.unary().send_one2one_msg(request)).await
}

fn letter(heard: &Heard) -> E2eeMsg {
    heard.request::<SendOne2oneMsgRequest>().msg.unwrap()
}

/// Who a message is for, without its domain.
fn receiver(heard: &Heard) -> String {
    let to = DeviceAddress::from_proto(letter(heard).to.as_ref()).unwrap();
    to.user.user_id
}

/// The texts that a peer heard, in order.
fn texts(peer: &Scripted) -> Vec<String> {
    let heard = peer.heard();
    let sent = heard.iter().filter(|heard| heard.rpc == SEND);
    sent.map(|heard| text(&letter(heard))).collect()
}

fn notification(said: &SystemManagerMsg) -> String {
    assert_eq!(said.op(), SystemOp::NotificationMsg);
    String::from_utf8(said.payload.to_vec()).unwrap()
}

fn number(notice: &str, field: &str) -> i64 {
    let notice: serde_json::Value = serde_json::from_str(notice).unwrap();
    notice[field].as_i64().unwrap()
}

async fn logout(user: &User) {
    let request = LogoutRequest {
        user_address: Some(user.address().to_proto()),
    };
    assert_code(&answer(user.unary().logout(request)).await, Granted);
}

#[tokio::test]
async fn a_hundred_messages_outlive_the_outage_of_their_domain_and_the_crash_of_their_home() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, amy] = lab.users(["alice@a.test", "amy@a.test"]).await;
    let [bob, ben] = lab.users(["bob@b.test", "ben@b.test"]).await;
    let send = async |numbers: std::ops::Range<u32>| {
        for n in numbers {
            alice.send(&bob, &format!("bob {n}")).await;
            amy.send(&ben, &format!("ben {n}")).await;
        }
    };

    lab.kill("b.test").await;
    send(0..25).await;
    lab.kill("a.test").await;
    lab.start_node("a.test").await;
    send(25..50).await;
    assert_eq!(lab.number("a.test", WAITING).await, 100);
    lab.start_node("b.test").await;
    lab.clock.turn(PAUSE_MS);

    for (user, name) in [(&bob, "bob"), (&ben, "ben")] {
        let mut stream = user.stream().await;
        for n in 0..50 {
            assert_eq!(stream.next_text().await, format!("{name} {n}"));
        }
        lab.until("a.test", WAITING, 0).await;
        lab.assert_silent(&mut stream).await;
    }
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn an_invite_and_its_accept_wait_for_the_domain_that_is_away() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let bundle = alice.bundle(&bob).await;
    let invitation = talk::invitation(&alice, &bundle).unwrap();

    lab.kill("b.test").await;
    let invite_t = talk::invite(&alice, &invitation).await.unwrap();
    let again = talk::invite(&alice, &invitation).await.unwrap();
    lab.start_node("b.test").await;
    lab.clock.turn(PAUSE_MS);
    let mut theirs = bob.stream().await;
    let invite = theirs.next_invite().await.said;
    lab.until("a.test", WAITING, 0).await;
    lab.kill("a.test").await;
    let acceptance = talk::acceptance(&bob, &invite).unwrap();
    for _ in 0..2 {
        talk::accept(&bob, &acceptance).await.unwrap();
    }
    lab.start_node("a.test").await;
    lab.clock.turn(PAUSE_MS);

    let mut ours = alice.stream().await;
    let accept = ours.next_accept().await.said;
    assert_eq!(accept.ratchet_key, acceptance.ratchet_key);
    assert_eq!((invite.invite_t, again), (invite_t, invite_t));
    lab.until("b.test", WAITING, 0).await;
    lab.assert_silent(&mut ours).await;
    lab.assert_silent(&mut theirs).await;
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn a_message_that_was_taken_without_an_answer_arrives_once_and_in_order() {
    let lab = Lab::configured(["a.test", "b.test"], |config| {
        config.limits.fast_path_ms = 500;
    })
    .await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    alice.send(&bob, "zero").await;

    // What b commits from here on, it never says so.
    lab.faults("b.test").silent.store(true, Ordering::SeqCst);
    alice.send(&bob, "one").await;
    lab.until("b.test", "SELECT COUNT(*) FROM mailbox", 2).await;
    alice.send(&bob, "two").await;
    assert_eq!(lab.number("a.test", WAITING).await, 2);
    lab.faults("b.test").silent.store(false, Ordering::SeqCst);
    lab.clock.turn(PAUSE_MS);
    lab.until("a.test", WAITING, 0).await;

    let mut stream = bob.stream().await;
    for text in ["zero", "one", "two"] {
        assert_eq!(stream.next_text().await, text);
    }
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn a_message_whose_connection_was_cut_goes_again_as_it_was_before_any_other() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let alice = lab.user("alice@a.test").await;

    peer.always(SEND, Act::HangUp);
    send(&alice, "bob@b.test/phone", "one").await;
    send(&alice, "bob@b.test/phone", "two").await;
    peer.always(SEND, Act::Grant);
    lab.clock.turn(PAUSE_MS);
    lab.until("a.test", WAITING, 0).await;

    let mut heard = texts(&peer);
    assert_eq!(heard.pop().as_deref(), Some("two"));
    assert!(heard.len() > 1, "it was cut, and sent again");
    assert!(heard.iter().all(|text| text == "one"), "{heard:?}");
    let mut attempts = peer.heard();
    attempts.retain(|heard| heard.rpc == SEND);
    attempts.pop();
    assert!(attempts.windows(2).all(|two| two[0].body == two[1].body));
}

#[tokio::test]
async fn every_attempt_and_every_repeat_of_a_submission_carries_the_same_id() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let alice = lab.user("alice@a.test").await;
    let bob = peer.target("bob", "phone");
    let invitation = bob.invitation(alice.address());
    let mut node = peer.calls(&lab, "a.test");
    assert_code(&answer(node.invite(invitation)).await, Granted);
    let invite = alice.stream().await.next_invite().await.said;
    let acceptance = talk::acceptance(&alice, &invite).unwrap();

    peer.next("SubmitProtoMsg", [Act::Refuse(ServiceUnavailable)]);
    talk::accept(&alice, &acceptance).await.unwrap();
    lab.clock.turn(PAUSE_MS);
    lab.until("a.test", WAITING, 0).await;
    talk::accept(&alice, &acceptance).await.unwrap();

    let heard = peer.hears("SubmitProtoMsg", 3).await;
    assert!(heard.windows(2).all(|two| two[0].body == two[1].body));
    let message = heard[0].request::<SubmitProtoMsgRequest>().proto_msg;
    let message = message.unwrap();
    assert!(!message.tag.unwrap().proto_msg_id.is_empty());
    assert!(message.signature_list.is_empty());
    assert_eq!(message.to, Some(bob.address.to_proto()));
    let Some(Payload::AcceptMsg(accept)) = message.payload else {
        panic!("no accept");
    };
    assert_eq!(accept.ratchet_key, acceptance.ratchet_key);
    assert_eq!(peer.heard().len(), 3);
}

/// Bob's lane is put off, everybody else's goes on.
fn only_bob_waits(heard: &Heard) -> Act {
    match receiver(heard).as_str() {
        "bob" => Act::Refuse(ServiceUnavailable),
        _ => Act::Grant,
    }
}

#[tokio::test]
async fn one_recipient_that_is_put_off_stops_no_other() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let alice = lab.user("alice@a.test").await;

    peer.always(SEND, Act::Judge(only_bob_waits));
    for n in 0..3 {
        send(&alice, "bob@b.test/phone", &format!("bob {n}")).await;
        send(&alice, "carol@b.test/phone", &format!("carol {n}")).await;
    }

    let lanes = lab.texts("a.test", "SELECT lane FROM outbox").await;
    assert_eq!(lanes, ["bob@b.test"; 3]);
    let mut before = texts(&peer);
    before.retain(|text| text != "bob 0");
    assert_eq!(before, ["carol 0", "carol 1", "carol 2"]);
    peer.always(SEND, Act::Grant);
    lab.clock.turn(PAUSE_MS);
    lab.until("a.test", WAITING, 0).await;
    let mut after = texts(&peer);
    after.retain(|text| text.starts_with("bob"));
    after.dedup();
    assert_eq!(after, ["bob 0", "bob 1", "bob 2"]);
}

#[tokio::test]
async fn a_final_refusal_is_the_answer_and_everything_else_is_tried_again() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let alice = lab.user("alice@a.test").await;

    for code in [BadRequest, Forbidden, NotFound, RequestConflict] {
        peer.next(SEND, [Act::Refuse(code)]);
        assert_code(&try_to_send(&alice, "bob@b.test/phone").await, code);
        assert_eq!(lab.number("a.test", "SELECT COUNT(*) FROM outbox").await, 0);
    }

    let later = [
        ResponseCode::Unspecified,
        ResponseCode::Created,
        ResponseCode::Accepted,
        ResponseCode::NoContent,
        ResponseCode::Unauthorized,
        ResponseCode::RequestTimeout,
        ResponseCode::ExpectationFailed,
        ResponseCode::InternalServerError,
        ServiceUnavailable,
    ];
    let acts = later.map(Act::Refuse).into_iter();
    // Words of gRPC about this call alone; the last ones are about the whole domain.
    let failures = [
        Code::Unimplemented,
        Code::Internal,
        Code::ResourceExhausted,
        Code::NotFound,
        Code::Unavailable,
    ];
    let failures = failures.map(Act::Fail).into_iter();
    let garbage = Act::Reply(b"\xff\xff".as_slice().into());
    let acts = acts.chain([garbage]).chain(failures);
    for (n, act) in acts.enumerate() {
        let heard = peer.heard().len();
        peer.next(SEND, [act.clone()]);
        let reply = try_to_send(&alice, &format!("u{n}@b.test/phone")).await;
        assert_eq!(reply.code, i32::from(Granted), "{act:?}: {}", reply.msg);
        lab.clock.turn(PAUSE_MS);
        lab.until("a.test", "SELECT COUNT(*) FROM outbox", 0).await;
        assert_eq!(peer.heard().len(), heard + 2, "{act:?}");
    }
}

fn by_name(heard: &Heard) -> Act {
    match receiver(heard).as_str() {
        "bad" => Act::Refuse(BadRequest),
        "forbidden" => Act::Refuse(Forbidden),
        "gone" => Act::Refuse(NotFound),
        "conflict" => Act::Refuse(RequestConflict),
        _ => Act::Grant,
    }
}

#[tokio::test]
async fn who_was_told_200_hears_of_a_later_refusal() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let alice = lab.user("alice@a.test").await;
    let mut stream = alice.stream().await;
    peer.turns(Mood::Gone);
    let mut expected = Vec::new();
    for name in ["bad", "forbidden", "gone", "conflict", "fine"] {
        let sent = send(&alice, &format!("{name}@b.test/phone"), name).await;
        if !["gone", "fine"].contains(&name) {
            expected.push(format!(
                r#"{{"v":1,"state":"refused","to":"{name}@b.test","count":1,"msg_ids":["{}"],"reason":"as scripted","next_try_ms":0}}"#,
                sent.msg_id
            ));
        }
    }

    peer.always(SEND, Act::Judge(by_name));
    peer.turns(Mood::Awake);
    lab.clock.turn(PAUSE_MS);
    lab.until("a.test", WAITING, 0).await;
    lab.clock.turn(PAUSE_MS); // the sweep that tells

    let (mut told, mut removed) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let message = stream.next().await;
        stream.consume(&message.tag.unwrap()).await;
        match message.payload.unwrap() {
            Payload::SystemManagerMsg(said) => told.push(notification(&said)),
            Payload::RemoveUserDeviceMsg(said) => removed.push((said.user_address, message.from)),
            other => panic!("{other:?}"),
        }
    }
    let gone = Some(device("gone@b.test/phone").to_proto());
    assert_eq!(removed, [(gone.clone(), gone)]);
    told.sort();
    expected.sort();
    assert_eq!(told, expected);
    lab.assert_silent(&mut stream).await;
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn who_was_told_200_hears_that_it_is_late_then_daily_then_that_it_expired() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let alice = lab.user("alice@a.test").await;
    let mut stream = alice.stream().await;
    peer.turns(Mood::Gone);
    let mut threads = [("bob@b.test", Vec::new()), ("carol@b.test", Vec::new())];
    for (to, n) in [(0, 0), (0, 1), (1, 0), (0, 2)] {
        let (user, ids) = &mut threads[to];
        let sent = send(&alice, &format!("{user}/phone"), &n.to_string()).await;
        ids.push(sent.msg_id);
    }
    let mut next = async || {
        let mut told = Vec::new();
        for _ in 0..2 {
            told.push(notification(&stream.next_notice().await.said));
        }
        told.sort_by_key(|notice| notice.contains("carol"));
        told
    };
    let head = |state: &str, (to, ids): &(&str, Vec<String>)| {
        let list = serde_json::to_string(ids).unwrap();
        format!(
            r#"{{"v":1,"state":"{state}","to":"{to}","count":{},"msg_ids":{list},"reason":""#,
            ids.len()
        )
    };

    for turn in [[10 * MINUTE_MS, SECOND_MS], [12 * HOUR_MS, 12 * HOUR_MS]] {
        for part in turn {
            lab.clock.turn(part);
        }
        let now = lab.clock.now_ms();
        for (notice, thread) in next().await.iter().zip(&threads) {
            assert!(notice.starts_with(&head("late", thread)), "{notice}");
            let at = number(notice, "next_try_ms");
            assert!(notice.ends_with(&format!(r#"","next_try_ms":{at}}}"#)));
            assert!(
                (now - MINUTE_MS..now + 6 * MINUTE_MS).contains(&at),
                "{notice}"
            );
            assert!(notice.contains("b.test"), "it says what is wrong: {notice}");
        }
    }
    lab.clock.turn(6 * DAY_MS);
    for (notice, thread) in next().await.iter().zip(&threads) {
        let tail = r#"it could not be delivered in time","next_try_ms":0}"#;
        assert_eq!(*notice, head("expired", thread) + tail);
    }

    lab.until("a.test", "SELECT COUNT(*) FROM outbox", 0).await;
    lab.clock.turn(DAY_MS);
    lab.assert_silent(&mut stream).await;
    lab.assert_nothing_waits().await;
    peer.turns(Mood::Awake);
    assert!(peer.heard().is_empty());
}

#[tokio::test]
async fn what_waits_for_a_domain_that_the_policy_shuts_out_is_refused() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let alice = lab.user("alice@a.test").await;
    peer.turns(Mood::Gone);
    let sent = send(&alice, "bob@b.test/phone", "hello").await;

    lab.reconfigure("a.test", |config| {
        config.federation.policy = Policy::Deny;
        config.federation.domains = vec!["b.test".to_owned()];
    });
    lab.clock.turn(PAUSE_MS);

    let mut stream = alice.stream().await;
    let told = notification(&stream.next_notice().await.said);
    let expected = format!(
        r#"{{"v":1,"state":"refused","to":"bob@b.test","count":1,"msg_ids":["{}"],"reason":"the policy of this domain forbids it","next_try_ms":0}}"#,
        sent.msg_id
    );
    assert_eq!(told, expected);
    assert_code(&try_to_send(&alice, "bob@b.test/phone").await, Forbidden);
    lab.assert_silent(&mut stream).await;
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn the_removal_of_a_device_comes_after_what_was_before_it_and_before_what_is_after_it() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let [alice, amy] = lab.users(["alice@a.test", "amy@a.test"]).await;
    let bob = peer.target("bob", "phone");
    peer.meets(&lab, &bob, &mut alice.stream().await).await;
    peer.turns(Mood::Gone);

    send(&alice, "bob@b.test/phone", "before").await;
    send(&alice, "carol@b.test/phone", "also before").await;
    logout(&alice).await;
    send(&amy, "bob@b.test/phone", "after").await;
    send(&amy, "dora@b.test/phone", "also after").await;
    peer.turns(Mood::Awake);
    lab.clock.turn(PAUSE_MS);
    lab.until("a.test", WAITING, 0).await;

    let story: Vec<String> = peer
        .heard()
        .iter()
        .filter(|heard| heard.rpc != "SubmitProtoMsg")
        .map(|heard| match heard.rpc.as_str() {
            SEND => text(&letter(heard)),
            other => other.to_owned(),
        })
        .collect();
    let [first, second, removal, third, fourth] = story.as_slice() else {
        panic!("{story:?}");
    };
    assert_eq!(removal, "RemoveUserDevice", "{story:?}");
    let sorted = |mut two: [&String; 2]| {
        two.sort();
        two.map(Clone::clone)
    };
    assert_eq!(sorted([first, second]), ["also before", "before"]);
    assert_eq!(sorted([third, fourth]), ["after", "also after"]);
}

#[tokio::test]
async fn dead_and_black_domains_hold_up_no_healthy_one() {
    let lab = Lab::configured(["a.test", "b.test"], |config| {
        config.limits.fast_path_ms = 700;
    })
    .await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let dead = Scripted::join(&lab, "dead.test").await;
    let black = Scripted::join(&lab, "black.test").await;
    let mute = Domain::parse("mute.test").unwrap();
    dead.turns(Mood::Gone);
    black.turns(Mood::Deaf);
    lab.dns.fail(&mute, Some(Fault::Silence)).unwrap();
    let to_all = async |domain: &str| {
        let letters = (0..20).map(|n| alice.letter(&device(&format!("u{n}@{domain}/phone")), "x"));
        let letters: Vec<E2eeMsg> = letters.collect();
        for sent in join_all(letters.iter().map(|letter| talk::send(&alice, letter))).await {
            sent.unwrap();
        }
    };

    let (..) = tokio::join!(
        to_all("dead.test"),
        to_all("black.test"),
        to_all("mute.test")
    );
    for n in 0..20 {
        alice.send(&bob, &n.to_string()).await;
    }

    let mut stream = bob.stream().await;
    for n in 0..20 {
        assert_eq!(stream.next_text().await, n.to_string());
    }
    let left = "SELECT COUNT(*) FROM outbox WHERE domain = 'b.test'";
    lab.until("a.test", left, 0).await;
    assert_eq!(lab.number("a.test", WAITING).await, 60);
    dead.turns(Mood::Awake);
    lab.clock.turn(PAUSE_MS);
    assert_eq!(dead.hears(SEND, 20).await.len(), 20);
    lab.until("a.test", WAITING, 40).await;
}

#[tokio::test]
async fn a_lie_of_the_dns_makes_nobody_forget_anybody() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    for (domain, fault) in [
        ("denied.test", Fault::NxDomain),
        ("broken.test", Fault::ServFail),
    ] {
        let peer = Scripted::join(&lab, domain).await;
        let bob = peer.target("bob", "phone");
        lab.dns.fail(&peer.domain, Some(fault)).unwrap();

        let bundles = talk::bundles(&alice, &bob.address.user).await;
        let invitation = talk::invitation(&alice, &bob.bundle()).unwrap();
        let invited = talk::invite(&alice, &invitation).await;
        send(&alice, &bob.address.to_string(), "hello").await;
        let waits = lab.number("a.test", WAITING).await;
        lab.dns.fail(&peer.domain, None).unwrap();
        lab.clock.turn(PAUSE_MS);

        let unreachable = i32::from(ServiceUnavailable);
        assert!(
            matches!(bundles, Err(ClientError::Refused { code, .. }) if code == unreachable),
            "{bundles:?}"
        );
        assert_eq!((invited.is_ok(), waits), (true, 2), "{fault:?}");
        peer.hears(SEND, 1).await;
        let heard: Vec<String> = peer.heard().into_iter().map(|heard| heard.rpc).collect();
        assert_eq!(heard, ["Invite", SEND]);
        lab.until("a.test", WAITING, 0).await;
    }
    lab.assert_silent(&mut alice.stream().await).await;
}

#[tokio::test]
async fn a_domain_that_is_back_gets_what_waits_without_anybody_doing_anything() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    user::establish(&alice, &bob).await;
    lab.clock.turn(PAUSE_MS); // the sweep writes down who was heard of
    let known = "SELECT COUNT(*) FROM peers WHERE domain = 'a.test'";
    lab.until("b.test", known, 1).await;

    lab.kill("b.test").await;
    alice.send(&bob, "hello").await;
    // The next attempt is half an hour away, so only the other's call can be the reason.
    lab.clock.turn(-30 * MINUTE_MS);
    lab.start_node("b.test").await;

    let mut stream = bob.stream().await;
    assert_eq!(stream.next_text().await, "hello");
    lab.until("a.test", WAITING, 0).await;
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn any_call_of_a_peer_has_tried_what_waits_for_it() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let alice = lab.user("alice@a.test").await;
    peer.turns(Mood::Gone);
    for n in 0..3 {
        send(&alice, "bob@b.test/phone", &n.to_string()).await;
    }
    lab.clock.turn(-30 * MINUTE_MS);
    peer.turns(Mood::Awake);

    let bob = peer.target("bob", "phone");
    let mut node = peer.calls(&lab, "a.test");
    let hello = bob.letter(alice.address(), "I am back");
    assert_code(&answer(node.send_one2one_msg(hello)).await, Granted);

    peer.hears(SEND, 3).await;
    lab.until("a.test", WAITING, 0).await;
    assert_eq!(texts(&peer), ["0", "1", "2"]);
}
