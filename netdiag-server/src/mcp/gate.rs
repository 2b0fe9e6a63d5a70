//! Who may use the HTTP endpoint. The gate itself (TokenReview, SubjectAccessReview) is given by whoever serves.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{AppendHeaders, IntoResponse, Response};
use axum::{Json, Router};
use http::StatusCode;
use http::header::{self, HeaderName};
use rmcp::model::Extensions;

use crate::probe::{Denied, Rights};

/// A user as the API server's TokenReview describes one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Caller {
    pub user: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl Caller {
    /// Whoever is on the other end of stdio, or of a loopback where nobody has to say who they are.
    pub fn is_nameless(&self) -> bool {
        self.user.is_empty()
    }
}

type Check<'g, T> = Pin<Box<dyn Future<Output = Result<T, Denied>> + Send + 'g>>;

/// Checks tokens and rights.
pub trait Gate: Send + Sync {
    /// Whether who sends no bearer is let in, as a nameless [`Caller`]. What they may do is asked as of others.
    fn lets_nameless_look(&self) -> bool {
        false
    }

    /// Whose token this is.
    fn identify<'g>(&'g self, bearer: &'g str) -> Check<'g, Caller>;

    /// Whether the caller may send probes from pods of this namespace; empty stands for the nodes themselves.
    fn may_probe<'g>(&'g self, caller: &'g Caller, namespace: &'g str) -> Check<'g, ()>;

    /// Whether the caller may choose what is sent from there, where to and how often.
    fn may_choose_probes<'g>(&'g self, caller: &'g Caller, namespace: &'g str) -> Check<'g, ()>;

    /// Whether the caller may be told the certificate of a Secret.
    fn may_get_secret<'g>(&'g self, caller: &'g Caller, namespace: &'g str, name: &'g str) -> Check<'g, ()>;
}

/// What the gate says of one caller; without a gate there is nobody to ask.
pub(crate) struct CallerRights<'c> {
    pub gate: Option<&'c dyn Gate>,
    pub caller: &'c Caller,
}

impl Rights for CallerRights<'_> {
    async fn may_start(&self, namespace: &str) -> Result<(), Denied> {
        let Some(gate) = self.gate else { return Ok(()) };
        gate.may_choose_probes(self.caller, namespace).await
    }

    async fn may_get_secret(&self, namespace: &str, name: &str) -> Result<(), Denied> {
        let Some(gate) = self.gate else { return Ok(()) };
        gate.may_get_secret(self.caller, namespace, name).await
    }
}

/// What every route answers instead of a result; a 401 says what would be accepted (RFC 9110, 11.6.1).
pub(crate) fn error(status: StatusCode, why: &str) -> Response {
    const CHALLENGE: [(HeaderName, &str); 1] = [(header::WWW_AUTHENTICATE, "Bearer realm=\"netdiag\"")];
    let challenge = (status == StatusCode::UNAUTHORIZED).then_some(AppendHeaders(CHALLENGE));
    (status, challenge, Json(serde_json::json!({"error": why}))).into_response()
}

/// Every route of the router asks the gate first.
pub(crate) fn guard(router: Router, gate: Arc<dyn Gate>) -> Router {
    router.layer(from_fn_with_state(gate, check))
}

/// Middleware: puts the [`Caller`] into the request, or answers in its place.
async fn check(State(gate): State<Arc<dyn Gate>>, mut request: Request, next: Next) -> Response {
    let sent = request.headers().get(header::AUTHORIZATION);
    let says_nothing = sent.is_none();
    let bearer = sent.and_then(|value| value.to_str().ok());
    let bearer = bearer.and_then(|value| value.strip_prefix("Bearer ")).map(str::to_owned);
    let caller = match &bearer {
        Some(bearer) => gate.identify(bearer).await,
        None if says_nothing && gate.lets_nameless_look() => Ok(Caller::default()),
        None => Err(Denied::Unauthenticated("send a ServiceAccount token as Authorization: Bearer TOKEN".to_owned())),
    };
    match caller {
        Ok(caller) => {
            request.extensions_mut().insert(caller);
            next.run(request).await
        }
        Err(denied) => error(denied.status(), &denied.to_string()),
    }
}

/// Who called: by HTTP as the gate said, by stdio nobody by name, which is the user who started the process.
pub(super) fn caller(extensions: &Extensions) -> Caller {
    let parts = extensions.get::<http::request::Parts>();
    parts.and_then(|parts| parts.extensions.get::<Caller>()).cloned().unwrap_or_default()
}
