//! Real handshakes over loopback between two identities.

use crate::testing::Must as _;

use std::sync::Arc;

use rcgen::ExtendedKeyUsagePurpose::{self, ClientAuth, CodeSigning, ServerAuth};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{Proof, domain, judge_of};
use crate::{
    address::Domain,
    identity::{
        Identity, Reason,
        testing::{Authority, Folder, Leaf, Wish},
    },
};

/// How a handshake ended at each end: what the other presented, or why it was refused.
#[derive(Debug)]
struct Ends {
    door: Result<Vec<CertificateDer<'static>>, Option<Reason>>,
    dialler: Result<Vec<CertificateDer<'static>>, Option<Reason>>,
    /// What the dialler read first after the handshake.
    greeting: std::io::Result<u8>,
}

impl Ends {
    fn is_ok(&self) -> bool {
        self.door.is_ok() && self.dialler.is_ok() && self.greeting.is_ok()
    }
}

/// `dialler` calls `name` and reaches `door`.
async fn shake_hands(door: &Identity, dialler: &Identity, name: &Domain) -> Ends {
    let listener = TcpListener::bind("127.0.0.1:0").await.must();
    let address = listener.local_addr().must();
    let at_door = async {
        let handshake = door.current().peer_door();
        let (tcp, _) = listener.accept().await.must();
        match TlsAcceptor::from(handshake.config.clone())
            .accept(tcp)
            .await
        {
            Ok(mut tls) => {
                tls.write_all(b"!").await.must();
                tls.shutdown().await.must();
                Ok(tls.get_ref().1.peer_certificates().must().to_vec())
            }
            Err(_) => Err(handshake.refused().cloned()),
        }
    };
    let at_dialler = async {
        let handshake = dialler.current().dial(name);
        let tcp = TcpStream::connect(address).await.must();
        let server = ServerName::try_from(name.as_str().to_owned()).must();
        match TlsConnector::from(handshake.config.clone())
            .connect(server, tcp)
            .await
        {
            Ok(mut tls) => {
                let greeting = tls.read_u8().await;
                let seen = tls.get_ref().1.peer_certificates().must().to_vec();
                (Ok(seen), greeting)
            }
            Err(error) => (Err(handshake.refused().cloned()), Err(error)),
        }
    };
    let (door, (dialler, greeting)) = tokio::join!(at_door, at_dialler);
    Ends {
        door,
        dialler,
        greeting,
    }
}

/// A node of a.test with `subject`, which trusts whatever `judge_of` shows.
fn subject_node(subject: &Leaf, authority: &Authority, judge: &Folder) -> Folder {
    let mut node = Folder::new("a.test", subject, authority);
    let ca = std::fs::read_to_string(&judge.config.federation.ca_files[0]).must();
    node.config.federation.ca_files = vec![node.write("b.pem", &ca)];
    node
}

async fn judged(
    purposes: Vec<ExtendedKeyUsagePurpose>,
    proof: Proof,
    subject_dials: bool,
) -> Result<(), Reason> {
    let authority = Authority::new("a's authority");
    let wish = Wish {
        purposes,
        ..Wish::default()
    };
    let subject = authority.grant(&["a.test"], wish);
    let judge = judge_of(&subject, &authority, proof);
    let node = subject_node(&subject, &authority, &judge);
    let (judge, node) = (judge.identity(), node.identity());
    let ends = if subject_dials {
        shake_hands(&judge, &node, &domain("b.test")).await
    } else {
        shake_hands(&node, &judge, &domain("a.test")).await
    };
    let verdict = if subject_dials {
        &ends.door
    } else {
        &ends.dialler
    };
    if let Err(reason) = verdict {
        return Err(reason.clone().must());
    }
    assert!(ends.is_ok(), "{ends:?}");
    Ok(())
}

#[tokio::test]
async fn any_tls_purpose_passes_in_both_directions_if_the_chain_or_a_pin_proves_it() {
    let purposes = [
        vec![ServerAuth],
        vec![ClientAuth],
        vec![ServerAuth, ClientAuth],
        vec![],
    ];
    for purpose in purposes {
        for (proof, expected) in [
            (Proof::Private, Ok(())),
            (Proof::Foreign, Err(Reason::UnknownIssuer)),
            (Proof::Pin, Ok(())),
            (Proof::WrongPin, Err(Reason::NotPinned)),
        ] {
            for subject_dials in [true, false] {
                let case = format!("{purpose:?} {proof:?} subject dials: {subject_dials}");

                let outcome = judged(purpose.clone(), proof, subject_dials).await;

                assert_eq!(outcome, expected, "{case}");
            }
        }
    }
}

#[tokio::test]
async fn another_purpose_than_tls_is_refused_whatever_proves_it() {
    for proof in [Proof::Private, Proof::Pin] {
        for subject_dials in [true, false] {
            let outcome = judged(vec![CodeSigning], proof, subject_dials).await;

            assert_eq!(outcome, Err(Reason::Purpose), "{proof:?} {subject_dials}");
        }
    }
}

