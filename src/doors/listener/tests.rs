//! Both doors over loopback: who gets in, who is put out, and that shutdown ends.

use crate::testing::Must as _;

use std::{net::SocketAddr, sync::Arc};

use futures_util::{FutureExt, StreamExt};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::server::Connected;

use super::{Conn, DoorKind, Places, Refused, serve_door};
use crate::{
    address::Domain,
    identity::{
        Identity,
        testing::{Authority, dial, two_nodes},
    },
    limits::Limits,
};

/// A door of a.test and somebody of b.test who calls it.
struct Scene {
    connections: futures_util::stream::BoxStream<'static, std::io::Result<Conn>>,
    address: SocketAddr,
    caller: Arc<Identity>,
    authority: Authority,
    tracker: TaskTracker,
    stop: CancellationToken,
    kill: CancellationToken,
}

impl Scene {
    async fn new(kind: DoorKind, limits: &Limits) -> Self {
        let (a, b, authority) = two_nodes();
        let listener = TcpListener::bind("127.0.0.1:0").await.must();
        let address = listener.local_addr().must();
        let (tracker, stop, kill) = (
            TaskTracker::new(),
            CancellationToken::new(),
            CancellationToken::new(),
        );
        let connections = serve_door(
            listener,
            kind,
            a.identity(),
            limits,
            &tracker,
            stop.clone(),
            kill.clone(),
        );
        Self {
            connections: connections.boxed(),
            address,
            caller: b.identity(),
            authority,
            tracker,
            stop,
            kill,
        }
    }

    async fn call(&self) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        dial(&self.caller, "a.test", self.address).await
    }

    async fn next(&mut self) -> Conn {
        self.connections.next().await.must().must()
    }

    /// Whether the door hangs up on a connection on which nothing is sent.
    async fn hangs_up(&self, mut tcp: TcpStream) -> bool {
        let mut byte = [0];
        !matches!(tcp.read(&mut byte).await, Ok(1..))
    }
}

#[tokio::test]
async fn the_peer_door_hands_on_who_calls() {
    let mut scene = Scene::new(DoorKind::Peer, &Limits::default()).await;

    let mut tls = scene.call().await.must();
    let mut conn = scene.next().await;

    let info = conn.connect_info();
    assert_eq!(info.remote, tls.get_ref().0.local_addr().must());
    let peer = info.peer.must();
    let (b, c) = (
        Domain::parse("b.test").must(),
        Domain::parse("c.test").must(),
    );
    assert_eq!(peer.speaks_for(None), Ok(b.clone()));
    assert_eq!(peer.speaks_for(Some(&b)), Ok(b));
    assert!(matches!(
        peer.speaks_for(Some(&c)),
        Err(Refused::Certificate(_))
    ));
    tls.write_all(b"ping").await.must();
    let mut bytes = [0; 4];
    conn.read_exact(&mut bytes).await.must();
    assert_eq!(&bytes, b"ping");
    conn.write_all(b"pong").await.must();
    tls.read_exact(&mut bytes).await.must();
    assert_eq!(&bytes, b"pong");
}

#[tokio::test]
async fn a_stranger_does_not_get_past_the_peer_door_and_others_still_do() {
    let mut scene = Scene::new(DoorKind::Peer, &Limits::default()).await;
    let (_, stranger, _) = two_nodes();
    stranger.write("ca.pem", &scene.authority.pem());

    let mut tls = dial(&stranger.identity(), "a.test", scene.address)
        .await
        .must();
    let alert = tls.read_u8().await.unwrap_err().to_string();
    let _known = scene.call().await.must();

    assert!(alert.contains("UnknownCA"), "{alert}");
    let peer = scene.next().await.connect_info().peer.must();
    assert_eq!(
        peer.speaks_for(None),
        Domain::parse("b.test").map_err(|_| Refused::Ambiguous)
    );
    assert!(scene.connections.next().now_or_never().is_none());
}

#[tokio::test]
async fn the_client_door_asks_for_no_certificate() {
    let mut scene = Scene::new(DoorKind::Client, &Limits::default()).await;

    let _tls = scene.call().await.must();

    assert!(scene.next().await.connect_info().peer.is_none());
}

