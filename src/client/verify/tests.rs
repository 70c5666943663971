//! A signer by the contract's definitions, and what the checks say when anything is changed.

use crate::testing::Must as _;

use xeddsa::{Sign as _, xed25519::PrivateKey};

use super::*;
use crate::{
    client::{Keys, keys},
    proto::skissm::{Cert, InviteMsg, ServerHeartbeatMsg, SystemManagerMsg},
};

const NOW_MS: i64 = 1_800_000_000_000;

/// A node's signing key and what it says about itself.
struct Node {
    key: PrivateKey,
    certificate: Certificate,
}

impl Node {
    fn new() -> Self {
        // Any identity of the small pack is a key pair of the right kind.
        let secret: [u8; 32] = rand::random();
        let key = aws_lc_rs::agreement::PrivateKey::from_private_key(
            &aws_lc_rs::agreement::X25519,
            &secret,
        );
        let public = key.must().compute_public_key().must();
        let subject = Subject {
            cn: "node.a.test".to_owned(),
            domain: "a.test".to_owned(),
            o: "Example".to_owned(),
            ou: vec!["Unit".to_owned()],
        };
        let cert = Cert {
            issuee: Some(subject.clone()),
            issuer: Some(subject),
            public_key_alg: 0,
            public_key: Bytes::copy_from_slice(public.as_ref()),
            not_before: NOW_MS - 1,
            not_after: NOW_MS + 1,
        };
        let mut node = Self {
            key: PrivateKey(secret),
            certificate: Certificate {
                version: 1,
                hash_alg: 1,
                signing_alg: 0,
                signing_public_key_fingerprint: sha256(&[&cert.public_key]),
                cert: Some(cert),
                ts: NOW_MS,
                valid: true,
                ..Certificate::default()
            },
        };
        node.seal();
        node
    }

    fn sign(&self, fingerprint: &[u8]) -> Bytes {
        let signature: [u8; 64] = self.key.sign(fingerprint, rand::rng());
        Bytes::copy_from_slice(&signature)
    }

    /// Signs the certificate as it is.
    fn seal(&mut self) {
        let fingerprint = sha256(&[&self.certificate.cert.as_ref().must().encode_to_vec()]);
        self.certificate.signature = self.sign(&fingerprint);
        self.certificate.cert_fingerprint = fingerprint;
    }

    fn signed(&self, fingerprint: Bytes) -> ServerSignedSignature {
        let cert = self.certificate.cert.as_ref().must();
        ServerSignedSignature {
            version: 1,
            hash_alg: 1,
            signing_alg: 0,
            signer: cert.issuee.clone(),
            signing_public_key_fingerprint: sha256(&[&cert.public_key]),
            signature: self.sign(&fingerprint),
            msg_fingerprint: fingerprint,
        }
    }

    fn bundle(&self, pack: Pack) -> PreKeyBundle {
        let keys = Keys::generate(pack).must();
        let mut bundle = PreKeyBundle {
            user_address: Some(bob().to_proto()),
            e2ee_pack_id: pack.id,
            identity_key_public: Some(keys.identity().clone()),
            signed_pre_key_public: Some(keys.signed_pre_key(1)),
            one_time_pre_key_public: keys.first_opks().pop(),
            signature: None,
        };
        self.sign_bundle(&mut bundle);
        bundle
    }

    fn sign_bundle(&self, bundle: &mut PreKeyBundle) {
        let fingerprint = sha256(&[
            &encoded(bundle.user_address.as_ref()),
            &encoded(bundle.identity_key_public.as_ref()),
            &encoded(bundle.signed_pre_key_public.as_ref()),
            &encoded(bundle.one_time_pre_key_public.as_ref()),
        ]);
        bundle.signature = Some(self.signed(fingerprint));
    }

    fn message(&self, payload: Payload, inner: &[u8]) -> ProtoMsg {
        let tag = ProtoMsgTag {
            proto_msg_t: NOW_MS,
            proto_msg_id: "1".to_owned(),
        };
        let to = bob().to_proto();
        let fingerprint = sha256(&[&tag.encode_to_vec(), &to.encode_to_vec(), inner]);
        ProtoMsg {
            tag: Some(tag),
            from: None,
            to: Some(to),
            payload: Some(payload),
            signature_list: vec![self.signed(fingerprint)],
        }
    }
}

fn bob() -> DeviceAddress {
    DeviceAddress::parse("bob@a.test/phone").must()
}

fn domain() -> Domain {
    Domain::parse("a.test").must()
}

#[test]
fn a_good_certificate_passes_and_each_change_is_found() {
    let node = Node::new();
    assert_eq!(certificate(&node.certificate, &domain()), Ok(()));
    let changes: [fn(&mut Certificate); 9] = [
        |c| c.version = 2,
        |c| c.hash_alg = 0,
        |c| c.signing_alg = 1,
        |c| c.valid = false,
        |c| c.ts = 0,
        |c| c.signature = keys::random(64),
        |c| c.cert_fingerprint = keys::random(32),
        |c| c.signing_public_key_fingerprint = keys::random(32),
        |c| c.cert = None,
    ];
    for change in changes {
        let mut bad = node.certificate.clone();
        change(&mut bad);
        assert!(certificate(&bad, &domain()).is_err(), "{bad:?}");
    }
    let other = Domain::parse("b.test").must();
    assert!(certificate(&node.certificate, &other).is_err());
}

