//! What the home of a group asks about our users.

use crate::{
    address::UserAddress,
    caller::Caller,
    error::{Error, Result},
    node::Node,
    proto::{
        skiserver::{AcquireGroupMemberInfosRequest, AcquireGroupMemberInfosResponse},
        skissm::GroupMemberInfo,
    },
    store::contacts,
};

/// Address and sign key of every device of one of our users; unknown or without a device is not found.
pub async fn infos(
    node: &Node,
    caller: &Caller,
    request: AcquireGroupMemberInfosRequest,
) -> Result<AcquireGroupMemberInfosResponse> {
    let Caller::Peer(_) = caller else {
        return Err(Error::Forbidden("only peers ask for member infos"));
    };
    let user = node
        .home
        .local(&UserAddress::from_proto(request.user_address.as_ref())?)?;
    let mut infos = Vec::new();
    for (device_id, sign_public_key) in contacts::sign_keys(&node.store, &user).await? {
        infos.push(GroupMemberInfo {
            member_address: Some(user.device(&device_id)?.to_proto()),
            sign_public_key,
        });
    }
    if infos.is_empty() {
        return Err(Error::NotFound("user"));
    }
    Ok(AcquireGroupMemberInfosResponse {
        group_member_infos: infos,
        ..AcquireGroupMemberInfosResponse::default()
    })
}
