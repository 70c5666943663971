//! Accounts: codes, ids, registration, signing in, and every way in which they are refused.

use skiserver::{
    client::{Device, Keys, Pack, Who, device::auth_code, door::Bearer},
    config::Registration,
    lab::ca::DAY_MS,
    proto::{
        ski::UserState,
        skiserver::{
            AcquireAuthCodeRequest, AcquireServerInfoRequest, AskUserIdAvailableRequest,
            LoginRequest, LoginResponse,
        },
        skissm::{
            ConsumeProtoMsgRequest, E2eeAddress, FriendOp, IdentityKeyPublic, OneTimePreKeyPublic,
            RegisterUserRequest, RegisterUserResponse, ResponseCode, SystemOp, e2ee_address::Peer,
            proto_msg::Payload,
        },
    },
    store::{Value, Wake},
};
use tonic::Code;

use crate::lab::{
    Lab, OpenStream, PATIENCE, Spoil, User, answer, assert_code, establish, real_limits,
    refusals::within, refuses_each,
};

use ResponseCode::{
    BadRequest, ExpectationFailed, Forbidden, Ok as Granted, RequestConflict, Unauthorized,
};

/// Registers with a request as it is.
async fn register(lab: &Lab, request: RegisterUserRequest) -> RegisterUserResponse {
    let mut nobody = lab.door("a.test").unary(Bearer::default());
    answer(nobody.register_user(request)).await
}

async fn login(lab: &Lab, address: Option<E2eeAddress>, password: &str) -> LoginResponse {
    let mut nobody = lab.door("a.test").unary(Bearer::default());
    let request = LoginRequest {
        user_address: address,
        password: password.to_owned(),
    };
    answer(nobody.login(request)).await
}

/// Whether the device's token still opens the door: a valid one gets as far as the unknown message.
async fn is_somebody(device: &Device) -> bool {
    let request = ConsumeProtoMsgRequest {
        proto_msg_id: "unknown".to_owned(),
        state: 0,
    };
    let reply = answer(device.unary().consume_proto_msg(request)).await;
    match reply.code() {
        ResponseCode::NotFound => true,
        Unauthorized => false,
        other => panic!("{other:?}: {}", reply.msg),
    }
}

