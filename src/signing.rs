//! The server's signing keys: the certificate in every registration, one signature on each pre-key bundle and
//! on each delivered message (contract section 4). `XEd25519`; the key that counts is the one that the receiving
//! device was registered with, so old keys are kept.

use std::{collections::HashMap, sync::Arc};

use aws_lc_rs::digest;
use prost::Message as _;
use xeddsa::{ConvertMont as _, Sign as _};
use zeroize::Zeroizing;

use crate::{
    address::Home,
    clock::Clock,
    error::{Error, Result},
    payload,
    proto::skissm::{
        Cert, Certificate, DsAlgType, HashAlgType, PreKeyBundle, ProtoMsg, ServerSignedSignature,
        Subject,
    },
    store::{Store, server_keys},
};

/// SHA-256 over the concatenation of `parts`.
pub fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(part);
    }
    let mut hash = [0; 32];
    hash.iter_mut()
        .zip(context.finish().as_ref())
        .for_each(|(to, from)| *to = *from);
    hash
}

/// Signs fingerprints. A trait, so that another algorithm can take its place for new devices.
pub trait SigningKey: Send + Sync {
    /// What the client is told to verify with.
    fn algorithm(&self) -> DsAlgType;
    /// The raw public key.
    fn public(&self) -> &[u8];
    /// A signature over the 32 bytes themselves.
    fn sign(&self, fingerprint: &[u8; 32]) -> Vec<u8>;
}

/// `XEd25519`: an X25519 key pair that signs.
pub struct XEd25519 {
    private: Zeroizing<[u8; 32]>,
    public: [u8; 32],
}

impl XEd25519 {
    /// A fresh key.
    pub fn generate() -> Self {
        Self::from_private(Zeroizing::new(rand::random()))
    }

    /// The key with these private bytes.
    pub fn from_private(private: Zeroizing<[u8; 32]>) -> Self {
        let secret = x25519_dalek::StaticSecret::from(*private);
        let public = x25519_dalek::PublicKey::from(&secret).to_bytes();
        Self { private, public }
    }

    /// The private bytes, for the store.
    pub fn private(&self) -> &[u8; 32] {
        &self.private
    }
}

impl SigningKey for XEd25519 {
    fn algorithm(&self) -> DsAlgType {
        DsAlgType::Curve25519
    }

    fn public(&self) -> &[u8] {
        &self.public
    }

    fn sign(&self, fingerprint: &[u8; 32]) -> Vec<u8> {
        let key = xeddsa::xed25519::PrivateKey::from(&*self.private);
        let signature: [u8; 64] = key.sign(fingerprint, rand::rng());
        signature.to_vec()
    }
}

/// Whether `signature` over `message` verifies under an X25519 public key. The Edwards sign bit travels in the
/// top bit of the signature, as the client library writes it; plain `XEd25519` has it clear.
pub fn verify_xed25519(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let (Ok(public), Ok(mut signature)) = (
        <[u8; 32]>::try_from(public),
        <[u8; 64]>::try_from(signature),
    ) else {
        return false;
    };
    let [.., last] = &mut signature;
    let sign = *last >> 7;
    *last &= 0x7f;
    let Ok(edwards) = xeddsa::xed25519::PublicKey(public).convert_mont(sign) else {
        return false;
    };
    let Ok(key) = ed25519_dalek::VerifyingKey::from_bytes(&edwards) else {
        return false;
    };
    let signature = ed25519_dalek::Signature::from_bytes(&signature);
    ed25519_dalek::Verifier::verify(&key, message, &signature).is_ok()
}

/// A key with the certificate that devices were given for it.
pub struct ServerKey {
    key_id: i64,
    key: Box<dyn SigningKey>,
    certificate: Certificate,
}

impl ServerKey {
    fn sign(&self, fingerprint: [u8; 32]) -> ServerSignedSignature {
        ServerSignedSignature {
            version: self.certificate.version,
            hash_alg: HashAlgType::Sha2256.into(),
            signing_alg: self.key.algorithm().into(),
            signer: self
                .certificate
                .cert
                .as_ref()
                .and_then(|cert| cert.issuee.clone()),
            signing_public_key_fingerprint: sha256(&[self.key.public()]).to_vec().into(),
            msg_fingerprint: fingerprint.to_vec().into(),
            signature: self.key.sign(&fingerprint).into(),
        }
    }
}

/// All signing keys of the node; the newest is given to new devices.
pub struct Signer {
    keys: HashMap<i64, Arc<ServerKey>>,
    newest: Arc<ServerKey>,
}

/// How long a certificate says it lives. No client reads it; people do.
const CERTIFICATE_DAYS: i64 = 3_650;
const DAY_MS: i64 = 86_400_000;

impl Signer {
    /// Loads all keys, and makes the first one if there is none.
    pub async fn load(store: &Store, home: &Home, operator: &str, clock: &Clock) -> Result<Self> {
        if server_keys::all(store).await?.is_empty() {
            Self::rotate(store, home, operator, clock).await?;
        }
        let mut keys = HashMap::new();
        let mut newest: Option<Arc<ServerKey>> = None;
        for row in server_keys::all(store).await? {
            let private =
                <[u8; 32]>::try_from(row.private_key.as_slice()).map_err(Error::internal)?;
            let key = Arc::new(ServerKey {
                key_id: row.key_id,
                key: Box::new(XEd25519::from_private(Zeroizing::new(private))),
                certificate: Certificate::decode(row.certificate).map_err(Error::internal)?,
            });
            keys.insert(row.key_id, Arc::clone(&key));
            newest = Some(key);
        }
        let newest = newest.ok_or_else(|| Error::internal("no signing key"))?;
        Ok(Self { keys, newest })
    }

