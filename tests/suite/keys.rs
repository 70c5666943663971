//! Pre-keys: bundles with one one-time key each, never the same twice; what peers say of their people is believed
//! only after a look.

use std::collections::BTreeSet;

use skiserver::{
    address::DeviceAddress,
    client::{Device, talk, verify},
    proto::skissm::{
        GetPreKeyBundleRequest, GetPreKeyBundleResponse, OneTimePreKeyPublic, PreKeyBundle,
        PublishSpkRequest, ResponseCode, ServerSignedSignature, SignedPreKeyPublic,
        SupplyOpksRequest,
    },
    signing::Signer,
};

use crate::lab::{
    Act, Lab, Scripted, Spoil, User, answer, assert_code, real_limits, refuses_each,
    scripted::{Mood, Target},
    user,
};

use ResponseCode::{BadRequest, Forbidden, NoContent, Ok as Granted, ServiceUnavailable};

fn asking_for(user: &User) -> GetPreKeyBundleRequest {
    GetPreKeyBundleRequest {
        domain: user.domain().to_string(),
        user_id: user.address().user.user_id.clone(),
        device_id: String::new(),
    }
}

async fn ask(asker: &Device, request: GetPreKeyBundleRequest) -> GetPreKeyBundleResponse {
    answer(asker.unary().get_pre_key_bundle(request)).await
}

/// The id of the one-time key in the other's bundle, if there is one. The bundle is verified.
async fn claim(asker: &User, of: &User) -> Option<u32> {
    let bundle = asker.bundle(of).await;
    bundle.one_time_pre_key_public.map(|opk| opk.opk_id)
}

/// Somebody with as many one-time keys.
async fn user_with_opks(lab: &Lab, address: &str, count: usize) -> User {
    let (mut request, keys) = lab.registration(address, user::FIRST_DEVICE).await;
    request.one_time_pre_key_list.truncate(count);
    let domain = address.split_once('@').unwrap().1;
    let device = Device::register_with(&lab.door(domain), request, keys).await;
    let user = User(device.unwrap());
    user.is_welcomed().await;
    user
}

#[tokio::test]
async fn a_bundle_is_what_the_device_registered() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;

    for bob in [&here, &there] {
        let bundle = alice.bundle(bob).await; // verified with alice's certificate

        assert_eq!(bundle.user_address, Some(bob.address().to_proto()));
        assert_eq!(bundle.e2ee_pack_id, bob.keys().pack().id);
        assert_eq!(
            bundle.identity_key_public.as_ref(),
            Some(bob.keys().identity())
        );
        assert_eq!(bundle.signed_pre_key_public.unwrap().spk_id, 1);
        assert_eq!(
            bundle.one_time_pre_key_public.unwrap().opk_id,
            1,
            "lowest first"
        );
    }
}

#[tokio::test]
async fn each_device_of_a_user_has_a_bundle_and_one_can_be_asked_for() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, here, there] = lab
        .users(["alice@a.test", "bob@a.test", "bob@b.test"])
        .await;

    for bob in [&here, &there] {
        let tablet = lab.second_device(bob, "tablet").await;
        let all = talk::bundles(&alice, &bob.address().user).await.unwrap();
        let one = GetPreKeyBundleRequest {
            device_id: "tablet".to_owned(),
            ..asking_for(bob)
        };
        let one = ask(&alice, one).await;

        assert_eq!(
            addresses(&all),
            [bob.address().clone(), tablet.address().clone()]
        );
        assert_code(&one, Granted);
        assert_eq!(one.user_id, "bob");
        assert_eq!(addresses(&one.pre_key_bundles), [tablet.address().clone()]);
        verify::bundle(&one.pre_key_bundles[0], alice.certificate()).unwrap();
    }
}

fn addresses(bundles: &[PreKeyBundle]) -> Vec<DeviceAddress> {
    let address = |bundle: &PreKeyBundle| DeviceAddress::from_proto(bundle.user_address.as_ref());
    let mut all: Vec<_> = bundles.iter().map(|b| address(b).unwrap()).collect();
    all.sort();
    all
}

