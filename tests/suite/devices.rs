//! Further devices of a user, and the end of a device: who is told, here and at other domains.

use skiserver::{
    address::DeviceAddress,
    client::{Device, talk},
    proto::{
        skiserver::{LoginRequest, LogoutRequest, LogoutResponse},
        skissm::{
            E2eeAddress, E2eeMsg, ResponseCode, SendOne2oneMsgRequest, SendOne2oneMsgResponse,
        },
    },
};
use tonic::Code;

use crate::lab::{Lab, Spoil, User, answer, assert_code, establish, refuses_each};

use ResponseCode::{BadRequest, Forbidden, NotFound, Ok as Granted, Unauthorized};

async fn logout(user: &User) -> LogoutResponse {
    let request = LogoutRequest {
        user_address: Some(user.address().to_proto()),
    };
    answer(user.unary().logout(request)).await
}

async fn send(from: &User, letter: E2eeMsg) -> SendOne2oneMsgResponse {
    let request = SendOne2oneMsgRequest { msg: Some(letter) };
    answer(from.unary().send_one2one_msg(request)).await
}

/// `user@domain/device`, sorted.
fn names(addresses: &[E2eeAddress]) -> Vec<String> {
    let name = |address| {
        DeviceAddress::from_proto(Some(address))
            .unwrap()
            .to_string()
    };
    let mut names: Vec<String> = addresses.iter().map(name).collect();
    names.sort();
    names
}

fn name(address: Option<&E2eeAddress>) -> String {
    DeviceAddress::from_proto(address).unwrap().to_string()
}

#[tokio::test]
async fn a_second_device_is_told_whom_to_invite_and_they_are_told_of_it() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob, carol, dave] = lab
        .users(["alice@a.test", "bob@a.test", "carol@b.test", "dave@b.test"])
        .await;
    establish(&alice, &bob).await;
    establish(&carol, &alice).await;

    let tablet = lab.second_device(&alice, "tablet").await;

    let answer = tablet.registration();
    assert_eq!(
        names(&answer.other_device_address_list),
        ["alice@a.test/phone"]
    );
    assert_eq!(
        names(&answer.other_user_address_list),
        ["bob@a.test/phone", "carol@b.test/phone"]
    );
    for told in [&alice, &bob, &carol] {
        let mut stream = told.stream().await;
        let added = stream.next_added_device().await;
        assert_eq!(name(added.from.as_ref()), "alice@a.test/tablet");
        assert_eq!(
            name(added.said.user_address.as_ref()),
            "alice@a.test/tablet"
        );
        assert_eq!(names(&added.said.old_address_list), ["alice@a.test/phone"]);
        lab.assert_silent(&mut stream).await;
    }
    lab.assert_silent(&mut dave.stream().await).await;
    lab.assert_silent(&mut tablet.stream().await).await;
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn a_third_device_names_both_others_and_each_peer_once() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    establish(&alice, &bob).await;
    let tablet = lab.second_device(&alice, "tablet").await;
    let mut theirs = bob.stream().await;
    theirs.next_added_device().await;
    alice.stream().await.next_added_device().await;
    establish(&tablet, &bob).await;
    establish(&tablet, &alice).await; // a session within the user is no session with others

    let laptop = lab.second_device(&alice, "laptop").await;

    let answer = laptop.registration();
    let others = ["alice@a.test/phone", "alice@a.test/tablet"];
    assert_eq!(names(&answer.other_device_address_list), others);
    assert_eq!(names(&answer.other_user_address_list), ["bob@b.test/phone"]);
    for told in [&alice, &tablet, &bob] {
        let mut stream = told.stream().await;
        let added = stream.next_added_device().await.said;
        assert_eq!(name(added.user_address.as_ref()), "alice@a.test/laptop");
        assert_eq!(names(&added.old_address_list), others);
        lab.assert_silent(&mut stream).await;
    }
}

#[tokio::test]
async fn every_device_of_a_user_has_a_password_of_its_own() {
    let lab = Lab::start(["a.test"]).await;
    let phone = lab.user("alice@a.test").await;
    let tablet = lab.second_device(&phone, "tablet").await;

    phone.login().await.unwrap();
    tablet.login().await.unwrap();
    let mut nobody = lab
        .door("a.test")
        .unary(skiserver::client::door::Bearer::default());
    let crossed = LoginRequest {
        user_address: Some(phone.address().to_proto()),
        password: tablet.registration().password.clone(),
    };
    assert_code(&answer(nobody.login(crossed)).await, Unauthorized);
}

