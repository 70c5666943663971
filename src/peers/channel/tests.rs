//! Channels between two identities over loopback.

use crate::testing::Must as _;

use std::net::SocketAddr;

use tonic::transport::Server;
use tonic_health::pb::HealthCheckResponse;

use super::{door::Door, *};
use crate::{
    address::Domain,
    config::{Peer, Policy},
    identity::testing::{Authority, Folder, Wish, two_nodes},
    lab::dns::{Data, DnsServer, Entry, Fault},
};

const LONG: Duration = Duration::from_secs(20);

/// The side that calls: a.test, which finds b.test at a configured address.
struct Caller {
    node: Folder,
    identity: Arc<Identity>,
    channels: Channels,
    kill: CancellationToken,
}

impl Caller {
    /// Calls many times at once and tells how many calls failed.
    async fn crowd(&self, calls: usize) -> Vec<PeerError> {
        let calls: Vec<_> = (0..calls).map(|_| self.health()).collect();
        let outcomes = futures_util::future::join_all(calls).await;
        outcomes.into_iter().filter_map(Result::err).collect()
    }

    fn new(mut node: Folder, door: SocketAddr) -> Self {
        node.config.peer.push(Peer {
            domain: "b.test".to_owned(),
            address: Some(door.to_string()),
            ..Peer::default()
        });
        Self::by_dns(node)
    }

    fn by_dns(node: Folder) -> Self {
        let identity = node.identity();
        let discovery = Arc::new(Discovery::new(&node.config, &node.clock).must());
        let kill = CancellationToken::new();
        let channels = Channels::new(
            &domain("a.test"),
            identity.clone(),
            discovery,
            &node.clock,
            &Limits::default(),
            TaskTracker::new(),
            kill.clone(),
        );
        Self {
            node,
            identity,
            channels: channels.must(),
            kill,
        }
    }

    async fn health(&self) -> Result<(), PeerError> {
        self.channels.health(&domain("b.test"), LONG).await
    }

    async fn slow(&self, limit: Duration) -> Result<HealthCheckResponse, PeerError> {
        let b = domain("b.test");
        let service = "slow".to_owned();
        let request = HealthCheckRequest { service };
        let call = self
            .channels
            .call(&b, limit, request, |channel, request| async {
                HealthClient::new(channel).check(request).await
            });
        call.await
    }

    async fn failure(&self) -> String {
        match self.health().await {
            Err(PeerError::Transport(text)) => text,
            other => panic!("{other:?}"),
        }
    }

    fn held(&self) -> usize {
        self.channels.lock().len()
    }
}

fn domain(text: &str) -> Domain {
    Domain::parse(text).must()
}

async fn pair() -> (Caller, Door, Authority) {
    let (a, b, authority) = two_nodes();
    let door = Door::open(&b, "127.0.0.1:0").await;
    (Caller::new(a, door.address), door, authority)
}

#[tokio::test]
async fn a_call_arrives_in_the_name_of_the_caller_and_the_next_shares_its_connection() {
    let (caller, mut door, _) = pair().await;

    caller.health().await.must();
    caller.health().await.must();

    let (first, second) = (door.next().await, door.next().await);
    assert_eq!(first.named, "a.test");
    assert_eq!(first.speaks_for, Ok(domain("a.test")));
    assert_eq!(first.remote, second.remote);
}

#[tokio::test]
async fn a_door_of_another_domain_is_told_with_both_names_and_the_place() {
    let (a, _, authority) = two_nodes();
    let other = Folder::new("c.test", &authority.issue(&["c.test"]), &authority);
    let door = Door::open(&other, "127.0.0.1:0").await;
    let caller = Caller::new(a, door.address);

    let text = caller.failure().await;

    assert_eq!(
        text,
        format!(
            "b.test: 127.0.0.1 ({}): the certificate is for c.test, not for b.test",
            door.address
        )
    );
}

