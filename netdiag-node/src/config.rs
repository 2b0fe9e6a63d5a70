//! The agent's command line.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

/// Sees one node's network and answers netdiag's server over mTLS.
#[derive(Debug, Clone, Parser)]
#[command(name = "netdiag-node", version)]
pub struct Config {
    /// Kubernetes name of this node
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// Address and port to listen on, usually the node's address and 9443
    #[arg(long, env = "NETDIAG_LISTEN")]
    pub listen: SocketAddr,
    /// Folder with ca.crt, node.crt and node.key
    #[arg(long, env = "NETDIAG_TLS_DIR")]
    pub tls_dir: PathBuf,
    /// The node's network namespace, when it is not the agent's own
    #[arg(long, default_value = "/proc/self/ns/net")]
    pub host_netns: PathBuf,
    /// The kubelet's cgroupRoot, when the agent's own pod does not tell it: on machines that run several nodes
    #[arg(long)]
    pub cgroup_root: Option<String>,
    /// A proc filesystem that shows the node's processes
    #[arg(long, default_value = "/proc")]
    pub proc: PathBuf,
}
