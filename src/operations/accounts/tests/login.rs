//! Signing in with a password.

use crate::testing::Must as _;

use super::*;
use crate::{
    address::DeviceAddress,
    error::Error,
    operations::accounts::login,
    proto::{
        ski::UserState,
        skiserver::{LoginRequest, LoginResponse},
        skissm::E2eeAddress,
    },
};

async fn sign_in(
    bench: &Bench,
    address: Option<E2eeAddress>,
    password: &str,
) -> Result<LoginResponse> {
    let request = LoginRequest {
        user_address: address,
        password: password.to_owned(),
    };
    login(bench, &stranger(), request).await
}

#[tokio::test]
async fn each_device_signs_in_with_its_own_password() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    let tablet = Phone::new(&bench, "alice", "tablet").await;

    for (device, other) in [(&phone, &tablet), (&tablet, &phone)] {
        let address = device.answer.address.clone();
        let answer = sign_in(&bench, address.clone(), &device.answer.password).await;
        let answer = answer.must();
        assert!(answer.expires_in > bench.clock.now_ms());
        assert_eq!(answer.user_state(), UserState::Normal);
        let caller = caller(&bench, &answer.auth).await.must();
        assert_eq!(caller.device().must().key, device.key);
        assert!(device.caller(&bench).await.is_some(), "both tokens count");
        let refused = sign_in(&bench, address, &other.answer.password).await;
        assert!(matches!(refused, Err(Error::Unauthenticated(_))));
    }
}

#[tokio::test]
async fn everything_wrong_gets_one_answer() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    let password = &phone.answer.password;
    let address = |text: &str| Some(DeviceAddress::parse(text).must().to_proto());
    let own = || phone.answer.address.clone();
    let long = "x".repeat(257);

    for (address, password) in [
        (own(), "wrong"),
        (own(), ""),
        (own(), long.as_str()),
        (address("alice@a.test/tablet"), password),
        (address("bob@a.test/phone"), password),
        (address("alice@b.test/phone"), password),
        (Some(phone.address.user.to_proto()), password),
        (None, password),
    ] {
        let refused = sign_in(&bench, address.clone(), password).await;
        let text = refused.unwrap_err();
        assert!(
            matches!(
                text,
                Error::Unauthenticated("address and password do not match")
            ),
            "{address:?}"
        );
    }
}

#[tokio::test]
async fn a_device_that_failed_too_often_waits_and_others_do_not() {
    let bench = Bench::start_with(|config| config.limits.login_failures_per_device_hour = 2).await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    let bob = Phone::new(&bench, "bob", "phone").await;
    let (address, password) = (phone.answer.address.clone(), &phone.answer.password);
    for _ in 0..5 {
        sign_in(&bench, address.clone(), password).await.must();
    }
    for _ in 0..2 {
        let refused = sign_in(&bench, address.clone(), "wrong").await;
        assert!(matches!(refused, Err(Error::Unauthenticated(_))));
    }

    let refused = sign_in(&bench, address.clone(), password).await;

    assert!(matches!(refused, Err(Error::Throttled(_))), "{refused:?}");
    let bobs = sign_in(&bench, bob.answer.address.clone(), &bob.answer.password);
    bobs.await.must();
    let elsewhere = Caller::Nobody(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)));
    let request = LoginRequest {
        user_address: address,
        password: password.clone(),
    };
    login(&bench, &elsewhere, request).await.must();
}

#[tokio::test]
async fn a_suspended_user_is_told_so_only_for_the_right_password() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    register_more::suspend(&bench).await;
    let address = phone.answer.address.clone();

    let refused = sign_in(&bench, address.clone(), &phone.answer.password).await;
    assert!(matches!(refused, Err(Error::Forbidden(_))), "{refused:?}");
    let refused = sign_in(&bench, address, "wrong").await;
    assert!(matches!(refused, Err(Error::Unauthenticated(_))));
    assert!(phone.caller(&bench).await.is_none(), "its token is no use");
}

#[tokio::test]
async fn the_oldest_token_goes_when_there_are_too_many() {
    let bench = Bench::start_with(|config| config.limits.tokens_per_device_max = 2).await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    let mut auths = vec![phone.answer.auth.clone()];

    for _ in 0..2 {
        bench.clock.turn(1_000);
        let address = phone.answer.address.clone();
        let answer = sign_in(&bench, address, &phone.answer.password).await;
        auths.push(answer.must().auth);
    }

    assert!(caller(&bench, &auths[0]).await.is_none());
    assert!(caller(&bench, &auths[1]).await.is_some());
    assert!(caller(&bench, &auths[2]).await.is_some());
}

#[tokio::test]
async fn a_token_ends_with_its_time() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;

    bench.clock.turn(30 * 86_400_000);

    assert!(phone.caller(&bench).await.is_none());
}
