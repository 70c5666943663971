//! Says in words what is wrong with a node's certificate, before a peer says it with a broken handshake.

use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject as _},
    sign::CertifiedKey,
};
use webpki::{ALL_VERIFICATION_ALGS, EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer as _, time::ASN1Time,
};

use super::ca::DAY_MS;
use crate::address::Domain;

/// A certificate that ends within this time deserves a warning.
const SOON_DAYS: i64 = 14;

/// How a finding is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It works today.
    Warning,
    /// Peers or apps will refuse it.
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// How it is meant.
    pub verdict: Verdict,
    /// One sentence.
    pub text: String,
}

impl Finding {
    fn good(text: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Good,
            text: text.into(),
        }
    }

    fn warning(text: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Warning,
            text: text.into(),
        }
    }

    fn wrong(text: impl Into<String>) -> Self {
        Self {
            verdict: Verdict::Wrong,
            text: text.into(),
        }
    }
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct Pair<'a> {
    /// The chain, leaf first, as PEM.
    pub chain_pem: &'a [u8],
    /// The private key, if it is to be compared.
    pub key_pem: Option<&'a [u8]>,
    /// The authorities that peers trust; the public ones if absent.
    pub ca_pem: Option<&'a [u8]>,
    /// The domain that the node serves.
    pub domain: &'a Domain,
    /// Unix ms.
    pub now_ms: i64,
}

/// Everything that can be said about `pair`. The node is fine if nothing is [`Verdict::Wrong`].
pub fn check(pair: &Pair<'_>) -> Vec<Finding> {
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pair.chain_pem).collect();
    let Ok(chain) = chain else {
        return vec![Finding::wrong("the file is not PEM")];
    };
    let Some((leaf_der, above)) = chain.split_first() else {
        return vec![Finding::wrong("the file has no certificate in it")];
    };
    let Ok((_, leaf)) = X509Certificate::from_der(leaf_der) else {
        return vec![Finding::wrong("the first certificate can't be read")];
    };
    let mut findings = vec![names(&leaf, pair.domain), dates(&leaf, pair.now_ms)];
    findings.extend(purpose(&leaf));
    findings.push(trust(leaf_der, above, &leaf, pair));
    findings.extend(pair.key_pem.map(|pem| key(&chain, pem)));
    findings
}

fn names(leaf: &X509Certificate<'_>, domain: &Domain) -> Finding {
    let listed: Vec<&str> = leaf
        .subject_alternative_name()
        .ok()
        .flatten()
        .into_iter()
        .flat_map(|extension| &extension.value.general_names)
        .filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(*name),
            _ => None,
        })
        .collect();
    if listed
        .iter()
        .any(|name| name.eq_ignore_ascii_case(domain.as_str()))
    {
        return Finding::good(format!("it names {domain}"));
    }
    let (_, parent) = domain.as_str().split_once('.').unwrap_or_default();
    let wildcard = listed.iter().find(|name| {
        name.strip_prefix("*.")
            .is_some_and(|rest| rest.eq_ignore_ascii_case(parent))
    });
    Finding::wrong(match wildcard {
        Some(name) => format!(
            "it names {name}: other domains do not take a wildcard, the DNS name must be {domain} itself"
        ),
        None if listed.is_empty() => format!(
            "it has no DNS name among its subject alternative names (the common name does not count); \
             it must name {domain}"
        ),
        None => format!(
            "it names {} but not {domain}; the name of the host does not help, it must be the domain",
            listed.join(", ")
        ),
    })
}

fn dates(leaf: &X509Certificate<'_>, now_ms: i64) -> Finding {
    let validity = leaf.validity();
    let left_ms = validity.not_after.timestamp().saturating_mul(1_000) - now_ms;
    if validity.not_before.timestamp().saturating_mul(1_000) > now_ms {
        Finding::wrong(format!("it is not valid before {}", validity.not_before))
    } else if left_ms < 0 {
        Finding::wrong(format!("it expired on {}", validity.not_after))
    } else if left_ms < SOON_DAYS * DAY_MS {
        Finding::warning(format!(
            "it expires soon, on {} ({} days)",
            validity.not_after,
            left_ms / DAY_MS
        ))
    } else {
        Finding::good(format!("it is valid until {}", validity.not_after))
    }
}

fn purpose(leaf: &X509Certificate<'_>) -> Option<Finding> {
    if leaf.is_ca() {
        return Some(Finding::wrong(
            "it is the certificate of an authority; a node needs one of its own",
        ));
    }
    let usages = leaf.extended_key_usage().ok().flatten()?.value;
    match (usages.server_auth || usages.any, usages.client_auth) {
        (true, _) => None,
        (false, true) => Some(Finding::warning(
            "it is for clients only: other domains take it, but apps will refuse the client door",
        )),
        (false, false) => Some(Finding::wrong(
            "its extended key usage is neither for servers nor for clients",
        )),
    }
}

