//! The writer: merging, transactions in their turn, and the end.

use crate::testing::Must as _;

use std::{
    sync::{Mutex, mpsc},
    time::Duration,
};

use futures_util::FutureExt as _;

use super::*;

#[tokio::test]
async fn what_waits_together_is_committed_together() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let texts: Vec<String> = (0..200).map(|n| format!("message {n}")).collect();
    fixture.told.take();

    let writes = texts
        .iter()
        .map(|text| fixture.store.append(mail(&bob.address, text)));
    let answers = fixture.together(writes.collect()).await;

    assert!(answers.iter().all(is_new));
    assert_eq!(fixture.told.take().len(), 1, "one commit for all");
    assert_eq!(fixture.bodies(&bob).await, texts, "in the order given");
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_missing_device_hurts_only_its_own_operation() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let nobody = fixture.stranger("nobody");

    let answers = fixture
        .together(vec![
            fixture.store.append(mail(&bob.address, "before")),
            fixture.store.append(mail(&nobody, "lost")),
            fixture.store.append(mail(&bob.address, "after")),
        ])
        .await;

    assert!(is_new(&answers[0]) && is_new(&answers[2]));
    assert!(matches!(answers[1], Err(Error::NotFound("device"))));
    assert_eq!(fixture.bodies(&bob).await, ["before", "after"]);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn an_operation_is_stored_whole_or_not_at_all() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let mut append = mail(&bob.address, "one");
    append
        .mail
        .extend(mail(&fixture.stranger("nobody"), "two").mail);
    append.parcels = parcel(1, "b.test", "three").parcels;

    let answer = fixture.store.append(append).await;

    assert!(matches!(answer, Err(Error::NotFound(_))));
    assert!(fixture.bodies(&bob).await.is_empty());
    assert_eq!(fixture.number("SELECT COUNT(*) FROM outbox").await, 0);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_dropped_transaction_rolls_back_alone() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    fixture.told.take();

    let mut tx = fixture.store.begin().await.must();
    let (results, _) = tx.append(vec![mail(&bob.address, "never")]).await.must();
    let later = async {
        drop(tx);
        Ok(Appended::New)
    };
    let (later, kept) = tokio::join!(later, fixture.store.append(mail(&bob.address, "kept")));

    assert!(is_new(&results[0]) && is_new(&later) && is_new(&kept));
    assert_eq!(fixture.bodies(&bob).await, ["kept"]);
    assert_eq!(fixture.told.take().len(), 1, "nobody is woken for nothing");
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_committed_transaction_wakes_whom_it_names() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    fixture.told.take();

    let mut tx = fixture.store.begin().await.must();
    let (_, mut wake) = tx.append(vec![mail(&bob.address, "kept")]).await.must();
    wake.ended.push(77);
    tx.commit(wake).await.must();

    let told = fixture.told.take();
    assert_eq!(told.len(), 1);
    assert_eq!(
        (told[0].mailboxes.clone(), told[0].ended.clone()),
        (vec![bob.key], vec![77])
    );
    assert_eq!(fixture.bodies(&bob).await, ["kept"]);
}

