//! Friendships, one row per side that is ours.

use super::Tx;
use crate::{address::UserAddress, error::Result, proto::ski::FriendStatus};

const PUT: &str = "INSERT INTO friendships (user_key, friend, nickname, status, modified_at) VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (user_key, friend) DO UPDATE
      SET nickname = excluded.nickname, status = excluded.status, modified_at = excluded.modified_at";

/// One side of a friendship.
pub struct Side<'a> {
    /// Whose side.
    pub user_key: i64,
    /// The other.
    pub friend: &'a UserAddress,
    /// The other's registered name.
    pub nickname: &'a str,
}

/// Makes one side a friend, whatever it was before; a block stays.
pub async fn befriend(tx: &mut Tx, side: &Side<'_>, now: i64) -> Result<()> {
    let values = [
        side.user_key.into(),
        side.friend.to_string().into(),
        side.nickname.into(),
        i64::from(FriendStatus::Friend as i32).into(),
        now.into(),
    ];
    tx.execute(PUT, values).await?;
    Ok(())
}
