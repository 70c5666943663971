//! Reads certificates, keys, authorities and revocation lists from files. Whatever is half-written or does
//! not fit together is refused with the file's name.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
    sync::Arc,
};

use aws_lc_rs::digest;
use base64::{Engine, engine::general_purpose::STANDARD};
use rustls::{
    crypto::CryptoProvider,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use webpki::{CertRevocationList, OwnedCertRevocationList};
use zeroize::Zeroizing;

use super::trust::{self, Anchors, Root, Trust};
use crate::{
    address::Domain,
    config::{Config, Federation, Peer, Tls},
};

/// Why an identity can't be loaded, for the person who keeps its files.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {reason}")]
pub struct Problem {
    what: String,
    reason: String,
}

impl Problem {
    pub(super) fn new(what: impl std::fmt::Display, reason: impl std::fmt::Display) -> Self {
        Self {
            what: what.to_string(),
            reason: reason.to_string(),
        }
    }

    fn file(path: &Path, reason: impl std::fmt::Display) -> Self {
        Self::new(path.display(), reason)
    }
}

/// The settings that an identity is made of.
#[derive(Debug, Clone)]
pub(super) struct Sources {
    pub(super) domain: Domain,
    pub(super) tls: Tls,
    pub(super) federation: Federation,
    pub(super) peers: Vec<Peer>,
}

impl Sources {
    pub(super) fn new(config: &Config) -> Result<Self, Problem> {
        Ok(Self {
            domain: Domain::parse(&config.domain).map_err(|e| Problem::new("domain", e))?,
            tls: config.tls.clone(),
            federation: config.federation.clone(),
            peers: config.peer.clone(),
        })
    }

    /// The pair of the peer door: its own, or the client door's.
    fn peer_pair(&self) -> (&Path, &Path) {
        match (&self.tls.peer_certificate, &self.tls.peer_key) {
            (Some(certificate), Some(key)) => (certificate, key),
            _ => (&self.tls.certificate, &self.tls.key),
        }
    }

    fn trust_files(&self) -> impl Iterator<Item = &PathBuf> {
        let peers = self.peers.iter().flat_map(|p| &p.ca_files);
        let federation = self.federation.ca_files.iter();
        federation.chain(&self.federation.crl_files).chain(peers)
    }
}

/// The contents of all files of an identity as they were at one moment.
pub(super) struct Files {
    contents: HashMap<PathBuf, Result<Zeroizing<Vec<u8>>, String>>,
}

/// Stands for the settings and files that one part of an identity is made of.
pub(super) type Fingerprint = [u8; 32];

impl Files {
    pub(super) fn read(sources: &Sources) -> Self {
        let (peer_certificate, peer_key) = sources.peer_pair();
        let tls = &sources.tls;
        let paths = [&*tls.certificate, &*tls.key, peer_certificate, peer_key]
            .into_iter()
            .chain(sources.trust_files().map(PathBuf::as_path));
        let mut contents = HashMap::new();
        for path in paths {
            contents.entry(path.to_owned()).or_insert_with(|| {
                let read = std::fs::read(path).map(Zeroizing::new);
                read.map_err(|error| error.to_string())
            });
        }
        Self { contents }
    }

    fn get(&self, path: &Path) -> Result<&[u8], Problem> {
        match self.contents.get(path) {
            Some(Ok(bytes)) => Ok(bytes),
            Some(Err(error)) => Err(Problem::file(path, error)),
            None => Err(Problem::file(path, "was not read")),
        }
    }

    fn fingerprint<'a>(
        &self,
        settings: &str,
        paths: impl IntoIterator<Item = &'a Path>,
    ) -> Fingerprint {
        let mut whole = sha256(settings.as_bytes()).to_vec();
        for path in paths {
            whole.extend(sha256(path.as_os_str().as_encoded_bytes()));
            match self.contents.get(path) {
                Some(Ok(bytes)) => whole.extend(sha256(bytes)),
                Some(Err(error)) => whole.extend(sha256(error.as_bytes())),
                None => {}
            }
        }
        sha256(&whole)
    }
}

/// The pair that one door shows.
pub(super) struct Pair {
    pub(super) fingerprint: Fingerprint,
    pub(super) key: Result<Arc<CertifiedKey>, Problem>,
}

/// The pair of the client door.
pub(super) fn client_pair(sources: &Sources, files: &Files, provider: &CryptoProvider) -> Pair {
    let (certificate, key) = (&*sources.tls.certificate, &*sources.tls.key);
    Pair {
        fingerprint: files.fingerprint("", [certificate, key]),
        key: pair(files, certificate, key, provider).map(Arc::new),
    }
}

