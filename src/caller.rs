//! Who asks: a device with a valid token, a peer with a valid certificate, or nobody. Made by the doors
//! from what was verified, never from a field of a request.

use std::net::IpAddr;

use crate::{
    address::{DeviceAddress, Domain, Local, Named},
    error::{Error, Result},
};

/// A registered device whose token was valid when the request came in.
#[derive(Debug, Clone)]
pub struct Device {
    /// The key of its row.
    pub key: i64,
    /// The key of its user's row.
    pub user_key: i64,
    /// Its address.
    pub address: Local<DeviceAddress>,
    /// The name that its user registered.
    pub user_name: String,
    /// The server key whose signatures it verifies.
    pub signing_key_id: i64,
    /// SHA-256 of the token, to end the stream when the token ends.
    pub token_hash: [u8; 32],
    /// When the token ends, Unix ms.
    pub token_expires_at: i64,
}

/// Who asks.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A device of this domain.
    Device(Box<Device>),
    /// Another domain's node.
    Peer(Domain),
    /// Somebody without a token, at this network address.
    Nobody(IpAddr),
}

impl Caller {
    /// The device that asks.
    pub fn device(&self) -> Result<&Device> {
        match self {
            Self::Device(device) => Ok(device),
            Self::Peer(_) | Self::Nobody(_) => Err(Error::Unauthenticated("a token is needed")),
        }
    }

    /// Refuses unless the caller may act as `actor`: a device only as itself, a peer as its own people.
    pub fn speaks_for(&self, actor: &DeviceAddress) -> Result<()> {
        let may = match self {
            Self::Device(device) => *device.address == *actor,
            Self::Peer(domain) => domain == actor.domain(),
            Self::Nobody(_) => false,
        };
        if may {
            Ok(())
        } else {
            Err(Error::Forbidden("the acting address is not the caller's"))
        }
    }

    /// Refuses a peer that acts for a name outside its domain. Devices pass: their address is checked in full.
    pub fn speaks_for_domain_of<T: Named>(&self, actor: &T) -> Result<()> {
        match self {
            Self::Peer(domain) if domain != actor.domain() => {
                Err(Error::Forbidden("the acting address is of another domain"))
            }
            _ => Ok(()),
        }
    }
}
