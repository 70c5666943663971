//! What all payloads of a `ProtoMsg` have in common: a field number and an encoding of their own.

use prost::Message as _;

use crate::proto::skissm::proto_msg::Payload;

/// The field number of `AcceptMsg`.
pub const ACCEPT: i64 = 23;
/// The field number of `CreateGroupMsg`.
pub const CREATE_GROUP: i64 = 41;
/// The field number of `AddGroupMembersMsg`.
pub const ADD_GROUP_MEMBERS: i64 = 42;
/// The field number of `AddGroupMemberDeviceMsg`.
pub const ADD_GROUP_MEMBER_DEVICE: i64 = 44;

/// The field number of a payload, and its message encoded without tag or length.
fn parts(payload: &Payload) -> (i64, Vec<u8>) {
    match payload {
        Payload::AcquireSyncMsg(m) => (11, m.encode_to_vec()),
        Payload::SupplyOpksMsg(m) => (21, m.encode_to_vec()),
        Payload::InviteMsg(m) => (22, m.encode_to_vec()),
        Payload::AcceptMsg(m) => (ACCEPT, m.encode_to_vec()),
        Payload::AddUserDeviceMsg(m) => (24, m.encode_to_vec()),
        Payload::RemoveUserDeviceMsg(m) => (25, m.encode_to_vec()),
        Payload::CreateGroupMsg(m) => (CREATE_GROUP, m.encode_to_vec()),
        Payload::AddGroupMembersMsg(m) => (ADD_GROUP_MEMBERS, m.encode_to_vec()),
        Payload::RemoveGroupMembersMsg(m) => (43, m.encode_to_vec()),
        Payload::AddGroupMemberDeviceMsg(m) => (ADD_GROUP_MEMBER_DEVICE, m.encode_to_vec()),
        Payload::LeaveGroupMsg(m) => (45, m.encode_to_vec()),
        Payload::E2eeMsg(m) => (51, m.encode_to_vec()),
        Payload::UpdateUserMsg(m) => (61, m.encode_to_vec()),
        Payload::FriendManagerMsg(m) => (91, m.encode_to_vec()),
        Payload::GroupManagerMsg(m) => (92, m.encode_to_vec()),
        Payload::SystemManagerMsg(m) => (93, m.encode_to_vec()),
        Payload::ClientHeartbeatMsg(m) => (101, m.encode_to_vec()),
        Payload::ServerHeartbeatMsg(m) => (102, m.encode_to_vec()),
        Payload::UpgradeE2eePackMsg(m) => (901, m.encode_to_vec()),
    }
}

/// The field number of a payload in `ProtoMsg`.
pub fn kind(payload: &Payload) -> i64 {
    parts(payload).0
}

/// The payload's message encoded without tag or length, as fingerprints cover it.
pub fn encoded(payload: &Payload) -> Vec<u8> {
    parts(payload).1
}
