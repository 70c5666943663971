//! Registered devices on a test's node.

use crate::testing::Must as _;

use std::net::{IpAddr, Ipv4Addr};

use prost::Message as _;

use super::{acquire_code, register};
use crate::{
    address::{DeviceAddress, Local},
    caller::Caller,
    error::Result,
    node::testing::Bench,
    proto::{
        skiserver::AcquireAuthCodeRequest,
        skissm::{
            IdentityKeyPublic, OneTimePreKeyPublic, ProtoMsg, RegisterUserRequest,
            RegisterUserResponse, SignedPreKeyPublic, proto_msg::Payload,
        },
    },
    signing::sha256,
    store::{Append, Pair, devices, mailbox, outbox, tokens},
};

pub(crate) const PACK: u32 = 0x0011_3101;

pub(crate) fn stranger() -> Caller {
    Caller::Nobody(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

pub(crate) async fn code(bench: &Bench, authenticator: &str) -> String {
    let request = AcquireAuthCodeRequest {
        authenticator: authenticator.to_owned(),
    };
    acquire_code(bench, &stranger(), request).await.must();
    bench.code(authenticator).must()
}

/// A registration that is right in every field but the code.
pub(crate) fn form(user_id: &str, device_id: &str) -> RegisterUserRequest {
    RegisterUserRequest {
        user_name: user_id.to_owned(),
        user_id: user_id.to_owned(),
        device_id: device_id.to_owned(),
        authenticator: format!("{user_id}@mail.test"),
        auth_code: "000000".to_owned(),
        e2ee_pack_id: PACK,
        identity_key_public: Some(IdentityKeyPublic {
            asym_public_key: vec![1; 1_568].into(),
            sign_public_key: vec![2; 2_592].into(),
        }),
        signed_pre_key_public: Some(SignedPreKeyPublic {
            spk_id: 1,
            public_key: vec![3; 1_568].into(),
            signature: vec![4; 4_627].into(),
        }),
        one_time_pre_key_list: (1..=10)
            .map(|opk_id| OneTimePreKeyPublic {
                opk_id,
                public_key: vec![5; 1_568].into(),
            })
            .collect(),
    }
}

pub(crate) async fn apply(
    bench: &Bench,
    mut form: RegisterUserRequest,
) -> Result<RegisterUserResponse> {
    form.auth_code = code(bench, &form.authenticator).await;
    register(bench, &stranger(), form).await
}

/// A registered device.
pub(crate) struct Phone {
    pub(crate) address: Local<DeviceAddress>,
    pub(crate) key: i64,
    pub(crate) answer: RegisterUserResponse,
}

impl Phone {
    pub(crate) async fn new(bench: &Bench, user_id: &str, device_id: &str) -> Self {
        let answer = apply(bench, form(user_id, device_id)).await.must();
        let address = DeviceAddress::from_proto(answer.address.as_ref()).must();
        let address = bench.home.local(&address).must();
        let key = key(bench, &address).await.must();
        Self {
            address,
            key,
            answer,
        }
    }

    pub(crate) async fn caller(&self, bench: &Bench) -> Option<Caller> {
        caller(bench, &self.answer.auth).await
    }

    pub(crate) async fn mail(&self, bench: &Bench) -> Vec<(i64, ProtoMsg)> {
        mail(bench, self.key).await
    }

    /// The payloads that wait for the device.
    pub(crate) async fn letters(&self, bench: &Bench) -> Vec<Payload> {
        let mail = self.mail(bench).await;
        mail.into_iter().map(|(_, m)| m.payload.must()).collect()
    }
}

pub(crate) async fn key(bench: &Bench, device: &Local<DeviceAddress>) -> Option<i64> {
    let mut tx = bench.store.begin().await.must();
    devices::find(&mut tx, device).await.must()
}

pub(crate) async fn caller(bench: &Bench, token: &str) -> Option<Caller> {
    let (hash, now) = (sha256(&[token.as_bytes()]), bench.clock.now_ms());
    let device = tokens::device(&bench.store, &bench.home, hash, now);
    device.await.must().map(|d| Caller::Device(Box::new(d)))
}

pub(crate) async fn mail(bench: &Bench, device_key: i64) -> Vec<(i64, ProtoMsg)> {
    let waiting = mailbox::page(&bench.store, device_key, 0, 100).await.must();
    let decode = |w: mailbox::Waiting| (w.msg_t, ProtoMsg::decode(w.body).must());
    waiting.into_iter().map(decode).collect()
}

/// Records a session, as an accept does: a row for each side that is ours.
pub(crate) async fn pair(bench: &Bench, one: &DeviceAddress, other: &DeviceAddress) {
    let sides = [(one, other), (other, one)];
    let ours = sides.into_iter().filter_map(|(device, peer)| {
        Some(Pair {
            device: bench.home.local(device).ok()?,
            peer: peer.clone(),
        })
    });
    let append = Append {
        pairs: ours.collect(),
        ..Append::default()
    };
    bench.store.append(append).await.must();
}

pub(crate) async fn count(bench: &Bench, sql: &'static str) -> i64 {
    let row = bench.store.row(sql, []).await.must().must();
    row.int(0).must()
}

/// What waits for other domains, in order: domain, lane and the encoded request.
pub(crate) async fn outbox(bench: &Bench) -> Vec<(String, String, bytes::Bytes)> {
    let mut waiting = Vec::new();
    for place in outbox::places(&bench.store, 0, 100).await.must() {
        let stored = outbox::one(&bench.store, place.place).await.must();
        let stored = stored.must();
        waiting.push((stored.domain.to_string(), stored.lane, stored.body));
    }
    waiting
}
