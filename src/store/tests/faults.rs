//! What breaks: batches that fail, commits whose outcome nobody knows.

use crate::testing::Must as _;

use std::sync::atomic::Ordering;

use super::*;

fn was_reopened(told: &[Wake]) -> bool {
    told.iter().any(|wake| wake.reopened)
}

#[tokio::test]
async fn a_batch_that_fails_runs_its_operations_alone() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    fixture.store.append(mail(&bob.address, "old")).await.must();
    fixture
        .store
        .append(parcel(1, "b.test", "old request"))
        .await
        .must();
    let old = mailbox::page(&fixture.store, bob.key, 0, 1).await.must();
    fixture.told.take();
    fixture.faults.fail_batch.store(true, Ordering::SeqCst);

    let store = &fixture.store;
    let writes: Vec<futures_util::future::BoxFuture<'_, bool>> = vec![
        Box::pin(async { is_new(&store.append(mail(&bob.address, "first")).await) }),
        Box::pin(async { is_new(&store.append(mail(&bob.address, "second")).await) }),
        Box::pin(async {
            store
                .consume(bob.key, old[0].msg_t, old[0].nonce)
                .await
                .must()
        }),
        Box::pin(async { store.answered(1).await.is_ok() }),
        Box::pin(async { store.received(bob.key, vec![old[0].msg_t]).await.is_ok() }),
    ];
    let answers = fixture.together(writes).await;

    assert_eq!(answers, [true; 5]);
    assert_eq!(fixture.bodies(&bob).await, ["first", "second"]);
    assert_eq!(fixture.told.take().len(), 3, "two messages, one consumed");
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn an_operation_that_breaks_a_batch_breaks_only_itself() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    fixture
        .store
        .append(parcel(5, "b.test", "first at its place"))
        .await
        .must();

    let answers = fixture
        .together(vec![
            fixture.store.append(mail(&bob.address, "before")),
            fixture
                .store
                .append(parcel(5, "b.test", "second at the same place")),
            fixture.store.append(mail(&bob.address, "after")),
        ])
        .await;

    assert!(is_new(&answers[0]) && is_new(&answers[2]));
    assert!(matches!(answers[1], Err(Error::Internal(_))));
    assert_eq!(fixture.bodies(&bob).await, ["before", "after"]);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn an_error_at_commit_is_never_answered_as_success() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let message = || Append {
        once: Some(once("message", 7)),
        ..mail(&bob.address, "text")
    };
    fixture.told.take();
    fixture.faults.fail_commit.store(true, Ordering::SeqCst);

    let broken = fixture.store.append(message()).await;
    let told = fixture.told.take();
    let again = fixture.store.append(message()).await;
    let next = fixture.store.append(mail(&bob.address, "next")).await;

    assert!(is_busy(&broken));
    assert!(
        was_reopened(&told),
        "memory is read anew before the caller goes on"
    );
    assert!(told.iter().all(|wake| wake.mailboxes.is_empty()));
    assert_eq!(again.must(), Appended::Repeat(7), "this commit was on disk");
    assert!(is_new(&next));
    assert_eq!(fixture.bodies(&bob).await, ["text", "next"], "visible once");
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn everybody_in_a_batch_hears_of_an_error_at_commit() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    fixture.faults.fail_commit.store(true, Ordering::SeqCst);

    let writes = (0..20).map(|n| {
        let store = &fixture.store;
        let append = mail(&bob.address, &n.to_string());
        async move { store.append(append).await }
    });
    // The gate of `together` is a transaction that is dropped, so the batch has the first commit.
    let answers = fixture.together(writes.collect()).await;

    assert!(answers.iter().all(is_busy));
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_transaction_whose_commit_fails_keeps_nothing_and_the_next_one_works() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    fixture.told.take();

    let mut tx = fixture.store.begin().await.must();
    tx.append(vec![mail(&bob.address, "never")]).await.must();
    // A reference to no device, checked as late as the commit: the engine itself refuses.
    tx.execute("PRAGMA defer_foreign_keys = ON", [])
        .await
        .must();
    tx.execute(
        "INSERT INTO one_time_keys (device_key, opk_id, public_key) VALUES (-1, 1, $1)",
        [Value::from(&[0_u8; 32])],
    )
    .await
    .must();
    let broken = tx
        .commit(Wake {
            mailboxes: vec![bob.key],
            ..Wake::default()
        })
        .await;
    let told = fixture.told.take();
    let next = fixture.store.append(mail(&bob.address, "next")).await;

    assert!(is_busy(&broken));
    assert!(was_reopened(&told) && told.iter().all(|wake| wake.mailboxes.is_empty()));
    assert!(is_new(&next));
    assert_eq!(fixture.bodies(&bob).await, ["next"]);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn what_was_committed_before_a_crash_is_there_after_it() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    fixture.told.take();
    fixture.faults.silent.store(true, Ordering::SeqCst);

    let answer = fixture.store.append(mail(&bob.address, "text"));
    let committed = async {
        while fixture.bodies(&bob).await.is_empty() {
            tokio::task::yield_now().await;
        }
    };
    let answered = tokio::select! {
        _ = answer => true,
        () = committed => false,
    };
    let store = fixture.again().await.must();

    assert!(!answered && fixture.told.take().is_empty());
    let rows = mailbox::page(&store, bob.key, 0, 10).await.must();
    assert_eq!(rows.len(), 1);
}
