//! Certificates between domains: which are believed, in both directions; renewed under traffic without a failed
//! call; revoked and expired at once.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use rustls::{
    ClientConfig,
    pki_types::{CertificateDer, pem::PemObject as _},
    version::TLS13,
};
use skiserver::{
    client::{ClientError, talk},
    config::Peer,
    lab::ca::{Authority, DAY_MS, Issued, LeafRequest, Usage},
    proto::skissm::ResponseCode,
    signing::sha256,
};
use tokio::sync::watch;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};
use x509_parser::prelude::FromDer as _;

use crate::lab::{
    Act, Lab, PATIENCE, Scripted, User, answer, assert_code,
    refusals::within,
    scripted::{Mood, Target, dial},
};

const MAIL: &str = "SELECT COUNT(*) FROM mailbox";
const WAITING: &str = "SELECT COUNT(*) FROM outbox";
/// Longer than any pause between two attempts in a lab.
const PAUSE_MS: i64 = 6_000;

const USAGES: [(&str, &[Usage]); 4] = [
    ("both", &[Usage::Server, Usage::Client]),
    ("server", &[Usage::Server]),
    ("client", &[Usage::Client]),
    ("none", &[]),
];

fn with_usages(domain: &str, usages: &[Usage]) -> LeafRequest {
    LeafRequest {
        usages: usages.to_vec(),
        ..LeafRequest::new(domain)
    }
}

fn leaf(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

fn pin(issued: &Issued) -> String {
    let der = leaf(&issued.chain_pem);
    let (_, parsed) = x509_parser::certificate::X509Certificate::from_der(&der).unwrap();
    format!(
        "sha256/{}",
        STANDARD.encode(sha256(&[parsed.public_key().raw]))
    )
}

/// A domain whose certificate is looked at, and somebody there.
struct Candidate {
    peer: Scripted,
    eve: Target,
}

impl Candidate {
    async fn join(lab: &Lab, domain: &str, issued: Issued) -> Self {
        let peer = Scripted::join_as(lab, domain, issued).await;
        let eve = peer.target("eve", "phone");
        Self { peer, eve }
    }

    /// Whether a node takes its message.
    async fn may_call(&self, lab: &Lab, alice: &User) -> bool {
        let mut node = self.peer.calls(lab, "a.test");
        let before = lab.number("a.test", MAIL).await;
        let call = node.send_one2one_msg(self.eve.letter(alice.address(), "hello"));
        let code = match within(PATIENCE, "an answer", call).await {
            Ok(reply) => ResponseCode::try_from(reply.into_inner().code).unwrap(),
            Err(_) => ResponseCode::Unspecified, // not even the handshake
        };
        let is_in = code == ResponseCode::Ok;
        let refused = [ResponseCode::Unauthorized, ResponseCode::Unspecified];
        assert!(is_in || refused.contains(&code), "{code:?}");
        let stored = lab.number("a.test", MAIL).await - before;
        assert_eq!(stored, i64::from(is_in));
        is_in
    }

    /// Whether a node asks it for keys.
    async fn is_called(&self, alice: &User) -> bool {
        let before = self.peer.heard().len();
        let bundles = Act::reply(&self.eve.answer(vec![self.eve.bundle()]));
        self.peer.next("GetPreKeyBundle", [bundles]);
        let is_asked = match talk::bundles(alice, &self.eve.address.user).await {
            Ok(bundles) => bundles.len() == 1,
            Err(ClientError::Refused { code, .. }) => {
                assert_eq!(code, i32::from(ResponseCode::ServiceUnavailable));
                false
            }
            Err(other) => panic!("{other:?}"),
        };
        assert_eq!(self.peer.heard().len() - before, usize::from(is_asked));
        is_asked
    }
}

#[tokio::test]
async fn any_tls_purpose_is_believed_in_both_directions_if_an_authority_or_a_pin_proves_it() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let foreign = Authority::generate("foreign").unwrap();
    let mut cells = Vec::new();
    for (name, usages) in USAGES {
        let proofs = [
            ("authority", &lab.authority, true),
            ("foreign", &foreign, false),
            ("pin", &foreign, true),
        ];
        for (proof, authority, is_believed) in proofs {
            let domain = format!("{proof}-{name}.test");
            let issued = authority.issue(&with_usages(&domain, usages)).unwrap();
            let candidate = Candidate::join(&lab, &domain, issued).await;
            if proof == "pin" {
                let peer = Peer {
                    domain,
                    pins: vec![pin(&candidate.peer.issued)],
                    ..Peer::default()
                };
                lab.reconfigure("a.test", |config| config.peer.push(peer));
            }
            cells.push((candidate, is_believed));
        }
    }

    for (candidate, is_believed) in &cells {
        let domain = &candidate.peer.domain;
        let outcomes = [
            candidate.may_call(&lab, &alice).await,
            candidate.is_called(&alice).await,
        ];
        assert_eq!(outcomes, [*is_believed; 2], "{domain}");
    }
}