#[tokio::test]
async fn who_talked_to_a_device_is_told_of_its_end_here_and_there() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob, carol, dave] = lab
        .users(["alice@a.test", "bob@a.test", "carol@b.test", "dave@b.test"])
        .await;
    let tablet = lab.second_device(&alice, "tablet").await;
    alice.stream().await.next_added_device().await;
    establish(&alice, &bob).await;
    establish(&carol, &alice).await;
    bob.send(&alice, "never read").await;

    assert_code(&logout(&alice).await, Granted);

    for told in [&tablet, &bob, &carol] {
        let mut stream = told.stream().await;
        let removed = stream.next_removed_device().await;
        assert_eq!(name(removed.from.as_ref()), "alice@a.test/phone");
        assert_eq!(
            name(removed.said.user_address.as_ref()),
            "alice@a.test/phone"
        );
        lab.assert_silent(&mut stream).await;
    }
    lab.assert_silent(&mut dave.stream().await).await;
    for (domain, sql) in [
        ("a.test", "SELECT COUNT(*) FROM sessions"),
        ("b.test", "SELECT COUNT(*) FROM sessions"),
        (
            "a.test",
            "SELECT COUNT(*) FROM devices WHERE device_id = 'phone' AND user_id = 'alice'",
        ),
        (
            "a.test",
            "SELECT COUNT(*) FROM invites WHERE from_device LIKE 'alice%'",
        ),
    ] {
        assert_eq!(lab.number(domain, sql).await, 0, "{domain}: {sql}");
    }
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn sends_to_a_removed_device_are_404_from_both_domains() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob, carol] = lab
        .users(["alice@a.test", "bob@a.test", "carol@b.test"])
        .await;
    alice.send(&bob, "not repeated").await;
    let repeated = bob.send(&alice, "repeated").await;

    assert_code(&logout(&alice).await, Granted);

    for sender in [&bob, &carol] {
        let late = sender.letter(alice.address(), "late");
        assert_code(&send(sender, late).await, NotFound);
        let bundles = talk::bundles(sender, &alice.address().user).await.unwrap();
        assert!(bundles.is_empty(), "its keys are gone");
    }
    // What was answered once is answered again: the client must not lose sessions over a repeat.
    let again = send(&bob, repeated).await.code();
    assert!(matches!(again, Granted | NotFound), "{again:?}");
}

#[tokio::test]
async fn token_stream_and_password_end_with_the_device_and_no_other_does() {
    let lab = Lab::start(["a.test"]).await;
    let phone = lab.user("alice@a.test").await;
    let tablet = lab.second_device(&phone, "tablet").await;
    let second_token = phone.login().await.unwrap();
    let mut stream = phone.stream().await;
    let mut others = tablet.stream().await;

    assert_code(&logout(&phone).await, Granted);

    assert_eq!(stream.ended().await.code(), Code::Unauthenticated);
    others.next_removed_device().await;
    for token in [&phone.0, &second_token] {
        let refused = talk::consume(token, "anything").await.err().unwrap();
        assert!(refused.to_string().contains("401"), "{refused}");
        let refused = token.open().await.err().unwrap().to_string();
        assert!(refused.contains("token"), "{refused}");
    }
    let password = login_code(&phone).await;
    assert_eq!(password, Unauthorized);
    assert_eq!(login_code(&tablet).await, Granted);
    tablet.stream().await.assert_idle().await;
}

async fn login_code(device: &Device) -> ResponseCode {
    let mut nobody = device
        .door()
        .unary(skiserver::client::door::Bearer::default());
    let request = LoginRequest {
        user_address: Some(device.address().to_proto()),
        password: device.registration().password.clone(),
    };
    answer(nobody.login(request)).await.code()
}

#[tokio::test]
async fn a_logout_is_refused_for_each_wrong_address() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, _bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    lab.second_device(&alice, "tablet").await;
    let good = LogoutRequest {
        user_address: Some(alice.address().to_proto()),
    };
    let spoils: &[Spoil<LogoutRequest>] = &[
        ("no address", |r| r.user_address = None, BadRequest),
        (
            "no user",
            |r| r.user_address.as_mut().unwrap().peer = None,
            BadRequest,
        ),
        (
            "no device",
            |r| r.user_address = of("alice@a.test/phone", ""),
            BadRequest,
        ),
        (
            "a sibling",
            |r| r.user_address = of("alice@a.test/tablet", "tablet"),
            Forbidden,
        ),
        (
            "somebody else",
            |r| r.user_address = of("bob@a.test/phone", "phone"),
            Forbidden,
        ),
        (
            "another domain",
            |r| r.user_address = of("alice@b.test/phone", "phone"),
            Forbidden,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        alice.unary().logout(request).await
    })
    .await;
}

#[expect(clippy::unnecessary_wraps, reason = "it goes into optional fields")]
fn of(address: &str, device_id: &str) -> Option<E2eeAddress> {
    let address = DeviceAddress::parse(address).unwrap();
    let mut proto = address.user.to_proto();
    if !device_id.is_empty() {
        proto = address.to_proto();
    }
    Some(proto)
}

#[tokio::test]
async fn the_last_device_leaves_a_user_who_may_come_back() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    bob.send(&alice, "to the first").await;
    let last = alice.stream().await.next_letter().await.tag;
    assert_code(&logout(&alice).await, Granted);
    let (taken, _) = lab.registration("mallory@a.test", "phone").await;
    let mut nobody = alice
        .door()
        .unary(skiserver::client::door::Bearer::default());
    let thief = skiserver::proto::skissm::RegisterUserRequest {
        user_id: "alice".to_owned(),
        ..taken
    };
    let thief = answer(nobody.register_user(thief)).await;
    assert_code(&thief, ResponseCode::RequestConflict);

    let again = lab.second_device(&alice, "phone").await;

    let mut stream = again.stream().await;
    bob.send(&again, "to the second").await;
    let received = stream.next_letter().await;
    assert!(received.tag.proto_msg_t > last.proto_msg_t, "tags go on");
    assert!(again.registration().other_device_address_list.is_empty());
}

#[tokio::test]
async fn a_removal_is_told_again_after_a_new_beginning() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let mut device = alice;

    for _ in 0..3 {
        establish(&device, &bob).await;
        assert_code(&logout(&device).await, Granted);
        let mut stream = bob.stream().await;
        stream.next_removed_device().await;
        lab.assert_silent(&mut stream).await;
        device = lab.second_device(&device, "phone").await;
    }
}
