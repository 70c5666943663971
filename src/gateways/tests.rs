//! Codes on their way out, to servers on loopback that note what they get.

use crate::testing::Must as _;

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use axum::{Router, routing::post};
use http::HeaderMap;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
    net::TcpListener,
    task::JoinSet,
};

use super::*;

fn gateway(codes: &str) -> Result<CodeGateway> {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = format!(
        "domain = 'a.test'\ntls = {{ certificate = 'x', key = 'x' }}\ncodes = {{ {codes} }}"
    );
    CodeGateway::new(&toml::from_str(&config).must())
}

fn dispatch(authenticator: &str) -> Dispatch {
    Dispatch {
        authenticator: Authenticator::parse(authenticator).must(),
        code: "012345".to_owned(),
        expires_at: 1_700_000_000_000,
        minutes: 10,
    }
}

async fn send(gateway: &CodeGateway, authenticator: &str) -> Result<()> {
    let slot = gateway.slot().must();
    gateway.send(slot, dispatch(authenticator)).await
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.must();
    let address = listener.local_addr().must();
    (listener, address)
}

type Calls = Arc<Mutex<Vec<(String, Option<String>, Value)>>>;

/// A web server that takes codes at `/codes` and sends callers on at `/moved`.
async fn web(tasks: &mut JoinSet<()>) -> (SocketAddr, Calls) {
    let calls = Calls::default();
    let note = |path: &'static str| {
        let calls = Arc::clone(&calls);
        async move |headers: HeaderMap, body: String| {
            let bearer = headers.get("authorization");
            let bearer = bearer.map(|b| b.to_str().must().to_owned());
            let body = serde_json::from_str(&body).must();
            calls.lock().must().push((path.to_owned(), bearer, body));
        }
    };
    let routes = Router::new()
        .route("/codes", post(note("/codes")))
        .route(
            "/moved",
            post(async || axum::response::Redirect::temporary("/codes")),
        )
        .route(
            "/broken",
            post(async || http::StatusCode::INTERNAL_SERVER_ERROR),
        );
    let (listener, address) = listen().await;
    tasks.spawn(async move { axum::serve(listener, routes).await.must() });
    (address, calls)
}

#[tokio::test]
async fn a_webhook_gets_the_code_with_its_canonical_authenticator() {
    let mut tasks = JoinSet::new();
    let (address, calls) = web(&mut tasks).await;
    let settings = format!(
        "delivery = 'webhook', webhook = {{ url = 'http://{address}/codes', bearer = 'secret' }}"
    );
    let gateway = gateway(&settings).must();

    send(&gateway, "+49 30 123456").await.must();

    let calls = calls.lock().must();
    let body = json!({
        "authenticator": "tel:+4930123456",
        "code": "012345",
        "expires_at": 1_700_000_000_000_i64,
    });
    let bearer = Some("Bearer secret".to_owned());
    assert_eq!(*calls, [("/codes".to_owned(), bearer, body)]);
    assert!(!gateway.is_immediate());
}

#[tokio::test]
async fn a_webhook_that_refuses_or_sends_elsewhere_has_failed() {
    let mut tasks = JoinSet::new();
    let (address, calls) = web(&mut tasks).await;

    for path in ["moved", "broken", "missing"] {
        let settings =
            format!("delivery = 'webhook', webhook = {{ url = 'http://{address}/{path}' }}");
        let gateway = gateway(&settings).must();
        let failed = send(&gateway, "alice@x.test").await;
        assert!(matches!(failed, Err(Error::Internal(_))), "{path}");
    }

    assert!(calls.lock().must().is_empty(), "redirects are not followed");
}

/// A mail server for one mail, which it returns: the lines that it was sent.
async fn take_mail(listener: TcpListener) -> Vec<String> {
    let (stream, _) = listener.accept().await.must();
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    let mut heard = Vec::new();
    let mut in_data = false;
    writer.write_all(b"220 mail.test\r\n").await.must();
    while let Some(line) = lines.next_line().await.must() {
        let answer = match line.as_str() {
            "." => {
                heard.push(line);
                writer.write_all(b"250 taken\r\n").await.must();
                return heard;
            }
            _ if in_data => "",
            "DATA" => {
                in_data = true;
                "354 go on\r\n"
            }
            _ => "250 fine\r\n",
        };
        heard.push(line);
        writer.write_all(answer.as_bytes()).await.must();
    }
    panic!("the mail did not end: {heard:?}")
}

