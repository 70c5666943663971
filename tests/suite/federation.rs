//! Two domains: what crosses over between them, and what a peer can't get through its door: other people's
//! names, foreign tags and signatures, payloads of no peer's business, repeats.

use std::sync::Arc;

use skiserver::{
    address::{DeviceAddress, UserAddress},
    client::{talk, verify},
    config::{Config, Policy},
    lab::ca::LeafRequest,
    proto::{
        skiserver::{
            AcquireGroupMemberInfosRequest, RemoveUserDeviceRequest, SubmitProtoMsgRequest,
        },
        skissm::{
            AcceptMsg, AcquireSyncMsg, ClientHeartbeatMsg, E2eeAddress, FriendManagerMsg,
            GetPreKeyBundleRequest, InviteMsg, InviteRequest, ProtoMsg, RemoveUserDeviceMsg,
            ResponseCode, SendOne2oneMsgRequest, ServerHeartbeatMsg, SupplyOpksMsg,
            SystemManagerMsg, UpgradeE2eePackMsg, proto_msg::Payload,
        },
    },
};

use crate::lab::{
    Act, Lab, Scripted, Spoil, User, answer, assert_code, refuses_each,
    scripted::{Dialler, Target, dial::PeerMethods},
    user,
};

use ResponseCode::{BadRequest, Forbidden, NoContent, NotFound, Ok as Granted, Unauthorized};

#[expect(clippy::unnecessary_wraps, reason = "it goes into optional fields")]
fn address(text: &str) -> Option<E2eeAddress> {
    Some(DeviceAddress::parse(text).unwrap().to_proto())
}

#[expect(clippy::unnecessary_wraps, reason = "it goes into optional fields")]
fn user_only(text: &str) -> Option<E2eeAddress> {
    Some(UserAddress::parse(text).unwrap().to_proto())
}

/// One real node with Alice, and a peer with Eve.
async fn alice_and_eve() -> (Lab, Scripted, User, Target) {
    let lab = Lab::start(["a.test"]).await;
    let peer = Scripted::join(&lab, "evil.test").await;
    let alice = lab.user("alice@a.test").await;
    let eve = peer.target("eve", "phone");
    (lab, peer, alice, eve)
}

/// Submits, and answers the code.
async fn submit(node: &PeerMethods, request: SubmitProtoMsgRequest) -> ResponseCode {
    let reply = answer(node.clone().submit_proto_msg(request)).await;
    ResponseCode::try_from(reply.code).unwrap()
}

fn message(request: &mut SubmitProtoMsgRequest) -> &mut ProtoMsg {
    request.proto_msg.as_mut().unwrap()
}

fn accept_in(request: &mut SubmitProtoMsgRequest) -> &mut AcceptMsg {
    match &mut message(request).payload {
        Some(Payload::AcceptMsg(accept)) => accept,
        other => panic!("no accept: {other:?}"),
    }
}

/// Alice invites Eve, whose home hands out her bundle and takes the invite.
async fn invite_eve(alice: &User, peer: &Scripted, eve: &Target) -> InviteMsg {
    peer.next(
        "GetPreKeyBundle",
        [Act::reply(&eve.answer(vec![eve.bundle()]))],
    );
    let bundles = talk::bundles(alice, &eve.address.user).await.unwrap();
    let mut invite = talk::invitation(alice, &bundles[0]).unwrap();
    invite.invite_t = talk::invite(alice, &invite).await.unwrap();
    invite
}

