//! What devices know of each other: invites sent, sessions made, and devices that are no longer here.

use bytes::Bytes;

use super::Store;
use crate::{
    address::{DeviceAddress, Local, UserAddress},
    error::{Error, Result},
};

const INVITED: &str = "SELECT 1 FROM invites WHERE from_device = $1 AND to_device = $2 LIMIT 1";
const HAS_SESSION: &str = "SELECT 1 FROM sessions WHERE device_key = $1 AND peer = $2";
const USER_HAS_SESSION: &str =
    "SELECT 1 FROM sessions s JOIN devices d ON d.device_key = s.device_key
    WHERE d.user_id = $1 AND ($2 = '' OR d.device_id = $2) AND s.peer_user = $3 LIMIT 1";
const WAS_HERE: &str = "SELECT 1 FROM removed_devices WHERE user_id = $1 AND device_id = $2";
const IDENTITY_KEY: &str = "SELECT asym_public_key FROM devices WHERE device_key = $1";
const MEMBERS: &str =
    "SELECT device_id, sign_public_key FROM devices WHERE user_id = $1 ORDER BY device_key";

const ARE_FRIENDS: &str = "SELECT 1 FROM friendships f JOIN users u ON u.user_key = f.user_key
    WHERE u.user_id = $1 AND f.friend = $2 AND f.status = $3";

/// `ski.FriendStatus`, as stored.
const FRIEND: i64 = 2;

/// Whether our device invited the other in the last 40 days.
pub async fn invited(
    store: &Store,
    from: &Local<DeviceAddress>,
    to: &DeviceAddress,
) -> Result<bool> {
    let row = store
        .row(INVITED, [from.to_string().into(), to.to_string().into()])
        .await?;
    Ok(row.is_some())
}

/// Whether the device has a session with the other.
pub async fn has_session(store: &Store, device_key: i64, peer: &DeviceAddress) -> Result<bool> {
    let row = store
        .row(HAS_SESSION, [device_key.into(), peer.to_string().into()])
        .await?;
    Ok(row.is_some())
}

/// Whether our user, or only the device named if one is, has a session with any device of the other user.
pub async fn user_has_session(
    store: &Store,
    user: &Local<UserAddress>,
    device_id: &str,
    peer: &UserAddress,
) -> Result<bool> {
    let values = [
        (&user.user_id).into(),
        device_id.into(),
        peer.to_string().into(),
    ];
    Ok(store.row(USER_HAS_SESSION, values).await?.is_some())
}

/// Whether a device of this address was removed from this node.
pub async fn was_here(store: &Store, device: &Local<DeviceAddress>) -> Result<bool> {
    let values = [(&device.user.user_id).into(), (&device.device_id).into()];
    Ok(store.row(WAS_HERE, values).await?.is_some())
}

/// The identity key that an invite of this device carries.
pub async fn identity_key(store: &Store, device_key: i64) -> Result<Bytes> {
    let row = store.row(IDENTITY_KEY, [device_key.into()]).await?;
    row.ok_or(Error::NotFound("device"))?.blob(0)
}

/// Device ids and sign keys of a user, oldest device first.
pub async fn sign_keys(store: &Store, user: &Local<UserAddress>) -> Result<Vec<(String, Bytes)>> {
    let rows = store.rows(MEMBERS, [(&user.user_id).into()]).await?;
    rows.iter()
        .map(|row| Ok((row.text(0)?, row.blob(1)?)))
        .collect()
}

/// Whether our user counts the other as a friend.
pub async fn are_friends(
    store: &Store,
    user: &Local<UserAddress>,
    other: &UserAddress,
) -> Result<bool> {
    let values = [
        (&user.user_id).into(),
        other.to_string().into(),
        FRIEND.into(),
    ];
    Ok(store.row(ARE_FRIENDS, values).await?.is_some())
}