#[tokio::test]
async fn a_door_of_another_domain_is_refused_with_both_names() {
    let authority = Authority::new("shared");
    let a = Folder::new("a.test", &authority.issue(&["a.test"]), &authority);
    let c = Folder::new("c.test", &authority.issue(&["c.test"]), &authority);

    let ends = shake_hands(&c.identity(), &a.identity(), &domain("b.test")).await;

    let reason = ends.dialler.unwrap_err().must();
    assert_eq!(
        reason.to_string(),
        "the certificate is for c.test, not for b.test"
    );
}

#[tokio::test]
async fn a_refused_dialler_reads_why_in_the_alert() {
    let authority = Authority::new("shared");
    let door = Folder::new("a.test", &authority.issue(&["a.test"]), &authority);
    let old = Wish {
        years: (2020, 2021),
        ..Wish::default()
    };
    let dialler = Folder::new("b.test", &authority.grant(&["b.test"], old), &authority);

    let ends = shake_hands(&door.identity(), &dialler.identity(), &domain("a.test")).await;

    assert_eq!(ends.door.unwrap_err(), Some(Reason::Expired));
    assert!(ends.dialler.is_ok());
    let alert = ends.greeting.unwrap_err().to_string();
    assert!(alert.contains("CertificateExpired"), "{alert}");
}

#[tokio::test]
async fn nobody_gets_through_the_peer_door_without_a_certificate() {
    let authority = Authority::new("shared");
    let door = Folder::new("a.test", &authority.issue(&["a.test"]), &authority).identity();
    let listener = TcpListener::bind("127.0.0.1:0").await.must();
    let address = listener.local_addr().must();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(authority.der()).must();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .must()
        .with_root_certificates(roots)
        .with_no_client_auth();

    let (accepted, ()) = tokio::join!(
        async {
            let (tcp, _) = listener.accept().await.must();
            let handshake = door.current().peer_door();
            TlsAcceptor::from(handshake.config).accept(tcp).await
        },
        async {
            let tcp = TcpStream::connect(address).await.must();
            let name = ServerName::try_from("a.test").must();
            let mut tls = TlsConnector::from(Arc::new(config))
                .connect(name, tcp)
                .await
                .must();
            let _ = tls.read_u8().await;
        }
    );

    let error = accepted.unwrap_err().to_string();
    assert!(error.contains("no certificates"), "{error}");
}

#[tokio::test]
async fn a_new_certificate_is_presented_at_the_next_handshake_on_both_sides() {
    let authority = Authority::new("shared");
    let (first, second) = (authority.issue(&["a.test"]), authority.issue(&["a.test"]));
    let a_node = Folder::new("a.test", &first, &authority);
    let b_node = Folder::new("b.test", &authority.issue(&["b.test"]), &authority);
    let (a, b) = (a_node.identity(), b_node.identity());
    let presented = async || {
        let calls = shake_hands(&b, &a, &domain("b.test")).await;
        let is_called = shake_hands(&a, &b, &domain("a.test")).await;
        (calls.door.must(), is_called.dialler.must())
    };
    let (old, new) = (vec![first.der.clone()], vec![second.der.clone()]);
    assert_eq!(presented().await, (old.clone(), old));
    assert!(!a.reload());
    assert_eq!(a.current().generation(), 1);

    a_node.show(&second);

    assert!(a.reload());
    assert_eq!(a.current().generation(), 2);
    assert_eq!(presented().await, (new.clone(), new));
}

#[tokio::test]
async fn a_broken_or_foreign_pair_is_refused_and_the_old_one_stays() {
    let authority = Authority::new("shared");
    let (first, second) = (authority.issue(&["a.test"]), authority.issue(&["a.test"]));
    let a_node = Folder::new("a.test", &first, &authority);
    let b_node = Folder::new("b.test", &authority.issue(&["b.test"]), &authority);
    let (a, b) = (a_node.identity(), b_node.identity());
    let foreign_name = authority.issue(&["c.test"]);
    let half = &second.key[..second.key.len() / 2];
    for (what, certificate, key) in [
        ("half a key", &*second.certificate, half),
        ("no key", &second.certificate, ""),
        ("half a certificate", &second.certificate[..80], &second.key),
        ("a key of another pair", &second.certificate, &first.key),
    ] {
        a_node.write("node.pem", certificate);
        a_node.write("node.key", key);

        assert!(!a.reload(), "{what}");

        let ends = shake_hands(&a, &b, &domain("a.test")).await;
        assert_eq!(ends.dialler.must(), vec![first.der.clone()], "{what}");
    }
    a_node.show(&foreign_name);
    a.reload();
    let ends = shake_hands(&a, &b, &domain("a.test")).await;
    assert_eq!(ends.dialler.must(), vec![first.der.clone()]);

    a_node.show(&second);
    assert!(a.reload());
    let ends = shake_hands(&a, &b, &domain("a.test")).await;
    assert_eq!(ends.dialler.must(), vec![second.der.clone()]);
}
