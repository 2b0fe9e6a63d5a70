//! The tools of netdiag's server in the cluster, for one client of this process: what it calls is passed on, one POST to the server's
//! `/mcp` for each call.
//!
//! Sessions, versions of the protocol, pings and cancellations end here: the server keeps nothing for a client, so that there is no
//! session between it and this process that could be lost.

use std::sync::Arc;
use std::time::Duration;

use rmcp::model::{
    CallToolRequestParams, CallToolResponse, CallToolResult, ListToolsResult, PaginatedRequestParams, ResultType,
    ServerConfig,
};
use rmcp::service::RequestContext;
use rmcp::{ErrorData, RoleServer, ServerHandler};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{MAX_QUESTIONS, info, probe, tools};
use crate::kube::forward::ForwardError;
use crate::kube::sought::Sought;
use crate::probe::MAX_REQUEST_MS;

const PATH: &str = "/mcp";
/// Above what the longest call takes, which is a probe: opening the way to the server, a busy machine.
const PATIENCE: Duration = Duration::from_millis(MAX_REQUEST_MS + 20_000);

/// Whoever has the tools.
pub trait Remote: Send + Sync + 'static {
    /// What is answered to this JSON-RPC message at `/mcp`. `is_proven`: it takes a right, and says from the beginning who asks.
    fn ask<T: DeserializeOwned + Send>(
        &self,
        message: &Value,
        is_proven: bool,
    ) -> impl Future<Output = Result<T, ForwardError>> + Send;
}

impl Remote for Sought {
    async fn ask<T: DeserializeOwned + Send>(&self, message: &Value, is_proven: bool) -> Result<T, ForwardError> {
        let server = self.server().await?;
        if is_proven {
            server.post_proven(PATH, message, PATIENCE).await
        } else {
            server.post(PATH, message, PATIENCE).await
        }
    }
}

/// An answer of JSON-RPC 2.0 (section 5): one of the two.
#[derive(Deserialize)]
struct Said<T> {
    result: Option<T>,
    error: Option<ErrorData>,
}

pub(super) struct Relay<R> {
    remote: Arc<R>,
    /// Each call takes a connection of its own: not more of them than the server answers questions.
    places: Semaphore,
}

impl<R: Remote> Relay<R> {
    pub fn new(remote: Arc<R>) -> Self {
        Self { remote, places: Semaphore::new(MAX_QUESTIONS) }
    }

    async fn ask<T: DeserializeOwned + Send>(
        &self,
        method: &str,
        params: Value,
        is_proven: bool,
    ) -> Result<Said<T>, ForwardError> {
        let _place = self.places.acquire().await.expect("it is never closed");
        let message = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        self.remote.ask(&message, is_proven).await
    }
}

fn outcome<T>(asked: Result<Said<T>, ForwardError>) -> Result<T, ErrorData> {
    match asked.map_err(no_answer)? {
        Said { result: Some(result), .. } => Ok(result),
        Said { error: Some(error), .. } => Err(error),
        Said { .. } => Err(ErrorData::internal_error(
            "netdiag's server answered neither a result nor an error; use the same version here",
            None,
        )),
    }
}

/// Of one call: the next one may find the server again, or another pod of it.
fn no_answer(error: ForwardError) -> ErrorData {
    let why = match error {
        ForwardError::Refused(why) => why,
        ForwardError::Unreached(why) => format!(
            "no answer of netdiag's server ({why}): ask again in a few seconds; if it stays away, look for the reason \
             with kubectl -n netdiag-system get pods"
        ),
    };
    ErrorData::internal_error(why, None)
}

impl<R: Remote> ServerHandler for Relay<R> {
    fn get_info(&self) -> ServerConfig {
        info()
    }

    /// As the server has them, which may be of another version. Clients ask once, at their start: while the server is away, they are told
    /// this program's own, and of the server when they call one.
    async fn list_tools(
        &self,
        _request: Option<PaginatedRequestParams>,
        _context: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let asked = self.ask("tools/list", json!({}), false).await;
        if let Err(ForwardError::Unreached(_)) = asked {
            return Ok(ListToolsResult::with_all_items(tools()));
        }
        let mut listed: ListToolsResult = outcome(asked)?;
        // The server was asked as by a client of an older era, which is not told; rmcp leaves it out for those.
        listed.result_type = Some(ResultType::COMPLETE);
        Ok(listed)
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        // What the others ask takes no right where the server listens on its loopback; beyond it, it asks for the proof itself.
        let is_proven = request.name == probe::NAME;
        let params = json!({"name": request.name, "arguments": request.arguments.unwrap_or_default()});
        let mut result = tokio::select! {
            asked = self.ask::<CallToolResult>("tools/call", params, is_proven) => outcome(asked)?,
            // The connection ends with it, and by that the server knows.
            () = context.ct.cancelled() => return Err(ErrorData::internal_error("cancelled by the client", None)),
        };
        result.result_type = Some(ResultType::COMPLETE);
        Ok(result.into())
    }
}
