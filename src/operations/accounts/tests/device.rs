//! The end of a device, ours and a peer's.

use crate::testing::Must as _;

use super::{register_more::write, *};
use crate::{
    address::Domain,
    error::Error,
    operations::accounts::{logout, on_removed_device},
    proto::{
        skiserver::{LogoutRequest, RemoveUserDeviceRequest},
        skissm::{E2eeAddress, RemoveUserDeviceMsg},
    },
    store::Recipient,
};

async fn sign_out(bench: &Bench, caller: &Caller, address: E2eeAddress) -> Result<()> {
    let request = LogoutRequest {
        user_address: Some(address),
    };
    logout(bench, caller, request).await.map(|_| ())
}

#[tokio::test]
async fn a_sign_out_leaves_nothing_of_the_device_and_tells_its_peers() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    let tablet = Phone::new(&bench, "alice", "tablet").await;
    let bob = Phone::new(&bench, "bob", "phone").await;
    let carol = Phone::new(&bench, "carol", "phone").await;
    pair(&bench, &phone.address, &bob.address).await;
    pair(&bench, &tablet.address, &bob.address).await;
    let caller = phone.caller(&bench).await.must();

    sign_out(&bench, &caller, phone.address.to_proto())
        .await
        .must();

    assert!(phone.caller(&bench).await.is_none());
    assert_eq!(key(&bench, &phone.address).await, None);
    assert!(phone.mail(&bench).await.is_empty());
    for (told, letters) in [(&tablet, 1), (&bob, 2), (&carol, 1)] {
        let mail = told.letters(&bench).await;
        assert_eq!(mail.len(), letters, "{}", *told.address);
    }
    for told in [&tablet, &bob] {
        let (_, last) = told.mail(&bench).await.pop().must();
        let own = Some(phone.address.to_proto_named("alice"));
        assert_eq!(last.from, own);
        let Some(Payload::RemoveUserDeviceMsg(removed)) = last.payload else {
            panic!("not told")
        };
        assert_eq!(removed.user_address, own);
    }
    let sessions = "SELECT COUNT(*) FROM sessions";
    assert_eq!(count(&bench, sessions).await, 2, "the tablet's, both sides");
    let to = Recipient::Device(phone.address.clone());
    let letter = crate::delivery::Letter {
        from: None,
        payload: Payload::RemoveUserDeviceMsg(RemoveUserDeviceMsg::default()),
    };
    let append = Append {
        mail: vec![letter.mail(to, String::new(), true)],
        ..Append::default()
    };
    let late = bench.store.append(append).await;
    assert!(matches!(late, Err(Error::NotFound(_))), "{late:?}");
}

#[tokio::test]
async fn a_device_signs_out_only_itself_and_only_once() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    let tablet = Phone::new(&bench, "alice", "tablet").await;
    let caller = phone.caller(&bench).await.must();

    let others = sign_out(&bench, &caller, tablet.address.to_proto()).await;
    assert!(matches!(others, Err(Error::Forbidden(_))), "{others:?}");
    let vague = sign_out(&bench, &caller, phone.address.user.to_proto()).await;
    assert!(matches!(vague, Err(Error::Invalid(_))), "{vague:?}");
    let nobody = sign_out(&bench, &stranger(), phone.address.to_proto()).await;
    assert!(matches!(nobody, Err(Error::Unauthenticated(_))));
    let own = || phone.address.to_proto();
    sign_out(&bench, &caller, own()).await.must();
    let again = sign_out(&bench, &caller, own()).await;
    assert!(matches!(again, Err(Error::Unauthenticated(_))), "{again:?}");
}

#[tokio::test]
async fn a_former_installation_can_not_sign_out_the_one_that_took_its_place() {
    let bench = Bench::start().await;
    let former = Phone::new(&bench, "alice", "phone").await;
    let caller = former.caller(&bench).await.must();
    let present = Phone::new(&bench, "alice", "phone").await;

    let refused = sign_out(&bench, &caller, former.address.to_proto()).await;

    assert!(matches!(refused, Err(Error::Unauthenticated(_))));
    assert!(present.caller(&bench).await.is_some());
}

