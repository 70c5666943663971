//! What other domains are told of our devices: rows of the outbox, each domain and lane its own.

use crate::testing::Must as _;

use prost::Message as _;

use super::*;
use crate::{
    operations::accounts::logout,
    proto::skiserver::{LogoutRequest, RemoveUserDeviceRequest, SubmitProtoMsgRequest},
};

fn device(text: &str) -> DeviceAddress {
    DeviceAddress::parse(text).must()
}

#[tokio::test]
async fn a_sign_out_tells_each_domain_once() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    for peer in [
        "bob@b.test/1",
        "bob@b.test/2",
        "carol@b.test/1",
        "dave@c.test/1",
    ] {
        pair(&bench, &phone.address, &device(peer)).await;
    }
    let caller = phone.caller(&bench).await.must();

    let request = LogoutRequest {
        user_address: Some(phone.address.to_proto()),
    };
    logout(&bench, &caller, request).await.must();

    let waiting = outbox(&bench).await;
    let own = Some(phone.address.to_proto());
    let domains: Vec<_> = waiting.iter().map(|row| row.0.as_str()).collect();
    assert_eq!(domains, ["b.test", "c.test"]);
    for (_, lane, request) in waiting {
        assert_eq!(lane, "", "a barrier has no lane");
        let request = RemoveUserDeviceRequest::decode(request).must();
        assert_eq!(request.user_address, own);
        assert_eq!(request.remove_user_device_msg.must().user_address, own);
    }
    assert_eq!(count(&bench, "SELECT COUNT(*) FROM sessions").await, 0);
}

#[tokio::test]
async fn another_installation_is_removed_at_its_peers_before_it_is_added() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    let tablet = Phone::new(&bench, "alice", "tablet").await;
    let bob = device("bob@b.test/phone");
    pair(&bench, &phone.address, &bob).await;
    pair(&bench, &tablet.address, &bob).await;

    let again = Phone::new(&bench, "alice", "phone").await;

    assert_eq!(
        again.answer.other_user_address_list,
        [bob.to_proto()],
        "the tablet still has its session"
    );
    let waiting = outbox(&bench).await;
    let [(_, barrier, removed), (domain, lane, added)] = waiting.as_slice() else {
        panic!("{waiting:?}")
    };
    assert_eq!(barrier, "");
    let removed = RemoveUserDeviceRequest::decode(removed.clone()).must();
    assert_eq!(removed.user_address, Some(phone.address.to_proto()));
    assert_eq!((domain.as_str(), lane.as_str()), ("b.test", "bob@b.test"));
    let added = SubmitProtoMsgRequest::decode(added.clone()).must();
    let added = added.proto_msg.must();
    assert_eq!(added.to, Some(bob.to_proto()));
    assert_eq!(added.from, again.answer.address);
    assert!(!added.tag.must().proto_msg_id.is_empty());
    let Some(Payload::AddUserDeviceMsg(message)) = added.payload else {
        panic!("not an added device")
    };
    assert_eq!(message.user_address, again.answer.address);
    assert_eq!(
        message.old_address_list,
        again.answer.other_device_address_list
    );
}

#[tokio::test]
async fn a_registration_that_fails_gives_its_places_in_lanes_back() {
    let bench = Bench::start_with(|config| config.limits.outbox_rows_max = 1).await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    for peer in ["bob@b.test/phone", "carol@b.test/phone"] {
        pair(&bench, &phone.address, &device(peer)).await;
    }

    for _ in 0..2 {
        let refused = apply(&bench, form("alice", "tablet")).await;
        assert!(
            matches!(refused, Err(crate::error::Error::Busy(_))),
            "{refused:?}"
        );
    }

    assert!(outbox(&bench).await.is_empty());
    assert_eq!(count(&bench, "SELECT COUNT(*) FROM devices").await, 1);
    assert_eq!(phone.mail(&bench).await.len(), 1);
    // One place is free still.
    let caller = phone.caller(&bench).await.must();
    let request = LogoutRequest {
        user_address: Some(phone.address.to_proto()),
    };
    logout(&bench, &caller, request).await.must();
    assert_eq!(outbox(&bench).await.len(), 1);
}
