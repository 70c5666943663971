//! What proves a certificate, in handshakes and by itself, and what changes under a running node.

use crate::testing::Must as _;

mod changes;
mod handshakes;
mod verdicts;

use rustls::pki_types::CertificateDer;

use super::{
    Reason,
    testing::{Authority, Folder, Leaf},
    unix_time,
};
use crate::{address::Domain, config::Peer};

fn domain(text: &str) -> Domain {
    Domain::parse(text).must()
}

/// How one side is trusted by the other.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Proof {
    Private,
    Foreign,
    Pin,
    WrongPin,
}

/// A node of b.test that trusts what `proof` says of `subject`, a certificate for a.test from `authority`.
fn judge_of(subject: &Leaf, authority: &Authority, proof: Proof) -> Folder {
    let own = Authority::new("judge's own");
    let mut judge = Folder::new("b.test", &own.issue(&["b.test"]), &own);
    let mut peer = Peer {
        domain: "a.test".to_owned(),
        ..Peer::default()
    };
    match proof {
        Proof::Private => peer.ca_files = vec![judge.write("a.pem", &authority.pem())],
        Proof::Foreign => {}
        Proof::Pin => peer.pins = vec![subject.pin.clone()],
        Proof::WrongPin => peer.pins = vec![own.issue(&["a.test"]).pin],
    }
    judge.config.peer.push(peer);
    judge
}

/// The judgement of one certificate for a.test without a handshake.
fn verdict(judge: &Folder, chain: &[CertificateDer<'static>], of: &str) -> Result<(), Reason> {
    let now = unix_time(judge.clock.now_ms());
    let snapshot = judge.identity().current();
    snapshot.trust().verify(chain, &domain(of), now)
}

/// A node whose federation has a revocation list, and the path of that list.
fn with_list(authority: &Authority, list: &str) -> Folder {
    let mut judge = Folder::new("b.test", &authority.issue(&["b.test"]), authority);
    judge.config.federation.crl_files = vec![judge.write("list.pem", list)];
    judge
}
