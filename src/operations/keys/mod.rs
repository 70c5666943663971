//! Pre-keys: bundles for whoever starts a session, signed by the node of the asker, and what devices publish
//! and supply for others to take.

use std::collections::HashMap;

use super::messages::PATIENCE;
use crate::{
    address::{DeviceAddress, Domain, Local, Remote, Route, UserAddress, identifier},
    caller::{Caller, Device},
    delivery::{self, Letter},
    error::{Error, Result},
    limits,
    node::Node,
    packs::Pack,
    proto::skissm::{
        GetPreKeyBundleRequest, GetPreKeyBundleResponse, OneTimePreKeyPublic, PreKeyBundle,
        PublishSpkRequest, PublishSpkResponse, SupplyOpksMsg, SupplyOpksRequest,
        SupplyOpksResponse, proto_msg::Payload,
    },
    reply,
    store::{
        Tx, Wake,
        keys::{self as stored, DeviceKeys},
    },
};

mod foreign;
#[cfg(test)]
mod tests;

/// Whose keys are asked for.
#[derive(Debug, Clone)]
struct Asked<U> {
    user: U,
    /// Of this device only.
    device_id: Option<String>,
}

fn parse(request: &GetPreKeyBundleRequest) -> Result<Asked<UserAddress>> {
    let device_id = Some(request.device_id.as_str()).filter(|id| !id.is_empty());
    let parse = |id| identifier(id, limits::DEVICE_ID_BYTES_MAX, "device_id");
    Ok(Asked {
        user: UserAddress {
            domain: Domain::parse(&request.domain)?,
            user_id: crate::address::user_id(&request.user_id)?,
        },
        device_id: device_id.map(parse).transpose()?,
    })
}

/// The keys of a user's devices, or of one of them, each with a one-time key that nobody else gets; without one
/// if none is left or the caller had its share. A device asks for any user and gets signed bundles; a peer asks
/// for our users only and signs for itself. Nothing to hand out is [`Error::Empty`], because clients keep
/// whatever else they are told and ask for ever.
pub async fn bundles(
    node: &Node,
    caller: &Caller,
    request: GetPreKeyBundleRequest,
) -> Result<GetPreKeyBundleResponse> {
    let Asked { user, device_id } = parse(&request)?;
    if let Caller::Peer(_) = caller {
        let user = node.home.local(&user)?;
        let asked = Asked { user, device_id };
        let bundles = ours(node, caller, &asked, None).await?;
        return answer(&asked.user, bundles);
    }
    let device = caller.device()?;
    node.rates.bundle_calls.wait(&device.key, PATIENCE).await?;
    let mut bundles = match node.home.route(&user) {
        Route::Here(user) => {
            let own = device.address.user == *user;
            let except = own.then_some(device.address.device_id.as_str());
            ours(node, caller, &Asked { user, device_id }, except).await?
        }
        Route::There(user) => theirs(node, caller, &Asked { user, device_id }).await?,
    };
    for bundle in &mut bundles {
        node.signer.sign_bundle(device.signing_key_id, bundle)?;
    }
    answer(&user, bundles)
}

fn answer(user: &UserAddress, bundles: Vec<PreKeyBundle>) -> Result<GetPreKeyBundleResponse> {
    if bundles.is_empty() {
        return Err(Error::Empty);
    }
    Ok(GetPreKeyBundleResponse {
        user_id: user.user_id.clone(),
        pre_key_bundles: bundles,
        ..GetPreKeyBundleResponse::default()
    })
}

/// Bundles of devices of this domain, in the order of their registration.
async fn ours(
    node: &Node,
    caller: &Caller,
    asked: &Asked<Local<UserAddress>>,
    except: Option<&str>,
) -> Result<Vec<PreKeyBundle>> {
    let device_id = asked.device_id.as_deref();
    let mut keys = stored::bundle_devices(&node.store, &asked.user, device_id, except).await?;
    let mut takers = Vec::with_capacity(keys.len());
    for keys in &keys {
        let address = asked.user.device(&keys.device_id)?;
        if may_take(node, caller, &address) {
            takers.push((address, keys.device_key));
        }
    }
    let mut taken = HashMap::new();
    if !takers.is_empty() {
        let mut tx = node.store.begin().await?;
        // A device that registered anew meanwhile has other keys: all of a bundle is of one registration.
        keys = stored::bundle_devices_within(&mut tx, &asked.user, device_id, except).await?;
        taken = take(node, caller, tx, takers).await?;
    }
    let mut bundles = Vec::with_capacity(keys.len());
    for keys in keys {
        bundles.push(PreKeyBundle {
            user_address: Some(asked.user.device(&keys.device_id)?.to_proto()),
            e2ee_pack_id: keys.e2ee_pack_id,
            identity_key_public: Some(keys.identity),
            signed_pre_key_public: Some(keys.spk),
            one_time_pre_key_public: taken.remove(&keys.device_key),
            signature: None,
        });
    }
    Ok(bundles)
}

/// Whether the caller may have one more key of this device within the hour.
fn may_take(node: &Node, caller: &Caller, target: &DeviceAddress) -> bool {
    let target = target.to_string();
    let may = match caller {
        Caller::Device(device) => node.rates.caller_keys.allows(&(device.key, target)),
        Caller::Peer(domain) => {
            (node.rates.peer_keys).allows(&(domain.as_str().to_owned(), target))
        }
        Caller::Nobody(_) => false,
    };
    if !may {
        metrics::counter!("skiserver_one_time_keys_withheld_total", "caller" => kind(caller))
            .increment(1);
    }
    may
}

fn kind(caller: &Caller) -> &'static str {
    match caller {
        Caller::Device(_) => "device",
        Caller::Peer(_) => "peer",
        Caller::Nobody(_) => "nobody",
    }
}