#[tokio::test]
async fn a_first_device_is_welcomed_and_told_everything_it_needs() {
    let lab = Lab::start(["a.test"]).await;
    let door = lab.door("a.test");

    // The client kit verifies address, certificate, fingerprints and signature, and that no list names it.
    let alice = Device::register(&door, &Who::new("alice", "phone"), Pack::DEFAULT)
        .await
        .unwrap();

    let answer = alice.registration();
    let now = lab.clock.now_ms();
    assert_eq!(answer.username, "alice");
    assert_eq!(answer.authenticator, "mailto:alice@people.test");
    assert!((now + 29 * DAY_MS..=now + 30 * DAY_MS).contains(&answer.expires_in));
    assert!(answer.other_device_address_list.is_empty());
    assert!(answer.other_user_address_list.is_empty());
    assert!(answer.group_info_list.is_empty());
    let mut stream = User(alice).stream().await;
    let welcome = stream.next_notice().await.said;
    assert_eq!(welcome.op(), SystemOp::RegisterSuccessMsg);
    lab.assert_nothing_waits().await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn a_registration_is_refused_for_each_wrong_field() {
    let lab = Lab::start(["a.test"]).await;
    let (good, _) = lab.registration("alice@a.test", "phone").await;
    let spoils: &[Spoil<RegisterUserRequest>] = &[
        ("no user name", |r| r.user_name.clear(), BadRequest),
        (
            "a blank user name",
            |r| r.user_name = "  ".into(),
            BadRequest,
        ),
        (
            "a user name of 13 characters",
            |r| r.user_name = "é".repeat(13),
            BadRequest,
        ),
        (
            "a user name with a line feed",
            |r| r.user_name = "a\nb".into(),
            BadRequest,
        ),
        ("no user id", |r| r.user_id.clear(), BadRequest),
        (
            "a user id with @",
            |r| r.user_id = "alice@a.test".into(),
            BadRequest,
        ),
        (
            "a user id with a slash",
            |r| r.user_id = "alice/phone".into(),
            BadRequest,
        ),
        (
            "a user id with a space",
            |r| r.user_id = "ali ce".into(),
            BadRequest,
        ),
        (
            "a user id of 65 bytes",
            |r| r.user_id = "a".repeat(65),
            BadRequest,
        ),
        (
            "a user id with a zero byte",
            |r| r.user_id = "a\0".into(),
            BadRequest,
        ),
        ("no device id", |r| r.device_id.clear(), BadRequest),
        (
            "a device id of 129 bytes",
            |r| r.device_id = "d".repeat(129),
            BadRequest,
        ),
        (
            "a device id with a tab",
            |r| r.device_id = "d\t".into(),
            BadRequest,
        ),
        ("no authenticator", |r| r.authenticator.clear(), BadRequest),
        (
            "an authenticator that nothing reaches",
            |r| r.authenticator = "alice".into(),
            BadRequest,
        ),
        (
            "an overlong authenticator",
            |r| r.authenticator = format!("mailto:a@{}", "b.".repeat(200)),
            BadRequest,
        ),
        ("no code", |r| r.auth_code.clear(), BadRequest),
        (
            "an overlong code",
            |r| r.auth_code = "1".repeat(600),
            BadRequest,
        ),
        (
            "half an invitation",
            |r| r.auth_code = "e2ee:bob@a.test".into(),
            BadRequest,
        ),
        (
            "an invitation of nobody",
            |r| r.auth_code = "e2ee:;invite=1".into(),
            BadRequest,
        ),
        ("no pack", |r| r.e2ee_pack_id = 0, BadRequest),
        (
            "a pack of another version",
            |r| r.e2ee_pack_id |= 1 << 24,
            BadRequest,
        ),
        (
            "an unknown signature algorithm",
            |r| r.e2ee_pack_id |= 0x7f << 16,
            BadRequest,
        ),
        (
            "a KEM that is switched off",
            |r| r.e2ee_pack_id = 0x0000_0001,
            BadRequest,
        ),
        ("McEliece", |r| r.e2ee_pack_id = 0x0000_4101, BadRequest),
        (
            "an unknown cipher",
            |r| r.e2ee_pack_id |= 1 << 4,
            BadRequest,
        ),
        ("an unknown hash", |r| r.e2ee_pack_id += 1, BadRequest),
        (
            "another pack than the keys'",
            |r| r.e2ee_pack_id = Pack::DEFAULT.id,
            BadRequest,
        ),
    ];
    let door = lab.door("a.test");

    refuses_each(&lab, &good, spoils, async |request| {
        door.unary(Bearer::default()).register_user(request).await
    })
    .await;
}

fn identity(request: &mut RegisterUserRequest) -> &mut IdentityKeyPublic {
    request.identity_key_public.as_mut().unwrap()
}

fn opk(request: &mut RegisterUserRequest) -> &mut OneTimePreKeyPublic {
    &mut request.one_time_pre_key_list[7]
}

fn shorten(bytes: &mut bytes::Bytes) {
    bytes.truncate(bytes.len() - 1);
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn a_registration_is_refused_for_each_wrong_key() {
    let lab = Lab::start(["a.test"]).await;
    let (good, _) = lab.registration("alice@a.test", "phone").await;
    let spoils: &[Spoil<RegisterUserRequest>] = &[
        ("no identity", |r| r.identity_key_public = None, BadRequest),
        (
            "no asymmetric key",
            |r| identity(r).asym_public_key.clear(),
            BadRequest,
        ),
        (
            "a short asymmetric key",
            |r| shorten(&mut identity(r).asym_public_key),
            BadRequest,
        ),
        (
            "a long asymmetric key",
            |r| identity(r).asym_public_key = vec![1; 801].into(),
            BadRequest,
        ),
        (
            "no signature key",
            |r| identity(r).sign_public_key.clear(),
            BadRequest,
        ),
        (
            "a short signature key",
            |r| shorten(&mut identity(r).sign_public_key),
            BadRequest,
        ),
        (
            "another signature key",
            |r| identity(r).sign_public_key = vec![9; 32].into(),
            BadRequest,
        ),
        (
            "no signed pre-key",
            |r| r.signed_pre_key_public = None,
            BadRequest,
        ),
        (
            "a signed pre-key without id",
            |r| r.signed_pre_key_public.as_mut().unwrap().spk_id = 0,
            BadRequest,
        ),
        (
            "a short signed pre-key",
            |r| shorten(&mut r.signed_pre_key_public.as_mut().unwrap().public_key),
            BadRequest,
        ),
        (
            "no signature",
            |r| r.signed_pre_key_public.as_mut().unwrap().signature.clear(),
            BadRequest,
        ),
        (
            "a short signature",
            |r| shorten(&mut r.signed_pre_key_public.as_mut().unwrap().signature),
            BadRequest,
        ),
        (
            "a wrong signature",
            |r| r.signed_pre_key_public.as_mut().unwrap().signature = vec![1; 64].into(),
            BadRequest,
        ),
        (
            "a one-time key without id",
            |r| opk(r).opk_id = 0,
            BadRequest,
        ),
        (
            "two one-time keys of one id",
            |r| opk(r).opk_id = 1,
            BadRequest,
        ),
        (
            "an empty one-time key",
            |r| opk(r).public_key.clear(),
            BadRequest,
        ),
        (
            "a short one-time key",
            |r| shorten(&mut opk(r).public_key),
            BadRequest,
        ),
        (
            "a long one-time key",
            |r| opk(r).public_key = vec![1; 801].into(),
            BadRequest,
        ),
        (
            "too many one-time keys",
            |r| {
                let last = r.one_time_pre_key_list[99].clone();
                r.one_time_pre_key_list
                    .extend((101..=1001).map(|opk_id| OneTimePreKeyPublic {
                        opk_id,
                        ..last.clone()
                    }));
            },
            BadRequest,
        ),
    ];
    let door = lab.door("a.test");

    refuses_each(&lab, &good, spoils, async |request| {
        door.unary(Bearer::default()).register_user(request).await
    })
    .await;
}

#[tokio::test]
async fn keys_of_the_default_pack_are_measured_too() {
    let lab = Lab::start(["a.test"]).await;
    let keys = Keys::generate(Pack::DEFAULT).unwrap();
    let who = Who::new("alice", "phone");
    let code = auth_code(&lab.door("a.test"), &who.authenticator).await;
    let good = who.request(code.unwrap(), &keys);
    let spoils: &[Spoil<RegisterUserRequest>] = &[
        (
            "a short asymmetric key",
            |r| shorten(&mut identity(r).asym_public_key),
            BadRequest,
        ),
        (
            "a short signature key",
            |r| shorten(&mut identity(r).sign_public_key),
            BadRequest,
        ),
        (
            "a short signature",
            |r| shorten(&mut r.signed_pre_key_public.as_mut().unwrap().signature),
            BadRequest,
        ),
        (
            "a short one-time key",
            |r| shorten(&mut opk(r).public_key),
            BadRequest,
        ),
        (
            "the small pack",
            |r| r.e2ee_pack_id = Pack::SMALL.id,
            BadRequest,
        ),
    ];
    let door = lab.door("a.test");

    refuses_each(&lab, &good, spoils, async |request| {
        door.unary(Bearer::default()).register_user(request).await
    })
    .await;
}

#[tokio::test]
async fn an_operator_may_restrict_the_packs() {
    let lab = Lab::configured(["a.test"], |config| {
        config.accounts.allowed_e2ee_pack_ids = vec![Pack::DEFAULT.id];
    })
    .await;
    let (small, _) = lab.registration("alice@a.test", "phone").await;

    let refused = register(&lab, small).await;
    let alice = lab.user_with("alice@a.test", Pack::DEFAULT).await;

    assert_code(&refused, BadRequest);
    assert!(is_somebody(&alice).await);
}

#[tokio::test]
async fn a_device_without_one_time_keys_registers() {
    let lab = Lab::start(["a.test"]).await;
    let (mut request, _) = lab.registration("alice@a.test", "phone").await;
    request.one_time_pre_key_list.clear();

    assert_code(&register(&lab, request).await, Granted);
}

#[tokio::test]
async fn a_code_is_asked_for_only_with_an_authenticator_that_it_can_reach() {
    let lab = Lab::start(["a.test"]).await;
    let good = AcquireAuthCodeRequest {
        authenticator: "mailto:alice@people.test".to_owned(),
    };
    let spoils: &[Spoil<AcquireAuthCodeRequest>] = &[
        ("nothing", |r| r.authenticator.clear(), BadRequest),
        ("a name", |r| r.authenticator = "alice".into(), BadRequest),
        (
            "an unknown scheme",
            |r| r.authenticator = "xmpp:alice@people.test".into(),
            BadRequest,
        ),
        (
            "two addresses",
            |r| r.authenticator = "a@people.test,b@people.test".into(),
            BadRequest,
        ),
        (
            "a header",
            |r| r.authenticator = "a@people.test\r\nBcc: b@people.test".into(),
            BadRequest,
        ),
        (
            "a number of letters",
            |r| r.authenticator = "tel:alice".into(),
            BadRequest,
        ),
        (
            "an endless one",
            |r| r.authenticator = format!("mailto:a@{}", "b.".repeat(200)),
            BadRequest,
        ),
    ];
    let door = lab.door("a.test");

    refuses_each(&lab, &good, spoils, async |request| {
        door.unary(Bearer::default())
            .acquire_auth_code(request)
            .await
    })
    .await;
}

#[tokio::test]
async fn the_answer_to_a_code_does_not_tell_who_is_known() {
    let lab = Lab::start(["a.test"]).await;
    lab.user("alice@a.test").await;
    let mut nobody = lab.door("a.test").unary(Bearer::default());

    let mut replies = Vec::new();
    for user in ["alice", "nobody"] {
        let request = AcquireAuthCodeRequest {
            authenticator: format!("mailto:{user}@people.test"),
        };
        replies.push(answer(nobody.acquire_auth_code(request)).await);
    }

    assert_eq!(replies[0], replies[1]);
    assert_code(&replies[0], Granted);
    assert_eq!(replies[0].ttl, 600, "in seconds");
}

#[tokio::test]
async fn a_wrong_code_is_refused_and_counted() {
    let lab = Lab::start(["a.test"]).await;
    let (good, _) = lab.registration("alice@a.test", "phone").await;
    let wrong = RegisterUserRequest {
        auth_code: another_code(&good.auth_code),
        ..good.clone()
    };

    for _ in 0..4 {
        assert_code(&register(&lab, wrong.clone()).await, Forbidden);
    }
    assert_code(&register(&lab, good).await, Granted);
}

#[tokio::test]
async fn after_five_wrong_tries_the_right_code_is_dead() {
    let lab = Lab::start(["a.test"]).await;
    let (good, _) = lab.registration("alice@a.test", "phone").await;
    let wrong = RegisterUserRequest {
        auth_code: another_code(&good.auth_code),
        ..good.clone()
    };

    for _ in 0..5 {
        assert_code(&register(&lab, wrong.clone()).await, Forbidden);
    }
    let before = lab.snapshot().await;

    assert_code(&register(&lab, good).await, Forbidden);
    before.assert_same(&lab.snapshot().await, "a dead code");
}

fn another_code(code: &str) -> String {
    let other = if code.starts_with('0') { "1" } else { "0" };
    format!("{other}{}", &code[1..])
}

#[tokio::test]
async fn a_code_ends_with_its_time() {
    let lab = Lab::start(["a.test"]).await;
    let (alice, _) = lab.registration("alice@a.test", "phone").await;
    lab.clock.turn(300_000);
    let (bob, _) = lab.registration("bob@a.test", "phone").await;

    lab.clock.turn(301_000);

    assert_code(&register(&lab, alice).await, Forbidden);
    assert_code(&register(&lab, bob).await, Granted);
}

#[tokio::test]
async fn a_new_code_ends_the_one_before() {
    let lab = Lab::start(["a.test"]).await;
    let (first, _) = lab.registration("alice@a.test", "phone").await;
    let second = loop {
        let (request, _) = lab.registration("alice@a.test", "phone").await;
        if request.auth_code != first.auth_code {
            break request;
        }
    };

    assert_code(&register(&lab, first).await, Forbidden);
    assert_code(&register(&lab, second).await, Granted);
}

#[tokio::test]
async fn a_code_is_good_once_and_for_its_authenticator_only() {
    let lab = Lab::start(["a.test"]).await;
    let (alice, _) = lab.registration("alice@a.test", "phone").await;
    let thief = RegisterUserRequest {
        authenticator: "mailto:mallory@people.test".to_owned(),
        ..alice.clone()
    };

    assert_code(&register(&lab, thief).await, Forbidden);
    assert_code(&register(&lab, alice.clone()).await, Granted);
    assert_code(&register(&lab, alice).await, Forbidden);
}

#[tokio::test]
async fn an_authenticator_gets_five_codes_an_hour() {
    let lab = Lab::configured(["a.test"], |config| config.limits = real_limits()).await;
    let mut nobody = lab.door("a.test").unary(Bearer::default());
    let request = AcquireAuthCodeRequest {
        authenticator: "mailto:alice@people.test".to_owned(),
    };

    for _ in 0..5 {
        let reply = answer(nobody.acquire_auth_code(request.clone())).await;
        assert_code(&reply, Granted);
    }
    let spelled_differently = AcquireAuthCodeRequest {
        authenticator: "Alice@people.test".to_owned(),
    };
    let before = lab.snapshot().await;
    let sixth = answer(nobody.acquire_auth_code(spelled_differently)).await;
    let other = AcquireAuthCodeRequest {
        authenticator: "mailto:bob@people.test".to_owned(),
    };

    assert_code(&sixth, ExpectationFailed);
    before.assert_same(&lab.snapshot().await, "a throttled code");
    assert_code(&answer(nobody.acquire_auth_code(other)).await, Granted);
}

#[tokio::test]
async fn a_network_address_makes_thirty_account_calls_a_minute() {
    let lab = Lab::configured(["a.test"], |config| config.limits = real_limits()).await;
    let [alice] = lab.users(["alice@a.test"]).await; // two calls: the code and the registration
    let address = Some(alice.address().to_proto());

    let mut granted = 2;
    // A call is given back every two seconds, so a slow machine gets through a few more.
    let refused = loop {
        let reply = login(&lab, address.clone(), &alice.registration().password).await;
        if reply.code() != Granted || granted > 300 {
            break reply;
        }
        granted += 1;
    };

    assert_code(&refused, ExpectationFailed);
    assert!(granted >= 30, "{granted} calls");
    let mut nobody = lab.door("a.test").unary(Bearer::default());
    let uncounted = nobody.acquire_server_info(AcquireServerInfoRequest::default());
    assert_code(&answer(uncounted).await, Granted);
}

#[tokio::test]
async fn an_id_is_free_taken_or_no_id() {
    let lab = Lab::start(["a.test"]).await;
    lab.user("alice@a.test").await;
    let good = AskUserIdAvailableRequest {
        user_id: "bob".to_owned(),
    };
    let spoils: &[Spoil<AskUserIdAvailableRequest>] = &[
        (
            "a taken id",
            |r| r.user_id = "alice".into(),
            RequestConflict,
        ),
        (
            "a taken id in capitals",
            |r| r.user_id = "ALICE".into(),
            RequestConflict,
        ),
        ("no id", |r| r.user_id.clear(), BadRequest),
        (
            "an address",
            |r| r.user_id = "bob@a.test".into(),
            BadRequest,
        ),
        (
            "an id of 65 bytes",
            |r| r.user_id = "b".repeat(65),
            BadRequest,
        ),
        (
            "an id with a space",
            |r| r.user_id = "bo b".into(),
            BadRequest,
        ),
    ];
    let door = lab.door("a.test");

    refuses_each(&lab, &good, spoils, async |request| {
        door.unary(Bearer::default())
            .ask_user_id_available(request)
            .await
    })
    .await;
}

#[tokio::test]
async fn a_taken_id_is_not_given_again_whatever_its_letter_case() {
    let lab = Lab::start(["a.test"]).await;
    lab.user("alice@a.test").await;

    for user_id in ["alice", "Alice"] {
        let (mut request, _) = lab.registration("mallory@a.test", "phone").await;
        request.user_id = user_id.to_owned();
        let before = lab.snapshot().await;

        assert_code(&register(&lab, request).await, RequestConflict);
        before.assert_same(&lab.snapshot().await, user_id);
    }
}

#[tokio::test]
async fn a_bound_authenticator_belongs_to_one_user_id() {
    let lab = Lab::start(["a.test"]).await;
    lab.user("alice@a.test").await;
    let (mut request, _) = lab.registration("alice@a.test", "tablet").await;
    request.user_id = "alicia".to_owned();
    let before = lab.snapshot().await;

    assert_code(&register(&lab, request).await, RequestConflict);
    before.assert_same(&lab.snapshot().await, "another id");
}

#[tokio::test]
async fn a_user_has_a_bounded_number_of_devices() {
    let lab = Lab::configured(["a.test"], |config| config.limits.devices_per_user_max = 2).await;
    let alice = lab.user("alice@a.test").await;
    lab.second_device(&alice, "tablet").await;
    let (third, _) = lab.registration("alice@a.test", "laptop").await;
    let before = lab.snapshot().await;

    assert_code(&register(&lab, third).await, ExpectationFailed);
    before.assert_same(&lab.snapshot().await, "one device too many");
    lab.second_device(&alice, "tablet").await; // a reinstall is none too many
}

#[tokio::test]
async fn a_reinstalled_device_starts_anew_and_its_peers_are_told() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    establish(&alice, &bob).await;
    bob.send(&alice, "lost with the old device").await;
    let (mut old, mut theirs) = (OpenStream::open(&alice).await, bob.stream().await);
    let last_t = lab.number(
        "a.test",
        "SELECT MAX(last_msg_t) FROM devices WHERE user_id = 'alice'",
    );
    let last_t = last_t.await;

    let again = lab.second_device(&alice, "phone").await;

    assert_eq!(old.ended().await.code(), Code::Unauthenticated);
    assert!(!is_somebody(&alice).await, "the old token is dead");
    let old_password = &alice.registration().password;
    let address = Some(alice.address().to_proto());
    assert_code(&login(&lab, address, old_password).await, Unauthorized);
    assert!(again.registration().other_device_address_list.is_empty());
    assert!(again.registration().other_user_address_list.is_empty());
    let removed = theirs.next_removed_device().await.said;
    assert_eq!(names(removed.user_address.as_ref()), "alice/phone");
    lab.assert_silent(&mut theirs).await;
    let bundle = bob.bundle(&again).await;
    assert_eq!(
        bundle.identity_key_public.as_ref(),
        Some(again.keys().identity())
    );
    bob.send(&again, "found by the new one").await;
    let mut new = again.stream().await;
    let first = new.next_letter().await;
    assert_eq!(
        crate::lab::stream::text(&first.said),
        "found by the new one"
    );
    assert!(first.tag.proto_msg_t > last_t, "tags go on");
    let sessions = lab.number("a.test", "SELECT COUNT(*) FROM sessions");
    assert_eq!(sessions.await, 0);
}

fn names(address: Option<&E2eeAddress>) -> String {
    match address.and_then(|address| address.peer.as_ref()) {
        Some(Peer::User(user)) => format!("{}/{}", user.user_id, user.device_id),
        other => panic!("no user: {other:?}"),
    }
}

/// What the operator's command asks for.
async fn invitation(lab: &Lab, from: &str) -> String {
    let admin = lab.config("a.test").doors.admin;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = client
        .post(format!("http://{admin}/invitations"))
        .json(&serde_json::json!({ "from": from }))
        .send();
    let reply = within(PATIENCE, "an invitation", call).await.unwrap();
    let reply: serde_json::Value = reply.json().await.unwrap();
    reply["code"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn who_comes_by_invitation_is_the_inviters_friend() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let (mut request, keys) = lab.registration("bob@a.test", "phone").await;
    request.auth_code = invitation(&lab, "alice").await;
    request.authenticator.clear();

    let bob = Device::register_with(&lab.door("a.test"), request, keys).await;

    assert!(is_somebody(&bob.unwrap()).await);
    let friends = "SELECT u.user_id || ' ' || f.friend || ' ' || f.status FROM friendships f
         JOIN users u ON u.user_key = f.user_key ORDER BY 1";
    assert_eq!(
        lab.texts("a.test", friends).await,
        ["alice bob@a.test 2", "bob alice@a.test 2"]
    );
    let message = alice.stream().await.next().await;
    let Some(Payload::FriendManagerMsg(told)) = message.payload else {
        panic!("{message:?}");
    };
    assert_eq!(told.op(), FriendOp::Added);
    let friend = told.friend.unwrap();
    assert_eq!(friend.from_user, "alice@a.test");
    assert_eq!(friend.to_user, "bob@a.test");
    assert_eq!(friend.nickname, "bob");
}

#[tokio::test]
async fn an_invitation_is_good_once_for_its_inviter_and_for_a_time() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    lab.users(["alice@a.test", "carol@a.test"]).await;
    let used = invitation(&lab, "alice").await;
    let late = invitation(&lab, "alice").await;
    let (good, _) = lab.registration("bob@a.test", "phone").await;
    let with = |code: &str| RegisterUserRequest {
        auth_code: code.to_owned(),
        ..good.clone()
    };

    for (what, code) in [
        ("of somebody else", used.replace("alice", "carol")),
        ("of nobody", used.replace("alice", "nobody")),
        ("of another domain", used.replace("a.test", "b.test")),
        ("with another secret", format!("{used}x")),
        ("with no secret", "e2ee:alice@a.test;invite=".to_owned()),
    ] {
        let before = lab.snapshot().await;
        let reply = register(&lab, with(&code)).await;
        assert_eq!(reply.code(), Forbidden, "{what}: {}", reply.msg);
        before.assert_same(&lab.snapshot().await, what);
    }
    assert_code(&register(&lab, with(&used)).await, Granted);
    let again = RegisterUserRequest {
        user_id: "eve".to_owned(),
        ..with(&used)
    };
    assert_code(&register(&lab, again).await, Forbidden);
    lab.clock.turn(15 * DAY_MS);
    let late = RegisterUserRequest {
        user_id: "eve".to_owned(),
        ..with(&late)
    };
    assert_code(&register(&lab, late).await, Forbidden);
}

#[tokio::test]
async fn a_closed_node_takes_new_users_by_invitation_only() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    lab.reconfigure("a.test", |config| {
        config.accounts.registration = Registration::Invitation;
    });
    lab.stop("a.test").await;
    lab.start_node("a.test").await;

    let (bob, _) = lab.registration("bob@a.test", "phone").await;
    let invited = RegisterUserRequest {
        auth_code: invitation(&lab, "alice").await,
        ..bob.clone()
    };

    assert_code(&register(&lab, bob).await, Forbidden);
    assert_code(&register(&lab, invited).await, Granted);
    lab.second_device(&alice, "tablet").await;
}

