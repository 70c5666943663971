//! Invitations, each good for one new user, kept as SHA-256.

use super::Tx;
use crate::error::Result;

const INSERT: &str =
    "INSERT INTO invitations (code_hash, inviter_key, expires_at) VALUES ($1, $2, $3)";
const COUNT: &str = "SELECT COUNT(*) FROM invitations WHERE inviter_key = $1 AND expires_at > $2";
const SPEND: &str =
    "DELETE FROM invitations WHERE code_hash = $1 AND inviter_key = $2 AND expires_at > $3
    RETURNING inviter_key";

/// Stores an invitation.
pub async fn insert(
    tx: &mut Tx,
    code_hash: &[u8; 32],
    inviter_key: i64,
    expires_at: i64,
) -> Result<()> {
    let values = [code_hash.into(), inviter_key.into(), expires_at.into()];
    tx.execute(INSERT, values).await?;
    Ok(())
}

/// How many unused invitations a user has given.
pub async fn count(tx: &mut Tx, inviter_key: i64, now: i64) -> Result<i64> {
    let row = tx.row(COUNT, [inviter_key.into(), now.into()]).await?;
    row.map_or(Ok(0), |row| row.int(0))
}

/// Uses an invitation of that inviter up; `false` if there is none or it is over.
pub async fn spend(tx: &mut Tx, code_hash: &[u8; 32], inviter_key: i64, now: i64) -> Result<bool> {
    let values = [code_hash.into(), inviter_key.into(), now.into()];
    Ok(tx.row(SPEND, values).await?.is_some())
}
