//! Devices with the keys that they registered, and what outlives a device that is gone.

use super::{Store, Tx, sql::many_rows, users};
use crate::{
    address::{DeviceAddress, Home, Local},
    error::Result,
    proto::{
        ski::UserState,
        skissm::{IdentityKeyPublic, OneTimePreKeyPublic, SignedPreKeyPublic},
    },
};

const FIND: &str = "SELECT device_key FROM devices WHERE user_id = $1 AND device_id = $2";
const OF_USER: &str =
    "SELECT user_id, device_id FROM devices WHERE user_key = $1 ORDER BY device_key";
const INSERT: &str = "INSERT INTO devices (user_key, user_id, device_id, e2ee_pack_id, asym_public_key, sign_public_key,
      spk_id, spk_public_key, spk_signature, signing_key_id, password_hash, registered_at, active_at, last_msg_t)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $12, $13) RETURNING device_key";
const REPLACE: &str = "UPDATE devices SET e2ee_pack_id = $2, asym_public_key = $3, sign_public_key = $4, spk_id = $5,
      spk_public_key = $6, spk_signature = $7, signing_key_id = $8, password_hash = $9, registered_at = $10,
      active_at = $10, opk_issued_max = 0, supply_asked = 0
    WHERE device_key = $1";
const DELETE: &str = "DELETE FROM devices WHERE device_key = $1 RETURNING last_msg_t";
const REMEMBER: &str = "INSERT INTO removed_devices (user_id, device_id, last_msg_t, removed_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (user_id, device_id) DO UPDATE SET last_msg_t = excluded.last_msg_t, removed_at = excluded.removed_at";
const RECALL: &str =
    "DELETE FROM removed_devices WHERE user_id = $1 AND device_id = $2 RETURNING last_msg_t";
const DROP_ONE_TIME_KEYS: &str = "DELETE FROM one_time_keys WHERE device_key = $1";
const CREDENTIALS: &str = "SELECT d.device_key, d.password_hash, u.state FROM devices d
    JOIN users u ON u.user_key = d.user_key WHERE d.user_id = $1 AND d.device_id = $2";
const SIGNED_IN: &str =
    "UPDATE devices SET active_at = $3 WHERE device_key = $1 AND password_hash = $2";

many_rows!(
    INSERT_ONE_TIME_KEYS,
    3,
    "INSERT INTO one_time_keys (device_key, opk_id, public_key) VALUES",
    "(?, ?, ?)",
    ""
);

/// What a device registers with. Its lengths were checked.
pub struct Registration<'a> {
    /// Whose device.
    pub user_key: i64,
    /// Its address.
    pub address: &'a Local<DeviceAddress>,
    /// The cipher pack of its keys.
    pub e2ee_pack_id: u32,
    /// Its identity keys.
    pub identity: &'a IdentityKeyPublic,
    /// Its signed pre-key.
    pub spk: &'a SignedPreKeyPublic,
    /// Its one-time pre-keys.
    pub opks: &'a [OneTimePreKeyPublic],
    /// The server key whose certificate it is given.
    pub signing_key_id: i64,
    /// The hash of its password.
    pub password_hash: &'a str,
    /// When, Unix ms.
    pub now: i64,
}

/// What Login needs to know of a device.
pub struct Credentials {
    /// The key of its row.
    pub device_key: i64,
    /// The hash of its password.
    pub password_hash: String,
    /// Whether its user may use the account.
    pub state: UserState,
}

/// The key of a device's row.
pub async fn find(tx: &mut Tx, device: &Local<DeviceAddress>) -> Result<Option<i64>> {
    let values = [(&device.user.user_id).into(), (&device.device_id).into()];
    let row = tx.row(FIND, values).await?;
    row.map(|row| row.int(0)).transpose()
}

/// All devices of a user, in the order of their first registration.
pub async fn of_user(tx: &mut Tx, home: &Home, user_key: i64) -> Result<Vec<Local<DeviceAddress>>> {
    let rows = tx.rows(OF_USER, [user_key.into()]).await?;
    rows.iter()
        .map(|row| Ok(home.device_from_columns(row.text(0)?, row.text(1)?)))
        .collect()
}

