//! `netdiag mcp`: the tools for an agent, on stdin and stdout.

use super::source::{self, LastingRoute, SourceArgs};
use super::{EXIT_HEALTHY, Failure, stop};
use crate::mcp::{self, State, StdioError};

/// Serves MCP on stdin and stdout
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: SourceArgs,
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    match source::lasting_route(&args.source).await? {
        LastingRoute::Server(server) => {
            let ended = tokio::select! {
                ended = Box::pin(mcp::relay(server.clone(), rmcp::transport::stdio())) => ended.map_err(Failure::from),
                // Clients close stdin, and send SIGTERM when that takes too long (MCP 2025-06-18, Lifecycle, Shutdown).
                told = stop::told() => told,
            };
            server.withdraw().await;
            ended?;
        }
        LastingRoute::Here(source) => Box::pin(mcp::serve_stdio(State::new(source, None))).await?,
    }
    Ok(EXIT_HEALTHY)
}

impl From<StdioError> for Failure {
    fn from(error: StdioError) -> Self {
        Self(error.to_string())
    }
}