#[tokio::test]
async fn a_connection_over_the_limit_is_hung_up_until_another_ends() {
    for limits in [
        Limits {
            connections_max: 2,
            ..Limits::default()
        },
        Limits {
            connections_per_address_max: 2,
            ..Limits::default()
        },
    ] {
        let mut scene = Scene::new(DoorKind::Client, &limits).await;
        let _first = scene.call().await.must();
        let first = scene.next().await;
        let _second = scene.call().await.must();
        let _second_conn = scene.next().await;

        let third = TcpStream::connect(scene.address).await.must();
        assert!(scene.hangs_up(third).await);
        drop(first);
        let _fourth = scene.call().await.must();

        scene.next().await;
    }
}

#[test]
fn a_subscriber_of_ipv6_is_a_whole_64() {
    let limits = Limits {
        connections_per_address_max: 1,
        ..Limits::default()
    };
    let places = Places::new(&limits);
    let take = |text: &str| places.take(text.parse().must());

    let one = take("2001:db8::1");
    assert!(one.is_some());
    assert!(take("2001:db8::2").is_none());
    assert!(take("2001:db8:0:1::1").is_some());
    let four = take("192.0.2.1");
    assert!(four.is_some());
    assert!(take("::ffff:192.0.2.1").is_none());
    drop((one, four));
    assert!(take("2001:db8::2").is_some());
    assert!(places.from.lock().must().is_empty());
}

#[tokio::test]
async fn a_caller_that_never_finishes_its_handshake_is_hung_up() {
    let limits = Limits {
        handshake_ms: 50,
        ..Limits::default()
    };
    let scene = Scene::new(DoorKind::Peer, &limits).await;

    let silent = TcpStream::connect(scene.address).await.must();

    assert!(scene.hangs_up(silent).await);
}

#[tokio::test]
async fn a_connection_without_a_first_byte_fails_and_a_quiet_one_later_does_not() {
    let limits = Limits {
        first_byte_ms: 200,
        ..Limits::default()
    };
    let mut scene = Scene::new(DoorKind::Client, &limits).await;
    let mut talker = scene.call().await.must();
    talker.write_all(b"x").await.must();
    let mut conn = scene.next().await;
    assert_eq!(conn.read_u8().await.must(), b'x');
    let _silent = scene.call().await.must();
    let mut silent = scene.next().await;

    let error = silent.read_u8().await.unwrap_err();

    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
    // This one is older, so its limit has passed too.
    assert!(conn.read_u8().now_or_never().is_none());
}

#[tokio::test]
async fn stop_ends_the_door_and_kill_ends_its_connections() {
    let mut scene = Scene::new(DoorKind::Peer, &Limits::default()).await;
    let _tls = scene.call().await.must();
    let mut conn = scene.next().await;
    let half_open = TcpStream::connect(scene.address).await.must();

    scene.stop.cancel();
    assert!(scene.connections.next().await.is_none());
    assert!(scene.hangs_up(half_open).await);
    assert!(TcpStream::connect(scene.address).await.is_err());
    scene.tracker.close();
    scene.tracker.wait().await;

    assert!(conn.read_u8().now_or_never().is_none());
    scene.kill.cancel();
    let error = conn.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionAborted);
    assert!(conn.write_all(b"x").await.is_err());
}

#[tokio::test]
async fn a_server_with_a_silent_connection_ends_when_it_is_killed() {
    let mut scene = Scene::new(DoorKind::Peer, &Limits::default()).await;
    let mut tls = scene.call().await.must();
    let connections = std::mem::replace(
        &mut scene.connections,
        futures_util::stream::empty().boxed(),
    );
    let (_reporter, health) = tonic_health::server::health_reporter();
    let server = tonic::transport::Server::builder()
        .add_service(health)
        .serve_with_incoming_shutdown(connections, scene.stop.clone().cancelled_owned());
    let mut server = Box::pin(server);

    // An HTTP/2 server speaks first, so its frame shows that the connection is being served.
    let mut frame = [0; 9];
    tokio::select! {
        read = tls.read_exact(&mut frame) => { read.must(); }
        _ = &mut server => panic!("ended by itself"),
    }
    scene.stop.cancel();
    assert!((&mut server).now_or_never().is_none());

    scene.kill.cancel();

    server.await.must();
}
