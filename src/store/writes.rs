//! What an operation hands to the writer, as values: messages, requests, records and the key that makes it
//! happen once.

use bytes::Bytes;

use crate::address::{DeviceAddress, Domain, Local, UserAddress};

/// What one operation writes, all of it or nothing.
#[derive(Debug, Default)]
pub struct Append {
    /// Makes the operation happen once.
    pub once: Option<Once>,
    /// Messages for devices of this domain.
    pub mail: Vec<Mail>,
    /// Sessions that this operation proves, one for each side that is ours.
    pub pairs: Vec<Pair>,
    /// An invite that one of our devices sends.
    pub invite: Option<InviteRecord>,
    /// Requests to other domains.
    pub parcels: Vec<Parcel>,
}

/// A deduplication key: SHA-256 of what identifies the operation.
#[derive(Debug, Clone)]
pub struct Once {
    /// The key.
    pub key: [u8; 32],
    /// A number that repeats are answered with.
    pub answer: i64,
    /// When the key may be forgotten, Unix ms.
    pub expires_at: i64,
}

/// The encoded form of something stored once, and its SHA-256.
#[derive(Debug, Clone)]
pub struct Body {
    hash: [u8; 32],
    bytes: Bytes,
}

impl Body {
    /// Hashes `bytes`.
    pub fn new(bytes: Bytes) -> Self {
        Self {
            hash: crate::signing::sha256(&[&bytes]),
            bytes,
        }
    }

    pub(super) fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    pub(super) fn hash(&self) -> [u8; 32] {
        self.hash
    }

    /// What a row that refers to this body counts against its bound.
    pub(super) fn stored_bytes(&self) -> i64 {
        i64::try_from(self.bytes.len()).unwrap_or(i64::MAX)
    }
}

/// One message for one or more devices of this domain.
#[derive(Debug, Clone)]
pub struct Mail {
    /// Which devices.
    pub to: Recipient,
    /// The field number of the payload in `ProtoMsg`.
    pub kind: i64,
    /// The acting device, or empty for messages of the server.
    pub sender: String,
    /// The `ProtoMsg` without tag, receiver and signatures.
    pub body: Body,
    /// A full mailbox refuses it, instead of growing past its bound.
    pub refusable: bool,
}

/// Who gets a message.
#[derive(Debug, Clone)]
pub enum Recipient {
    /// One device. If it is gone, the whole operation is [`Error::NotFound`].
    Device(Local<DeviceAddress>),
    /// All devices of a user but those named. A user without any device is [`Error::NotFound`].
    Devices(Local<UserAddress>, Vec<String>),
}

/// One side of a session: our device and the address of the other.
#[derive(Debug, Clone)]
pub struct Pair {
    /// Ours.
    pub device: Local<DeviceAddress>,
    /// The other, ours or not.
    pub peer: DeviceAddress,
}

/// An invite that one of our devices sends.
#[derive(Debug, Clone)]
pub struct InviteRecord {
    /// The inviter.
    pub from: Local<DeviceAddress>,
    /// The invited.
    pub to: DeviceAddress,
    /// The session that the inviter prepared.
    pub session_id: String,
    /// When, Unix ms.
    pub invite_t: i64,
    /// When the record may be forgotten, Unix ms.
    pub expires_at: i64,
}

/// One request to another domain, at its place in its lane.
#[derive(Debug, Clone)]
pub struct Parcel {
    /// Its place in the outbox, taken before anything else.
    pub place: i64,
    /// Where it goes.
    pub domain: Domain,
    /// The receiving user or group.
    pub lane: String,
    /// Which RPC, as `peers` numbers them.
    pub method: i64,
    /// The encoded request.
    pub body: Body,
    /// The device that is told about lateness and refusal; nobody if empty.
    pub sender: String,
    /// The recipient as that device knows it.
    pub recipient: String,
    /// The message as that device knows it, or empty.
    pub msg_id: String,
    /// When it expires, Unix ms.
    pub expires_at: i64,
}

/// What came of an [`Append`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appended {
    /// It is on disk.
    New,
    /// It was there before; the number that the first was stored with.
    Repeat(i64),
}
