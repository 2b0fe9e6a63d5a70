//! `netdiag status`: agents reachable, missing rights, certificates' expiry, load, versions.

use super::output::{self, Progress, ShortFormat};
use super::source::{self, SourceArgs};
use super::{EXIT_HEALTHY, EXIT_UNEXPLAINED, Failure};
use crate::answer::status::Status;
use crate::ask::{self, AnySource};

/// How long the server may ask its agents, in milliseconds.
const PATIENCE_MS: u64 = 35_000;

/// Says how netdiag itself is doing
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(short, long, value_enum, default_value = "text")]
    output: ShortFormat,
    #[command(flatten)]
    source: SourceArgs,
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let status = {
        let _progress = Progress::start("asking the agents");
        let here = async |source: AnySource| status_with(&source).await;
        source::answer(&args.source, ("/v1/status", &serde_json::json!({})), PATIENCE_MS, here).await?
    };
    match args.output {
        ShortFormat::Text => output::print(&status.text(output::paint()))?,
        ShortFormat::Json => output::print(&output::json(&status)?)?,
    }
    Ok(if status.is_complete() { EXIT_HEALTHY } else { EXIT_UNEXPLAINED })
}

async fn status_with(source: &AnySource) -> Result<Status, Failure> {
    match source {
        AnySource::Live(source) => Ok(ask::status(source).await?),
        AnySource::Bundle(_) => Err(Failure("a bundle has no agents to ask; leave out --bundle".to_owned())),
    }
}
