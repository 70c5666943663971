//! The flow of a one-to-one session (contract section 2.3), step by step, with random bytes of true sizes. Each
//! message is made first and sent afterwards, so that an attempt without an answer is repeated byte for byte.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;

use super::{
    ClientError, Device, Pack,
    device::answered,
    granted,
    keys::random,
    verify::{self, Wrong},
};
use crate::{
    address::{DeviceAddress, UserAddress},
    proto::skissm::{
        AcceptMsg, AcceptRequest, ConsumeProtoMsgRequest, E2eeMsg, GetPreKeyBundleRequest,
        InviteMsg, InviteRequest, NotifLevel, One2oneMsgPayload, PreKeyBundle, ProtoMsgOpState,
        PublishSpkRequest, ResponseCode, SendOne2oneMsgRequest, SupplyOpksRequest,
        e2ee_msg::Payload,
    },
};

/// The version that the client library writes.
const VERSION: &str = "\u{1}";

/// A session or message id as the client library makes it.
pub fn fresh_id() -> String {
    STANDARD.encode(random(16))
}

/// The bundles of all devices of a user, each verified. None if the node has nothing to hand out.
pub async fn bundles(
    device: &Device,
    peer: &UserAddress,
) -> Result<Vec<PreKeyBundle>, ClientError> {
    let request = GetPreKeyBundleRequest {
        domain: peer.domain.as_str().to_owned(),
        user_id: peer.user_id.clone(),
        device_id: String::new(),
    };
    let answer = answered(
        "GetPreKeyBundle",
        device.unary().get_pre_key_bundle(request),
    )
    .await?;
    if answer.code == ResponseCode::NoContent as i32 {
        return Ok(Vec::new());
    }
    granted("GetPreKeyBundle", answer.code, &answer.msg)?;
    if answer.user_id != peer.user_id {
        return Err(Wrong("the bundles are of another user").into());
    }
    for bundle in &answer.pre_key_bundles {
        verify::bundle(bundle, device.certificate())?;
        let user = UserAddress::from_proto(bundle.user_address.as_ref());
        if user.ok().as_ref() != Some(peer) {
            return Err(Wrong("a bundle is of another user").into());
        }
    }
    Ok(answer.pre_key_bundles)
}

/// An invite to the device of `bundle`, in a new session.
pub fn invitation(device: &Device, bundle: &PreKeyBundle) -> Result<InviteMsg, ClientError> {
    let pack = Pack::find(bundle.e2ee_pack_id).ok_or(Wrong("the bundle's pack"))?;
    let spk_id = bundle
        .signed_pre_key_public
        .as_ref()
        .map_or(0, |spk| spk.spk_id);
    let opk_id = bundle
        .one_time_pre_key_public
        .as_ref()
        .map_or(0, |opk| opk.opk_id);
    let secrets = if opk_id == 0 { 2 } else { 3 };
    Ok(InviteMsg {
        version: VERSION.to_owned(),
        e2ee_pack_id: pack.id,
        session_id: fresh_id(),
        from: Some(device.address().to_proto()),
        to: bundle.user_address.clone(),
        alice_identity_key: Bytes::new(),
        alice_base_key: random(pack.asym_key),
        pre_shared_input_list: (0..secrets).map(|_| random(pack.ciphertext)).collect(),
        bob_signed_pre_key_id: spk_id,
        bob_one_time_pre_key_id: opk_id,
        invite_t: 0,
    })
}

/// Sends an invite. Answers the node's time of it.
pub async fn invite(device: &Device, message: &InviteMsg) -> Result<i64, ClientError> {
    let request = InviteRequest {
        msg: Some(message.clone()),
    };
    let answer = answered("Invite", device.unary().invite(request)).await?;
    granted("Invite", answer.code, &answer.msg)?;
    if answer.session_id != message.session_id {
        return Err(Wrong("Invite answers another session id").into());
    }
    Ok(answer.invite_t)
}

