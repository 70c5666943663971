//! `RegisterUser`: a new user with a first device, another device of a user, or another installation of a device
//! that is there. One transaction, so that a registration is whole or did not happen.

use super::{
    TAKEN, Token,
    applicant::{Applicant, Proof},
    device::{self, Leaving},
};
use crate::{
    address::{DeviceAddress, Local},
    caller::Caller,
    config::Registration,
    delivery::{self, Letter},
    error::{Error, Result},
    node::Node,
    passwords,
    proto::{
        ski::{FriendStatus, UserState},
        skissm::{
            AddUserDeviceMsg, Certificate, E2eeAddress, FriendManagerMsg, FriendOp, FriendshipDto,
            RegisterUserRequest, RegisterUserResponse, SystemManagerMsg, SystemOp,
            proto_msg::Payload,
        },
    },
    store::{
        Tx, Wake, codes, devices,
        friends::{self, Side},
        invitations, sessions, tokens,
        users::{self, User},
    },
};

/// One answer for codes that are unknown, over or wrong: none of the three is to be told from the others.
pub(super) const WRONG_CODE: Error = Error::Forbidden("the code is not valid");

/// Registers a device, and its user if it is the first. The password in the answer is this device's alone, made
/// here and shown once: another device of the user gets its own, and none locks another out. Registering a
/// device that is there ends its former installation: its tokens, keys, messages and sessions go, its peers are
/// told, and it starts anew with the same address.
pub async fn register(
    node: &Node,
    caller: &Caller,
    request: RegisterUserRequest,
) -> Result<RegisterUserResponse> {
    super::limit_address(node, caller)?;
    let applicant = Applicant::parse(node, request)?;
    let password = passwords::generate();
    let password_hash = node.passwords.hash(&password).await?;
    let token = Token::fresh(node);

    let mut tx = node.store.begin().await?;
    let Some(owner) = admit(node, &mut tx, &applicant).await? else {
        tx.commit(Wake::default()).await?; // a wrong try counts, though the call fails
        return Err(WRONG_CODE);
    };
    let (enrolled, wake) =
        enroll(node, &mut tx, &applicant, &owner, &password_hash, &token).await?;
    tx.commit(wake).await?;

    let user_name = owner.user.user_name;
    Ok(RegisterUserResponse {
        address: Some(applicant.address.to_proto_named(&user_name)),
        password: password.to_string(),
        auth: token.text,
        expires_in: token.expires_at,
        authenticator: match &applicant.proof {
            Proof::Code { authenticator, .. } => authenticator.asked().to_owned(),
            Proof::Invitation { .. } => String::new(),
        },
        server_cert: Some(enrolled.certificate),
        other_device_address_list: protos(&enrolled.siblings, &user_name),
        other_user_address_list: protos(&enrolled.peers, ""),
        username: user_name,
        ..RegisterUserResponse::default()
    })
}

fn protos(devices: &[DeviceAddress], user_name: &str) -> Vec<E2eeAddress> {
    devices
        .iter()
        .map(|device| device.to_proto_named(user_name))
        .collect()
}

/// Whose device it is going to be.
struct Owner {
    user: User,
    is_new: bool,
    inviter: Option<User>,
}

/// Checks the proof and finds or makes the user. `None` for a wrong code, whose count must be committed.
async fn admit(node: &Node, tx: &mut Tx, applicant: &Applicant) -> Result<Option<Owner>> {
    let now = node.clock.now_ms();
    let user = applicant.address.user();
    let (authenticator, inviter) = match &applicant.proof {
        Proof::Code {
            authenticator,
            hash,
        } => {
            let name = authenticator.canonical();
            let attempts_max = node.limits.auth_code_attempts_max;
            if !codes::spend(tx, name, hash, now, attempts_max).await? {
                return Ok(None);
            }
            if let Some(bound) = users::by_authenticator(tx, name).await? {
                return further_device(bound, &user.user_id).map(Some);
            }
            if node.config.accounts.registration == Registration::Invitation {
                return Err(Error::Forbidden("new users need an invitation"));
            }
            (Some(name), None)
        }
        Proof::Invitation { inviter, hash } => {
            let inviter = users::by_id(tx, inviter)
                .await?
                .filter(|inviter| inviter.state == UserState::Normal)
                .ok_or(WRONG_CODE)?;
            if !invitations::spend(tx, hash, inviter.key, now).await? {
                return Ok(None);
            }
            (None, Some(inviter))
        }
    };
    let user = users::insert(tx, &user, &applicant.user_name, now)
        .await?
        .ok_or(TAKEN)?;
    if let Some(name) = authenticator {
        users::bind(tx, user.key, name).await?;
    }
    Ok(Some(Owner {
        user,
        is_new: true,
        inviter,
    }))
}

fn further_device(bound: User, asked: &str) -> Result<Owner> {
    if bound.user_id != asked {
        return Err(Error::Conflict(
            "the authenticator belongs to another user id",
        ));
    }
    if bound.state != UserState::Normal {
        return Err(Error::Forbidden("the account is suspended"));
    }
    Ok(Owner {
        user: bound,
        is_new: false,
        inviter: None,
    })
}

/// What the answer says about a device that is in.
struct Enrolled {
    certificate: Certificate,
    siblings: Vec<DeviceAddress>,
    peers: Vec<DeviceAddress>,
}

