//! What a suspicious client checks: everything that a node signs is computed again from the contract's
//! definitions (section 4.2), independently of how the node does it.

use std::cmp::Ordering;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use prost::Message;
use xeddsa::{Verify as _, xed25519::PublicKey};

use super::keys::Pack;
use crate::{
    address::{DeviceAddress, Domain},
    proto::skissm::{
        Certificate, DsAlgType, E2eeAddress, HashAlgType, PreKeyBundle, ProtoMsg, ProtoMsgTag,
        RegisterUserResponse, ServerSignedSignature, Subject, proto_msg::Payload,
    },
};

/// Which rule a node broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Wrong(pub &'static str);

/// Times before this one are not milliseconds.
const MILLISECONDS_FROM: i64 = 1_000_000_000_000;

fn must(holds: bool, rule: &'static str) -> Result<(), Wrong> {
    if holds { Ok(()) } else { Err(Wrong(rule)) }
}

/// Whether `signature` over `message` is one of the Curve25519 key `public_key`.
pub fn xed25519(public_key: &[u8], message: &[u8], signature: &[u8]) -> bool {
    match (public_key.try_into(), <&[u8; 64]>::try_from(signature)) {
        (Ok(key), Ok(signature)) => PublicKey(key).verify(message, signature).is_ok(),
        _ => false,
    }
}

fn sha256(parts: &[&[u8]]) -> Bytes {
    Bytes::copy_from_slice(digest(&SHA256, &parts.concat()).as_ref())
}

fn encoded(part: Option<&impl Message>) -> Vec<u8> {
    part.map(Message::encode_to_vec).unwrap_or_default()
}

fn complete(subject: Option<&Subject>) -> bool {
    subject.is_some_and(|s| {
        ![&s.cn, &s.domain, &s.o]
            .into_iter()
            .chain(&s.ou)
            .any(String::is_empty)
    })
}

/// The answer to a registration is complete, and about the device that asked.
pub fn registration(answer: &RegisterUserResponse, address: &DeviceAddress) -> Result<(), Wrong> {
    must(
        is(answer.address.as_ref(), address),
        "the registered address is another",
    )?;
    let texts = [&answer.username, &answer.password, &answer.auth];
    must(
        texts.iter().all(|text| !text.is_empty()),
        "the registration has an empty field",
    )?;
    must(
        answer.expires_in > MILLISECONDS_FROM,
        "expires_in is not a time in milliseconds",
    )?;
    let mut others = answer
        .other_device_address_list
        .iter()
        .chain(&answer.other_user_address_list);
    must(
        others.all(|other| DeviceAddress::from_proto(Some(other)).is_ok_and(|o| o != *address)),
        "a listed address is incomplete or the device's own",
    )?;
    certificate(
        answer.server_cert.as_ref().ok_or(Wrong("no certificate"))?,
        address.domain(),
    )
}

/// The signing certificate of a node is complete, its fingerprints are right and it is signed by itself.
pub fn certificate(certificate: &Certificate, domain: &Domain) -> Result<(), Wrong> {
    let inner = certificate
        .cert
        .as_ref()
        .ok_or(Wrong("the certificate is empty"))?;
    must(
        complete(inner.issuee.as_ref()) && complete(inner.issuer.as_ref()),
        "a subject of the certificate is incomplete",
    )?;
    let named = inner
        .issuee
        .as_ref()
        .is_some_and(|s| s.domain == domain.as_str());
    must(named, "the certificate is of another domain")?;
    must(
        certificate.version == 1
            && certificate.hash_alg == HashAlgType::Sha2256 as i32
            && certificate.signing_alg == DsAlgType::Curve25519 as i32
            && inner.public_key_alg == DsAlgType::Curve25519 as i32,
        "the certificate's version or algorithms",
    )?;
    must(
        certificate.valid,
        "the certificate says that it is not valid",
    )?;
    let times = [inner.not_before, certificate.ts, inner.not_after];
    must(
        times.is_sorted() && times.iter().all(|time| *time > MILLISECONDS_FROM),
        "the certificate's times",
    )?;
    must(
        certificate.cert_fingerprint == sha256(&[&inner.encode_to_vec()]),
        "the certificate's fingerprint",
    )?;
    must(
        certificate.signing_public_key_fingerprint == sha256(&[&inner.public_key]),
        "the fingerprint of the certificate's key",
    )?;
    must(
        xed25519(
            &inner.public_key,
            &certificate.cert_fingerprint,
            &certificate.signature,
        ),
        "the certificate's signature",
    )
}

fn signature(
    signature: &ServerSignedSignature,
    fingerprint: &Bytes,
    certificate: &Certificate,
) -> Result<(), Wrong> {
    let inner = certificate
        .cert
        .as_ref()
        .ok_or(Wrong("the certificate is empty"))?;
    must(
        signature.version == certificate.version
            && signature.hash_alg == certificate.hash_alg
            && signature.signing_alg == inner.public_key_alg,
        "the signature's version or algorithms",
    )?;
    must(
        signature.signer == inner.issuee,
        "the signer is not the certificate's subject",
    )?;
    must(
        signature.signing_public_key_fingerprint == sha256(&[&inner.public_key]),
        "the fingerprint of the signature's key",
    )?;
    must(
        signature.msg_fingerprint == *fingerprint,
        "the fingerprint of what is signed",
    )?;
    must(
        xed25519(
            &inner.public_key,
            &signature.msg_fingerprint,
            &signature.signature,
        ),
        "the signature",
    )
}

