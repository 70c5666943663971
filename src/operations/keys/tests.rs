//! Bundles, signed and one-time pre-keys on a node without doors.

use crate::testing::Must as _;

use std::net::{IpAddr, Ipv4Addr};

use prost::Message as _;

use super::*;
use crate::{
    config::Config,
    node::testing::Bench,
    proto::skissm::{E2eeAddress, IdentityKeyPublic, ProtoMsg, SignedPreKeyPublic},
    signing::{bundle_fingerprint, verify_xed25519},
    store::{devices, mailbox, users},
};

const PACK: u32 = 0x0011_3101;
const KEM_BYTES: usize = 1_568;

/// A registered device and its caller.
struct Phone {
    caller: Caller,
    device: Device,
}

fn opks(ids: impl IntoIterator<Item = u32>) -> Vec<OneTimePreKeyPublic> {
    let opk = |opk_id: u32| OneTimePreKeyPublic {
        opk_id,
        public_key: vec![u8::try_from(opk_id % 251).must(); KEM_BYTES].into(),
    };
    ids.into_iter().map(opk).collect()
}

fn spk(spk_id: u32, fill: u8) -> SignedPreKeyPublic {
    SignedPreKeyPublic {
        spk_id,
        public_key: vec![fill; KEM_BYTES].into(),
        signature: vec![4; 4_627].into(),
    }
}

fn identity() -> IdentityKeyPublic {
    IdentityKeyPublic {
        asym_public_key: vec![1; KEM_BYTES].into(),
        sign_public_key: vec![2; 2_592].into(),
    }
}

impl Phone {
    async fn new(bench: &Bench, user_id: &str, device_id: &str, keys: u32) -> Self {
        let user = bench.home.user(user_id).must();
        let address = bench.home.local(&user.device(device_id).must()).must();
        let mut tx = bench.store.begin().await.must();
        let row = match users::by_id(&mut tx, &user).await.must() {
            Some(row) => row,
            None => users::insert(&mut tx, &user, user_id, 0)
                .await
                .must()
                .must(),
        };
        let signing_key_id = bench.signer.certificate().0;
        let registration = devices::Registration {
            user_key: row.key,
            address: &address,
            e2ee_pack_id: PACK,
            identity: &identity(),
            spk: &spk(1, 3),
            opks: &opks(1..=keys),
            signing_key_id,
            password_hash: "",
            now: 0,
        };
        let key = devices::insert(&mut tx, &registration).await.must();
        tx.commit(Wake::default()).await.must();
        let device = Device {
            key,
            user_key: row.key,
            address,
            user_name: user_id.to_owned(),
            signing_key_id,
            token_hash: [0; 32],
            token_expires_at: i64::MAX,
        };
        Self {
            caller: Caller::Device(Box::new(device.clone())),
            device,
        }
    }

    async fn asks(
        &self,
        bench: &Bench,
        user_id: &str,
        device_id: &str,
    ) -> Result<Vec<PreKeyBundle>> {
        asks(bench, &self.caller, user_id, device_id).await
    }

    fn address(&self) -> E2eeAddress {
        self.device.address.to_proto()
    }

    async fn letters(&self, bench: &Bench) -> Vec<ProtoMsg> {
        let mail = mailbox::page(&bench.store, self.device.key, 0, 100)
            .await
            .must();
        mail.into_iter()
            .map(|row| ProtoMsg::decode(row.body).must())
            .collect()
    }
}

async fn asks(
    bench: &Bench,
    caller: &Caller,
    user_id: &str,
    device_id: &str,
) -> Result<Vec<PreKeyBundle>> {
    let request = GetPreKeyBundleRequest {
        domain: "A.Test".to_owned(),
        user_id: user_id.to_owned(),
        device_id: device_id.to_owned(),
    };
    let reply = bundles(bench, caller, request).await?;
    assert_eq!(reply.user_id, user_id);
    Ok(reply.pre_key_bundles)
}

fn ids(bundles: &[PreKeyBundle]) -> Vec<(String, Option<u32>)> {
    let id = |bundle: &PreKeyBundle| {
        let address = DeviceAddress::from_proto(bundle.user_address.as_ref()).must();
        let opk = bundle.one_time_pre_key_public.as_ref();
        (address.to_string(), opk.map(|opk| opk.opk_id))
    };
    bundles.iter().map(id).collect()
}