#[tokio::test]
async fn a_login_gives_another_token_beside_the_first() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let mut address = alice.address().to_proto();
    address.domain = "A.Test".to_owned();

    let reply = login(&lab, Some(address), &alice.registration().password).await;

    assert_code(&reply, Granted);
    let now = lab.clock.now_ms();
    assert!((now + 29 * DAY_MS..=now + 30 * DAY_MS).contains(&reply.expires_in));
    assert_eq!(reply.user_state(), UserState::Normal);
    assert_ne!(reply.auth, alice.registration().auth);
    let renewed = alice.with_token(Bearer::new(&reply.auth).unwrap());
    assert!(is_somebody(&renewed).await && is_somebody(&alice).await);
}

#[tokio::test]
async fn whatever_is_wrong_with_a_login_the_answer_is_the_same() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let password = alice.registration().password.clone();
    let good = alice.address().to_proto();
    let with = |change: fn(&mut E2eeAddress)| {
        let mut address = good.clone();
        change(&mut address);
        Some(address)
    };
    let before = lab.snapshot().await;

    let mut replies = Vec::new();
    for (address, password) in [
        (Some(good.clone()), "wrong"),
        (Some(good.clone()), ""),
        (Some(good.clone()), &"x".repeat(300)),
        (Some(good.clone()), &bob.registration().password),
        (Some(bob.address().to_proto()), &password),
        (None, &password),
        (with(|a| a.peer = None), &password),
        (with(|a| a.domain = "b.test".into()), &password),
        (with(|a| a.domain.clear()), &password),
        (Some(alice.address().user.to_proto()), &password),
        (
            Some(alice.address().user.device("unknown").unwrap().to_proto()),
            &password,
        ),
        (
            Some(
                skiserver::address::DeviceAddress::parse("eve@a.test/phone")
                    .unwrap()
                    .to_proto(),
            ),
            &password,
        ),
    ] {
        replies.push(login(&lab, address, password).await);
    }

    for reply in &replies {
        assert_code(reply, Unauthorized);
        assert_eq!(reply, &replies[0]);
    }
    before.assert_same(&lab.snapshot().await, "a failed login");
    assert_code(&login(&lab, Some(good), &password).await, Granted);
}

