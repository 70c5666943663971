//! Final refusals of stored requests: what the sending device hears, and what is left.

use crate::testing::Must as _;

use prost::Message as _;

use crate::{
    address::{DeviceAddress, UserAddress},
    delivery::Letter,
    peers::{
        Method, Outgoing,
        testing::{ALICE, Rig, outgoing},
    },
    proto::skissm::{
        AcceptMsg, E2eeMsg, FriendManagerMsg, InviteMsg, InviteRequest, SendOne2oneMsgRequest,
        proto_msg::Payload,
    },
};

const BOB: &str = "bob@b.test";

fn bobs_tablet() -> DeviceAddress {
    UserAddress::parse(BOB).must().device("tablet").must()
}

/// A stored request of each method to Bob's tablet.
fn requests(rig: &Rig) -> [(Method, Vec<u8>); 3] {
    let tablet = bobs_tablet().to_proto();
    let to = Some(tablet.clone());
    let send = SendOne2oneMsgRequest {
        msg: Some(E2eeMsg {
            to: to.clone(),
            ..E2eeMsg::default()
        }),
    };
    let invite = InviteRequest {
        msg: Some(InviteMsg {
            to: to.clone(),
            ..InviteMsg::default()
        }),
    };
    let accept = Letter {
        from: None,
        payload: Payload::AcceptMsg(AcceptMsg {
            to: to.clone(),
            ..AcceptMsg::default()
        }),
    };
    let accept = accept.submission(tablet, &rig.node.once("test", &[]), Vec::new());
    [
        (Method::SendOne2oneMsg, send.encode_to_vec()),
        (Method::Invite, invite.encode_to_vec()),
        (Method::SubmitProtoMsg, accept.encode_to_vec()),
    ]
}

fn request(method: Method, request: Vec<u8>) -> Outgoing {
    Outgoing {
        method,
        request: request.into(),
        ..outgoing(BOB, "")
    }
}

#[tokio::test]
async fn a_device_that_is_gone_is_told_as_its_removal_and_its_lane_goes_on() {
    for index in 0..3 {
        let rig = Rig::new().await;
        let alice = rig.alice().await;
        let [(method, bytes)] = [requests(&rig)[index].clone()];
        rig.store(request(method, bytes)).await;
        rig.store(outgoing(BOB, "next")).await;

        rig.call().await.code(404);

        let mail = rig.next_mail(alice).await;
        let address = bobs_tablet().to_proto();
        let [message] = mail.as_slice() else {
            panic!("{mail:?}");
        };
        assert_eq!(message.from.as_ref(), Some(&address));
        let Some(Payload::RemoveUserDeviceMsg(removal)) = &message.payload else {
            panic!("{message:?}");
        };
        assert_eq!(removal.user_address.as_ref(), Some(&address));
        rig.hears("next").await.ok();
        rig.until_rows(0).await;
    }
}

#[tokio::test]
async fn another_final_code_is_kept_for_the_notice_and_its_lane_goes_on() {
    let rig = Rig::without_sweep().await;
    let alice = rig.alice().await;
    rig.store(outgoing(BOB, "1")).await;
    rig.store(outgoing(BOB, "2")).await;

    rig.hears("1").await.code(403);
    rig.hears("2").await.ok();

    rig.until_rows(1).await;
    assert_eq!(rig.number("SELECT refused_code FROM outbox").await, 403);
    assert_eq!(rig.mailbox(alice).await, []);
}

#[tokio::test]
async fn a_refused_request_of_nobody_is_only_deleted() {
    let rig = Rig::without_sweep().await;
    let alice = rig.alice().await;
    let friend = Letter {
        from: None,
        payload: Payload::FriendManagerMsg(FriendManagerMsg::default()),
    };
    let once = rig.node.once("test", &[]);
    let submission = friend.submission(bobs_tablet().to_proto(), &once, Vec::new());
    for code in [404, 400] {
        rig.store(Outgoing {
            sender: String::new(),
            ..request(Method::SubmitProtoMsg, submission.encode_to_vec())
        })
        .await;
        rig.call().await.code(code);
        rig.until_rows(0).await;
    }

    assert_eq!(rig.number("SELECT COUNT(*) FROM bodies").await, 0);
    assert_eq!(rig.mailbox(alice).await, []);
}

#[tokio::test]
async fn a_sender_that_is_gone_holds_up_nothing() {
    let rig = Rig::new().await;
    let [(method, bytes), ..] = requests(&rig);
    rig.store(Outgoing {
        sender: ALICE.to_owned(),
        ..request(method, bytes)
    })
    .await;

    rig.call().await.code(404);

    rig.until_rows(0).await;
}
