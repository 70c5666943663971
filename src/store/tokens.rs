//! Tokens, kept as SHA-256: who reads the table can't use them.

use super::{Store, Tx, Wake};
use crate::{address::Home, caller, error::Result};

const INSERT: &str =
    "INSERT INTO tokens (token_hash, device_key, issued_at, expires_at) VALUES ($1, $2, $3, $4)";
const TRIM: &str = "DELETE FROM tokens WHERE device_key = $1 AND (expires_at <= $2 OR token_hash NOT IN
    (SELECT token_hash FROM tokens WHERE device_key = $1 ORDER BY issued_at DESC, token_hash LIMIT $3))
    RETURNING expires_at";
const REMOVE_ALL: &str = "DELETE FROM tokens WHERE device_key = $1";
const DEVICE: &str =
    "SELECT d.device_key, d.user_key, d.user_id, d.device_id, u.user_name, t.expires_at, d.signing_key_id FROM tokens t
    JOIN devices d ON d.device_key = t.device_key JOIN users u ON u.user_key = d.user_key
    WHERE t.token_hash = $1 AND t.expires_at > $2 AND u.state = 0";
const FIND: &str = "SELECT device_key FROM tokens WHERE token_hash = $1";

/// Stores a new token of a device, after removing its oldest so that at most `tokens_max` remain. The wake ends
/// what a token that was still valid had opened.
pub async fn issue(
    tx: &mut Tx,
    device_key: i64,
    token_hash: &[u8; 32],
    [now, expires_at]: [i64; 2],
    tokens_max: u32,
) -> Result<Wake> {
    let kept = tokens_max.saturating_sub(1);
    let removed = tx
        .rows(TRIM, [device_key.into(), now.into(), kept.into()])
        .await?;
    let mut wake = Wake::default();
    for row in removed {
        if row.int(0)? > now && wake.ended.is_empty() {
            wake.ended.push(device_key);
        }
    }
    let values = [
        token_hash.into(),
        device_key.into(),
        now.into(),
        expires_at.into(),
    ];
    tx.execute(INSERT, values).await?;
    Ok(wake)
}

/// Revokes all tokens of a device.
pub async fn remove_all(tx: &mut Tx, device_key: i64) -> Result<()> {
    tx.execute(REMOVE_ALL, [device_key.into()]).await?;
    Ok(())
}

/// The device behind a token that is valid at `now`, if its user may use the account.
pub async fn device(
    store: &Store,
    home: &Home,
    token_hash: [u8; 32],
    now: i64,
) -> Result<Option<caller::Device>> {
    let Some(row) = store.row(DEVICE, [token_hash.into(), now.into()]).await? else {
        return Ok(None);
    };
    Ok(Some(caller::Device {
        key: row.int(0)?,
        user_key: row.int(1)?,
        address: home.device_from_columns(row.text(2)?, row.text(3)?),
        user_name: row.text(4)?,
        token_hash,
        token_expires_at: row.int(5)?,
        signing_key_id: row.int(6)?,
    }))
}

/// Whether a token that was valid when its call came in is still there.
pub async fn is_valid(tx: &mut Tx, token_hash: &[u8; 32]) -> Result<bool> {
    Ok(tx.row(FIND, [token_hash.into()]).await?.is_some())
}
