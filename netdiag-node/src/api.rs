//! The agent's HTTP interface: `POST /v1/readings`, `GET /v1/status`, `GET /healthz`.
//!
//! Everything is capped: the body, the needs, the time, the requests at one time. What is over a cap is refused in words.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures::future::join_all;
use netdiag_common::wire::{Ask, MAX_NEEDS, NodeReading, Refusal, Report, WIRE_MAX, WIRE_MIN};
use netdiag_common::{Need, Reading, Topic};
use serde_json::Value;
use tokio::sync::Semaphore;

use crate::readings::Readings;
use crate::tls::Tls;
use crate::{clock, gap};

/// [`MAX_NEEDS`] needs of 1 KiB each.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// Requests at one time. A node has one server, rarely two; the rest is told to come back.
const MAX_REQUESTS: usize = 8;
/// Longest time for one request, whatever the server asks for. Covers 16 probes of one second, and a trace of 30 seconds,
/// with room.
const MAX_BUDGET: Duration = Duration::from_secs(35);
/// The status page reads nothing that can wait.
const STATUS_BUDGET: Duration = Duration::from_secs(5);

/// What the handlers share.
pub struct Api {
    readings: Arc<Readings>,
    tls: Arc<Tls>,
    life: Life,
    sequence: AtomicU64,
    requests: Semaphore,
}

/// What tells this life of the agent apart from others, also from other boots.
#[derive(Debug, Clone)]
pub struct Life {
    pub boot_id: String,
    /// Random for each start.
    pub instance: String,
}

/// The routes.
pub fn router(readings: Arc<Readings>, tls: Arc<Tls>, life: Life) -> Router {
    let requests = Semaphore::new(MAX_REQUESTS);
    let api = Api { readings, tls, life, sequence: AtomicU64::new(0), requests };
    Router::new()
        .route("/v1/readings", post(readings_of))
        .route("/v1/status", get(status))
        .route("/healthz", get(|| async { "ok" }))
        .fallback(|| async { refusal(StatusCode::NOT_FOUND, "no such path: try POST /v1/readings or GET /v1/status") })
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(Arc::new(api))
}

async fn readings_of(State(api): State<Arc<Api>>, body: Result<Bytes, BytesRejection>) -> Response {
    let Ok(_place) = api.requests.try_acquire() else { return api.shed() };
    let ask = match body.map_err(|rejection| too_large(&rejection)).and_then(|body| decode(&body)) {
        Ok(ask) => ask,
        Err((status, error)) => return refusal(status, &error),
    };
    let started = Instant::now();
    let budget = Duration::from_millis(ask.budget_ms).min(MAX_BUDGET);
    let readings = join_all(ask.needs.into_iter().map(|raw| api.read(raw, budget))).await;
    tracing::debug!(needs = readings.len(), took_ms = started.elapsed().as_millis(), "answered");
    Json(api.report(readings)).into_response()
}

/// The agent itself: a report with one reading.
async fn status(State(api): State<Arc<Api>>) -> Response {
    let need = Need::host(api.readings.node(), Topic::Preflight);
    let reading = api.readings.read(&need, STATUS_BUDGET, api.tls.expires()).await;
    Json(api.report(vec![NodeReading { need, reading }])).into_response()
}

impl Api {
    async fn read(&self, raw: Value, budget: Duration) -> NodeReading<Value> {
        let reading = match serde_json::from_value::<Need>(raw.clone()) {
            Ok(need) => self.readings.read(&need, budget, self.tls.expires()).await,
            Err(error) => Reading::Unavailable { gap: gap::undecodable(self.readings.node(), &raw, &error) },
        };
        NodeReading { need: raw, reading }
    }

    fn report<N>(&self, readings: Vec<NodeReading<N>>) -> Report<N> {
        Report {
            wire: WIRE_MAX,
            agent: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.readings.node().to_owned(),
            boot_id: self.life.boot_id.clone(),
            instance: self.life.instance.clone(),
            at: clock::now(),
            boottime_ns: clock::boottime_ns(),
            sequence: self.sequence.fetch_add(1, Ordering::Relaxed),
            readings,
        }
    }

    fn shed(&self) -> Response {
        self.readings.shed.fetch_add(1, Ordering::Relaxed);
        let error = format!("busy with {MAX_REQUESTS} requests, which is the limit: ask again in a second");
        refusal(StatusCode::SERVICE_UNAVAILABLE, &error)
    }
}

type Refused = (StatusCode, String);

fn decode(body: &[u8]) -> Result<Ask<Value>, Refused> {
    let bad = |error: String| (StatusCode::BAD_REQUEST, error);
    let raw: Value = serde_json::from_slice(body).map_err(|error| bad(format!("the body is not JSON: {error}")))?;
    // Looked at first: a request of another version need not have the fields that we know.
    let wire =
        raw.get("wire").and_then(Value::as_u64).ok_or_else(|| bad("the body has no number `wire`".to_owned()))?;
    if !(u64::from(WIRE_MIN)..=u64::from(WIRE_MAX)).contains(&wire) {
        let error = format!(
            "the server speaks wire version {wire}, this agent (netdiag-node {}) speaks {WIRE_MIN} to {WIRE_MAX}: upgrade the older one",
            env!("CARGO_PKG_VERSION")
        );
        return Err(bad(error));
    }
    let ask: Ask<Value> =
        serde_json::from_value(raw).map_err(|error| bad(format!("the body is not a question: {error}")))?;
    if ask.needs.len() > MAX_NEEDS {
        return Err(bad(format!("{} needs in one request, {MAX_NEEDS} are the limit: split it", ask.needs.len())));
    }
    Ok(ask)
}

fn too_large(rejection: &BytesRejection) -> Refused {
    match rejection.status() {
        StatusCode::PAYLOAD_TOO_LARGE => (
            StatusCode::PAYLOAD_TOO_LARGE,
            format!("the body is longer than {MAX_BODY_BYTES} bytes, which is the limit"),
        ),
        status => (status, rejection.body_text()),
    }
}

fn refusal(status: StatusCode, error: &str) -> Response {
    (status, Json(Refusal { error: error.to_owned(), wire_min: WIRE_MIN, wire_max: WIRE_MAX })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(body: &str) -> String {
        decode(body.as_bytes()).unwrap_err().1
    }

    #[test]
    fn other_wire_version_names_both_sides() {
        let error = error_of(r#"{"wire": 9, "questions": []}"#);
        assert!(error.contains("version 9") && error.contains("speaks 1 to 1"), "{error}");
    }

    #[test]
    fn broken_bodies_are_told_apart() {
        assert!(error_of("{").starts_with("the body is not JSON"));
        assert!(error_of("{}").contains("no number `wire`"));
        assert!(error_of(r#"{"wire": 1}"#).starts_with("the body is not a question: missing field"));
    }

    #[test]
    fn too_many_needs_are_refused() {
        let needs = vec!["{}"; MAX_NEEDS + 1].join(",");
        let error = error_of(&format!(r#"{{"wire": 1, "budget_ms": 1, "needs": [{needs}]}}"#));
        assert!(error.starts_with("257 needs"), "{error}");
    }
}
