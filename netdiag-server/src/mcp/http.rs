//! MCP over streamable HTTP: one axum router, guarded by allowed hosts, a body limit and, when there is one, the gate.

use std::sync::Arc;

use axum::Router;
use rmcp::transport::streamable_http_server::session::never::NeverSessionManager;
use rmcp::transport::streamable_http_server::{StreamableHttpServerConfig, StreamableHttpService};

use super::{Handler, State, gate};
use crate::ask::Source;

/// The largest tool call is a few names; this leaves room for `_meta`.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// How the endpoint is reached.
#[derive(Debug, Clone, Default)]
pub struct HttpOptions {
    /// Values of `Host` besides loopback that are answered: Service names, an ingress host. Others get 403, which keeps
    /// web pages from reaching a local server under a name of their own.
    pub allowed_hosts: Vec<String>,
    /// Stops open streams when the server stops.
    pub shutdown: tokio_util::sync::CancellationToken,
}

/// `POST /mcp`.
pub fn router<S: Source + Send + 'static>(state: Arc<State<S>>, options: HttpOptions) -> Router {
    let loopback = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let config = StreamableHttpServerConfig::default()
        // No tool talks back to the client, so no session is worth keeping; both eras are answered statelessly.
        .with_legacy_session_mode(false)
        .with_json_response(true)
        .with_allowed_hosts(loopback.into_iter().chain(options.allowed_hosts))
        .with_allowed_origins(["http://localhost:*", "http://127.0.0.1:*", "http://[::1]:*"])
        .with_max_request_body_bytes(MAX_BODY_BYTES)
        .with_cancellation_token(options.shutdown);
    let gate = state.gate.clone();
    let handler = Handler { state };
    let service =
        StreamableHttpService::new(move || Ok(handler.clone()), Arc::new(NeverSessionManager::default()), config);
    let router = Router::new().nest_service("/mcp", service);
    match gate {
        Some(gate) => gate::guard(router, gate),
        None => router,
    }
}
