//! Keys that this node signs with.

use bytes::Bytes;
use zeroize::Zeroizing;

use super::{Store, Wake};
use crate::error::Result;

/// One key, oldest first.
pub struct ServerKeyRow {
    /// Its id, which devices refer to.
    pub key_id: i64,
    /// The secret half.
    pub private_key: Zeroizing<Vec<u8>>,
    /// The encoded certificate.
    pub certificate: Bytes,
}

const ALL: &str = "SELECT key_id, private_key, certificate FROM server_keys ORDER BY key_id";
const INSERT: &str =
    "INSERT INTO server_keys (algorithm, public_key, private_key, certificate, created_at)
    VALUES ($1, $2, $3, $4, $5)";

/// All keys, oldest first.
pub async fn all(store: &Store) -> Result<Vec<ServerKeyRow>> {
    let rows = store.rows(ALL, []).await?;
    rows.iter()
        .map(|row| {
            Ok(ServerKeyRow {
                key_id: row.int(0)?,
                private_key: Zeroizing::new(row.blob(1)?.to_vec()),
                certificate: row.blob(2)?,
            })
        })
        .collect()
}

/// Stores a key.
pub async fn insert(
    store: &Store,
    algorithm: i64,
    public_key: &[u8],
    private_key: &[u8; 32],
    certificate: Vec<u8>,
    now: i64,
) -> Result<()> {
    let mut tx = store.begin().await?;
    let values = [
        algorithm.into(),
        public_key.into(),
        private_key.into(),
        certificate.into(),
        now.into(),
    ];
    tx.execute(INSERT, values).await?;
    tx.commit(Wake::default()).await
}