#[tokio::test]
async fn two_nodes_talk_whatever_tls_purpose_their_certificates_have() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let (mut ours, mut theirs) = (alice.stream().await, bob.stream().await);

    for (name, usages) in USAGES {
        for domain in ["a.test", "b.test"] {
            let folder = lab.folder(domain).path().to_owned();
            let (certificate, key) = (folder.join("peer.pem"), folder.join("peer.key"));
            let issued = lab.authority.issue(&with_usages(domain, usages)).unwrap();
            issued.save(&certificate, &key).unwrap();
            lab.reconfigure(domain, |config| {
                config.tls.peer_certificate = Some(certificate);
                config.tls.peer_key = Some(key);
            });
        }
        alice.send(&bob, &format!("{name} from a")).await;
        bob.send(&alice, &format!("{name} from b")).await;

        assert_eq!(theirs.next_text().await, format!("{name} from a"));
        assert_eq!(ours.next_text().await, format!("{name} from b"));
        for domain in ["a.test", "b.test"] {
            assert_eq!(
                lab.number(domain, WAITING).await,
                0,
                "{name}: it went directly"
            );
        }
    }
}

#[tokio::test]
async fn a_certificate_with_anything_wrong_is_believed_in_no_direction() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let mut requests = vec![
        ("another name", LeafRequest::new("other.test")),
        ("a name below", LeafRequest::new("www.name.test")),
        ("a wildcard", LeafRequest::new("*.test")),
        ("an address", LeafRequest::new("127.0.0.1")),
        ("no name", LeafRequest::new("")),
    ];
    let mut expired = LeafRequest::new("time.test");
    expired.not_after_at = expired.not_before_at + 1_000;
    requests.push(("expired", expired));
    let mut future = LeafRequest::new("time.test");
    future.not_before_at += DAY_MS;
    requests.push(("not valid yet", future));

    for (n, (what, mut request)) in requests.into_iter().enumerate() {
        let domain = format!("d{n}.test");
        if request.domain == "time.test" {
            request.domain.clone_from(&domain);
        }
        let issued = lab.authority.issue(&request).unwrap();
        let candidate = Candidate::join(&lab, &domain, issued).await;
        assert!(!candidate.may_call(&lab, &alice).await, "{what}");
        assert!(!candidate.is_called(&alice).await, "{what}");
    }
}

#[tokio::test]
async fn an_authority_of_one_domain_proves_that_domain_and_no_other() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let special = Authority::generate("special").unwrap();
    let below = special.subordinate("below").unwrap();
    let file = lab.folder("a.test").path().join("special.pem");
    std::fs::write(&file, special.certificate_pem()).unwrap();
    for domain in ["own.test", "below.test", "usual.test"] {
        let peer = Peer {
            domain: domain.to_owned(),
            ca_files: vec![file.clone()],
            ..Peer::default()
        };
        lab.reconfigure("a.test", |config| config.peer.push(peer));
    }

    for (domain, authority, is_believed) in [
        ("own.test", &special, true),
        ("below.test", &below, true),
        ("usual.test", &lab.authority, false),
        ("other.test", &special, false),
    ] {
        let issued = authority.issue(&LeafRequest::new(domain)).unwrap();
        let candidate = Candidate::join(&lab, domain, issued).await;
        let outcomes = [
            candidate.may_call(&lab, &alice).await,
            candidate.is_called(&alice).await,
        ];
        assert_eq!(outcomes, [is_believed; 2], "{domain}");
    }
}