/// Takes a one-time key of each device, and ends the transaction.
async fn take(
    node: &Node,
    caller: &Caller,
    mut tx: Tx,
    takers: Vec<(DeviceAddress, i64)>,
) -> Result<HashMap<i64, OneTimePreKeyPublic>> {
    let device_keys: Vec<i64> = takers.iter().map(|(_, key)| *key).collect();
    let taken = stored::take(&mut tx, &device_keys).await?;
    let missing = takers.len() - taken.len();
    metrics::counter!("skiserver_one_time_keys_missing_total").increment(missing as u64);
    if taken.is_empty() {
        return Ok(taken);
    }
    let mut wake = Wake::default();
    if node.config.keys.supply_opks {
        for (address, device_key) in &takers {
            wake.merge(ask_for_more(node, &mut tx, address, *device_key).await?);
        }
    }
    tx.commit(wake).await?;
    metrics::counter!("skiserver_one_time_keys_issued_total", "caller" => kind(caller))
        .increment(taken.len() as u64);
    Ok(taken)
}

/// Asks a device whose stock is low for more keys, once; for no more than it has left, because clients read out
/// of bounds otherwise.
async fn ask_for_more(
    node: &Node,
    tx: &mut Tx,
    address: &DeviceAddress,
    device_key: i64,
) -> Result<Wake> {
    let Some(opks_num) = stored::mark_supply_asked(tx, device_key, limits::OPKS_LOW).await? else {
        return Ok(Wake::default());
    };
    let letter = Letter {
        from: None,
        payload: Payload::SupplyOpksMsg(SupplyOpksMsg {
            server_t: node.clock.now_ms(),
            opks_num,
            user_address: Some(address.to_proto()),
        }),
    };
    delivery::queue(node, tx, &letter, "supply", [address.clone()]).await
}

/// Bundles of another domain's devices, checked before our signature vouches for them.
async fn theirs(
    node: &Node,
    caller: &Caller,
    asked: &Asked<Remote<UserAddress>>,
) -> Result<Vec<PreKeyBundle>> {
    let domain = &asked.user.domain;
    let request = GetPreKeyBundleRequest {
        domain: domain.as_str().to_owned(),
        user_id: asked.user.user_id.clone(),
        device_id: asked.device_id.clone().unwrap_or_default(),
    };
    let reply: GetPreKeyBundleResponse = node
        .peers
        .ask(node, domain, "GetPreKeyBundle", request)
        .await
        .map_err(nothing_there)?;
    let devices_max = usize::try_from(node.limits.devices_per_user_max).unwrap_or(usize::MAX);
    let checked = foreign::checked(reply, asked, devices_max).map_err(|reason| {
        tracing::warn!(%domain, %reason, "bundles of a peer can't be used");
        metrics::counter!("skiserver_bundles_rejected_total").increment(1);
        Error::Unreachable(domain.clone())
    })?;
    let mut bundles = Vec::with_capacity(checked.len());
    for (address, mut bundle) in checked {
        if bundle.one_time_pre_key_public.is_some() && !may_take(node, caller, &address) {
            bundle.one_time_pre_key_public = None;
        }
        bundles.push(bundle);
    }
    Ok(bundles)
}

/// A final refusal, or a domain that policy rules out, has nothing for us. What may pass stays what it is.
fn nothing_there(error: Error) -> Error {
    match error {
        Error::Forbidden(_) => Error::Empty,
        Error::Refused { code, .. } if reply::is_final(code) => Error::Empty,
        other => other,
    }
}

/// Replaces the caller's signed pre-key, even under the same id.
pub async fn publish_signed(
    node: &Node,
    caller: &Caller,
    request: PublishSpkRequest,
) -> Result<PublishSpkResponse> {
    let device = caller.device()?;
    caller.speaks_for(&DeviceAddress::from_proto(request.user_address.as_ref())?)?;
    let spk = (request.signed_pre_key_public).ok_or(Error::Invalid("signed_pre_key_public"))?;
    let own = own_keys(node, device).await?;
    Pack::parse(own.e2ee_pack_id)?.check_signed(&own.identity.sign_public_key, &spk)?;
    let mut tx = node.store.begin().await?;
    stored::publish_signed(&mut tx, device.key, &spk).await?;
    tx.commit(Wake::default()).await?;
    Ok(PublishSpkResponse::default())
}

/// Takes one-time keys of the caller in, as far as its stock is not full. Ids that were handed out are ignored.
pub async fn supply(
    node: &Node,
    caller: &Caller,
    request: SupplyOpksRequest,
) -> Result<SupplyOpksResponse> {
    let device = caller.device()?;
    caller.speaks_for(&DeviceAddress::from_proto(request.user_address.as_ref())?)?;
    let own = own_keys(node, device).await?;
    if request.e2ee_pack_id != own.e2ee_pack_id {
        return Err(Error::Invalid("e2ee_pack_id"));
    }
    let opks = &request.one_time_pre_key_public_list;
    Pack::parse(own.e2ee_pack_id)?.check_one_time(opks)?;
    let mut tx = node.store.begin().await?;
    stored::supply(&mut tx, device.key, opks, node.limits.opks_per_device_max).await?;
    tx.commit(Wake::default()).await?;
    Ok(SupplyOpksResponse::default())
}

async fn own_keys(node: &Node, device: &Device) -> Result<DeviceKeys> {
    let device_id = Some(device.address.device_id.as_str());
    let mut keys =
        stored::bundle_devices(&node.store, &device.address.user(), device_id, None).await?;
    keys.pop().ok_or(Error::NotFound("device"))
}
