//! First devices: what a good registration gives, and every way to be refused.

use crate::testing::Must as _;

use super::*;
use crate::{
    config::Registration,
    error::Error,
    operations::{accounts::ask_user_id, invitations},
    proto::{
        ski::FriendStatus,
        skiserver::AskUserIdAvailableRequest,
        skissm::{FriendOp, SystemOp},
    },
};

#[tokio::test]
async fn a_first_registration_answers_everything_that_a_client_needs() {
    let bench = Bench::start().await;

    let alice = Phone::new(&bench, "Alice", "phone+/=").await;

    let answer = &alice.answer;
    assert_eq!(alice.address.to_string(), "Alice@a.test/phone+/=");
    assert_eq!(
        answer.address,
        Some(alice.address.to_proto_named("Alice")),
        "the own address carries the name"
    );
    assert_eq!(answer.username, "Alice");
    assert_eq!(answer.authenticator, "Alice@mail.test");
    assert!(answer.password.len() >= 32 && answer.auth.len() == 43);
    let days = (answer.expires_in - bench.clock.now_ms()) / 86_400_000;
    assert!((29..=30).contains(&days), "absolute milliseconds: {days}");
    assert_eq!(
        answer.server_cert.as_ref(),
        Some(&bench.signer.certificate().1)
    );
    assert!(answer.other_device_address_list.is_empty());
    assert!(answer.other_user_address_list.is_empty());
    let caller = alice.caller(&bench).await.must();
    assert_eq!(*caller.device().must().address, *alice.address);
    let Payload::SystemManagerMsg(welcome) = &alice.letters(&bench).await[0] else {
        panic!("no welcome")
    };
    assert_eq!(welcome.op(), SystemOp::RegisterSuccessMsg);
    assert_eq!(
        count(&bench, "SELECT COUNT(*) FROM one_time_keys").await,
        10
    );
    assert_eq!(count(&bench, "SELECT COUNT(*) FROM auth_codes").await, 0);
}

#[tokio::test]
async fn secrets_are_not_in_the_database() {
    let bench = Bench::start().await;

    let alice = Phone::new(&bench, "alice", "phone").await;

    let row = bench
        .store
        .row(
            "SELECT d.password_hash, t.token_hash FROM devices d JOIN tokens t ON t.device_key = d.device_key",
            [],
        )
        .await
        .must()
        .must();
    assert!(row.text(0).must().starts_with("$argon2id$"));
    assert!(!row.text(0).must().contains(&alice.answer.password));
    assert_eq!(row.hash(1).must(), sha256(&[alice.answer.auth.as_bytes()]));
}

#[tokio::test]
async fn each_field_is_checked_and_a_bad_one_changes_nothing() {
    type Change = fn(&mut RegisterUserRequest);
    let bench = Bench::start_with(|config| {
        config.accounts.allowed_e2ee_pack_ids = vec![PACK];
    })
    .await;
    let mut good = form("alice", "phone");
    good.auth_code = code(&bench, &good.authenticator).await;
    let changes: [(&str, Change); 19] = [
        ("user_name", |f| f.user_name.clear()),
        ("user_name", |f| f.user_name = " ".to_owned()),
        ("user_name", |f| f.user_name = "x".repeat(13)),
        ("user_name", |f| f.user_name = "a\u{7}b".to_owned()),
        ("user_id", |f| f.user_id.clear()),
        ("user_id", |f| f.user_id = "alice@a.test".to_owned()),
        ("device_id", |f| f.device_id.clear()),
        ("device_id", |f| f.device_id = "x".repeat(129)),
        ("authenticator", |f| f.authenticator.clear()),
        ("authenticator", |f| f.authenticator = "alice".to_owned()),
        ("auth_code", |f| f.auth_code.clear()),
        ("auth_code", |f| f.auth_code = "e2ee:alice".to_owned()),
        ("auth_code", |f| f.auth_code = "1".repeat(513)),
        ("e2ee_pack_id", |f| f.e2ee_pack_id = 0x0001_3101),
        ("e2ee_pack_id", |f| f.e2ee_pack_id = 0),
        ("identity_key_public", |f| f.identity_key_public = None),
        ("signed_pre_key_public", |f| f.signed_pre_key_public = None),
        ("signed pre-key", |f| {
            f.signed_pre_key_public.as_mut().must().public_key = vec![3; 800].into();
        }),
        ("opk_id", |f| f.one_time_pre_key_list[3].opk_id = 1),
    ];

    for (field, change) in changes {
        let mut bad = good.clone();
        change(&mut bad);
        let refused = register(&bench, &stranger(), bad).await;
        assert!(
            matches!(refused, Err(Error::Invalid(name)) if name == field),
            "{field}: {refused:?}"
        );
    }

    assert_eq!(count(&bench, "SELECT COUNT(*) FROM users").await, 0);
    assert_eq!(
        count(&bench, "SELECT COUNT(*) FROM auth_codes WHERE attempts = 0").await,
        1
    );
    register(&bench, &stranger(), good).await.must();
}

