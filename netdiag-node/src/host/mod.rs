//! The only door to /proc, /sys, netlink and nf_tables. Each source has a pure `parse` and a thin `read`.
//!
//! Every `read` is synchronous and looks at the network namespace of the calling thread: [`crate::netns`] puts the thread
//! there first.

mod bpf;
mod budget;
pub mod cgroup;
pub mod cilium;
pub(crate) mod cni;
pub(crate) mod conntrack;
pub(crate) mod counter;
pub(crate) mod device;
pub(crate) mod file;
pub mod forwarding;
pub(crate) mod genetlink;
mod iptables;
pub(crate) mod ipvs;
pub(crate) mod kernel;
pub(crate) mod kube_proxy;
pub(crate) mod kubelet;
pub mod library;
pub(crate) mod listener;
pub(crate) mod neighbour;
pub(crate) mod netlink;
pub(crate) mod network;
pub(crate) mod networkd;
mod nftables;
pub(crate) mod own;
pub(crate) mod process;
pub(crate) mod resolver;
pub mod rules;
pub mod service_rules;
pub(crate) mod socket;
pub(crate) mod sysctl;
pub mod trace;
mod xtables;

use std::io;
use std::path::{Path, PathBuf};

use crate::netns::NetnsHandle;

/// Where this agent finds its node.
#[derive(Debug, Clone)]
pub struct Host {
    /// A proc filesystem that shows the node's processes.
    pub proc: PathBuf,
    /// The node's own network namespace.
    pub netns: NetnsHandle,
    /// The kubelet's `cgroupRoot`, when the operator gave it.
    pub cgroup_root: Option<String>,
}

/// The files about the calling thread's network namespace. Through the agent's own /proc: a thread does not exist in
/// another one's.
pub(crate) fn own_net() -> &'static Path {
    Path::new("/proc/thread-self/net")
}

/// Why a source could not be read. The caller turns it into a gap; nothing here is worth a retry.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read {path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("cannot parse {what}: {why}")]
    Malformed { what: String, why: String },
    /// A socket, netlink or getsockopt call failed; `step` names it with its object.
    #[error("cannot {step}: {source}")]
    Call { step: String, source: io::Error },
    #[error("this kernel has no {feature}")]
    Unsupported { feature: String },
    /// The namespace, process or pod is no longer there.
    #[error("{what} is gone")]
    Gone { what: String },
}
