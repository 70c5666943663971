//! Client certificate → domain: who a request at the peer door speaks for, proved again as trust changes.

use tonic::{Extensions, metadata::MetadataMap};

use super::listener::{ConnectInfo, Refused};
use crate::{
    address::Domain,
    error::{Error, Result},
    node::Node,
};

/// The metadata in which a dialler names its own domain.
pub const DOMAIN_HEADER: &str = "skiserver-domain";

/// The domain that a request speaks for. What its certificate does not prove is refused so that the peer tries
/// again later; what the policy forbids is refused for good. Whatever waits for the domain is tried now.
pub fn domain(node: &Node, metadata: &MetadataMap, extensions: &Extensions) -> Result<Domain> {
    let certificates = extensions
        .get::<ConnectInfo>()
        .and_then(|info| info.peer.as_ref());
    let certificates = certificates.ok_or(Error::Unauthenticated("a certificate is needed"))?;
    let named = match metadata.get(DOMAIN_HEADER) {
        Some(value) => {
            let text = value
                .to_str()
                .map_err(|_| Error::Invalid("skiserver-domain"))?;
            Some(Domain::parse(text).map_err(|_| Error::Invalid("skiserver-domain"))?)
        }
        None => None,
    };
    match certificates.speaks_for(named.as_ref()) {
        Ok(domain) if node.home.local(&domain).is_ok() => {
            Err(Error::Forbidden("this domain does not call itself"))
        }
        Ok(domain) => {
            node.peers.contact(&domain);
            Ok(domain)
        }
        Err(Refused::Policy(domain)) => {
            tracing::info!(%domain, "a domain was refused by policy");
            Err(Error::Forbidden(
                "the policy here does not let this domain in",
            ))
        }
        Err(reason) => {
            tracing::warn!(%reason, named = named.as_ref().map(Domain::as_str), "a peer proved nothing");
            Err(Error::Unauthenticated(
                "the certificate does not prove the domain",
            ))
        }
    }
}