fn named(id: &str, opk_id: Option<u32>) -> (String, Option<u32>) {
    (id.to_owned(), opk_id)
}

async fn stock(bench: &Bench) -> i64 {
    let row = bench
        .store
        .row("SELECT COUNT(*) FROM one_time_keys", [])
        .await;
    row.must().must().int(0).must()
}

fn peer(domain: &str) -> Caller {
    Caller::Peer(Domain::parse(domain).must())
}

#[tokio::test]
async fn a_device_gets_signed_bundles_of_all_devices_with_a_key_each() {
    let bench = Bench::start().await;
    let alice = Phone::new(&bench, "alice", "phone", 0).await;
    for device in ["phone", "laptop"] {
        Phone::new(&bench, "bob", device, 2).await;
    }
    Phone::new(&bench, "bob", "empty", 0).await;

    let bundles = alice.asks(&bench, "bob", "").await.must();
    let one = alice.asks(&bench, "bob", "laptop").await.must();

    let all = [
        ("bob@a.test/phone", Some(1)),
        ("bob@a.test/laptop", Some(1)),
        ("bob@a.test/empty", None),
    ];
    assert_eq!(ids(&bundles), all.map(|(id, opk)| named(id, opk)));
    assert_eq!(ids(&one), [named("bob@a.test/laptop", Some(2))]);
    let certificate = bench.signer.certificate().1.cert.must();
    for bundle in &bundles {
        assert_eq!(
            (bundle.e2ee_pack_id, bundle.identity_key_public.clone()),
            (PACK, Some(identity()))
        );
        assert_eq!(bundle.signed_pre_key_public, Some(spk(1, 3)));
        let (signature, fingerprint) =
            (bundle.signature.clone().must(), bundle_fingerprint(bundle));
        assert_eq!(&signature.msg_fingerprint[..], &fingerprint[..]);
        assert!(verify_xed25519(
            &certificate.public_key,
            &fingerprint,
            &signature.signature
        ));
    }
}

#[tokio::test]
async fn a_device_gets_its_siblings_but_never_itself() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "bob", "phone", 1).await;

    let alone = phone.asks(&bench, "bob", "").await;
    Phone::new(&bench, "bob", "laptop", 1).await;
    let others = phone.asks(&bench, "bob", "").await.must();
    let itself = phone.asks(&bench, "bob", "phone").await;
    let sibling = phone.asks(&bench, "bob", "laptop").await.must();

    assert!(matches!(alone, Err(Error::Empty)));
    assert_eq!(ids(&others), [named("bob@a.test/laptop", Some(1))]);
    assert!(matches!(itself, Err(Error::Empty)));
    assert_eq!(ids(&sibling), [named("bob@a.test/laptop", None)]);
    assert_eq!(stock(&bench).await, 1, "no key of its own was taken");
}

#[tokio::test]
async fn nobody_and_nothing_is_handed_out_to_nobody_and_for_nobody() {
    let bench = Bench::start().await;
    let alice = Phone::new(&bench, "alice", "phone", 0).await;
    Phone::new(&bench, "bob", "phone", 1).await;
    let stranger = Caller::Nobody(IpAddr::V4(Ipv4Addr::LOCALHOST));

    let unknown_user = alice.asks(&bench, "carol", "").await;
    let unknown_device = alice.asks(&bench, "bob", "watch").await;
    let malformed = alice.asks(&bench, "", "").await;
    let without_token = asks(&bench, &stranger, "bob", "").await;

    assert!(matches!(unknown_user, Err(Error::Empty)));
    assert!(matches!(unknown_device, Err(Error::Empty)));
    assert!(matches!(malformed, Err(Error::Invalid("user_id"))));
    assert!(matches!(without_token, Err(Error::Unauthenticated(_))));
    assert_eq!(stock(&bench).await, 1);
}

