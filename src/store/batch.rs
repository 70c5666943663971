//! Merged writes: what the writer was given at the same time, sorted by kind, run together and answered one by one.

use tokio::sync::oneshot;

use super::{Append, Appended, Conn, Wake, append, mailbox, outbox};
use crate::{
    error::{Error, Result},
    limits::Limits,
};

/// Where one caller waits.
pub(super) type Reply<T> = oneshot::Sender<Result<T>>;

/// A write that is merged with others of its kind.
pub(super) enum Merge {
    Append(Box<Append>, Reply<Appended>),
    Consume([i64; 3], Reply<bool>),
    Received(i64, Vec<i64>, Reply<()>),
    Answered(i64, Reply<()>),
}

/// The merged writes of one batch, by kind.
#[derive(Default)]
pub(super) struct Batch {
    appends: Vec<Append>,
    consumes: Vec<[i64; 3]>,
    received: Vec<(i64, Vec<i64>)>,
    answered: Vec<i64>,
}

/// Who waits for a batch, in the same order.
#[derive(Default)]
pub(super) struct Replies {
    appends: Vec<Reply<Appended>>,
    consumes: Vec<Reply<bool>>,
    received: Vec<Reply<()>>,
    answered: Vec<Reply<()>>,
}

/// What they are told, in the same order.
#[derive(Default)]
pub(super) struct Answers {
    appends: Vec<Result<Appended>>,
    consumes: Vec<bool>,
}

impl Batch {
    pub(super) fn new(merges: Vec<Merge>) -> (Self, Replies) {
        let mut batch = Self::default();
        let mut replies = Replies::default();
        for merge in merges {
            match merge {
                Merge::Append(append, reply) => {
                    batch.appends.push(*append);
                    replies.appends.push(reply);
                }
                Merge::Consume(row, reply) => {
                    batch.consumes.push(row);
                    replies.consumes.push(reply);
                }
                Merge::Received(device, msg_ts, reply) => {
                    batch.received.push((device, msg_ts));
                    replies.received.push(reply);
                }
                Merge::Answered(place, reply) => {
                    batch.answered.push(place);
                    replies.answered.push(reply);
                }
            }
        }
        (batch, replies)
    }

    /// Runs all of it in the open transaction. An `Err` means that the transaction can't go on.
    pub(super) async fn run(
        &self,
        conn: &mut Conn,
        now: i64,
        limits: &Limits,
    ) -> Result<(Answers, Wake)> {
        let mut wake = Wake::default();
        let mut answers = Answers::default();
        if !self.appends.is_empty() {
            let appends: Vec<&Append> = self.appends.iter().collect();
            (answers.appends, wake) = append::run(conn, &appends, now, limits).await?;
        }
        if !self.consumes.is_empty() {
            answers.consumes = mailbox::consume(conn, &self.consumes).await?;
            wake.consumed = (self.consumes.iter().zip(&answers.consumes))
                .filter(|(_, was_there)| **was_there)
                .map(|(&[device, msg_t, _], _)| (device, msg_t))
                .collect();
        }
        for (device, msg_ts) in &self.received {
            mailbox::received(conn, *device, msg_ts, limits.mailbox_received_max).await?;
        }
        if !self.answered.is_empty() {
            outbox::answered(conn, &self.answered).await?;
        }
        Ok((answers, wake))
    }
}

impl Replies {
    pub(super) fn send(self, answers: Answers) {
        for (reply, answer) in self.appends.into_iter().zip(answers.appends) {
            let _ = reply.send(answer);
        }
        for (reply, answer) in self.consumes.into_iter().zip(answers.consumes) {
            let _ = reply.send(Ok(answer));
        }
        for reply in self.received.into_iter().chain(self.answered) {
            let _ = reply.send(Ok(()));
        }
    }

    pub(super) fn fail(self, mut error: impl FnMut() -> Error) {
        for reply in self.appends {
            let _ = reply.send(Err(error()));
        }
        for reply in self.consumes {
            let _ = reply.send(Err(error()));
        }
        for reply in self.received.into_iter().chain(self.answered) {
            let _ = reply.send(Err(error()));
        }
    }

    /// The writes of a batch with their callers again, to be run one by one.
    pub(super) fn rejoin(self, batch: Batch) -> Vec<Merge> {
        let appends = batch.appends.into_iter().zip(self.appends);
        let consumes = batch.consumes.into_iter().zip(self.consumes);
        let received = batch.received.into_iter().zip(self.received);
        let answered = batch.answered.into_iter().zip(self.answered);
        let mut merges: Vec<Merge> = appends
            .map(|(a, r)| Merge::Append(Box::new(a), r))
            .collect();
        merges.extend(consumes.map(|(c, r)| Merge::Consume(c, r)));
        merges.extend(received.map(|((d, t), r)| Merge::Received(d, t, r)));
        merges.extend(answered.map(|(p, r)| Merge::Answered(p, r)));
        merges
    }
}
