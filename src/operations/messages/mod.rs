//! Messages between devices: invite, accept, one-to-one, what peers submit, and consuming.

use std::time::Duration;

use crate::{
    address::DeviceAddress,
    caller::{Caller, Device},
    delivery,
    error::{Error, Result},
    limits,
    node::Node,
};

mod accept;
mod consume;
mod invite;
mod one_to_one;
mod submit;

pub use accept::accept;
pub use consume::{MessageId, consume};
pub use invite::invite;
pub use one_to_one::send_one_to_one;
pub use submit::submit;

/// How long a call waits for its rate bucket before it is refused.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);

/// How long an invite waits for its accept, and an accept is remembered.
const INVITE_DAYS: i64 = 40;

/// An id that a client chose.
fn client_id(text: &str, what: &'static str) -> Result<()> {
    crate::address::identifier(text, limits::MSG_ID_BYTES_MAX, what).map(drop)
}

/// The version field: a short text that passes through unchanged.
fn version(text: &str) -> Result<()> {
    if text.len() > 16 {
        Err(Error::Invalid("version"))
    } else {
        Ok(())
    }
}

fn bounded(node: &Node, message: &impl prost::Message, what: &'static str) -> Result<()> {
    if message.encoded_len() > node.limits.message_bytes_max {
        return Err(Error::Invalid(what));
    }
    Ok(())
}

/// The acting device as it goes out: a device of ours with its registered name, a peer's as the peer wrote it.
fn acting(
    caller: &Caller,
    from: &DeviceAddress,
    given_name: &str,
) -> crate::proto::skissm::E2eeAddress {
    match caller {
        Caller::Device(device) => from.to_proto_named(&device.user_name),
        Caller::Peer(_) | Caller::Nobody(_) => from.to_proto_named(
            &given_name
                .chars()
                .take(limits::USER_NAME_CHARS_MAX)
                .collect::<String>(),
        ),
    }
}

fn name_in(address: Option<&crate::proto::skissm::E2eeAddress>) -> &str {
    use crate::proto::skissm::e2ee_address::Peer;
    match address.and_then(|a| a.peer.as_ref()) {
        Some(Peer::User(user)) => &user.user_name,
        _ => "",
    }
}

/// Tells a device that another is gone, so that it forgets its sessions; once a day for each pair.
async fn tell_gone(node: &Node, device: &Device, gone: &DeviceAddress) -> Result<()> {
    let append = delivery::farewell(node, &device.address, gone);
    node.store.append(append).await.map(drop)
}

/// Whether an error is the owner's word that the device does not exist.
fn is_gone(error: &Error) -> bool {
    match error {
        Error::NotFound(_) => true,
        Error::Refused { code, .. } => crate::reply::is_not_found(*code),
        _ => false,
    }
}
