//! `Login`: a device that lost its token gets another for its password.

use super::Token;
use crate::{
    address::{DeviceAddress, Local},
    caller::Caller,
    error::{Error, Result},
    limits,
    node::Node,
    proto::{
        ski::UserState,
        skiserver::{LoginRequest, LoginResponse},
    },
    store::{devices, tokens},
};

/// One answer, in the same time, whatever is wrong.
const REFUSED: Error = Error::Unauthenticated("address and password do not match");

/// Gives a device another token. Its oldest goes if it has too many.
pub async fn login(node: &Node, caller: &Caller, request: LoginRequest) -> Result<LoginResponse> {
    super::limit_address(node, caller)?;
    let device = address(node, &request).ok_or(REFUSED)?;
    let failures = match caller {
        Caller::Nobody(from) => format!("{} {}", super::network(*from), *device),
        Caller::Device(_) | Caller::Peer(_) => device.to_string(),
    };
    node.rates
        .logins
        .check(&failures, "too many failed logins")?;

    let known = devices::credentials(&node.store, &device).await?;
    let hash = known.as_ref().map(|known| known.password_hash.clone());
    let right = node.passwords.verify(request.password, hash).await?;
    let Some(known) = known.filter(|_| right) else {
        node.rates.logins.count(failures);
        return Err(REFUSED);
    };
    if known.state != UserState::Normal {
        return Err(Error::Forbidden("the account is suspended"));
    }

    let token = Token::fresh(node);
    let times = [token.issued_at, token.expires_at];
    let tokens_max = node.limits.tokens_per_device_max;
    let mut tx = node.store.begin().await?;
    if !devices::signed_in(
        &mut tx,
        known.device_key,
        &known.password_hash,
        token.issued_at,
    )
    .await?
    {
        return Err(REFUSED);
    }
    let wake = tokens::issue(&mut tx, known.device_key, &token.hash, times, tokens_max).await?;
    tx.commit(wake).await?;
    Ok(LoginResponse {
        auth: token.text,
        expires_in: token.expires_at,
        user_state: known.state.into(),
        ..LoginResponse::default()
    })
}

/// A device of this domain with a password that is worth comparing.
fn address(node: &Node, request: &LoginRequest) -> Option<Local<DeviceAddress>> {
    let length = 1..=limits::PASSWORD_BYTES_MAX;
    let device = DeviceAddress::from_proto(request.user_address.as_ref()).ok()?;
    let device = node.home.local(&device).ok()?;
    length.contains(&request.password.len()).then_some(device)
}