#[test]
fn an_incomplete_subject_is_found_even_if_signed() {
    let changes: [fn(&mut Cert); 4] = [
        |c| c.issuee.as_mut().must().cn.clear(),
        |c| c.issuer.as_mut().must().o.clear(),
        |c| c.issuer = None,
        |c| c.issuee.as_mut().must().ou.push(String::new()),
    ];
    for change in changes {
        let mut node = Node::new();
        change(node.certificate.cert.as_mut().must());
        node.seal();

        let refused = certificate(&node.certificate, &domain());

        assert_eq!(
            refused,
            Err(Wrong("a subject of the certificate is incomplete"))
        );
    }
}

#[test]
fn a_good_bundle_passes_and_each_change_is_found() {
    let node = Node::new();
    let changes: [fn(&mut PreKeyBundle); 6] = [
        |b| b.user_address = Some(DeviceAddress::parse("eve@a.test/x").must().to_proto()),
        |b| b.one_time_pre_key_public = None,
        |b| b.signed_pre_key_public.as_mut().must().spk_id = 9,
        |b| b.identity_key_public.as_mut().must().asym_public_key = keys::random(1_568),
        |b| b.signature.as_mut().must().signer = None,
        |b| b.signature = None,
    ];
    for pack in [Pack::DEFAULT, Pack::SMALL] {
        let good = node.bundle(pack);
        assert_eq!(bundle(&good, &node.certificate), Ok(()));
        assert!(bundle(&good, &Node::new().certificate).is_err());
        for change in changes {
            let mut bad = good.clone();
            change(&mut bad);
            assert!(bundle(&bad, &node.certificate).is_err());
        }
    }
}

#[test]
fn a_small_bundle_with_a_foreign_pre_key_signature_is_found() {
    let node = Node::new();
    let mut bad = node.bundle(Pack::SMALL);
    bad.signed_pre_key_public.as_mut().must().signature = keys::random(64);
    node.sign_bundle(&mut bad);

    let refused = bundle(&bad, &node.certificate);

    assert_eq!(refused, Err(Wrong("the signature of a signed pre-key")));
}

#[test]
fn a_good_message_passes_and_each_change_is_found() {
    let node = Node::new();
    let system = SystemManagerMsg {
        modified_date: NOW_MS,
        op: 4,
        payload: Bytes::from("hello"),
    };
    let inner = system.encode_to_vec();
    let good = node.message(Payload::SystemManagerMsg(system), &inner);
    assert_eq!(message(&good, &node.certificate, &bob()), Ok(()));
    let changes: [fn(&mut ProtoMsg); 7] = [
        |m| m.tag.as_mut().must().proto_msg_t += 1,
        |m| m.from = Some(bob().to_proto()),
        |m| m.payload = Some(Payload::SystemManagerMsg(SystemManagerMsg::default())),
        |m| m.signature_list.clear(),
        |m| m.signature_list.push(m.signature_list[0].clone()),
        |m| m.tag = None,
        |m| m.to = Some(DeviceAddress::parse("bob@a.test/other").must().to_proto()),
    ];
    for change in changes {
        let mut bad = good.clone();
        change(&mut bad);
        assert!(message(&bad, &node.certificate, &bob()).is_err(), "{bad:?}");
    }
}

#[test]
fn an_invite_for_somebody_else_inside_is_found() {
    let node = Node::new();
    let to = DeviceAddress::parse("eve@a.test/x").must().to_proto();
    let invite = InviteMsg {
        to: Some(to),
        ..InviteMsg::default()
    };
    let inner = invite.encode_to_vec();
    let bad = node.message(Payload::InviteMsg(invite), &inner);

    let refused = message(&bad, &node.certificate, &bob());

    assert_eq!(refused, Err(Wrong("the inner address is another")));
}

#[test]
fn a_heartbeat_has_neither_tag_nor_signature() {
    let node = Node::new();
    let beat = Payload::ServerHeartbeatMsg(ServerHeartbeatMsg::default());
    let mut plain = node.message(beat, &[]);
    assert!(message(&plain, &node.certificate, &bob()).is_err());

    plain.tag = None;
    plain.signature_list.clear();

    assert_eq!(message(&plain, &node.certificate, &bob()), Ok(()));
}

#[test]
fn tags_must_increase() {
    let tag = |proto_msg_t, id: &str| ProtoMsgTag {
        proto_msg_t,
        proto_msg_id: id.to_owned(),
    };
    let mut order = Order::default();

    assert_eq!(order.take(&tag(5, "a")), Ok(()));
    assert!(order.take(&tag(6, "a")).is_err());
    assert!(order.take(&tag(5, "b")).is_err());
    assert_eq!(order.take(&tag(6, "b")), Ok(()));
    assert_eq!(order.last(), Some(&tag(6, "b")));
}
