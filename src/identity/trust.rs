//! What proves that a certificate speaks for a domain, and which domains may talk to us. The same check
//! serves both directions: a public authority's certificate says `serverAuth` even when its owner dials.

use std::{
    collections::{HashMap, HashSet},
    fmt,
};

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{
    CertRevocationList, EndEntityCert, ExpirationPolicy, KeyUsage, RevocationOptions,
    RevocationOptionsBuilder, UnknownStatusPolicy, VerifiedPath,
};
use x509_parser::{certificate::X509Certificate, extensions::GeneralName};

use crate::{address::Domain, config::Policy, limits};

/// Why a certificate does not speak for a domain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The other side presented nothing.
    #[error("no certificate was presented")]
    Missing,
    /// It is not an X.509 certificate, or not one that we can read.
    #[error("the certificate can't be read")]
    Malformed,
    /// It has no DNS name that is a plain domain.
    #[error("the certificate names no domain")]
    Nameless,
    /// It has more names than anybody checks.
    #[error("the certificate has too many names")]
    TooManyNames,
    /// It names others, but not this domain.
    #[error("the certificate is for {presented}, not for {wanted}")]
    OtherName {
        /// Who it should have been.
        wanted: Domain,
        /// Its first names.
        presented: String,
    },
    /// No chain leads to an authority that is trusted for the domain.
    #[error("the certificate is from an authority that is not trusted for this domain")]
    UnknownIssuer,
    /// The domain is pinned, and this is another key.
    #[error("the certificate's key is not one that is pinned for this domain")]
    NotPinned,
    /// It, or one above it, is too old.
    #[error("the certificate or its authority's has expired")]
    Expired,
    /// It, or one above it, starts later.
    #[error("the certificate or its authority's is not valid yet")]
    NotYetValid,
    /// A configured list names it, or one above it.
    #[error("the certificate or its authority's has been revoked")]
    Revoked,
    /// The configured list of its authority is out of date, so nothing is known.
    #[error("the revocation list of its authority is out of date")]
    StaleList,
    /// The configured list bears the name of its authority, but not its signature.
    #[error("the revocation list of its authority is signed by somebody else")]
    ForeignList,
    /// It says that it is for something other than TLS.
    #[error("the certificate is for another purpose than TLS")]
    Purpose,
    /// Anything else that is wrong with the chain.
    #[error("the certificate's chain can't be verified: {0}")]
    Chain(String),
}

impl From<webpki::Error> for Reason {
    fn from(error: webpki::Error) -> Self {
        use webpki::Error;
        match error {
            Error::BadDer | Error::BadDerTime => Self::Malformed,
            // A signature that does not fit is that of another authority with the same name.
            Error::UnknownIssuer | Error::InvalidSignatureForPublicKey => Self::UnknownIssuer,
            Error::CertExpired { .. } => Self::Expired,
            Error::CertNotValidYet { .. } => Self::NotYetValid,
            Error::CertRevoked => Self::Revoked,
            Error::CrlExpired { .. } => Self::StaleList,
            Error::RequiredEkuNotFoundContext(_) | Error::EmptyEkuExtension => Self::Purpose,
            other => Self::Chain(format!("{other:?}")),
        }
    }
}

/// A certificate authority that is trusted, and from when to when (Unix seconds) if it says so.
pub(super) struct Root {
    pub(super) anchor: TrustAnchor<'static>,
    pub(super) valid: Option<(i64, i64)>,
}

/// What proves a certificate.
pub(super) enum Anchors {
    /// A chain to one of these authorities.
    Roots {
        anchors: Vec<TrustAnchor<'static>>,
        valid: Vec<Option<(i64, i64)>>,
    },
    /// A public key whose SHA-256 is one of these.
    Pins(HashSet<[u8; 32]>),
}

impl Anchors {
    pub(super) fn roots(roots: Vec<Root>) -> Self {
        let (anchors, valid) = roots.into_iter().map(|r| (r.anchor, r.valid)).unzip();
        Self::Roots { anchors, valid }
    }
}

/// Everything that decides about other domains' certificates, as configured at one moment.
pub struct Trust {
    pub(super) policy: Policy,
    pub(super) listed: HashSet<Domain>,
    pub(super) federation: Anchors,
    pub(super) peers: HashMap<Domain, Anchors>,
    pub(super) lists: Vec<CertRevocationList<'static>>,
    pub(super) algorithms: &'static [&'static dyn SignatureVerificationAlgorithm],
}

impl fmt::Debug for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trust").finish_non_exhaustive()
    }
}