async fn enroll(
    node: &Node,
    tx: &mut Tx,
    applicant: &Applicant,
    owner: &Owner,
    password_hash: &str,
    token: &Token,
) -> Result<(Enrolled, Wake)> {
    let address = &applicant.address;
    let mut wake = Wake::default();
    let known = devices::find(tx, address).await?;
    if let Some(key) = known {
        let former = Leaving {
            key,
            user_key: owner.user.key,
            user_name: &owner.user.user_name,
            address,
        };
        wake.merge(device::remove(node, tx, &former).await?);
    }
    // Both lists are of the time before this device: it must never be told to invite itself.
    let siblings = device::siblings(node, tx, owner.user.key, address).await?;
    let siblings_max = usize::try_from(node.limits.devices_per_user_max).unwrap_or(usize::MAX);
    if known.is_none() && siblings.len() >= siblings_max {
        return Err(Error::Throttled("the user has too many devices"));
    }
    let peers = sessions::of_user(tx, owner.user.key, &address.user()).await?;

    let (signing_key_id, certificate) = node.signer.certificate();
    let registration = devices::Registration {
        user_key: owner.user.key,
        address,
        e2ee_pack_id: applicant.e2ee_pack_id,
        identity: &applicant.identity,
        spk: &applicant.spk,
        opks: &applicant.opks,
        signing_key_id,
        password_hash,
        now: token.issued_at,
    };
    let device_key = match known {
        Some(key) => {
            devices::replace(tx, key, &registration).await?;
            key
        }
        None => devices::insert(tx, &registration).await?,
    };
    let times = [token.issued_at, token.expires_at];
    let tokens_max = node.limits.tokens_per_device_max;
    wake.merge(tokens::issue(tx, device_key, &token.hash, times, tokens_max).await?);

    let enrolled = Enrolled {
        certificate,
        siblings,
        peers,
    };
    if owner.is_new {
        wake.merge(welcome(node, tx, address).await?);
    }
    if let Some(inviter) = &owner.inviter {
        wake.merge(befriend(node, tx, &owner.user, address, inviter).await?);
    }
    wake.merge(announce(node, tx, &owner.user, address, &enrolled).await?);
    Ok((enrolled, wake))
}

/// Tells a user's first device that it is in.
async fn welcome(node: &Node, tx: &mut Tx, device: &Local<DeviceAddress>) -> Result<Wake> {
    let letter = Letter {
        from: None,
        payload: Payload::SystemManagerMsg(SystemManagerMsg {
            modified_date: node.clock.now_ms(),
            op: SystemOp::RegisterSuccessMsg.into(),
            payload: bytes::Bytes::new(),
        }),
    };
    let to = [DeviceAddress::clone(device)];
    delivery::queue(node, tx, &letter, &node.clock.id(), to).await
}

/// Tells the user's other devices, and everybody who has a session with one of them, that there is one more.
/// Without older devices the message has no effect at its receivers, so none is sent.
async fn announce(
    node: &Node,
    tx: &mut Tx,
    user: &User,
    device: &Local<DeviceAddress>,
    enrolled: &Enrolled,
) -> Result<Wake> {
    if enrolled.siblings.is_empty() {
        return Ok(Wake::default());
    }
    let address = device.to_proto_named(&user.user_name);
    let letter = Letter {
        from: Some(address.clone()),
        payload: Payload::AddUserDeviceMsg(AddUserDeviceMsg {
            user_address: Some(address),
            old_address_list: protos(&enrolled.siblings, &user.user_name),
        }),
    };
    let to = enrolled.siblings.iter().chain(&enrolled.peers).cloned();
    delivery::queue(node, tx, &letter, &node.clock.id(), to).await
}

/// Makes an inviter and the invited friends, and tells the inviter's devices.
async fn befriend(
    node: &Node,
    tx: &mut Tx,
    guest: &User,
    device: &Local<DeviceAddress>,
    inviter: &User,
) -> Result<Wake> {
    let now = node.clock.now_ms();
    let inviter_address = node.home.user(&inviter.user_id)?;
    let sides = [
        Side {
            user_key: guest.key,
            friend: &inviter_address,
            nickname: &inviter.user_name,
        },
        Side {
            user_key: inviter.key,
            friend: &device.user,
            nickname: &guest.user_name,
        },
    ];
    for side in &sides {
        friends::befriend(tx, side, now).await?;
    }
    let from = device.to_proto_named(&guest.user_name);
    let event = node.clock.id();
    let letter = Letter {
        from: Some(from.clone()),
        payload: Payload::FriendManagerMsg(FriendManagerMsg {
            modified_date: now,
            msg_id: event.clone(),
            user_address: Some(from),
            user_name: guest.user_name.clone(),
            op: FriendOp::Added.into(),
            friend: Some(FriendshipDto {
                modified_date: now,
                from_user: inviter_address.to_string(),
                to_user: device.user.to_string(),
                nickname: guest.user_name.clone(),
                friend_status: FriendStatus::Friend.into(),
                ..FriendshipDto::default()
            }),
        }),
    };
    let to = devices::of_user(tx, &node.home, inviter.key).await?;
    let to = to.iter().map(|device| DeviceAddress::clone(device));
    delivery::queue(node, tx, &letter, &event, to).await
}