#[tokio::test]
async fn a_device_gets_bundles_of_its_siblings_but_never_its_own() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let own = GetPreKeyBundleRequest {
        device_id: user::FIRST_DEVICE.to_owned(),
        ..asking_for(&alice)
    };
    let before = lab.snapshot().await;

    assert_code(&ask(&alice, asking_for(&alice)).await, NoContent);
    assert_code(&ask(&alice, own.clone()).await, NoContent);
    before.assert_same(&lab.snapshot().await, "asking for oneself");

    let tablet = lab.second_device(&alice, "tablet").await;
    let others = ask(&alice, asking_for(&alice)).await;
    assert_code(&others, Granted);
    assert_eq!(
        addresses(&others.pre_key_bundles),
        [tablet.address().clone()]
    );
    assert_code(&ask(&alice, own).await, NoContent);
}

#[tokio::test]
async fn nothing_to_hand_out_is_204_and_unreachable_is_503() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let bob = lab.user("bob@b.test").await;
    let good = asking_for(&bob);
    let spoils: &[Spoil<GetPreKeyBundleRequest>] = &[
        (
            "an unknown user here",
            |r| (r.domain, r.user_id) = ("a.test".into(), "eve".into()),
            NoContent,
        ),
        (
            "an unknown device here",
            |r| {
                (r.domain, r.user_id, r.device_id) =
                    ("a.test".into(), "alice".into(), "watch".into())
            },
            NoContent,
        ),
        (
            "an unknown user there",
            |r| r.user_id = "eve".into(),
            NoContent,
        ),
        (
            "an unknown device there",
            |r| r.device_id = "watch".into(),
            NoContent,
        ),
        (
            "a domain that does not exist",
            |r| r.domain = "c.test".into(),
            ServiceUnavailable,
        ),
        ("no domain", |r| r.domain.clear(), BadRequest),
        (
            "an impossible domain",
            |r| r.domain = "b test".into(),
            BadRequest,
        ),
        (
            "a network address",
            |r| r.domain = "127.0.0.1".into(),
            BadRequest,
        ),
        (
            "an endless domain",
            |r| r.domain = "b.".repeat(200) + "test",
            BadRequest,
        ),
        ("no user id", |r| r.user_id.clear(), BadRequest),
        (
            "an address as user id",
            |r| r.user_id = "bob@b.test".into(),
            BadRequest,
        ),
        (
            "a user id of 65 bytes",
            |r| r.user_id = "b".repeat(65),
            BadRequest,
        ),
        (
            "a device id of 129 bytes",
            |r| r.device_id = "d".repeat(129),
            BadRequest,
        ),
        (
            "a device id with a line feed",
            |r| r.device_id = "d\n".into(),
            BadRequest,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        alice.unary().get_pre_key_bundle(request).await
    })
    .await;
}

#[tokio::test]
async fn a_domain_is_the_same_in_capitals() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, carol, bob] = lab
        .users(["alice@a.test", "carol@a.test", "bob@b.test"])
        .await;

    for (of, spelling) in [(&carol, "A.TEST"), (&bob, "B.Test")] {
        let request = GetPreKeyBundleRequest {
            domain: spelling.to_owned(),
            ..asking_for(of)
        };
        let reply = ask(&alice, request).await;

        assert_code(&reply, Granted);
        let address = reply.pre_key_bundles[0].user_address.clone();
        assert_eq!(
            address,
            Some(of.address().to_proto()),
            "the canonical spelling"
        );
    }
}

#[tokio::test]
async fn without_one_time_keys_the_field_is_absent() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let bob = user_with_opks(&lab, "bob@a.test", 2).await;
    let [alice, carol] = lab.users(["alice@a.test", "carol@b.test"]).await;

    assert_eq!(claim(&alice, &bob).await, Some(1));
    assert_eq!(claim(&carol, &bob).await, Some(2));
    for asker in [&alice, &carol] {
        let bundle = asker.bundle(&bob).await;
        assert_eq!(bundle.one_time_pre_key_public, None);
    }
}

#[tokio::test]
async fn sixty_four_claimers_over_two_domains_get_sixty_four_keys() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let bob = user_with_opks(&lab, "bob@a.test", 64).await;
    let mut askers = Vec::new();
    for number in 0..64 {
        let domain = ["a.test", "b.test"][number % 2];
        askers.push(user_with_opks(&lab, &format!("u{number}@{domain}"), 0).await);
    }

    let claims = askers.iter().map(|asker| claim(asker, &bob));
    let claimed = futures_util::future::join_all(claims).await;

    let ids: BTreeSet<u32> = claimed.iter().flatten().copied().collect();
    assert_eq!(ids, (1..=64).collect(), "{claimed:?}");
    assert_eq!(claim(&askers[0], &bob).await, None);
    let left = lab.number("a.test", "SELECT COUNT(*) FROM one_time_keys");
    assert_eq!(left.await, 0);
}