#[tokio::test]
async fn failed_logins_of_a_device_are_limited() {
    let lab = Lab::configured(["a.test"], |config| {
        config.limits.login_failures_per_device_hour = 3;
    })
    .await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let address = |user: &User| Some(user.address().to_proto());

    for _ in 0..3 {
        assert_code(&login(&lab, address(&alice), "wrong").await, Unauthorized);
    }

    let password = &alice.registration().password;
    assert_code(
        &login(&lab, address(&alice), password).await,
        ExpectationFailed,
    );
    let password = &bob.registration().password;
    assert_code(&login(&lab, address(&bob), password).await, Granted);
}

#[tokio::test]
async fn the_oldest_of_too_many_tokens_ends() {
    let lab = Lab::configured(["a.test"], |config| config.limits.tokens_per_device_max = 3).await;
    let alice = lab.user("alice@a.test").await;
    assert!(
        is_somebody(&alice).await,
        "and the token is known to a cache"
    );

    let mut others = Vec::new();
    for _ in 0..3 {
        lab.clock.turn(1);
        others.push(alice.login().await.unwrap());
    }

    assert!(!is_somebody(&alice).await);
    for other in others {
        assert!(is_somebody(&other).await);
    }
}

#[tokio::test]
async fn a_token_ends_with_its_time_and_its_stream_with_it() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let mut stream = alice.stream().await;
    lab.clock.turn(29 * DAY_MS);
    assert!(is_somebody(&alice).await);

    lab.clock.turn(DAY_MS);

    assert_eq!(stream.ended().await.code(), Code::Unauthenticated);
    assert!(!is_somebody(&alice).await);
    let renewed = alice.login().await.unwrap();
    assert!(is_somebody(&renewed).await);
}

