//! What a peer answers for bundles. The signature of this node says whose keys they are, so an answer that is
//! not exactly what was asked for is none at all.

use std::collections::HashSet;

use super::Asked;
use crate::{
    address::{DeviceAddress, Remote, UserAddress},
    error::{Error, Result},
    limits::FOREIGN_DEVICES_FACTOR,
    packs,
    proto::skissm::{GetPreKeyBundleResponse, PreKeyBundle},
};

/// The bundles of an answer, in its order, each with the device that it is of: complete, of the user and device
/// asked for, no device twice. Addresses come out in our spelling, and foreign signatures are gone.
pub(super) fn checked(
    reply: GetPreKeyBundleResponse,
    asked: &Asked<Remote<UserAddress>>,
    devices_max: usize,
) -> Result<Vec<(DeviceAddress, PreKeyBundle)>> {
    if reply.pre_key_bundles.is_empty() {
        return Ok(Vec::new());
    }
    if reply.user_id != asked.user.user_id {
        return Err(Error::Invalid("user_id"));
    }
    if reply.pre_key_bundles.len() > devices_max.saturating_mul(FOREIGN_DEVICES_FACTOR) {
        return Err(Error::Invalid("number of bundles"));
    }
    let mut seen = HashSet::new();
    let mut bundles = Vec::with_capacity(reply.pre_key_bundles.len());
    for bundle in reply.pre_key_bundles {
        let (address, bundle) = one(bundle, asked)?;
        if !seen.insert(address.device_id.clone()) {
            return Err(Error::Invalid("device, twice in one answer,"));
        }
        bundles.push((address, bundle));
    }
    Ok(bundles)
}

