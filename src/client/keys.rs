//! The key material of one device: random bytes of the sizes that its pack has, real only where the node looks.
//! A node verifies the signed pre-key of algorithm 0, so that one is a true one.

use std::{
    collections::HashSet,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
    },
};

use aws_lc_rs::agreement::{PrivateKey as X25519Key, X25519};
use bytes::Bytes;
use rand::Rng as _;
use xeddsa::{Sign as _, xed25519::PrivateKey};

use super::ClientError;
use crate::proto::skissm::{IdentityKeyPublic, OneTimePreKeyPublic, SignedPreKeyPublic};

/// One-time keys of a fresh device, as the client library makes them.
const OPKS: u32 = 100;

/// A pack: which algorithms a device uses, and how long their values are, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pack {
    /// The number on the wire.
    pub id: u32,
    /// A public signature key.
    pub sign_key: usize,
    /// A signature.
    pub signature: usize,
    /// A public key of the key encapsulation.
    pub asym_key: usize,
    /// An encapsulated secret.
    pub ciphertext: usize,
}

impl Pack {
    /// Dilithium5 and Kyber1024, what the client library chooses.
    pub const DEFAULT: Self = Self {
        id: 0x0011_3101,
        sign_key: 2_592,
        signature: 4_627,
        asym_key: 1_568,
        ciphertext: 1_568,
    };
    /// Curve25519 signatures and Kyber512.
    pub const SMALL: Self = Self {
        id: 0x0000_2101,
        sign_key: 32,
        signature: 64,
        asym_key: 800,
        ciphertext: 768,
    };

    /// Whether its signatures are those of algorithm 0, which nodes verify.
    fn signs_with_curve25519(self) -> bool {
        self.id.to_be_bytes()[1] == 0
    }

    /// The pack with this number, if it is one of ours.
    pub fn find(id: u32) -> Option<Self> {
        [Self::DEFAULT, Self::SMALL]
            .into_iter()
            .find(|pack| pack.id == id)
    }
}

/// The keys of one device.
pub struct Keys {
    pack: Pack,
    /// Present if the pack's signatures are made for real.
    signer: Option<PrivateKey>,
    identity: IdentityKeyPublic,
    next_opk_id: AtomicU32,
    used_opk_ids: Mutex<HashSet<u32>>,
}

impl Keys {
    /// Fresh keys.
    pub fn generate(pack: Pack) -> Result<Self, ClientError> {
        let (signer, sign_public_key) = if pack.signs_with_curve25519() {
            let secret: [u8; 32] = rand::random();
            let public = X25519Key::from_private_key(&X25519, &secret)
                .ok()
                .and_then(|key| key.compute_public_key().ok())
                .ok_or_else(|| ClientError::Setup("no key could be made".to_owned()))?;
            let public = Bytes::copy_from_slice(public.as_ref());
            (Some(PrivateKey(secret)), public)
        } else {
            (None, random(pack.sign_key))
        };
        Ok(Self {
            pack,
            signer,
            identity: IdentityKeyPublic {
                asym_public_key: random(pack.asym_key),
                sign_public_key,
            },
            next_opk_id: AtomicU32::new(1),
            used_opk_ids: Mutex::default(),
        })
    }

    /// Which pack they are of.
    pub fn pack(&self) -> Pack {
        self.pack
    }

    /// The identity keys.
    pub fn identity(&self) -> &IdentityKeyPublic {
        &self.identity
    }

    /// A fresh signed pre-key.
    pub fn signed_pre_key(&self, spk_id: u32) -> SignedPreKeyPublic {
        let public_key = random(self.pack.asym_key);
        let signature = match &self.signer {
            Some(key) => {
                let signature: [u8; 64] = key.sign(&public_key, rand::rng());
                Bytes::copy_from_slice(&signature)
            }
            None => random(self.pack.signature),
        };
        SignedPreKeyPublic {
            spk_id,
            public_key,
            signature,
        }
    }

    /// The one-time keys of a registration.
    pub fn first_opks(&self) -> Vec<OneTimePreKeyPublic> {
        self.opks(OPKS)
    }

    /// Fresh one-time keys with ids that were never used.
    pub fn opks(&self, count: u32) -> Vec<OneTimePreKeyPublic> {
        let first = self.next_opk_id.fetch_add(count, Ordering::Relaxed);
        (first..first.saturating_add(count))
            .map(|opk_id| OneTimePreKeyPublic {
                opk_id,
                public_key: random(self.pack.asym_key),
            })
            .collect()
    }

    /// Notes that an invite used a one-time key. False if the key is not ours or was used before.
    pub fn use_opk(&self, opk_id: u32) -> bool {
        let known = (1..self.next_opk_id.load(Ordering::Relaxed)).contains(&opk_id);
        let mut used = self
            .used_opk_ids
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known && used.insert(opk_id)
    }
}

/// Random bytes.
pub fn random(length: usize) -> Bytes {
    let mut bytes = vec![0; length];
    rand::rng().fill_bytes(&mut bytes);
    bytes.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::verify;
    use crate::testing::Must as _;

    #[test]
    fn keys_have_the_sizes_of_their_pack() {
        for pack in [Pack::DEFAULT, Pack::SMALL] {
            let keys = Keys::generate(pack).must();
            let spk = keys.signed_pre_key(1);

            assert_eq!(keys.identity().sign_public_key.len(), pack.sign_key);
            assert_eq!(keys.identity().asym_public_key.len(), pack.asym_key);
            assert_eq!(spk.signature.len(), pack.signature);
            assert_eq!(spk.public_key.len(), pack.asym_key);
        }
    }

    #[test]
    fn the_small_pack_signs_its_pre_key_for_real() {
        for _ in 0..8 {
            let keys = Keys::generate(Pack::SMALL).must();
            let spk = keys.signed_pre_key(1);
            let other = keys.signed_pre_key(2);

            let key = &keys.identity().sign_public_key;
            assert!(verify::xed25519(key, &spk.public_key, &spk.signature));
            assert!(!verify::xed25519(key, &spk.public_key, &other.signature));
        }
    }

    #[test]
    fn one_time_keys_have_new_ids_and_are_used_once() {
        let keys = Keys::generate(Pack::SMALL).must();

        let first = keys.first_opks();
        let more = keys.opks(3);

        assert_eq!(
            first.iter().map(|key| key.opk_id).collect::<Vec<_>>(),
            (1..=100).collect::<Vec<_>>()
        );
        assert_eq!(
            more.iter().map(|key| key.opk_id).collect::<Vec<_>>(),
            [101, 102, 103]
        );
        assert!(keys.use_opk(103));
        assert!(!keys.use_opk(103));
        assert!(!keys.use_opk(104));
        assert!(!keys.use_opk(0));
    }
}
