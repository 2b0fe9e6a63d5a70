//! The kubelet, a process of the node: it can be given another DNS server for its pods, and started again like any other.

use anyhow::{Context, Result};

use super::address::{self, DNS_SERVICE};
use super::{Cluster, node};
use crate::template;

/// Starts it as the laboratory means it.
pub(super) fn start(cluster: &Cluster, node: &str) -> Result<()> {
    start_with(cluster, node, DNS_SERVICE)
}

fn start_with(cluster: &Cluster, node: &str, dns: &str) -> Result<()> {
    let folder = node::node_folder(cluster, node);
    let configuration = template::fill(
        include_str!("kubelet.yaml"),
        &[
            ("pki", &cluster.folder.join("pki").display().to_string()),
            ("node", node),
            ("folder", &folder.display().to_string()),
            ("cgroup", &cluster.cgroup_root(node)),
            ("address", &cluster.node_address(node)),
            ("dns", dns),
        ],
    )?;
    cluster.write(&format!("{node}/kubelet.yaml"), &configuration)?;
    let mut addresses = cluster.node_address(node);
    if cluster.options.dual_stack {
        addresses = format!("{addresses},{}", address::node_v6(node::index_of(node)));
    }
    cluster.spawn(
        &format!("{node}-kubelet"),
        &cluster.node_command(node)?,
        "kubelet",
        &[
            format!("--config={}", folder.join("kubelet.yaml").display()),
            format!("--kubeconfig={}", cluster.folder.join(format!("{node}.conf")).display()),
            format!("--hostname-override={node}"),
            format!("--node-ip={addresses}"),
            "--v=2".to_owned(),
        ],
    )
}

impl Cluster {
    /// Starts the node's kubelet again; pods that it starts from now on ask this server for names, by default the cluster's.
    pub(crate) fn restart_kubelet(&self, node: &str, dns: Option<&str>) -> Result<()> {
        self.node_command(node)?;
        self.stop(&format!("{node}-kubelet"))?;
        start_with(self, node, dns.unwrap_or(DNS_SERVICE))
            .with_context(|| format!("cannot start the kubelet of {node}"))
    }
}