#[tokio::test]
async fn a_caller_over_its_limit_gets_bundles_without_one_time_keys() {
    let lab = Lab::configured(["a.test"], |config| config.limits = real_limits()).await;
    let [alice, bob, carol] = lab
        .users(["alice@a.test", "bob@a.test", "carol@a.test"])
        .await;

    for opk_id in 1..=5 {
        assert_eq!(claim(&alice, &bob).await, Some(opk_id));
    }

    assert_eq!(claim(&alice, &bob).await, None);
    assert_eq!(claim(&alice, &carol).await, Some(1), "another target");
    assert_eq!(claim(&carol, &bob).await, Some(6), "another caller");
}

#[tokio::test]
async fn a_peer_over_its_limit_gets_bundles_without_one_time_keys() {
    let lab = Lab::configured(["a.test"], |config| config.limits.opks_per_peer_hour = 2).await;
    let [bob, carol] = lab.users(["bob@a.test", "carol@a.test"]).await;
    let peers = [
        Scripted::join(&lab, "b.test").await,
        Scripted::join(&lab, "c.test").await,
    ];
    let opk = async |peer: &Scripted, of: &User| {
        let mut node = peer.calls(&lab, "a.test");
        let reply = answer(node.get_pre_key_bundle(asking_for(of))).await;
        assert_code(&reply, Granted);
        let bundle = reply.pre_key_bundles.into_iter().next().unwrap();
        bundle.one_time_pre_key_public.map(|opk| opk.opk_id)
    };

    assert_eq!(opk(&peers[0], &bob).await, Some(1));
    assert_eq!(opk(&peers[0], &bob).await, Some(2));

    assert_eq!(opk(&peers[0], &bob).await, None);
    assert_eq!(opk(&peers[0], &carol).await, Some(1), "another target");
    assert_eq!(opk(&peers[1], &bob).await, Some(3), "another peer");
}

#[tokio::test]
async fn a_device_is_asked_once_for_more_keys_than_it_has_left() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let bob = user_with_opks(&lab, "bob@a.test", 22).await;
    let [alice, carol] = lab.users(["alice@a.test", "carol@b.test"]).await;
    let mut stream = bob.stream().await;

    claim(&alice, &bob).await;
    lab.assert_silent(&mut stream).await;
    claim(&carol, &bob).await;

    let supply = stream.next_supply().await;
    assert_eq!(supply.from, None, "the server's own");
    assert_eq!(supply.said.user_address, Some(bob.address().to_proto()));
    assert!((1..=20).contains(&supply.said.opks_num), "{supply:?}");
    assert!((lab.clock.now_ms() - supply.said.server_t).abs() < 60_000);
    claim(&alice, &bob).await;
    lab.assert_silent(&mut stream).await;
    talk::supply(&bob, 1).await.unwrap();
    claim(&alice, &bob).await;
    let again = stream.next_supply().await.said;
    assert!((1..=19).contains(&again.opks_num), "{again:?}");
}

#[tokio::test]
async fn a_node_that_is_told_not_to_never_asks_for_keys() {
    let lab = Lab::configured(["a.test"], |config| config.keys.supply_opks = false).await;
    let bob = user_with_opks(&lab, "bob@a.test", 3).await;
    let alice = lab.user("alice@a.test").await;
    let mut stream = bob.stream().await;

    for left in [2, 1, 0] {
        claim(&alice, &bob).await;
        lab.assert_silent(&mut stream).await;
        let stock = lab.number("a.test", "SELECT COUNT(*) FROM one_time_keys k JOIN devices d ON d.device_key = k.device_key WHERE d.user_id = 'bob'");
        assert_eq!(stock.await, left);
    }
}

#[tokio::test]
async fn a_one_time_key_that_was_handed_out_does_not_come_back() {
    let lab = Lab::start(["a.test"]).await;
    let bob = user_with_opks(&lab, "bob@a.test", 2).await;
    let alice = lab.user("alice@a.test").await;
    assert_eq!(claim(&alice, &bob).await, Some(1));
    let mut list = bob.keys().opks(3);
    for (opk, opk_id) in list.iter_mut().zip([1, 2, 3]) {
        opk.opk_id = opk_id;
    }
    let overwritten = list[1].clone();
    let request = SupplyOpksRequest {
        e2ee_pack_id: bob.keys().pack().id,
        user_address: Some(bob.address().to_proto()),
        one_time_pre_key_public_list: list,
    };

    let reply = answer(bob.unary().supply_opks(request.clone())).await;
    let repeated = answer(bob.unary().supply_opks(request)).await;

    assert_code(&reply, Granted);
    assert_code(&repeated, Granted);
    let second = alice.bundle(&bob).await.one_time_pre_key_public;
    assert_eq!(
        second,
        Some(overwritten),
        "the new key under an id in stock"
    );
    assert_eq!(claim(&alice, &bob).await, Some(3));
    assert_eq!(claim(&alice, &bob).await, None);
}