    /// Stores a fresh key, which devices that register after the next start are given.
    pub async fn rotate(store: &Store, home: &Home, operator: &str, clock: &Clock) -> Result<()> {
        let key = XEd25519::generate();
        let certificate = self_signed(&key, home, operator, clock.now_ms());
        let algorithm = i64::from(i32::from(key.algorithm()));
        let certificate = certificate.encode_to_vec();
        server_keys::insert(
            store,
            algorithm,
            key.public(),
            key.private(),
            certificate,
            clock.now_ms(),
        )
        .await
    }

    /// What a device that registers now is given: the key's id for its row, and the certificate.
    pub fn certificate(&self) -> (i64, Certificate) {
        (self.newest.key_id, self.newest.certificate.clone())
    }

    /// Signs a bundle for a device that was registered with this key.
    pub fn sign_bundle(&self, key_id: i64, bundle: &mut PreKeyBundle) -> Result<()> {
        bundle.signature = Some(self.key(key_id)?.sign(bundle_fingerprint(bundle)));
        Ok(())
    }

    /// Puts the one signature on a message whose tag and receiver are final.
    pub fn sign_message(&self, key_id: i64, message: &mut ProtoMsg) -> Result<()> {
        message.signature_list = vec![self.key(key_id)?.sign(message_fingerprint(message))];
        Ok(())
    }

    fn key(&self, key_id: i64) -> Result<&ServerKey> {
        self.keys
            .get(&key_id)
            .map(AsRef::as_ref)
            .ok_or_else(|| Error::internal("a device refers to no signing key"))
    }
}

fn self_signed(key: &XEd25519, home: &Home, operator: &str, now: i64) -> Certificate {
    let subject = Subject {
        cn: home.name().to_owned(),
        domain: home.name().to_owned(),
        o: operator.to_owned(),
        ou: Vec::new(),
    };
    let cert = Cert {
        issuer: Some(subject.clone()),
        not_before: now,
        not_after: now + CERTIFICATE_DAYS * DAY_MS,
        issuee: Some(subject),
        public_key_alg: key.algorithm().into(),
        public_key: key.public().to_vec().into(),
    };
    let fingerprint = sha256(&[&cert.encode_to_vec()]);
    Certificate {
        version: 1,
        hash_alg: HashAlgType::Sha2256.into(),
        signing_alg: key.algorithm().into(),
        cert: Some(cert),
        cert_fingerprint: fingerprint.to_vec().into(),
        signing_public_key_fingerprint: sha256(&[key.public()]).to_vec().into(),
        signature: key.sign(&fingerprint).into(),
        ts: now,
        valid: true,
    }
}

fn encoded<M: prost::Message>(part: Option<&M>) -> Vec<u8> {
    part.map(prost::Message::encode_to_vec).unwrap_or_default()
}

/// SHA-256 over address, identity keys, signed pre-key and, if present, one-time key.
pub fn bundle_fingerprint(bundle: &PreKeyBundle) -> [u8; 32] {
    sha256(&[
        &encoded(bundle.user_address.as_ref()),
        &encoded(bundle.identity_key_public.as_ref()),
        &encoded(bundle.signed_pre_key_public.as_ref()),
        &encoded(bundle.one_time_pre_key_public.as_ref()),
    ])
}

/// SHA-256 over tag, sender, receiver and payload.
pub fn message_fingerprint(message: &ProtoMsg) -> [u8; 32] {
    sha256(&[
        &encoded(message.tag.as_ref()),
        &encoded(message.from.as_ref()),
        &encoded(message.to.as_ref()),
        &message
            .payload
            .as_ref()
            .map(payload::encoded)
            .unwrap_or_default(),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signature_verifies_under_its_own_key_and_no_other() {
        let (ours, other) = (XEd25519::generate(), XEd25519::generate());
        let fingerprint = sha256(&[b"message"]);

        let signature = ours.sign(&fingerprint);

        assert!(verify_xed25519(ours.public(), &fingerprint, &signature));
        assert!(!verify_xed25519(other.public(), &fingerprint, &signature));
        assert!(!verify_xed25519(
            ours.public(),
            b"another message",
            &signature
        ));
    }

    #[test]
    fn the_sign_bit_of_the_client_library_is_honoured() {
        // The library signs with the private key as it is and reports the sign of the Edwards point.
        let (private, public) = loop {
            let private: [u8; 32] = rand::random();
            let key = xeddsa::xed25519::PrivateKey::from(&private);
            let (kept, _) = xeddsa::CalculateKeyPair::calculate_key_pair(&key, 1);
            let clamped = x25519_dalek::StaticSecret::from(private);
            if kept != private {
                break (private, x25519_dalek::PublicKey::from(&clamped).to_bytes());
            }
        };
        let negated = xeddsa::xed25519::PrivateKey::from(&private);
        let signature: [u8; 64] = negated.sign(b"spk", rand::rng());
        let mut flipped = signature;
        flipped[63] |= 0x80;

        assert!(verify_xed25519(&public, b"spk", &signature));
        assert!(
            !verify_xed25519(&public, b"spk", &flipped),
            "the bit names another point"
        );
    }
}
