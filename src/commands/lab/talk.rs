//! A conversation of everybody with everybody: from the registration to the last message that may still arrive.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{hear, ledger::Totals, speak, town::Town};
use crate::{client::ClientError, lab::manifest::Manifest};

/// At the end, what is under way may take this long without anything moving.
const STILL_MAX: Duration = Duration::from_secs(10);

/// A conversation of everybody with everybody.
pub(super) struct Talk {
    town: Arc<Town>,
    tasks: TaskTracker,
    stop_sending: CancellationToken,
    end: CancellationToken,
}

impl Talk {
    /// Registers people at every node and lets them talk.
    pub(super) async fn start(manifest: &Manifest) -> Result<Self, ClientError> {
        let talk = Self {
            town: Arc::new(Town::settle(manifest).await?),
            tasks: TaskTracker::new(),
            stop_sending: CancellationToken::new(),
            end: CancellationToken::new(),
        };
        for me in 0..talk.town.members.len() {
            let town = Arc::clone(&talk.town);
            let (stop, end) = (talk.stop_sending.clone(), talk.end.clone());
            talk.tasks
                .spawn(async move { speak::speak(&town, me, &stop, &end).await });
            let (town, end) = (Arc::clone(&talk.town), talk.end.clone());
            talk.tasks.spawn(async move {
                end.run_until_cancelled(Box::pin(hear::listen(&town, me, &end)))
                    .await
            });
        }
        talk.tasks.close();
        Ok(talk)
    }

    /// What is known so far.
    pub(super) fn town(&self) -> &Town {
        &self.town
    }

    /// Sends nothing more, and waits until everything that was answered has arrived and is consumed: at most
    /// [`STILL_MAX`] after the last thing that moved, or until `hurry`.
    pub(super) async fn finish(&self, hurry: &CancellationToken) -> Totals {
        self.stop_sending.cancel();
        let mut last = Totals::default();
        let mut moved_at = Instant::now();
        while moved_at.elapsed() < STILL_MAX {
            let totals = self.town.ledger.totals();
            if totals.lost == 0
                && totals.consumed >= totals.received
                && totals.answered >= totals.sent
            {
                break;
            }
            if totals != last {
                last = totals;
                moved_at = Instant::now();
            }
            if hurry
                .run_until_cancelled(sleep(Duration::from_millis(50)))
                .await
                .is_none()
            {
                break;
            }
        }
        self.end.cancel();
        self.tasks.wait().await;
        self.town.ledger.totals()
    }
}
