//! A domain is found by what DNS says of it, through real records and real connections.

use skiserver::{
    client::talk,
    config::Peer,
    lab::{
        ca::LeafRequest,
        dns::{Data, Entry},
    },
    proto::skissm::ResponseCode,
};

use crate::lab::{
    Act, Lab, Scripted, User, free_ports,
    scripted::{Mood, Target},
};

const TTL_SECONDS: u32 = 5;

/// SRV records to these ports of one host on loopback, the first ones first.
fn zone(domain: &str, ports: &[u16]) -> Vec<Entry> {
    let entry = |name: String, data| Entry {
        name,
        ttl_seconds: TTL_SECONDS,
        data,
    };
    let targets = (0..).zip(ports).map(|(priority, port)| {
        let data = Data::Srv {
            priority,
            weight: 0,
            port: *port,
            target: format!("node.{domain}"),
        };
        entry(format!("_skiserver-s2s._tcp.{domain}"), data)
    });
    let host = entry(format!("node.{domain}"), Data::A([127, 0, 0, 1].into()));
    targets.chain([host]).collect()
}

/// Asks for the bundle of somebody, and answers how many there are.
async fn bundles(alice: &User, peer: &Scripted, of: &Target) -> usize {
    peer.next(
        "GetPreKeyBundle",
        [Act::reply(&of.answer(vec![of.bundle()]))],
    );
    let found = talk::bundles(alice, &of.address.user).await;
    found.unwrap().len()
}

#[tokio::test]
async fn a_dead_and_a_wrong_target_give_way_to_the_next() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let wrong = lab.authority.issue(&LeafRequest::new("c.test")).unwrap();
    let wrong = Scripted::join_as(&lab, "b.test", wrong).await;
    let peer = Scripted::join(&lab, "b.test").await;
    let bob = peer.target("bob", "phone");
    let [dead] = free_ports();
    let ports = [dead, wrong.address, peer.address].map(|address| address.port());

    lab.dns.set(&peer.domain, &zone("b.test", &ports)).unwrap();
    let found = bundles(&alice, &peer, &bob).await;

    assert_eq!(found, 1);
    assert!(wrong.heard().is_empty());
}

#[tokio::test]
async fn a_domain_that_moved_is_found_where_it_is() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let old = Scripted::join(&lab, "b.test").await;
    let bob = old.target("bob", "phone");
    assert_eq!(bundles(&alice, &old, &bob).await, 1);

    let new = Scripted::join(&lab, "b.test").await;
    old.turns(Mood::Gone);
    let letter = alice.letter(&bob.address, "hello");
    talk::send(&alice, &letter).await.unwrap();

    new.hears("SendOne2oneMsg", 1).await;
    assert_eq!(old.heard().len(), 1);
}

#[tokio::test]
async fn a_domain_that_says_it_takes_no_part_is_out_of_reach_and_no_more() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let peer = Scripted::join(&lab, "b.test").await;
    let bob = peer.target("bob", "phone");
    let none = Entry {
        name: "_skiserver-s2s._tcp.b.test".to_owned(),
        ttl_seconds: TTL_SECONDS,
        data: Data::Srv {
            priority: 0,
            weight: 0,
            port: 0,
            target: ".".to_owned(),
        },
    };
    lab.dns.set(&peer.domain, &[none]).unwrap();

    let refused = talk::bundles(&alice, &bob.address.user).await;
    let letter = alice.letter(&bob.address, "hello");
    talk::send(&alice, &letter).await.unwrap();

    let refused = refused.unwrap_err().to_string();
    let code = ResponseCode::ServiceUnavailable as i32;
    assert!(refused.contains(&code.to_string()), "{refused}");
    assert!(peer.heard().is_empty());
    lab.name(&peer.domain, peer.address);
    lab.clock.turn(10_000);
    peer.hears("SendOne2oneMsg", 1).await;
}

#[tokio::test]
async fn an_address_in_the_configuration_stands_before_dns_and_is_read_again() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let peer = Scripted::join(&lab, "b.test").await;
    let bob = peer.target("bob", "phone");
    lab.dns.remove(&peer.domain).unwrap();
    assert!(talk::bundles(&alice, &bob.address.user).await.is_err());

    lab.reconfigure("a.test", |config| {
        config.peer.push(Peer {
            domain: "b.test".to_owned(),
            address: Some(peer.address.to_string()),
            ..Peer::default()
        });
    });
    let found = bundles(&alice, &peer, &bob).await;

    assert_eq!(found, 1);
}