fn one(
    bundle: PreKeyBundle,
    asked: &Asked<Remote<UserAddress>>,
) -> Result<(DeviceAddress, PreKeyBundle)> {
    let address = DeviceAddress::from_proto(bundle.user_address.as_ref())?;
    if address.user != *asked.user {
        return Err(Error::Invalid("user of a bundle"));
    }
    if asked
        .device_id
        .as_ref()
        .is_some_and(|id| *id != address.device_id)
    {
        return Err(Error::Invalid("device of a bundle"));
    }
    let identity = (bundle.identity_key_public).ok_or(Error::Invalid("identity_key_public"))?;
    let spk = (bundle.signed_pre_key_public).ok_or(Error::Invalid("signed_pre_key_public"))?;
    let opk = bundle.one_time_pre_key_public;
    packs::check_public_keys(bundle.e2ee_pack_id, &identity, &spk, opk.as_slice())?;
    let bundle = PreKeyBundle {
        user_address: Some(address.to_proto()),
        e2ee_pack_id: bundle.e2ee_pack_id,
        identity_key_public: Some(identity),
        signed_pre_key_public: Some(spk),
        one_time_pre_key_public: opk,
        signature: None,
    };
    Ok((address, bundle))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Must as _;
    use crate::{
        address::{Domain, Home, Route},
        proto::skissm::{
            IdentityKeyPublic, OneTimePreKeyPublic, ServerSignedSignature, SignedPreKeyPublic,
        },
    };

    fn asked(device_id: Option<&str>) -> Asked<Remote<UserAddress>> {
        let user = UserAddress::parse("bob@b.test").must();
        let home = Home::new(Domain::parse("a.test").must());
        let Route::There(user) = home.route(&user) else {
            panic!("not ours");
        };
        Asked {
            user,
            device_id: device_id.map(str::to_owned),
        }
    }

    fn bundle(device: &str) -> PreKeyBundle {
        PreKeyBundle {
            user_address: Some(DeviceAddress::parse(device).must().to_proto()),
            e2ee_pack_id: 0x0011_3101,
            identity_key_public: Some(IdentityKeyPublic {
                asym_public_key: vec![1; 1_568].into(),
                sign_public_key: vec![2; 2_592].into(),
            }),
            signed_pre_key_public: Some(SignedPreKeyPublic {
                spk_id: 1,
                public_key: vec![3; 1_568].into(),
                signature: vec![4; 4_627].into(),
            }),
            one_time_pre_key_public: Some(OneTimePreKeyPublic {
                opk_id: 9,
                public_key: vec![5; 1_568].into(),
            }),
            signature: Some(ServerSignedSignature::default()),
        }
    }

    fn reply(bundles: Vec<PreKeyBundle>) -> GetPreKeyBundleResponse {
        GetPreKeyBundleResponse {
            user_id: "bob".to_owned(),
            pre_key_bundles: bundles,
            ..GetPreKeyBundleResponse::default()
        }
    }

    #[test]
    fn a_good_answer_keeps_its_order_and_loses_foreign_signatures_and_spellings() {
        let mut first = bundle("bob@b.test/z");
        first.user_address.as_mut().must().domain = "B.TEST".to_owned();
        let mut second = bundle("bob@b.test/a");
        second.one_time_pre_key_public = None;

        let bundles = checked(reply(vec![first, second]), &asked(None), 1).must();

        let addresses: Vec<String> = bundles
            .iter()
            .map(|(address, _)| address.to_string())
            .collect();
        assert_eq!(addresses, ["bob@b.test/z", "bob@b.test/a"]);
        for (address, bundle) in &bundles {
            assert_eq!(bundle.user_address, Some(address.to_proto()));
            assert_eq!(bundle.signature, None);
        }
        assert!(bundles[0].1.one_time_pre_key_public.is_some());
        assert!(bundles[1].1.one_time_pre_key_public.is_none());
        assert!(
            checked(reply(Vec::new()), &asked(None), 1)
                .must()
                .is_empty()
        );
    }

    #[test]
    fn an_answer_that_is_not_what_was_asked_for_is_refused_whole() {
        let of = |change: &dyn Fn(&mut PreKeyBundle)| {
            let mut bad = bundle("bob@b.test/2");
            change(&mut bad);
            vec![bundle("bob@b.test/1"), bad]
        };
        let wrong: [(&str, Vec<PreKeyBundle>); 14] = [
            ("another user", vec![bundle("eve@b.test/1")]),
            ("another domain", vec![bundle("bob@c.test/1")]),
            ("our own user", vec![bundle("bob@a.test/1")]),
            (
                "twice the same",
                vec![bundle("bob@b.test/1"), bundle("bob@b.test/1")],
            ),
            (
                "too many",
                (0..5).map(|n| bundle(&format!("bob@b.test/{n}"))).collect(),
            ),
            ("no address", of(&|b| b.user_address = None)),
            (
                "no device",
                of(&|b| {
                    b.user_address = Some(UserAddress::parse("bob@b.test").must().to_proto());
                }),
            ),
            ("no identity", of(&|b| b.identity_key_public = None)),
            (
                "an empty sign key",
                of(&|b| {
                    b.identity_key_public
                        .as_mut()
                        .must()
                        .sign_public_key
                        .clear();
                }),
            ),
            ("no signed key", of(&|b| b.signed_pre_key_public = None)),
            (
                "an empty signature",
                of(&|b| b.signed_pre_key_public.as_mut().must().signature.clear()),
            ),
            (
                "an empty one-time key",
                of(&|b| b.one_time_pre_key_public = Some(OneTimePreKeyPublic::default())),
            ),
            (
                "id 0",
                of(&|b| b.one_time_pre_key_public.as_mut().must().opk_id = 0),
            ),
            ("an unknown pack", of(&|b| b.e2ee_pack_id = 7)),
        ];

        for (what, bundles) in wrong {
            assert!(
                checked(reply(bundles), &asked(None), 1).is_err(),
                "{what} passed"
            );
        }
        let mut of_eve = reply(vec![bundle("bob@b.test/1")]);
        of_eve.user_id = "eve".to_owned();
        assert!(checked(of_eve, &asked(None), 1).is_err());
        let asked = asked(Some("1"));
        assert!(checked(reply(vec![bundle("bob@b.test/2")]), &asked, 1).is_err());
        assert!(checked(reply(vec![bundle("bob@b.test/1")]), &asked, 1).is_ok());
    }
}
