//! Which devices have a session with which, as their accepts proved: a row for each side that is ours. New rows
//! come with the accept that proves them, in `append`.

use super::{Row, Tx};
use crate::{
    address::{DeviceAddress, Home, Local, Remote, UserAddress},
    error::{Error, Result},
};

const OF_DEVICE: &str = "SELECT peer FROM sessions WHERE device_key = $1 ORDER BY peer";
const OF_USER: &str =
    "SELECT DISTINCT s.peer FROM devices d JOIN sessions s ON s.device_key = d.device_key
    WHERE d.user_key = $1 AND s.peer_user <> $2 ORDER BY s.peer";
const WITH_PEER: &str =
    "SELECT d.user_id, d.device_id FROM sessions s JOIN devices d ON d.device_key = s.device_key
    WHERE s.peer = $1 ORDER BY d.device_key";
const DELETE_OWN: &str = "DELETE FROM sessions WHERE device_key = $1";
const DELETE_WITH: &str = "DELETE FROM sessions WHERE peer = $1";
const DELETE_INVITES: &str = "DELETE FROM invites WHERE from_device = $1";

/// Every device that one of ours has a session with, wherever it is.
pub async fn of_device(tx: &mut Tx, device_key: i64) -> Result<Vec<DeviceAddress>> {
    peers(&tx.rows(OF_DEVICE, [device_key.into()]).await?)
}

/// Every device of another user with which any device of this user has a session, each once.
pub async fn of_user(
    tx: &mut Tx,
    user_key: i64,
    user: &Local<UserAddress>,
) -> Result<Vec<DeviceAddress>> {
    let values = [user_key.into(), user.to_string().into()];
    peers(&tx.rows(OF_USER, values).await?)
}

/// Forgets all sessions of one of our devices, on both sides, and the invites that it sent: an accept that
/// answers one of them would find nothing.
pub async fn end(tx: &mut Tx, device_key: i64, device: &Local<DeviceAddress>) -> Result<()> {
    tx.execute(DELETE_OWN, [device_key.into()]).await?;
    tx.execute(DELETE_WITH, [device.to_string().into()]).await?;
    tx.execute(DELETE_INVITES, [device.to_string().into()])
        .await?;
    Ok(())
}

/// Forgets all sessions with a device of another domain; the devices of ours that had one.
pub async fn end_with(
    tx: &mut Tx,
    home: &Home,
    peer: &Remote<DeviceAddress>,
) -> Result<Vec<Local<DeviceAddress>>> {
    let rows = tx.rows(WITH_PEER, [peer.to_string().into()]).await?;
    tx.execute(DELETE_WITH, [peer.to_string().into()]).await?;
    rows.iter()
        .map(|row| Ok(home.device_from_columns(row.text(0)?, row.text(1)?)))
        .collect()
}

fn peers(rows: &[Row]) -> Result<Vec<DeviceAddress>> {
    rows.iter()
        .map(|row| DeviceAddress::parse(&row.text(0)?).map_err(Error::internal))
        .collect()
}