#[tokio::test]
async fn people_of_two_domains_meet_and_talk_both_ways_and_each_home_signs_for_its_own() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let (mut ours, mut theirs) = (alice.stream().await, bob.stream().await);

    let bundle = alice.bundle(&bob).await; // verified with what a.test gave alice
    user::establish_on(&mut ours, &mut theirs).await;
    for n in 0..3 {
        alice.send(&bob, &format!("question {n}")).await;
        bob.send(&alice, &format!("answer {n}")).await;
    }

    let signer = bundle.signature.clone().unwrap().signer.unwrap();
    assert_eq!(signer.domain, "a.test");
    assert!(verify::bundle(&bundle, bob.certificate()).is_err());
    for n in 0..3 {
        assert_eq!(theirs.next_text().await, format!("question {n}"));
        assert_eq!(ours.next_text().await, format!("answer {n}"));
    }
    lab.assert_silent(&mut ours).await;
    lab.assert_silent(&mut theirs).await;
    lab.assert_nothing_waits().await;
    let pairs = "SELECT device_id || ' ' || peer FROM sessions NATURAL JOIN devices";
    assert_eq!(lab.texts("a.test", pairs).await, ["phone bob@b.test/phone"]);
    assert_eq!(
        lab.texts("b.test", pairs).await,
        ["phone alice@a.test/phone"]
    );
}