fn shorten(bytes: &mut bytes::Bytes) {
    bytes.truncate(bytes.len() - 1);
}

fn opk(request: &mut SupplyOpksRequest) -> &mut OneTimePreKeyPublic {
    &mut request.one_time_pre_key_public_list[1]
}

fn of_bob() -> Option<skiserver::proto::skissm::E2eeAddress> {
    Some(DeviceAddress::parse("bob@a.test/phone").unwrap().to_proto())
}

#[tokio::test]
async fn a_supply_is_refused_for_each_wrong_field() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, _bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    lab.second_device(&alice, "tablet").await;
    let good = SupplyOpksRequest {
        e2ee_pack_id: alice.keys().pack().id,
        user_address: Some(alice.address().to_proto()),
        one_time_pre_key_public_list: alice.keys().opks(3),
    };
    let spoils: &[Spoil<SupplyOpksRequest>] = &[
        ("no address", |r| r.user_address = None, BadRequest),
        (
            "a group's address",
            |r| r.user_address.as_mut().unwrap().peer = None,
            BadRequest,
        ),
        (
            "somebody else's address",
            |r| r.user_address = of_bob(),
            Forbidden,
        ),
        (
            "a sibling's address",
            |r| {
                r.user_address = Some(
                    DeviceAddress::parse("alice@a.test/tablet")
                        .unwrap()
                        .to_proto(),
                )
            },
            Forbidden,
        ),
        ("another pack", |r| r.e2ee_pack_id = 0x0011_3101, BadRequest),
        ("an unknown pack", |r| r.e2ee_pack_id = 0, BadRequest),
        ("a key without id", |r| opk(r).opk_id = 0, BadRequest),
        ("two keys of one id", |r| opk(r).opk_id = 101, BadRequest),
        ("an empty key", |r| opk(r).public_key.clear(), BadRequest),
        (
            "a short key",
            |r| shorten(&mut opk(r).public_key),
            BadRequest,
        ),
        (
            "1001 keys",
            |r| {
                let key = opk(r).clone();
                r.one_time_pre_key_public_list = (200..1201)
                    .map(|opk_id| OneTimePreKeyPublic {
                        opk_id,
                        ..key.clone()
                    })
                    .collect();
            },
            BadRequest,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        alice.unary().supply_opks(request).await
    })
    .await;
}

#[tokio::test]
async fn a_signed_pre_key_replaces_the_one_before_also_under_its_id() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob, carol] = lab
        .users(["alice@a.test", "bob@a.test", "carol@b.test"])
        .await;

    for spk_id in [2, 2, 3] {
        let spk = bob.keys().signed_pre_key(spk_id);
        let request = PublishSpkRequest {
            user_address: Some(bob.address().to_proto()),
            signed_pre_key_public: Some(spk.clone()),
        };
        assert_code(&answer(bob.unary().publish_spk(request)).await, Granted);

        for asker in [&alice, &carol] {
            let bundle = asker.bundle(&bob).await;
            assert_eq!(bundle.signed_pre_key_public.as_ref(), Some(&spk));
        }
    }
}

fn spk(request: &mut PublishSpkRequest) -> &mut SignedPreKeyPublic {
    request.signed_pre_key_public.as_mut().unwrap()
}

#[tokio::test]
async fn a_signed_pre_key_is_refused_for_each_wrong_field() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, _bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let good = PublishSpkRequest {
        user_address: Some(alice.address().to_proto()),
        signed_pre_key_public: Some(alice.keys().signed_pre_key(2)),
    };
    let spoils: &[Spoil<PublishSpkRequest>] = &[
        ("no address", |r| r.user_address = None, BadRequest),
        (
            "somebody else's address",
            |r| r.user_address = of_bob(),
            Forbidden,
        ),
        ("no key", |r| r.signed_pre_key_public = None, BadRequest),
        ("no id", |r| spk(r).spk_id = 0, BadRequest),
        ("an empty key", |r| spk(r).public_key.clear(), BadRequest),
        (
            "a short key",
            |r| shorten(&mut spk(r).public_key),
            BadRequest,
        ),
        ("no signature", |r| spk(r).signature.clear(), BadRequest),
        (
            "a short signature",
            |r| shorten(&mut spk(r).signature),
            BadRequest,
        ),
        (
            "a wrong signature",
            |r| spk(r).signature = vec![1; 64].into(),
            BadRequest,
        ),
        (
            "a signature of another key",
            |r| spk(r).public_key = vec![1; 800].into(),
            BadRequest,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        alice.unary().publish_spk(request).await
    })
    .await;
}

