//! kube-proxy, a process of the node rather than a pod: it can be stopped and started again like any other.
//!
//! Metrics are at 127.0.0.1:10249 and health at :10256 of the node's network namespace.

use anyhow::Result;

use super::address::{POD_RANGE, POD_RANGE_V6};
use super::{Cluster, node};
use crate::template;

pub(super) fn start(cluster: &Cluster, node: &str) -> Result<()> {
    let pods = if cluster.options.dual_stack { format!("{POD_RANGE},{POD_RANGE_V6}") } else { POD_RANGE.to_owned() };
    let configuration = template::fill(
        include_str!("kube_proxy.yaml"),
        &[
            ("mode", cluster.options.mode.name()),
            ("folder", &cluster.folder.display().to_string()),
            ("pods", &pods),
            ("node", node),
            ("address", &cluster.node_address(node)),
        ],
    )?;
    cluster.write(&format!("{node}/kube_proxy.yaml"), &configuration)?;
    let file = node::node_folder(cluster, node).join("kube_proxy.yaml");
    cluster.spawn(
        &format!("{node}-kube-proxy"),
        // Inside of the node's mount namespace too, so that a test can put a failing `nft` there.
        &cluster.node_command(node)?,
        "kube-proxy",
        &[format!("--config={}", file.display()), "--v=2".to_owned()],
    )
}

impl Cluster {
    /// Stops the node's kube-proxy; the rules it wrote stay.
    pub(crate) fn stop_kube_proxy(&self, node: &str) -> Result<()> {
        self.node_command(node)?;
        self.stop(&format!("{node}-kube-proxy"))
    }

    /// Starts the node's kube-proxy, after stopping one that runs.
    pub(crate) fn restart_kube_proxy(&self, node: &str) -> Result<()> {
        self.stop_kube_proxy(node)?;
        start(self, node)
    }
}
