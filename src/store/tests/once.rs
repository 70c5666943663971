//! Operations that happen once.

use crate::testing::Must as _;

use super::{
    Appended::{New, Repeat},
    *,
};

#[tokio::test]
async fn a_repeat_gets_the_answer_that_the_first_was_stored_with() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let invite = |answer| Append {
        once: Some(once("invite", answer)),
        ..mail(&bob.address, "invite")
    };

    let first = fixture.store.append(invite(1_000)).await.must();
    let repeat = fixture.store.append(invite(2_000)).await.must();

    assert_eq!(first, New);
    assert_eq!(repeat, Repeat(1_000));
    assert_eq!(fixture.bodies(&bob).await, ["invite"]);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_repeat_inside_a_batch_gets_the_answer_of_the_first() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    fixture
        .store
        .append(Append {
            once: Some(once("old", 9)),
            ..mail(&bob.address, "old")
        })
        .await
        .must();
    let write = |name, answer| {
        fixture.store.append(Append {
            once: Some(once(name, answer)),
            ..mail(&bob.address, name)
        })
    };

    let answers = fixture
        .together(vec![
            write("a", 1),
            write("b", 2),
            write("a", 3),
            write("old", 4),
            write("old", 5),
        ])
        .await;

    let answers: Vec<Appended> = answers.into_iter().map(Result::unwrap).collect();
    assert_eq!(answers, [New, New, Repeat(1), Repeat(9), Repeat(9)]);
    assert_eq!(fixture.bodies(&bob).await, ["old", "a", "b"]);
    fixture.assert_consistent().await;
}

#[tokio::test]
async fn a_refused_operation_may_be_tried_again() {
    let fixture = Fixture::new().await;
    let nobody = fixture.stranger("bob");
    let write = || {
        fixture.store.append(Append {
            once: Some(once("m", 1)),
            ..mail(&nobody, "text")
        })
    };

    let refused = write().await;
    let device = fixture.device("bob", "gone").await;
    let accepted = write().await;

    assert!(matches!(refused, Err(Error::NotFound(_))));
    assert!(is_new(&accepted));
    assert_eq!(fixture.bodies(&device).await, ["text"]);
}

#[tokio::test]
async fn a_repeat_of_what_its_own_batch_refused_is_refused_too() {
    let fixture = Fixture::new().await;
    let nobody = fixture.stranger("bob");
    let write = || {
        fixture.store.append(Append {
            once: Some(once("m", 1)),
            ..mail(&nobody, "text")
        })
    };

    let answers = fixture.together(vec![write(), write()]).await;

    assert!(
        answers
            .iter()
            .all(|answer| matches!(answer, Err(Error::NotFound(_))))
    );
    assert_eq!(fixture.number("SELECT COUNT(*) FROM done_once").await, 0);
}

#[tokio::test]
async fn many_keys_in_one_batch_are_told_apart() {
    let fixture = Fixture::new().await;
    let bob = fixture.device("bob", "phone").await;
    let write = |n: i64| {
        let name = format!("key {}", n % 100);
        fixture.store.append(Append {
            once: Some(once(&name, n)),
            ..mail(&bob.address, &name)
        })
    };

    let answers = fixture.together((0..300).map(write).collect()).await;

    for (n, answer) in (0..300).zip(answers) {
        let expected = if n < 100 { New } else { Repeat(n % 100) };
        assert_eq!(answer.must(), expected);
    }
    assert_eq!(fixture.bodies(&bob).await.len(), 100);
    fixture.assert_consistent().await;
}