#[tokio::test]
async fn a_mail_server_gets_one_mail_to_the_canonical_address() {
    let (listener, address) = listen().await;
    let settings = format!(
        "delivery = 'smtp', smtp = {{ host = '127.0.0.1', port = {}, from = 'Codes <codes@a.test>', tls = 'none' }}",
        address.port()
    );
    let gateway = gateway(&settings).must();

    let (sent, heard) = tokio::join!(send(&gateway, "Alice@X.test"), take_mail(listener));

    sent.must();
    let has = |line: &str| heard.iter().any(|heard| heard == line);
    assert!(has("EHLO a.test"), "{heard:?}");
    assert!(has("MAIL FROM:<codes@a.test>"), "{heard:?}");
    assert!(has("RCPT TO:<alice@x.test>"), "{heard:?}");
    assert!(has("    012345"), "{heard:?}");
    let phone = Authenticator::parse("tel:+4930123456").must();
    assert!(
        !gateway.reaches(&phone),
        "mail servers send no text messages"
    );
}

#[tokio::test]
async fn a_mail_server_that_refuses_is_reported_without_the_address() {
    let (listener, address) = listen().await;
    let settings = format!(
        "delivery = 'smtp', smtp = {{ host = '127.0.0.1', port = {}, from = 'codes@a.test', tls = 'none' }}",
        address.port()
    );
    let gateway = gateway(&settings).must();
    let refuse = async {
        let (stream, _) = listener.accept().await.must();
        let (reader, mut writer) = stream.into_split();
        let mut lines = BufReader::new(reader).lines();
        writer.write_all(b"220 mail.test\r\n").await.must();
        while let Ok(Some(line)) = lines.next_line().await {
            let answer = if line.starts_with("RCPT") {
                "550 no alice@x.test here\r\n"
            } else {
                "250 fine\r\n"
            };
            let _ = writer.write_all(answer.as_bytes()).await;
        }
    };

    let failed = tokio::select! {
        failed = send(&gateway, "alice@x.test") => failed,
        () = refuse => panic!("the connection closed first"),
    };

    let Err(Error::Internal(cause)) = failed else {
        panic!("{failed:?}")
    };
    assert_eq!(
        cause.to_string(),
        "the mail server refuses the mail for good"
    );
}

#[tokio::test]
async fn a_file_keeps_every_code_as_it_was_asked_for() {
    let folder = tempfile::tempdir().must();
    let path = folder.path().join("codes.jsonl");
    let settings = format!(
        "delivery = 'file', file = {{ path = '{}' }}",
        path.display()
    );
    let gateway = gateway(&settings).must();
    assert!(gateway.is_immediate());

    for asked in ["mailto:Alice@X.test", "+49 30 123456"] {
        send(&gateway, asked).await.must();
    }

    let text = std::fs::read_to_string(&path).must();
    let lines: Vec<Value> = (text.lines())
        .map(|line| serde_json::from_str(line).must())
        .collect();
    assert_eq!(lines.len(), 2);
    assert_eq!(lines[0]["authenticator"], "mailto:Alice@X.test");
    assert_eq!(lines[1]["authenticator"], "+49 30 123456");
    assert_eq!(lines[1]["code"], "012345");
    assert_eq!(lines[1]["expires_at"], 1_700_000_000_000_i64);
}

#[tokio::test]
async fn a_bounded_number_of_codes_is_under_way() {
    let gateway = gateway("delivery = 'webhook', webhook = { url = 'http://127.0.0.1:9/' }").must();
    let slots: Vec<Slot> = (0..limits::CODES_UNDER_WAY_MAX)
        .map(|_| gateway.slot().must())
        .collect();

    assert!(matches!(gateway.slot(), Err(Error::Busy(_))));

    drop(slots);
    assert!(gateway.slot().is_ok());
}

#[tokio::test]
async fn settings_that_can_not_work_are_refused_at_the_start() {
    for (key, settings) in [
        ("codes.smtp", "delivery = 'smtp'"),
        ("codes.webhook", "delivery = 'webhook'"),
        ("codes.file", "delivery = 'file'"),
        (
            "codes.smtp.from",
            "delivery = 'smtp', smtp = { host = 'x', port = 25, from = 'nobody', tls = 'none' }",
        ),
        (
            "codes.webhook.url",
            "delivery = 'webhook', webhook = { url = 'ftp://x/' }",
        ),
        (
            "codes.webhook.url",
            "delivery = 'webhook', webhook = { url = 'not a url' }",
        ),
    ] {
        let Err(Error::Internal(cause)) = gateway(settings) else {
            panic!("{settings} passed")
        };
        assert!(cause.to_string().starts_with(key), "{cause}");
    }
}
