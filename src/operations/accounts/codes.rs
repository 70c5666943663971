//! Auth codes: six digits that prove a mail address or phone number.

use crate::{
    authenticator::Authenticator,
    caller::Caller,
    error::{Error, Result},
    gateways::Dispatch,
    node::Node,
    proto::skiserver::{AcquireAuthCodeRequest, AcquireAuthCodeResponse},
    signing::sha256,
    store::{Wake, codes},
};

/// Codes are below this.
const CODES: u32 = 1_000_000;

/// Sends a fresh code, which ends the one before it. Nobody learns from the answer whether the authenticator is
/// bound to anyone, nor whether the code got through.
pub async fn acquire_code(
    node: &Node,
    caller: &Caller,
    request: AcquireAuthCodeRequest,
) -> Result<AcquireAuthCodeResponse> {
    super::limit_address(node, caller)?;
    let authenticator = Authenticator::parse(&request.authenticator)?;
    if !node.codes.reaches(&authenticator) {
        return Err(Error::Invalid(
            "authenticator (this node sends codes by mail only)",
        ));
    }
    let slot = node.codes.slot()?;
    node.rates.codes.check(
        &authenticator.canonical().to_owned(),
        "too many codes for this authenticator",
    )?;

    let seconds = node.limits.auth_code_seconds;
    let code = format!("{:06}", rand::random_range(0..CODES));
    let hash = code_hash(authenticator.canonical(), &code);
    let expires_at = node.clock.now_ms() + i64::from(seconds) * 1_000;
    let mut tx = node.store.begin().await?;
    codes::put(&mut tx, authenticator.canonical(), &hash, expires_at).await?;
    tx.commit(Wake::default()).await?;

    let dispatch = Dispatch {
        authenticator,
        code,
        expires_at,
        minutes: seconds.div_ceil(60),
    };
    if node.codes.is_immediate() {
        node.codes.send(slot, dispatch).await?;
    } else {
        let gateway = node.codes.clone();
        node.tasks.spawn(async move {
            if let Err(Error::Internal(cause)) = gateway.send(slot, dispatch).await {
                tracing::error!(%cause, "an auth code could not be sent");
            }
        });
    }
    Ok(AcquireAuthCodeResponse {
        ttl: i32::try_from(seconds).unwrap_or(i32::MAX),
        ..AcquireAuthCodeResponse::default()
    })
}

/// What is stored of a code: without the authenticator it says nothing.
pub(super) fn code_hash(authenticator: &str, code: &str) -> [u8; 32] {
    sha256(&[authenticator.as_bytes(), b"\0", code.as_bytes()])
}