#[tokio::test]
async fn a_peer_sends_messages_of_its_own_people_to_ours_only() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    let node = peer.calls(&lab, "a.test");
    let spoils: [Spoil<_>; 9] = [
        (
            "a forged sender of a third domain",
            |r: &mut SendOne2oneMsgRequest| {
                r.msg.as_mut().unwrap().from = address("bob@b.test/phone");
            },
            Forbidden,
        ),
        (
            "a forged sender of the receiving domain",
            |r| r.msg.as_mut().unwrap().from = address("alice@a.test/phone"),
            Forbidden,
        ),
        (
            "no sender",
            |r| r.msg.as_mut().unwrap().from = None,
            BadRequest,
        ),
        (
            "a device of a third domain",
            |r| r.msg.as_mut().unwrap().to = address("carol@c.test/phone"),
            BadRequest,
        ),
        (
            "a device of the peer itself",
            |r| r.msg.as_mut().unwrap().to = address("mallory@evil.test/phone"),
            BadRequest,
        ),
        (
            "a whole user",
            |r| r.msg.as_mut().unwrap().to = user_only("alice@a.test"),
            BadRequest,
        ),
        (
            "nobody that we know",
            |r| r.msg.as_mut().unwrap().to = address("nobody@a.test/phone"),
            NotFound,
        ),
        (
            "no device that we know",
            |r| r.msg.as_mut().unwrap().to = address("alice@a.test/tablet"),
            NotFound,
        ),
        (
            "no ciphertext to speak of",
            |r| r.msg.as_mut().unwrap().payload = None,
            BadRequest,
        ),
    ];

    let good = eve.letter(alice.address(), "hello");
    refuses_each(&lab, &good, &spoils, async |request| {
        node.clone().send_one2one_msg(request).await
    })
    .await;

    let mut stream = alice.stream().await;
    assert_eq!(stream.next_text().await, "hello");
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn a_peer_invites_in_the_name_of_its_own_people_and_completely() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    let node = peer.calls(&lab, "a.test");
    let spoils: [Spoil<_>; 7] = [
        (
            "a forged sender of a third domain",
            |r: &mut InviteRequest| {
                r.msg.as_mut().unwrap().from = address("bob@b.test/phone");
            },
            Forbidden,
        ),
        (
            "a forged sender of the receiving domain",
            |r| r.msg.as_mut().unwrap().from = address("alice@a.test/phone"),
            Forbidden,
        ),
        (
            "a device of a third domain",
            |r| r.msg.as_mut().unwrap().to = address("carol@c.test/phone"),
            BadRequest,
        ),
        (
            "no device that we know",
            |r| r.msg.as_mut().unwrap().to = address("alice@a.test/tablet"),
            NotFound,
        ),
        (
            "without the inviter's key",
            |r| r.msg.as_mut().unwrap().alice_identity_key.clear(),
            BadRequest,
        ),
        (
            "without a time",
            |r| r.msg.as_mut().unwrap().invite_t = 0,
            BadRequest,
        ),
        (
            "without a session",
            |r| r.msg.as_mut().unwrap().session_id.clear(),
            BadRequest,
        ),
    ];

    let good = eve.invitation(alice.address());
    refuses_each(&lab, &good, &spoils, async |request| {
        node.clone().invite(request).await
    })
    .await;
    let again = answer(node.clone().invite(good.clone())).await;

    let sent = good.msg.unwrap();
    assert_code(&again, Granted);
    assert_eq!(
        (again.session_id, again.invite_t),
        (sent.session_id.clone(), sent.invite_t),
        "the origin's time stays"
    );
    let mut stream = alice.stream().await;
    let received = stream.next_invite().await.said;
    assert_eq!(received, sent);
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
async fn an_accept_is_submitted_by_the_home_of_the_one_who_accepts() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    invite_eve(&alice, &peer, &eve).await;
    let node = peer.calls(&lab, "a.test");
    let spoils: [Spoil<_>; 11] = [
        (
            "a forged acceptance of a third domain",
            |r: &mut SubmitProtoMsgRequest| {
                message(r).from = address("bob@b.test/phone");
                accept_in(r).from = address("bob@b.test/phone");
            },
            Forbidden,
        ),
        (
            "in the name of the inviter",
            |r| {
                message(r).from = address("alice@a.test/phone");
                accept_in(r).from = address("alice@a.test/phone");
            },
            Forbidden,
        ),
        (
            "an envelope from somebody else",
            |r| message(r).from = address("mallory@evil.test/phone"),
            BadRequest,
        ),
        (
            "an envelope for somebody else",
            |r| message(r).to = address("alice@a.test/tablet"),
            BadRequest,
        ),
        (
            "an envelope for all devices",
            |r| message(r).to = user_only("alice@a.test"),
            BadRequest,
        ),
        (
            "an envelope for a third domain",
            |r| message(r).to = address("carol@c.test/phone"),
            BadRequest,
        ),
        (
            "for another device inside",
            |r| accept_in(r).to = address("alice@a.test/tablet"),
            BadRequest,
        ),
        (
            "without an id",
            |r| message(r).tag.as_mut().unwrap().proto_msg_id.clear(),
            BadRequest,
        ),
        ("without a tag", |r| message(r).tag = None, BadRequest),
        (
            "without secrets",
            |r| accept_in(r).encaps_ciphertext.clear(),
            BadRequest,
        ),
        (
            "without a payload",
            |r| message(r).payload = None,
            BadRequest,
        ),
    ];

    let payload = eve.acceptance(alice.address());
    let good = eve.submission("one", alice.address().to_proto(), payload);
    refuses_each(&lab, &good, &spoils, async |request| {
        node.clone().submit_proto_msg(request).await
    })
    .await;

    // The stream verifies tag and signature as those of alice's own home.
    let mut stream = alice.stream().await;
    let received = stream.next_accept().await;
    assert_ne!(received.tag.proto_msg_id, "one");
    assert_ne!(received.tag.proto_msg_t, 7);
    assert_eq!(received.from, Some(eve.address.to_proto()));
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn news_of_devices_and_names_come_from_the_home_of_the_one_they_are_about() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    let mut stream = alice.stream().await;
    peer.meets(&lab, &eve, &mut stream).await;
    let node = peer.calls(&lab, "a.test");
    let to = alice.address().to_proto();
    let device: [Spoil<_>; 3] = [
        (
            "a device of a third domain",
            |r: &mut SubmitProtoMsgRequest| {
                message(r).from = address("bob@b.test/phone");
                if let Some(Payload::AddUserDeviceMsg(added)) = &mut message(r).payload {
                    added.user_address = address("bob@b.test/phone");
                }
            },
            Forbidden,
        ),
        (
            "an envelope from another device",
            |r| message(r).from = address("eve@evil.test/laptop"),
            BadRequest,
        ),
        (
            "somebody else's old device",
            |r| {
                if let Some(Payload::AddUserDeviceMsg(added)) = &mut message(r).payload {
                    added
                        .old_address_list
                        .push(address("mallory@evil.test/phone").unwrap());
                }
            },
            BadRequest,
        ),
    ];
    let name: [Spoil<_>; 1] = [(
        "a user of a third domain",
        |r: &mut SubmitProtoMsgRequest| {
            if let Some(Payload::UpdateUserMsg(update)) = &mut message(r).payload {
                update.user_address = user_only("bob@b.test");
            }
        },
        Forbidden,
    )];
    let call = async |request| node.clone().submit_proto_msg(request).await;

    let good = eve.submission("device", to.clone(), eve.news_of_device());
    refuses_each(&lab, &good, &device, call).await;
    let good = eve.submission("name", to, eve.news_of_name("Evelyn"));
    refuses_each(&lab, &good, &name, call).await;

    let added = stream.next_added_device().await;
    assert_eq!(added.said.user_address, Some(eve.address.to_proto()));
    let renamed = stream.next().await;
    assert_eq!(renamed.payload, Some(eve.news_of_name("Evelyn")));
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn a_peer_removes_devices_of_its_own_people_only() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    let mut stream = alice.stream().await;
    peer.meets(&lab, &eve, &mut stream).await;
    let node = peer.calls(&lab, "a.test");
    let removed = |address: E2eeAddress| RemoveUserDeviceRequest {
        user_address: Some(address.clone()),
        remove_user_device_msg: Some(RemoveUserDeviceMsg {
            user_address: Some(address),
        }),
    };
    let spoils: [Spoil<_>; 5] = [
        (
            "a device of a third domain",
            |r: &mut RemoveUserDeviceRequest| {
                r.user_address = address("bob@b.test/phone");
                r.remove_user_device_msg.as_mut().unwrap().user_address =
                    address("bob@b.test/phone");
            },
            Forbidden,
        ),
        (
            "one of our devices",
            |r| {
                r.user_address = address("alice@a.test/phone");
                r.remove_user_device_msg.as_mut().unwrap().user_address =
                    address("alice@a.test/phone");
            },
            Forbidden,
        ),
        (
            "two different devices",
            |r| r.user_address = address("eve@evil.test/laptop"),
            BadRequest,
        ),
        (
            "a third domain's inside",
            |r| {
                r.remove_user_device_msg.as_mut().unwrap().user_address =
                    address("bob@b.test/phone");
            },
            Forbidden,
        ),
        (
            "no message",
            |r| r.remove_user_device_msg = None,
            BadRequest,
        ),
    ];

    let good = removed(eve.address.to_proto());
    refuses_each(&lab, &good, &spoils, async |request| {
        node.clone().remove_user_device(request).await
    })
    .await;
    let again = answer(node.clone().remove_user_device(good)).await;

    assert_code(&again, Granted);
    let told = stream.next_removed_device().await;
    assert_eq!(told.said.user_address, Some(eve.address.to_proto()));
    lab.assert_silent(&mut stream).await;
    assert_eq!(
        lab.number("a.test", "SELECT COUNT(*) FROM sessions").await,
        0
    );
}

