//! Settings and files that change under a running node, and the connections that are open meanwhile.

use crate::testing::Must as _;

use super::{domain, with_list};
use crate::{
    config::Policy,
    identity::{
        Identity, PeerCertificates, Reason, Refused,
        testing::{Authority, Folder, Wish},
        unix_time,
    },
};

#[test]
fn the_policy_decides_who_may_talk() {
    let authority = Authority::new("shared");
    let mut node = Folder::new("b.test", &authority.issue(&["b.test"]), &authority);
    let (a, c) = (domain("a.test"), domain("c.test"));
    let identity = node.identity();
    for (policy, listed, a_may, c_may) in [
        (Policy::Open, vec!["a.test"], true, true),
        (Policy::Allow, vec!["a.test"], true, false),
        (Policy::Allow, vec![], false, false),
        (Policy::Deny, vec!["a.test"], false, true),
        (Policy::Deny, vec![], true, true),
    ] {
        node.config.federation.policy = policy;
        node.config.federation.domains = listed.into_iter().map(str::to_owned).collect();

        identity.configure(&node.config).must();

        let snapshot = identity.current();
        let trust = snapshot.trust();
        assert_eq!(
            (trust.may_talk(&a), trust.may_talk(&c)),
            (a_may, c_may),
            "{policy:?}"
        );
    }
}

#[test]
fn a_node_does_not_start_with_files_that_it_could_not_use() {
    let authority = Authority::new("shared");
    let node = Folder::new("a.test", &authority.issue(&["a.test"]), &authority);
    let failure = |node: &Folder| {
        let outcome = Identity::load(&node.config, &node.clock);
        outcome.err().map(|problem| problem.to_string())
    };
    assert_eq!(failure(&node), None);

    node.show(&authority.issue(&["c.test"]));
    let text = failure(&node).must();
    assert!(
        text.contains("node.pem") && text.contains("a.test"),
        "{text}"
    );
    node.show(&authority.issue(&["a.test"]));
    node.write("ca.pem", "nothing");
    let text = failure(&node).must();
    assert!(text.contains("ca.pem"), "{text}");
}

#[test]
fn a_missing_revocation_list_does_not_clear_anybody() {
    let root = Authority::new("root");
    let judge = with_list(&root, &root.revoke(&[1], 2120));
    let identity = judge.identity();
    let chain = [root.issue(&["a.test"]).der];
    let of = || {
        let now = unix_time(judge.clock.now_ms());
        let snapshot = identity.current();
        snapshot.trust().verify(&chain, &domain("a.test"), now)
    };
    assert_eq!(of(), Err(Reason::Revoked));

    std::fs::remove_file(&judge.config.federation.crl_files[0]).must();

    assert!(!identity.reload());
    assert_eq!(of(), Err(Reason::Revoked));
    judge.write("list.pem", &root.revoke(&[2], 2120));
    assert!(identity.reload());
    assert_eq!(of(), Ok(()));
}

#[tokio::test]
async fn files_are_compared_by_the_clock() {
    let authority = Authority::new("shared");
    let node = Folder::new("a.test", &authority.issue(&["a.test"]), &authority);
    let identity = node.identity();
    let stop = tokio_util::sync::CancellationToken::new();
    let watch = identity.clone().watch(stop.clone());
    node.show(&authority.issue(&["a.test"]));

    let reloaded = async {
        while identity.current().generation() == 1 {
            node.clock.turn(6_000);
            tokio::task::yield_now().await;
        }
        stop.cancel();
    };
    tokio::join!(watch, reloaded);

    assert_eq!(identity.current().generation(), 2);
}

#[test]
fn an_open_connection_speaks_for_what_its_certificate_proves_now() {
    let root = Authority::new("root");
    let mut judge = with_list(&root, &root.revoke(&[7], 2120));
    let identity = judge.identity();
    let one = PeerCertificates::new(identity.clone(), vec![root.issue(&["a.test"]).der]);
    let two = vec![root.issue(&["a.test", "c.test"]).der];
    let two = PeerCertificates::new(identity.clone(), two);
    let wild = vec![root.issue(&["a.test", "*.a.test"]).der];
    let wild = PeerCertificates::new(identity.clone(), wild);
    let (a, b, c) = (domain("a.test"), domain("b.test"), domain("c.test"));

    assert_eq!(one.speaks_for(None), Ok(a.clone()));
    assert_eq!(one.speaks_for(Some(&a)), Ok(a.clone()));
    assert!(matches!(
        one.speaks_for(Some(&b)),
        Err(Refused::Certificate(Reason::OtherName { .. }))
    ));
    assert_eq!(two.speaks_for(None), Err(Refused::Ambiguous));
    assert_eq!(wild.speaks_for(None), Err(Refused::Ambiguous));
    assert_eq!(wild.speaks_for(Some(&a)), Ok(a.clone()));
    assert_eq!(two.speaks_for(Some(&c)), Ok(c));

    judge.config.federation.policy = Policy::Deny;
    judge.config.federation.domains = vec!["a.test".to_owned()];
    identity.configure(&judge.config).must();
    assert_eq!(one.speaks_for(None), Err(Refused::Policy(a.clone())));

    judge.config.federation.policy = Policy::Open;
    judge.write("list.pem", &root.revoke(&[1], 2120));
    identity.configure(&judge.config).must();
    let revoked = Err(Refused::Certificate(Reason::Revoked));
    assert_eq!(one.speaks_for(Some(&a)), revoked);
}

#[test]
fn an_open_connection_ends_with_the_validity_of_its_certificate() {
    let root = Authority::new("root");
    let judge = Folder::new("b.test", &root.issue(&["b.test"]), &root);
    let ends = Wish {
        years: (2020, 2100),
        ..Wish::default()
    };
    let chain = vec![root.grant(&["a.test"], ends).der];
    let connection = PeerCertificates::new(judge.identity(), chain);
    let a = domain("a.test");
    assert_eq!(connection.speaks_for(Some(&a)), Ok(a.clone()));

    judge.clock.turn(80 * 365 * 24 * 3_600_000);

    let expired = Err(Refused::Certificate(Reason::Expired));
    assert_eq!(connection.speaks_for(Some(&a)), expired);
}
