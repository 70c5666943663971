//! The doors: who gets in, which methods are there, and what each says to somebody without a token.

use bytes::Bytes;
use prost::Message as _;
use prost_types::FileDescriptorSet;
use rustls::{ClientConfig, version::TLS12};
use skiserver::{
    client::{Device, Pack, Who, door::Bearer},
    proto::{
        DESCRIPTORS,
        skiserver::{
            AcquireGroupMemberInfosRequest, AcquireServerInfoRequest, AskUserIdAvailableRequest,
            LogoutRequest,
        },
        skissm::{ProtoMsg, ResponseCode},
    },
    reply::Verdict,
};
use tonic::{Code, Request, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use crate::lab::{
    Lab, OpenStream, PATIENCE, Scripted, answer, assert_code, raw,
    refusals::within,
    scripted::{Dialler, dial},
};

/// What everybody may call.
const OPEN: [&str; 5] = [
    "AcquireAuthCode",
    "AcquireServerInfo",
    "AskUserIdAvailable",
    "Login",
    "RegisterUser",
];

/// Methods that answer "not available yet". The lists shrink to nothing with the next release.
const CLIENT_DOOR_NOT_YET: [&str; 25] = [
    "AddFriend",
    "AddGroupMemberDevice",
    "AddGroupMembers",
    "BackupMsg",
    "BlockFriend",
    "CreateGroup",
    "DownloadMsg",
    "FindUser",
    "GetFriends",
    "GetGroup",
    "GetUser",
    "JoinGroup",
    "LeaveGroup",
    "MemoFriend",
    "RemoveFriend",
    "RemoveGroupMembers",
    "SendGroupMsg",
    "UnBlockFriend",
    "UpdateAuthenticator",
    "UpdateGroupManagers",
    "UpdateGroupName",
    "UpdateMsgBackupKey",
    "UpdatePushId",
    "UpdateUserName",
    "UpdateUserPrivacy",
];
const PEER_DOOR_NOT_YET: [&str; 14] = [
    "AddFriend",
    "AddGroupMemberDevice",
    "AddGroupMembers",
    "BlockFriend",
    "GetGroup",
    "GetUser",
    "JoinGroup",
    "LeaveGroup",
    "RemoveFriend",
    "RemoveGroupMembers",
    "SendGroupMsg",
    "UnBlockFriend",
    "UpdateGroupManagers",
    "UpdateGroupName",
];

/// The paths of all unary methods of these services.
fn methods(services: &[&str]) -> Vec<(String, String)> {
    let set = FileDescriptorSet::decode(DESCRIPTORS).unwrap();
    let mut methods = Vec::new();
    for file in &set.file {
        for service in &file.service {
            if !services.contains(&service.name()) {
                continue;
            }
            for method in &service.method {
                let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                methods.push((method.name().to_owned(), path));
            }
        }
    }
    methods.sort();
    methods
}

/// Which of these methods answer an empty request with "not available yet".
async fn not_yet(
    channel: &Channel,
    header: (&'static str, &str),
    methods: &[(String, String)],
) -> Vec<String> {
    let mut found = Vec::new();
    for (name, path) in methods {
        let mut request = Request::new(Bytes::new());
        let value = header.1.parse().unwrap();
        request.metadata_mut().insert(header.0, value);
        let verdict: Verdict = raw::call(channel.clone(), path, request).await.unwrap();
        if verdict.msg == "not available yet" {
            assert_eq!(
                verdict.code,
                ResponseCode::ServiceUnavailable as i32,
                "{name}"
            );
            found.push(name.clone());
        }
    }
    found
}

#[tokio::test]
async fn the_client_door_lacks_exactly_the_methods_of_the_next_release() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let token = format!("Bearer {}", alice.registration().auth);
    let methods = methods(&["E2eeUnaryService", "E2eeBackupService"]);

    let lacking = not_yet(&alice.door().channel(), ("authorization", &token), &methods).await;

    assert_eq!(methods.len(), 38);
    assert_eq!(lacking, CLIENT_DOOR_NOT_YET);
}

#[tokio::test]
async fn the_peer_door_lacks_exactly_the_methods_of_the_next_release() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let methods = methods(&["E2eeS2SService"]);
    let header = ("skiserver-domain", "b.test");

    let lacking = not_yet(&peer.channel(&lab, "a.test"), header, &methods).await;

    assert_eq!(methods.len(), 20);
    assert_eq!(lacking, PEER_DOOR_NOT_YET);
}

