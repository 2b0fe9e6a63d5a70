//! Where answers come from: a bundle, the agents asked from here, netdiag's server, or the API alone.

use std::path::PathBuf;
use std::sync::Arc;

use netdiag_common::wire::AGENT_PORT;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Failure, request, stop};
use crate::ask::live::Intent;
use crate::ask::{AnySource, BundleSource, LiveSource, Source};
use crate::kube::forward::{ForwardError, Server};
use crate::kube::sought::Sought;
use crate::kube::{self, Access, AccessOptions};
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

/// Who judges.
pub(super) enum Route {
    /// netdiag's server in the cluster: it has the agents and fresh objects at hand.
    Server(Box<Forwarded>),
    /// This process.
    Here(AnySource),
}

/// Who judges, for as long as somebody asks.
pub(super) enum LastingRoute {
    Server(Arc<Sought>),
    Here(AnySource),
}

/// A server, and the way to answer without it.
pub(super) struct Forwarded {
    pub server: Server,
    access: Access,
}

/// Finds the way to answer that the arguments name.
pub(super) async fn route(args: &SourceArgs) -> Result<Route, Failure> {
    if args.is_answered_here() {
        return Ok(Route::Here(here(args).await?));
    }
    let access = kube::connect(&args.access()).await?;
    match Server::find(&access).await? {
        Ok(server) => Ok(Route::Server(Box::new(Forwarded { server, access }))),
        Err(why) => Ok(Route::Here(from_the_api_alone(access, &why))),
    }
}

/// The same for many questions: an API server that is not reached now may be when one comes.
pub(super) async fn lasting_route(args: &SourceArgs) -> Result<LastingRoute, Failure> {
    if args.is_answered_here() {
        return Ok(LastingRoute::Here(here(args).await?));
    }
    let access = kube::connect(&args.access()).await?;
    Ok(match Server::find(&access).await {
        Ok(Ok(server)) => LastingRoute::Server(Arc::new(Sought::new(access, Some(server)))),
        Ok(Err(why)) => LastingRoute::Here(from_the_api_alone(access, &why)),
        Err(error) => {
            eprintln!("netdiag: {error}; it is asked again with each call");
            LastingRoute::Server(Arc::new(Sought::new(access, None)))
        }
    })
}

/// The server's answer to `request`, a POST to `path` that was given `timeout_ms`; what `here` makes of the source that is left
/// where there is no server to ask, or none may be asked.
pub(super) async fn answer<A: DeserializeOwned>(
    args: &SourceArgs,
    (path, request): (&str, &impl Serialize),
    timeout_ms: u64,
    here: impl AsyncFnOnce(AnySource) -> Result<A, Failure>,
) -> Result<A, Failure> {
    let source = match route(args).await? {
        Route::Server(way) => {
            let asking = way.server.post(path, request, request::patience(timeout_ms));
            let answer = stop::unless_told(asking, ForwardError::Refused).await;
            way.server.withdraw().await;
            match answer {
                Ok(answer) => return Ok(answer),
                Err(error) => way.without(error)?,
            }
        }
        Route::Here(source) => source,
    };
    stop::unless_told(Box::pin(here(source)), Failure).await
}

/// A source of this process.
async fn here(args: &SourceArgs) -> Result<AnySource, Failure> {
    let agents = args.tls_dir.as_deref().map(Agents::new).transpose()?;
    let intent = match &args.bundle {
        None => Intent::Listed(kube::connect(&args.access()).await?),
        Some(directory) => {
            let bundle = BundleSource::open(directory)?;
            if agents.is_none() {
                return Ok(AnySource::Bundle(bundle));
            }
            Intent::Recorded(bundle.cluster().await?)
        }
    };
    Ok(AnySource::Live(Box::new(LiveSource::new(intent, agents, args.agent_port))))
}

impl Forwarded {
    /// The way without the server, when it could not be reached; what it refused is final.
    pub fn without(self, error: ForwardError) -> Result<AnySource, Failure> {
        match error {
            ForwardError::Refused(why) => Err(Failure(why)),
            ForwardError::Unreached(why) => Ok(from_the_api_alone(self.access, &why)),
        }
    }
}

fn from_the_api_alone(access: Access, why: &str) -> AnySource {
    eprintln!("netdiag: no server to ask ({why}): answering from the Kubernetes API alone, no node is looked at");
    AnySource::Live(Box::new(LiveSource::new(Intent::Listed(access), None, AGENT_PORT)))
}

impl SourceArgs {
    fn is_answered_here(&self) -> bool {
        self.bundle.is_some() || self.direct
    }

    pub fn access(&self) -> AccessOptions {
        AccessOptions { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() }
    }
}