#[tokio::test]
async fn after_a_rotation_old_devices_keep_their_key_and_new_ones_get_the_new() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [old, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let node = lab.node("a.test");
    Signer::rotate(&node.store, &node.home, "Example Org", &lab.clock)
        .await
        .unwrap();
    drop(node);
    lab.stop("a.test").await;
    lab.start_node("a.test").await;

    let new = lab.user("carol@a.test").await;

    assert_ne!(old.certificate(), new.certificate());
    for (asker, of) in [(&old, &new), (&new, &old), (&old, &bob), (&new, &bob)] {
        asker.bundle(of).await; // verified with the certificate that the asker was given
    }
    for (from, to) in [(&old, &new), (&new, &old)] {
        from.send(to, "signed").await;
        assert_eq!(to.stream().await.next_text().await, "signed"); // verified likewise
    }
    let foreign = old.bundle(&bob).await;
    assert!(verify::bundle(&foreign, new.certificate()).is_err());
}

#[tokio::test]
async fn a_peers_signature_is_replaced_by_ours() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let evil = Scripted::join(&lab, "evil.test").await;
    let eve = evil.target("eve", "phone");
    let mut bundle = eve.bundle();
    bundle.signature = Some(ServerSignedSignature {
        version: 1,
        signature: vec![1; 64].into(),
        msg_fingerprint: vec![2; 32].into(),
        ..ServerSignedSignature::default()
    });
    evil.next("GetPreKeyBundle", [Act::reply(&eve.answer(vec![bundle]))]);

    let bundles = talk::bundles(&alice, &eve.address.user).await;

    assert_eq!(addresses(&bundles.unwrap()), [eve.address]);
}

/// A way to lie about bundles.
type Lie = (&'static str, fn(&Target, &mut GetPreKeyBundleResponse));

fn first(reply: &mut GetPreKeyBundleResponse) -> &mut PreKeyBundle {
    &mut reply.pre_key_bundles[0]
}

const LIES: &[Lie] = &[
    ("another user in the answer", |_, r| {
        r.user_id = "bob".into()
    }),
    ("no user in the answer", |_, r| r.user_id.clear()),
    ("a bundle of another user", |_, r| {
        let other = DeviceAddress::parse("bob@evil.test/phone").unwrap();
        first(r).user_address = Some(other.to_proto());
    }),
    ("a bundle of our own user", |_, r| {
        let ours = DeviceAddress::parse("eve@a.test/phone").unwrap();
        first(r).user_address = Some(ours.to_proto());
    }),
    ("a bundle of a third domain", |_, r| {
        let third = DeviceAddress::parse("eve@b.test/phone").unwrap();
        first(r).user_address = Some(third.to_proto());
    }),
    ("a bundle of another device", |_, r| {
        let other = DeviceAddress::parse("eve@evil.test/watch").unwrap();
        first(r).user_address = Some(other.to_proto());
    }),
    ("a bundle without device", |eve, r| {
        first(r).user_address = Some(eve.address.user.to_proto());
    }),
    ("a bundle without address", |_, r| {
        first(r).user_address = None
    }),
    ("the same device twice", |eve, r| {
        r.pre_key_bundles.push(eve.bundle())
    }),
    ("a good one and one of another user", |eve, r| {
        let mut other = eve.bundle();
        other.user_address = Some(
            DeviceAddress::parse("bob@evil.test/phone")
                .unwrap()
                .to_proto(),
        );
        r.pre_key_bundles.push(other);
    }),
    ("no identity", |_, r| first(r).identity_key_public = None),
    ("no asymmetric key", |_, r| {
        first(r)
            .identity_key_public
            .as_mut()
            .unwrap()
            .asym_public_key
            .clear()
    }),
    ("a short signature key", |_, r| {
        shorten(
            &mut first(r)
                .identity_key_public
                .as_mut()
                .unwrap()
                .sign_public_key,
        )
    }),
    ("no signed pre-key", |_, r| {
        first(r).signed_pre_key_public = None
    }),
    ("an empty signed pre-key", |_, r| {
        first(r).signed_pre_key_public = Some(SignedPreKeyPublic::default())
    }),
    ("a signed pre-key without signature", |_, r| {
        first(r)
            .signed_pre_key_public
            .as_mut()
            .unwrap()
            .signature
            .clear()
    }),
    ("an empty one-time key", |_, r| {
        first(r).one_time_pre_key_public = Some(OneTimePreKeyPublic::default())
    }),
    ("a one-time key without id", |_, r| {
        first(r).one_time_pre_key_public.as_mut().unwrap().opk_id = 0
    }),
    ("an unknown pack", |_, r| first(r).e2ee_pack_id = 0),
];

#[tokio::test]
async fn lies_about_bundles_count_as_no_answer() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let evil = Scripted::join(&lab, "evil.test").await;
    let eve = evil.target("eve", "phone");
    let request = GetPreKeyBundleRequest {
        domain: "evil.test".to_owned(),
        user_id: "eve".to_owned(),
        device_id: "phone".to_owned(),
    };
    let before = lab.snapshot().await;

    for (what, lie) in LIES {
        let mut told = eve.answer(vec![eve.bundle()]);
        lie(&eve, &mut told);
        evil.next("GetPreKeyBundle", [Act::reply(&told)]);
        let reply = ask(&alice, request.clone()).await;
        assert_eq!(reply.code(), ServiceUnavailable, "{what}: {reply:?}");
        assert!(reply.pre_key_bundles.is_empty(), "{what}");
    }

    before.assert_same(&lab.snapshot().await, "a lie");
    evil.next(
        "GetPreKeyBundle",
        [Act::reply(&eve.answer(vec![eve.bundle()]))],
    );
    let honest = ask(&alice, request).await;
    assert_code(&honest, Granted);
}

