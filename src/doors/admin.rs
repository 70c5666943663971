//! The operator's door, on loopback only: health, readiness, metrics and commands.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    routing::{get, post},
};
use serde::{Deserialize, Serialize};

use crate::{
    error::Error,
    node::Node,
    operations::invitations,
    store::{mailbox, outbox},
    telemetry,
};

/// The routes of the admin door.
pub fn router(node: Arc<Node>) -> Router {
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready))
        .route("/metrics", get(metrics_text))
        .route("/version", get(version))
        .route("/invitations", post(invite))
        .with_state(node)
}

/// The process runs.
async fn health() -> &'static str {
    "ok\n"
}

/// The node takes calls: its store answers and it is not closing.
async fn ready(State(node): State<Arc<Node>>) -> (StatusCode, &'static str) {
    if node.stop.is_cancelled() {
        return (StatusCode::SERVICE_UNAVAILABLE, "closing\n");
    }
    match mailbox::count(&node.store).await {
        Ok(_) => (StatusCode::OK, "ready\n"),
        Err(_) => (
            StatusCode::SERVICE_UNAVAILABLE,
            "the store does not answer\n",
        ),
    }
}

/// Metrics in the text format of Prometheus; those about tables are read when asked for.
async fn metrics_text(State(node): State<Arc<Node>>) -> Result<String, StatusCode> {
    let waiting = mailbox::count(&node.store)
        .await
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let outgoing = outbox::counts(&node.store)
        .await
        .map_err(|_| StatusCode::SERVICE_UNAVAILABLE)?;
    let rows: i64 = outgoing.iter().map(|(_, rows, _)| rows).sum();
    let oldest = outgoing.iter().map(|(_, _, since)| *since).min();
    let age_ms = oldest.map_or(0, |since| node.clock.now_ms() - since);
    let seconds = std::time::Duration::from_millis(u64::try_from(age_ms).unwrap_or(0));
    metrics::gauge!("skiserver_mailbox_rows").set(exact(waiting));
    metrics::gauge!("skiserver_outbox_rows").set(exact(rows));
    metrics::gauge!("skiserver_outbox_oldest_seconds").set(seconds.as_secs_f64());
    Ok(telemetry::render())
}

/// A count as a gauge takes it; nobody has more rows than a double counts exactly.
fn exact(count: i64) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

async fn version() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), "\n")
}

/// Who invites.
#[derive(Deserialize)]
struct InviteRequest {
    from: String,
}

/// The code that a new user registers with.
#[derive(Serialize)]
struct InviteReply {
    code: String,
}

async fn invite(
    State(node): State<Arc<Node>>,
    Json(request): Json<InviteRequest>,
) -> Result<Json<InviteReply>, (StatusCode, String)> {
    let code = invitations::create(&node, &request.from).await;
    code.map(|code| Json(InviteReply { code }))
        .map_err(|error| (status_of(&error), error.to_string()))
}

fn status_of(error: &Error) -> StatusCode {
    match error {
        Error::Invalid(_) => StatusCode::BAD_REQUEST,
        Error::NotFound(_) => StatusCode::NOT_FOUND,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}
