//! `netdiag mcp`: the tools for an agent, on stdin and stdout.

use super::source::{self, SourceArgs};
use super::{EXIT_HEALTHY, Failure};
use crate::mcp::{self, State};

/// Serves MCP on stdin and stdout
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    source: SourceArgs,
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let state = State::new(source::here(&args.source).await?, None);
    Box::pin(mcp::serve_stdio(state)).await.map_err(|error| Failure(error.to_string()))?;
    Ok(EXIT_HEALTHY)
}