impl Trust {
    /// Whether the policy lets this node talk to `domain`, in either direction.
    pub fn may_talk(&self, domain: &Domain) -> bool {
        match self.policy {
            Policy::Open => true,
            Policy::Allow => self.listed.contains(domain),
            Policy::Deny => !self.listed.contains(domain),
        }
    }

    /// Proves that `chain`, leaf first, speaks for `claimed` at the time `now`: it names exactly that domain,
    /// and leads to what is trusted for that domain.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        claimed: &Domain,
        now: UnixTime,
    ) -> Result<(), Reason> {
        let names = Self::names(chain)?;
        if !names
            .iter()
            .any(|n| n.eq_ignore_ascii_case(claimed.as_str()))
        {
            return Err(Reason::OtherName {
                wanted: claimed.clone(),
                presented: listing(&names),
            });
        }
        self.prove(chain, self.anchors(claimed), now)
    }

    /// All domains that `chain` speaks for at the time `now`; never empty.
    pub fn verified(
        &self,
        chain: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<Vec<Domain>, Reason> {
        let mut proved = Vec::new();
        let mut outcomes: Vec<(&Anchors, Result<(), Reason>)> = Vec::new();
        for domain in Self::domains(chain)? {
            let anchors = self.anchors(&domain);
            // Most names of a certificate share their anchors, and a chain is verified once for each of these.
            let known = outcomes.iter().find(|(a, _)| std::ptr::eq(*a, anchors));
            let outcome = match known {
                Some((_, outcome)) => outcome.clone(),
                None => self.prove(chain, anchors, now),
            };
            if outcome.is_ok() {
                proved.push(domain);
            }
            if known.is_none() {
                outcomes.push((anchors, outcome));
            }
        }
        if proved.is_empty() {
            let reason = outcomes.into_iter().find_map(|(_, outcome)| outcome.err());
            return Err(reason.unwrap_or(Reason::Nameless));
        }
        Ok(proved)
    }

    /// The domains that the leaf of `chain` names exactly. Wildcards and other names are left out.
    pub fn domains(chain: &[CertificateDer<'_>]) -> Result<Vec<Domain>, Reason> {
        let mut domains = Vec::new();
        for domain in Self::names(chain)?.iter().flat_map(|n| Domain::parse(n)) {
            if !domains.contains(&domain) {
                domains.push(domain);
            }
        }
        Ok(domains)
    }

    /// All DNS names of the leaf as they are written there.
    pub fn names(chain: &[CertificateDer<'_>]) -> Result<Vec<String>, Reason> {
        let leaf = parse(chain.first().ok_or(Reason::Missing)?)?;
        let Some(extension) = leaf
            .subject_alternative_name()
            .map_err(|_| Reason::Malformed)?
        else {
            return Ok(Vec::new());
        };
        let names = &extension.value.general_names;
        if names.len() > limits::CERTIFICATE_NAMES_MAX {
            return Err(Reason::TooManyNames);
        }
        let dns = names.iter().filter_map(|name| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            _ => None,
        });
        Ok(dns.collect())
    }

    fn anchors(&self, domain: &Domain) -> &Anchors {
        self.peers.get(domain).unwrap_or(&self.federation)
    }

    fn prove(
        &self,
        chain: &[CertificateDer<'_>],
        anchors: &Anchors,
        now: UnixTime,
    ) -> Result<(), Reason> {
        match anchors {
            Anchors::Pins(pins) => self.prove_pinned(chain, pins, now),
            Anchors::Roots { anchors, valid } => self.prove_chain(
                chain,
                &Search {
                    anchors,
                    valid,
                    now,
                },
            ),
        }
    }

    /// A pin stands for the chain and for nothing else.
    fn prove_pinned(
        &self,
        chain: &[CertificateDer<'_>],
        pins: &HashSet<[u8; 32]>,
        now: UnixTime,
    ) -> Result<(), Reason> {
        let der = chain.first().ok_or(Reason::Missing)?;
        let leaf = parse(der)?;
        if !pins.contains(&super::load::sha256(leaf.public_key().raw)) {
            return Err(Reason::NotPinned);
        }
        let validity = leaf.validity();
        check_time(
            (
                validity.not_before.timestamp(),
                validity.not_after.timestamp(),
            ),
            now,
        )?;
        let purpose = leaf.extended_key_usage().map_err(|_| Reason::Malformed)?;
        if purpose.is_some_and(|p| !p.value.server_auth && !p.value.client_auth) {
            return Err(Reason::Purpose);
        }
        // Nobody vouches for the list here but the operator, who put it there.
        let leaf = EndEntityCert::try_from(der)?;
        for list in self.lists.iter().filter(|l| l.issuer() == leaf.issuer()) {
            if list.find_serial(leaf.serial())?.is_some() {
                return Err(Reason::Revoked);
            }
        }
        Ok(())
    }

    fn prove_chain(&self, chain: &[CertificateDer<'_>], search: &Search<'_>) -> Result<(), Reason> {
        self.find_path(chain, search, None)?;
        let mut issuers = Vec::new();
        for der in chain {
            issuers.push(EndEntityCert::try_from(der)?.issuer().to_vec());
        }
        // Each list by itself: webpki asks only the first one of an issuer, and an authority that changed its
        // key under the same name has two.
        let mut foreign = Vec::new();
        let mut passed = Vec::new();
        for list in &self.lists {
            if !issuers.iter().any(|issuer| issuer == list.issuer()) {
                continue;
            }
            let only = [list];
            let options = RevocationOptionsBuilder::new(&only)
                .map_err(|_| Reason::StaleList)?
                .with_status_policy(UnknownStatusPolicy::Allow)
                .with_expiration_policy(ExpirationPolicy::Enforce)
                .build();
            match self.find_path(chain, search, Some(options)) {
                Ok(()) => passed.push(list.issuer()),
                Err(error) if is_of_another_key(&error) => foreign.push(list.issuer()),
                Err(error) => return Err(error.into()),
            }
        }
        if foreign.iter().any(|issuer| !passed.contains(issuer)) {
            return Err(Reason::ForeignList);
        }
        Ok(())
    }

    fn find_path(
        &self,
        chain: &[CertificateDer<'_>],
        search: &Search<'_>,
        revocation: Option<RevocationOptions<'_>>,
    ) -> Result<(), webpki::Error> {
        let (der, above) = chain.split_first().ok_or(webpki::Error::BadDer)?;
        let leaf = EndEntityCert::try_from(der)?;
        let find = |usage| {
            leaf.verify_for_usage(
                self.algorithms,
                search.anchors,
                above,
                search.now,
                usage,
                revocation,
                Some(&|path| search.check_anchor(path)),
            )
            .map(drop)
        };
        match find(KeyUsage::server_auth()) {
            Err(webpki::Error::RequiredEkuNotFoundContext(_)) => find(KeyUsage::client_auth()),
            outcome => outcome,
        }
    }
}

/// Where a chain may end, and when.
struct Search<'a> {
    anchors: &'a [TrustAnchor<'static>],
    valid: &'a [Option<(i64, i64)>],
    now: UnixTime,
}

impl Search<'_> {
    /// An anchor has no dates for webpki; the file that it came from has.
    fn check_anchor(&self, path: &VerifiedPath<'_>) -> Result<(), webpki::Error> {
        let place = self
            .anchors
            .iter()
            .position(|a| std::ptr::eq(a, path.anchor()));
        let Some(Some(valid)) = place.and_then(|place| self.valid.get(place)) else {
            return Ok(());
        };
        check_time(*valid, self.now).map_err(|reason| match reason {
            Reason::NotYetValid => webpki::Error::CertNotValidYet {
                time: self.now,
                not_before: unix(valid.0),
            },
            _ => webpki::Error::CertExpired {
                time: self.now,
                not_after: unix(valid.1),
            },
        })
    }
}

fn unix(seconds: i64) -> UnixTime {
    let seconds = u64::try_from(seconds).unwrap_or_default();
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds))
}