#[tokio::test]
async fn whoever_had_its_share_gets_bundles_without_one_time_keys() {
    let bench = Bench::start_with(|config: &mut Config| {
        config.limits.opks_per_caller_hour = 2;
        config.limits.opks_per_peer_hour = 3;
    })
    .await;
    let alice = Phone::new(&bench, "alice", "phone", 0).await;
    let other = Phone::new(&bench, "alice", "laptop", 0).await;
    Phone::new(&bench, "bob", "phone", 50).await;
    let mut got = Vec::new();

    for caller in [
        &alice.caller,
        &other.caller,
        &peer("b.test"),
        &peer("c.test"),
    ] {
        let mut keys = Vec::new();
        for _ in 0..4 {
            let bundles = asks(&bench, caller, "bob", "").await.must();
            keys.push(ids(&bundles)[0].1);
        }
        got.push(keys);
    }

    assert_eq!(got[0], [Some(1), Some(2), None, None]);
    assert_eq!(got[1], [Some(3), Some(4), None, None]);
    assert_eq!(got[2], [Some(5), Some(6), Some(7), None]);
    assert_eq!(got[3], [Some(8), Some(9), Some(10), None]);
    assert_eq!(stock(&bench).await, 40);
}

#[tokio::test]
async fn a_peer_gets_unsigned_bundles_of_our_users_only() {
    let bench = Bench::start().await;
    Phone::new(&bench, "bob", "phone", 1).await;
    let elsewhere = GetPreKeyBundleRequest {
        domain: "c.test".to_owned(),
        user_id: "bob".to_owned(),
        device_id: String::new(),
    };

    let ours = asks(&bench, &peer("b.test"), "bob", "").await.must();
    let third = bundles(&bench, &peer("b.test"), elsewhere).await;
    let unknown = asks(&bench, &peer("b.test"), "carol", "").await;

    assert_eq!(ids(&ours), [named("bob@a.test/phone", Some(1))]);
    assert_eq!(ours[0].signature, None);
    assert!(matches!(third, Err(Error::NotHere)));
    assert!(matches!(unknown, Err(Error::Empty)));
}

#[tokio::test]
async fn a_device_whose_stock_runs_low_is_asked_once_for_no_more_than_it_has() {
    let bench = Bench::start_with(|config: &mut Config| {
        config.keys.supply_opks = true;
        config.limits.opks_per_caller_hour = 100;
    })
    .await;
    let alice = Phone::new(&bench, "alice", "phone", 0).await;
    let bob = Phone::new(&bench, "bob", "phone", limits::OPKS_LOW + 2).await;

    alice.asks(&bench, "bob", "").await.must();
    let early = bob.letters(&bench).await;
    for _ in 0..3 {
        alice.asks(&bench, "bob", "").await.must();
    }
    let asked = bob.letters(&bench).await;
    let request = SupplyOpksRequest {
        e2ee_pack_id: PACK,
        user_address: Some(bob.address()),
        one_time_pre_key_public_list: opks([1, 2]),
    };
    supply(&bench, &bob.caller, request).await.must();
    alice.asks(&bench, "bob", "").await.must();
    let again = bob.letters(&bench).await;

    assert!(early.is_empty());
    assert_eq!((asked.len(), again.len()), (1, 2));
    let Some(Payload::SupplyOpksMsg(message)) = &asked[0].payload else {
        panic!("{asked:?}");
    };
    assert_eq!(
        (message.opks_num, message.user_address.clone()),
        (limits::OPKS_LOW, Some(bob.address()))
    );
    assert_eq!(asked[0].from, None);
}

#[tokio::test]
async fn nobody_is_asked_for_keys_unless_the_operator_wants_it() {
    let bench = Bench::start().await;
    let alice = Phone::new(&bench, "alice", "phone", 0).await;
    let bob = Phone::new(&bench, "bob", "phone", 3).await;

    for _ in 0..4 {
        alice.asks(&bench, "bob", "").await.must();
    }

    assert!(bob.letters(&bench).await.is_empty());
    assert_eq!(stock(&bench).await, 0);
}