fn trust(
    leaf_der: &CertificateDer<'_>,
    above: &[CertificateDer<'_>],
    leaf: &X509Certificate<'_>,
    pair: &Pair<'_>,
) -> Finding {
    let private: Vec<CertificateDer<'static>> = match pair.ca_pem {
        Some(pem) => match CertificateDer::pem_slice_iter(pem).collect() {
            Ok(certificates) => certificates,
            Err(_) => return Finding::wrong("the file of authorities is not PEM"),
        },
        None => Vec::new(),
    };
    let anchors = match pair.ca_pem {
        Some(_) => private
            .iter()
            .map_while(|der| anchor_from_trusted_cert(der).ok())
            .collect(),
        None => webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    if anchors.is_empty() || (pair.ca_pem.is_some() && anchors.len() < private.len()) {
        return Finding::wrong("the file of authorities has no usable certificate in it");
    }
    let at = when_valid(leaf, pair.now_ms);
    let outcome = EndEntityCert::try_from(leaf_der).and_then(|end| {
        let verify = |usage| {
            end.verify_for_usage(
                ALL_VERIFICATION_ALGS,
                &anchors,
                above,
                at,
                usage,
                None,
                None,
            )
            .map(|_| ())
        };
        verify(KeyUsage::server_auth()).or_else(|_| verify(KeyUsage::client_auth()))
    });
    match (outcome, pair.ca_pem) {
        (Ok(()), Some(_)) => Finding::good("the given authority vouches for it"),
        (Ok(()), None) => Finding::good("a public authority vouches for it"),
        (Err(webpki::Error::UnknownIssuer), Some(_)) => Finding::wrong(
            "the given authority does not vouch for it: another one made it, or one in between is missing \
             from the file",
        ),
        (Err(webpki::Error::UnknownIssuer), None) => Finding::wrong(
            "no public authority vouches for it: name a private one with --ca, or add the missing one in \
             between to the file",
        ),
        (Err(error), _) => Finding::wrong(format!("its chain is refused: {error}")),
    }
}

/// A moment at which the leaf itself is valid, so that the chain is judged apart from the leaf's dates.
fn when_valid(leaf: &X509Certificate<'_>, now_ms: i64) -> UnixTime {
    let seconds = |time: ASN1Time| time.timestamp();
    let validity = leaf.validity();
    let at = (now_ms / 1_000)
        .min(seconds(validity.not_after))
        .max(seconds(validity.not_before));
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(
        u64::try_from(at).unwrap_or_default(),
    ))
}

