//! What people of a scripted peer say: good messages, to be spoiled by the test, and acquaintance with real people.

use skiserver::{
    address::DeviceAddress,
    client::{
        Pack,
        keys::random,
        talk::{self, fresh_id},
    },
    proto::{
        skiserver::SubmitProtoMsgRequest,
        skissm::{
            AcceptMsg, AddUserDeviceMsg, E2eeAddress, E2eeMsg, InviteMsg, InviteRequest,
            NotifLevel, One2oneMsgPayload, ProtoMsg, ProtoMsgTag, ResponseCode,
            SendOne2oneMsgRequest, ServerSignedSignature, UpdateUserMsg, UpdateUserNameArg,
            UpdateUserOp, e2ee_msg, proto_msg::Payload, update_user_msg,
        },
    },
};

use super::{Scripted, Target};
use crate::lab::{Lab, OpenStream, answer, assert_code};

const VERSION: &str = "\u{1}";
const PACK: Pack = Pack::SMALL;

impl Target {
    /// A message that [`OpenStream::next_text`] reads.
    pub(crate) fn letter(&self, to: &DeviceAddress, text: &str) -> SendOne2oneMsgRequest {
        let payload = One2oneMsgPayload {
            sequence: 1,
            ciphertext: format!("{text:.<32}").into_bytes().into(),
            ratchet_key: random(PACK.asym_key),
            root_sequence: 1,
            sending_message_sequence: 1,
        };
        let letter = E2eeMsg {
            version: VERSION.to_owned(),
            from: Some(self.address.to_proto()),
            to: Some(to.to_proto()),
            msg_id: fresh_id(),
            session_id: "session".to_owned(),
            notif_level: NotifLevel::Push.into(),
            payload: Some(e2ee_msg::Payload::One2oneMsg(payload)),
        };
        SendOne2oneMsgRequest { msg: Some(letter) }
    }

    /// An invite without a one-time key, as the inviter's home completes it.
    pub(crate) fn invitation(&self, to: &DeviceAddress) -> InviteRequest {
        let invite = InviteMsg {
            version: VERSION.to_owned(),
            e2ee_pack_id: PACK.id,
            session_id: fresh_id(),
            from: Some(self.address.to_proto()),
            to: Some(to.to_proto()),
            alice_identity_key: random(PACK.asym_key),
            alice_base_key: random(PACK.asym_key),
            pre_shared_input_list: vec![random(PACK.ciphertext), random(PACK.ciphertext)],
            bob_signed_pre_key_id: 1,
            bob_one_time_pre_key_id: 0,
            invite_t: 1_700_000_000_000,
        };
        InviteRequest { msg: Some(invite) }
    }

    /// The answer to an invite of `to`.
    pub(crate) fn acceptance(&self, to: &DeviceAddress) -> Payload {
        Payload::AcceptMsg(AcceptMsg {
            from: Some(self.address.to_proto()),
            to: Some(to.to_proto()),
            e2ee_pack_id: PACK.id,
            encaps_ciphertext: random(PACK.ciphertext),
            ratchet_key: random(PACK.asym_key),
        })
    }

    /// The news that this device is new, beside one that the user had before.
    pub(crate) fn news_of_device(&self) -> Payload {
        let before = self.address.user.device("before").unwrap();
        Payload::AddUserDeviceMsg(AddUserDeviceMsg {
            user_address: Some(self.address.to_proto()),
            old_address_list: vec![before.to_proto()],
        })
    }

    /// The news of the user's name.
    pub(crate) fn news_of_name(&self, name: &str) -> Payload {
        let arg = UpdateUserNameArg {
            username: name.to_owned(),
        };
        Payload::UpdateUserMsg(UpdateUserMsg {
            modified_date: 1_700_000_000_000,
            user_address: Some(self.address.to_proto()),
            op: UpdateUserOp::Name.into(),
            arg: Some(update_user_msg::Arg::UpdateUserNameArg(arg)),
        })
    }

    /// What the peer submits, with a tag and a signature of its own that nobody here may see.
    pub(crate) fn submission(
        &self,
        id: &str,
        to: E2eeAddress,
        payload: Payload,
    ) -> SubmitProtoMsgRequest {
        let message = ProtoMsg {
            tag: Some(ProtoMsgTag {
                proto_msg_t: 7,
                proto_msg_id: id.to_owned(),
            }),
            from: Some(self.address.to_proto()),
            to: Some(to),
            payload: Some(payload),
            signature_list: vec![ServerSignedSignature {
                msg_fingerprint: random(32),
                signature: random(64),
                ..ServerSignedSignature::default()
            }],
        };
        SubmitProtoMsgRequest {
            proto_msg: Some(message),
            ignored_device_id_list: Vec::new(),
        }
    }
}

impl Scripted {
    /// Has somebody of the peer invite the device behind the stream, which accepts: they have a session then.
    pub(crate) async fn meets(&self, lab: &Lab, stranger: &Target, stream: &mut OpenStream) {
        let device = stream.device().clone();
        let mut node = self.calls(lab, device.domain().as_str());
        let invitation = stranger.invitation(device.address());
        assert_code(&answer(node.invite(invitation)).await, ResponseCode::Ok);
        let invite = stream.next_invite().await.said;
        let acceptance = talk::acceptance(&device, &invite).unwrap();
        talk::accept(&device, &acceptance).await.unwrap();
    }
}
