//! kube-router as policy engine alone, beside the `ptp` plugin and kube-proxy: it writes iptables rules and ipsets.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;

use super::Cluster;
use super::address::SERVICE_RANGE;
use crate::parts;

/// It waits for the caches of what it watches before its first sync.
const READY_LIMIT: Duration = Duration::from_mins(1);
/// What it writes at its first sync, before any policy is there.
const OWN_CHAIN: &str = "KUBE-ROUTER-FORWARD";

/// Builds kube-router if the cache lacks it and returns its folder of programs.
pub(super) fn ensure() -> Result<PathBuf> {
    parts::ensure(&parts::KUBE_ROUTER)
}

/// Starts the node's engine. The Node must have its address: without one it ends at once ("host IP unknown").
pub(super) fn start(cluster: &Cluster, node: &str) -> Result<()> {
    let flags = [
        format!("--kubeconfig={}", cluster.kubeconfig().display()),
        format!("--hostname-override={node}"),
        format!("--service-cluster-ip-range={SERVICE_RANGE}"),
        "--run-router=false".to_owned(),
        "--run-service-proxy=false".to_owned(),
        "--run-firewall=true".to_owned(),
        "--bgp-graceful-restart=false".to_owned(),
        // It writes at every change; this only repairs what others changed, which is a test's business.
        "--iptables-sync-period=1h".to_owned(),
        "--v=1".to_owned(),
    ];
    let mut entry = cluster.node_command(node)?;
    entry.args(["env", &format!("NODE_NAME={node}")]);
    cluster.spawn(&program(node), &entry, "kube-router", &flags)
}

/// Waits until its rules are there.
pub(super) fn wait_ready(cluster: &Cluster, node: &str) -> Result<()> {
    cluster.wait(&program(node), &format!("rules of kube-router on {node}"), READY_LIMIT, || {
        cluster.node_exec(node, &["iptables", "-t", "filter", "-S", OWN_CHAIN]).is_ok()
    })
}

fn program(node: &str) -> String {
    format!("{node}-kube-router")
}
