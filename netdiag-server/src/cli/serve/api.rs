//! The server's HTTP API: `POST /v1/{diagnose,drift,mesh,observe,probe,scan,status,trace}`,
//! `GET /probe` for scrape configurations of blackbox_exporter, `/healthz`, `/readyz`. Errors are `{"error": …}`.

use std::sync::Arc;

use axum::extract::rejection::JsonRejection;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Extension, Json, Router};
use http::StatusCode;
use netdiag_common::observation::mesh::MAX_AUTHORITIES_BYTES;
use tokio::sync::Semaphore;

use super::blackbox::{self, Modules};
use crate::answer::{self, probe::ProbeAnswer};
use crate::ask::{self, LiveSource, Source};
use crate::cli::Failure;
use crate::cli::drift::{DriftRequest, drift_with};
use crate::cli::mesh::{MeshRequest, mesh_with};
use crate::cli::probe::probe_with;
use crate::cli::request::{DiagnoseRequest, ScanRequest};
use crate::cli::scan::scan_with;
use crate::cli::trace::{TraceRequest, trace_with};
use crate::mcp::{Caller, CallerRights, Denied, Gate, error, guard};
use crate::mesh::MAX_USER_TARGETS;
use crate::mesh::rounds::Rounds;
use crate::observed::Wanted;
use crate::probe::{self, ProbeRequest, Rights as _, RunError};
use crate::question::Origin;

/// Questions answered at the same time; each holds one snapshot and its readings.
const MAX_QUESTIONS: usize = 8;
/// Requests to probe at the same time; each may last two minutes, so that they have places of their own.
const MAX_PROBES: usize = 16;
/// A question is a few names.
const MAX_BODY_BYTES: usize = 64 * 1024;
/// Of one target of a mesh, besides its authorities: a URL of 2 KiB, 500 statuses, names.
const MAX_TARGET_BYTES: usize = 8 * 1024;
/// A question about a mesh has targets; JSON writes each of PEM's ends of line as two bytes.
const MAX_MESH_BODY_BYTES: usize = MAX_USER_TARGETS * (2 * MAX_AUTHORITIES_BYTES + MAX_TARGET_BYTES);

#[derive(Clone)]
pub(super) struct Api {
    pub(super) source: Arc<LiveSource>,
    gate: Arc<dyn Gate>,
    questions: Arc<Semaphore>,
    probes: Arc<Semaphore>,
    /// The one that this server keeps going.
    mesh: Option<Arc<Rounds>>,
    pub(super) modules: Arc<Modules>,
}

pub(super) fn router(
    source: Arc<LiveSource>,
    gate: Arc<dyn Gate>,
    kept: Option<Arc<Rounds>>,
    modules: Modules,
) -> Router {
    let api = Api {
        source,
        gate: gate.clone(),
        questions: Arc::new(Semaphore::new(MAX_QUESTIONS)),
        probes: Arc::new(Semaphore::new(MAX_PROBES)),
        mesh: kept,
        modules: Arc::new(modules),
    };
    let router = Router::new()
        .route("/v1/diagnose", post(diagnose))
        .route("/v1/drift", post(drift))
        .route("/v1/mesh", post(mesh).layer(DefaultBodyLimit::max(MAX_MESH_BODY_BYTES)))
        .route("/v1/observe", post(observe))
        .route("/v1/probe", post(probe))
        .route("/probe", get(blackbox::probe))
        .route("/v1/scan", post(scan))
        .route("/v1/status", post(status))
        .route("/v1/trace", post(trace))
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .with_state(api);
    guard(router, gate)
}

/// For the kubelet: no secrets, no token.
pub(super) fn health(source: Arc<LiveSource>) -> Router {
    let ready = move || {
        let is_ready = source.is_ready();
        async move {
            if is_ready {
                (StatusCode::OK, "ok")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "objects are being listed")
            }
        }
    };
    Router::new().route("/healthz", get(|| async { "ok" })).route("/readyz", get(ready))
}

/// What is said instead of a result.
pub(super) struct Refused(pub(super) StatusCode, pub(super) String);

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        error(self.0, &self.1)
    }
}

impl From<Failure> for Refused {
    fn from(Failure(message): Failure) -> Self {
        Self(StatusCode::UNPROCESSABLE_ENTITY, message)
    }
}

impl From<RunError> for Refused {
    fn from(error: RunError) -> Self {
        let status = match &error {
            RunError::Right(denied) => denied.status(),
            RunError::Plan(_) => StatusCode::BAD_REQUEST,
        };
        Self(status, error.to_string())
    }
}

type Asked<T> = Result<Json<T>, JsonRejection>;

fn body<T>(asked: Asked<T>) -> Result<T, Refused> {
    asked.map(|Json(request)| request).map_err(|error| Refused(error.status(), error.body_text()))
}

