//! Power cuts: what was answered with 200 is there afterwards, what was consumed does not come back, whatever
//! moment the node ends at.

use std::{
    collections::BTreeSet,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use fastrand::Rng;
use skiserver::{
    client::{ClientError, Inbox, talk},
    proto::skissm::{ProtoMsg, ProtoMsgTag},
};
use tokio::sync::watch;

use crate::lab::{Lab, User, refusals::within, stream::text_of};

/// Longer than any pause between two attempts in a lab.
const PAUSE_MS: i64 = 6_000;
const MAIL: &str = "SELECT COUNT(*) FROM mailbox";
const OUTBOX: &str = "SELECT COUNT(*) FROM outbox";

async fn crash(lab: &Lab, domain: &str) {
    lab.kill(domain).await;
    lab.start_node(domain).await;
    lab.clock.turn(PAUSE_MS);
}

/// From here on the node commits, but wakes and answers nobody.
fn silence(lab: &Lab, domain: &str) {
    lab.faults(domain).silent.store(true, Ordering::SeqCst);
}

/// A call that must not be answered before the node has this many rows on disk.
async fn unanswered<T: std::fmt::Debug>(
    lab: &Lab,
    (domain, rows, count): (&str, &'static str, i64),
    call: impl Future<Output = T>,
) {
    tokio::select! {
        answer = call => panic!("answered {answer:?}"),
        () = lab.until(domain, rows, count) => {}
    }
}

#[tokio::test]
async fn everything_that_was_answered_is_there_after_a_crash() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let bob = lab.user("bob@b.test").await;
    let alice = lab.user("alice@a.test").await;
    crash(&lab, "a.test").await;
    // The token holds, so the registration does.
    talk::publish_spk(&alice, 2).await.unwrap();
    crash(&lab, "a.test").await;
    talk::supply(&alice, 5).await.unwrap();
    crash(&lab, "a.test").await;
    let first = bob.bundle(&alice).await;
    crash(&lab, "a.test").await;
    let second = bob.bundle(&alice).await;

    let spk = first.signed_pre_key_public.unwrap();
    assert_eq!(spk.spk_id, 2);
    let opks = [
        first.one_time_pre_key_public,
        second.one_time_pre_key_public,
    ];
    assert_eq!(opks.map(|opk| opk.unwrap().opk_id), [1, 2]);
    let left = "SELECT COUNT(*) FROM one_time_keys";
    assert_eq!(lab.number("a.test", left).await, 103);

    let sent = alice.invite(&bob).await;
    for domain in ["a.test", "b.test"] {
        crash(&lab, domain).await;
    }
    let invite = bob.stream().await.next_invite().await.said;
    assert_eq!(
        (&invite.session_id, invite.invite_t),
        (&sent.session_id, sent.invite_t)
    );
    let acceptance = talk::acceptance(&bob, &invite).unwrap();
    talk::accept(&bob, &acceptance).await.unwrap();
    for domain in ["b.test", "a.test"] {
        crash(&lab, domain).await;
    }
    alice.stream().await.next_accept().await;
    alice.send(&bob, "hello").await;
    for domain in ["a.test", "b.test"] {
        crash(&lab, domain).await;
    }
    let mut stream = bob.stream().await;
    assert_eq!(stream.next_text().await, "hello"); // and it is consumed
    crash(&lab, "b.test").await;

    let pairs = "SELECT COUNT(*) FROM sessions";
    assert_eq!(lab.number("a.test", pairs).await, 1);
    assert_eq!(lab.number("b.test", pairs).await, 1);
    for user in [&alice, &bob] {
        lab.assert_silent(&mut user.stream().await).await;
    }
    lab.assert_nothing_waits().await;
}

#[tokio::test]
async fn a_message_that_was_committed_but_not_answered_arrives_once_though_it_is_sent_again() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    let _live = bob.stream().await;
    let letter = alice.letter(bob.address(), "hello");

    silence(&lab, "a.test");
    unanswered(&lab, ("a.test", MAIL, 1), talk::send(&alice, &letter)).await;
    crash(&lab, "a.test").await;
    talk::send(&alice, &letter).await.unwrap();

    let mut stream = bob.stream().await;
    assert_eq!(stream.next_text().await, "hello");
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn a_message_for_another_domain_that_was_committed_but_not_answered_arrives_once() {
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let letter = alice.letter(bob.address(), "hello");
    lab.kill("b.test").await;

    silence(&lab, "a.test");
    unanswered(&lab, ("a.test", OUTBOX, 1), talk::send(&alice, &letter)).await;
    lab.kill("a.test").await;
    lab.start_node("a.test").await;
    talk::send(&alice, &letter).await.unwrap();
    lab.start_node("b.test").await;
    lab.clock.turn(PAUSE_MS);
    lab.until("a.test", OUTBOX, 0).await;

    let mut stream = bob.stream().await;
    assert_eq!(stream.next_text().await, "hello");
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn an_accept_whose_receiver_crashed_before_it_answered_arrives_once() {
    let lab = Lab::configured(["a.test", "b.test"], |config| {
        config.limits.fast_path_ms = 500;
    })
    .await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    alice.invite(&bob).await;
    let invite = bob.stream().await.next_invite().await.said;
    let acceptance = talk::acceptance(&bob, &invite).unwrap();

    silence(&lab, "a.test");
    talk::accept(&bob, &acceptance).await.unwrap();
    lab.until("a.test", MAIL, 1).await;
    assert_eq!(lab.number("b.test", OUTBOX).await, 1);
    crash(&lab, "a.test").await;
    lab.until("b.test", OUTBOX, 0).await;

    let mut stream = alice.stream().await;
    stream.next_accept().await;
    lab.assert_silent(&mut stream).await;
}

#[tokio::test]
async fn a_message_whose_consumption_was_committed_but_not_answered_is_gone() {
    let lab = Lab::start(["a.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@a.test"]).await;
    alice.send(&bob, "hello").await;
    let received = bob.stream().await.peek_text().await;
    let id = received.tag.proto_msg_id;

    silence(&lab, "a.test");
    unanswered(&lab, ("a.test", MAIL, 0), talk::consume(&bob, &id)).await;
    crash(&lab, "a.test").await;

    assert!(!talk::consume(&bob, &id).await.unwrap(), "it is gone");
    lab.assert_silent(&mut bob.stream().await).await;
}

/// Kill points of the receiving node.
const CRASHES: u32 = 50;
/// Messages that may be on their way: enough to have some in every place that a crash can hit.
const UNDER_WAY_MAX: u32 = 8;
/// The longest way from a message to the crash behind it, in turns of this task.
const YIELDS_MAX: u32 = 3_000;
/// All crashes together take a small part of this.
const CRASHES_PATIENCE: Duration = Duration::from_mins(3);

/// What is seen of two people while the node between them crashes.
struct Story {
    lab: Lab,
    sent: AtomicU32,
    handled: watch::Sender<u32>,
    /// Counts ends and starts of the receiving node; even while it is up.
    changes: watch::Sender<u32>,
    /// No crash comes any more.
    is_calm: watch::Sender<bool>,
    /// No message comes any more.
    is_said: watch::Sender<bool>,
}

impl Story {
    fn new(lab: Lab) -> Self {
        Self {
            lab,
            sent: AtomicU32::new(0),
            handled: watch::Sender::new(0),
            changes: watch::Sender::new(0),
            is_calm: watch::Sender::new(false),
            is_said: watch::Sender::new(false),
        }
    }

    /// Sends numbers, each answered with 200, as long as not too many are on their way.
    async fn send(&self, alice: &User, bob: &User) {
        let (mut handled, mut calm) = (self.handled.subscribe(), self.is_calm.subscribe());
        loop {
            let sent = self.sent.load(Ordering::SeqCst);
            let has_room = |handled: &u32| sent.saturating_sub(*handled) < UNDER_WAY_MAX;
            tokio::select! {
                _ = calm.wait_for(|calm| *calm) => break,
                _ = handled.wait_for(has_room) => {}
            }
            alice.send(bob, &sent.to_string()).await;
            self.sent.fetch_add(1, Ordering::SeqCst);
        }
        self.is_said.send_replace(true);
    }

    /// Crashes the receiving node at random moments.
    async fn crash(&self, rng: &mut Rng) {
        let mut handled = self.handled.subscribe();
        for _ in 0..CRASHES {
            let aim = *handled.borrow() + rng.u32(0..5);
            handled.wait_for(|handled| *handled >= aim).await.unwrap();
            for _ in 0..rng.u32(0..YIELDS_MAX) {
                tokio::task::yield_now().await;
            }
            self.changes.send_modify(|changes| *changes += 1);
            self.lab.kill("b.test").await;
            self.lab.start_node("b.test").await;
            self.lab.clock.turn(PAUSE_MS);
            self.changes.send_modify(|changes| *changes += 1);
        }
        self.is_calm.send_replace(true);
    }

    /// Handles every message as a good client does, stream after stream, until all that was sent is handled.
    async fn receive(&self, reader: &mut Reader) {
        let mut changes = self.changes.subscribe();
        while !self.is_finished(reader) {
            let is_up = |changes: &u32| changes.is_multiple_of(2);
            changes.wait_for(is_up).await.unwrap();
            tokio::select! {
                _ = self.read_one_stream(reader) => tokio::task::yield_now().await,
                _ = changes.changed() => {}
            }
        }
    }

    fn is_finished(&self, reader: &Reader) -> bool {
        let sent = self.sent.load(Ordering::SeqCst) as usize;
        *self.is_said.borrow() && reader.consumed.len() == sent
    }

    async fn read_one_stream(&self, reader: &mut Reader) -> Result<(), ClientError> {
        let mut said = self.is_said.subscribe();
        let is_the_end = *said.borrow_and_update();
        let mut inbox = reader.reopen(is_the_end).await?;
        while !self.is_finished(reader) {
            tokio::select! {
                message = inbox.next_message() => match message? {
                    Some(message) => reader.handle(message).await?,
                    None => return Ok(()),
                },
                _ = said.changed() => reader.settle().await?,
            }
            let seen = u32::try_from(reader.seen.len()).unwrap();
            self.handled.send_replace(seen);
        }
        Ok(())
    }
}

/// The receiving client, which writes everything down.
struct Reader {
    bob: User,
    rng: Rng,
    last: Option<ProtoMsgTag>,
    /// Numbers that came.
    seen: BTreeSet<u32>,
    /// Numbers whose consumption was answered.
    consumed: BTreeSet<u32>,
    /// The number and id of a message whose consumption was not answered.
    pending: Option<(u32, String)>,
}

impl Reader {
    fn new(bob: User, rng: Rng) -> Self {
        Self {
            bob,
            rng,
            last: None,
            seen: BTreeSet::new(),
            consumed: BTreeSet::new(),
            pending: None,
        }
    }

    /// Goes on behind the last message after repeating what was not answered, or asks for all that is unconsumed.
    async fn reopen(&mut self, is_the_end: bool) -> Result<Inbox, ClientError> {
        let mut last = None;
        if is_the_end || self.rng.bool() {
            self.settle().await?;
            last.clone_from(&self.last);
        }
        let inbox = self.bob.open().await?;
        inbox.sync(last).await?;
        Ok(inbox)
    }

    /// Repeats a consumption that was not answered.
    async fn settle(&mut self) -> Result<(), ClientError> {
        if let Some((number, id)) = self.pending.clone() {
            talk::consume(&self.bob, &id).await?;
            self.consumed(number);
        }
        Ok(())
    }

    async fn handle(&mut self, message: ProtoMsg) -> Result<(), ClientError> {
        let number: u32 = text_of(&message).parse().unwrap();
        assert!(!self.consumed.contains(&number), "{number} was consumed");
        let is_pending = self.pending.as_ref().is_some_and(|(n, _)| *n == number);
        let is_next = number as usize == self.seen.len();
        assert!(
            is_pending || is_next,
            "{number} after {:?}",
            self.seen.last()
        );
        if is_next && let Some((lost, _)) = self.pending.take() {
            // Not asked for again and not delivered again: the node has consumed it.
            self.consumed(lost);
        }
        self.seen.insert(number);
        let tag = message.tag.unwrap();
        let id = tag.proto_msg_id.clone();
        self.last = Some(tag);
        self.pending = Some((number, id.clone()));
        let was_there = talk::consume(&self.bob, &id).await?;
        assert!(was_there, "{number} came from the mailbox and is not in it");
        self.consumed(number);
        Ok(())
    }

    fn consumed(&mut self, number: u32) {
        self.pending = None;
        self.consumed.insert(number);
    }
}

#[tokio::test]
async fn fifty_crashes_of_the_receiving_node_lose_nothing_and_repeat_nothing_consumed() {
    let seed = std::env::var("SUITE_SEED").map_or(20_260_711, |seed| seed.parse().unwrap());
    eprintln!("SUITE_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let lab = Lab::start(["a.test", "b.test"]).await;
    let [alice, bob] = lab.users(["alice@a.test", "bob@b.test"]).await;
    let mut reader = Reader::new(bob.clone(), rng.fork());
    let story = Story::new(lab);

    let all = async {
        tokio::join!(
            story.send(&alice, &bob),
            story.crash(&mut rng),
            story.receive(&mut reader),
        )
    };
    Box::pin(within(CRASHES_PATIENCE, "the end of the crashes", all)).await;

    let sent = story.sent.load(Ordering::SeqCst);
    assert!(sent >= CRASHES, "only {sent} messages");
    assert_eq!(reader.consumed, (0..sent).collect());
    story.lab.until("a.test", OUTBOX, 0).await;
    story.lab.assert_silent(&mut bob.stream().await).await;
    story.lab.assert_nothing_waits().await;
}