/// The answer to an invite that arrived. Refuses one that the node did not complete, or whose one-time key was
/// used before.
pub fn acceptance(device: &Device, invite: &InviteMsg) -> Result<AcceptMsg, ClientError> {
    let pack = device.keys().pack();
    if invite.alice_identity_key.len() != pack.asym_key || invite.invite_t == 0 {
        return Err(Wrong("an invite without the inviter's key or time").into());
    }
    let opk_id = invite.bob_one_time_pre_key_id;
    if opk_id != 0 && !device.keys().use_opk(opk_id) {
        return Err(Wrong("a one-time key was handed out twice").into());
    }
    Ok(AcceptMsg {
        from: Some(device.address().to_proto()),
        to: invite.from.clone(),
        e2ee_pack_id: pack.id,
        encaps_ciphertext: random(pack.ciphertext),
        ratchet_key: random(pack.asym_key),
    })
}

/// Sends an accept.
pub async fn accept(device: &Device, message: &AcceptMsg) -> Result<(), ClientError> {
    let request = AcceptRequest {
        msg: Some(message.clone()),
    };
    let answer = answered("Accept", device.unary().accept(request)).await?;
    granted("Accept", answer.code, &answer.msg)
}

/// A message of a session. `sequence` and `ciphertext` come out at the other end as they are.
pub fn one_to_one(
    device: &Device,
    to: &DeviceAddress,
    session_id: &str,
    sequence: u32,
    ciphertext: Bytes,
) -> E2eeMsg {
    E2eeMsg {
        version: VERSION.to_owned(),
        from: Some(device.address().to_proto()),
        to: Some(to.to_proto()),
        msg_id: fresh_id(),
        session_id: session_id.to_owned(),
        notif_level: NotifLevel::Push as i32,
        payload: Some(Payload::One2oneMsg(One2oneMsgPayload {
            sequence,
            ciphertext,
            ratchet_key: random(device.keys().pack().asym_key),
            root_sequence: 1,
            sending_message_sequence: sequence,
        })),
    }
}

/// Sends a message.
pub async fn send(device: &Device, message: &E2eeMsg) -> Result<(), ClientError> {
    let request = SendOne2oneMsgRequest {
        msg: Some(message.clone()),
    };
    let answer = answered("SendOne2oneMsg", device.unary().send_one2one_msg(request)).await?;
    granted("SendOne2oneMsg", answer.code, &answer.msg)
}

/// Tells the node that a message was handled. True if the node still had it.
pub async fn consume(device: &Device, proto_msg_id: &str) -> Result<bool, ClientError> {
    let request = ConsumeProtoMsgRequest {
        proto_msg_id: proto_msg_id.to_owned(),
        // The client library never says more.
        state: ProtoMsgOpState::Unspecified as i32,
    };
    let answer = answered("ConsumeProtoMsg", device.unary().consume_proto_msg(request)).await?;
    if answer.code == ResponseCode::NotFound as i32 {
        return Ok(false);
    }
    granted("ConsumeProtoMsg", answer.code, &answer.msg).map(|()| true)
}

/// Uploads `count` fresh one-time keys.
pub async fn supply(device: &Device, count: u32) -> Result<(), ClientError> {
    let request = SupplyOpksRequest {
        e2ee_pack_id: device.keys().pack().id,
        user_address: Some(device.address().to_proto()),
        one_time_pre_key_public_list: device.keys().opks(count),
    };
    let answer = answered("SupplyOpks", device.unary().supply_opks(request)).await?;
    granted("SupplyOpks", answer.code, &answer.msg)
}

/// Replaces the signed pre-key.
pub async fn publish_spk(device: &Device, spk_id: u32) -> Result<(), ClientError> {
    let request = PublishSpkRequest {
        user_address: Some(device.address().to_proto()),
        signed_pre_key_public: Some(device.keys().signed_pre_key(spk_id)),
    };
    let answer = answered("PublishSpk", device.unary().publish_spk(request)).await?;
    granted("PublishSpk", answer.code, &answer.msg)
}
