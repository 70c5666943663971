//! Time and fresh ids. Tests hold a clock that they turn by hand, so that nothing waits for minutes to pass.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

/// The node's only source of time. Copies share the same hands.
#[derive(Debug, Clone)]
pub struct Clock {
    /// Milliseconds added to the machine's clock.
    offset_ms: Arc<watch::Sender<i64>>,
}

impl Default for Clock {
    fn default() -> Self {
        Self {
            offset_ms: Arc::new(watch::Sender::new(0)),
        }
    }
}

impl Clock {
    /// Unix time in milliseconds.
    pub fn now_ms(&self) -> i64 {
        #[expect(clippy::disallowed_methods, reason = "this is the clock")]
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX) + *self.offset_ms.borrow()
    }

    /// Turns the hands, waking whoever sleeps past the new time. Negative values turn back.
    pub fn turn(&self, by_ms: i64) {
        self.offset_ms.send_modify(|offset| *offset += by_ms);
    }

    /// Returns once `duration` has passed on this clock.
    pub async fn sleep(&self, duration: Duration) {
        let wait_ms = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        self.sleep_until(self.now_ms().saturating_add(wait_ms))
            .await;
    }

    /// Returns once the clock shows `deadline_ms` or later.
    pub async fn sleep_until(&self, deadline_ms: i64) {
        let mut turned = self.offset_ms.subscribe();
        loop {
            turned.mark_unchanged();
            let left_ms = deadline_ms - self.now_ms();
            let Ok(left_ms @ 1..) = u64::try_from(left_ms) else {
                return;
            };
            tokio::select! {
                () = tokio::time::sleep(Duration::from_millis(left_ms)) => {}
                _ = turned.changed() => {}
            }
        }
    }

    /// A fresh id: unique, opaque to clients, roughly ordered by time.
    pub fn id(&self) -> String {
        uuid::Uuid::now_v7().to_string()
    }
}
