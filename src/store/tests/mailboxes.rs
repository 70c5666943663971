//! Messages waiting for a device: order, consumption, bounds.

use crate::testing::Must as _;

use super::*;

const HOUR_MS: i64 = 3_600_000;

async fn rows(fixture: &Fixture, device: &TestDevice) -> Vec<mailbox::Waiting> {
    mailbox::page(&fixture.store, device.key, 0, 10_000)
        .await
        .must()
}

fn strictly_increasing(times: &[i64]) -> bool {
    times.windows(2).all(|pair| pair[0] < pair[1])
}

#[tokio::test]
async fn tags_increase_whatever_the_clock_does_and_whatever_was_consumed() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let mut times = Vec::new();

    for turn in [0, -HOUR_MS, 0, 2 * HOUR_MS, -3 * HOUR_MS] {
        fixture.clock.turn(turn);
        let write = |n: i32| fixture.store.append(mail(&bob.address, &n.to_string()));
        fixture.together((0..40).map(write).collect()).await;
        for row in rows(&fixture, &bob).await {
            times.push(row.msg_t);
            assert!(
                fixture
                    .store
                    .consume(bob.key, row.msg_t, row.nonce)
                    .await
                    .must()
            );
        }
    }

    assert_eq!(times.len(), 200);
    assert!(strictly_increasing(&times), "{times:?}");
    assert_eq!(
        mailbox::newest(&fixture.store, bob.key).await.must(),
        times[199]
    );
    assert_eq!(mailbox::count(&fixture.store).await.must(), 0);
}

