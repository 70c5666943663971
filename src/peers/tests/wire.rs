//! Encoded requests over a real channel: what a peer's door gets and what its answers and failures become.

use crate::testing::Must as _;

use bytes::Bytes;
use prost::Message as _;
use tonic::{
    Code, Status,
    transport::{Endpoint, Server},
};

use crate::{
    peers::{
        testing::within,
        wire::{HEALTH, is_silence, unary},
    },
    reply::Verdict,
};

/// A peer's door without TLS on loopback, and a channel to it.
async fn channel() -> tonic::transport::Channel {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.must();
    let address = listener.local_addr().must();
    let (health, service) = tonic_health::server::health_reporter();
    health
        .set_service_status("up", tonic_health::ServingStatus::Serving)
        .await;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let door = Server::builder()
        .add_service(service)
        .serve_with_incoming(incoming);
    tokio_util::task::TaskTracker::new().spawn(door);
    let endpoint = Endpoint::from_shared(format!("http://{address}")).must();
    within(endpoint.connect()).await.must()
}

#[tokio::test]
async fn an_encoded_request_gets_the_encoded_answer() {
    let channel = channel().await;
    let named = Bytes::from_static(b"\x0a\x02up");

    let answer = unary(channel, HEALTH, named, 1 << 20).await.must();

    assert_eq!(
        answer.into_inner(),
        Bytes::from_static(b"\x08\x01"),
        "serving"
    );
}

#[tokio::test]
async fn a_call_that_the_peer_fails_is_not_silence() {
    let channel = channel().await;

    let unknown = unary(channel.clone(), "/no.Such/Method", Bytes::new(), 100)
        .await
        .unwrap_err();
    let large = unary(channel, HEALTH, Bytes::new(), 1).await.unwrap_err();

    assert!(!is_silence(&unknown), "{unknown:?}");
    assert!(!is_silence(&large), "{large:?}");
}

#[test]
fn what_breaks_connections_or_keeps_us_out_is_silence() {
    let silent = [
        Code::Unavailable,
        Code::Unknown,
        Code::Cancelled,
        Code::DeadlineExceeded,
        Code::Unauthenticated,
        Code::PermissionDenied,
    ];
    for code in (0..17).map(Code::from) {
        assert_eq!(
            is_silence(&status(code)),
            silent.contains(&code),
            "{code:?}"
        );
    }
}

#[test]
fn the_first_two_fields_of_every_answer_are_its_verdict() {
    let answer = crate::proto::skissm::InviteResponse {
        code: 404,
        msg: "no such device".into(),
        session_id: "s".into(),
        ..Default::default()
    };

    let verdict = Verdict::decode(answer.encode_to_vec().as_slice()).must();

    assert_eq!(
        (verdict.code, verdict.msg.as_str()),
        (404, "no such device")
    );
}

#[expect(clippy::disallowed_methods, reason = "stands for a peer")]
fn status(code: Code) -> Status {
    Status::new(code, "words")
}
