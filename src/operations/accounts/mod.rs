//! Accounts: auth codes, ids, registration, signing in, and the end of a device.

use std::net::{IpAddr, Ipv6Addr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    caller::Caller,
    error::{Error, Result},
    node::Node,
    proto::{
        skiserver::{
            AcquireServerInfoRequest, AcquireServerInfoResponse, AskUserIdAvailableRequest,
            AskUserIdAvailableResponse,
        },
        skissm::ServerHeartbeatMsg,
    },
    signing::sha256,
    store::users,
};

mod applicant;
mod codes;
mod device;
mod login;
mod register;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

pub use codes::acquire_code;
pub use device::{logout, on_removed_device};
pub use login::login;
pub use register::register;

/// Random bytes of a token.
const TOKEN_RANDOM_BYTES: usize = 32;
const DAY_MS: i64 = 86_400_000;

/// Says whether a user id is free; ids that differ in letter case alone are one.
pub async fn ask_user_id(
    node: &Node,
    caller: &Caller,
    request: AskUserIdAvailableRequest,
) -> Result<AskUserIdAvailableResponse> {
    limit_address(node, caller)?;
    let user = node.home.user(&request.user_id)?;
    if users::is_taken(&node.store, &user).await? {
        return Err(TAKEN);
    }
    Ok(AskUserIdAvailableResponse::default())
}

/// Name and time of this node.
pub async fn server_info(
    node: &Node,
    _caller: &Caller,
    _request: AcquireServerInfoRequest,
) -> Result<AcquireServerInfoResponse> {
    Ok(AcquireServerInfoResponse {
        heartbeat: Some(ServerHeartbeatMsg {
            hostname: node.home.name().to_owned(),
            server_t: node.clock.now_ms(),
        }),
        ..AcquireServerInfoResponse::default()
    })
}

const TAKEN: Error = Error::Conflict("the user id is taken");

/// A token before its device knows it. Only its hash is stored.
struct Token {
    text: String,
    hash: [u8; 32],
    issued_at: i64,
    expires_at: i64,
}

impl Token {
    fn fresh(node: &Node) -> Self {
        let text = URL_SAFE_NO_PAD.encode(rand::random::<[u8; TOKEN_RANDOM_BYTES]>());
        let issued_at = node.clock.now_ms();
        Self {
            hash: sha256(&[text.as_bytes()]),
            text,
            issued_at,
            expires_at: issued_at + i64::from(node.limits.token_days) * DAY_MS,
        }
    }
}

/// Counts a call that costs a hash, a mail or a row against the network address that it came from.
fn limit_address(node: &Node, caller: &Caller) -> Result<()> {
    match caller {
        Caller::Nobody(address) => node.rates.addresses.check(
            &network(*address),
            "too many account calls from this address",
        ),
        Caller::Device(_) | Caller::Peer(_) => Ok(()),
    }
}

/// What counts as one address: whoever has one IPv6 address has the 64 bits below it.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}