#[tokio::test]
async fn a_revoked_certificate_ends_on_open_connections_too_and_a_new_one_mends_it() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let b = Scripted::join(&lab, "b.test").await;
    let c = Scripted::join(&lab, "c.test").await;
    let (bob, carol) = (b.target("bob", "phone"), c.target("carol", "phone"));
    let list = lab.folder("a.test").path().join("revoked.pem");
    let revoke = |peers: &[&Scripted]| {
        let serials: Vec<_> = peers
            .iter()
            .map(|peer| peer.issued.serial.clone())
            .collect();
        std::fs::write(&list, lab.authority.revoke(&serials).unwrap()).unwrap();
        let list = list.clone();
        lab.reconfigure("a.test", |config| config.federation.crl_files = vec![list]);
    };
    // One connection for all of it.
    let (from_b, from_c) = (b.calls(&lab, "a.test"), c.calls(&lab, "a.test"));
    let call = async |node: &dial::PeerMethods, person: &Target| {
        let letter = person.letter(alice.address(), "hello");
        answer(node.clone().send_one2one_msg(letter)).await
    };

    revoke(&[]);
    assert_code(&call(&from_b, &bob).await, ResponseCode::Ok);
    assert_code(&call(&from_c, &carol).await, ResponseCode::Ok);
    talk::send(&alice, &alice.letter(&bob.address, "one"))
        .await
        .unwrap();
    b.hears("SendOne2oneMsg", 1).await;
    revoke(&[&b]);
    assert_code(&call(&from_b, &bob).await, ResponseCode::Unauthorized);
    assert_code(&call(&from_c, &carol).await, ResponseCode::Ok);
    talk::send(&alice, &alice.letter(&bob.address, "two"))
        .await
        .unwrap();
    talk::send(&alice, &alice.letter(&carol.address, "one"))
        .await
        .unwrap();

    assert_eq!(lab.number("a.test", WAITING).await, 1);
    assert_eq!((b.heard().len(), c.heard().len()), (1, 1));
    b.turns(Mood::Gone);
    let renewed = Scripted::join(&lab, "b.test").await;
    lab.clock.turn(PAUSE_MS);
    renewed.hears("SendOne2oneMsg", 1).await;
    let from_b = renewed.calls(&lab, "a.test");
    assert_code(&call(&from_b, &bob).await, ResponseCode::Ok);
    lab.until("a.test", MAIL, 4).await;
}

#[tokio::test]
async fn a_certificate_that_expires_on_an_open_connection_is_believed_no_longer() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let mut request = LeafRequest::new("b.test");
    request.not_after_at = lab.clock.now_ms() + DAY_MS;
    let issued = lab.authority.issue(&request).unwrap();
    let peer = Scripted::join_as(&lab, "b.test", issued).await;
    let bob = peer.target("bob", "phone");
    let mut node = peer.calls(&lab, "a.test");
    let mut call = async || {
        let letter = bob.letter(alice.address(), "hello");
        answer(node.send_one2one_msg(letter)).await
    };

    let before = call().await;
    lab.clock.turn(2 * DAY_MS);
    let after = call().await;

    assert_code(&before, ResponseCode::Ok);
    assert_code(&after, ResponseCode::Unauthorized);
}

/// How often both nodes get new certificates.
const ROTATIONS: u32 = 6;
/// Messages of everybody between two rotations.
const STEP: u32 = 4;

/// Counts what somebody does, and ends it.
struct Traffic {
    done: watch::Sender<u32>,
    is_over: watch::Sender<bool>,
}

impl Traffic {
    fn new() -> Self {
        Self {
            done: watch::Sender::new(0),
            is_over: watch::Sender::new(false),
        }
    }