#[tokio::test]
async fn a_peer_asks_about_our_people_only() {
    let (lab, peer, alice, _) = alice_and_eve().await;
    let mut node = peer.calls(&lab, "a.test");
    let asking = |domain: &str, user_id: &str| GetPreKeyBundleRequest {
        domain: domain.to_owned(),
        user_id: user_id.to_owned(),
        device_id: String::new(),
    };
    let infos = |user: &str| AcquireGroupMemberInfosRequest {
        user_address: user_only(user),
    };

    let bundles = [
        (asking("c.test", "alice"), BadRequest),
        (asking("evil.test", "eve"), BadRequest),
        (asking("a.test", "nobody"), NoContent),
        (asking("a.test", "alice"), Granted),
    ];
    for (request, code) in bundles {
        assert_code(&answer(node.get_pre_key_bundle(request)).await, code);
    }
    let members = [
        (infos("alice@c.test"), BadRequest),
        (infos("nobody@a.test"), NotFound),
    ];
    for (request, code) in members {
        let reply = answer(node.acquire_group_member_infos(request)).await;
        assert_code(&reply, code);
    }
    let reply = answer(node.acquire_group_member_infos(infos("alice@a.test"))).await;

    assert_code(&reply, Granted);
    let [info] = reply.group_member_infos.as_slice() else {
        panic!("{reply:?}");
    };
    assert_eq!(info.member_address, Some(alice.address().to_proto()));
    assert_eq!(
        info.sign_public_key,
        alice.keys().identity().sign_public_key
    );
}

