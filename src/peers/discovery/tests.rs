//! Discovery against an authoritative server on loopback whose answers change and fail.

use crate::testing::Must as _;

use std::collections::HashMap;

use tokio::net::TcpListener;

use super::*;
use crate::{
    config::Peer,
    identity::testing::{Folder, two_nodes},
    lab::dns::{Data, DnsServer, Entry, Fault},
};

struct Scene {
    dns: DnsServer,
    node: Folder,
    discovery: Discovery,
}

fn domain(text: &str) -> Domain {
    Domain::parse(text).must()
}

fn entry(name: &str, ttl_seconds: u32, data: Data) -> Entry {
    Entry {
        name: name.to_owned(),
        ttl_seconds,
        data,
    }
}

fn srv(ttl_seconds: u32, priority: u16, weight: u16, target: &str, port: u16) -> Entry {
    let data = Data::Srv {
        priority,
        weight,
        port,
        target: target.to_owned(),
    };
    entry("_skiserver-s2s._tcp.b.test", ttl_seconds, data)
}

fn v4(name: &str, address: &str) -> Entry {
    entry(name, 60, Data::A(address.parse().must()))
}

fn v6(name: &str, address: &str) -> Entry {
    entry(name, 60, Data::Aaaa(address.parse().must()))
}

impl Scene {
    async fn new(zone: &[Entry]) -> Self {
        let dns = DnsServer::start(([127, 0, 0, 1], 0).into()).await.must();
        dns.set(&domain("b.test"), zone).must();
        let (mut node, ..) = two_nodes();
        node.config.dns.servers = vec![dns.address()];
        let discovery = Discovery::new(&node.config, &node.clock).must();
        Self {
            dns,
            node,
            discovery,
        }
    }

    fn set(&self, zone: &[Entry]) {
        self.dns.set(&domain("b.test"), zone).must();
    }

    fn fail(&self, fault: impl Into<Option<Fault>>) {
        self.dns.fail(&domain("b.test"), fault.into()).must();
    }

    fn turn_seconds(&self, seconds: i64) {
        self.node.clock.turn(seconds * 1_000);
    }

    async fn endpoints(&self) -> Result<Vec<String>, Unreachable> {
        let endpoints = self.discovery.endpoints(&domain("b.test")).await?;
        Ok(endpoints
            .into_iter()
            .map(|e| e.address.to_string())
            .collect())
    }

    /// How many questions an attempt to find the domain costs.
    async fn questions(&self) -> u64 {
        let before = self.dns.asked(&domain("b.test")).must();
        let _ = self.endpoints().await;
        self.dns.asked(&domain("b.test")).must() - before
    }

    async fn connect(&self) -> Result<SocketAddr, Unreachable> {
        self.connect_within(Duration::from_secs(10), &[]).await
    }

    async fn connect_within(
        &self,
        limit: Duration,
        passed_over: &[SocketAddr],
    ) -> Result<SocketAddr, Unreachable> {
        let (b, deadline) = (domain("b.test"), Instant::now() + limit);
        let (_tcp, endpoint) = self.discovery.connect(&b, passed_over, deadline).await?;
        Ok(endpoint.address)
    }
}

#[tokio::test]
async fn targets_come_by_priority_with_ipv6_and_ipv4_by_turns() {
    let scene = Scene::new(&[
        srv(60, 20, 0, "far.b.test", 3),
        srv(60, 10, 0, "near.b.test", 2),
        v4("far.b.test", "192.0.2.9"),
        v4("near.b.test", "192.0.2.1"),
        v4("near.b.test", "192.0.2.2"),
        v6("near.b.test", "2001:db8::1"),
    ])
    .await;

    let found = scene.endpoints().await.must();

    assert_eq!(found[0], "[2001:db8::1]:2");
    let mut near = found[1..3].to_vec();
    near.sort_unstable();
    assert_eq!(near, ["192.0.2.1:2", "192.0.2.2:2"]);
    assert_eq!(found[3..], ["192.0.2.9:3"]);
}