#[tokio::test]
async fn a_suspended_user_is_kept_out() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let mut stream = alice.stream().await;
    let node = lab.node("a.test");
    let suspended = i64::from(i32::from(UserState::Suspended));
    let device_key = lab.number("a.test", "SELECT device_key FROM devices").await;

    let mut tx = node.store.begin().await.unwrap();
    let sql = "UPDATE users SET state = $1 WHERE user_id = 'alice'";
    tx.execute(sql, [Value::Int(suspended)]).await.unwrap();
    let wake = Wake {
        ended: vec![device_key],
        ..Wake::default()
    };
    tx.commit(wake).await.unwrap();

    assert_eq!(stream.ended().await.code(), Code::Unauthenticated);
    assert!(!is_somebody(&alice).await);
    let address = Some(alice.address().to_proto());
    let reply = login(&lab, address, &alice.registration().password).await;
    assert_code(&reply, Forbidden);
}

#[tokio::test]
async fn the_server_tells_its_name_and_time() {
    let lab = Lab::start(["a.test"]).await;
    let mut nobody = lab.door("a.test").unary(Bearer::default());
    let before = lab.clock.now_ms();

    let reply = answer(nobody.acquire_server_info(AcquireServerInfoRequest::default())).await;

    assert_code(&reply, Granted);
    let heartbeat = reply.heartbeat.unwrap();
    assert_eq!(heartbeat.hostname, "a.test");
    assert!((before..=lab.clock.now_ms()).contains(&heartbeat.server_t));
}
