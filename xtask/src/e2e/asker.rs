//! What it takes to ask netdiag with a view taken away: agents without BTF, and somebody with fewer rights.

use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::cluster::Cluster;
use crate::install::Installed;

/// Where the agents without BTF listen, beside the installed ones.
pub(super) const BLIND_PORT: u16 = 9543;

/// Everything a question needs; what it started ends with it.
pub(super) struct Asker {
    pub(super) program: PathBuf,
    /// ca.crt, server.crt and server.key, for asking agents directly.
    pub(super) tls: PathBuf,
    /// Credentials of somebody who may not list NetworkPolicies.
    pub(super) limited: PathBuf,
    blind: Vec<Child>,
}

impl Asker {
    pub(super) fn new(cluster: &Cluster, installed: &Installed) -> Result<Self> {
        let scratch = cluster.scratch("e2e")?;
        let limited = limited_kubeconfig(cluster, &scratch)?;
        let blind =
            cluster.node_names().map(|node| blind_agent(cluster, installed, &scratch, &node)).collect::<Result<_>>()?;
        let asker = Self { program: installed.server.clone(), tls: installed.tls.clone(), limited, blind };
        for node in cluster.node_names() {
            cluster.wait_until(&format!("the agent without BTF on {node}"), Duration::from_secs(20), || {
                cluster.node_exec(&node, &["sh", "-c", &format!("ss -Hltn sport = :{BLIND_PORT} | grep -q .")]).is_ok()
            })?;
        }
        Ok(asker)
    }
}

impl Drop for Asker {
    fn drop(&mut self) {
        for agent in &mut self.blind {
            // It may have ended by itself; the cluster's teardown ends what is left.
            let _ = agent.kill();
            let _ = agent.wait();
        }
    }
}

/// An agent of the node that sees an empty file where the kernel's BTF should be.
fn blind_agent(cluster: &Cluster, installed: &Installed, scratch: &Path, node: &str) -> Result<Child> {
    let address = cluster.node_address(node);
    let script = format!(
        "mount --bind /dev/null /sys/kernel/btf/vmlinux && exec {} --node-name {node} --listen {address}:{BLIND_PORT} \
         --tls-dir {} --cgroup-root {}",
        installed.agent.display(),
        installed.tls.display(),
        cluster.cgroup_root(node),
    );
    let log = std::fs::File::create(scratch.join(format!("{node}-blind-agent.log")))?;
    cluster
        .node_command(node)?
        .args(["unshare", "--mount", "sh", "-c", &script])
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .with_context(|| format!("cannot start an agent without BTF on {node}"))
}

/// A kubeconfig of a ServiceAccount that may read everything netdiag judges, but NetworkPolicies.
fn limited_kubeconfig(cluster: &Cluster, folder: &Path) -> Result<PathBuf> {
    cluster.apply(include_str!("limited.yaml"))?;
    kubeconfig_of(cluster, folder, "limited")
}

/// A kubeconfig with a token of a ServiceAccount in namespace shop.
pub(super) fn kubeconfig_of(cluster: &Cluster, folder: &Path, account: &str) -> Result<PathBuf> {
    let token = cluster.kubectl(&["-n", "shop", "create", "token", account, "--duration=2h"])?;
    let admin = cluster.kubeconfig();
    let text = std::fs::read_to_string(&admin).with_context(|| format!("cannot read {}", admin.display()))?;
    let mut config: serde_json::Value =
        serde_saphyr::from_str(&text).with_context(|| format!("cannot parse {}", admin.display()))?;
    let Some(users) = config["users"].as_array_mut() else { bail!("{} has no users", admin.display()) };
    for user in users {
        user["user"] = serde_json::json!({"token": token.trim()});
    }
    let path = folder.join(format!("{account}.conf"));
    // JSON is YAML.
    std::fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}
