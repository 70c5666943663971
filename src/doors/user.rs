//! Rows of `E2eeUnaryService` and `E2eeBackupService`: what users' apps call. Rows only, no bodies.

use std::sync::Arc;

use super::rpc_table;
use crate::{
    node::Node,
    operations::{accounts, keys, messages},
    proto::{
        skiserver::{
            e2ee_backup_service_server::E2eeBackupService,
            e2ee_unary_service_server::E2eeUnaryService, *,
        },
        skissm::*,
    },
};

/// The client door.
pub struct UserDoor(pub Arc<Node>);

impl UserDoor {
    fn node(&self) -> &Arc<Node> {
        &self.0
    }
}

rpc_table! { E2eeUnaryService => UserDoor {
    open acquire_auth_code(AcquireAuthCodeRequest) -> AcquireAuthCodeResponse = accounts::acquire_code;
    open ask_user_id_available(AskUserIdAvailableRequest) -> AskUserIdAvailableResponse = accounts::ask_user_id;
    open register_user(RegisterUserRequest) -> RegisterUserResponse = accounts::register;
    open login(LoginRequest) -> LoginResponse = accounts::login;
    open acquire_server_info(AcquireServerInfoRequest) -> AcquireServerInfoResponse = accounts::server_info;
    user logout(LogoutRequest) -> LogoutResponse = accounts::logout;
    user get_pre_key_bundle(GetPreKeyBundleRequest) -> GetPreKeyBundleResponse = keys::bundles;
    user publish_spk(PublishSpkRequest) -> PublishSpkResponse = keys::publish_signed;
    user supply_opks(SupplyOpksRequest) -> SupplyOpksResponse = keys::supply;
    user invite(InviteRequest) -> InviteResponse = messages::invite;
    user accept(AcceptRequest) -> AcceptResponse = messages::accept;
    user send_one2one_msg(SendOne2oneMsgRequest) -> SendOne2oneMsgResponse = messages::send_one_to_one;
    user consume_proto_msg(ConsumeProtoMsgRequest) -> ConsumeProtoMsgResponse = messages::consume;
    later_user update_authenticator(UpdateAuthenticatorRequest) -> UpdateAuthenticatorResponse;
    later_user add_friend(AddFriendRequest) -> AddFriendResponse;
    later_user remove_friend(RemoveFriendRequest) -> RemoveFriendResponse;
    later_user block_friend(BlockFriendRequest) -> BlockFriendResponse;
    later_user un_block_friend(UnBlockFriendRequest) -> UnBlockFriendResponse;
    later_user memo_friend(MemoFriendRequest) -> MemoFriendResponse;
    later_user get_friends(GetFriendsRequest) -> GetFriendsResponse;
    later_user get_user(GetUserRequest) -> GetUserResponse;
    later_user find_user(FindUserRequest) -> FindUserResponse;
    later_user create_group(CreateGroupRequest) -> CreateGroupResponse;
    later_user add_group_members(AddGroupMembersRequest) -> AddGroupMembersResponse;
    later_user add_group_member_device(AddGroupMemberDeviceRequest) -> AddGroupMemberDeviceResponse;
    later_user remove_group_members(RemoveGroupMembersRequest) -> RemoveGroupMembersResponse;
    later_user join_group(JoinGroupRequest) -> JoinGroupResponse;
    later_user leave_group(LeaveGroupRequest) -> LeaveGroupResponse;
    later_user update_group_name(UpdateGroupNameRequest) -> UpdateGroupNameResponse;
    later_user update_group_managers(UpdateGroupManagersRequest) -> UpdateGroupManagersResponse;
    later_user get_group(GetGroupRequest) -> GetGroupResponse;
    later_user send_group_msg(SendGroupMsgRequest) -> SendGroupMsgResponse;
    later_user update_push_id(UpdatePushIdRequest) -> UpdatePushIdResponse;
    later_user update_user_name(UpdateUserNameRequest) -> UpdateUserNameResponse;
    later_user update_user_privacy(UpdateUserPrivacyRequest) -> UpdateUserPrivacyResponse;
}}

/// The backup service of the client door.
pub struct BackupDoor(pub Arc<Node>);

impl BackupDoor {
    fn node(&self) -> &Arc<Node> {
        &self.0
    }
}

rpc_table! { E2eeBackupService => BackupDoor {
    later_user backup_msg(BackupMsgRequest) -> BackupMsgResponse;
    later_user download_msg(DownloadMsgRequest) -> DownloadMsgResponse;
    later_user update_msg_backup_key(UpdateMsgBackupKeyRequest) -> UpdateMsgBackupKeyResponse;
}}