fn check_time((not_before, not_after): (i64, i64), now: UnixTime) -> Result<(), Reason> {
    let now = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    if now < not_before {
        return Err(Reason::NotYetValid);
    }
    if now > not_after {
        return Err(Reason::Expired);
    }
    Ok(())
}

/// A list that the issuer's key did not sign is another authority's of the same name. The chain itself holds
/// at this point; its signature is blamed only because webpki reports the first of two failures.
fn is_of_another_key(error: &webpki::Error) -> bool {
    matches!(
        error,
        webpki::Error::InvalidCrlSignatureForPublicKey
            | webpki::Error::InvalidSignatureForPublicKey
            | webpki::Error::UnsupportedCrlSignatureAlgorithmForPublicKeyContext(_)
    )
}

pub(super) fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, Reason> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(Reason::Malformed),
    }
}

/// The first names for a person to read; they are a stranger's, so only what DNS knows gets through.
fn listing(names: &[String]) -> String {
    let shown: Vec<String> = names
        .iter()
        .take(3)
        .map(|name| {
            name.chars()
                .filter(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '*' | '_'))
                .take(limits::DOMAIN_BYTES_MAX)
                .collect()
        })
        .collect();
    match (shown.is_empty(), names.len() > shown.len()) {
        (true, _) => "no domain".to_owned(),
        (false, false) => shown.join(", "),
        (false, true) => format!("{} and others", shown.join(", ")),
    }
}