#[tokio::test]
async fn nobody_may_call_anything_but_the_open_methods() {
    let lab = Lab::start(["a.test"]).await;
    let channel = lab.door("a.test").channel();
    let before = lab.snapshot().await;

    for authorization in [
        None,
        Some("Bearer nonsense"),
        Some("nonsense"),
        Some("Basic YTpi"),
        Some(""),
    ] {
        for (name, path) in methods(&["E2eeUnaryService", "E2eeBackupService"]) {
            let mut request = Request::new(Bytes::new());
            if let Some(value) = authorization {
                let value = value.parse().unwrap();
                request.metadata_mut().insert("authorization", value);
            }
            let verdict: Verdict = raw::call(channel.clone(), &path, request).await.unwrap();
            let is_stopped = verdict.code == ResponseCode::Unauthorized as i32;
            let is_open = OPEN.contains(&name.as_str());
            // Login answers 401 for whatever it does not like.
            assert!(
                is_stopped != is_open || name == "Login",
                "{name} with {authorization:?}: {verdict:?}"
            );
        }
    }

    before.assert_same(&lab.snapshot().await, "nobody");
}

#[tokio::test]
async fn the_open_methods_need_no_token() {
    let lab = Lab::start(["a.test"]).await;
    let door = lab.door("a.test");
    let mut nobody = door.unary(Bearer::default());

    let info = nobody.acquire_server_info(AcquireServerInfoRequest::default());
    assert_code(&answer(info).await, ResponseCode::Ok);
    let free = nobody.ask_user_id_available(AskUserIdAvailableRequest {
        user_id: "alice".to_owned(),
    });
    assert_code(&answer(free).await, ResponseCode::Ok);
    let alice = Device::register(&door, &Who::new("alice", "phone"), Pack::SMALL).await;
    alice.unwrap().login().await.unwrap();
}

#[tokio::test]
async fn a_token_counts_with_and_without_the_word_bearer() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let token = &alice.registration().auth;

    for value in [
        token.clone(),
        format!("Bearer {token}"),
        format!("bearer {token}"),
    ] {
        let mut request = Request::new(Bytes::new());
        let header = value.parse().unwrap();
        request.metadata_mut().insert("authorization", header);
        let path = "/skiserver.E2eeUnaryService/Logout";
        let verdict: Verdict = raw::call(alice.door().channel(), path, request)
            .await
            .unwrap();
        assert_eq!(verdict.code, ResponseCode::BadRequest as i32, "{verdict:?}");
    }
}

#[tokio::test]
async fn a_stream_without_a_valid_token_ends_unauthenticated() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;

    for bearer in [Bearer::default(), Bearer::new("nonsense").unwrap()] {
        let mut bidi = alice.door().bidi(bearer);
        let call = bidi.communicate(tokio_stream::pending::<ProtoMsg>());
        let refused = within(PATIENCE, "the refusal", call).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
    }
}

#[tokio::test]
async fn a_broken_frame_ends_in_a_grpc_error() {
    let lab = Lab::start(["a.test"]).await;
    let channel = lab.door("a.test").channel();
    let broken = Request::new(Bytes::from_static(b"\x0a\xff\xff\xff\xff\x0f"));

    let path = "/skiserver.E2eeUnaryService/Login";
    let status = raw::call::<Verdict>(channel.clone(), path, broken).await;
    let path = "/skiserver.E2eeUnaryService/Nonsense";
    let unknown = raw::call::<Verdict>(channel, path, Request::new(Bytes::new())).await;

    assert_eq!(status.unwrap_err().code(), Code::Internal);
    assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
}

#[tokio::test]
async fn a_request_beyond_the_bound_is_not_decoded() {
    let lab = Lab::start(["a.test"]).await;
    let channel = lab.door("a.test").channel();
    let bound = lab.config("a.test").limits.request_bytes_max;
    let large = Request::new(Bytes::from(vec![0; bound + 1]));

    let path = "/skiserver.E2eeUnaryService/Login";
    let status = raw::call::<Verdict>(channel, path, large).await;

    let code = status.unwrap_err().code();
    assert!(
        matches!(code, Code::OutOfRange | Code::ResourceExhausted),
        "{code:?}"
    );
}

#[tokio::test]
async fn both_doors_tell_their_health() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let apps = lab.door("a.test").channel();
    let domains = peer.channel(&lab, "a.test");

    for (channel, service) in [
        (&apps, ""),
        (&apps, "skiserver.E2eeUnaryService"),
        (&apps, "skiserver.E2eeBidiService"),
        (&apps, "skiserver.E2eeBackupService"),
        (&domains, ""),
        (&domains, "skiserver.E2eeS2SService"),
    ] {
        let mut health = HealthClient::new(channel.clone());
        let asked = health.check(HealthCheckRequest {
            service: service.to_owned(),
        });
        let status = answer(asked).await.status();
        assert_eq!(status, ServingStatus::Serving, "{service}");
    }
}

