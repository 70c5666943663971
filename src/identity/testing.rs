//! Throw-away authorities, certificates and nodes' folders for the tests of everything that speaks TLS.

use crate::testing::Must as _;

use std::{net::SocketAddr, path::PathBuf, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, PublicKeyData,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Identity, load::sha256};
use crate::{address::Domain, clock::Clock, config::Config};

/// An authority that makes what a test asks for.
pub(crate) struct Authority(CertifiedIssuer<'static, KeyPair>);

/// A certificate with its key.
pub(crate) struct Leaf {
    pub(crate) certificate: String,
    pub(crate) key: String,
    pub(crate) der: CertificateDer<'static>,
    pub(crate) pin: String,
}

/// What a leaf is like; the default is valid, for both purposes, with the serial number 1.
pub(crate) struct Wish {
    pub(crate) purposes: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) serial: u64,
    pub(crate) years: (i32, i32),
    pub(crate) is_ca: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            purposes: vec![
                ExtendedKeyUsagePurpose::ServerAuth,
                ExtendedKeyUsagePurpose::ClientAuth,
            ],
            serial: 1,
            years: (2020, 2120),
            is_ca: false,
        }
    }
}

impl Authority {
    pub(crate) fn new(name: &str) -> Self {
        Self::until(name, 2120)
    }

    pub(crate) fn until(name: &str, year: i32) -> Self {
        let key = KeyPair::generate().must();
        Self(CertifiedIssuer::self_signed(authority(name, year), key).must())
    }

    /// An authority below this one.
    pub(crate) fn below(&self, name: &str) -> Self {
        let key = KeyPair::generate().must();
        Self(CertifiedIssuer::signed_by(authority(name, 2120), key, &self.0).must())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn der(&self) -> CertificateDer<'static> {
        self.0.der().clone()
    }

    pub(crate) fn issue(&self, names: &[&str]) -> Leaf {
        self.grant(names, Wish::default())
    }

    pub(crate) fn grant(&self, names: &[&str], wish: Wish) -> Leaf {
        let names: Vec<String> = names.iter().map(|n| (*n).to_owned()).collect();
        let mut params = CertificateParams::new(names).must();
        params.serial_number = Some(SerialNumber::from(wish.serial));
        params.extended_key_usages = wish.purposes;
        params.not_before = date_time_ymd(wish.years.0, 1, 1);
        params.not_after = date_time_ymd(wish.years.1, 1, 1);
        if wish.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        let key = KeyPair::generate().must();
        let certificate = params.signed_by(&key, &self.0).must();
        Leaf {
            certificate: certificate.pem(),
            der: certificate.der().clone(),
            pin: format!(
                "sha256/{}",
                STANDARD.encode(sha256(&key.subject_public_key_info()))
            ),
            key: key.serialize_pem(),
        }
    }

    /// A revocation list in PEM, good until the start of `until`.
    pub(crate) fn revoke(&self, serials: &[u64], until: i32) -> String {
        let revoked = serials.iter().map(|serial| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: date_time_ymd(2021, 1, 1),
            reason_code: None,
            invalidity_date: None,
        });
        let params = CertificateRevocationListParams {
            this_update: date_time_ymd(2020, 1, 1),
            next_update: date_time_ymd(until, 1, 1),
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        params.signed_by(&self.0).must().pem().must()
    }
}

fn authority(name: &str, until: i32) -> CertificateParams {
    let mut params = CertificateParams::new(Vec::new()).must();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(until, 1, 1);
    params
}

/// The folder and the configuration of a node that exists only in a test.
pub(crate) struct Folder {
    root: tempfile::TempDir,
    pub(crate) config: Config,
    pub(crate) clock: Clock,
}

impl Folder {
    /// A node of `domain` that shows `leaf` and trusts `authority`.
    pub(crate) fn new(domain: &str, leaf: &Leaf, authority: &Authority) -> Self {
        let folder = tempfile::tempdir().must();
        let text = format!(
            "domain = {domain:?}\ncodes = {{ delivery = \"file\", file = {{ path = \"codes\" }} }}\n\
             tls = {{ certificate = \"node.pem\", key = \"node.key\" }}\n\
             federation = {{ ca_files = [\"ca.pem\"], public_roots = false }}\n"
        );
        let file = folder.path().join("skiserver.toml");
        std::fs::write(&file, text).must();
        let made = Self {
            config: Config::load(&file).must(),
            root: folder,
            clock: Clock::default(),
        };
        made.show(leaf);
        made.write("ca.pem", &authority.pem());
        made
    }

    /// Replaces the certificate and its key.
    pub(crate) fn show(&self, leaf: &Leaf) {
        self.write("node.pem", &leaf.certificate);
        self.write("node.key", &leaf.key);
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.root.path().join(name);
        std::fs::write(&path, text).must();
        path
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        Arc::new(Identity::load(&self.config, &self.clock).must())
    }
}

/// Nodes of a.test and b.test under one authority.
pub(crate) fn two_nodes() -> (Folder, Folder, Authority) {
    let authority = Authority::new("shared");
    let node = |domain: &str| Folder::new(domain, &authority.issue(&[domain]), &authority);
    let (a, b) = (node("a.test"), node("b.test"));
    (a, b, authority)
}

/// Connects to `address` with TLS as `own`, expecting `domain` there.
pub(crate) async fn dial(
    own: &Identity,
    domain: &str,
    address: SocketAddr,
) -> std::io::Result<TlsStream<TcpStream>> {
    let handshake = own.current().dial(&Domain::parse(domain).must());
    let tcp = TcpStream::connect(address).await?;
    let name = ServerName::try_from(domain.to_owned()).must();
    TlsConnector::from(handshake.config)
        .connect(name, tcp)
        .await
}