#[tokio::test]
async fn without_srv_records_the_domain_is_the_host() {
    let scene = Scene::new(&[v4("b.test", "192.0.2.1"), v6("b.test", "2001:db8::1")]).await;

    let found = scene.endpoints().await;

    let expected = ["[2001:db8::1]:7444", "192.0.2.1:7444"].map(str::to_owned);
    assert_eq!(found, Ok(expected.to_vec()));
}

#[tokio::test]
async fn what_dns_denies_is_unreachable() {
    let scene = Scene::new(&[srv(60, 0, 0, ".", 0), v4("b.test", "192.0.2.1")]).await;
    let declined = Err(Unreachable::NoService(domain("b.test")));
    assert_eq!(scene.endpoints().await, declined);

    scene.turn_seconds(61);
    scene.fail(Fault::NxDomain);
    let nowhere = Err(Unreachable::NoAddress("b.test".to_owned()));
    assert_eq!(scene.endpoints().await, nowhere);

    scene.turn_seconds(6);
    scene.fail(None);
    scene.set(&[srv(60, 0, 0, "gone.b.test", 1)]);
    assert_eq!(scene.endpoints().await, nowhere);
}

#[tokio::test]
async fn a_failing_name_server_is_no_denial() {
    let scene = Scene::new(&[v4("b.test", "192.0.2.1")]).await;
    for fault in [Fault::ServFail, Fault::Silence] {
        scene.fail(fault);
        scene.turn_seconds(6);

        let outcome = scene.endpoints().await;

        assert!(
            matches!(&outcome, Err(Unreachable::Dns { name, .. }) if name.ends_with("b.test")),
            "{outcome:?}"
        );
    }
}

#[tokio::test]
async fn answers_live_as_long_as_dns_says_within_bounds() {
    for (ttl_seconds, lives_seconds) in [(60, 60), (0, 5), (86_400, 3_600)] {
        let host = entry("n.b.test", ttl_seconds, Data::A("192.0.2.1".parse().must()));
        let scene = Scene::new(&[srv(ttl_seconds, 0, 0, "n.b.test", 1), host]).await;
        assert_eq!(scene.questions().await, 3);

        scene.turn_seconds(lives_seconds - 1);
        assert_eq!(scene.questions().await, 0, "{ttl_seconds}");
        scene.turn_seconds(1);
        assert_eq!(scene.questions().await, 3, "{ttl_seconds}");
    }
}

#[tokio::test]
async fn a_denial_lives_for_seconds() {
    let scene = Scene::new(&[]).await;
    assert_eq!(scene.questions().await, 3);
    assert_eq!(scene.questions().await, 0);

    scene.set(&[v4("b.test", "192.0.2.1")]);
    scene.turn_seconds(5);

    assert_eq!(
        scene.endpoints().await,
        Ok(vec!["192.0.2.1:7444".to_owned()])
    );
}