#[tokio::test]
async fn what_no_peer_submits_is_refused_and_never_stored() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    let mut stream = alice.stream().await;
    peer.meets(&lab, &eve, &mut stream).await;
    let node = peer.calls(&lab, "a.test");
    let to = alice.address();
    let payloads = [
        Payload::AcquireSyncMsg(AcquireSyncMsg::default()),
        Payload::SupplyOpksMsg(SupplyOpksMsg {
            user_address: Some(to.to_proto()),
            opks_num: 100,
            ..SupplyOpksMsg::default()
        }),
        Payload::InviteMsg(eve.invitation(to).msg.unwrap()),
        Payload::RemoveUserDeviceMsg(RemoveUserDeviceMsg {
            user_address: Some(eve.address.to_proto()),
        }),
        Payload::E2eeMsg(eve.letter(to, "hello").msg.unwrap()),
        Payload::FriendManagerMsg(FriendManagerMsg::default()),
        Payload::SystemManagerMsg(SystemManagerMsg {
            payload: b"free sweets".as_slice().into(),
            ..SystemManagerMsg::default()
        }),
        Payload::ClientHeartbeatMsg(ClientHeartbeatMsg::default()),
        Payload::ServerHeartbeatMsg(ServerHeartbeatMsg::default()),
        Payload::UpgradeE2eePackMsg(UpgradeE2eePackMsg::default()),
    ];
    let before = lab.snapshot().await;

    for (number, payload) in payloads.into_iter().enumerate() {
        let what = format!("{payload:?}");
        let request = eve.submission(&number.to_string(), to.to_proto(), payload);
        assert_eq!(submit(&node, request).await, BadRequest, "{what}");
        before.assert_same(&lab.snapshot().await, &what);
    }
}

#[tokio::test]
async fn a_submission_that_comes_again_is_answered_and_queued_once() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    let mut stream = alice.stream().await;
    peer.meets(&lab, &eve, &mut stream).await;
    invite_eve(&alice, &peer, &eve).await;
    let node = peer.calls(&lab, "a.test");
    let to = alice.address().to_proto();
    let device = eve.submission("device", to.clone(), eve.news_of_device());
    let accept = eve.submission("accept", to.clone(), eve.acceptance(alice.address()));
    let mut same_accept = accept.clone();
    message(&mut same_accept).tag.as_mut().unwrap().proto_msg_id = "other".to_owned();

    // At once, one after another, and under another id: an accept is known by its secrets.
    let at_once = (0..8).map(|_| submit(&node, device.clone()));
    let codes = futures_util::future::join_all(at_once).await;
    let then = [
        submit(&node, device).await,
        submit(&node, accept.clone()).await,
        submit(&node, accept).await,
        submit(&node, same_accept).await,
    ];

    assert!(codes.iter().chain(&then).all(|code| *code == Granted));
    stream.next_added_device().await;
    stream.next_accept().await;
    lab.assert_silent(&mut stream).await;
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn the_same_id_of_two_peers_is_not_the_same() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    let other = Scripted::join(&lab, "other.test").await;
    let olga = other.target("olga", "phone");
    let mut stream = alice.stream().await;
    peer.meets(&lab, &eve, &mut stream).await;
    other.meets(&lab, &olga, &mut stream).await;
    let to = alice.address().to_proto();

    for (peer, person) in [(&peer, &eve), (&other, &olga)] {
        let request = person.submission("one", to.clone(), person.news_of_device());
        let node = peer.calls(&lab, "a.test");
        assert_eq!(submit(&node, request).await, Granted);
    }

    for person in [&eve, &olga] {
        let added = stream.next_added_device().await;
        assert_eq!(added.said.user_address, Some(person.address.to_proto()));
    }
}