#[tokio::test]
async fn a_peers_refusals_reach_the_asker_as_what_they_mean() {
    let lab = Lab::configured(["a.test"], |config| {
        config.limits.ask_ms = 500;
        config.limits.connect_ms = 500;
    })
    .await;
    let alice = lab.user("alice@a.test").await;
    let evil = Scripted::join(&lab, "evil.test").await;
    let eve = evil.target("eve", "phone");
    let request = GetPreKeyBundleRequest {
        domain: "evil.test".to_owned(),
        user_id: "eve".to_owned(),
        device_id: String::new(),
    };

    for (act, code) in [
        (Act::Refuse(NoContent), NoContent),
        (Act::reply(&eve.answer(Vec::new())), NoContent),
        (Act::Refuse(ResponseCode::Unauthorized), ServiceUnavailable),
        (
            Act::Refuse(ResponseCode::InternalServerError),
            ServiceUnavailable,
        ),
        (Act::Refuse(ServiceUnavailable), ServiceUnavailable),
        (Act::Fail(tonic::Code::Internal), ServiceUnavailable),
        (
            Act::Reply(b"\xff\xff\xff".as_slice().into()),
            ServiceUnavailable,
        ),
        (Act::Silence, ServiceUnavailable),
        (Act::HangUp, ServiceUnavailable),
        // 404 would make the client ask for ever.
        (Act::Refuse(ResponseCode::NotFound), NoContent),
    ] {
        let what = format!("{act:?}");
        evil.next("GetPreKeyBundle", [act]);
        let reply = ask(&alice, request.clone()).await;
        assert_eq!(reply.code(), code, "{what}: {}", reply.msg);
    }
    for mood in [Mood::Gone, Mood::Deaf] {
        evil.turns(mood);
        let reply = ask(&alice, request.clone()).await;
        assert_eq!(reply.code(), ServiceUnavailable, "{mood:?}");
    }
}

#[tokio::test]
async fn a_denied_domain_has_nothing_to_hand_out() {
    let lab = Lab::configured(["a.test"], |config| {
        config.federation.policy = skiserver::config::Policy::Deny;
        config.federation.domains = vec!["evil.test".to_owned()];
    })
    .await;
    let alice = lab.user("alice@a.test").await;
    let evil = Scripted::join(&lab, "evil.test").await;
    let request = GetPreKeyBundleRequest {
        domain: "evil.test".to_owned(),
        user_id: "eve".to_owned(),
        device_id: String::new(),
    };

    let reply = ask(&alice, request).await;

    assert_code(&reply, NoContent);
    assert!(evil.heard().is_empty(), "nobody asked it");
}
