//! `netdiag bundle`: records a living cluster for `--bundle`, without Secrets and values.

use std::path::{Path, PathBuf};

use super::output::Progress;
use super::source::SourceArgs;
use super::{EXIT_HEALTHY, EXIT_UNEXPLAINED, Failure};
use crate::ask::LiveSource;
use crate::ask::bundle::record;
use crate::ask::live::Intent;
use crate::kube;
use crate::nodes::Agents;

/// Records objects and node reports, without Secrets, environment values and arguments
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where to write; must not exist, or be empty
    #[arg(value_name = "OUT")]
    out: PathBuf,
    #[command(flatten)]
    source: SourceArgs,
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let out = args.out.display();
    if args.source.bundle.is_some() {
        return Err(Failure("a bundle is recorded from a living cluster; leave out --bundle".to_owned()));
    }
    refuse_full(&args.out)?;
    let recorded = {
        let _progress = Progress::start("recording the cluster");
        let agents = args.source.tls_dir.as_deref().map(Agents::new).transpose()?;
        let access = kube::connect(&args.source.access()).await?;
        let source = LiveSource::new(Intent::Listed(access.clone()), agents, args.source.agent_port);
        record(&source, &access, &args.out).await?
    };
    println!("recorded {} objects and {} nodes in {out}", recorded.objects, recorded.nodes);
    for gap in &recorded.gaps {
        eprintln!("netdiag: not recorded: {}: {}; {}", gap.what, gap.why, gap.remedy);
    }
    Ok(if recorded.gaps.is_empty() { EXIT_HEALTHY } else { EXIT_UNEXPLAINED })
}

/// Two recordings in one directory would be read as one.
pub(super) fn refuse_full(directory: &Path) -> Result<(), Failure> {
    if std::fs::read_dir(directory).is_ok_and(|mut entries| entries.next().is_some()) {
        return Err(Failure(format!("{} is not empty; name a new directory", directory.display())));
    }
    Ok(())
}
