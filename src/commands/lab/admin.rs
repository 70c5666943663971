//! What a node's admin door tells the lab: whether it is ready, and how much it holds for others.

use std::{net::SocketAddr, time::Duration};

use reqwest::Client;

/// A node that does not answer within this time is down.
const PATIENCE: Duration = Duration::from_millis(800);

/// Messages and requests that wait in a node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Depth {
    /// Messages that wait for devices of the domain.
    pub(super) mailbox: u64,
    /// Requests that wait for other domains.
    pub(super) outbox: u64,
}

/// Asks admin doors. They listen on loopback without TLS.
#[derive(Debug, Clone)]
pub(super) struct Admin {
    http: Client,
}

impl Admin {
    /// A client that uses no proxy and needs no certificates.
    pub(super) fn new() -> reqwest::Result<Self> {
        let http = Client::builder()
            .no_proxy()
            .tls_certs_only([])
            .pool_max_idle_per_host(0)
            .timeout(PATIENCE)
            .build()?;
        Ok(Self { http })
    }

    /// Whether the node at this door takes requests.
    pub(super) async fn is_ready(&self, door: SocketAddr) -> bool {
        let answer = self.http.get(format!("http://{door}/ready")).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// What waits in the node at this door.
    pub(super) async fn depth(&self, door: SocketAddr) -> Option<Depth> {
        let answer = self
            .http
            .get(format!("http://{door}/metrics"))
            .send()
            .await
            .ok()?;
        let text = answer.error_for_status().ok()?.text().await.ok()?;
        Some(Depth {
            mailbox: sum(&text, "skiserver_mailbox_rows"),
            outbox: sum(&text, "skiserver_outbox_rows"),
        })
    }
}

/// The values of one gauge, over all its labels.
fn sum(metrics: &str, name: &str) -> u64 {
    metrics
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with([' ', '{']))
        .filter_map(|rest| rest.rsplit_once(' ')?.1.parse::<f64>().ok())
        .filter(|value| value.is_finite() && *value > 0.0)
        .map(whole)
        .sum()
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the value is finite and positive, and a cast stops at the largest number"
)]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gauge_is_summed_over_its_labels_and_not_mixed_with_others() {
        let metrics = "# TYPE skiserver_outbox_rows gauge\n\
                       skiserver_outbox_rows{peer=\"b.test\"} 3\n\
                       skiserver_outbox_rows{peer=\"c test\"} 4\n\
                       skiserver_outbox_rows_max 900\n\
                       skiserver_mailbox_rows 12\n";

        assert_eq!(sum(metrics, "skiserver_outbox_rows"), 7);
        assert_eq!(sum(metrics, "skiserver_mailbox_rows"), 12);
        assert_eq!(sum(metrics, "skiserver_streams"), 0);
    }
}