#[tokio::test]
async fn what_strangers_submit_is_answered_and_dropped() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    let node = peer.calls(&lab, "a.test");
    let to = alice.address().to_proto();
    let everybody = user_only("alice@a.test").unwrap();
    let nobody = user_only("nobody@a.test").unwrap();
    let before = lab.snapshot().await;

    let from_a_stranger = [
        eve.submission("1", to.clone(), eve.acceptance(alice.address())),
        eve.submission("2", to.clone(), eve.news_of_device()),
        eve.submission("3", to.clone(), eve.news_of_name("Evelyn")),
        eve.submission("4", everybody, eve.news_of_name("Evelyn")),
        eve.submission("5", nobody, eve.news_of_name("Evelyn")),
    ];
    for request in from_a_stranger {
        let what = format!("{request:?}");
        assert_eq!(submit(&node, request).await, Granted, "{what}");
        before.assert_same(&lab.snapshot().await, &what);
    }

    let mut stream = alice.stream().await;
    peer.meets(&lab, &eve, &mut stream).await;
    let request = eve.submission("2", to, eve.news_of_device());
    assert_eq!(submit(&node, request).await, Granted);
    stream.next_added_device().await;
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn a_submission_for_a_user_reaches_every_device_but_the_ignored() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    let [tablet, watch] = [
        lab.second_device(&alice, "tablet").await,
        lab.second_device(&alice, "watch").await,
    ];
    let mut phone = alice.stream().await;
    for _ in 0..2 {
        phone.next_added_device().await;
    }
    let (mut tablet, mut watch) = (tablet.stream().await, watch.stream().await);
    tablet.next_added_device().await;
    peer.meets(&lab, &eve, &mut phone).await;
    let node = peer.calls(&lab, "a.test");
    let everybody = user_only("alice@a.test").unwrap();
    let ignoring = |id: &str, ignored: &[&str]| SubmitProtoMsgRequest {
        ignored_device_id_list: ignored.iter().map(ToString::to_string).collect(),
        ..eve.submission(id, everybody.clone(), eve.news_of_name(id))
    };

    for request in [
        ignoring("all", &[]),
        ignoring("one", &["phone"]),
        ignoring("two", &["tablet", "watch"]),
        ignoring("none", &["phone", "tablet", "watch"]),
        ignoring("unknown", &["spoon"]),
    ] {
        assert_eq!(submit(&node, request).await, Granted);
    }

    for (stream, names) in [
        (&mut phone, ["all", "two", "unknown"]),
        (&mut tablet, ["all", "one", "unknown"]),
        (&mut watch, ["all", "one", "unknown"]),
    ] {
        for name in names {
            let news = stream.next().await.payload;
            assert_eq!(news, Some(eve.news_of_name(name)));
        }
        lab.assert_silent(stream).await;
    }
}

