//! A private certificate authority: throw-away for labs and tests, kept in files by `skiserver certs`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SerialNumber, date_time_ymd,
};
use zeroize::Zeroizing;

use super::{
    LabError,
    files::{self, Access},
};
use crate::clock::Clock;

/// One day in milliseconds.
pub const DAY_MS: i64 = 86_400_000;
/// How long an authority is valid.
const AUTHORITY_DAYS: i64 = 3_650;
/// How long a leaf is valid unless the request says otherwise.
pub const LEAF_DAYS: i64 = 90;
/// A certificate is valid from a little before it was made, because clocks differ.
const SLACK_MS: i64 = 3_600_000;
/// A revocation list names its successor's time; ours live this long.
const REVOCATION_LIST_DAYS: i64 = 30;

/// The number that names a certificate in a revocation list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Serial([u8; 16]);

impl Serial {
    /// A fresh random number, positive and always 16 bytes long.
    pub fn random() -> Self {
        let mut bytes: [u8; 16] = rand::random();
        let [first, ..] = &mut bytes;
        // With the top bit set the number would be encoded with one more byte, and comparisons fail.
        *first = (*first & 0x7f) | 0x40;
        Self(bytes)
    }

    fn number(&self) -> SerialNumber {
        SerialNumber::from_slice(&self.0)
    }
}

/// What a certificate may be used for, as its extended key usage says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// Answering connections.
    Server,
    /// Opening connections.
    Client,
}

/// What a new leaf certificate says.
#[derive(Debug, Clone)]
pub struct LeafRequest {
    /// The first DNS name; none if empty.
    pub domain: String,
    /// Further names; an IP address becomes one.
    pub extra_sans: Vec<String>,
    /// The extended key usages; the extension is absent if empty.
    pub usages: Vec<Usage>,
    /// Start of validity, Unix ms.
    pub not_before_at: i64,
    /// End of validity, Unix ms.
    pub not_after_at: i64,
    /// Its number.
    pub serial: Serial,
}

impl LeafRequest {
    /// A certificate for both directions that is valid now and for [`LEAF_DAYS`].
    pub fn new(domain: &str) -> Self {
        let now_ms = Clock::default().now_ms();
        Self {
            domain: domain.to_owned(),
            extra_sans: Vec::new(),
            usages: vec![Usage::Server, Usage::Client],
            not_before_at: now_ms - SLACK_MS,
            not_after_at: now_ms + LEAF_DAYS * DAY_MS,
            serial: Serial::random(),
        }
    }
}

/// A certificate and its private key, as PEM.
pub struct Issued {
    /// The leaf, then the authorities between it and the root.
    pub chain_pem: String,
    /// The private key.
    pub key_pem: Zeroizing<String>,
    /// The number under which it can be revoked.
    pub serial: Serial,
}

impl Issued {
    /// Writes the pair, the key first: a node that looks in between sees a mismatch and keeps the old pair.
    pub fn save(&self, certificate: &Path, key: &Path) -> Result<(), LabError> {
        files::write(key, self.key_pem.as_bytes(), Access::Owner)?;
        files::write(certificate, self.chain_pem.as_bytes(), Access::Public)
    }
}

/// A certificate authority with its private key.
pub struct Authority {
    certificate_pem: String,
    /// The certificates between a leaf and the root, which is left out: who trusts it has it.
    chain_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// A new root.
    pub fn generate(name: &str) -> Result<Self, LabError> {
        let key = KeyPair::generate()?;
        let params = authority(name);
        let certificate_pem = params.self_signed(&key)?.pem();
        Ok(Self {
            certificate_pem,
            chain_pem: String::new(),
            issuer: Issuer::new(params, key),
        })
    }

