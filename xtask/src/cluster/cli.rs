//! `cargo xtask cluster …`: a few lines each over [`Cluster`].

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, Subcommand};

use super::{Cluster, Cni, Options, ProxyMode, kind};
use crate::install;
use crate::netdiag_image::Build;

/// Pods of the sample application are Ready 3 s after their nodes, on two idle cores.
const WEB_LIMIT: Duration = Duration::from_secs(90);

#[derive(Subcommand)]
pub(crate) enum Task {
    /// Start a cluster; the first time builds its programs (about 8 minutes on two cores)
    Up(Up),
    /// Stop a cluster and remove everything it left
    Down {
        #[command(flatten)]
        name: Name,
        /// The cluster is one of kind
        #[arg(long)]
        kind: bool,
    },
    /// Run a command on a node, in its mount, network and UTS namespaces
    Exec {
        #[command(flatten)]
        name: Name,
        node: String,
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
    /// Run a command in a pod's container, without the API
    PodExec {
        #[command(flatten)]
        name: Name,
        /// NAMESPACE/POD
        pod: String,
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
    /// Run kubectl as the cluster's administrator
    Kubectl {
        #[command(flatten)]
        name: Name,
        #[arg(last = true, required = true)]
        words: Vec<String>,
    },
    /// Stop or restart a node's kube-proxy
    KubeProxy {
        #[command(flatten)]
        name: Name,
        #[arg(value_enum)]
        action: ProxyAction,
        node: String,
    },
    /// Build netdiag and install it from charts/
    Install {
        #[command(flatten)]
        name: Name,
        /// Compile without optimisation, which is quicker
        #[arg(long)]
        debug: bool,
        /// Into a kind cluster
        #[arg(long)]
        kind: bool,
    },
    /// Deploy a small application: Deployment and Service web, Pod client
    Web(Name),
    /// Print the path of the administrator's kubeconfig
    Kubeconfig(Name),
    /// List the clusters that are up
    List,
}

#[derive(Args)]
pub(crate) struct Name {
    /// Which cluster; several can be up side by side
    #[arg(long, default_value = "netdiag")]
    name: String,
}

#[derive(Args)]
pub(crate) struct Up {
    #[command(flatten)]
    name: Name,
    #[arg(long, default_value_t = 2)]
    nodes: u8,
    /// How kube-proxy programs Services
    #[arg(long, value_enum, default_value_t = ProxyMode::Nftables)]
    mode: ProxyMode,
    /// Who connects pods
    #[arg(long, value_enum, default_value_t = Cni::Ptp)]
    cni: Cni,
    /// IPv4 and IPv6
    #[arg(long)]
    dual_stack: bool,
    /// Let kind make the cluster, where Docker is there
    #[arg(long)]
    kind: bool,
}

#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum ProxyAction {
    Stop,
    Restart,
}

pub(crate) fn run(task: Task) -> Result<()> {
    match task {
        Task::Up(up) => {
            let options =
                Options { name: up.name.name, nodes: up.nodes, mode: up.mode, cni: up.cni, dual_stack: up.dual_stack };
            if up.kind {
                return kind::up(&options);
            }
            let cluster = Cluster::up(&options)?;
            println!("export KUBECONFIG={}", cluster.kubeconfig().display());
            Ok(())
        }
        Task::Down { name, kind: true } => kind::down(&name.name),
        Task::Down { name, kind: false } => {
            let started = Instant::now();
            Cluster::attach(&name.name)?.down()?;
            println!("{:5.1} s  cluster {} is down", started.elapsed().as_secs_f64(), name.name);
            Ok(())
        }
        Task::Exec { name, node, words } => replace(Cluster::attach(&name.name)?.node_command(&node)?.args(words)),
        Task::PodExec { name, pod, words } => {
            let Some((namespace, pod)) = pod.split_once('/') else {
                bail!("a pod is written NAMESPACE/POD, not {pod}");
            };
            replace(Cluster::attach(&name.name)?.pod_command(namespace, pod)?.args(words))
        }
        Task::Kubectl { name, words } => replace(Cluster::attach(&name.name)?.kubectl_command().args(words)),
        Task::KubeProxy { name, action, node } => {
            let cluster = Cluster::attach(&name.name)?;
            match action {
                ProxyAction::Stop => cluster.stop_kube_proxy(&node),
                ProxyAction::Restart => cluster.restart_kube_proxy(&node),
            }
        }
        Task::Install { name, debug, kind } => {
            let build = if debug { Build::Debug } else { Build::Release };
            let installed = if kind {
                install::install_with_kind(&name.name, build)?
            } else {
                install::install(&Cluster::attach(&name.name)?, build)?
            };
            println!("server  {}\nagent   {}", installed.server.display(), installed.agent.display());
            println!("certificates for --direct --tls-dir  {}", installed.tls.display());
            Ok(())
        }
        Task::Web(name) => web(&Cluster::attach(&name.name)?),
        Task::Kubeconfig(name) => {
            println!("{}", Cluster::attach(&name.name)?.kubeconfig().display());
            Ok(())
        }
        Task::List => {
            for name in Cluster::names() {
                let cluster = Cluster::attach(&name)?;
                let Options { mode, cni, dual_stack, .. } = cluster.options;
                let nodes: Vec<_> =
                    cluster.node_names().map(|node| format!("{node} {}", cluster.node_address(&node))).collect();
                let families = if dual_stack { "IPv4 and IPv6" } else { "IPv4" };
                println!("{name}: {}; kube-proxy {}; {cni:?}; {families}", nodes.join(", "), mode.name());
            }
            Ok(())
        }
    }
}

fn web(cluster: &Cluster) -> Result<()> {
    let started = Instant::now();
    cluster.apply(include_str!("web.yaml"))?;
    let limit = format!("--timeout={}s", WEB_LIMIT.as_secs());
    for (kind, condition) in [("deployment/web", "Available"), ("pod/client", "Ready")] {
        cluster.kubectl(&["wait", &format!("--for=condition={condition}"), kind, &limit])?;
    }
    // kube-proxy learns of the endpoints a moment after the API says that they are ready.
    let connect = ["/agnhost", "connect", "web:80", "--timeout=3s"];
    cluster.wait_until("answer of Service default/web to pod default/client", WEB_LIMIT, || {
        cluster.pod_exec("default", "client", &connect).is_ok()
    })?;
    println!("{:5.1} s  pod default/client reaches Service default/web", started.elapsed().as_secs_f64());
    Ok(())
}

/// Becomes the command: its terminal, signals and exit code are then its own.
fn replace(command: &mut Command) -> Result<()> {
    let error = command.exec();
    Err(error).with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))
}