impl Api {
    fn busy() -> Refused {
        let message = format!("{MAX_QUESTIONS} questions are being answered right now; ask again in a few seconds");
        Refused(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub(super) async fn probe(
        &self,
        caller: Option<Extension<Caller>>,
        request: &ProbeRequest,
    ) -> Result<ProbeAnswer, Refused> {
        let busy = |_| {
            let message =
                format!("{MAX_PROBES} requests to probe are being answered right now; ask again in a few seconds");
            Refused(StatusCode::SERVICE_UNAVAILABLE, message)
        };
        let caller = known(caller);
        let rights = CallerRights { gate: Some(&*self.gate), caller: &caller };
        let cluster = self.source.cluster().await.map_err(Failure::from)?;
        let plan = probe::plan(request, &cluster).map_err(RunError::from)?;
        // Also before a place is taken: who may not probe takes none from who may.
        rights.may_start(probe::namespace_of(&plan.client)).await.map_err(RunError::from)?;
        let _permit = self.probes.try_acquire().map_err(busy)?;
        Ok(probe_with(&self.source, cluster, plan, &rights, Some(caller.user.clone())).await?)
    }

    /// The few attempts of a question, along the way that it asks about. `instead` is how to ask without.
    async fn allow_probes(&self, caller: &Caller, from: &Origin, instead: &str) -> Result<(), Refused> {
        self.gate.may_probe(caller, namespace_of(from)).await.map_err(|denied| refused(&denied, instead))
    }

    /// More than those: the right to choose probes.
    async fn allow_chosen(&self, caller: &Caller, from: &Origin, instead: &str) -> Result<(), Refused> {
        self.gate.may_choose_probes(caller, namespace_of(from)).await.map_err(|denied| refused(&denied, instead))
    }
}

/// As the gate said.
fn known(caller: Option<Extension<Caller>>) -> Caller {
    caller.map(|Extension(caller)| caller).unwrap_or_default()
}

/// Probes start in a namespace, or on the nodes themselves.
fn namespace_of(from: &Origin) -> &str {
    if let Origin::Pod { namespace, .. } = from { namespace.as_str() } else { "" }
}

fn refused(denied: &Denied, instead: &str) -> Refused {
    Refused(denied.status(), format!("{denied}; ask again {instead}"))
}

async fn diagnose(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    asked: Asked<DiagnoseRequest>,
) -> Result<Response, Refused> {
    let request = body(asked)?;
    let question = request.question().map_err(|error| Refused(StatusCode::BAD_REQUEST, error.to_string()))?;
    if !request.no_probe {
        api.allow_probes(&known(caller), &question.from, "with --no-probe").await?;
    }
    let _permit = api.questions.try_acquire().map_err(|_| Api::busy())?;
    let inquiry = ask::ask(&api.source, &question).await.map_err(Failure::from)?;
    Ok(Json(answer::build(&inquiry)).into_response())
}

async fn scan(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    asked: Asked<ScanRequest>,
) -> Result<Response, Refused> {
    let request = body(asked)?;
    if !request.no_probe {
        api.allow_probes(&known(caller), &Origin::EveryNode, "with --no-probe").await?;
    }
    let _permit = api.questions.try_acquire().map_err(|_| Api::busy())?;
    Ok(Json(scan_with(&api.source, &request).await?).into_response())
}

async fn drift(State(api): State<Api>, asked: Asked<DriftRequest>) -> Result<Response, Refused> {
    let request = body(asked)?;
    let _permit = api.questions.try_acquire().map_err(|_| Api::busy())?;
    Ok(Json(drift_with(&api.source, &request).await?).into_response())
}

/// What this server's mesh has seen; without one, a short one is run, which is to probe.
async fn mesh(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    asked: Asked<MeshRequest>,
) -> Result<Response, Refused> {
    let request = body(asked)?;
    if api.mesh.is_none() && !request.only_kept {
        let instead = "when the server keeps a mesh (`netdiag serve --mesh`)";
        api.allow_chosen(&known(caller), &Origin::EveryNode, instead).await?;
    }
    let _permit = api.questions.try_acquire().map_err(|_| Api::busy())?;
    Ok(Json(mesh_with(&api.source, api.source.agent_port(), api.mesh.as_deref(), &request).await?).into_response())
}

async fn observe(State(api): State<Api>, asked: Asked<Wanted>) -> Result<Response, Refused> {
    let wanted = body(asked)?;
    let _permit = api.questions.try_acquire().map_err(|_| Api::busy())?;
    let cluster = api.source.cluster().await.map_err(Failure::from)?;
    Ok(Json(ask::observe(&api.source, cluster, &wanted).await.map_err(Failure::from)?).into_response())
}

/// To arm traces is more than to probe, and needs the right to do that; the agents' own configuration decides besides. Counters
/// need attempts.
async fn trace(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    asked: Asked<TraceRequest>,
) -> Result<Response, Refused> {
    let request = body(asked)?;
    let bad = |Failure(why): Failure| Refused(StatusCode::BAD_REQUEST, why);
    let (question, without) = (request.question().map_err(bad)?, request.without().map_err(bad)?);
    let caller = known(caller);
    if request.armed {
        api.allow_chosen(&caller, &question.from, "without --armed").await?;
    } else if request.counters {
        api.allow_probes(&caller, &question.from, "without --counters").await?;
    }
    let _permit = api.questions.try_acquire().map_err(|_| Api::busy())?;
    Ok(Json(trace_with(&api.source, &question, without, Some(&caller.user)).await?).into_response())
}

/// What is sent, where to and how often is the caller's choice: that takes a right of its own.
async fn probe(
    State(api): State<Api>,
    caller: Option<Extension<Caller>>,
    asked: Asked<ProbeRequest>,
) -> Result<Response, Refused> {
    let request = body(asked)?;
    Ok(Json(api.probe(caller, &request).await?).into_response())
}

async fn status(State(api): State<Api>) -> Result<Response, Refused> {
    let _permit = api.questions.try_acquire().map_err(|_| Api::busy())?;
    Ok(Json(ask::status(&api.source).await.map_err(Failure::from)?).into_response())
}

#[cfg(test)]
mod tests;
