//! TLS as both doors and the dialler speak it: version 1.3, HTTP/2, no resumption (a resumed session would
//! skip the certificates), and certificates of other domains judged by [`Trust`].

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, DistinguishedName,
    ServerConfig, SignatureScheme, WantsVerifier,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{self, CryptoProvider},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::{
        NoServerSessionStorage,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::{CertifiedKey, SingleCertAndKey},
    time_provider::TimeProvider,
};

use super::{
    trust::{Reason, Trust},
    unix_time,
};
use crate::{address::Domain, clock::Clock};

/// A configuration for one handshake, and afterwards why it refused the other side's certificate.
pub struct Handshake<C> {
    /// What rustls works with.
    pub config: Arc<C>,
    refused: Arc<OnceLock<Reason>>,
}

impl<C> Handshake<C> {
    /// Why the other side's certificate was refused, if it was.
    pub fn refused(&self) -> Option<&Reason> {
        self.refused.get()
    }
}

/// The parts of a configuration that stay the same for the life of a node.
pub(super) struct Builders {
    provider: Arc<CryptoProvider>,
    server: ConfigBuilder<ServerConfig, WantsVerifier>,
    client: ConfigBuilder<ClientConfig, WantsVerifier>,
}

impl Builders {
    pub(super) fn new(clock: &Clock) -> Result<Self, rustls::Error> {
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let time: Arc<dyn TimeProvider> = Arc::new(ClockTime(clock.clone()));
        let versions = [&rustls::version::TLS13];
        Ok(Self {
            server: ServerConfig::builder_with_details(provider.clone(), time.clone())
                .with_protocol_versions(&versions)?,
            client: ClientConfig::builder_with_details(provider.clone(), time)
                .with_protocol_versions(&versions)?,
            provider,
        })
    }

    pub(super) fn provider(&self) -> &CryptoProvider {
        &self.provider
    }

    /// The client door asks for no certificate.
    pub(super) fn client_door(&self, own: &Arc<CertifiedKey>) -> Arc<ServerConfig> {
        let config = self.server.clone().with_no_client_auth();
        let own = Arc::new(SingleCertAndKey::from(own.clone()));
        Arc::new(without_resumption(config.with_cert_resolver(own)))
    }

    /// The peer door wants a certificate that speaks for some domain; which one is decided per request.
    pub(super) fn peer_door(
        &self,
        own: &Arc<CertifiedKey>,
        trust: &Arc<Trust>,
    ) -> Handshake<ServerConfig> {
        let verifier = self.verifier(trust, None);
        let refused = verifier.refused.clone();
        let config = self
            .server
            .clone()
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(own.clone())));
        Handshake {
            config: Arc::new(without_resumption(config)),
            refused,
        }
    }

    /// A call to `domain` presents our certificate and wants one that speaks for exactly that domain.
    pub(super) fn dial(
        &self,
        own: &Arc<CertifiedKey>,
        trust: &Arc<Trust>,
        domain: &Domain,
    ) -> Handshake<ClientConfig> {
        let verifier = self.verifier(trust, Some(domain.clone()));
        let refused = verifier.refused.clone();
        let mut config = self
            .client
            .clone()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(own.clone())));
        config.resumption = Resumption::disabled();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Handshake {
            config: Arc::new(config),
            refused,
        }
    }

    fn verifier(&self, trust: &Arc<Trust>, wanted: Option<Domain>) -> Verifier {
        Verifier {
            trust: trust.clone(),
            wanted,
            provider: self.provider.clone(),
            refused: Arc::default(),
        }
    }
}

fn without_resumption(mut config: ServerConfig) -> ServerConfig {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// Validity is judged by the node's clock.
#[derive(Debug)]
struct ClockTime(Clock);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        Some(unix_time(self.0.now_ms()))
    }
}

/// Judges the other side of one handshake. Without a wanted domain any that is proved will do.
struct Verifier {
    trust: Arc<Trust>,
    wanted: Option<Domain>,
    provider: Arc<CryptoProvider>,
    refused: Arc<OnceLock<Reason>>,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").finish_non_exhaustive()
    }
}

impl Verifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let mut chain = vec![leaf.clone()];
        chain.extend_from_slice(above);
        let outcome = match &self.wanted {
            Some(domain) => self.trust.verify(&chain, domain, now),
            None => self.trust.verified(&chain, now).map(drop),
        };
        outcome.map_err(|reason| {
            let alert = alert(&reason);
            // A handshake verifies once, so the first reason is the only one.
            let _ = self.refused.set(reason);
            alert.into()
        })
    }

    fn tls13(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        crypto::verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Picks the alert that tells the other side's operator most.
fn alert(reason: &Reason) -> CertificateError {
    match reason {
        Reason::Missing | Reason::Malformed => CertificateError::BadEncoding,
        Reason::Nameless | Reason::TooManyNames | Reason::OtherName { .. } => {
            CertificateError::NotValidForName
        }
        Reason::UnknownIssuer | Reason::NotPinned => CertificateError::UnknownIssuer,
        Reason::Expired => CertificateError::Expired,
        Reason::NotYetValid => CertificateError::NotValidYet,
        Reason::Revoked => CertificateError::Revoked,
        Reason::StaleList | Reason::ForeignList => CertificateError::ExpiredRevocationList,
        Reason::Purpose => CertificateError::InvalidPurpose,
        Reason::Chain(_) => CertificateError::BadSignature,
    }
}

/// Neither side offers TLS 1.2, so nobody can ask for this.
fn no_tls12() -> rustls::Error {
    rustls::Error::General("TLS 1.2 is not spoken here".to_owned())
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(leaf, above, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}

impl ClientCertVerifier for Verifier {
    /// No hints: a dialler has one certificate, whoever issued it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        above: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(leaf, above, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.tls13(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }
}
