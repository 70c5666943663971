//! A registration as it comes in, with every field checked before anything else happens.

use crate::{
    address::{self, DeviceAddress, Local, UserAddress},
    authenticator::Authenticator,
    error::{Error, Result},
    limits,
    node::Node,
    operations::invitations,
    packs,
    proto::skissm::{
        IdentityKeyPublic, OneTimePreKeyPublic, RegisterUserRequest, SignedPreKeyPublic,
    },
};

/// Who wants to register which device, and with what right.
pub(super) struct Applicant {
    pub(super) address: Local<DeviceAddress>,
    pub(super) user_name: String,
    pub(super) proof: Proof,
    pub(super) e2ee_pack_id: u32,
    pub(super) identity: IdentityKeyPublic,
    pub(super) spk: SignedPreKeyPublic,
    pub(super) opks: Vec<OneTimePreKeyPublic>,
}

/// What gives the right to register. Whether it is true, only the store knows.
pub(super) enum Proof {
    /// A code that was sent to the authenticator.
    Code {
        authenticator: Authenticator,
        hash: [u8; 32],
    },
    /// An invitation of somebody on this domain. It proves no authenticator: whatever the request names is
    /// neither looked up nor bound, for it may be anybody's.
    Invitation {
        inviter: Local<UserAddress>,
        hash: [u8; 32],
    },
}

impl Applicant {
    pub(super) fn parse(node: &Node, request: RegisterUserRequest) -> Result<Self> {
        let user_name = address::user_name(&request.user_name)?;
        let user = node.home.user(&request.user_id)?;
        let address = node.home.local(&user.device(&request.device_id)?)?;
        let proof = Proof::parse(node, &request)?;
        let allowed = &node.config.accounts.allowed_e2ee_pack_ids;
        if !allowed.is_empty() && !allowed.contains(&request.e2ee_pack_id) {
            return Err(Error::Invalid("e2ee_pack_id"));
        }
        let identity = request
            .identity_key_public
            .ok_or(Error::Invalid("identity_key_public"))?;
        let spk = request
            .signed_pre_key_public
            .ok_or(Error::Invalid("signed_pre_key_public"))?;
        let opks = request.one_time_pre_key_list;
        packs::check_public_keys(request.e2ee_pack_id, &identity, &spk, &opks)?;
        if u32::try_from(opks.len()).unwrap_or(u32::MAX) > node.limits.opks_per_device_max {
            return Err(Error::Invalid("number of one-time pre-keys"));
        }
        Ok(Self {
            address,
            user_name,
            proof,
            e2ee_pack_id: request.e2ee_pack_id,
            identity,
            spk,
            opks,
        })
    }
}

impl Proof {
    fn parse(node: &Node, request: &RegisterUserRequest) -> Result<Self> {
        let code = request.auth_code.trim();
        if code.is_empty() || code.len() > limits::AUTH_CODE_BYTES_MAX {
            return Err(Error::Invalid("auth_code"));
        }
        if let Some(invitation) = invitations::parse(code)? {
            // Only invitations of this domain count: whose else are, nobody here can tell.
            let inviter = node.home.local(&invitation.inviter);
            return Ok(Self::Invitation {
                inviter: inviter.map_err(|_| super::register::WRONG_CODE)?,
                hash: invitation.hash,
            });
        }
        let authenticator = Authenticator::parse(&request.authenticator)?;
        let hash = super::codes::code_hash(authenticator.canonical(), code);
        Ok(Self::Code {
            authenticator,
            hash,
        })
    }
}
