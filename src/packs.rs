//! Cipher packs: what the number of a pack says about its keys (contract section 3.1). Client libraries read
//! keys with the lengths that the pack implies, so whatever is not exactly that long stops here.

use std::collections::HashSet;

use crate::{
    error::{Error, Result},
    limits,
    proto::skissm::{
        AcceptMsg, IdentityKeyPublic, InviteMsg, OneTimePreKeyPublic, SignedPreKeyPublic,
    },
    signing,
};

/// The only version that is in use.
const VERSION: u8 = 0;
/// SHA-256, the only hash that client libraries have.
const HASH: u8 = 1;
/// AES-256-GCM, the only symmetric cipher that they have.
const SYMMETRIC: u8 = 0;
/// The signature algorithm that this node can verify.
const CURVE25519: u8 = 0;

/// How long signatures of an algorithm are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Length {
    Exactly(usize),
    AtMost(usize),
}

impl Length {
    fn fits(self, bytes: usize) -> bool {
        match self {
            Self::Exactly(length) => bytes == length,
            Self::AtMost(length) => (1..=length).contains(&bytes),
        }
    }
}

/// A pack that devices can register with: the sizes that its numbers stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pack {
    signature_algorithm: u8,
    sign_public_bytes: usize,
    signature: Length,
    kem_public_bytes: usize,
    kem_ciphertext_bytes: usize,
}

impl Pack {
    /// Reads a pack's number. Unknown algorithms are refused, as are KEMs that no client can use: Curve25519 is
    /// switched off in the client library, and the keys of `McEliece` are too large for any request.
    pub fn parse(e2ee_pack_id: u32) -> Result<Self> {
        let [version, signature_algorithm, kem, ciphers] = e2ee_pack_id.to_be_bytes();
        let known = version == VERSION && ciphers == (SYMMETRIC << 4 | HASH);
        match (known, signature(signature_algorithm), kem_lengths(kem)) {
            (
                true,
                Some((sign_public_bytes, signature)),
                Some((kem_public_bytes, kem_ciphertext_bytes)),
            ) => Ok(Self {
                signature_algorithm,
                sign_public_bytes,
                signature,
                kem_public_bytes,
                kem_ciphertext_bytes,
            }),
            _ => Err(Error::Invalid("e2ee_pack_id")),
        }
    }

    /// Refuses identity keys of another length.
    pub fn check_identity(&self, identity: &IdentityKeyPublic) -> Result<()> {
        if identity.asym_public_key.len() != self.kem_public_bytes {
            return Err(Error::Invalid("asym_public_key"));
        }
        if identity.sign_public_key.len() != self.sign_public_bytes {
            return Err(Error::Invalid("sign_public_key"));
        }
        Ok(())
    }

    /// Refuses a signed pre-key of another length, and a wrong signature if its algorithm is one that this node
    /// implements; peers verify it anyway.
    pub fn check_signed(&self, sign_public_key: &[u8], spk: &SignedPreKeyPublic) -> Result<()> {
        if spk.spk_id == 0 {
            return Err(Error::Invalid("spk_id"));
        }
        if spk.public_key.len() != self.kem_public_bytes {
            return Err(Error::Invalid("signed pre-key"));
        }
        let verifies = self.signature_algorithm != CURVE25519
            || signing::verify_xed25519(sign_public_key, &spk.public_key, &spk.signature);
        if self.signature.fits(spk.signature.len()) && verifies {
            Ok(())
        } else {
            Err(Error::Invalid("signature of the signed pre-key"))
        }
    }

    /// Refuses the keys and secrets of an invite that have another length: its receiver would read past them.
    pub fn check_invite(&self, invite: &InviteMsg) -> Result<()> {
        if invite.alice_identity_key.len() != self.kem_public_bytes {
            return Err(Error::Invalid("alice_identity_key"));
        }
        if invite.alice_base_key.len() != self.kem_public_bytes {
            return Err(Error::Invalid("alice_base_key"));
        }
        let is_whole = |secret: &bytes::Bytes| secret.len() == self.kem_ciphertext_bytes;
        if !invite.pre_shared_input_list.iter().all(is_whole) {
            return Err(Error::Invalid("pre_shared_input_list"));
        }
        Ok(())
    }

