//! Further devices of a user, and devices that register again.

use crate::testing::Must as _;

use super::*;
use crate::{error::Error, store::Recipient};

#[tokio::test]
async fn another_device_is_told_of_the_others_and_they_of_it() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    let bob = Phone::new(&bench, "bob", "phone").await;
    let carol = Phone::new(&bench, "carol", "phone").await;
    pair(&bench, &phone.address, &bob.address).await;

    let tablet = Phone::new(&bench, "alice", "tablet").await;

    let answer = &tablet.answer;
    let own = [phone.address.to_proto_named("alice")];
    assert_eq!(answer.other_device_address_list, own);
    assert_eq!(
        answer.other_user_address_list,
        [bob.address.to_proto()],
        "one entry a device, and only those with a session"
    );
    let added = tablet.address.to_proto_named("alice");
    for told in [&phone, &bob] {
        let mail = told.mail(&bench).await;
        let (_, last) = mail.last().must();
        assert_eq!(last.from.as_ref(), Some(&added));
        let Some(Payload::AddUserDeviceMsg(message)) = &last.payload else {
            panic!("{last:?}")
        };
        assert_eq!(message.user_address.as_ref(), Some(&added));
        assert_eq!(message.old_address_list, own);
    }
    assert_eq!(carol.mail(&bench).await.len(), 1, "only the welcome");
    assert!(tablet.mail(&bench).await.is_empty());
}

#[tokio::test]
async fn sessions_within_a_user_are_not_other_users() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    let tablet = Phone::new(&bench, "alice", "tablet").await;
    let bob = Phone::new(&bench, "bob", "phone").await;
    pair(&bench, &phone.address, &tablet.address).await;
    pair(&bench, &phone.address, &bob.address).await;
    pair(&bench, &tablet.address, &bob.address).await;

    let watch = Phone::new(&bench, "alice", "watch").await;

    assert_eq!(watch.answer.other_device_address_list.len(), 2);
    assert_eq!(
        watch.answer.other_user_address_list,
        [bob.address.to_proto()],
        "each once"
    );
}

#[tokio::test]
async fn a_bound_authenticator_stays_with_its_user() {
    let bench = Bench::start().await;
    Phone::new(&bench, "alice", "phone").await;
    let mut other = form("alice2", "phone");
    other.authenticator = "Alice@MAIL.test".to_owned();

    let refused = apply(&bench, other).await;

    assert!(matches!(refused, Err(Error::Conflict(_))), "{refused:?}");
}

#[tokio::test]
async fn a_further_device_keeps_the_registered_name() {
    let bench = Bench::start().await;
    Phone::new(&bench, "alice", "phone").await;
    let mut tablet = form("alice", "tablet");
    tablet.user_name = "Somebody".to_owned();

    let answer = apply(&bench, tablet).await.must();

    assert_eq!(answer.username, "alice");
}

#[tokio::test]
async fn there_is_a_bound_on_devices_but_not_on_installations() {
    let bench = Bench::start_with(|config| config.limits.devices_per_user_max = 2).await;
    Phone::new(&bench, "alice", "phone").await;
    Phone::new(&bench, "alice", "tablet").await;

    let refused = apply(&bench, form("alice", "watch")).await;

    assert!(matches!(refused, Err(Error::Throttled(_))), "{refused:?}");
    Phone::new(&bench, "alice", "tablet").await;
}

#[tokio::test]
async fn a_suspended_user_registers_no_device() {
    let bench = Bench::start().await;
    Phone::new(&bench, "alice", "phone").await;
    suspend(&bench).await;

    let refused = apply(&bench, form("alice", "tablet")).await;

    assert!(matches!(refused, Err(Error::Forbidden(_))), "{refused:?}");
}

pub(super) async fn suspend(bench: &Bench) {
    let mut tx = bench.store.begin().await.must();
    tx.execute("UPDATE users SET state = 1", []).await.must();
    tx.commit(crate::store::Wake::default()).await.must();
}

#[tokio::test]
async fn another_installation_starts_anew_at_the_same_address() {
    let bench = Bench::start().await;
    let phone = Phone::new(&bench, "alice", "phone").await;
    let tablet = Phone::new(&bench, "alice", "tablet").await;
    let bob = Phone::new(&bench, "bob", "phone").await;
    pair(&bench, &phone.address, &bob.address).await;
    write(&bench, &phone).await;
    let newest = phone.mail(&bench).await.last().must().0;
    let mut again = form("alice", "phone");
    again.identity_key_public.as_mut().must().sign_public_key = vec![9; 2_592].into();
    again.one_time_pre_key_list.truncate(3);

    let answer = apply(&bench, again).await.must();

    assert_eq!(key(&bench, &phone.address).await, Some(phone.key));
    assert!(
        phone.caller(&bench).await.is_none(),
        "the old token is dead"
    );
    assert!(caller(&bench, &answer.auth).await.is_some());
    assert!(phone.mail(&bench).await.is_empty(), "nothing is left over");
    assert_eq!(count(&bench, "SELECT COUNT(*) FROM sessions").await, 0);
    assert_eq!(
        answer.other_device_address_list,
        [tablet.address.to_proto_named("alice")]
    );
    assert!(answer.other_user_address_list.is_empty());
    let keys = "SELECT COUNT(*) FROM one_time_keys k JOIN devices d ON d.device_key = k.device_key
        WHERE d.user_id = 'alice' AND d.device_id = 'phone'";
    assert_eq!(count(&bench, keys).await, 3);
    let letters = bob.letters(&bench).await;
    let [.., Payload::RemoveUserDeviceMsg(removed)] = letters.as_slice() else {
        panic!("{letters:?}")
    };
    let own = Some(phone.address.to_proto_named("alice"));
    assert_eq!(removed.user_address, own);
    let letters = tablet.letters(&bench).await;
    let [
        ..,
        Payload::RemoveUserDeviceMsg(removed),
        Payload::AddUserDeviceMsg(added),
    ] = letters.as_slice()
    else {
        panic!("{letters:?}")
    };
    assert_eq!((&removed.user_address, &added.user_address), (&own, &own));

    // The clock jumped back, and still the next tag is newer than any before.
    bench.clock.turn(-86_400_000);
    write(&bench, &phone).await;
    assert!(phone.mail(&bench).await[0].0 > newest);
}

/// Queues something for a device.
pub(super) async fn write(bench: &Bench, phone: &Phone) {
    let letter = crate::delivery::Letter {
        from: None,
        payload: Payload::SystemManagerMsg(crate::proto::skissm::SystemManagerMsg::default()),
    };
    let to = Recipient::Device(phone.address.clone());
    let append = Append {
        mail: vec![letter.mail(to, String::new(), false)],
        ..Append::default()
    };
    bench.store.append(append).await.must();
}