#[tokio::test]
async fn a_transaction_that_is_open_for_too_long_is_rolled_back_and_others_go_on() {
    let fixture = Fixture::with(|limits| limits.transaction_ms = 30).await;
    let bob = fixture.device("bob", "phone").await;

    let mut tx = fixture.store.begin().await.must();
    tx.append(vec![mail(&bob.address, "slow")]).await.must();
    let other = fixture.store.append(mail(&bob.address, "other")).await;
    let call = tx.append(vec![mail(&bob.address, "later")]).await;
    let end = tx.commit(Wake::default()).await;

    assert!(is_new(&other));
    assert!(matches!(call, Err(Error::Busy(_))));
    assert!(matches!(end, Err(Error::Busy(_))));
    assert_eq!(fixture.bodies(&bob).await, ["other"]);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn closing_finishes_what_was_given() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let texts: Vec<String> = (0..50).map(|n| format!("message {n}")).collect();

    let tx = fixture.store.begin().await.must();
    let writes = texts
        .iter()
        .map(|text| fixture.store.append(mail(&bob.address, text)));
    let closing = async {
        assert_eq!(fixture.waiting(), 50);
        tokio::join!(fixture.store.close(), async { drop(tx) });
    };
    let (answers, ()) = tokio::join!(futures_util::future::join_all(writes), closing);
    let late = fixture.store.append(mail(&bob.address, "late")).await;

    assert!(answers.iter().all(is_new));
    assert!(is_busy(&late));
    let store = fixture.again().await.must();
    let rows = mailbox::page(&store, bob.key, 0, 100).await.must();
    assert_eq!(
        rows.iter().map(|row| &row.body).collect::<Vec<_>>(),
        texts.iter().collect::<Vec<_>>()
    );
}

/// Holds the writer inside a wake until it is let go.
struct Held {
    entered: mpsc::Sender<()>,
    go: Mutex<mpsc::Receiver<()>>,
}

impl Wakes for Held {
    fn wake(&self, _wake: Wake) {
        let _ = self.entered.send(());
        let _ = self.go.lock().must().recv_timeout(Duration::from_secs(20));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_reads_is_woken_before_the_writer_answers() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let (entered, entering) = mpsc::channel();
    let (let_go, go) = mpsc::channel();
    let store = fixture.again().await.must();
    let go = Mutex::new(go);
    store.on_commit(Arc::new(Held { entered, go }));

    let mut answer = Box::pin(store.append(mail(&bob.address, "text")));
    assert!((&mut answer).now_or_never().is_none());
    let woken = tokio::task::spawn_blocking(move || entering.recv_timeout(Duration::from_secs(20)));
    woken.await.must().must();
    let early = (&mut answer).now_or_never();
    let seen = fixture.bodies(&bob).await;
    let_go.send(()).must();

    assert!(early.is_none(), "answered before anybody was woken");
    assert_eq!(seen, ["text"], "it is on disk when readers are woken");
    assert!(is_new(&answer.await));
}

#[tokio::test]
async fn a_database_of_a_newer_version_is_refused_in_words() {
    let fixture = Fixture::new().await;
    let mut tx = fixture.store.begin().await.must();
    tx.execute(
        "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
         VALUES (9999, 'of the future', 1, $1, 0)",
        [Value::from(&[0_u8; 32])],
    )
    .await
    .must();
    tx.commit(Wake::default()).await.must();

    let refused = fixture.again().await.err();

    let Some(Error::Internal(cause)) = refused else {
        panic!("{refused:?}");
    };
    let text = cause.to_string();
    assert!(
        text.contains("9999") && text.contains("newer skiserver"),
        "{text}"
    );
}

#[tokio::test]
async fn the_file_gives_free_pages_back() {
    let fixture = Fixture::with(|limits| limits.mailbox_bytes_max = u64::MAX >> 1).await;
    let bob = fixture.device("bob", "phone").await;
    assert_eq!(fixture.number("PRAGMA auto_vacuum").await, 2, "incremental");
    let long = "x".repeat(1 << 20);
    for n in 0..24 {
        let mut append = mail(&bob.address, &format!("{n}{long}"));
        append.mail[0].refusable = false;
        fixture.store.append(append).await.must();
    }
    let mut tx = fixture.store.begin().await.must();
    mailbox::empty(&mut tx, bob.key).await.must();
    tx.commit(Wake::default()).await.must();
    let before = fixture.number("PRAGMA freelist_count").await;

    fixture.store.maintain().await.must();

    let after = fixture.number("PRAGMA freelist_count").await;
    assert_eq!(before - after, 1_024, "{before} free pages before");
    fixture.assert_consistent().await;
}
