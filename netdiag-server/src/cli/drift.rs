//! `netdiag drift`: what nodes have programmed against what Services, EndpointSlices and Nodes say.

use serde::{Deserialize, Serialize};

use super::output::{self, Progress, ShortFormat};
use super::request;
use super::source::{self, SourceArgs};
use super::{EXIT_CAUSE, EXIT_HEALTHY, EXIT_UNEXPLAINED, Failure};
use crate::answer::drift::{self, DriftAnswer, DriftStatus};
use crate::ask::{AnySource, Source};
use crate::drift::Scope;

/// Compares every node's rules for Services, and its routes to other nodes' pods, with what the API intends
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only this node
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Time until the comparison must be done: 20s, 2m. What differs is looked at again after 10 s
    #[arg(long, value_name = "TIME", default_value = "40s", value_parser = request::parse_timeout)]
    timeout: u64,
    #[arg(short, long, value_enum, default_value = "text")]
    output: ShortFormat,
    #[command(flatten)]
    source: SourceArgs,
}

/// `POST /v1/drift`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DriftRequest {
    /// None for all nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    #[serde(default = "request::default_timeout_ms")]
    pub timeout_ms: u64,
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let request = DriftRequest { node: args.node, timeout_ms: args.timeout };
    let answer = {
        let _progress = Progress::start("comparing rules");
        let here = async |source: AnySource| drift_with(&source, &request).await;
        source::answer(&args.source, ("/v1/drift", &request), args.timeout, here).await?
    };
    match args.output {
        ShortFormat::Text => output::print(&answer.text(output::paint()))?,
        ShortFormat::Json => output::print(&output::json(&answer)?)?,
    }
    Ok(match answer.status {
        DriftStatus::Same => EXIT_HEALTHY,
        DriftStatus::Drift => EXIT_CAUSE,
        DriftStatus::Unknown => EXIT_UNEXPLAINED,
    })
}

/// For the command line and the server alike.
pub(super) async fn drift_with<S: Source>(source: &S, request: &DriftRequest) -> Result<DriftAnswer, Failure> {
    let scope = Scope { node: request.node.clone(), budget: request::budget(request.timeout_ms) };
    let drift = crate::drift::drift(source, &scope).await?;
    Ok(drift::build(&drift, source.now()))
}
