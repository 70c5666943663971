//! Waiting for what nobody tells: only the database shows it.

use std::time::Duration;

use super::{Lab, PATIENCE, refusals::within};

/// How often the database is looked at.
const LOOK: Duration = Duration::from_millis(10);

impl Lab {
    /// Returns once a query answers this number.
    pub(crate) async fn until(&self, domain: &str, sql: &'static str, number: i64) {
        let what = format!("{number} from {sql} at {domain}");
        let wait = async {
            while self.number(domain, sql).await != number {
                tokio::time::sleep(LOOK).await;
            }
        };
        within(PATIENCE, &what, wait).await;
    }
}