#[tokio::test]
async fn a_published_key_is_in_the_next_bundle() {
    let bench = Bench::start().await;
    let alice = Phone::new(&bench, "alice", "phone", 0).await;
    let bob = Phone::new(&bench, "bob", "phone", 0).await;
    let request = |spk| PublishSpkRequest {
        user_address: Some(bob.address()),
        signed_pre_key_public: spk,
    };

    for key in [spk(2, 8), spk(2, 9)] {
        publish_signed(&bench, &bob.caller, request(Some(key)))
            .await
            .must();
    }
    let of_another = publish_signed(&bench, &alice.caller, request(Some(spk(3, 7)))).await;
    let of_a_peer = publish_signed(&bench, &peer("a.test"), request(Some(spk(3, 7)))).await;
    let missing = publish_signed(&bench, &bob.caller, request(None)).await;
    let mut short = spk(3, 7);
    short.public_key.truncate(KEM_BYTES - 1);
    let short = publish_signed(&bench, &bob.caller, request(Some(short))).await;

    assert!(matches!(of_another, Err(Error::Forbidden(_))));
    assert!(matches!(of_a_peer, Err(Error::Unauthenticated(_))));
    assert!(matches!(
        missing,
        Err(Error::Invalid("signed_pre_key_public"))
    ));
    assert!(matches!(short, Err(Error::Invalid("signed pre-key"))));
    let bundles = alice.asks(&bench, "bob", "").await.must();
    assert_eq!(bundles[0].signed_pre_key_public, Some(spk(2, 9)));
}

#[tokio::test]
async fn supplied_keys_are_checked_before_they_are_stored() {
    let bench =
        Bench::start_with(|config: &mut Config| config.limits.opks_per_device_max = 5).await;
    let alice = Phone::new(&bench, "alice", "phone", 0).await;
    let bob = Phone::new(&bench, "bob", "phone", 0).await;
    let good = SupplyOpksRequest {
        e2ee_pack_id: PACK,
        user_address: Some(bob.address()),
        one_time_pre_key_public_list: opks(101..=108),
    };
    let with = |change: &dyn Fn(&mut SupplyOpksRequest)| {
        let mut request = good.clone();
        change(&mut request);
        request
    };
    let bad = [
        ("e2ee_pack_id", with(&|r| r.e2ee_pack_id = 0x0011_2901)),
        (
            "opk_id",
            with(&|r| r.one_time_pre_key_public_list[3].opk_id = 0),
        ),
        (
            "opk_id",
            with(&|r| r.one_time_pre_key_public_list[3].opk_id = 101),
        ),
        (
            "one-time pre-key",
            with(&|r| r.one_time_pre_key_public_list[3].public_key.truncate(9)),
        ),
        ("address", with(&|r| r.user_address = None)),
    ];

    for (field, request) in bad {
        let refused = supply(&bench, &bob.caller, request).await;
        assert!(
            matches!(refused, Err(Error::Invalid(what)) if what == field),
            "{field}: {refused:?}"
        );
    }
    let of_another = supply(&bench, &alice.caller, good.clone()).await;
    let before = stock(&bench).await;
    supply(&bench, &bob.caller, good).await.must();

    assert!(matches!(of_another, Err(Error::Forbidden(_))));
    assert_eq!(
        (before, stock(&bench).await),
        (0, 5),
        "as many as a device may have"
    );
    let bundles = alice.asks(&bench, "bob", "").await.must();
    assert_eq!(ids(&bundles), [named("bob@a.test/phone", Some(101))]);
}

#[test]
fn a_final_refusal_means_that_there_is_nothing_and_the_rest_may_pass() {
    let refused = |code| Error::Refused {
        domain: Domain::parse("b.test").must(),
        code,
        message: String::new(),
    };

    for code in [400, 403, 404, 409] {
        assert!(
            matches!(nothing_there(refused(code)), Error::Empty),
            "{code}"
        );
    }
    assert!(matches!(
        nothing_there(Error::Forbidden("policy")),
        Error::Empty
    ));
    for code in [0, 401, 417, 500, 503] {
        assert!(
            matches!(nothing_there(refused(code)), Error::Refused { .. }),
            "{code}"
        );
    }
    let silent = Error::Unreachable(Domain::parse("b.test").must());
    assert!(matches!(nothing_there(silent), Error::Unreachable(_)));
}
