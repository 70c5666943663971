//! What another domain may ask at the peer door, and each way in which it is refused. The peer is a scripted one,
//! so that it asks what no node would.

use std::sync::Arc;

use skiserver::{
    address::{DeviceAddress, UserAddress},
    client::talk,
    config::Policy,
    lab::ca::LeafRequest,
    proto::{
        skiserver::{
            AcquireGroupMemberInfosRequest, LogoutRequest, RemoveUserDeviceRequest,
            SubmitProtoMsgRequest,
        },
        skissm::{
            AcceptMsg, AcquireSyncMsg, AddUserDeviceMsg, ClientHeartbeatMsg, CreateGroupMsg,
            E2eeAddress, E2eeMsg, FriendManagerMsg, GetPreKeyBundleRequest, GroupManagerMsg,
            GroupMsgPayload, InviteMsg, InviteRequest, LeaveGroupMsg, One2oneMsgPayload, ProtoMsg,
            ProtoMsgTag, RemoveUserDeviceMsg, ResponseCode, SendOne2oneMsgRequest,
            ServerHeartbeatMsg, ServerSignedSignature, SupplyOpksMsg, SystemManagerMsg,
            UpdateUserMsg, UpgradeE2eePackMsg, e2ee_msg, proto_msg::Payload,
        },
    },
    reply::Verdict,
};

use crate::lab::{
    Lab, Scripted, Spoil, User, answer, assert_code, raw, refuses_each, scripted::Dialler,
    stream::text,
};

use ResponseCode::{
    BadRequest, Forbidden, NoContent, NotFound, Ok as Granted, ServiceUnavailable, Unauthorized,
};

fn address(text: &str) -> Option<E2eeAddress> {
    Some(DeviceAddress::parse(text).unwrap().to_proto())
}

fn user_only(text: &str) -> Option<E2eeAddress> {
    Some(UserAddress::parse(text).unwrap().to_proto())
}

/// A node with alice, and a peer where bob says he is.
async fn stage() -> (Lab, User, Scripted) {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let peer = Scripted::join(&lab, "b.test").await;
    (lab, alice, peer)
}

fn invite_of_bob(alice: &User) -> InviteRequest {
    let pack = alice.keys().pack();
    InviteRequest {
        msg: Some(InviteMsg {
            version: "\u{1}".to_owned(),
            e2ee_pack_id: pack.id,
            session_id: talk::fresh_id(),
            from: address("bob@b.test/phone"),
            to: Some(alice.address().to_proto()),
            alice_identity_key: vec![1; pack.asym_key].into(),
            alice_base_key: vec![2; pack.asym_key].into(),
            pre_shared_input_list: vec![vec![3; pack.ciphertext].into(); 3],
            bob_signed_pre_key_id: 1,
            bob_one_time_pre_key_id: 1,
            invite_t: 1_700_000_000_000,
        }),
    }
}

fn letter_of_bob(alice: &User, words: &str) -> SendOne2oneMsgRequest {
    SendOne2oneMsgRequest {
        msg: Some(E2eeMsg {
            version: "\u{1}".to_owned(),
            from: address("bob@b.test/phone"),
            to: Some(alice.address().to_proto()),
            msg_id: talk::fresh_id(),
            session_id: "session".to_owned(),
            notif_level: 11,
            payload: Some(e2ee_msg::Payload::One2oneMsg(One2oneMsgPayload {
                sequence: 1,
                ciphertext: format!("{words:.<32}").into_bytes().into(),
                ratchet_key: vec![1; 32].into(),
                root_sequence: 1,
                sending_message_sequence: 1,
            })),
        }),
    }
}

fn submission(
    from: Option<E2eeAddress>,
    to: Option<E2eeAddress>,
    payload: Payload,
) -> SubmitProtoMsgRequest {
    SubmitProtoMsgRequest {
        proto_msg: Some(ProtoMsg {
            tag: Some(ProtoMsgTag {
                proto_msg_t: 0,
                proto_msg_id: talk::fresh_id(),
            }),
            from,
            to,
            payload: Some(payload),
            signature_list: Vec::new(),
        }),
        ignored_device_id_list: Vec::new(),
    }
}

