//! Where answers come from: a bundle, the agents asked from here, netdiag's server, or the API alone.

use std::path::PathBuf;

use netdiag_common::wire::AGENT_PORT;

use super::Failure;
use crate::ask::live::Intent;
use crate::ask::{AnySource, BundleSource, LiveSource, Source};
use crate::kube::{self, AccessOptions};
use crate::nodes::Agents;

#[derive(Debug, Clone, clap::Args)]
pub(super) struct SourceArgs {
    /// The kubeconfig; else KUBECONFIG, else ~/.kube/config
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context; else its current one
    #[arg(long, value_name = "NAME")]
    pub context: Option<String>,
    /// Judge here and ask the agents from here, without netdiag's server
    #[arg(long, requires = "tls_dir", group = "asks_agents")]
    pub direct: bool,
    /// Certificates for the agents: ca.crt, server.crt, server.key
    #[arg(long, value_name = "DIR", requires = "asks_agents")]
    pub tls_dir: Option<PathBuf>,
    /// Port of the agents on their nodes' addresses
    #[arg(long, value_name = "PORT", default_value_t = AGENT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    pub agent_port: u16,
    /// Answer from a recorded cluster; with --tls-dir its objects are recorded and its nodes are asked
    #[arg(long, value_name = "DIR", group = "asks_agents", conflicts_with_all = ["kubeconfig", "context", "direct"])]
    pub bundle: Option<PathBuf>,
}

/// Opens the source that the arguments name.
pub(super) async fn open(args: &SourceArgs) -> Result<AnySource, Failure> {
    let agents = args.tls_dir.as_deref().map(Agents::new).transpose()?;
    if let Some(directory) = &args.bundle {
        let bundle = BundleSource::open(directory)?;
        return Ok(match agents {
            None => AnySource::Bundle(bundle),
            Some(agents) => {
                let intent = Intent::Recorded(bundle.cluster().await?);
                AnySource::Live(Box::new(LiveSource::new(intent, Some(agents), args.agent_port)))
            }
        });
    }
    let access = kube::connect(&args.access()).await?;
    Ok(AnySource::Live(Box::new(LiveSource::new(Intent::Listed(access), agents, args.agent_port))))
}

impl SourceArgs {
    pub fn access(&self) -> AccessOptions {
        AccessOptions { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() }
    }
}
