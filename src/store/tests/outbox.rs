//! Requests waiting for a peer.

use crate::testing::Must as _;

use super::*;
use crate::store::outbox;

async fn places(fixture: &Fixture) -> Vec<i64> {
    let places = outbox::places(&fixture.store, 0, 100).await.must();
    places.into_iter().map(|place| place.place).collect()
}

#[tokio::test]
async fn a_request_waits_at_its_place_until_it_is_answered() {
    let fixture = Fixture::new().await;
    fixture.told.take();

    fixture
        .store
        .append(parcel(12, "c.test", "later"))
        .await
        .must();
    fixture
        .store
        .append(parcel(11, "b.test", "earlier"))
        .await
        .must();
    let stored = outbox::one(&fixture.store, 12).await.must().must();
    let told: Vec<_> = fixture
        .told
        .take()
        .into_iter()
        .flat_map(|wake| wake.stored)
        .collect();
    let waiting = places(&fixture).await;
    let after = outbox::places(&fixture.store, 11, 100).await.must();
    fixture.store.answered(12).await.must();

    assert_eq!(waiting, [11, 12], "in the order of places");
    assert_eq!(
        (after.len(), after[0].place, after[0].bytes, after[0].method),
        (1, 12, 5, 1)
    );
    assert_eq!(
        (stored.domain.as_str(), stored.lane.as_str()),
        ("c.test", "bob")
    );
    assert_eq!(
        (stored.recipient.as_str(), stored.msg_id.as_str()),
        ("bob@b.test", "m")
    );
    assert_eq!(&stored.body[..], b"later");
    assert_eq!(
        told[0],
        (Domain::parse("c.test").must(), "bob".to_owned(), 12)
    );
    assert!(outbox::one(&fixture.store, 12).await.must().is_none());
    assert_eq!(places(&fixture).await, [11]);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_refused_request_stays_until_its_sender_was_told_but_is_not_sent_again() {
    let fixture = Fixture::new().await;
    fixture
        .store
        .append(parcel(1, "b.test", "refused"))
        .await
        .must();
    fixture
        .store
        .append(parcel(2, "b.test", "waiting"))
        .await
        .must();

    let mut tx = fixture.store.begin().await.must();
    outbox::refuse(&mut tx, 1, 403, "no").await.must();
    tx.commit(Wake::default()).await.must();
    let waiting = places(&fixture).await;
    let sent_again = outbox::one(&fixture.store, 1).await.must();
    let kept = fixture
        .number("SELECT COUNT(*) FROM outbox WHERE place = 1")
        .await;
    let mut tx = fixture.store.begin().await.must();
    outbox::delete(&mut tx, &[1]).await.must();
    tx.commit(Wake::default()).await.must();

    assert_eq!(waiting, [2]);
    assert!(sent_again.is_none());
    assert_eq!(kept, 1);
    assert_eq!(fixture.number("SELECT COUNT(*) FROM outbox").await, 1);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn domains_are_counted_with_their_oldest_request() {
    let fixture = Fixture::new().await;
    let before = fixture.clock.now_ms();
    for (place, domain) in [(1, "b.test"), (2, "c.test"), (3, "b.test")] {
        fixture
            .store
            .append(parcel(place, domain, "text"))
            .await
            .must();
    }

    let mut counts = outbox::counts(&fixture.store).await.must();

    counts.sort();
    let seen: Vec<_> = counts
        .iter()
        .map(|(domain, count, _)| (domain.as_str(), *count))
        .collect();
    assert_eq!(seen, [("b.test", 2), ("c.test", 1)]);
    assert!(counts.iter().all(|(_, _, since)| *since >= before));
}

#[tokio::test]
async fn a_body_that_mailbox_and_outbox_share_goes_with_the_last_row() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let carol = fixture.device("carol", "phone").await;
    let mut append = mail(&bob.address, "shared");
    append.mail.extend(mail(&carol.address, "shared").mail);
    append.parcels = parcel(1, "b.test", "shared").parcels;
    let bodies = "SELECT COUNT(*) FROM bodies";

    fixture.store.append(append).await.must();
    let stored = fixture.number(bodies).await;
    for device in [&bob, &carol] {
        let row = mailbox::page(&fixture.store, device.key, 0, 1)
            .await
            .must()
            .remove(0);
        assert!(
            fixture
                .store
                .consume(device.key, row.msg_t, row.nonce)
                .await
                .must()
        );
        fixture.assert_consistent().await;
    }
    let without_mail = fixture.number(bodies).await;
    fixture.store.answered(1).await.must();

    assert_eq!((stored, without_mail), (1, 1));
    assert_eq!(fixture.number(bodies).await, 0);
}
