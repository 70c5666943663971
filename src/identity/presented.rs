//! What the other end of a connection presented, judged again when trust changed or a minute passed: revocation
//! and policy reach connections that are open already.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
};

use rustls::pki_types::CertificateDer;

use super::{Identity, Reason, Trust, unix_time};
use crate::{address::Domain, limits};

/// Why a request may not speak for the domain that it names.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It names no domain, and its certificate does not have exactly one name.
    #[error("the request names no domain, and its certificate does not name exactly one")]
    Ambiguous,
    /// The certificate does not prove it.
    #[error(transparent)]
    Certificate(#[from] Reason),
    /// The policy is against it.
    #[error("the policy here does not let {0} in")]
    Policy(Domain),
}

/// The certificates of one connection to the peer door.
pub struct PeerCertificates {
    identity: Arc<Identity>,
    chain: Vec<CertificateDer<'static>>,
    judged: Mutex<Judged>,
}

struct Judged {
    generation: u64,
    at_ms: i64,
    domains: Result<Vec<Domain>, Reason>,
}

impl fmt::Debug for PeerCertificates {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = Trust::names(&self.chain).unwrap_or_default();
        f.debug_tuple("PeerCertificates").field(&names).finish()
    }
}

impl PeerCertificates {
    /// Judges `chain`, leaf first, by the trust of this moment.
    pub fn new(identity: Arc<Identity>, chain: Vec<CertificateDer<'static>>) -> Self {
        let judged = Mutex::new(judge(&identity, &chain));
        Self {
            identity,
            chain,
            judged,
        }
    }

    /// The domain that a request speaks for, which it named in its metadata or whose certificate names no
    /// other. Refused unless the certificate proves it and the policy lets it in, both as of now.
    pub fn speaks_for(&self, named: Option<&Domain>) -> Result<Domain, Refused> {
        let snapshot = self.identity.current();
        let domain = match named {
            Some(domain) => domain.clone(),
            None => self.only_name()?,
        };
        if !self.is_proved(snapshot.generation(), &domain) {
            let now = unix_time(self.identity.now_ms());
            snapshot.trust().verify(&self.chain, &domain, now)?;
        }
        if !snapshot.trust().may_talk(&domain) {
            return Err(Refused::Policy(domain));
        }
        Ok(domain)
    }

    fn only_name(&self) -> Result<Domain, Refused> {
        match Trust::names(&self.chain)?.as_slice() {
            [name] => Domain::parse(name).map_err(|_| Refused::Ambiguous),
            _ => Err(Refused::Ambiguous),
        }
    }

    fn is_proved(&self, generation: u64, domain: &Domain) -> bool {
        let now_ms = self.identity.now_ms();
        let mut judged = self.judged.lock().unwrap_or_else(PoisonError::into_inner);
        let age_ms = now_ms - judged.at_ms;
        if judged.generation != generation || !(0..limits::PEER_JUDGED_MS).contains(&age_ms) {
            *judged = judge(&self.identity, &self.chain);
        }
        judged.domains.as_ref().is_ok_and(|d| d.contains(domain))
    }
}

fn judge(identity: &Identity, chain: &[CertificateDer<'_>]) -> Judged {
    let snapshot = identity.current();
    let at_ms = identity.now_ms();
    Judged {
        generation: snapshot.generation(),
        at_ms,
        domains: snapshot.trust().verified(chain, unix_time(at_ms)),
    }
}