#[tokio::test]
async fn a_known_answer_is_used_for_a_day_while_the_name_servers_fail() {
    let scene = Scene::new(&[srv(60, 0, 0, "n.b.test", 1), v4("n.b.test", "192.0.2.1")]).await;
    let known = Ok(vec!["192.0.2.1:1".to_owned()]);
    assert_eq!(scene.endpoints().await, known);
    scene.fail(Fault::ServFail);

    scene.turn_seconds(61);
    assert_eq!(scene.endpoints().await, known);
    assert_eq!(scene.questions().await, 0);
    scene.turn_seconds(23 * 3_600);
    assert_eq!(scene.endpoints().await, known);
    scene.turn_seconds(3_600);
    let outcome = scene.endpoints().await;
    assert!(
        matches!(outcome, Err(Unreachable::Dns { .. })),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_denial_replaces_a_known_answer() {
    let scene = Scene::new(&[v4("b.test", "192.0.2.1")]).await;
    scene.endpoints().await.must();

    scene.set(&[]);
    scene.turn_seconds(61);

    let nowhere = Err(Unreachable::NoAddress("b.test".to_owned()));
    assert_eq!(scene.endpoints().await, nowhere);
    scene.fail(Fault::ServFail);
    scene.turn_seconds(6);
    let outcome = scene.endpoints().await;
    assert!(
        matches!(outcome, Err(Unreachable::Dns { .. })),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_target_that_refuses_gives_way_to_the_next_and_is_asked_for_again() {
    let (open, closed) = (
        TcpListener::bind("127.0.0.1:0").await.must(),
        TcpListener::bind("127.0.0.1:0").await.must(),
    );
    let open_at = open.local_addr().must();
    let closed_at = closed.local_addr().must();
    drop(closed);
    let scene = Scene::new(&[
        srv(3_600, 1, 0, "one.b.test", closed_at.port()),
        srv(3_600, 2, 0, "two.b.test", open_at.port()),
        v4("one.b.test", "127.0.0.1"),
        v4("two.b.test", "127.0.0.1"),
    ])
    .await;

    assert_eq!(scene.connect().await, Ok(open_at));

    // The service and the host that failed; the other host is remembered.
    assert_eq!(scene.questions().await, 3);
    assert_eq!(scene.questions().await, 0);
    let moved = srv(3_600, 1, 0, "two.b.test", open_at.port());
    scene.set(&[moved, v4("two.b.test", "127.0.0.1")]);
    drop(open);
    let text = scene.connect().await.unwrap_err().to_string();
    assert!(text.contains("one.b.test (127.0.0.1:"), "{text}");
    assert!(text.contains("two.b.test (127.0.0.1:"), "{text}");
    assert_eq!(scene.endpoints().await, Ok(vec![open_at.to_string()]));
}

#[tokio::test]
async fn an_address_that_was_passed_over_is_not_tried() {
    let listener = TcpListener::bind("127.0.0.1:0").await.must();
    let address = listener.local_addr().must();
    let scene = Scene::new(&[
        srv(60, 0, 0, "n.b.test", address.port()),
        v4("n.b.test", "127.0.0.1"),
    ])
    .await;

    let outcome = scene
        .connect_within(Duration::from_secs(10), &[address])
        .await;

    assert!(matches!(outcome, Err(Unreachable::Refused(_))));
}

#[tokio::test]
async fn a_deadline_holds_though_dns_is_silent() {
    let scene = Scene::new(&[]).await;
    scene.fail(Fault::Silence);

    let outcome = scene.connect_within(Duration::from_millis(50), &[]).await;

    assert!(matches!(outcome, Err(Unreachable::TimedOut(_))));
}

#[tokio::test]
async fn a_configured_address_overrides_dns() {
    let mut scene = Scene::new(&[
        srv(60, 0, 0, "n.b.test", 1),
        v4("n.b.test", "192.0.2.1"),
        v4("host.b.test", "192.0.2.7"),
    ])
    .await;
    for (address, expected) in [
        (Some("127.0.0.1:9"), "127.0.0.1:9"),
        (Some("[::1]:9"), "[::1]:9"),
        (Some("Host.b.test:9"), "192.0.2.7:9"),
        (None, "192.0.2.1:1"),
    ] {
        scene.node.config.peer = vec![Peer {
            domain: "b.test".to_owned(),
            address: address.map(str::to_owned),
            ..Peer::default()
        }];

        scene.discovery.configure(&scene.node.config).must();

        assert_eq!(scene.endpoints().await, Ok(vec![expected.to_owned()]));
    }
    for bad in ["", "b.test", "b.test:", "b.test:port", "-:1"] {
        scene.node.config.peer[0].address = Some(bad.to_owned());
        assert!(
            scene.discovery.configure(&scene.node.config).is_err(),
            "{bad}"
        );
    }
}

#[test]
fn weights_decide_how_often_a_target_comes_first() {
    let target = |host: &str, weight| Target {
        host: host.to_owned(),
        port: 1,
        priority: 1,
        weight,
    };
    let targets = [target("heavy", 30), target("none", 0), target("light", 10)];
    let mut first = HashMap::new();
    fastrand::seed(7);

    for _ in 0..4_100 {
        let ordered = in_order(targets.to_vec());
        assert_eq!(ordered.len(), 3);
        *first.entry(ordered[0].host.clone()).or_insert(0) += 1;
    }

    // RFC 2782 draws from 0 to the sum, both included: 1, 10 and 30 of 41.
    assert!((2_850..3_150).contains(&first["heavy"]), "{first:?}");
    assert!((880..1_120).contains(&first["light"]), "{first:?}");
    assert!((50..160).contains(&first["none"]), "{first:?}");
}
