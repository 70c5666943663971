//! Certificates judged without a handshake.

use rustls::pki_types::CertificateDer;

use super::{Proof, domain, judge_of, verdict, with_list};
use crate::{
    config::Peer,
    identity::{
        Reason, Trust,
        testing::{Authority, Folder, Leaf, Wish},
        unix_time,
    },
};

#[test]
fn only_the_exact_name_counts() {
    let authority = Authority::new("shared");
    let judge = Folder::new("b.test", &authority.issue(&["b.test"]), &authority);
    for (names, of, passes) in [
        (vec!["a.test"], "a.test", true),
        (vec!["A.Test"], "a.test", true),
        (vec!["x.test", "a.test"], "a.test", true),
        (vec!["*.test"], "a.test", false),
        (vec!["*.a.test"], "x.a.test", false),
        (vec!["x.a.test"], "a.test", false),
        (vec!["a.test"], "x.a.test", false),
        (vec!["127.0.0.1"], "a.test", false),
        (vec![], "a.test", false),
    ] {
        let outcome = verdict(&judge, &[authority.issue(&names).der], of);

        let expected = |o: &Result<(), Reason>| match o {
            Ok(()) => passes,
            Err(reason) => !passes && matches!(reason, Reason::OtherName { .. }),
        };
        assert!(expected(&outcome), "{names:?} as {of}: {outcome:?}");
    }
}

#[test]
fn a_certificate_counts_only_in_its_time_and_so_does_its_authority() {
    let authority = Authority::new("shared");
    let brief = Authority::until("brief", 2022);
    let judge = Folder::new("b.test", &authority.issue(&["b.test"]), &authority);
    judge.write("ca.pem", &format!("{}{}", authority.pem(), brief.pem()));
    let in_years = |from, to| Wish {
        years: (from, to),
        ..Wish::default()
    };

    let past = authority.grant(&["a.test"], in_years(2020, 2021));
    let future = authority.grant(&["a.test"], in_years(2119, 2120));
    let dead_root = brief.issue(&["a.test"]);

    let of = |leaf: Leaf| verdict(&judge, &[leaf.der], "a.test");
    assert_eq!(of(past), Err(Reason::Expired));
    assert_eq!(of(future), Err(Reason::NotYetValid));
    assert_eq!(of(dead_root), Err(Reason::Expired));
}

#[test]
fn a_pin_replaces_the_chain_but_neither_name_nor_validity() {
    let foreign = Authority::new("foreign");
    let old = Wish {
        years: (2020, 2021),
        ..Wish::default()
    };
    let expired = foreign.grant(&["a.test"], old);
    let other_name = foreign.issue(&["x.test"]);

    let judge = judge_of(&expired, &foreign, Proof::Pin);
    assert_eq!(
        verdict(&judge, &[expired.der], "a.test"),
        Err(Reason::Expired)
    );
    let judge = judge_of(&other_name, &foreign, Proof::Pin);
    let outcome = verdict(&judge, &[other_name.der], "a.test");
    assert!(
        matches!(outcome, Err(Reason::OtherName { .. })),
        "{outcome:?}"
    );
}

#[test]
fn a_chain_leads_through_authorities_only() {
    let root = Authority::new("root");
    let middle = root.below("middle");
    let judge = Folder::new("b.test", &root.issue(&["b.test"]), &root);
    let leaf = middle.issue(&["a.test"]);
    let as_ca = root.grant(
        &["a.test"],
        Wish {
            is_ca: true,
            ..Wish::default()
        },
    );

    let whole = [leaf.der.clone(), middle.der()];
    assert_eq!(verdict(&judge, &whole, "a.test"), Ok(()));
    assert_eq!(
        verdict(&judge, &[leaf.der], "a.test"),
        Err(Reason::UnknownIssuer)
    );
    assert_eq!(
        verdict(&judge, &[as_ca.der], "a.test"),
        Err(Reason::Chain("CaUsedAsEndEntity".to_owned()))
    );
    assert_eq!(verdict(&judge, &[], "a.test"), Err(Reason::Missing));
    let noise = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
    assert_eq!(verdict(&judge, &[noise], "a.test"), Err(Reason::Malformed));
}

#[test]
fn an_authority_for_one_domain_proves_no_other() {
    let common = Authority::new("common");
    let special = Authority::new("of a.test alone");
    let mut judge = Folder::new("b.test", &common.issue(&["b.test"]), &common);
    judge.config.peer.push(Peer {
        domain: "a.test".to_owned(),
        ca_files: vec![judge.write("a.pem", &special.pem())],
        ..Peer::default()
    });
    let both = special.issue(&["a.test", "c.test"]);

    let chain = [both.der];
    assert_eq!(verdict(&judge, &chain, "a.test"), Ok(()));
    assert_eq!(
        verdict(&judge, &chain, "c.test"),
        Err(Reason::UnknownIssuer)
    );
    let common_a = [common.issue(&["a.test"]).der];
    assert_eq!(
        verdict(&judge, &common_a, "a.test"),
        Err(Reason::UnknownIssuer)
    );
    let snapshot = judge.identity().current();
    let now = unix_time(judge.clock.now_ms());
    assert_eq!(
        snapshot.trust().verified(&chain, now),
        Ok(vec![domain("a.test")])
    );
}