#[tokio::test]
async fn a_tag_is_the_time_of_the_node_if_nothing_is_newer() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;

    let before = fixture.clock.now_ms();
    fixture
        .store
        .append(mail(&bob.address, "text"))
        .await
        .must();
    let after = fixture.clock.now_ms();

    let msg_t = rows(&fixture, &bob).await[0].msg_t;
    assert!(
        (before..=after).contains(&msg_t),
        "{before} {msg_t} {after}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_senders_keep_each_devices_order() {
    let fixture = Fixture::new().await;
    let devices = [
        fixture.device("bob", "phone").await,
        fixture.device("carol", "phone").await,
    ];

    let mut senders = tokio::task::JoinSet::new();
    for sender in 0..8 {
        let (store, devices) = (fixture.store.clone(), devices.clone());
        senders.spawn(async move {
            for n in 0..40 {
                for device in &devices {
                    let text = format!("{sender} {n}");
                    store.append(mail(&device.address, &text)).await.must();
                }
            }
        });
    }
    senders.join_all().await;

    for device in &devices {
        let rows = rows(&fixture, device).await;
        assert_eq!(rows.len(), 320);
        let times: Vec<i64> = rows.iter().map(|row| row.msg_t).collect();
        assert!(strictly_increasing(&times));
        for sender in 0..8 {
            let prefix = format!("{sender} ");
            let of_sender = rows
                .iter()
                .filter(|row| row.body.starts_with(prefix.as_bytes()));
            let expected = (0..40).map(|n| format!("{sender} {n}"));
            assert!(
                of_sender
                    .map(|row| &row.body[..])
                    .eq(expected.collect::<Vec<_>>().iter().map(String::as_bytes))
            );
        }
    }
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_message_is_consumed_once_and_only_by_its_device() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let carol = fixture.device("carol", "phone").await;
    for device in [&bob, &carol] {
        fixture
            .store
            .append(mail(&device.address, "text"))
            .await
            .must();
    }
    let row = rows(&fixture, &bob).await.remove(0);
    let consume = |device: &TestDevice, nonce| fixture.store.consume(device.key, row.msg_t, nonce);
    fixture.told.take();

    let of_another = consume(&carol, row.nonce).await.must();
    let guessed = consume(&bob, row.nonce ^ 1).await.must();
    let in_one_batch = fixture
        .together(vec![
            consume(&bob, row.nonce),
            consume(&bob, row.nonce),
            consume(&carol, row.nonce),
        ])
        .await;
    let again = consume(&bob, row.nonce).await.must();

    assert_eq!((of_another, guessed, again), (false, false, false));
    let in_one_batch: Vec<bool> = in_one_batch.into_iter().map(Result::unwrap).collect();
    assert_eq!(in_one_batch, [true, false, false]);
    let told: Vec<_> = fixture
        .told
        .take()
        .into_iter()
        .flat_map(|wake| wake.consumed)
        .collect();
    assert_eq!(told, [(bob.key, row.msg_t)]);
    assert_eq!(
        (
            rows(&fixture, &bob).await.len(),
            rows(&fixture, &carol).await.len()
        ),
        (0, 1)
    );
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_body_for_all_devices_of_a_user_is_stored_once() {
    let fixture = Fixture::new().await;
    let mut devices = Vec::new();
    for n in 0..12 {
        devices.push(fixture.device("bob", &n.to_string()).await);
    }
    let mut append = mail(&devices[0].address, "to all but two");
    append.mail[0].to =
        Recipient::Devices(user_of(&devices[0]), vec!["3".to_owned(), "4".to_owned()]);

    fixture.store.append(append).await.must();

    for (n, device) in devices.iter().enumerate() {
        let expected = usize::from(n != 3 && n != 4);
        assert_eq!(rows(&fixture, device).await.len(), expected, "device {n}");
    }
    assert_eq!(fixture.number("SELECT COUNT(*) FROM bodies").await, 1);
    assert_eq!(fixture.number("SELECT refs FROM bodies").await, 10);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_user_whose_devices_are_all_left_out_is_no_error_and_one_without_devices_is() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let to = |user, except: &[&str]| {
        let mut append = mail(&bob.address, "text");
        let except = except.iter().map(ToString::to_string).collect();
        append.mail[0].to = Recipient::Devices(user, except);
        fixture.store.append(append)
    };

    let left_out = to(user_of(&bob), &["phone"]).await;
    let unknown = to(fixture.stranger("nobody").user(), &[]).await;

    assert!(is_new(&left_out));
    assert!(matches!(unknown, Err(Error::NotFound(_))));
    assert!(rows(&fixture, &bob).await.is_empty());
}

#[tokio::test]
async fn a_full_mailbox_refuses_what_can_be_refused() {
    let fixture = Fixture::with(|limits| limits.mailbox_rows_max = 30).await;
    let bob = fixture.device("bob", "phone").await;
    let from = |n: usize| {
        let mut append = mail(&bob.address, &format!("message {n}"));
        append.mail[0].sender = format!("sender{}@b.test/phone", n / 3);
        append.once = Some(once(&n.to_string(), 0));
        append
    };

    let write = |n| fixture.store.append(from(n));
    let answers = fixture.together((0..40).map(write).collect()).await;
    let mut structure = from(40);
    structure.mail[0].refusable = false;
    let structure = fixture.store.append(structure).await;
    let row = rows(&fixture, &bob).await.remove(0);
    let still_full = write(30).await;
    fixture
        .store
        .consume(bob.key, row.msg_t, row.nonce)
        .await
        .must();
    let row = rows(&fixture, &bob).await.remove(0);
    fixture
        .store
        .consume(bob.key, row.msg_t, row.nonce)
        .await
        .must();
    let with_room = write(30).await;

    assert_eq!(answers.iter().filter(|answer| is_new(answer)).count(), 30);
    assert!(answers[30..].iter().all(is_busy));
    assert!(is_new(&structure), "structure messages are never refused");
    assert!(is_busy(&still_full));
    assert!(
        is_new(&with_room),
        "its key was forgotten and there is room"
    );
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn one_sender_fills_a_tenth_of_a_mailbox() {
    let fixture = Fixture::with(|limits| limits.mailbox_rows_max = 100).await;
    let bob = fixture.device("bob", "phone").await;
    let from = |sender: &str, n: i32| {
        let mut append = mail(&bob.address, &n.to_string());
        append.mail[0].sender = sender.to_owned();
        fixture.store.append(append)
    };

    let at_once = fixture
        .together((0..15).map(|n| from("mallory@b.test/1", n)).collect())
        .await;
    let later = from("mallory@b.test/1", 99).await;
    let another = from("carol@b.test/1", 1).await;
    let row = rows(&fixture, &bob).await.remove(0);
    fixture
        .store
        .consume(bob.key, row.msg_t, row.nonce)
        .await
        .must();
    let after_one_was_consumed = from("mallory@b.test/1", 100).await;

    let is_final = |outcome: &Result<Appended>| matches!(outcome, Err(Error::Conflict(_)));
    assert!(at_once[..10].iter().all(is_new) && at_once[10..].iter().all(is_final));
    assert!(is_final(&later));
    assert!(is_new(&another) && is_new(&after_one_was_consumed));
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn bytes_fill_a_mailbox_like_rows() {
    let fixture = Fixture::with(|limits| limits.mailbox_bytes_max = 1_000).await;
    let bob = fixture.device("bob", "phone").await;
    let from = |sender: usize| {
        let mut append = mail(&bob.address, &format!("{sender:0100}"));
        append.mail[0].sender = format!("{sender}@b.test/1");
        fixture.store.append(append)
    };

    let answers = fixture.together((0..12).map(from).collect()).await;

    assert!(answers[..10].iter().all(is_new) && answers[10..].iter().all(is_busy));
    assert_eq!(
        fixture.number("SELECT queued_bytes FROM devices").await,
        1_000
    );
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_message_that_was_received_on_enough_streams_is_dropped() {
    let fixture = Fixture::with(|limits| limits.mailbox_received_max = 3).await;
    let bob = fixture.device("bob", "phone").await;
    let write = |n: i32| fixture.store.append(mail(&bob.address, &n.to_string()));
    fixture.together((0..4).map(write).collect()).await;
    let times: Vec<i64> = rows(&fixture, &bob)
        .await
        .iter()
        .map(|row| row.msg_t)
        .collect();

    for _stream in 0..2 {
        fixture
            .store
            .received(bob.key, times[..3].to_vec())
            .await
            .must();
    }
    let counts: Vec<i64> = rows(&fixture, &bob)
        .await
        .iter()
        .map(|row| row.received_on)
        .collect();
    fixture
        .store
        .received(bob.key, times[..2].to_vec())
        .await
        .must();

    assert_eq!(counts, [2, 2, 2, 0]);
    assert_eq!(fixture.bodies(&bob).await, ["2", "3"]);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_mailbox_is_emptied_and_expires_in_a_transaction() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let carol = fixture.device("carol", "phone").await;
    for device in [&bob, &carol] {
        for n in 0..5 {
            fixture
                .store
                .append(mail(&device.address, &n.to_string()))
                .await
                .must();
        }
    }
    let cut = rows(&fixture, &carol).await[3].msg_t;

    let mut tx = fixture.store.begin().await.must();
    mailbox::empty(&mut tx, bob.key).await.must();
    let first = mailbox::expire(&mut tx, carol.key, cut, 2).await.must();
    let second = mailbox::expire(&mut tx, carol.key, cut, 2).await.must();
    tx.commit(Wake::default()).await.must();

    assert_eq!((first, second), (2, 1));
    assert!(rows(&fixture, &bob).await.is_empty());
    assert_eq!(fixture.bodies(&carol).await, ["3", "4"]);
    fixture.assert_consistent().await;
}
