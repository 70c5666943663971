//! Logs and metrics, set up once per process however many nodes it runs. Every metric is named here.

use std::{io::IsTerminal as _, sync::OnceLock, time::Duration};

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

use crate::{
    config::{Log, LogFormat},
    error::{Error, Result},
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
}

use Kind::{Counter, Gauge, Histogram};

/// Every metric: its name, what it is and what it counts. Labels never hold what a peer or a user chose.
const METRICS: &[(&str, Kind, &str)] = &[
    ("skiserver_info", Gauge, "1, with the version of this node"),
    (
        "skiserver_calls_total",
        Counter,
        "Calls answered, by RPC and response code",
    ),
    (
        "skiserver_call_seconds",
        Histogram,
        "Time from a call to its answer, by RPC",
    ),
    (
        "skiserver_connections_refused_total",
        Counter,
        "Connections refused, by door and reason",
    ),
    (
        "skiserver_auth_codes_total",
        Counter,
        "Auth codes given to the gateway, by outcome",
    ),
    ("skiserver_streams", Gauge, "Open streams"),
    (
        "skiserver_stream_ignored_total",
        Counter,
        "Messages on streams that clients don't send there",
    ),
    (
        "skiserver_messages_delivered_total",
        Counter,
        "Messages handed to streams",
    ),
    (
        "skiserver_messages_rejected_total",
        Counter,
        "Messages consumed as failed, by state and payload",
    ),
    (
        "skiserver_dropped_total",
        Counter,
        "Messages answered with success and dropped, by reason",
    ),
    (
        "skiserver_mailbox_rows",
        Gauge,
        "Messages waiting for devices",
    ),
    (
        "skiserver_mailbox_dropped_total",
        Counter,
        "Messages dropped unconsumed, by reason",
    ),
    (
        "skiserver_outbox_rows",
        Gauge,
        "Requests waiting for other domains",
    ),
    (
        "skiserver_outbox_oldest_seconds",
        Gauge,
        "Age of the oldest request that waits",
    ),
    (
        "skiserver_outbox_told_total",
        Counter,
        "Requests whose sender was told of their fate, by state",
    ),
    (
        "skiserver_deliveries_total",
        Counter,
        "Attempts to deliver to other domains, by outcome",
    ),
    (
        "skiserver_peers_silent",
        Gauge,
        "Domains that do not answer",
    ),
    (
        "skiserver_one_time_keys_issued_total",
        Counter,
        "One-time keys handed out, by kind of caller",
    ),
    (
        "skiserver_one_time_keys_withheld_total",
        Counter,
        "One-time keys kept from callers that had their share",
    ),
    (
        "skiserver_one_time_keys_missing_total",
        Counter,
        "Bundles without a one-time key, because none was left",
    ),
    (
        "skiserver_bundles_rejected_total",
        Counter,
        "Answers of peers for bundles that can't be used",
    ),
    (
        "skiserver_store_batch_writes",
        Histogram,
        "Writes merged into one commit",
    ),
    (
        "skiserver_store_commit_seconds",
        Histogram,
        "Time of a merged transaction with its commit",
    ),
    (
        "skiserver_store_commit_errors_total",
        Counter,
        "Commits whose outcome is unknown",
    ),
    (
        "skiserver_store_split_batches_total",
        Counter,
        "Batches that failed and whose writes ran one by one",
    ),
    (
        "skiserver_store_slow_transactions_total",
        Counter,
        "Transactions rolled back for being open too long",
    ),
    (
        "skiserver_store_expired_total",
        Counter,
        "Rows deleted at the end of their life, by table",
    ),
    (
        "skiserver_store_free_pages",
        Gauge,
        "Pages of the database file that hold nothing",
    ),
    (
        "skiserver_store_log_pages",
        Gauge,
        "Pages of the write-ahead log",
    ),
];

/// Bounds of the buckets of times.
const SECONDS: [f64; 13] = [
    0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0,
];
/// Bounds of the buckets of counts.
const COUNTS: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];

/// Histograms are drained at this interval, or they grow between two scrapes.
const UPKEEP_EVERY: Duration = Duration::from_secs(5);

