//! `netdiag probe`: probes of a chosen kind from a pod or node, live on a terminal.

use std::sync::Arc;

use super::output::{self, ShortFormat};
use super::source::{self, SourceArgs};
use super::{EXIT_CAUSE, EXIT_HEALTHY, EXIT_UNEXPLAINED, Failure, mesh};
use crate::answer::probe::{self as answer, ProbeAnswer, ProbeStatus};
use crate::ask::Source;
use crate::evidence::Cluster;
use crate::kube;
use crate::probe::rights::{Only, Own, Unchecked};
use crate::probe::{self, Plan, Rights, RunError, Sender};

mod args;
mod common;
mod live;

use args::KindArgs;

/// Sends probes as a pod or node would, and tells exactly what came of them
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    #[command(flatten)]
    Sent(Box<KindArgs>),
    Mesh(mesh::Args),
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    let asked = match args.what {
        What::Sent(kind) => kind.asked()?,
        What::Mesh(args) => return mesh::run(args).await,
    };
    let request = asked.request;
    let route = source::route(&asked.source).await?;
    let rights = OwnRights::of(&asked.source).await?;
    let answer = live::run(route, &request, &rights, asked.output).await?;
    match asked.output {
        ShortFormat::Text => output::print(&answer.text(output::paint()))?,
        ShortFormat::Json => output::print(&output::json(&answer)?)?,
    }
    Ok(match answer.status {
        ProbeStatus::Well => EXIT_HEALTHY,
        ProbeStatus::Failed => EXIT_CAUSE,
        ProbeStatus::Unknown => EXIT_UNEXPLAINED,
    })
}

/// Whose rights decide on the command line.
pub(in crate::cli) enum OwnRights {
    Own(Box<Own>),
    Unchecked,
}

impl OwnRights {
    /// Who starts a program with the agents' certificates, or over a recorded cluster, has no identity that could be asked about.
    pub async fn of(source: &SourceArgs) -> Result<Self, Failure> {
        if source.bundle.is_some() {
            return Ok(Self::Unchecked);
        }
        Ok(Self::Own(Box::new(Own::new(kube::connect(&source.access()).await?))))
    }
}

impl Rights for OwnRights {
    async fn may_start(&self, namespace: &str) -> Result<(), probe::Denied> {
        match self {
            Self::Own(own) => own.may_start(namespace).await,
            Self::Unchecked => Unchecked.may_start(namespace).await,
        }
    }

    async fn may_get_secret(&self, namespace: &str, name: &str) -> Result<(), probe::Denied> {
        match self {
            Self::Own(own) => own.may_get_secret(namespace, name).await,
            Self::Unchecked => Unchecked.may_get_secret(namespace, name).await,
        }
    }
}

/// For the command line and the server alike.
pub(in crate::cli) async fn probe_with<S: Source, R: Rights>(
    source: &S,
    cluster: Arc<Cluster>,
    plan: Plan,
    rights: &R,
    asked_by: Option<String>,
) -> Result<ProbeAnswer, RunError> {
    let only_from = plan.request.only_from.clone();
    let rights = &Only { rights, namespaces: only_from.as_deref() };
    let sender = Sender { source, cluster, rights, asked_by };
    let probed = probe::run(&sender, plan).await?;
    Ok(answer::build(&probed, source.now()))
}

impl From<RunError> for Failure {
    fn from(error: RunError) -> Self {
        Self(error.to_string())
    }
}