/// A bundle is complete, its sizes are those of its pack, and the asker's own node signed it.
pub fn bundle(bundle: &PreKeyBundle, certificate: &Certificate) -> Result<(), Wrong> {
    DeviceAddress::from_proto(bundle.user_address.as_ref())
        .map_err(|_| Wrong("the bundle's address"))?;
    let identity = bundle
        .identity_key_public
        .as_ref()
        .ok_or(Wrong("no identity keys"))?;
    let spk = bundle
        .signed_pre_key_public
        .as_ref()
        .ok_or(Wrong("no signed pre-key"))?;
    let opk = bundle.one_time_pre_key_public.as_ref();
    let pack = Pack::find(bundle.e2ee_pack_id).ok_or(Wrong("the bundle's pack"))?;
    must(
        identity.asym_public_key.len() == pack.asym_key
            && identity.sign_public_key.len() == pack.sign_key
            && spk.public_key.len() == pack.asym_key
            && spk.signature.len() == pack.signature,
        "the size of a key in a bundle",
    )?;
    must(
        opk.is_none_or(|opk| opk.opk_id != 0 && opk.public_key.len() == pack.asym_key),
        "the one-time key of a bundle",
    )?;
    must(
        pack != Pack::SMALL || xed25519(&identity.sign_public_key, &spk.public_key, &spk.signature),
        "the signature of a signed pre-key",
    )?;
    let fingerprint = sha256(&[
        &encoded(bundle.user_address.as_ref()),
        &identity.encode_to_vec(),
        &spk.encode_to_vec(),
        &encoded(opk),
    ]);
    let signed = bundle
        .signature
        .as_ref()
        .ok_or(Wrong("the bundle is not signed"))?;
    signature(signed, &fingerprint, certificate)
}

/// A message on the stream of `receiver`: the address is exact, there is a tag and one signature that covers it.
/// Heartbeats have neither.
pub fn message(
    message: &ProtoMsg,
    certificate: &Certificate,
    receiver: &DeviceAddress,
) -> Result<(), Wrong> {
    must(
        is(message.to.as_ref(), receiver),
        "a message for somebody else",
    )?;
    let payload = message
        .payload
        .as_ref()
        .ok_or(Wrong("a message without a payload"))?;
    if let Payload::ServerHeartbeatMsg(_) = payload {
        return must(
            message.tag.is_none() && message.signature_list.is_empty(),
            "a heartbeat with a tag or a signature",
        );
    }
    let inner = match payload {
        Payload::InviteMsg(invite) => invite.to.as_ref(),
        Payload::AcceptMsg(accept) => accept.to.as_ref(),
        Payload::SupplyOpksMsg(supply) => supply.user_address.as_ref(),
        _ => message.to.as_ref(),
    };
    must(is(inner, receiver), "the inner address is another")?;
    let tag = message
        .tag
        .as_ref()
        .ok_or(Wrong("a message without a tag"))?;
    must(!tag.proto_msg_id.is_empty(), "a tag without an id")?;
    must(
        tag.proto_msg_t > MILLISECONDS_FROM,
        "proto_msg_t is not in milliseconds",
    )?;
    let fingerprint = sha256(&[
        &tag.encode_to_vec(),
        &encoded(message.from.as_ref()),
        &encoded(message.to.as_ref()),
        &payload_bytes(payload)?,
    ]);
    let [signed] = message.signature_list.as_slice() else {
        return Err(Wrong("a message has one signature, no more and no less"));
    };
    signature(signed, &fingerprint, certificate)
}

/// The payload's own bytes, without the field number and length that enclose it.
fn payload_bytes(payload: &Payload) -> Result<Vec<u8>, Wrong> {
    let mut field = Vec::new();
    payload.encode(&mut field);
    let mut rest = field.as_slice();
    for _ in ["field number", "length"] {
        prost::decode_length_delimiter(&mut rest).map_err(|_| Wrong("a payload's encoding"))?;
    }
    Ok(rest.to_vec())
}

fn is(address: Option<&E2eeAddress>, device: &DeviceAddress) -> bool {
    // The spelling counts: clients compare bytes.
    address.is_some_and(|a| a.domain == device.domain().as_str())
        && DeviceAddress::from_proto(address).is_ok_and(|parsed| parsed == *device)
}

/// The tags of one device's messages, which strictly increase for as long as the device exists.
#[derive(Debug, Clone, Default)]
pub struct Order {
    last: Option<ProtoMsgTag>,
}

impl Order {
    /// Takes the next tag, or says what is wrong with it.
    pub fn take(&mut self, tag: &ProtoMsgTag) -> Result<(), Wrong> {
        if let Some(last) = &self.last {
            must(
                last.proto_msg_id != tag.proto_msg_id,
                "the same message came twice",
            )?;
            must(
                tag.proto_msg_t.cmp(&last.proto_msg_t) == Ordering::Greater,
                "the tags do not increase",
            )?;
        }
        self.last = Some(tag.clone());
        Ok(())
    }

    /// The last one taken: where a new stream goes on.
    pub fn last(&self) -> Option<&ProtoMsgTag> {
        self.last.as_ref()
    }
}

#[cfg(test)]
mod tests;
