//! `netdiag serve`: the server in the cluster. Objects are kept current by watches, connections to agents are kept open.

use std::io::IsTerminal;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use netdiag_common::wire::AGENT_PORT;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::mesh::ServedMesh;
use super::{EXIT_HEALTHY, Failure, stop as signals};
use crate::ask::LiveSource;
use crate::ask::live::Intent;
use crate::kube::forward::SERVER_PORT;
use crate::kube::{self, AccessOptions, Warm};
use crate::mcp::{self, Gate, HttpOptions};
use crate::nodes::Agents;

mod api;
mod blackbox;
mod gate;
mod local;
mod metrics;

use blackbox::Modules;

/// After SIGTERM, what is being answered may finish; below the 30 s that the kubelet gives a Pod.
const LAST_WORDS: Duration = Duration::from_secs(20);

/// Runs the server: HTTP API and MCP
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Certificates for the agents: ca.crt, server.crt, server.key
    #[arg(long, value_name = "DIR")]
    tls_dir: PathBuf,
    /// Where API and MCP listen. Beyond loopback, callers need a token that the API server accepts; on loopback only to probe
    #[arg(long, value_name = "ADDRESS", default_value_t = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), SERVER_PORT))]
    listen: SocketAddr,
    /// Where /healthz and /readyz listen besides, for the kubelet's probes
    #[arg(long, value_name = "ADDRESS")]
    health: Option<SocketAddr>,
    /// Host names, besides loopback, under which MCP clients may call, and on loopback those of the API
    #[arg(long, value_name = "NAME")]
    allowed_host: Vec<String>,
    /// Port of the agents on their nodes' addresses
    #[arg(long, value_name = "PORT", default_value_t = AGENT_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    agent_port: u16,
    /// Modules of GET /probe beside ours, in the format of blackbox_exporter's own configuration
    #[arg(long, value_name = "FILE")]
    blackbox_config: Option<PathBuf>,
    #[command(flatten)]
    mesh: ServedMesh,
    /// The kubeconfig; inside a cluster the Pod's service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context; else its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

pub(super) async fn run(args: Args) -> Result<u8, Failure> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_max_level(tracing::Level::INFO)
        .init();
    let modules = modules(args.blackbox_config.as_deref())?;
    let agents = Agents::new(&args.tls_dir)?;
    let access = kube::connect(&AccessOptions { kubeconfig: args.kubeconfig, context: args.context }).await?;
    let is_on_loopback = args.listen.ip().is_loopback();
    let gate: Arc<dyn Gate> = Arc::new(gate::ByReview { access: access.clone(), is_on_loopback });
    let source = Arc::new(LiveSource::new(Intent::Watched(Warm::start(access)), Some(agents), args.agent_port));
    let stop = CancellationToken::new();
    let options = HttpOptions { allowed_hosts: args.allowed_host.clone(), shutdown: stop.clone() };
    let tools = mcp::router(mcp::State::new(source.clone(), Some(gate.clone())), options);
    let health = api::health(source.clone());
    let mesh = args.mesh.start(&source)?;
    let mut api = api::router(source, gate, mesh.clone(), modules);
    if is_on_loopback {
        api = local::only(api, &args.allowed_host);
    }
    let router = api.merge(tools).merge(health.clone());
    let mut servers = vec![serve(args.listen, router, stop.clone()).await?];
    if let Some(address) = args.health {
        servers.push(serve(address, health, stop.clone()).await?);
    }
    if let (Some(address), Some(mesh)) = (args.mesh.metrics_listen, mesh) {
        servers.push(serve(address, metrics::router(mesh), stop.clone()).await?);
    }
    signals::told().await?;
    stop.cancel();
    for server in servers {
        // What is still being answered after this time ends with the process.
        let _ = tokio::time::timeout(LAST_WORDS, server).await;
    }
    Ok(EXIT_HEALTHY)
}

fn modules(file: Option<&Path>) -> Result<Modules, Failure> {
    let Some(path) = file else { return Modules::of(None).map_err(Failure) };
    #[expect(clippy::disallowed_methods, reason = "a file that the user names")]
    let read = std::fs::read_to_string(path);
    let text = read.map_err(|error| Failure(format!("cannot read {}: {error}", path.display())))?;
    let modules = Modules::of(Some(&text)).map_err(|why| Failure(format!("{}: {why}", path.display())))?;
    for why in modules.refused() {
        tracing::warn!(file = %path.display(), "GET /probe does not answer for {why}");
    }
    Ok(modules)
}

async fn serve(
    address: SocketAddr,
    router: Router,
    stop: CancellationToken,
) -> Result<tokio::task::JoinHandle<()>, Failure> {
    let listener =
        TcpListener::bind(address).await.map_err(|error| Failure(format!("cannot listen on {address}: {error}")))?;
    tracing::info!(%address, "listening");
    let server = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned());
    Ok(tokio::spawn(async move {
        if let Err(error) = server.await {
            tracing::error!(%address, %error, "stopped listening");
        }
    }))
}
