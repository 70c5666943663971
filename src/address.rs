//! Names of domains, users, devices and groups, parsed once at the edge, and [`Home`], the one place that
//! knows which of them are ours.

use std::{fmt, sync::Arc};

use crate::{
    error::{Error, Result},
    limits,
    proto::skissm::{E2eeAddress, PeerGroup, PeerUser, e2ee_address::Peer},
};

/// A DNS domain in its canonical spelling: lower-case ASCII labels without a final dot.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Arc<str>);

impl Domain {
    /// Accepts any letter case and answers the canonical spelling; refuses what could not be looked up.
    pub fn parse(text: &str) -> Result<Self> {
        let valid = !text.is_empty()
            && text.len() <= limits::DOMAIN_BYTES_MAX
            && text.split('.').all(is_label)
            && text.parse::<std::net::IpAddr>().is_err();
        if valid {
            Ok(Self(text.to_ascii_lowercase().into()))
        } else {
            Err(Error::Invalid("domain"))
        }
    }

    /// The canonical spelling.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_label(label: &str) -> bool {
    (1..=63).contains(&label.len())
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What an identifier may contain: no control characters, within `bytes_max`, not empty.
pub fn identifier(text: &str, bytes_max: usize, what: &'static str) -> Result<String> {
    if text.is_empty() || text.len() > bytes_max || text.chars().any(char::is_control) {
        return Err(Error::Invalid(what));
    }
    Ok(text.to_owned())
}

/// A user id: no white space and none of the separators of our textual addresses.
pub fn user_id(text: &str) -> Result<String> {
    if text
        .chars()
        .any(|c| c.is_whitespace() || matches!(c, '@' | '/' | ';'))
    {
        return Err(Error::Invalid("user_id"));
    }
    identifier(text, limits::USER_ID_BYTES_MAX, "user_id")
}

/// The name that a user shows to others: not blank, and short enough for every client.
pub fn user_name(text: &str) -> Result<String> {
    let chars_max = limits::USER_NAME_CHARS_MAX;
    if text.trim().is_empty() || text.chars().count() > chars_max {
        return Err(Error::Invalid("user_name"));
    }
    identifier(text, chars_max * 4, "user_name")
}

/// One person on one domain. Its text is `user_id@domain`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserAddress {
    /// The domain that the user belongs to.
    pub domain: Domain,
    /// Unique on that domain.
    pub user_id: String,
}

impl UserAddress {
    /// Reads `user_id@domain`.
    pub fn parse(text: &str) -> Result<Self> {
        let (id, domain) = text.split_once('@').ok_or(Error::Invalid("address"))?;
        Ok(Self {
            domain: Domain::parse(domain)?,
            user_id: user_id(id)?,
        })
    }

    /// Reads an address that names a user; the device part is left aside.
    pub fn from_proto(address: Option<&E2eeAddress>) -> Result<Self> {
        let address = address.ok_or(Error::Invalid("address"))?;
        let Some(Peer::User(user)) = &address.peer else {
            return Err(Error::Invalid("address"));
        };
        Ok(Self {
            domain: Domain::parse(&address.domain)?,
            user_id: user_id(&user.user_id)?,
        })
    }

    /// The address with an empty device id: all devices of the user.
    pub fn to_proto(&self) -> E2eeAddress {
        user_address(&self.domain, &self.user_id, "", "")
    }

    /// One device of this user.
    pub fn device(&self, device_id: &str) -> Result<DeviceAddress> {
        Ok(DeviceAddress {
            user: self.clone(),
            device_id: identifier(device_id, limits::DEVICE_ID_BYTES_MAX, "device_id")?,
        })
    }
}

impl fmt::Display for UserAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user_id, self.domain)
    }
}

/// One device of one user. Its text is `user_id@domain/device_id`; a device id may itself contain a slash.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceAddress {
    /// Whose device.
    pub user: UserAddress,
    /// Unique among the user's devices.
    pub device_id: String,
}

impl DeviceAddress {
    /// Reads the text form back.
    pub fn parse(text: &str) -> Result<Self> {
        let (user, device_id) = text.split_once('/').ok_or(Error::Invalid("address"))?;
        UserAddress::parse(user)?.device(device_id)
    }

    /// Reads a full address; one without a device id is refused.
    pub fn from_proto(address: Option<&E2eeAddress>) -> Result<Self> {
        let user = UserAddress::from_proto(address)?;
        match address.and_then(|a| a.peer.as_ref()) {
            Some(Peer::User(peer)) => user.device(&peer.device_id),
            _ => Err(Error::Invalid("address")),
        }
    }

    /// The address on the wire, without a user name.
    pub fn to_proto(&self) -> E2eeAddress {
        user_address(&self.user.domain, &self.user.user_id, &self.device_id, "")
    }