#[test]
fn the_name_of_an_authority_proves_nothing() {
    let (real, impostor) = (Authority::new("same name"), Authority::new("same name"));
    let judge = Folder::new("b.test", &real.issue(&["b.test"]), &real);

    let outcome = verdict(&judge, &[impostor.issue(&["a.test"]).der], "a.test");

    assert_eq!(outcome, Err(Reason::UnknownIssuer));
}

#[test]
fn public_authorities_count_only_when_configured() {
    let authority = Authority::new("private");
    let mut judge = Folder::new("b.test", &authority.issue(&["b.test"]), &authority);
    let leaf = [authority.issue(&["a.test"]).der];
    judge.config.federation.ca_files.clear();

    assert_eq!(verdict(&judge, &leaf, "a.test"), Err(Reason::UnknownIssuer));
    judge.config.federation.public_roots = true;
    assert_eq!(verdict(&judge, &leaf, "a.test"), Err(Reason::UnknownIssuer));
    judge.config.peer.push(Peer {
        domain: "a.test".to_owned(),
        ca_files: vec![judge.write("a.pem", &authority.pem())],
        public_roots: true,
        ..Peer::default()
    });
    assert_eq!(verdict(&judge, &leaf, "a.test"), Ok(()));
}

#[test]
fn a_certificate_with_a_crowd_of_names_is_not_looked_into() {
    let authority = Authority::new("shared");
    let names: Vec<String> = (0..300).map(|n| format!("n{n}.test")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();

    let outcome = Trust::names(&[authority.issue(&names).der]);

    assert_eq!(outcome, Err(Reason::TooManyNames));
}

#[test]
fn a_revoked_certificate_is_refused_and_so_is_what_a_revoked_authority_signed() {
    let root = Authority::new("root");
    let middle = root.below("middle");
    let judge = with_list(&root, &root.revoke(&[7], 2120));
    let serial = |serial| Wish {
        serial,
        ..Wish::default()
    };
    let revoked = [root.grant(&["a.test"], serial(7)).der];
    let fine = [root.grant(&["a.test"], serial(8)).der];
    let below = [middle.grant(&["a.test"], serial(7)).der, middle.der()];

    assert_eq!(verdict(&judge, &revoked, "a.test"), Err(Reason::Revoked));
    assert_eq!(verdict(&judge, &fine, "a.test"), Ok(()));
    // The list is the root's: it says nothing about serial numbers of the authority below.
    assert_eq!(verdict(&judge, &below, "a.test"), Ok(()));
    judge.write("list.pem", &middle.revoke(&[7], 2120));
    assert_eq!(verdict(&judge, &below, "a.test"), Err(Reason::Revoked));
}

#[test]
fn an_outdated_list_proves_nothing() {
    let root = Authority::new("root");
    let judge = with_list(&root, &root.revoke(&[7], 2021));

    let outcome = verdict(&judge, &[root.issue(&["a.test"]).der], "a.test");

    assert_eq!(outcome, Err(Reason::StaleList));
}

#[test]
fn an_authority_with_a_new_key_under_its_old_name_has_two_lists() {
    let old = Authority::new("same name");
    let new = Authority::new("same name");
    let lists = format!("{}{}", old.revoke(&[7], 2120), new.revoke(&[8], 2120));
    let judge = with_list(&old, &lists);
    judge.write("ca.pem", &format!("{}{}", old.pem(), new.pem()));
    let serial = |serial| Wish {
        serial,
        ..Wish::default()
    };
    let of = |authority: &Authority, number| {
        let leaf = authority.grant(&["a.test"], serial(number));
        verdict(&judge, &[leaf.der], "a.test")
    };

    assert_eq!(of(&old, 8), Ok(()));
    assert_eq!(of(&old, 7), Err(Reason::Revoked));
    assert_eq!(of(&new, 7), Ok(()));
    assert_eq!(of(&new, 8), Err(Reason::Revoked));
    judge.write("list.pem", &old.revoke(&[7], 2120));
    assert_eq!(of(&new, 9), Err(Reason::ForeignList));
}

#[test]
fn a_list_reaches_a_pinned_certificate() {
    let foreign = Authority::new("foreign");
    let subject = foreign.issue(&["a.test"]);
    let mut judge = judge_of(&subject, &foreign, Proof::Pin);
    let chain = [subject.der];
    assert_eq!(verdict(&judge, &chain, "a.test"), Ok(()));

    let list = judge.write("list.pem", &foreign.revoke(&[1], 2120));
    judge.config.federation.crl_files = vec![list];

    assert_eq!(verdict(&judge, &chain, "a.test"), Err(Reason::Revoked));
}
