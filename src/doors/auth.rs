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