#[tokio::test]
async fn an_unknown_authority_is_told_on_whichever_side_it_is_unknown() {
    let (a, b, authority) = two_nodes();
    let door = Door::open(&b, "127.0.0.1:0").await;
    let foreign = Authority::new("foreign");
    a.write("ca.pem", &foreign.pem());
    let caller = Caller::new(a, door.address);
    let text = caller.failure().await;
    assert!(text.contains("authority that is not trusted"), "{text}");

    caller.node.write("ca.pem", &authority.pem());
    caller.node.show(&foreign.issue(&["a.test"]));
    assert!(caller.identity.reload());
    // A dialler's handshake is over before the door refuses it: that must be told every time.
    for _ in 0..20 {
        let text = caller.failure().await;
        assert!(
            text.contains("refuses our certificate") && text.contains("UnknownCA"),
            "{text}"
        );
    }
}

#[tokio::test]
async fn trouble_with_dns_is_told_as_such() {
    let dns = DnsServer::start(([127, 0, 0, 1], 0).into()).await.must();
    let (mut a, ..) = two_nodes();
    a.config.dns.servers = vec![dns.address()];
    let caller = Caller::by_dns(a);

    assert_eq!(
        caller.failure().await,
        "b.test: DNS knows no address of b.test"
    );
    dns.set(&domain("b.test"), &[]).must();
    dns.fail(&domain("b.test"), Some(Fault::ServFail)).must();
    caller.node.clock.turn(6_000);
    let text = loop {
        let text = caller.failure().await;
        // Calls that fail within the same moment share one failure.
        if !text.contains("knows no address") {
            break text;
        }
    };
    assert!(
        text.starts_with("b.test: DNS does not answer about"),
        "{text}"
    );
}

#[tokio::test]
async fn a_target_with_the_wrong_certificate_gives_way_to_the_next() {
    let (mut a, b, authority) = two_nodes();
    let other = Folder::new("c.test", &authority.issue(&["c.test"]), &authority);
    let wrong = Door::open(&other, "127.0.0.1:0").await;
    let mut right = Door::open(&b, "127.0.0.1:0").await;
    let dns = DnsServer::start(([127, 0, 0, 1], 0).into()).await.must();
    let entry = |name: &str, data| Entry {
        name: name.to_owned(),
        ttl_seconds: 60,
        data,
    };
    let srv = |priority, port| Data::Srv {
        priority,
        weight: 0,
        port,
        target: "node.b.test".to_owned(),
    };
    let service = "_skiserver-s2s._tcp.b.test";
    let zone = [
        entry(service, srv(1, wrong.address.port())),
        entry(service, srv(2, right.address.port())),
        entry("node.b.test", Data::A([127, 0, 0, 1].into())),
    ];
    dns.set(&domain("b.test"), &zone).must();
    a.config.dns.servers = vec![dns.address()];
    let caller = Caller::by_dns(a);

    caller.health().await.must();

    assert_eq!(right.next().await.speaks_for, Ok(domain("a.test")));
}

#[tokio::test]
async fn a_denied_domain_is_not_called_and_an_open_channel_to_it_ends() {
    let (mut caller, mut door, _) = pair().await;
    caller.health().await.must();
    door.next().await;

    caller.node.config.federation.policy = Policy::Allow;
    caller.identity.configure(&caller.node.config).must();

    assert_eq!(caller.health().await, Err(PeerError::Denied));
    assert_eq!(caller.held(), 0);
    assert!(door.seen.try_recv().is_err());
}

#[tokio::test]
async fn a_call_ends_at_its_deadline_and_the_channel_goes_on() {
    let (caller, mut door, _) = pair().await;
    caller.health().await.must();
    let first = door.next().await;

    let outcome = caller.slow(Duration::from_millis(50)).await;

    assert_eq!(outcome, Err(PeerError::Deadline));
    caller.health().await.must();
    while let Ok(seen) = door.seen.try_recv() {
        assert_eq!(seen.remote, first.remote);
    }
}

#[tokio::test]
async fn a_rotation_moves_new_calls_to_a_new_connection_and_lets_old_ones_end() {
    let (caller, mut door, authority) = pair().await;
    let slow = caller.slow(LONG);
    let meanwhile = async {
        let old = door.next().await;
        let serial = Wish {
            serial: 2,
            ..Wish::default()
        };
        caller.node.show(&authority.grant(&["a.test"], serial));
        assert!(caller.identity.reload());

        caller.health().await.must();

        let new = door.next().await;
        assert_ne!(old.remote, new.remote);
        assert_eq!(new.speaks_for, Ok(domain("a.test")));
        door.release.notify_one();
    };
    let (slow, ()) = tokio::join!(slow, meanwhile);

    assert_eq!(slow.must().status(), ServingStatus::Serving);
}