fn key(chain: &[CertificateDer<'static>], pem: &[u8]) -> Finding {
    let Ok(der) = PrivateKeyDer::from_pem_slice(pem) else {
        return Finding::wrong("the key file has no private key in it");
    };
    let Ok(signer) = aws_lc_rs::sign::any_supported_type(&der) else {
        return Finding::wrong("the private key is of a kind that TLS does not use");
    };
    match CertifiedKey::new(chain.to_vec(), signer).keys_match() {
        Ok(()) => Finding::good("the private key belongs to it"),
        Err(_) => Finding::wrong("the private key belongs to another certificate"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;
    use crate::{
        clock::Clock,
        lab::ca::{Authority, LeafRequest, Usage},
    };

    fn findings(root: &Authority, request: &LeafRequest, domain: &str) -> Vec<Finding> {
        let issued = root.issue(request).must();
        check(&Pair {
            chain_pem: issued.chain_pem.as_bytes(),
            key_pem: Some(issued.key_pem.as_bytes()),
            ca_pem: Some(root.certificate_pem().as_bytes()),
            domain: &Domain::parse(domain).must(),
            now_ms: Clock::default().now_ms(),
        })
    }

    /// The one finding that is not good.
    fn complaint(root: &Authority, request: &LeafRequest, domain: &str) -> Finding {
        let mut bad = findings(root, request, domain);
        bad.retain(|finding| finding.verdict != Verdict::Good);
        assert_eq!(bad.len(), 1, "{bad:?}");
        bad.remove(0)
    }

    #[test]
    fn a_certificate_as_we_make_it_is_fine() {
        let root = Authority::generate("test").must();

        let found = findings(&root, &LeafRequest::new("a.test"), "a.test");

        assert_eq!(found.len(), 4);
        assert!(
            found.iter().all(|f| f.verdict == Verdict::Good),
            "{found:?}"
        );
    }

    #[test]
    fn the_name_must_be_the_domain_itself() {
        let root = Authority::generate("test").must();

        let host = complaint(&root, &LeafRequest::new("node.a.test"), "a.test");
        let wildcard = complaint(&root, &LeafRequest::new("*.test"), "a.test");
        let none = complaint(&root, &LeafRequest::new(""), "a.test");

        assert!(
            host.text.contains("node.a.test but not a.test"),
            "{}",
            host.text
        );
        assert!(wildcard.text.contains("wildcard"), "{}", wildcard.text);
        assert!(none.text.contains("no DNS name"), "{}", none.text);
        for finding in [host, wildcard, none] {
            assert_eq!(finding.verdict, Verdict::Wrong);
        }
    }

    #[test]
    fn the_domain_may_be_one_of_several_names_in_any_case() {
        let root = Authority::generate("test").must();
        let mut request = LeafRequest::new("node.a.test");
        request.extra_sans.push("A.Test".to_owned());

        let found = findings(&root, &request, "a.test");

        assert!(
            found.iter().all(|f| f.verdict == Verdict::Good),
            "{found:?}"
        );
    }

    #[test]
    fn dates_that_passed_come_or_end_soon_are_told_apart() {
        let root = Authority::generate("test").must();
        let now_ms = Clock::default().now_ms();
        let between = |not_before_at, not_after_at| LeafRequest {
            not_before_at,
            not_after_at,
            ..LeafRequest::new("a.test")
        };

        let expired = complaint(&root, &between(now_ms - 9_000, now_ms - 5_000), "a.test");
        let future = complaint(
            &root,
            &between(now_ms + DAY_MS, now_ms + 90 * DAY_MS),
            "a.test",
        );
        let soon = complaint(
            &root,
            &between(now_ms - 9_000, now_ms + 3 * DAY_MS + 9_000),
            "a.test",
        );

        assert_eq!(expired.verdict, Verdict::Wrong);
        assert!(expired.text.contains("expired"), "{}", expired.text);
        assert_eq!(future.verdict, Verdict::Wrong);
        assert!(future.text.contains("not valid before"), "{}", future.text);
        assert_eq!(soon.verdict, Verdict::Warning);
        assert!(soon.text.contains("3 days"), "{}", soon.text);
    }

    #[test]
    fn a_certificate_for_clients_only_is_a_warning() {
        let root = Authority::generate("test").must();
        let request = LeafRequest {
            usages: vec![Usage::Client],
            ..LeafRequest::new("a.test")
        };

        let finding = complaint(&root, &request, "a.test");

        assert_eq!(finding.verdict, Verdict::Warning);
        assert!(finding.text.contains("clients only"), "{}", finding.text);
    }

    #[test]
    fn a_key_of_another_certificate_is_found() {
        let root = Authority::generate("test").must();
        let issued = root.issue(&LeafRequest::new("a.test")).must();
        let other = root.issue(&LeafRequest::new("a.test")).must();

        let found = check(&Pair {
            chain_pem: issued.chain_pem.as_bytes(),
            key_pem: Some(other.key_pem.as_bytes()),
            ca_pem: Some(root.certificate_pem().as_bytes()),
            domain: &Domain::parse("a.test").must(),
            now_ms: Clock::default().now_ms(),
        });

        let last = found.last().must();
        assert_eq!(last.verdict, Verdict::Wrong);
        assert!(last.text.contains("another certificate"), "{}", last.text);
    }

    #[test]
    fn a_chain_to_somebody_else_or_with_a_gap_is_found() {
        let root = Authority::generate("test").must();
        let other = Authority::generate("other").must();
        let below = root.subordinate("below").must();
        let issued = below.issue(&LeafRequest::new("a.test")).must();
        let domain = Domain::parse("a.test").must();
        let whole = issued.chain_pem.as_str();
        let end = "-----END CERTIFICATE-----\n";
        let alone = &whole[..whole.find(end).must() + end.len()];
        let verdict = |chain_pem: &str, ca: Option<&Authority>| {
            let found = check(&Pair {
                chain_pem: chain_pem.as_bytes(),
                key_pem: None,
                ca_pem: ca.map(|ca| ca.certificate_pem().as_bytes()),
                domain: &domain,
                now_ms: Clock::default().now_ms(),
            });
            found.last().must().verdict
        };

        assert_eq!(verdict(whole, Some(&root)), Verdict::Good);
        assert_eq!(verdict(alone, Some(&root)), Verdict::Wrong);
        assert_eq!(verdict(whole, Some(&other)), Verdict::Wrong);
        assert_eq!(verdict(whole, None), Verdict::Wrong);
    }

    #[test]
    fn files_that_are_something_else_are_refused_in_words() {
        let domain = Domain::parse("a.test").must();
        let empty = check(&Pair {
            chain_pem: b"hello",
            key_pem: None,
            ca_pem: None,
            domain: &domain,
            now_ms: 0,
        });

        assert_eq!(empty, [Finding::wrong("the file has no certificate in it")]);
    }
}
