//! Passwords: made here, kept as argon2id hashes, compared in the same time whether or not there is one.
//! A hash takes memory and a core, so a bounded number is computed at once and a bounded number waits.

use std::sync::Arc;

use argon2::{
    Argon2, Params,
    password_hash::{PasswordHasher as _, PasswordVerifier as _, phc::PasswordHash},
};
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::{
    error::{Error, Result},
    limits::{self, Limits},
};

/// Random bytes of a password that this node makes.
const PASSWORD_RANDOM_BYTES: usize = 24;

/// Computes and compares hashes.
pub struct Passwords {
    params: Params,
    running: Arc<Semaphore>,
    waiting: Semaphore,
    /// The hash of nothing that anybody knows, for accounts that do not exist.
    decoy: String,
}

impl Passwords {
    /// Costs as configured.
    pub fn new(limits: &Limits) -> Result<Self> {
        let params = Params::new(limits.argon2_memory_kib, limits.argon2_passes, 1, None)
            .map_err(|error| Error::internal(format!("limits.argon2_…: {error}")))?;
        let parallel = usize::try_from(limits.argon2_parallel_max.max(1)).unwrap_or(1);
        Ok(Self {
            running: Arc::new(Semaphore::new(parallel)),
            waiting: Semaphore::new(parallel + limits::PASSWORDS_WAITING_MAX),
            decoy: digest(&params, generate().as_bytes())?,
            params,
        })
    }

    /// The hash to store, with its salt and its cost.
    pub async fn hash(&self, password: &Zeroizing<String>) -> Result<String> {
        let (params, password) = (self.params.clone(), password.clone());
        self.compute(move || digest(&params, password.as_bytes()))
            .await
    }

    /// Whether `password` is the one behind `hash`. Without a hash the answer is no, after the same work.
    pub async fn verify(&self, password: String, hash: Option<String>) -> Result<bool> {
        let (params, password) = (self.params.clone(), Zeroizing::new(password));
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| self.decoy.clone());
        self.compute(move || {
            let hash =
                PasswordHash::new(&hash).map_err(|error| Error::internal(error.to_string()))?;
            let equal = Argon2::from(params).verify_password(password.as_bytes(), &hash);
            Ok(equal.is_ok() && known)
        })
        .await
    }

    async fn compute<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let _place = self
            .waiting
            .try_acquire()
            .map_err(|_| Error::Busy("too many passwords are being checked"))?;
        let permit = Arc::clone(&self.running)
            .acquire_owned()
            .await
            .map_err(Error::internal)?;
        // The permit goes with the work: a caller that hangs up must not let another hash start beside it.
        let work = tokio::task::spawn_blocking(move || {
            let result = work();
            drop(permit);
            result
        });
        work.await.map_err(Error::internal)?
    }
}

/// A fresh password that nobody can guess.
pub fn generate() -> Zeroizing<String> {
    let random: Zeroizing<[u8; PASSWORD_RANDOM_BYTES]> = Zeroizing::new(rand::random());
    Zeroizing::new(URL_SAFE_NO_PAD.encode(*random))
}

fn digest(params: &Params, password: &[u8]) -> Result<String> {
    let hash: PasswordHash = Argon2::from(params)
        .hash_password(password)
        .map_err(|error| Error::internal(error.to_string()))?;
    Ok(hash.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;

    fn cheap() -> Passwords {
        let limits = Limits {
            argon2_memory_kib: 8,
            argon2_passes: 1,
            argon2_parallel_max: 1,
            ..Limits::default()
        };
        Passwords::new(&limits).must()
    }

    #[tokio::test]
    async fn a_password_is_known_again_and_no_other_passes() {
        let passwords = cheap();
        let (ours, other) = (generate(), generate());

        let hash = passwords.hash(&ours).await.must();

        assert!(hash.starts_with("$argon2id$v=19$m=8,t=1,p=1$"), "{hash}");
        assert!(!hash.contains(ours.as_str()));
        for (password, hash, passes) in [
            (ours.to_string(), Some(hash.clone()), true),
            (other.to_string(), Some(hash.clone()), false),
            (String::new(), Some(hash), false),
            (ours.to_string(), None, false),
        ] {
            assert_eq!(passwords.verify(password, hash).await.must(), passes);
        }
    }

    #[tokio::test]
    async fn hashes_made_at_another_cost_still_count() {
        let dearer = Passwords::new(&Limits {
            argon2_memory_kib: 16,
            argon2_passes: 2,
            ..Limits::default()
        })
        .must();
        let password = generate();

        let hash = dearer.hash(&password).await.must();

        assert!(
            cheap()
                .verify(password.to_string(), Some(hash))
                .await
                .must()
        );
    }

    #[tokio::test]
    async fn more_than_may_wait_are_sent_away() {
        let passwords = cheap();
        let _all = passwords
            .waiting
            .try_acquire_many(u32::try_from(1 + limits::PASSWORDS_WAITING_MAX).must())
            .must();

        let refused = passwords.hash(&generate()).await;

        assert!(matches!(refused, Err(Error::Busy(_))));
    }
}