#[tokio::test]
async fn the_client_door_describes_its_services() {
    let lab = Lab::start(["a.test"]).await;
    let mut reflection = ServerReflectionClient::new(lab.door("a.test").channel());
    let question = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };

    let answers = reflection.server_reflection_info(tokio_stream::iter([question]));
    let first = answer(answers).await.message().await.unwrap().unwrap();

    let Some(MessageResponse::ListServicesResponse(list)) = first.message_response else {
        panic!("{first:?}");
    };
    let names: Vec<&str> = list.service.iter().map(|s| s.name.as_str()).collect();
    for service in ["E2eeUnaryService", "E2eeBidiService", "E2eeBackupService"] {
        assert!(
            names.contains(&format!("skiserver.{service}").as_str()),
            "{names:?}"
        );
    }
}

#[tokio::test]
async fn a_client_that_speaks_only_tls_1_2_is_refused() {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let doors = lab.config("a.test").doors;

    for (door, name) in [(doors.client, "client"), (doors.peer, "peer")] {
        for (versions, passes) in [(&[&TLS12], false), (&[&rustls::version::TLS13], true)] {
            let tls = ClientConfig::builder_with_protocol_versions(versions);
            let tls = dial::credentials(tls, &lab, Some(&peer.issued));
            let refused = dial::handshake("a.test", door, tls).await;
            assert_eq!(refused.is_ok(), passes, "the {name} door: {refused:?}");
        }
    }
}

#[tokio::test]
async fn the_peer_door_is_closed_without_a_certificate() {
    let lab = Lab::start(["a.test"]).await;
    let nobody = Dialler {
        issued: None,
        header: Some("b.test".to_owned()),
    };
    let mut methods = nobody.calls(&lab, "a.test");
    let request = AcquireGroupMemberInfosRequest::default();

    let call = methods.acquire_group_member_infos(request);
    let refused = within(PATIENCE, "the refusal", call).await;

    assert!(refused.is_err(), "{refused:?}");
}

#[tokio::test]
async fn the_operator_sees_health_readiness_and_metrics() {
    let lab = Lab::start(["a.test"]).await;
    lab.user("alice@a.test").await;

    assert_eq!(get(&lab, "health").await, (200, "ok\n".to_owned()));
    assert_eq!(get(&lab, "ready").await, (200, "ready\n".to_owned()));
    let (status, version) = get(&lab, "version").await;
    assert_eq!((status, version.trim()), (200, env!("CARGO_PKG_VERSION")));
    assert_eq!(get(&lab, "nonsense").await.0, 404);
    let (status, metrics) = get(&lab, "metrics").await;
    assert_eq!(status, 200);
    for name in [
        "skiserver_mailbox_rows",
        "skiserver_outbox_rows",
        "skiserver_calls_total",
    ] {
        assert!(metrics.contains(name), "{name} is missing in\n{metrics}");
    }
    assert!(metrics.contains("rpc=\"register_user\""), "{metrics}");
    assert!(!metrics.contains("alice"), "a name in the metrics");
}

async fn get(lab: &Lab, path: &str) -> (u16, String) {
    let admin = lab.config("a.test").doors.admin;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let call = client.get(format!("http://{admin}/{path}")).send();
    let answer = within(PATIENCE, path, call).await.unwrap();
    (answer.status().as_u16(), answer.text().await.unwrap())
}

#[tokio::test]
async fn a_draining_node_ends_streams_and_finishes_what_it_took() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let mut stream = OpenStream::open(&bob).await;
    alice.send(&bob, "taken").await;

    let (reason, ()) = tokio::join!(stream.ended(), lab.stop("a.test"));
    lab.start_node("a.test").await;

    assert_eq!(reason.code(), Code::Unavailable, "{reason:?}");
    assert_eq!(bob.stream().await.next_text().await, "taken");
}

#[tokio::test]
async fn a_device_that_logged_out_is_nobody() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let request = LogoutRequest {
        user_address: Some(alice.address().to_proto()),
    };

    let first = answer(alice.unary().logout(request.clone())).await;
    let second = answer(alice.unary().logout(request)).await;

    assert_code(&first, ResponseCode::Ok);
    assert_code(&second, ResponseCode::Unauthorized);
}