    /// Refuses the ciphertext and key of an accept that have another length.
    pub fn check_accept(&self, accept: &AcceptMsg) -> Result<()> {
        if accept.encaps_ciphertext.len() != self.kem_ciphertext_bytes {
            return Err(Error::Invalid("encaps_ciphertext"));
        }
        if accept.ratchet_key.len() != self.kem_public_bytes {
            return Err(Error::Invalid("ratchet_key"));
        }
        Ok(())
    }

    /// Refuses one-time keys that are too many, of another length, or without an id of their own.
    pub fn check_one_time(&self, opks: &[OneTimePreKeyPublic]) -> Result<()> {
        if opks.len() > limits::OPKS_PER_REQUEST_MAX {
            return Err(Error::Invalid("number of one-time pre-keys"));
        }
        let mut ids = HashSet::with_capacity(opks.len());
        if !opks
            .iter()
            .all(|opk| opk.opk_id != 0 && ids.insert(opk.opk_id))
        {
            return Err(Error::Invalid("opk_id"));
        }
        if opks
            .iter()
            .any(|opk| opk.public_key.len() != self.kem_public_bytes)
        {
            return Err(Error::Invalid("one-time pre-key"));
        }
        Ok(())
    }
}

/// Checks everything that a device shows of its keys against its pack.
pub fn check_public_keys(
    e2ee_pack_id: u32,
    identity: &IdentityKeyPublic,
    spk: &SignedPreKeyPublic,
    opks: &[OneTimePreKeyPublic],
) -> Result<()> {
    let pack = Pack::parse(e2ee_pack_id)?;
    pack.check_identity(identity)?;
    pack.check_signed(&identity.sign_public_key, spk)?;
    pack.check_one_time(opks)
}

/// Bytes of a public key and of a signature, by `DsAlgType`.
fn signature(algorithm: u8) -> Option<(usize, Length)> {
    Some(match algorithm {
        CURVE25519 => (32, Length::Exactly(64)),
        // Dilithium 2, 3, 5
        1 => (1_312, Length::Exactly(2_420)),
        9 => (1_952, Length::Exactly(3_309)),
        17 => (2_592, Length::Exactly(4_627)),
        // Falcon 512, 1024: signatures vary in length
        33 => (897, Length::AtMost(752)),
        41 => (1_793, Length::AtMost(1_462)),
        // SPHINCS+ 128, 192, 256, fast and small, with SHA2 or SHAKE
        65 | 89 => (32, Length::Exactly(17_088)),
        69 | 93 => (32, Length::Exactly(7_856)),
        73 | 97 => (48, Length::Exactly(35_664)),
        77 | 101 => (48, Length::Exactly(16_224)),
        81 | 105 => (64, Length::Exactly(49_856)),
        85 | 109 => (64, Length::Exactly(29_792)),
        _ => return None,
    })
}

