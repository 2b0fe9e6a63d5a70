//! `netdiag scan`: everything that is wrong in a namespace or in the cluster, each fault once.

use super::output::{self, Progress, ShortFormat};
use super::request::{self, ScanRequest};
use super::source::{self, SourceArgs};
use super::{EXIT_CAUSE, EXIT_HEALTHY, EXIT_UNEXPLAINED, Failure};
use crate::answer::StatusName;
use crate::answer::scan::{Scan, build_scan};
use crate::ask::{self, AnySource, Scope, Source};

/// Judges every port of every Service from every node, and names each fault once
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only Services of this namespace
    #[arg(short, long, value_name = "NAME", default_value = "")]
    namespace: String,
    /// Send no packets: only read what is there
    #[arg(long)]
    no_probe: bool,
    /// Time until the scan must be done: 20s, 2m
    #[arg(long, value_name = "TIME", default_value = "40s", value_parser = request::parse_timeout)]
    timeout: u64,
    #[arg(short, long, value_enum, default_value = "text")]
    output: ShortFormat,
    #[command(flatten)]
    source: SourceArgs,
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let request = ScanRequest { namespace: args.namespace, no_probe: args.no_probe, timeout_ms: args.timeout };
    let scan = {
        let _progress = Progress::start("scanning the cluster");
        let here = async |source: AnySource| scan_with(&source, &request).await;
        source::answer(&args.source, ("/v1/scan", &request), args.timeout, here).await?
    };
    match args.output {
        ShortFormat::Text => output::print(&scan.text(output::paint()))?,
        ShortFormat::Json => output::print(&output::json(&scan)?)?,
    }
    Ok(match scan.status {
        _ if !scan.findings.is_empty() => EXIT_CAUSE,
        StatusName::Healthy => EXIT_HEALTHY,
        StatusName::Broken | StatusName::Degraded | StatusName::Unknown => EXIT_UNEXPLAINED,
    })
}

pub(super) async fn scan_with<S: Source>(source: &S, request: &ScanRequest) -> Result<Scan, Failure> {
    let scope = Scope {
        namespace: request.namespace.clone(),
        tier: request::tier(request.no_probe),
        budget: request::budget(request.timeout_ms),
    };
    let cluster = source.cluster().await?;
    if let Some(gap) = cluster.services.gap() {
        return Err(Failure(format!("cannot scan: {}; {}", gap.why, gap.remedy)));
    }
    let known = || cluster.namespaces.get("", &scope.namespace).is_some() || cluster.namespaces.gap().is_some();
    if !scope.namespace.is_empty() && !known() {
        let there: Vec<&str> = cluster.namespaces.iter().map(|namespace| namespace.metadata.name.as_str()).collect();
        return Err(Failure(format!("there is no namespace {}; there is {}", scope.namespace, there.join(", "))));
    }
    let scanned = ask::scan(source, &scope).await?;
    Ok(build_scan(&scanned, &scope.namespace, source.now(), &cluster.name))
}
