//! Auth codes, one per authenticator, kept as SHA-256 together with whom they are for.

use subtle::ConstantTimeEq as _;

use super::Tx;
use crate::error::Result;

const PUT: &str =
    "INSERT INTO auth_codes (authenticator, code_hash, attempts, expires_at) VALUES ($1, $2, 0, $3)
    ON CONFLICT (authenticator) DO UPDATE
      SET code_hash = excluded.code_hash, attempts = 0, expires_at = excluded.expires_at";
const FIND: &str = "SELECT code_hash FROM auth_codes
    WHERE authenticator = $1 AND expires_at > $2 AND attempts < $3";
const COUNT_WRONG: &str = "UPDATE auth_codes SET attempts = attempts + 1 WHERE authenticator = $1";
const DELETE: &str = "DELETE FROM auth_codes WHERE authenticator = $1";

/// Stores a code; one that was there before ends.
pub async fn put(
    tx: &mut Tx,
    authenticator: &str,
    code_hash: &[u8; 32],
    expires_at: i64,
) -> Result<()> {
    let values = [authenticator.into(), code_hash.into(), expires_at.into()];
    tx.execute(PUT, values).await?;
    Ok(())
}

/// Uses a code up, or answers `false` for one that is unknown, over or wrong. A wrong try is counted, so the
/// caller commits after `false` too; after `attempts_max` of them the code is dead.
pub async fn spend(
    tx: &mut Tx,
    authenticator: &str,
    code_hash: &[u8; 32],
    now: i64,
    attempts_max: u32,
) -> Result<bool> {
    let values = [authenticator.into(), now.into(), attempts_max.into()];
    let Some(row) = tx.row(FIND, values).await? else {
        return Ok(false);
    };
    let right: bool = row.hash(0)?.ct_eq(code_hash).into();
    let statement = if right { DELETE } else { COUNT_WRONG };
    tx.execute(statement, [authenticator.into()]).await?;
    Ok(right)
}
