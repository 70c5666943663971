//! Auth codes: who gets one, and how it ends.

use crate::testing::Must as _;

use super::*;
use crate::{
    error::Error,
    operations::accounts::server_info,
    proto::skiserver::{AcquireAuthCodeResponse, AcquireServerInfoRequest},
};

async fn acquire(bench: &Bench, authenticator: &str) -> Result<AcquireAuthCodeResponse> {
    let request = AcquireAuthCodeRequest {
        authenticator: authenticator.to_owned(),
    };
    acquire_code(bench, &stranger(), request).await
}

/// A registration of `alice` with this code.
async fn enter(bench: &Bench, code: &str) -> Result<RegisterUserResponse> {
    let mut form = form("alice", "phone");
    form.auth_code = code.to_owned();
    register(bench, &stranger(), form).await
}

fn is_wrong(answer: &Result<RegisterUserResponse>) -> bool {
    matches!(answer, Err(Error::Forbidden("the code is not valid")))
}

/// Another code than the right one.
fn wrong(code: &str) -> String {
    let number: u32 = code.parse().must();
    format!("{:06}", (number + 1) % 1_000_000)
}

#[tokio::test]
async fn a_code_has_six_digits_and_a_life_in_seconds() {
    let bench = Bench::start().await;

    let answer = acquire(&bench, "mailto:Alice@mail.test").await.must();

    assert_eq!(answer.ttl, 600);
    let code = bench.code("mailto:Alice@mail.test").must();
    assert!(code.len() == 6 && code.bytes().all(|b| b.is_ascii_digit()));
    enter(&bench, &code).await.must();
    for bad in ["", "alice", "xmpp:alice@mail.test"] {
        let refused = acquire(&bench, bad).await;
        assert!(matches!(refused, Err(Error::Invalid("authenticator"))));
    }
}

#[tokio::test]
async fn the_answer_is_the_same_for_known_and_unknown_authenticators() {
    let bench = Bench::start().await;
    Phone::new(&bench, "alice", "phone").await;

    let known = acquire(&bench, "alice@mail.test").await.must();
    let unknown = acquire(&bench, "nobody@mail.test").await.must();

    assert_eq!(known, unknown);
}

#[tokio::test]
async fn a_code_works_once() {
    let bench = Bench::start().await;
    let code = code(&bench, "alice@mail.test").await;
    enter(&bench, &code).await.must();

    assert!(is_wrong(&enter(&bench, &code).await));
}

#[tokio::test]
async fn a_new_code_ends_the_one_before() {
    let bench = Bench::start().await;
    let first = code(&bench, "alice@mail.test").await;
    let mut second = code(&bench, "alice@mail.test").await;
    while second == first {
        second = code(&bench, "alice@mail.test").await;
    }

    assert!(is_wrong(&enter(&bench, &first).await));
    enter(&bench, &second).await.must();
}

#[tokio::test]
async fn a_code_is_for_its_authenticator_only() {
    let bench = Bench::start().await;
    code(&bench, "alice@mail.test").await;
    let others = code(&bench, "bob@mail.test").await;
    let own = bench.code("alice@mail.test").must();

    assert!(own == others || is_wrong(&enter(&bench, &others).await));
}

#[tokio::test]
async fn wrong_tries_end_a_code_though_their_calls_fail() {
    let bench = Bench::start().await;
    let code = code(&bench, "alice@mail.test").await;

    for _ in 0..5 {
        assert!(is_wrong(&enter(&bench, &wrong(&code)).await));
    }

    assert!(is_wrong(&enter(&bench, &code).await), "it is dead");
    assert_eq!(
        count(&bench, "SELECT attempts FROM auth_codes").await,
        5,
        "further tries cost nothing"
    );
}

#[tokio::test]
async fn a_code_ends_with_its_time() {
    let bench = Bench::start().await;
    let code = code(&bench, "alice@mail.test").await;

    bench.clock.turn(600_000);

    assert!(is_wrong(&enter(&bench, &code).await));
}

#[tokio::test]
async fn one_authenticator_gets_few_codes_an_hour_in_whatever_spelling() {
    let bench = Bench::start().await;
    for spelling in [
        "alice@mail.test",
        "mailto:alice@mail.test",
        "ALICE@mail.test",
        "alice@MAIL.test",
        " alice@mail.test",
    ] {
        acquire(&bench, spelling).await.must();
    }

    let refused = acquire(&bench, "alice@mail.test").await;

    assert!(matches!(refused, Err(Error::Throttled(_))), "{refused:?}");
    acquire(&bench, "bob@mail.test").await.must();
}

#[tokio::test]
async fn one_network_address_makes_few_account_calls_a_minute() {
    let bench =
        Bench::start_with(|config| config.limits.account_calls_per_address_minute = 3).await;
    for name in ["a", "b", "c"] {
        acquire(&bench, &format!("{name}@mail.test")).await.must();
    }

    let refused = acquire(&bench, "d@mail.test").await;

    assert!(matches!(refused, Err(Error::Throttled(_))), "{refused:?}");
    let refused = register(&bench, &stranger(), form("alice", "phone")).await;
    assert!(matches!(refused, Err(Error::Throttled(_))), "{refused:?}");
}

#[test]
fn neighbours_in_one_ipv6_network_count_as_one_address() {
    use crate::operations::accounts::network;
    let parse = |text: &str| network(text.parse().must());

    assert_eq!(parse("2001:db8::1"), parse("2001:db8::ffff:0:0:2"));
    assert_ne!(parse("2001:db8::1"), parse("2001:db8:0:1::1"));
    assert_eq!(parse("::ffff:192.0.2.1"), parse("192.0.2.1"));
    assert_ne!(parse("192.0.2.1"), parse("192.0.2.2"));
}

#[tokio::test]
async fn the_server_tells_its_name_and_time() {
    let bench = Bench::start().await;

    let request = AcquireServerInfoRequest::default();
    let answer = server_info(&bench, &stranger(), request).await.must();

    let heartbeat = answer.heartbeat.must();
    assert_eq!(heartbeat.hostname, "a.test");
    assert!((bench.clock.now_ms() - heartbeat.server_t).abs() < 60_000);
}

#[tokio::test]
async fn the_answer_waits_for_no_gateway_and_hides_its_failure() {
    // A listener that accepts nothing: the call hangs until it is given up.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").must();
    let url = format!("http://{}/", silent.local_addr().must());
    let bench = Bench::start_with(|config| {
        config.codes.delivery = crate::config::Delivery::Webhook;
        config.codes.webhook = Some(crate::config::Webhook { url, bearer: None });
    })
    .await;

    let answer = acquire(&bench, "alice@mail.test").await.must();

    assert_eq!(answer.ttl, 600);
    assert_eq!(count(&bench, "SELECT COUNT(*) FROM auth_codes").await, 1);
}
