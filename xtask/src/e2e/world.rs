//! The healthy world of all cases, and the steps that change it.

use anyhow::{Context, Result};

use super::case::{Case, Step};
use super::client;
use crate::cluster::Cluster;
use crate::template;

/// Server pods as (namespace, name, app, node): three endpoints on two nodes, and a namesake elsewhere.
const PODS: [(&str, &str, &str, &str); 4] = [
    ("shop", "web-1", "web", "n1"),
    ("shop", "web-2", "web", "n2"),
    ("shop", "web-3", "web", "n2"),
    ("pay", "ledger-1", "ledger", "n2"),
];

/// Deploys the world and waits until all of it is ready.
pub(super) fn deploy(cluster: &Cluster) -> Result<()> {
    let mut pods = String::new();
    for (namespace, name, app, node) in PODS {
        let values = [("name", name), ("namespace", namespace), ("app", app), ("node", node)];
        pods.push_str(&template::fill(include_str!("pod.yaml"), &values)?);
    }
    cluster.apply(&template::fill(include_str!("world.yaml"), &[("pods", &pods)])?)?;
    for namespace in ["shop", "pay"] {
        cluster
            .kubectl(&["-n", namespace, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=90s"])
            .with_context(|| format!("the pods of namespace {namespace} do not become ready"))?;
    }
    cluster.kubectl(&["-n", "kube-system", "rollout", "status", "deployment", "coredns", "--timeout=90s"])?;
    Ok(())
}

/// Makes the case's change.
pub(super) fn inject(cluster: &Cluster, case: &Case) -> Result<()> {
    case.inject.iter().try_for_each(|step| take(cluster, step))
}

/// Takes the change back. Goes on after a failing step, so that the next case starts as well as it can.
pub(super) fn restore(cluster: &Cluster, case: &Case) -> Result<()> {
    let failed: Vec<anyhow::Error> = case.restore.iter().filter_map(|step| take(cluster, step).err()).collect();
    failed.into_iter().next().map_or(Ok(()), Err)
}

/// Makes one change.
pub(super) fn take(cluster: &Cluster, step: &Step) -> Result<()> {
    let mode = cluster.options.mode;
    match step {
        Step::Kubectl { kubectl } => {
            cluster.kubectl(&kubectl.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        Step::Apply { apply } => {
            cluster.apply(apply)?;
        }
        Step::Node { node, run } => {
            let script = run.for_mode(mode)?;
            let client = if script.contains("$client") {
                client::pod_address(cluster, "shop", "client")?
            } else {
                String::new()
            };
            cluster.node_exec(node, &["env", &format!("client={client}"), "sh", "-ec", script])?;
        }
        Step::Pod { pod, run } => {
            let (namespace, name) = pod.split_once('/').context("a pod is NAMESPACE/NAME")?;
            cluster.pod_exec(namespace, name, &["sh", "-c", run.for_mode(mode)?])?;
        }
        Step::StopKubeProxy { stop_kube_proxy } => cluster.stop_kube_proxy(stop_kube_proxy)?,
        Step::RestartKubeProxy { restart_kube_proxy } => cluster.restart_kube_proxy(restart_kube_proxy)?,
    }
    Ok(())
}
