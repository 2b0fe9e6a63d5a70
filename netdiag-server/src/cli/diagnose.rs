//! `netdiag diagnose`: why one path fails.

use std::path::{Path, PathBuf};

use super::bundle::refuse_full;
use super::output::{self, Format, Progress};
use super::request::{self, DiagnoseRequest, TransportProtocol};
use super::source::{self, SourceArgs};
use super::{Failure, exit_code};
use crate::answer;
use crate::ask::bundle::{Objects, record_inquiry};
use crate::ask::{self, AnySource, Inquiry};
use crate::kube;

/// Names the cause why one connection fails
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// pod/NAMESPACE/NAME or node/NAME; without it, from each node's host
    #[arg(long, value_name = "SOURCE")]
    from: Option<String>,
    /// service/NAMESPACE/NAME:PORT, pod/NAMESPACE/NAME:PORT, node/NAME:PORT, ip/ADDRESS:PORT or name/FQDN:PORT
    #[arg(long, value_name = "TARGET")]
    to: String,
    #[arg(long, value_enum, default_value = "tcp")]
    protocol: TransportProtocol,
    /// Send no packets: only read what is there
    #[arg(long)]
    no_probe: bool,
    /// Time until the answer must be there: 500ms, 20s, 2m
    #[arg(long, value_name = "TIME", default_value = "20s", value_parser = request::parse_timeout)]
    timeout: u64,
    /// Keep what the answer was judged on, for `--bundle DIR`; needs --direct or --bundle
    #[arg(long, value_name = "DIR", requires = "asks_agents")]
    record: Option<PathBuf>,
    #[arg(short, long, value_enum, default_value = "text")]
    output: Format,
    #[command(flatten)]
    source: SourceArgs,
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let request = DiagnoseRequest {
        from: args.from,
        to: args.to,
        protocol: args.protocol,
        no_probe: args.no_probe,
        timeout_ms: args.timeout,
    };
    let question = request.question().map_err(|error| Failure(error.to_string()))?;
    let answer = {
        let _progress = Progress::start("asking the cluster");
        let here = async |source: AnySource| {
            let inquiry = ask::ask(&source, &question).await?;
            // Never instead of the server: it is asked for together with a bundle or --direct only.
            if let Some(directory) = &args.record {
                record(&inquiry, &args.source, directory).await?;
            }
            Ok(answer::build(&inquiry))
        };
        source::answer(&args.source, ("/v1/diagnose", &request), args.timeout, here).await?
    };
    output::answer(&answer, args.output)?;
    Ok(exit_code(&answer))
}

async fn record(inquiry: &Inquiry, source: &SourceArgs, directory: &Path) -> Result<(), Failure> {
    refuse_full(directory)?;
    match &source.bundle {
        Some(bundle) => record_inquiry(inquiry, Objects::Of(bundle), directory).await?,
        None => record_inquiry(inquiry, Objects::Api(&kube::connect(&source.access()).await?), directory).await?,
    }
    Ok(())
}
