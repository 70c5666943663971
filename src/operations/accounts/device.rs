//! The end of a device: at its own home, and as its peers at other domains hear of it.

use std::collections::BTreeSet;

use prost::Message as _;

use crate::{
    address::{DeviceAddress, Domain, Local, Route},
    caller::Caller,
    delivery::{self, Letter},
    error::{Error, Result},
    node::Node,
    peers::{Method, Outgoing},
    proto::{
        skiserver::{
            LogoutRequest, LogoutResponse, RemoveUserDeviceRequest, RemoveUserDeviceResponse,
        },
        skissm::{RemoveUserDeviceMsg, proto_msg::Payload},
    },
    store::{Append, Tx, Wake, devices, mailbox, sessions, tokens},
};

/// A device, or an installation of it, that is about to end.
pub(super) struct Leaving<'a> {
    pub(super) key: i64,
    pub(super) user_key: i64,
    pub(super) user_name: &'a str,
    pub(super) address: &'a Local<DeviceAddress>,
}

/// Removes the calling device: no call for that exists, and a sign-out means it. Later sends to it are answered
/// that there is no such device. The user stays, also without any device.
pub async fn logout(
    node: &Node,
    caller: &Caller,
    request: LogoutRequest,
) -> Result<LogoutResponse> {
    let device = caller.device()?;
    caller.speaks_for(&DeviceAddress::from_proto(request.user_address.as_ref())?)?;

    let mut tx = node.store.begin().await?;
    // A former installation must not remove the one that took its place meanwhile.
    if !tokens::is_valid(&mut tx, &device.token_hash).await? {
        return Err(Error::Unauthenticated("the token is not valid"));
    }
    let leaving = Leaving {
        key: device.key,
        user_key: device.user_key,
        user_name: &device.user_name,
        address: &device.address,
    };
    let wake = remove(node, &mut tx, &leaving).await?;
    let now = node.clock.now_ms();
    devices::delete(&mut tx, device.key, &device.address, now).await?;
    tx.commit(wake).await?;
    Ok(LogoutResponse::default())
}

/// Takes everything from an installation but its row: tokens, one-time keys, messages and sessions. Whoever had
/// a session with it is told, and so are the user's other devices.
pub(super) async fn remove(node: &Node, tx: &mut Tx, leaving: &Leaving<'_>) -> Result<Wake> {
    let peers = sessions::of_device(tx, leaving.key).await?;
    let siblings = siblings(node, tx, leaving.user_key, leaving.address).await?;
    let mut told: BTreeSet<DeviceAddress> = siblings.into_iter().collect();
    let mut domains: BTreeSet<Domain> = BTreeSet::new();
    for peer in peers {
        match node.home.route(&peer) {
            Route::Here(_) => {
                told.insert(peer);
            }
            Route::There(peer) => {
                domains.insert(peer.domain().clone());
            }
        }
    }
    let letter = removal(leaving.address, leaving.user_name);
    let mut wake = delivery::queue(node, tx, &letter, &node.clock.id(), told).await?;
    for domain in domains {
        wake.merge(tell(node, tx, domain, leaving.address).await?);
    }
    tokens::remove_all(tx, leaving.key).await?;
    devices::drop_one_time_keys(tx, leaving.key).await?;
    mailbox::empty(tx, leaving.key).await?;
    sessions::end(tx, leaving.key, leaving.address).await?;
    wake.ended.push(leaving.key);
    Ok(wake)
}

/// The user's other devices.
pub(super) async fn siblings(
    node: &Node,
    tx: &mut Tx,
    user_key: i64,
    device: &Local<DeviceAddress>,
) -> Result<Vec<DeviceAddress>> {
    let all = devices::of_user(tx, &node.home, user_key).await?;
    let others = all.iter().filter(|other| *other != device);
    Ok(others.map(|other| DeviceAddress::clone(other)).collect())
}

fn removal(device: &DeviceAddress, user_name: &str) -> Letter {
    let address = device.to_proto_named(user_name);
    Letter {
        from: Some(address.clone()),
        payload: Payload::RemoveUserDeviceMsg(RemoveUserDeviceMsg {
            user_address: Some(address),
        }),
    }
}

/// One call for a domain, whatever the number of its devices. It has no lane of its own: what was sent before it
/// must arrive before it, and what a later installation sends, after it.
async fn tell(
    node: &Node,
    tx: &mut Tx,
    domain: Domain,
    device: &Local<DeviceAddress>,
) -> Result<Wake> {
    let request = RemoveUserDeviceRequest {
        user_address: Some(device.to_proto()),
        remove_user_device_msg: Some(RemoveUserDeviceMsg {
            user_address: Some(device.to_proto()),
        }),
    };
    let outgoing = Outgoing {
        domain,
        lane: String::new(),
        method: Method::RemoveUserDevice,
        request: request.encode_to_vec().into(),
        sender: String::new(),
        recipient: String::new(),
        msg_id: String::new(),
    };
    let (parcel, ticket) = node.peers.parcel(node, outgoing)?;
    let append = Append {
        parcels: vec![parcel],
        ..Append::default()
    };
    let (results, mut wake) = tx.append(vec![append]).await?;
    wake.held.push(ticket);
    for result in results {
        result?;
    }
    Ok(wake)
}

/// Hears from another domain that one of its devices ended: our devices that had a session with it are told.
/// Hearing it again changes nothing.
pub async fn on_removed_device(
    node: &Node,
    caller: &Caller,
    request: RemoveUserDeviceRequest,
) -> Result<RemoveUserDeviceResponse> {
    let Caller::Peer(_) = caller else {
        return Err(Error::Unauthenticated("only a peer tells of its devices"));
    };
    let message = request
        .remove_user_device_msg
        .ok_or(Error::Invalid("remove_user_device_msg"))?;
    let removed = DeviceAddress::from_proto(request.user_address.as_ref())?;
    let told = DeviceAddress::from_proto(message.user_address.as_ref())?;
    caller.speaks_for(&removed)?;
    caller.speaks_for(&told)?;
    if removed != told {
        return Err(Error::Invalid("user_address"));
    }
    let Route::There(removed) = node.home.route(&removed) else {
        return Err(Error::Forbidden("the device is of this domain"));
    };

    let mut tx = node.store.begin().await?;
    let bereft = sessions::end_with(&mut tx, &node.home, &removed).await?;
    let letter = removal(&removed, "");
    let to = bereft.iter().map(|device| DeviceAddress::clone(device));
    let wake = delivery::queue(node, &mut tx, &letter, &node.clock.id(), to).await?;
    tx.commit(wake).await?;
    Ok(RemoveUserDeviceResponse::default())
}