#[tokio::test]
async fn a_certificate_speaks_for_the_domains_that_it_names() {
    let (lab, peer, alice, eve) = alice_and_eve().await;
    let two_names = LeafRequest {
        extra_sans: vec!["other.test".to_owned()],
        ..LeafRequest::new("evil.test")
    };
    let own = lab.authority.issue(&LeafRequest::new("a.test")).unwrap();
    let other = lab.authority.issue(&LeafRequest::new("c.test")).unwrap();
    let two_names = Arc::new(lab.authority.issue(&two_names).unwrap());
    let dialler = |issued: &Arc<_>, header: Option<&str>| Dialler {
        issued: Some(Arc::clone(issued)),
        header: header.map(ToOwned::to_owned),
    };
    let (own, other) = (Arc::new(own), Arc::new(other));
    let send = async |dialler: Dialler| {
        let mut node = dialler.calls(&lab, "a.test");
        answer(node.send_one2one_msg(eve.letter(alice.address(), "hello"))).await
    };
    let before = lab.snapshot().await;

    let refused = [
        (
            "a name that the certificate lacks",
            dialler(&peer.issued, Some("b.test")),
            Unauthorized,
        ),
        (
            "our own name",
            dialler(&peer.issued, Some("a.test")),
            Unauthorized,
        ),
        (
            "our own name and certificate",
            dialler(&own, Some("a.test")),
            Forbidden,
        ),
        (
            "another domain's certificate",
            dialler(&other, Some("evil.test")),
            Unauthorized,
        ),
        (
            "another domain's people",
            dialler(&other, Some("c.test")),
            Forbidden,
        ),
        (
            "another domain's people without a name",
            dialler(&other, None),
            Forbidden,
        ),
        (
            "one of two names that has other people",
            dialler(&two_names, Some("other.test")),
            Forbidden,
        ),
        (
            "two names and no word of which",
            dialler(&two_names, None),
            Unauthorized,
        ),
        (
            "a name below the certificate's",
            dialler(&peer.issued, Some("www.evil.test")),
            Unauthorized,
        ),
        (
            "no name at all",
            dialler(&peer.issued, Some("evil test")),
            BadRequest,
        ),
    ];
    for (what, dialler, code) in refused {
        let reply = send(dialler).await;
        assert_eq!(
            ResponseCode::try_from(reply.code),
            Ok(code),
            "{what}: {}",
            reply.msg
        );
        before.assert_same(&lab.snapshot().await, what);
    }
    let granted = [
        dialler(&peer.issued, Some("evil.test")),
        dialler(&peer.issued, Some("EVIL.test")),
        dialler(&peer.issued, None),
        dialler(&two_names, Some("evil.test")),
    ];
    for dialler in granted {
        assert_code(&send(dialler).await, Granted);
    }
}

/// What Alice and Bob are told when each writes to the other and asks for the other's keys.
async fn exchange(alice: &User, bob: &User) -> [ResponseCode; 4] {
    let write = async |from: &User, to: &User| {
        let msg = Some(from.letter(to.address(), "hello"));
        let request = SendOne2oneMsgRequest { msg };
        answer(from.unary().send_one2one_msg(request)).await.code
    };
    let ask = async |from: &User, of: &User| {
        let request = GetPreKeyBundleRequest {
            domain: of.domain().to_string(),
            user_id: of.address().user.user_id.clone(),
            device_id: String::new(),
        };
        answer(from.unary().get_pre_key_bundle(request)).await.code
    };
    let codes = [
        write(alice, bob).await,
        write(bob, alice).await,
        ask(alice, bob).await,
        ask(bob, alice).await,
    ];
    codes.map(|code| ResponseCode::try_from(code).unwrap())
}

fn policy(policy: Policy, domains: &[&str]) -> impl Fn(&mut Config) {
    let domains: Vec<String> = domains.iter().map(ToString::to_string).collect();
    move |config| {
        config.federation.policy = policy;
        config.federation.domains.clone_from(&domains);
    }
}

#[tokio::test]
async fn a_change_of_policy_holds_at_once_in_both_directions() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let open = [Granted; 4];
    let closed = [Forbidden, Forbidden, NoContent, NoContent];
    assert_eq!(exchange(&alice, &bob).await, open);
    let mut waiting = [alice.stream().await, bob.stream().await];

    for (change, expected) in [
        (policy(Policy::Deny, &["b.test"]), closed),
        (policy(Policy::Deny, &["c.test"]), open),
        (policy(Policy::Allow, &["c.test"]), closed),
        (policy(Policy::Allow, &["b.test"]), open),
        (policy(Policy::Allow, &[]), closed),
        (policy(Policy::Deny, &[]), open),
        (policy(Policy::Open, &["b.test"]), open),
    ] {
        lab.reconfigure("a.test", &change);
        let federation = lab.config("a.test").federation;
        assert_eq!(exchange(&alice, &bob).await, expected, "{federation:?}");
    }

    // What was refused was not kept.
    for stream in &mut waiting {
        for _ in 0..5 {
            assert_eq!(stream.next_text().await, "hello");
        }
        lab.assert_silent(stream).await;
    }
    lab.assert_nothing_waits().await;
}