#[tokio::test]
async fn rotations_under_traffic_fail_no_call() {
    let (caller, _door, authority) = pair().await;
    let traffic = async {
        for _ in 0..300 {
            caller.health().await.must();
        }
    };
    let rotations = async {
        for serial in 2..12 {
            let wish = Wish {
                serial,
                ..Wish::default()
            };
            caller.node.show(&authority.grant(&["a.test"], wish));
            assert!(caller.identity.reload());
            caller.health().await.must();
        }
    };

    tokio::join!(traffic, rotations);

    assert_eq!(caller.identity.current().generation(), 11);
}

#[tokio::test]
async fn a_peer_that_went_away_is_dialled_again_when_it_is_back() {
    let (a, b, _) = two_nodes();
    let door = Door::open(&b, "127.0.0.1:0").await;
    let address = door.address;
    let caller = Caller::new(a, address);
    caller.health().await.must();
    door.shut().await;
    let text = caller.failure().await;
    assert!(text.contains("b.test"), "{text}");

    let mut door = Door::open(&b, &address.to_string()).await;
    // Calls that fail within the same moment share one failure.
    while caller.health().await.is_err() {
        tokio::task::yield_now().await;
    }

    assert_eq!(door.next().await.speaks_for, Ok(domain("a.test")));
}

#[tokio::test]
async fn unused_channels_are_closed() {
    let (caller, mut door, _) = pair().await;
    caller.health().await.must();
    let first = door.next().await.remote;
    let stop = CancellationToken::new();
    let tidying = caller.channels.tidy(stop.clone());
    let waiting = async {
        while caller.held() > 0 {
            caller.node.clock.turn(61_000);
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };

    tokio::join!(tidying, waiting);

    caller.health().await.must();
    assert_ne!(door.next().await.remote, first);
}

#[tokio::test]
async fn a_door_that_closes_old_connections_fails_no_call() {
    let (a, b, _) = two_nodes();
    let young = Server::builder().max_connection_age(Duration::from_millis(10));
    let mut door = Door::serve(&b, "127.0.0.1:0", young).await;
    let caller = Caller::new(a, door.address);
    let mut connections = std::collections::HashSet::new();

    while connections.len() < 10 {
        assert_eq!(caller.crowd(20).await, []);
        while let Ok(seen) = door.seen.try_recv() {
            connections.insert(seen.remote);
        }
    }
}

#[tokio::test]
async fn what_a_door_answers_instead_of_an_answer_is_told() {
    let (caller, _door, _) = pair().await;
    let b = domain("b.test");

    let outcome = caller
        .channels
        .call(&b, LONG, (), |channel, ()| async {
            let request = crate::proto::skiserver::SubmitProtoMsgRequest::default();
            channel.client().submit_proto_msg(request).await
        })
        .await;

    let Err(PeerError::Failed(text)) = outcome else {
        panic!("{outcome:?}");
    };
    assert!(text.starts_with("b.test: Unimplemented"), "{text}");
}

#[tokio::test]
async fn nothing_is_dialled_once_the_node_is_going_down() {
    let (caller, mut door, _) = pair().await;

    caller.kill.cancel();

    assert_eq!(caller.failure().await, "b.test: this node is going down");
    assert!(door.seen.try_recv().is_err());
}

#[tokio::test]
async fn the_channel_unused_for_longest_makes_room() {
    let (caller, ..) = pair().await;
    let name = |n: usize| domain(&format!("n{n}.test"));
    for n in 0..=limits::PEER_CHANNELS_MAX {
        caller.channels.channel(&name(n)).must();
        caller.node.clock.turn(1);
    }

    assert_eq!(caller.held(), limits::PEER_CHANNELS_MAX);
    assert!(!caller.channels.lock().contains_key(&name(0)));
    assert!(caller.channels.lock().contains_key(&name(1)));
}
