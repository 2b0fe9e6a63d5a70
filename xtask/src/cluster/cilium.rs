//! Cilium as pod network and policy engine: one agent process per node, beside kube-proxy.
//!
//! There is no operator: we create what it would (the resource definitions; each Node's pod range), and nobody collects
//! unused identities. The proxy and health checks are off since their binaries cannot be built from Go modules.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::address::{POD_RANGE, POD_RANGE_V6};
use super::{Cluster, node};
use crate::{command, parts};

/// The agent compiles its programs first: 5 to 9 s on two idle cores, and every node does so at once.
const READY_LIMIT: Duration = Duration::from_mins(4);

/// The compiler's version that Cilium's own image has, under the names it looks for.
const COMPILER: [(&str, &str); 2] = [("clang", "/usr/bin/clang-19"), ("llc", "/usr/bin/llc-19")];

const MODULE: &str = "github.com/cilium/cilium";
const POLICY_MODULE: &str = "sigs.k8s.io/network-policy-api";

/// Builds Cilium if the cache lacks it and returns its folder of programs.
pub(super) fn ensure() -> Result<PathBuf> {
    for (_, compiler) in COMPILER {
        if !Path::new(compiler).exists() {
            bail!("{compiler} is not installed: `cargo xtask setup cilium` installs it");
        }
    }
    parts::ensure(&parts::CILIUM)
}

/// Adds the compiler to the cluster's programs, and Cilium's and the policy API's resource definitions to the API.
pub(super) fn install(cluster: &Cluster) -> Result<()> {
    for (name, compiler) in COMPILER {
        let link = cluster.program(name);
        std::os::unix::fs::symlink(compiler, &link).with_context(|| format!("cannot create {}", link.display()))?;
    }
    let cilium = parts::module_folder(&parts::CILIUM, MODULE)?.join("pkg/k8s/apis/cilium.io/client/crds");
    let policy = parts::module_folder(&parts::CILIUM, POLICY_MODULE)?.join("config/crd/standard");
    // The folder also has files for kustomize, which the API does not know.
    let policy = policy.join("policy.networking.k8s.io_clusternetworkpolicies.yaml");
    let mut kubectl = cluster.kubectl_command();
    kubectl.args(["apply", "--server-side"]);
    for path in [cilium.join("v2"), cilium.join("v2alpha1"), policy] {
        kubectl.arg("--filename").arg(path);
    }
    command::output(&mut kubectl).map(drop).context("cannot create Cilium's resource definitions")
}

/// Starts the node's agent. It waits for the API server's answer to everything it needs.
pub(super) fn start(cluster: &Cluster, node: &str) -> Result<()> {
    // Its own pins: all nodes share one kernel, and the machine's pins are not theirs.
    cluster.node_exec(node, &["sh", "-ec", "mount -t bpf bpf /sys/fs/bpf && mkdir -p /run/cilium"])?;
    let hybrid = Path::new("/sys/fs/cgroup/unified");
    let cgroup = if hybrid.is_dir() { hybrid } else { Path::new("/sys/fs/cgroup") };
    let mut flags = vec![
        format!("--k8s-kubeconfig-path={}", cluster.kubeconfig().display()),
        format!("--cluster-name={}", cluster.options.name),
        format!("--lib-dir={}", parts::module_folder(&parts::CILIUM, MODULE)?.display()),
        format!("--cgroup-root={}", cgroup.display()),
        format!("--ipv4-native-routing-cidr={POD_RANGE}"),
        format!("--enable-ipv6={}", cluster.options.dual_stack),
    ];
    if cluster.options.dual_stack {
        flags.push(format!("--ipv6-native-routing-cidr={POD_RANGE_V6}"));
        flags.push("--enable-ipv6-masquerade=false".to_owned());
    }
    let fixed = include_str!("cilium.flags").lines().filter(|line| line.starts_with("--"));
    flags.extend(fixed.map(str::to_owned));
    let mut entry = cluster.node_command(node)?;
    entry.args(["env", &format!("K8S_NODE_NAME={node}")]);
    cluster.spawn(&format!("{node}-cilium"), &entry, "cilium-agent", &flags)
}

/// Waits until the agent has told containerd how pods are connected.
pub(super) fn wait_ready(cluster: &Cluster, node: &str) -> Result<()> {
    let configuration = node::node_folder(cluster, node).join("net.d/05-cilium.conflist");
    cluster.wait(&format!("{node}-cilium"), &format!("pod network by Cilium on {node}"), READY_LIMIT, || {
        configuration.exists()
    })
}