#[tokio::test]
async fn a_device_that_comes_back_goes_on_with_its_tags() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    write(&bench, &phone).await;
    let newest = phone.mail(&bench).await.last().must().0;
    let caller = phone.caller(&bench).await.must();
    sign_out(&bench, &caller, phone.address.to_proto())
        .await
        .must();
    bench.clock.turn(-60_000);

    let back = Phone::new(&bench, "alice", "phone").await;
    write(&bench, &back).await;

    let first = back.mail(&bench).await[0].0;
    assert!(first > newest, "{first} is not after {newest}");
    assert_eq!(
        count(&bench, "SELECT COUNT(*) FROM removed_devices").await,
        0
    );
}

fn gone(user: &E2eeAddress, message: &E2eeAddress) -> RemoveUserDeviceRequest {
    RemoveUserDeviceRequest {
        user_address: Some(user.clone()),
        remove_user_device_msg: Some(RemoveUserDeviceMsg {
            user_address: Some(message.clone()),
        }),
    }
}

#[tokio::test]
async fn a_peers_removed_device_loses_its_sessions_and_our_devices_hear_of_it_once() {
    let bench = Bench::start().await;
    let alice = Phone::new(&bench, "alice", "phone").await;
    let bob = Phone::new(&bench, "bob", "phone").await;
    let parse = |text: &str| DeviceAddress::parse(text).must();
    let (carol, dave) = (parse("carol@b.test/phone"), parse("dave@b.test/phone"));
    pair(&bench, &alice.address, &carol).await;
    pair(&bench, &alice.address, &dave).await;
    pair(&bench, &bob.address, &dave).await;
    let peer = Caller::Peer(Domain::parse("b.test").must());
    let request = || gone(&carol.to_proto(), &carol.to_proto());

    for _ in 0..2 {
        on_removed_device(&bench, &peer, request()).await.must();
    }

    let letters = alice.mail(&bench).await;
    assert_eq!(letters.len(), 2, "the welcome, and one notice");
    assert_eq!(letters[1].1.from, Some(carol.to_proto()));
    assert!(matches!(
        &letters[1].1.payload,
        Some(Payload::RemoveUserDeviceMsg(m)) if m.user_address == Some(carol.to_proto())
    ));
    assert_eq!(bob.mail(&bench).await.len(), 1);
    assert_eq!(count(&bench, "SELECT COUNT(*) FROM sessions").await, 2);
}

#[tokio::test]
async fn a_peer_tells_of_its_own_devices_only() {
    let bench = Bench::start().await;
    let alice = Phone::new(&bench, "alice", "phone").await;
    let bob = Phone::new(&bench, "bob", "phone").await;
    pair(&bench, &alice.address, &bob.address).await;
    let address = |text: &str| DeviceAddress::parse(text).must().to_proto();
    let (carol, eve) = (address("carol@b.test/phone"), address("eve@c.test/phone"));
    let whole_user = DeviceAddress::parse("carol@b.test/x").must().user;
    let whole_user = whole_user.to_proto();
    let ours = alice.address.to_proto();
    let peer = Caller::Peer(Domain::parse("b.test").must());

    for (user, message, forbidden) in [
        (&eve, &eve, true),
        (&carol, &eve, true),
        (&eve, &carol, true),
        (&ours, &ours, true),
        (&carol, &ours, true),
        (&whole_user, &whole_user, false),
        (&carol, &address("carol@b.test/tablet"), false),
    ] {
        let refused = on_removed_device(&bench, &peer, gone(user, message)).await;
        match refused {
            Err(Error::Forbidden(_)) => assert!(forbidden),
            Err(Error::Invalid(_)) => assert!(!forbidden),
            other => panic!("{user:?}, {message:?}: {other:?}"),
        }
    }
    let device = alice.caller(&bench).await.must();
    let refused = on_removed_device(&bench, &device, gone(&ours, &ours)).await;
    assert!(matches!(refused, Err(Error::Unauthenticated(_))));
    assert_eq!(count(&bench, "SELECT COUNT(*) FROM sessions").await, 2);
}