    /// Does something again and again until it is over; how often.
    async fn go_on(&self, mut act: impl AsyncFnMut(u32)) -> u32 {
        let mut count = 0;
        while !*self.is_over.borrow() {
            act(count).await;
            count += 1;
            self.done.send_replace(count);
        }
        count
    }

    /// Waits until more was done.
    async fn proceeds(&self) {
        let mut done = self.done.subscribe();
        let aim = *done.borrow() + STEP;
        let more = done.wait_for(|done| *done >= aim);
        within(PATIENCE, "more traffic", more).await.unwrap();
    }
}

/// The certificate that a door shows whoever comes anew.
async fn shown(lab: &Lab, domain: &str, issued: &Issued, is_peer_door: bool) -> Vec<u8> {
    let doors = lab.config(domain).doors;
    let address = if is_peer_door {
        doors.peer
    } else {
        doors.client
    };
    let tls = ClientConfig::builder_with_protocol_versions(&[&TLS13]);
    let tls = dial::credentials(tls, lab, Some(issued));
    let stream = dial::handshake(domain, address, tls).await.unwrap();
    let (_, connection) = stream.get_ref();
    connection.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn certificates_are_renewed_under_traffic_without_a_failed_call() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let peer = Scripted::join(&lab, "c.test").await;
    let carol = peer.target("carol", "phone");
    let mut streams = [alice.stream().await, bob.stream().await];
    let traffic: [Traffic; 4] = std::array::from_fn(|_| Traffic::new());
    let node = peer.calls(&lab, "a.test");

    let rotate = async {
        for _ in 0..ROTATIONS {
            for domain in ["a.test", "b.test"] {
                lab.renew(domain, &lab.authority, &LeafRequest::new(domain));
                let file = lab.folder(domain).path().join("node.pem");
                let new = leaf(&std::fs::read_to_string(file).unwrap());
                for is_peer_door in [false, true] {
                    let shown = shown(&lab, domain, &peer.issued, is_peer_door).await;
                    assert_eq!(shown, new.to_vec());
                }
                for somebody in &traffic {
                    somebody.proceeds().await;
                }
            }
        }
        for somebody in &traffic {
            somebody.is_over.send_replace(true);
        }
    };
    // Each of these fails the test as soon as it is not answered with 200.
    let from_a = traffic[0].go_on(async |n| drop(alice.send(&bob, &n.to_string()).await));
    let from_b = traffic[1].go_on(async |n| drop(bob.send(&alice, &n.to_string()).await));
    let from_c = traffic[2].go_on(async |n| {
        let letter = carol.letter(alice.address(), &format!("c{n}"));
        // By turns over a connection that stays and over a new one.
        let mut node = match n % 2 {
            0 => node.clone(),
            _ => peer.calls(&lab, "a.test"),
        };
        assert_code(
            &answer(node.send_one2one_msg(letter)).await,
            ResponseCode::Ok,
        );
    });
    let newcomers = traffic[3].go_on(async |_| {
        for domain in ["a.test", "b.test"] {
            let channel = lab.door(domain).apart().unwrap().channel();
            let request = HealthCheckRequest::default();
            HealthClient::new(channel).check(request).await.unwrap();
        }
    });
    let (from_a, from_b, from_c, _, ()) = tokio::join!(from_a, from_b, from_c, newcomers, rotate);

    for domain in ["a.test", "b.test"] {
        lab.until(domain, WAITING, 0).await;
    }
    let mut to_alice = [0, 0];
    for _ in 0..from_b + from_c {
        let text = streams[0].next_text().await;
        let (sender, number) = text.strip_prefix('c').map_or((0, &*text), |n| (1, n));
        assert_eq!(number.parse(), Ok(to_alice[sender]), "in order and once");
        to_alice[sender] += 1;
    }
    for n in 0..from_a {
        assert_eq!(streams[1].next_text().await, n.to_string());
    }
    assert_eq!(to_alice, [from_b, from_c]);
    for stream in &mut streams {
        lab.assert_silent(stream).await;
    }
}