/// A device that was not there, with its keys; its tags go on where a removed device of that name stopped.
pub async fn insert(tx: &mut Tx, new: &Registration<'_>) -> Result<i64> {
    let name = [
        (&new.address.user.user_id).into(),
        (&new.address.device_id).into(),
    ];
    let recalled = tx.row(RECALL, name).await?;
    let last_msg_t = recalled.map_or(Ok(0), |row| row.int(0))?;
    let values = [
        new.user_key.into(),
        (&new.address.user.user_id).into(),
        (&new.address.device_id).into(),
        new.e2ee_pack_id.into(),
        (&new.identity.asym_public_key).into(),
        (&new.identity.sign_public_key).into(),
        new.spk.spk_id.into(),
        (&new.spk.public_key).into(),
        (&new.spk.signature).into(),
        new.signing_key_id.into(),
        new.password_hash.into(),
        new.now.into(),
        last_msg_t.into(),
    ];
    let rows = tx.rows(INSERT, values).await?;
    let device_key = rows.first().map_or(Ok(0), |row| row.int(0))?;
    insert_one_time_keys(tx, device_key, new.opks).await?;
    Ok(device_key)
}

/// Another installation of a device that is there: its row stays, and with it its newest tag. What the former
/// installation left must be gone already.
pub async fn replace(tx: &mut Tx, device_key: i64, new: &Registration<'_>) -> Result<()> {
    let values = [
        device_key.into(),
        new.e2ee_pack_id.into(),
        (&new.identity.asym_public_key).into(),
        (&new.identity.sign_public_key).into(),
        new.spk.spk_id.into(),
        (&new.spk.public_key).into(),
        (&new.spk.signature).into(),
        new.signing_key_id.into(),
        new.password_hash.into(),
        new.now.into(),
    ];
    tx.execute(REPLACE, values).await?;
    insert_one_time_keys(tx, device_key, new.opks).await
}

async fn insert_one_time_keys(
    tx: &mut Tx,
    device_key: i64,
    opks: &[OneTimePreKeyPublic],
) -> Result<()> {
    let rows = opks.iter().map(|opk| {
        [
            device_key.into(),
            opk.opk_id.into(),
            (&opk.public_key).into(),
        ]
    });
    tx.many(&INSERT_ONE_TIME_KEYS, rows.collect()).await?;
    Ok(())
}

/// Drops the one-time keys of an installation that is over.
pub async fn drop_one_time_keys(tx: &mut Tx, device_key: i64) -> Result<()> {
    tx.execute(DROP_ONE_TIME_KEYS, [device_key.into()]).await?;
    Ok(())
}

/// Deletes a device that nothing refers to any more, and remembers its newest tag.
pub async fn delete(
    tx: &mut Tx,
    device_key: i64,
    device: &Local<DeviceAddress>,
    now: i64,
) -> Result<()> {
    let Some(row) = tx.row(DELETE, [device_key.into()]).await? else {
        return Ok(());
    };
    let values = [
        (&device.user.user_id).into(),
        (&device.device_id).into(),
        row.int(0)?.into(),
        now.into(),
    ];
    tx.execute(REMEMBER, values).await?;
    Ok(())
}

/// What Login compares with.
pub async fn credentials(
    store: &Store,
    device: &Local<DeviceAddress>,
) -> Result<Option<Credentials>> {
    let values = [(&device.user.user_id).into(), (&device.device_id).into()];
    let Some(row) = store.row(CREDENTIALS, values).await? else {
        return Ok(None);
    };
    Ok(Some(Credentials {
        device_key: row.int(0)?,
        password_hash: row.text(1)?,
        state: users::state(&row, 2)?,
    }))
}

/// Notes a sign-in; `false` if the device was removed or registered anew since its password was compared.
pub async fn signed_in(
    tx: &mut Tx,
    device_key: i64,
    password_hash: &str,
    now: i64,
) -> Result<bool> {
    let values = [device_key.into(), password_hash.into(), now.into()];
    Ok(tx.execute(SIGNED_IN, values).await? == 1)
}