/// Bytes of a public key and of a ciphertext, by `KemAlgType`.
fn kem_lengths(algorithm: u8) -> Option<(usize, usize)> {
    Some(match algorithm {
        // HQC 128, 192, 256
        1 => (2_249, 4_433),
        9 => (4_522, 8_978),
        17 => (7_245, 14_421),
        // Kyber 512, 768, 1024
        33 => (800, 768),
        41 => (1_184, 1_088),
        49 => (1_568, 1_568),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signing::{SigningKey as _, XEd25519};
    use crate::testing::Must as _;

    /// What client libraries register with unless told otherwise.
    const DEFAULT: u32 = 0x0011_3101;
    /// Curve25519 signatures with Kyber1024.
    const CLASSIC: u32 = 0x0000_3101;

    fn identity(asym: usize, sign: usize) -> IdentityKeyPublic {
        IdentityKeyPublic {
            asym_public_key: vec![1; asym].into(),
            sign_public_key: vec![2; sign].into(),
        }
    }

    fn spk(public: usize, signature: usize) -> SignedPreKeyPublic {
        SignedPreKeyPublic {
            spk_id: 1,
            public_key: vec![3; public].into(),
            signature: vec![4; signature].into(),
        }
    }

    fn opk(opk_id: u32, public: usize) -> OneTimePreKeyPublic {
        OneTimePreKeyPublic {
            opk_id,
            public_key: vec![5; public].into(),
        }
    }

    fn names(result: Result<()>, field: &'static str) -> bool {
        result.is_err_and(|error| matches!(error, Error::Invalid(name) if name == field))
    }

    #[test]
    fn the_default_pack_takes_keys_of_its_own_lengths_only() {
        let pack = Pack::parse(DEFAULT).must();

        assert!(
            check_public_keys(
                DEFAULT,
                &identity(1568, 2592),
                &spk(1568, 4627),
                &[opk(1, 1568), opk(2, 1568)]
            )
            .is_ok()
        );
        assert!(names(
            pack.check_identity(&identity(1567, 2592)),
            "asym_public_key"
        ));
        assert!(names(
            pack.check_identity(&identity(1568, 0)),
            "sign_public_key"
        ));
        assert!(names(
            pack.check_signed(&[], &spk(800, 4627)),
            "signed pre-key"
        ));
        assert!(names(
            pack.check_signed(&[], &spk(1568, 4626)),
            "signature of the signed pre-key"
        ));
        let mut without_id = spk(1568, 4627);
        without_id.spk_id = 0;
        assert!(names(pack.check_signed(&[], &without_id), "spk_id"));
    }

    #[test]
    fn one_time_keys_need_ids_of_their_own() {
        let pack = Pack::parse(DEFAULT).must();

        assert!(pack.check_one_time(&[]).is_ok());
        assert!(names(pack.check_one_time(&[opk(0, 1568)]), "opk_id"));
        assert!(names(
            pack.check_one_time(&[opk(7, 1568), opk(7, 1568)]),
            "opk_id"
        ));
        assert!(names(
            pack.check_one_time(&[opk(7, 1567)]),
            "one-time pre-key"
        ));
        let many: Vec<_> = (1..=1_001).map(|id| opk(id, 1568)).collect();
        assert!(names(
            pack.check_one_time(&many),
            "number of one-time pre-keys"
        ));
    }

    #[test]
    fn packs_that_no_client_can_use_are_refused() {
        for (what, id) in [
            ("a Curve25519 KEM", 0x0011_0001),
            ("McEliece", 0x0011_4101),
            ("the largest McEliece", 0x0011_6501),
            ("an unknown KEM", 0x0011_3201),
            ("an unknown signature algorithm", 0x0002_3101),
            ("another hash", 0x0011_3102),
            ("no hash", 0x0011_3100),
            ("another symmetric cipher", 0x0011_3111),
            ("another version", 0x0111_3101),
            ("zero", 0),
        ] {
            assert!(Pack::parse(id).is_err(), "{what} passed");
        }
        for kem in [1, 9, 17, 33, 41, 49] {
            for signature in [0, 1, 9, 17, 33, 41, 65, 69, 73, 77, 81, 85, 89, 93, 97, 101] {
                assert!(Pack::parse(signature << 16 | kem << 8 | 1).is_ok());
            }
        }
    }

    #[test]
    fn falcon_signatures_may_be_shorter_than_their_bound() {
        let pack = Pack::parse(0x0021_3101).must();

        assert!(pack.check_signed(&[], &spk(1568, 600)).is_ok());
        assert!(pack.check_signed(&[], &spk(1568, 752)).is_ok());
        assert!(pack.check_signed(&[], &spk(1568, 753)).is_err());
        assert!(pack.check_signed(&[], &spk(1568, 0)).is_err());
    }

    #[test]
    fn a_curve25519_signature_of_the_signed_pre_key_is_verified() {
        let pack = Pack::parse(CLASSIC).must();
        let (key, other) = (XEd25519::generate(), XEd25519::generate());
        // A Kyber key is not 32 bytes long, so the signature of a message stands in for `sign`'s fingerprint.
        let public = vec![9; 1568];
        let sign = |key: &XEd25519| {
            use xeddsa::Sign as _;
            let private = xeddsa::xed25519::PrivateKey::from(key.private());
            let signature: [u8; 64] = private.sign(&public, rand::rng());
            SignedPreKeyPublic {
                spk_id: 1,
                public_key: public.clone().into(),
                signature: signature.to_vec().into(),
            }
        };

        assert!(pack.check_signed(key.public(), &sign(&key)).is_ok());
        assert!(pack.check_signed(key.public(), &sign(&other)).is_err());
    }
}