    /// The address on the wire with the registered name, as own addresses carry it.
    pub fn to_proto_named(&self, user_name: &str) -> E2eeAddress {
        user_address(
            &self.user.domain,
            &self.user.user_id,
            &self.device_id,
            user_name,
        )
    }

    /// The domain of the user.
    pub fn domain(&self) -> &Domain {
        &self.user.domain
    }
}

impl fmt::Display for DeviceAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.user, self.device_id)
    }
}

fn user_address(domain: &Domain, user_id: &str, device_id: &str, user_name: &str) -> E2eeAddress {
    E2eeAddress {
        domain: domain.as_str().to_owned(),
        peer: Some(Peer::User(PeerUser {
            user_name: user_name.to_owned(),
            user_id: user_id.to_owned(),
            device_id: device_id.to_owned(),
        })),
    }
}

/// A group at its home domain. Its text is `group_id@domain`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupAddress {
    /// The domain that decides about the group.
    pub domain: Domain,
    /// Unique on that domain.
    pub group_id: String,
}

impl GroupAddress {
    /// Reads an address that names a group.
    pub fn from_proto(address: Option<&E2eeAddress>) -> Result<Self> {
        let address = address.ok_or(Error::Invalid("group address"))?;
        let Some(Peer::Group(group)) = &address.peer else {
            return Err(Error::Invalid("group address"));
        };
        Ok(Self {
            domain: Domain::parse(&address.domain)?,
            group_id: user_id(&group.group_id)?,
        })
    }

    /// The address on the wire.
    pub fn to_proto(&self, group_name: &str) -> E2eeAddress {
        E2eeAddress {
            domain: self.domain.as_str().to_owned(),
            peer: Some(Peer::Group(PeerGroup {
                group_name: group_name.to_owned(),
                group_id: self.group_id.clone(),
            })),
        }
    }
}

impl fmt::Display for GroupAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.group_id, self.domain)
    }
}

/// A name that is proved to be of this node's domain. Only [`Home`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Local<T>(T);

impl<T> std::ops::Deref for Local<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// A name that is proved to be of another domain. Only [`Home`] makes one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Remote<T>(T);

impl<T> std::ops::Deref for Remote<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// Where a name belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route<T> {
    /// This node owns it.
    Here(Local<T>),
    /// Another domain owns it.
    There(Remote<T>),
}

/// Everything that has a domain.
pub trait Named: Clone {
    /// The domain that owns the name.
    fn domain(&self) -> &Domain;
}

impl Named for Domain {
    fn domain(&self) -> &Domain {
        self
    }
}

impl Named for UserAddress {
    fn domain(&self) -> &Domain {
        &self.domain
    }
}

impl Named for DeviceAddress {
    fn domain(&self) -> &Domain {
        &self.user.domain
    }
}

impl Named for GroupAddress {
    fn domain(&self) -> &Domain {
        &self.domain
    }
}

/// This node's domain. The field is private: whether something is ours can only be asked here.
#[derive(Debug, Clone)]
pub struct Home {
    domain: Domain,
}

impl Home {
    /// The home of a node of `domain`.
    pub fn new(domain: Domain) -> Self {
        Self { domain }
    }

    /// Decides between here and there.
    pub fn route<T: Named>(&self, name: &T) -> Route<T> {
        if *name.domain() == self.domain {
            Route::Here(Local(name.clone()))
        } else {
            Route::There(Remote(name.clone()))
        }
    }

    /// The name as ours, or [`Error::NotHere`].
    pub fn local<T: Named>(&self, name: &T) -> Result<Local<T>> {
        match self.route(name) {
            Route::Here(local) => Ok(local),
            Route::There(_) => Err(Error::NotHere),
        }
    }

    /// A user of this domain.
    pub fn user(&self, user_id: &str) -> Result<Local<UserAddress>> {
        Ok(Local(UserAddress {
            domain: self.domain.clone(),
            user_id: self::user_id(user_id)?,
        }))
    }

    /// A device of this domain, from columns that were checked when they were written.
    pub fn device_from_columns(&self, user_id: String, device_id: String) -> Local<DeviceAddress> {
        Local(DeviceAddress {
            user: UserAddress {
                domain: self.domain.clone(),
                user_id,
            },
            device_id,
        })
    }

    /// A fresh group address of this domain.
    pub fn group(&self, group_id: String) -> Local<GroupAddress> {
        Local(GroupAddress {
            domain: self.domain.clone(),
            group_id,
        })
    }

    /// The spelling that goes into answers.
    pub fn name(&self) -> &str {
        self.domain.as_str()
    }

    /// The domain as the identity that we show to peers.
    pub fn identity(&self) -> Domain {
        self.domain.clone()
    }
}

impl Local<DeviceAddress> {
    /// The user, who is then ours too.
    pub fn user(&self) -> Local<UserAddress> {
        Local(self.0.user.clone())
    }
}
