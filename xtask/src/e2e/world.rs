//! The healthy world of all cases, and the steps that change it.

use anyhow::{Context, Result, ensure};

use super::case::{End, Step};
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

/// The pod of the world whose view is asked for, on `n1`.
pub(super) const CLIENT: &str = "pod/shop/client";

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

/// Makes a fault.
pub(super) fn inject(cluster: &Cluster, steps: &[Step]) -> Result<()> {
    steps.iter().try_for_each(|step| take(cluster, step)).context("injecting")
}

/// Takes a fault back. Goes on after a failing step, so that the next one starts as well as it can.
pub(super) fn restore(cluster: &Cluster, steps: &[Step]) -> Result<()> {
    let taken: Vec<_> = steps.iter().map(|step| take(cluster, step)).collect();
    taken.into_iter().collect::<Result<()>>().context("restoring")
}

/// Makes one change.
fn take(cluster: &Cluster, step: &Step) -> Result<()> {
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
        Step::Wire { wire } => {
            cluster.wire_exec(wire.for_mode(mode)?)?;
        }
        Step::Pod { pod, run } => {
            let (namespace, name) = pod.split_once('/').context("a pod is NAMESPACE/NAME")?;
            cluster.pod_exec(namespace, name, &["sh", "-c", run.for_mode(mode)?])?;
        }
        Step::Lookup { lookup, udp_from } => {
            let end = client::lookup(cluster, "client", lookup, *udp_from)?;
            ensure!(end == End::Connected, "{lookup} does not answer from port {udp_from}: {end:?}");
        }
        Step::StopKubeProxy { stop_kube_proxy } => cluster.stop_kube_proxy(stop_kube_proxy)?,
        Step::RestartKubeProxy { restart_kube_proxy } => cluster.restart_kube_proxy(restart_kube_proxy)?,
        Step::RestartKubelet { restart_kubelet, cluster_dns } => {
            cluster.restart_kubelet(restart_kubelet, cluster_dns.as_deref())?;
        }
    }
    Ok(())
}
