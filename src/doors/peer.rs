//! Rows of `E2eeS2SService`: what other domains' nodes call. Rows only, no bodies.

use std::sync::Arc;

use super::rpc_table;
use crate::{
    node::Node,
    operations::{accounts, keys, members, messages},
    proto::{
        skiserver::{e2ee_s2s_service_server::E2eeS2sService, *},
        skissm::*,
    },
};

/// The peer door.
pub struct PeerDoor(pub Arc<Node>);

impl PeerDoor {
    fn node(&self) -> &Arc<Node> {
        &self.0
    }
}

rpc_table! { E2eeS2sService => PeerDoor {
    peer get_pre_key_bundle(GetPreKeyBundleRequest) -> GetPreKeyBundleResponse = keys::bundles;
    peer invite(InviteRequest) -> InviteResponse = messages::invite;
    peer send_one2one_msg(SendOne2oneMsgRequest) -> SendOne2oneMsgResponse = messages::send_one_to_one;
    peer submit_proto_msg(SubmitProtoMsgRequest) -> SubmitProtoMsgResponse = messages::submit;
    peer acquire_group_member_infos(AcquireGroupMemberInfosRequest) -> AcquireGroupMemberInfosResponse = members::infos;
    peer remove_user_device(RemoveUserDeviceRequest) -> RemoveUserDeviceResponse = accounts::on_removed_device;
    later_peer get_user(GetUserRequest) -> GetUserResponse;
    later_peer add_friend(AddFriendRequest) -> AddFriendResponse;
    later_peer remove_friend(RemoveFriendRequest) -> RemoveFriendResponse;
    later_peer block_friend(BlockFriendRequest) -> BlockFriendResponse;
    later_peer un_block_friend(UnBlockFriendRequest) -> UnBlockFriendResponse;
    later_peer add_group_members(AddGroupMembersRequest) -> AddGroupMembersResponse;
    later_peer add_group_member_device(AddGroupMemberDeviceRequest) -> AddGroupMemberDeviceResponse;
    later_peer remove_group_members(RemoveGroupMembersRequest) -> RemoveGroupMembersResponse;
    later_peer join_group(JoinGroupRequest) -> JoinGroupResponse;
    later_peer leave_group(LeaveGroupRequest) -> LeaveGroupResponse;
    later_peer update_group_name(UpdateGroupNameRequest) -> UpdateGroupNameResponse;
    later_peer update_group_managers(UpdateGroupManagersRequest) -> UpdateGroupManagersResponse;
    later_peer get_group(GetGroupRequest) -> GetGroupResponse;
    later_peer send_group_msg(SendGroupMsgRequest) -> SendGroupMsgResponse;
}}