/// The pair of the peer door and of calls to peers; it must name our domain, or no peer takes it.
pub(super) fn peer_pair(sources: &Sources, files: &Files, provider: &CryptoProvider) -> Pair {
    let (certificate, key) = sources.peer_pair();
    let named = |pair: CertifiedKey| {
        let names = Trust::domains(&pair.cert).map_err(|e| Problem::file(certificate, e))?;
        if names.contains(&sources.domain) {
            return Ok(Arc::new(pair));
        }
        let reason = format!("names {names:?} but not {}", sources.domain);
        Err(Problem::file(certificate, reason))
    };
    Pair {
        fingerprint: files.fingerprint(sources.domain.as_str(), [certificate, key]),
        key: pair(files, certificate, key, provider).and_then(named),
    }
}

fn pair(
    files: &Files,
    certificate: &Path,
    key: &Path,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, Problem> {
    let chain = certificates(certificate, files.get(certificate)?)?;
    let private = PrivateKeyDer::from_pem_slice(files.get(key)?)
        .map_err(|_| Problem::file(key, "holds no private key in PEM"))?;
    CertifiedKey::from_der(chain, private, provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            Problem::file(key, format!("does not belong to {}", certificate.display()))
        }
        other => Problem::file(key, other),
    })
}

/// What other domains are measured by.
pub(super) fn trust(
    sources: &Sources,
    files: &Files,
    provider: &CryptoProvider,
) -> (Fingerprint, Result<Trust, Problem>) {
    let settings = format!("{:?}{:?}", sources.federation, sources.peers);
    let paths = sources.trust_files().map(PathBuf::as_path);
    (
        files.fingerprint(&settings, paths),
        build_trust(sources, files, provider),
    )
}

fn build_trust(
    sources: &Sources,
    files: &Files,
    provider: &CryptoProvider,
) -> Result<Trust, Problem> {
    let federation = &sources.federation;
    let listed = federation.domains.iter().map(|name| {
        Domain::parse(name).map_err(|_| Problem::new("federation.domains", format!("{name:?}")))
    });
    let mut peers = HashMap::new();
    for peer in &sources.peers {
        let domain = Domain::parse(&peer.domain)
            .map_err(|_| Problem::new("peer.domain", format!("{:?}", peer.domain)))?;
        if !peer.pins.is_empty() {
            let pins: Result<HashSet<_>, _> = peer.pins.iter().map(|pin| parse_pin(pin)).collect();
            peers.insert(domain, Anchors::Pins(pins?));
        } else if peer.public_roots || !peer.ca_files.is_empty() {
            let roots = roots(files, &peer.ca_files, peer.public_roots)?;
            peers.insert(domain, Anchors::roots(roots));
        }
    }
    let mut lists = Vec::new();
    for path in &federation.crl_files {
        lists.extend(revocation_lists(path, files.get(path)?)?);
    }
    let anchors = roots(files, &federation.ca_files, federation.public_roots)?;
    Ok(Trust {
        policy: federation.policy,
        listed: listed.collect::<Result<_, _>>()?,
        federation: Anchors::roots(anchors),
        peers,
        lists,
        algorithms: provider.signature_verification_algorithms.all,
    })
}

fn roots(files: &Files, paths: &[PathBuf], public: bool) -> Result<Vec<Root>, Problem> {
    let mut roots = Vec::new();
    for path in paths {
        for der in certificates(path, files.get(path)?)? {
            let anchor = webpki::anchor_from_trusted_cert(&der)
                .map_err(|_| Problem::file(path, "holds something that is no authority"))?
                .to_owned();
            let parsed = trust::parse(&der).map_err(|error| Problem::file(path, error))?;
            let validity = parsed.validity();
            let valid = Some((
                validity.not_before.timestamp(),
                validity.not_after.timestamp(),
            ));
            roots.push(Root { anchor, valid });
        }
    }
    if public {
        let known = webpki_roots::TLS_SERVER_ROOTS.iter().cloned();
        roots.extend(known.map(|anchor| Root {
            anchor,
            valid: None,
        }));
    }
    Ok(roots)
}

fn certificates(path: &Path, bytes: &[u8]) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    match parsed {
        Ok(chain) if !chain.is_empty() => Ok(chain),
        Ok(_) => Err(Problem::file(path, "holds no certificate in PEM")),
        Err(error) => Err(Problem::file(path, error)),
    }
}

/// Authorities publish their lists in either form.
fn revocation_lists(
    path: &Path,
    bytes: &[u8],
) -> Result<Vec<CertRevocationList<'static>>, Problem> {
    let pem: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(bytes).collect();
    let mut ders = pem.map_err(|error| Problem::file(path, error))?;
    if ders.is_empty() {
        ders.push(CertificateRevocationListDer::from(bytes.to_vec()));
    }
    ders.iter()
        .map(|der| {
            let list = OwnedCertRevocationList::from_der(der)
                .map_err(|error| Problem::file(path, format!("no revocation list: {error:?}")))?;
            Ok(list.into())
        })
        .collect()
}

fn parse_pin(pin: &str) -> Result<[u8; 32], Problem> {
    pin.strip_prefix("sha256/")
        .and_then(|text| STANDARD.decode(text).ok())
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(|| Problem::new("peer.pins", format!("{pin:?} is not sha256/ and base64")))
}

pub(super) fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, bytes).as_ref());
    hash
}