#[tokio::test]
async fn a_taken_id_is_a_conflict_in_any_letter_case_and_leaves_the_code_usable() {
    let bench = Bench::start().await;
    Phone::new(&bench, "Alice", "phone").await;
    let mut other = form("aLICE", "phone");
    other.authenticator = "other@mail.test".to_owned();
    other.auth_code = code(&bench, "other@mail.test").await;

    let taken = register(&bench, &stranger(), other.clone()).await;
    assert!(matches!(taken, Err(Error::Conflict(_))), "{taken:?}");

    other.user_id = "bob".to_owned();
    register(&bench, &stranger(), other).await.must();
    for (user_id, free) in [("ALICE", false), ("Alice", false), ("carol", true)] {
        let request = AskUserIdAvailableRequest {
            user_id: user_id.to_owned(),
        };
        let answer = ask_user_id(&bench, &stranger(), request).await;
        assert_eq!(answer.is_ok(), free, "{user_id}");
        assert!(free || matches!(answer, Err(Error::Conflict(_))));
    }
    let request = AskUserIdAvailableRequest {
        user_id: "a b".to_owned(),
    };
    let answer = ask_user_id(&bench, &stranger(), request).await;
    assert!(matches!(answer, Err(Error::Invalid("user_id"))));
}

#[tokio::test]
async fn an_invitation_lets_one_in_and_makes_friends() {
    let bench = Bench::start().await;
    let alice = Phone::new(&bench, "alice", "phone").await;
    let invitation = invitations::create(&bench, "alice").await.must();
    assert!(invitation.starts_with("e2ee:alice@a.test;invite="));
    let mut guest = form("bob", "phone");
    guest.auth_code = invitation;

    let answer = register(&bench, &stranger(), guest.clone()).await.must();

    assert_eq!(answer.authenticator, "", "an invitation proves none");
    assert_eq!(
        count(&bench, "SELECT COUNT(*) FROM authenticators").await,
        1
    );
    let sides = bench
        .store
        .rows(
            "SELECT friend, nickname, status FROM friendships ORDER BY friend",
            [],
        )
        .await
        .must();
    let sides: Vec<_> = sides
        .iter()
        .map(|s| (s.text(0).must(), s.text(1).must(), s.int(2).must()))
        .collect();
    let friend = i64::from(FriendStatus::Friend as i32);
    assert_eq!(
        sides,
        [
            ("alice@a.test".to_owned(), "alice".to_owned(), friend),
            ("bob@a.test".to_owned(), "bob".to_owned(), friend),
        ]
    );
    let Payload::FriendManagerMsg(told) = &alice.letters(&bench).await[1] else {
        panic!("the inviter is not told")
    };
    assert_eq!(told.op(), FriendOp::Added);
    let seen = told.friend.as_ref().must();
    assert_eq!(
        (seen.from_user.as_str(), seen.to_user.as_str()),
        ("alice@a.test", "bob@a.test")
    );
    guest.user_id = "carol".to_owned();
    let again = register(&bench, &stranger(), guest).await;
    assert!(matches!(again, Err(Error::Forbidden(_))), "{again:?}");
}

#[tokio::test]
async fn an_invitation_claims_nobody_elses_authenticator() {
    let bench = Bench::start().await;
    let alice = Phone::new(&bench, "alice", "phone").await;
    let invitation = invitations::create(&bench, "alice").await.must();
    let mut thief = form("alice", "thief");
    thief.auth_code = invitation.clone();

    let refused = register(&bench, &stranger(), thief.clone()).await;
    assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");

    thief.user_id = "mallory".to_owned();
    register(&bench, &stranger(), thief).await.must();
    let answer = apply(&bench, form("alice", "tablet")).await.must();
    assert_eq!(
        answer.other_device_address_list,
        [alice.address.to_proto_named("alice")]
    );
}

#[tokio::test]
async fn invitations_that_are_foreign_over_or_made_up_get_one_answer() {
    let bench = Bench::start().await;
    Phone::new(&bench, "alice", "phone").await;
    Phone::new(&bench, "eve", "phone").await;
    let good = invitations::create(&bench, "alice").await.must();
    let secret = good.split_once('=').must().1.to_owned();
    let mut form = form("bob", "phone");

    for bad in [
        "e2ee:alice@a.test;invite=AAAAAAAAAAAAAAAAAAAAAA".to_owned(),
        format!("e2ee:eve@a.test;invite={secret}"),
        format!("e2ee:nobody@a.test;invite={secret}"),
        format!("e2ee:alice@b.test;invite={secret}"),
    ] {
        form.auth_code.clone_from(&bad);
        let refused = register(&bench, &stranger(), form.clone()).await;
        let text = refused.unwrap_err().to_string();
        assert_eq!(text, "the code is not valid", "{bad}");
    }
    bench
        .clock
        .turn(crate::limits::INVITATION_DAYS * 86_400_000);
    form.auth_code = good;
    let over = register(&bench, &stranger(), form).await;
    assert_eq!(over.unwrap_err().to_string(), "the code is not valid");
}

#[tokio::test]
async fn a_closed_node_lets_new_users_in_by_invitation_only() {
    let bench = Bench::start_with(|config| {
        config.accounts.registration = Registration::Invitation;
    })
    .await;

    let refused = apply(&bench, form("alice", "phone")).await;

    assert!(matches!(refused, Err(Error::Forbidden(_))), "{refused:?}");
    assert_eq!(count(&bench, "SELECT COUNT(*) FROM users").await, 0);
}
