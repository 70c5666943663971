//! People of a lab: registered devices of the client kit, with what tests do to them in one word.

use std::ops::Deref;

use skiserver::{
    address::{DeviceAddress, Local, UserAddress},
    client::{Device, Keys, Pack, Who, device, talk},
    delivery::Letter,
    proto::skissm::{
        E2eeMsg, InviteMsg, PreKeyBundle, ProtoMsgTag, RegisterUserRequest, SystemManagerMsg,
        SystemOp, proto_msg::Payload,
    },
    store::{Append, Recipient},
};

use super::{Lab, OpenStream};

/// The device that a user registers first.
pub(crate) const FIRST_DEVICE: &str = "phone";
/// Ciphertexts are filled up to this length.
const TEXT_BYTES: usize = 32;
/// What a marker carries.
const MARKER: &[u8] = b"marker";

/// A registered device; it is the client kit's, with a few words more.
#[derive(Clone)]
pub(crate) struct User(pub(crate) Device);

impl Deref for User {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.0
    }
}

impl Lab {
    /// Registers the first device of `user@domain`. Its mailbox is empty then: the welcome was consumed.
    pub(crate) async fn user(&self, address: &str) -> User {
        self.user_with(address, Pack::SMALL).await
    }

    /// Registers the first device of `user@domain` with keys of a pack.
    pub(crate) async fn user_with(&self, address: &str, pack: Pack) -> User {
        let user = UserAddress::parse(address).unwrap();
        let who = Who::new(&user.user_id, FIRST_DEVICE);
        let door = self.door(user.domain.as_str());
        let user = User(Device::register(&door, &who, pack).await.unwrap());
        user.is_welcomed().await;
        user
    }

    /// Registers several people, each with one device.
    pub(crate) async fn users<const N: usize>(&self, addresses: [&str; N]) -> [User; N] {
        let mut users = Vec::with_capacity(N);
        for address in addresses {
            users.push(self.user(address).await);
        }
        users.try_into().unwrap_or_else(|_| unreachable!())
    }

    /// Registers a further device of somebody.
    pub(crate) async fn second_device(&self, user: &User, device_id: &str) -> User {
        let who = Who::new(&user.address().user.user_id, device_id);
        User(
            Device::register(user.door(), &who, Pack::SMALL)
                .await
                .unwrap(),
        )
    }

    /// The request that would register a device of `user@domain`, with a fresh auth code, and its keys.
    pub(crate) async fn registration(
        &self,
        address: &str,
        device_id: &str,
    ) -> (RegisterUserRequest, Keys) {
        let user = UserAddress::parse(address).unwrap();
        let who = Who::new(&user.user_id, device_id);
        let door = self.door(user.domain.as_str());
        let code = device::auth_code(&door, &who.authenticator).await.unwrap();
        let keys = Keys::generate(Pack::SMALL).unwrap();
        (who.request(code, &keys), keys)
    }

    /// Puts a message into the device's mailbox that nobody sent. What comes before it on a stream was there before.
    pub(crate) async fn mark(&self, device: &DeviceAddress) {
        let node = self.node(device.domain().as_str());
        let to: Local<DeviceAddress> = node.home.local(device).unwrap();
        let letter = Letter {
            from: None,
            payload: Payload::SystemManagerMsg(SystemManagerMsg {
                modified_date: 1,
                op: SystemOp::AnnouncementMsg.into(),
                payload: MARKER.into(),
            }),
        };
        let append = Append {
            mail: vec![letter.mail(Recipient::Device(to), String::new(), false)],
            ..Append::default()
        };
        node.store.append(append).await.unwrap();
    }

    /// Fails if anything comes on the stream that was queued by now.
    pub(crate) async fn assert_silent(&self, stream: &mut OpenStream) {
        let address = stream.device().address().clone();
        self.mark(&address).await;
        let next = stream.next_notice().await;
        assert_eq!(next.said.payload, MARKER, "{address} got {next:?}");
    }
}

impl User {
    /// Consumes the welcome of a new user.
    pub(crate) async fn is_welcomed(&self) {
        let welcome = self.stream().await.next_notice().await.said;
        assert_eq!(welcome.op(), SystemOp::RegisterSuccessMsg);
    }

    /// Opens the stream and asks for everything that is unconsumed.
    pub(crate) async fn stream(&self) -> OpenStream {
        let stream = OpenStream::open(self).await;
        stream.inbox().sync(None).await.unwrap();
        stream
    }

    /// Opens the stream and asks for everything behind a tag.
    pub(crate) async fn stream_after(&self, tag: &ProtoMsgTag) -> OpenStream {
        let stream = OpenStream::open(self).await;
        stream.inbox().sync(Some(tag.clone())).await.unwrap();
        stream
    }

    /// Sends a message that [`OpenStream::next_text`] reads. Answered with 200, or the test fails.
    pub(crate) async fn send(&self, to: &User, text: &str) -> E2eeMsg {
        let letter = self.letter(to.address(), text);
        talk::send(self, &letter).await.unwrap();
        letter
    }

    /// The message that [`User::send`] would send.
    pub(crate) fn letter(&self, to: &DeviceAddress, text: &str) -> E2eeMsg {
        let ciphertext = format!("{text:.<TEXT_BYTES$}").into_bytes();
        talk::one_to_one(self, to, "session", 1, ciphertext.into())
    }

    /// The bundle of the one device that the other has.
    pub(crate) async fn bundle(&self, of: &User) -> PreKeyBundle {
        let bundles = talk::bundles(self, &of.address().user).await.unwrap();
        let mine = |bundle: &PreKeyBundle| {
            DeviceAddress::from_proto(bundle.user_address.as_ref())
                .is_ok_and(|a| a == *of.address())
        };
        bundles.into_iter().find(mine).unwrap()
    }

    /// Fetches the other's bundle and invites it. Answers the invite as it was sent, with the node's time.
    pub(crate) async fn invite(&self, other: &User) -> InviteMsg {
        let mut invite = talk::invitation(self, &self.bundle(other).await).unwrap();
        invite.invite_t = talk::invite(self, &invite).await.unwrap();
        invite
    }
}

/// Makes a session between two devices, as their clients do. Their streams are opened, and closed again.
pub(crate) async fn establish(inviter: &User, guest: &User) -> String {
    let mut theirs = guest.stream().await;
    let mut ours = inviter.stream().await;
    establish_on(&mut ours, &mut theirs).await
}

/// Makes a session between the devices of two open streams on which nothing else is under way.
pub(crate) async fn establish_on(inviter: &mut OpenStream, guest: &mut OpenStream) -> String {
    let (alice, bob) = (User(inviter.device().clone()), User(guest.device().clone()));
    let sent = alice.invite(&bob).await;
    let invite = guest.next_invite().await.said;
    assert_eq!(invite.session_id, sent.session_id);
    let acceptance = talk::acceptance(&bob, &invite).unwrap();
    talk::accept(&bob, &acceptance).await.unwrap();
    let accept = inviter.next_accept().await.said;
    assert_eq!(accept.ratchet_key, acceptance.ratchet_key);
    sent.session_id
}