/// Bob's answer to an invite of alice's.
fn accept_of_bob(alice: &User) -> SubmitProtoMsgRequest {
    let accept = AcceptMsg {
        from: address("bob@b.test/phone"),
        to: Some(alice.address().to_proto()),
        e2ee_pack_id: alice.keys().pack().id,
        encaps_ciphertext: vec![1; 768].into(),
        ratchet_key: vec![2; 800].into(),
    };
    submission(
        accept.from.clone(),
        accept.to.clone(),
        Payload::AcceptMsg(accept),
    )
}

/// Makes alice invite bob, so that his accept is awaited.
async fn alice_invites(alice: &User, peer: &Scripted) {
    let bob = peer.target("bob", "phone");
    let mut bundle = bob.bundle();
    bundle.user_address = address("bob@b.test/phone");
    let invitation = talk::invitation(alice, &bundle).unwrap();
    talk::invite(alice, &invitation).await.unwrap();
}

fn invite(request: &mut InviteRequest) -> &mut InviteMsg {
    request.msg.as_mut().unwrap()
}

#[tokio::test]
async fn an_invite_of_a_peer_arrives_with_its_key_and_its_time() {
    let (lab, alice, peer) = stage().await;
    let request = invite_of_bob(&alice);
    let mut node = peer.calls(&lab, "a.test");

    let first = answer(node.invite(request.clone())).await;
    let again = answer(node.invite(request.clone())).await;

    assert_code(&first, Granted);
    assert_eq!(first.session_id, request.msg.as_ref().unwrap().session_id);
    assert_eq!(first.invite_t, 1_700_000_000_000);
    assert_eq!(first, again);
    let mut stream = alice.stream().await;
    assert_eq!(Some(stream.next_invite().await.said), request.msg);
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn an_invite_of_a_peer_is_refused_for_each_wrong_field() {
    let (lab, alice, peer) = stage().await;
    let good = invite_of_bob(&alice);
    let spoils: &[Spoil<InviteRequest>] = &[
        ("no message", |r| r.msg = None, BadRequest),
        ("no inviter", |r| invite(r).from = None, BadRequest),
        (
            "no device of the inviter",
            |r| invite(r).from = user_only("bob@b.test"),
            BadRequest,
        ),
        (
            "an inviter of ours",
            |r| invite(r).from = address("carol@a.test/phone"),
            Forbidden,
        ),
        (
            "the invited as inviter",
            |r| invite(r).from = invite(r).to.clone(),
            Forbidden,
        ),
        (
            "an inviter of a third domain",
            |r| invite(r).from = address("bob@c.test/phone"),
            Forbidden,
        ),
        ("nobody invited", |r| invite(r).to = None, BadRequest),
        (
            "no device invited",
            |r| invite(r).to = user_only("alice@a.test"),
            BadRequest,
        ),
        (
            "the peer's own",
            |r| invite(r).to = address("carol@b.test/phone"),
            BadRequest,
        ),
        (
            "a third domain's",
            |r| invite(r).to = address("alice@c.test/phone"),
            BadRequest,
        ),
        (
            "an unknown device",
            |r| invite(r).to = address("alice@a.test/watch"),
            NotFound,
        ),
        (
            "an unknown user",
            |r| invite(r).to = address("eve@a.test/phone"),
            NotFound,
        ),
        (
            "no identity key",
            |r| invite(r).alice_identity_key.clear(),
            BadRequest,
        ),
        ("no time", |r| invite(r).invite_t = 0, BadRequest),
        (
            "a time before all times",
            |r| invite(r).invite_t = -1,
            BadRequest,
        ),
        (
            "no session id",
            |r| invite(r).session_id.clear(),
            BadRequest,
        ),
        (
            "no base key",
            |r| invite(r).alice_base_key.clear(),
            BadRequest,
        ),
        (
            "two secrets with a one-time key",
            |r| invite(r).pre_shared_input_list.truncate(2),
            BadRequest,
        ),
        (
            "an empty secret",
            |r| invite(r).pre_shared_input_list[0].clear(),
            BadRequest,
        ),
        (
            "two megabytes",
            |r| invite(r).alice_base_key = vec![1; 2 << 20].into(),
            BadRequest,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        peer.calls(&lab, "a.test").invite(request).await
    })
    .await;
}

fn letter(request: &mut SendOne2oneMsgRequest) -> &mut E2eeMsg {
    request.msg.as_mut().unwrap()
}

fn payload(request: &mut SendOne2oneMsgRequest) -> &mut One2oneMsgPayload {
    match &mut letter(request).payload {
        Some(e2ee_msg::Payload::One2oneMsg(payload)) => payload,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_message_of_a_peer_is_refused_for_each_wrong_field() {
    let (lab, alice, peer) = stage().await;
    let good = letter_of_bob(&alice, "hello");
    let spoils: &[Spoil<SendOne2oneMsgRequest>] = &[
        ("no message", |r| r.msg = None, BadRequest),
        ("no sender", |r| letter(r).from = None, BadRequest),
        (
            "a sender of ours",
            |r| letter(r).from = address("carol@a.test/phone"),
            Forbidden,
        ),
        (
            "a sender of a third domain",
            |r| letter(r).from = address("bob@c.test/phone"),
            Forbidden,
        ),
        ("no receiver", |r| letter(r).to = None, BadRequest),
        (
            "no device of the receiver",
            |r| letter(r).to = user_only("alice@a.test"),
            BadRequest,
        ),
        (
            "a receiver of a third domain",
            |r| letter(r).to = address("alice@c.test/phone"),
            BadRequest,
        ),
        (
            "a receiver of its own",
            |r| letter(r).to = address("carol@b.test/phone"),
            BadRequest,
        ),
        (
            "an unknown device",
            |r| letter(r).to = address("alice@a.test/watch"),
            NotFound,
        ),
        ("no message id", |r| letter(r).msg_id.clear(), BadRequest),
        (
            "no session id",
            |r| letter(r).session_id.clear(),
            BadRequest,
        ),
        (
            "an unknown level",
            |r| letter(r).notif_level = 2,
            BadRequest,
        ),
        ("no payload", |r| letter(r).payload = None, BadRequest),
        (
            "a payload for a group",
            |r| letter(r).payload = Some(e2ee_msg::Payload::GroupMsg(GroupMsgPayload::default())),
            BadRequest,
        ),
        (
            "a ciphertext of 16 bytes",
            |r| payload(r).ciphertext = vec![1; 16].into(),
            BadRequest,
        ),
        (
            "no ratchet key",
            |r| payload(r).ratchet_key.clear(),
            BadRequest,
        ),
        (
            "two megabytes",
            |r| payload(r).ciphertext = vec![1; 2 << 20].into(),
            BadRequest,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        peer.calls(&lab, "a.test").send_one2one_msg(request).await
    })
    .await;
    let mut stream = alice.stream().await;
    assert_eq!(text(&stream.next_letter().await.said), "hello");
}

#[tokio::test]
async fn a_message_of_a_peer_that_comes_again_is_queued_once() {
    let (lab, alice, peer) = stage().await;
    let request = letter_of_bob(&alice, "once");
    let mut node = peer.calls(&lab, "a.test");

    for _ in 0..3 {
        let reply = answer(node.send_one2one_msg(request.clone())).await;
        assert_code(&reply, Granted);
    }

    let mut stream = alice.stream().await;
    assert_eq!(stream.next_text().await, "once");
    lab.assert_silent(&mut stream).await;
}

fn message(request: &mut SubmitProtoMsgRequest) -> &mut ProtoMsg {
    request.proto_msg.as_mut().unwrap()
}

fn accept(request: &mut SubmitProtoMsgRequest) -> &mut AcceptMsg {
    match &mut message(request).payload {
        Some(Payload::AcceptMsg(accept)) => accept,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_submission_is_refused_for_each_wrong_field() {
    let (lab, alice, peer) = stage().await;
    alice_invites(&alice, &peer).await;
    let good = accept_of_bob(&alice);
    let spoils: &[Spoil<SubmitProtoMsgRequest>] = &[
        ("nothing", |r| r.proto_msg = None, BadRequest),
        ("no tag", |r| message(r).tag = None, BadRequest),
        (
            "no id",
            |r| message(r).tag.as_mut().unwrap().proto_msg_id.clear(),
            BadRequest,
        ),
        (
            "an overlong id",
            |r| message(r).tag.as_mut().unwrap().proto_msg_id = "i".repeat(129),
            BadRequest,
        ),
        ("no payload", |r| message(r).payload = None, BadRequest),
        ("no receiver", |r| message(r).to = None, BadRequest),
        (
            "a receiver of a third domain",
            |r| message(r).to = address("alice@c.test/phone"),
            BadRequest,
        ),
        (
            "a receiver of its own",
            |r| message(r).to = address("bob@b.test/phone"),
            BadRequest,
        ),
        (
            "another receiver outside than inside",
            |r| message(r).to = address("alice@a.test/watch"),
            BadRequest,
        ),
        (
            "all devices for an accept",
            |r| message(r).to = user_only("alice@a.test"),
            BadRequest,
        ),
        (
            "another receiver inside than outside",
            |r| accept(r).to = address("alice@a.test/watch"),
            BadRequest,
        ),
        ("no sender", |r| message(r).from = None, BadRequest),
        (
            "another sender outside than inside",
            |r| message(r).from = address("carol@b.test/phone"),
            BadRequest,
        ),
        (
            "a sender of ours",
            |r| accept(r).from = address("bob@a.test/phone"),
            Forbidden,
        ),
        (
            "a sender of a third domain",
            |r| accept(r).from = address("bob@c.test/phone"),
            Forbidden,
        ),
        (
            "no ciphertext",
            |r| accept(r).encaps_ciphertext.clear(),
            BadRequest,
        ),
        (
            "no ratchet key",
            |r| accept(r).ratchet_key.clear(),
            BadRequest,
        ),
        (
            "too many ignored devices",
            |r| r.ignored_device_id_list = vec!["d".into(); 300],
            BadRequest,
        ),
        (
            "an ignored device without id",
            |r| r.ignored_device_id_list = vec![String::new()],
            BadRequest,
        ),
        (
            "two megabytes",
            |r| accept(r).ratchet_key = vec![1; 2 << 20].into(),
            BadRequest,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        peer.calls(&lab, "a.test").submit_proto_msg(request).await
    })
    .await;
    alice.stream().await.next_accept().await;
}

#[tokio::test]
async fn a_payload_that_has_a_call_of_its_own_is_never_submitted() {
    let (lab, alice, peer) = stage().await;
    let to = Some(alice.address().to_proto());
    let bob = address("bob@b.test/phone");
    let mut node = peer.calls(&lab, "a.test");
    let before = lab.snapshot().await;

    for payload in [
        Payload::InviteMsg(invite_of_bob(&alice).msg.unwrap()),
        Payload::E2eeMsg(letter_of_bob(&alice, "hello").msg.unwrap()),
        Payload::E2eeMsg(E2eeMsg::default()),
        Payload::AcquireSyncMsg(AcquireSyncMsg::default()),
        Payload::SupplyOpksMsg(SupplyOpksMsg::default()),
        Payload::RemoveUserDeviceMsg(RemoveUserDeviceMsg {
            user_address: bob.clone(),
        }),
        Payload::FriendManagerMsg(FriendManagerMsg::default()),
        Payload::SystemManagerMsg(SystemManagerMsg::default()),
        Payload::ClientHeartbeatMsg(ClientHeartbeatMsg::default()),
        Payload::ServerHeartbeatMsg(ServerHeartbeatMsg::default()),
        Payload::UpgradeE2eePackMsg(UpgradeE2eePackMsg::default()),
    ] {
        let what = format!("{payload:?}");
        let request = submission(bob.clone(), to.clone(), payload);
        let reply = answer(node.submit_proto_msg(request)).await;
        assert_eq!(reply.code(), BadRequest, "{what}: {}", reply.msg);
    }

    before.assert_same(&lab.snapshot().await, "a foreign payload");
}

/// Submissions about groups wait for the next release, like the methods of `doors`.
#[tokio::test]
async fn submissions_about_groups_are_not_available_yet() {
    let (lab, alice, peer) = stage().await;
    let bob = address("bob@b.test/phone");
    let group_letter = E2eeMsg {
        payload: Some(e2ee_msg::Payload::GroupMsg(GroupMsgPayload::default())),
        ..letter_of_bob(&alice, "").msg.unwrap()
    };
    let mut node = peer.calls(&lab, "a.test");
    let before = lab.snapshot().await;

    for payload in [
        Payload::CreateGroupMsg(CreateGroupMsg::default()),
        Payload::AddGroupMembersMsg(Default::default()),
        Payload::AddGroupMemberDeviceMsg(Default::default()),
        Payload::RemoveGroupMembersMsg(Default::default()),
        Payload::LeaveGroupMsg(LeaveGroupMsg::default()),
        Payload::GroupManagerMsg(GroupManagerMsg::default()),
        Payload::E2eeMsg(group_letter),
    ] {
        let request = submission(bob.clone(), Some(alice.address().to_proto()), payload);
        let reply = answer(node.submit_proto_msg(request)).await;
        assert_code(&reply, ServiceUnavailable);
        assert_eq!(reply.msg, "not available yet");
    }

    before.assert_same(&lab.snapshot().await, "a message about a group");
}

#[tokio::test]
async fn foreign_tags_and_signatures_stay_outside() {
    let (lab, alice, peer) = stage().await;
    alice_invites(&alice, &peer).await;
    let mut request = accept_of_bob(&alice);
    let tag = message(&mut request).tag.as_mut().unwrap();
    tag.proto_msg_t = i64::MAX;
    let id = tag.proto_msg_id.clone();
    message(&mut request).signature_list = vec![ServerSignedSignature {
        version: 9,
        signature: vec![1; 64].into(),
        ..ServerSignedSignature::default()
    }];
    let mut node = peer.calls(&lab, "a.test");

    assert_code(&answer(node.submit_proto_msg(request)).await, Granted);

    let received = alice.stream().await.next_accept().await; // one signature, ours, verified
    assert_ne!(received.tag.proto_msg_id, id);
    assert!((received.tag.proto_msg_t - lab.clock.now_ms()).abs() < 60_000);
}

/// Bob and alice know each other, as both domains have on record.
async fn acquaint(lab: &Lab, alice: &User, peer: &Scripted) {
    alice_invites(alice, peer).await;
    let mut node = peer.calls(lab, "a.test");
    let reply = answer(node.submit_proto_msg(accept_of_bob(alice))).await;
    assert_code(&reply, Granted);
    alice.stream().await.next_accept().await;
}

fn tablet_of_bob(to: Option<E2eeAddress>) -> SubmitProtoMsgRequest {
    let added = AddUserDeviceMsg {
        user_address: address("bob@b.test/tablet"),
        old_address_list: vec![address("bob@b.test/phone").unwrap()],
    };
    submission(
        added.user_address.clone(),
        to,
        Payload::AddUserDeviceMsg(added),
    )
}

fn added(request: &mut SubmitProtoMsgRequest) -> &mut AddUserDeviceMsg {
    match &mut message(request).payload {
        Some(Payload::AddUserDeviceMsg(added)) => added,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_new_device_of_a_peers_user_is_refused_for_each_wrong_field() {
    let (lab, alice, peer) = stage().await;
    acquaint(&lab, &alice, &peer).await;
    let good = tablet_of_bob(Some(alice.address().to_proto()));
    let spoils: &[Spoil<SubmitProtoMsgRequest>] = &[
        ("no address", |r| added(r).user_address = None, BadRequest),
        (
            "no device",
            |r| added(r).user_address = user_only("bob@b.test"),
            BadRequest,
        ),
        (
            "a device of ours",
            |r| added(r).user_address = address("alice@a.test/tablet"),
            Forbidden,
        ),
        (
            "a device of a third domain",
            |r| added(r).user_address = address("bob@c.test/tablet"),
            Forbidden,
        ),
        (
            "another sender",
            |r| message(r).from = address("carol@b.test/tablet"),
            BadRequest,
        ),
        ("no sender", |r| message(r).from = None, BadRequest),
        (
            "an old device of somebody else",
            |r| added(r).old_address_list = vec![address("alice@a.test/phone").unwrap()],
            BadRequest,
        ),
        (
            "an old device without id",
            |r| added(r).old_address_list = vec![user_only("bob@b.test").unwrap()],
            BadRequest,
        ),
        (
            "a receiver of a third domain",
            |r| message(r).to = address("alice@c.test/phone"),
            BadRequest,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        peer.calls(&lab, "a.test").submit_proto_msg(request).await
    })
    .await;
    let told = alice.stream().await.next_added_device().await.said;
    assert_eq!(told.user_address, address("bob@b.test/tablet"));
}

#[tokio::test]
async fn a_submission_that_comes_again_is_queued_once_for_each_peer() {
    let (lab, alice, peer) = stage().await;
    acquaint(&lab, &alice, &peer).await;
    let request = tablet_of_bob(Some(alice.address().to_proto()));
    let mut node = peer.calls(&lab, "a.test");

    for _ in 0..3 {
        let reply = answer(node.submit_proto_msg(request.clone())).await;
        assert_code(&reply, Granted);
    }

    let mut stream = alice.stream().await;
    stream.next_added_device().await;
    lab.assert_silent(&mut stream).await;
    let reply = answer(node.submit_proto_msg(request)).await;
    assert_code(&reply, Granted);
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn a_submission_to_a_user_reaches_all_devices_but_the_ignored() {
    let (lab, alice, peer) = stage().await;
    acquaint(&lab, &alice, &peer).await;
    let tablet = lab.second_device(&alice, "tablet").await;
    let laptop = lab.second_device(&alice, "laptop").await;
    let mut request = tablet_of_bob(user_only("alice@a.test"));
    request.ignored_device_id_list = vec!["tablet".to_owned(), "unknown".to_owned()];
    let mut node = peer.calls(&lab, "a.test");

    let reply = answer(node.submit_proto_msg(request)).await;

    assert_code(&reply, Granted);
    let told = |stream: &AddUserDeviceMsg| stream.user_address.clone();
    let mut phones = alice.stream().await;
    for _own in ["tablet", "laptop"] {
        phones.next_added_device().await;
    }
    assert_eq!(
        told(&phones.next_added_device().await.said),
        address("bob@b.test/tablet")
    );
    let mut laptops = laptop.stream().await;
    assert_eq!(
        told(&laptops.next_added_device().await.said),
        address("bob@b.test/tablet")
    );
    let mut tablets = tablet.stream().await;
    tablets.next_added_device().await; // the laptop
    lab.assert_silent(&mut tablets).await;
}

#[tokio::test]
async fn strangers_of_another_domain_plant_nothing() {
    let (lab, alice, peer) = stage().await;
    let mut node = peer.calls(&lab, "a.test");
    let to = Some(alice.address().to_proto());
    let update = UpdateUserMsg {
        user_address: address("bob@b.test/phone"),
        ..UpdateUserMsg::default()
    };
    let before = lab.snapshot().await;

    for request in [
        accept_of_bob(&alice),
        tablet_of_bob(to.clone()),
        submission(
            address("bob@b.test/phone"),
            to,
            Payload::UpdateUserMsg(update),
        ),
    ] {
        let reply = answer(node.submit_proto_msg(request)).await;
        assert_code(&reply, Granted);
    }

    before.assert_same(&lab.snapshot().await, "a stranger");
}

#[tokio::test]
async fn an_acquaintances_update_arrives_and_nobody_elses() {
    let (lab, alice, peer) = stage().await;
    acquaint(&lab, &alice, &peer).await;
    let mut node = peer.calls(&lab, "a.test");
    let mut update = async |of: Option<E2eeAddress>| {
        let update = UpdateUserMsg {
            modified_date: 7,
            user_address: of.clone(),
            ..UpdateUserMsg::default()
        };
        let to = user_only("alice@a.test");
        let request = submission(of, to, Payload::UpdateUserMsg(update));
        answer(node.submit_proto_msg(request)).await
    };

    assert_code(&update(address("carol@a.test/phone")).await, Forbidden);
    assert_code(&update(address("bob@c.test/phone")).await, Forbidden);
    assert_code(&update(None).await, BadRequest);
    assert_code(&update(address("bob@b.test/phone")).await, Granted);

    let message = alice.stream().await.next().await;
    let Some(Payload::UpdateUserMsg(update)) = message.payload else {
        panic!("{message:?}");
    };
    assert_eq!(update.modified_date, 7);
}

fn removed(request: &mut RemoveUserDeviceRequest) -> &mut Option<E2eeAddress> {
    &mut request
        .remove_user_device_msg
        .as_mut()
        .unwrap()
        .user_address
}

#[tokio::test]
async fn the_end_of_a_peers_device_is_refused_for_each_wrong_field() {
    let (lab, alice, peer) = stage().await;
    acquaint(&lab, &alice, &peer).await;
    let good = RemoveUserDeviceRequest {
        user_address: address("bob@b.test/phone"),
        remove_user_device_msg: Some(RemoveUserDeviceMsg {
            user_address: address("bob@b.test/phone"),
        }),
    };
    let spoils: &[Spoil<RemoveUserDeviceRequest>] = &[
        ("no address", |r| r.user_address = None, BadRequest),
        (
            "no device",
            |r| r.user_address = user_only("bob@b.test"),
            BadRequest,
        ),
        (
            "no message",
            |r| r.remove_user_device_msg = None,
            BadRequest,
        ),
        (
            "no address in the message",
            |r| *removed(r) = None,
            BadRequest,
        ),
        (
            "another in the message",
            |r| *removed(r) = address("bob@b.test/tablet"),
            BadRequest,
        ),
        (
            "a device of ours",
            |r| {
                r.user_address = address("alice@a.test/phone");
                *removed(r) = address("alice@a.test/phone");
            },
            Forbidden,
        ),
        (
            "a device of ours in the message",
            |r| *removed(r) = address("alice@a.test/phone"),
            Forbidden,
        ),
        (
            "a device of a third domain",
            |r| {
                r.user_address = address("bob@c.test/phone");
                *removed(r) = address("bob@c.test/phone");
            },
            Forbidden,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        peer.calls(&lab, "a.test").remove_user_device(request).await
    })
    .await;

    let mut stream = alice.stream().await;
    let told = stream.next_removed_device().await.said;
    assert_eq!(told.user_address, address("bob@b.test/phone"));
    let mut node = peer.calls(&lab, "a.test");
    assert_code(&answer(node.remove_user_device(good)).await, Granted);
    lab.assert_silent(&mut stream).await; // nobody is told twice
}

#[tokio::test]
async fn member_infos_name_every_device_of_a_user_of_ours() {
    let (lab, alice, peer) = stage().await;
    let tablet = lab.second_device(&alice, "tablet").await;
    let carol = lab.user("carol@a.test").await;
    let logout = LogoutRequest {
        user_address: Some(carol.address().to_proto()),
    };
    assert_code(&answer(carol.unary().logout(logout)).await, Granted);
    let good = AcquireGroupMemberInfosRequest {
        user_address: user_only("alice@a.test"),
    };
    let spoils: &[Spoil<AcquireGroupMemberInfosRequest>] = &[
        ("no address", |r| r.user_address = None, BadRequest),
        (
            "a third domain",
            |r| r.user_address = user_only("alice@c.test"),
            BadRequest,
        ),
        (
            "its own domain",
            |r| r.user_address = user_only("bob@b.test"),
            BadRequest,
        ),
        (
            "an unknown user",
            |r| r.user_address = user_only("eve@a.test"),
            NotFound,
        ),
        (
            "a user without devices",
            |r| r.user_address = user_only("carol@a.test"),
            NotFound,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        peer.calls(&lab, "a.test")
            .acquire_group_member_infos(request)
            .await
    })
    .await;

    let mut node = peer.calls(&lab, "a.test");
    let reply = answer(node.acquire_group_member_infos(good)).await;
    let infos = reply.group_member_infos.into_iter();
    let infos: Vec<_> = infos
        .map(|i| (i.member_address, i.sign_public_key))
        .collect();
    let of = |device: &User| {
        let key = device.keys().identity().sign_public_key.clone();
        (Some(device.address().to_proto()), key)
    };
    assert_eq!(infos, [of(&alice), of(&tablet)]);
}

#[tokio::test]
async fn a_peer_gets_bundles_of_ours_alone() {
    let (lab, alice, peer) = stage().await;
    let good = GetPreKeyBundleRequest {
        domain: "a.test".to_owned(),
        user_id: "alice".to_owned(),
        device_id: String::new(),
    };
    let spoils: &[Spoil<GetPreKeyBundleRequest>] = &[
        ("a third domain", |r| r.domain = "c.test".into(), BadRequest),
        ("its own domain", |r| r.domain = "b.test".into(), BadRequest),
        ("no domain", |r| r.domain.clear(), BadRequest),
        ("no user", |r| r.user_id.clear(), BadRequest),
        (
            "an overlong device",
            |r| r.device_id = "d".repeat(129),
            BadRequest,
        ),
        ("an unknown user", |r| r.user_id = "eve".into(), NoContent),
        (
            "an unknown device",
            |r| r.device_id = "watch".into(),
            NoContent,
        ),
    ];

    refuses_each(&lab, &good, spoils, async |request| {
        peer.calls(&lab, "a.test").get_pre_key_bundle(request).await
    })
    .await;
    let reply = answer(peer.calls(&lab, "a.test").get_pre_key_bundle(good)).await;
    let bundle = &reply.pre_key_bundles[0];
    assert_eq!(bundle.user_address, Some(alice.address().to_proto()));
    assert_eq!(bundle.one_time_pre_key_public.as_ref().unwrap().opk_id, 2);
}

#[tokio::test]
async fn a_certificate_speaks_for_its_own_domain_only() {
    let lab = Lab::start(["a.test"]).await;
    let alice = lab.user("alice@a.test").await;
    let certificate = |domain: &str, more: &[&str]| {
        let mut leaf = LeafRequest::new(domain);
        leaf.extra_sans = more.iter().map(|name| (*name).to_owned()).collect();
        Some(Arc::new(lab.authority.issue(&leaf).unwrap()))
    };
    let (one, two) = (
        certificate("b.test", &[]),
        certificate("b.test", &["c.test"]),
    );
    let request = AcquireGroupMemberInfosRequest {
        user_address: Some(alice.address().user.to_proto()),
    };

    for (issued, header, code) in [
        (&one, Some("b.test"), Granted),
        (&one, Some("B.Test"), Granted),
        (&one, None, Granted),
        (&one, Some("c.test"), Unauthorized),
        (&one, Some("a.test"), Unauthorized),
        (&one, Some("sub.b.test"), Unauthorized),
        (&one, Some("not a domain"), BadRequest),
        (&two, Some("b.test"), Granted),
        (&two, Some("c.test"), Granted),
        (&two, None, Unauthorized),
        (&two, Some("d.test"), Unauthorized),
        (&certificate("a.test", &[]), Some("a.test"), Forbidden),
    ] {
        let dialler = Dialler {
            issued: issued.clone(),
            header: header.map(str::to_owned),
        };
        let mut node = dialler.calls(&lab, "a.test");
        let reply = answer(node.acquire_group_member_infos(request.clone())).await;
        assert_eq!(reply.code(), code, "{header:?}: {}", reply.msg);
        assert_eq!(reply.group_member_infos.is_empty(), code != Granted);
    }
}

#[tokio::test]
async fn a_domain_that_policy_keeps_out_is_refused_every_method() {
    let lab = Lab::configured(["a.test"], |config| {
        config.federation.policy = Policy::Allow;
        config.federation.domains = vec!["b.test".to_owned()];
    })
    .await;
    let alice = lab.user("alice@a.test").await;
    let (listed, unlisted) = (
        Scripted::join(&lab, "b.test").await,
        Scripted::join(&lab, "c.test").await,
    );
    let before = lab.snapshot().await;

    let reply = answer(
        unlisted
            .calls(&lab, "a.test")
            .send_one2one_msg(letter_of_bob(&alice, "hello")),
    )
    .await;
    assert_code(&reply, Forbidden);
    before.assert_same(&lab.snapshot().await, "an unlisted domain");
    let reply = answer(
        listed
            .calls(&lab, "a.test")
            .send_one2one_msg(letter_of_bob(&alice, "hello")),
    )
    .await;
    assert_code(&reply, Granted);

    lab.reconfigure("a.test", |config| config.federation.domains.clear());
    let reply = answer(
        listed
            .calls(&lab, "a.test")
            .send_one2one_msg(letter_of_bob(&alice, "late")),
    )
    .await;
    assert_code(&reply, Forbidden);
}

#[tokio::test]
async fn an_empty_request_is_refused_by_every_method_of_the_peer_door() {
    let (lab, _alice, peer) = stage().await;
    let channel = peer.channel(&lab, "a.test");
    let before = lab.snapshot().await;

    for rpc in [
        "GetPreKeyBundle",
        "Invite",
        "SendOne2oneMsg",
        "SubmitProtoMsg",
        "AcquireGroupMemberInfos",
        "RemoveUserDevice",
    ] {
        let path = format!("/skiserver.E2eeS2SService/{rpc}");
        let mut request = tonic::Request::new(bytes::Bytes::new());
        let header = "b.test".parse().unwrap();
        request.metadata_mut().insert("skiserver-domain", header);
        let verdict: Verdict = raw::call(channel.clone(), &path, request).await.unwrap();
        assert_eq!(verdict.code, BadRequest as i32, "{rpc}: {verdict:?}");
    }

    before.assert_same(&lab.snapshot().await, "an empty request");
}

#[tokio::test]
async fn a_peer_that_invites_too_many_strangers_is_told_to_come_back() {
    let lab = Lab::configured(["a.test"], |config| {
        config.limits.first_contacts_per_peer_hour = 1;
    })
    .await;
    let alice = lab.user("alice@a.test").await;
    let peer = Scripted::join(&lab, "b.test").await;
    let mut node = peer.calls(&lab, "a.test");
    let first = answer(node.invite(invite_of_bob(&alice))).await;
    assert_code(&first, Granted);
    let before = lab.snapshot().await;

    let second = answer(node.invite(invite_of_bob(&alice))).await;

    assert_code(&second, ServiceUnavailable);
    before.assert_same(&lab.snapshot().await, "a throttled invite");
}