static PROMETHEUS: OnceLock<Option<PrometheusHandle>> = OnceLock::new();

/// Sets up logs and metrics. Only the first call of a process counts. Logs go to standard error, because
/// commands print on standard output.
pub fn init(log: &Log) {
    let (filter, problem) = match EnvFilter::try_new(&log.filter) {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    let first = match log.format {
        LogFormat::Text => lines.try_init(),
        LogFormat::Json => lines.json().flatten_event(true).try_init(),
    };
    if let (Ok(()), Some(error)) = (first, problem) {
        tracing::warn!(%error, "log.filter can't be read, so `info` is used");
    }
    prometheus();
}

/// All metrics in the text format of Prometheus; empty if another recorder was there first.
pub fn render() -> String {
    prometheus()
        .map(PrometheusHandle::render)
        .unwrap_or_default()
}

/// Keeps histograms small until the node stops. Several nodes of one process do no harm to each other.
pub async fn upkeep(stop: CancellationToken) {
    let Some(handle) = prometheus() else { return };
    while stop
        .run_until_cancelled(tokio::time::sleep(UPKEEP_EVERY))
        .await
        .is_some()
    {
        handle.run_upkeep();
    }
}

fn prometheus() -> Option<&'static PrometheusHandle> {
    let handle = PROMETHEUS.get_or_init(|| {
        let installed = install();
        if let Err(error) = &installed {
            tracing::warn!(%error, "metrics are not collected");
        }
        installed.ok()
    });
    handle.as_ref()
}

fn install() -> Result<PrometheusHandle> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), &SECONDS)
        .and_then(|builder| {
            builder.set_buckets_for_metric(Matcher::Suffix("_writes".to_owned()), &COUNTS)
        })
        .and_then(PrometheusBuilder::install_recorder)
        .map_err(Error::internal)?;
    for (name, kind, help) in METRICS {
        match kind {
            Counter => metrics::describe_counter!(*name, *help),
            Gauge => metrics::describe_gauge!(*name, *help),
            Histogram => metrics::describe_histogram!(*name, *help),
        }
    }
    metrics::gauge!("skiserver_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use crate::testing::Must as _;
    use std::{collections::BTreeMap, fs, path::Path};

    use super::*;

    /// Adds every metric that the sources under `folder` record.
    fn recorded(folder: &Path, found: &mut BTreeMap<String, Kind>) {
        for entry in fs::read_dir(folder).must() {
            let path = entry.must().path();
            if path.is_dir() {
                recorded(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).must();
                for (call, kind) in [
                    ("counter!(", Counter),
                    ("gauge!(", Gauge),
                    ("histogram!(", Histogram),
                ] {
                    for rest in text.split(call).skip(1) {
                        let name = rest
                            .trim_start()
                            .strip_prefix('"')
                            .and_then(|rest| rest.split('"').next());
                        if let Some(name) = name.filter(|name| name.starts_with("skiserver_")) {
                            found.insert(name.to_owned(), kind);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn every_metric_that_is_recorded_is_named_here_and_the_other_way_round() {
        let mut found = BTreeMap::new();

        recorded(
            &Path::new(env!("CARGO_MANIFEST_DIR")).join("src"),
            &mut found,
        );

        let named = METRICS
            .iter()
            .map(|(name, kind, _)| ((*name).to_owned(), *kind))
            .collect();
        assert_eq!(found, named);
    }

    #[tokio::test]
    async fn metrics_are_set_up_once_and_shown_with_buckets_and_words() {
        init(&Log::default());
        init(&Log {
            format: LogFormat::Json,
            filter: "no=such=filter".to_owned(),
        });
        metrics::histogram!("skiserver_store_commit_seconds").record(0.002);
        let stop = CancellationToken::new();
        stop.cancel();
        upkeep(stop).await;

        let text = render();

        let help = "# HELP skiserver_store_commit_seconds Time of a merged";
        for line in [
            "skiserver_info{version=",
            help,
            "skiserver_store_commit_seconds_bucket{le=\"0.0025\"}",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
