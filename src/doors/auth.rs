//! Bearer token → [`Device`], cached. Knows nothing of any RPC.

use std::time::Duration;

use moka::future::Cache;
use tonic::metadata::MetadataMap;

use crate::{
    caller::Device,
    error::{Error, Result},
    limits,
    node::Node,
    signing::sha256,
    store::{
        Wake,
        cache::{Generation, Generations},
        tokens,
    },
};

/// Devices behind tokens, remembered for a short while. One for all doors of a node.
pub struct Tokens {
    devices: Cache<[u8; 32], Known>,
    generations: Generations,
}

#[derive(Clone)]
struct Known {
    device: Device,
    loaded: Generation,
}

impl Default for Tokens {
    fn default() -> Self {
        Self {
            devices: Cache::builder()
                .max_capacity(limits::CACHE_ENTRIES_MAX)
                .time_to_live(Duration::from_secs(limits::CACHE_SECONDS_MAX))
                .build(),
            generations: Generations::default(),
        }
    }
}

impl Tokens {
    /// Forgets the devices that a commit changed. Called before the change is answered.
    pub fn wake(&self, wake: &Wake) {
        for device_key in &wake.ended {
            self.generations.raise(device_key);
        }
        if wake.reopened {
            self.generations.raise_all();
        }
    }

    async fn device(&self, node: &Node, token_hash: [u8; 32]) -> Result<Device> {
        let now = node.clock.now_ms();
        if let Some(known) = self.devices.get(&token_hash).await
            && self.generations.holds(&known.device.key, known.loaded)
            && known.device.token_expires_at > now
        {
            return Ok(known.device);
        }
        let loaded = self.generations.before_load();
        let device = tokens::device(&node.store, &node.home, token_hash, now)
            .await?
            .ok_or(Error::Unauthenticated("the token is not valid"))?;
        let known = Known {
            device: device.clone(),
            loaded,
        };
        self.devices.insert(token_hash, known).await;
        Ok(device)
    }
}

/// The device whose valid token is in the metadata `authorization`. `Bearer` before it may be left out.
pub async fn device(node: &Node, metadata: &MetadataMap) -> Result<Device> {
    let token = metadata
        .get("authorization")
        .and_then(|value| value.to_str().ok())
        .map(bare)
        .filter(|token| (1..=limits::TOKEN_BYTES_MAX).contains(&token.len()))
        .ok_or(Error::Unauthenticated("a token is needed"))?;
    node.tokens.device(node, sha256(&[token.as_bytes()])).await
}

fn bare(authorization: &str) -> &str {
    let authorization = authorization.trim();
    match authorization.split_once(' ') {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
        _ => authorization,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;
    use crate::{
        caller::Caller,
        node::testing::Bench,
        operations::accounts::{self, testing::Phone},
        proto::skiserver::LogoutRequest,
    };

    fn with(authorization: &str) -> MetadataMap {
        let mut metadata = MetadataMap::new();
        metadata.insert("authorization", authorization.parse().must());
        metadata
    }

    #[tokio::test]
    async fn a_token_is_taken_with_or_without_its_scheme() {
        let bench = Bench::start().await;
        let phone = Phone::new(&bench, "alice", "phone").await;
        let token = &phone.answer.auth;

        for spelling in [
            format!("Bearer {token}"),
            format!("bearer  {token} "),
            token.clone(),
        ] {
            let known = device(&bench, &with(&spelling)).await.must();
            assert_eq!(*known.address, *phone.address, "{spelling}");
        }
        let strange = [
            MetadataMap::new(),
            with(""),
            with("Bearer"),
            with(&format!("Basic {token}")),
            with(&format!("Bearer {token}x")),
            with(&"x".repeat(10_000)),
        ];
        for metadata in strange {
            let refused = device(&bench, &metadata).await;
            assert!(matches!(refused, Err(Error::Unauthenticated(_))));
        }
    }

    #[tokio::test]
    async fn a_remembered_token_ends_with_its_device_and_with_its_time() {
        let bench = Bench::start().await;
        let phone = Phone::new(&bench, "alice", "phone").await;
        let tablet = Phone::new(&bench, "alice", "tablet").await;
        let (phones, tablets) = (with(&phone.answer.auth), with(&tablet.answer.auth));
        let known = device(&bench, &phones).await.must();
        device(&bench, &tablets).await.must();

        let request = LogoutRequest {
            user_address: Some(phone.address.to_proto()),
        };
        let caller = Caller::Device(Box::new(known));
        accounts::logout(&bench, &caller, request).await.must();

        let refused = device(&bench, &phones).await;
        assert!(matches!(refused, Err(Error::Unauthenticated(_))));
        device(&bench, &tablets).await.must();
        bench.clock.turn(31 * 86_400_000);
        let refused = device(&bench, &tablets).await;
        assert!(matches!(refused, Err(Error::Unauthenticated(_))));
    }

    #[tokio::test]
    async fn a_known_device_is_remembered() {
        let bench = Bench::start().await;
        let phone = Phone::new(&bench, "alice", "phone").await;
        let metadata = with(&phone.answer.auth);
        device(&bench, &metadata).await.must();
        // Behind the node's back, so that nothing is told to forget.
        let mut tx = bench.store.begin().await.must();
        tx.execute("DELETE FROM tokens", []).await.must();
        tx.commit(Wake::default()).await.must();

        device(&bench, &metadata).await.must();

        let reopened = Wake {
            reopened: true,
            ..Wake::default()
        };
        bench.tokens.wake(&reopened);
        let refused = device(&bench, &metadata).await;
        assert!(matches!(refused, Err(Error::Unauthenticated(_))));
    }
}