    /// A new authority below this one. Its leaves come with its certificate in their chain.
    pub fn subordinate(&self, name: &str) -> Result<Self, LabError> {
        let key = KeyPair::generate()?;
        let params = authority(name);
        let certificate_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Self {
            chain_pem: format!("{certificate_pem}{}", self.chain_pem),
            certificate_pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// A root that was made earlier.
    pub fn load(certificate_pem: &str, key_pem: &str) -> Result<Self, LabError> {
        let key = KeyPair::from_pem(key_pem)?;
        Ok(Self {
            certificate_pem: certificate_pem.to_owned(),
            chain_pem: String::new(),
            issuer: Issuer::from_ca_cert_pem(certificate_pem, key)?,
        })
    }

    /// The root that lies in `folder` as `ca.pem` and `ca.key`.
    pub fn open(folder: &Path) -> Result<Self, LabError> {
        let key_pem = Zeroizing::new(files::read(&key_file(folder))?);
        Self::load(&files::read(&certificate_file(folder))?, &key_pem)
    }

    /// Writes `ca.pem` and `ca.key` into `folder`.
    pub fn save(&self, folder: &Path) -> Result<(), LabError> {
        files::folder(folder)?;
        files::write(&key_file(folder), self.key_pem().as_bytes(), Access::Owner)?;
        files::write(
            &certificate_file(folder),
            self.certificate_pem.as_bytes(),
            Access::Public,
        )
    }

    /// What others have to trust.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The private key.
    pub fn key_pem(&self) -> Zeroizing<String> {
        Zeroizing::new(self.issuer.key().serialize_pem())
    }

    /// A new leaf with a new key.
    pub fn issue(&self, request: &LeafRequest) -> Result<Issued, LabError> {
        let domain = Some(&request.domain).filter(|name| !name.is_empty());
        let names: Vec<String> = domain
            .into_iter()
            .chain(&request.extra_sans)
            .cloned()
            .collect();
        let mut params = CertificateParams::new(names)?;
        params
            .distinguished_name
            .push(DnType::CommonName, request.domain.as_str());
        params.serial_number = Some(request.serial.number());
        params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(request.not_before_at);
        params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(request.not_after_at);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = request
            .usages
            .iter()
            .map(|usage| match usage {
                Usage::Server => ExtendedKeyUsagePurpose::ServerAuth,
                Usage::Client => ExtendedKeyUsagePurpose::ClientAuth,
            })
            .collect();
        let key = KeyPair::generate()?;
        let leaf_pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Issued {
            chain_pem: format!("{leaf_pem}{}", self.chain_pem),
            key_pem: Zeroizing::new(key.serialize_pem()),
            serial: request.serial.clone(),
        })
    }

    /// A revocation list of this authority, as PEM.
    pub fn revoke(&self, serials: &[Serial]) -> Result<String, LabError> {
        let now_ms = Clock::default().now_ms();
        let epoch = date_time_ymd(1970, 1, 1);
        let made_at = epoch + since_epoch(now_ms - SLACK_MS);
        let list = CertificateRevocationListParams {
            this_update: made_at,
            next_update: epoch + since_epoch(now_ms + REVOCATION_LIST_DAYS * DAY_MS),
            crl_number: SerialNumber::from_slice(&now_ms.to_be_bytes()),
            issuing_distribution_point: None,
            revoked_certs: serials
                .iter()
                .map(|serial| RevokedCertParams {
                    serial_number: serial.number(),
                    revocation_time: made_at,
                    reason_code: None,
                    invalidity_date: None,
                })
                .collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        Ok(list.signed_by(&self.issuer)?.pem()?)
    }
}

/// Where an authority's certificate lies in its folder.
pub fn certificate_file(folder: &Path) -> PathBuf {
    folder.join("ca.pem")
}

/// Where an authority's private key lies in its folder.
pub fn key_file(folder: &Path) -> PathBuf {
    folder.join("ca.key")
}

fn authority(name: &str) -> CertificateParams {
    let now_ms = Clock::default().now_ms();
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.serial_number = Some(Serial::random().number());
    params.not_before = date_time_ymd(1970, 1, 1) + since_epoch(now_ms - SLACK_MS);
    params.not_after = date_time_ymd(1970, 1, 1) + since_epoch(now_ms + AUTHORITY_DAYS * DAY_MS);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn since_epoch(at_ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(at_ms).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use crate::testing::Must as _;
    use rustls::pki_types::{
        CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime, pem::PemObject as _,
    };
    use webpki::{
        ALL_VERIFICATION_ALGS, BorrowedCertRevocationList, EndEntityCert, Error, KeyUsage,
        RevocationOptionsBuilder, anchor_from_trusted_cert,
    };

    use super::*;

    fn chain(pem: &str) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_bytes())
            .map(Result::unwrap)
            .collect()
    }

    fn verify(
        issued: &Issued,
        root: &Authority,
        usage: KeyUsage,
        crl: Option<&str>,
    ) -> Result<(), Error> {
        let certificates = chain(&issued.chain_pem);
        let roots = chain(root.certificate_pem());
        let anchor = anchor_from_trusted_cert(&roots[0]).must();
        let crl =
            crl.map(|pem| CertificateRevocationListDer::from_pem_slice(pem.as_bytes()).must());
        let lists: Vec<_> = crl
            .iter()
            .map(|der| BorrowedCertRevocationList::from_der(der).must().into())
            .collect();
        let lists: Vec<&_> = lists.iter().collect();
        let revocation =
            (!lists.is_empty()).then(|| RevocationOptionsBuilder::new(&lists).must().build());
        EndEntityCert::try_from(&certificates[0])?
            .verify_for_usage(
                ALL_VERIFICATION_ALGS,
                &[anchor],
                &certificates[1..],
                UnixTime::now(),
                usage,
                revocation,
                None,
            )
            .map(|_| ())
    }

    #[test]
    fn a_leaf_serves_both_directions_and_names_its_domain() {
        let root = Authority::generate("test").must();

        let leaf = root.issue(&LeafRequest::new("a.test")).must();

        assert_eq!(verify(&leaf, &root, KeyUsage::server_auth(), None), Ok(()));
        assert_eq!(verify(&leaf, &root, KeyUsage::client_auth(), None), Ok(()));
        let certificates = chain(&leaf.chain_pem);
        let name = rustls::pki_types::ServerName::try_from("a.test").must();
        EndEntityCert::try_from(&certificates[0])
            .must()
            .verify_is_valid_for_subject_name(&name)
            .must();
        PrivateKeyDer::from_pem_slice(leaf.key_pem.as_bytes()).must();
    }

    #[test]
    fn usages_are_what_was_asked_for_and_none_means_any() {
        let root = Authority::generate("test").must();
        let server = LeafRequest {
            usages: vec![Usage::Server],
            ..LeafRequest::new("a.test")
        };
        let silent = LeafRequest {
            usages: Vec::new(),
            ..LeafRequest::new("a.test")
        };

        let server = root.issue(&server).must();
        let silent = root.issue(&silent).must();

        assert_eq!(
            verify(&server, &root, KeyUsage::server_auth(), None),
            Ok(())
        );
        assert!(verify(&server, &root, KeyUsage::client_auth(), None).is_err());
        assert_eq!(
            verify(&silent, &root, KeyUsage::server_auth(), None),
            Ok(())
        );
        assert_eq!(
            verify(&silent, &root, KeyUsage::client_auth(), None),
            Ok(())
        );
    }

    #[test]
    fn a_leaf_of_a_subordinate_brings_its_chain() {
        let root = Authority::generate("root").must();
        let below = root.subordinate("below").must();
        let lowest = below.subordinate("lowest").must();

        let leaf = lowest.issue(&LeafRequest::new("a.test")).must();

        assert_eq!(chain(&leaf.chain_pem).len(), 3);
        assert_eq!(verify(&leaf, &root, KeyUsage::server_auth(), None), Ok(()));
    }

    #[test]
    fn an_expired_leaf_is_expired() {
        let root = Authority::generate("test").must();
        let mut request = LeafRequest::new("a.test");
        request.not_after_at = request.not_before_at + 1_000;

        let leaf = root.issue(&request).must();

        let refused = verify(&leaf, &root, KeyUsage::server_auth(), None);
        assert!(
            matches!(refused, Err(Error::CertExpired { .. })),
            "{refused:?}"
        );
    }

    #[test]
    fn only_the_listed_serials_are_revoked() {
        let root = Authority::generate("test").must();
        let good = root.issue(&LeafRequest::new("a.test")).must();
        let bad = root.issue(&LeafRequest::new("a.test")).must();

        let crl = root.revoke(std::slice::from_ref(&bad.serial)).must();

        assert_eq!(
            verify(&good, &root, KeyUsage::server_auth(), Some(&crl)),
            Ok(())
        );
        let refused = verify(&bad, &root, KeyUsage::server_auth(), Some(&crl));
        assert_eq!(refused, Err(Error::CertRevoked));
    }

    #[test]
    fn an_authority_read_back_from_its_files_is_the_same() {
        let dir = tempfile::tempdir().must();
        let root = Authority::generate("test").must();
        root.save(dir.path()).must();

        let again = Authority::open(dir.path()).must();

        let leaf = again.issue(&LeafRequest::new("a.test")).must();
        assert_eq!(verify(&leaf, &root, KeyUsage::server_auth(), None), Ok(()));
        let crl = again.revoke(std::slice::from_ref(&leaf.serial)).must();
        let refused = verify(&leaf, &root, KeyUsage::server_auth(), Some(&crl));
        assert_eq!(refused, Err(Error::CertRevoked));
    }

    #[test]
    fn serials_are_positive_and_full_length() {
        for _ in 0..100 {
            let bytes = Serial::random().number().to_bytes();
            assert_eq!(bytes.len(), 16);
            assert!((0x40..0x80).contains(&bytes[0]), "{bytes:?}");
        }
    }
}
