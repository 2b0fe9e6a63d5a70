//! Who may use the HTTP endpoint. The gate itself (TokenReview, SubjectAccessReview) is given by whoever serves.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use http::{StatusCode, header};
use rmcp::model::Extensions;

use crate::probe::{NoRight, Rights};

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

/// Why somebody is not let in. The text is shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Denied {
    /// No bearer, or one that is not valid: 401.
    Unauthenticated(String),
    /// Known, but not allowed: 403.
    Forbidden(String),
    /// The check itself failed: 503, try again.
    Unavailable(String),
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
    async fn may_start(&self, namespace: &str) -> Result<(), NoRight> {
        let Some(gate) = self.gate else { return Ok(()) };
        gate.may_choose_probes(self.caller, namespace).await.map_err(no_right)
    }

    async fn may_get_secret(&self, namespace: &str, name: &str) -> Result<(), NoRight> {
        let Some(gate) = self.gate else { return Ok(()) };
        gate.may_get_secret(self.caller, namespace, name).await.map_err(no_right)
    }
}

fn no_right(denied: Denied) -> NoRight {
    NoRight { text: denied.text().to_owned(), is_passing: matches!(denied, Denied::Unavailable(_)) }
}

impl Denied {
    pub fn text(&self) -> &str {
        match self {
            Self::Unauthenticated(text) | Self::Forbidden(text) | Self::Unavailable(text) => text,
        }
    }
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
        Err(denied) => {
            // As every error of the API.
            let text = Json(serde_json::json!({"error": denied.text()}));
            match denied {
                Denied::Unauthenticated(_) => {
                    (StatusCode::UNAUTHORIZED, [(header::WWW_AUTHENTICATE, "Bearer realm=\"netdiag\"")], text)
                        .into_response()
                }
                Denied::Forbidden(_) => (StatusCode::FORBIDDEN, text).into_response(),
                Denied::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, text).into_response(),
            }
        }
    }
}

/// Who called: by HTTP as the gate said, by stdio nobody by name, which is the user who started the process.
pub(super) fn caller(extensions: &Extensions) -> Caller {
    let parts = extensions.get::<http::request::Parts>();
    parts.and_then(|parts| parts.extensions.get::<Caller>()).cloned().unwrap_or_default()
}
