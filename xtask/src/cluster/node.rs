//! One node: namespaces and mounts of its own, containerd, the kubelet and kube-proxy.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use super::address;
use super::{Cluster, Cni, cgroup, cilium, kube_proxy, kube_router, kubelet, overlay};
use crate::{command, template};

/// containerd answers within a second; a busy machine needs more.
const CONTAINERD_LIMIT: Duration = Duration::from_mins(1);

/// Nodes are Ready 3 s after the kubelet's start with ptp, 9 s with Cilium, on two idle cores.
const READY_LIMIT: Duration = Duration::from_mins(3);

/// What a node must not share with the others: (folder of the cluster, where the node sees it).
const OWN_FOLDERS: [(&str, &str); 7] = [
    ("run", "/run"),
    ("kubelet", "/var/lib/kubelet"),
    ("containerd", "/var/lib/containerd"),
    ("cni", "/var/lib/cni"),
    ("net.d", "/etc/cni/net.d"),
    ("pods", "/var/log/pods"),
    ("containers", "/var/log/containers"),
];

/// Creates the node's namespaces and mounts, starts containerd and gives it the images.
pub(super) fn prepare(cluster: &Cluster, node: &str, images: &[PathBuf]) -> Result<()> {
    write_configuration(cluster, node)?;
    cgroup::create(&cluster.options.name, node)?;
    let entry = command::words(&[
        "nsenter",
        &format!("--net={}", cluster.netns_of(node).display()),
        "unshare",
        "--mount",
        "--uts",
        // What happens in the node's mounts stays there, and what happens here does not disturb it.
        "--propagation=private",
    ]);
    cluster.spawn(&format!("{node}-init"), &entry, "pause", &[])?;
    cluster.wait(&format!("{node}-init"), "mount namespace of the node", CONTAINERD_LIMIT, || {
        cluster.pid_of(&format!("{node}-init")).is_some_and(|pid| {
            let namespace = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
            namespace(&pid.to_string()) != namespace("self")
        })
    })?;
    mount(cluster, node)?;

    let configuration = node_folder(cluster, node).join("containerd.toml");
    let containerd = format!("{node}-containerd");
    cluster.spawn(
        &containerd,
        &cluster.node_command(node)?,
        "containerd",
        &["--config".to_owned(), configuration.display().to_string()],
    )?;
    let socket = containerd_socket(cluster, node);
    cluster.wait(&containerd, "socket of containerd", CONTAINERD_LIMIT, || socket.exists())?;
    for image in images {
        import(cluster, node, image)?;
    }
    Ok(())
}

/// Registers the node and starts its kubelet and kube-proxy.
pub(super) fn join(cluster: &Cluster, node: &str) -> Result<()> {
    let index = index_of(node);
    let mut pods = vec![address::pods(index)];
    if cluster.options.dual_stack {
        pods.push(address::pods_v6(index));
    }
    // The kubelet adopts it. Created by us since nothing else here knows which node has which pod range.
    let object = json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": node},
        "spec": {"podCIDR": pods[0], "podCIDRs": pods},
    });
    cluster.apply(&object.to_string())?;

    if cluster.options.cni == Cni::Cilium {
        cilium::start(cluster, node)?;
    }
    kubelet::start(cluster, node)?;
    kube_proxy::start(cluster, node)
}

/// Waits until every node is Ready.
pub(super) fn wait_ready(cluster: &Cluster) -> Result<()> {
    let status = r#"jsonpath={.status.conditions[?(@.type=="Ready")].status}"#;
    for node in cluster.node_names() {
        if cluster.options.cni == Cni::Cilium {
            cilium::wait_ready(cluster, &node)?;
        }
        cluster.wait(&format!("{node}-kubelet"), &format!("Ready node {node}"), READY_LIMIT, || {
            cluster.kubectl(&["get", "node", &node, "-o", status]).is_ok_and(|status| status == "True")
        })?;
        if cluster.options.cni == Cni::KubeRouter {
            kube_router::start(cluster, &node)?;
            kube_router::wait_ready(cluster, &node)?;
        }
    }
    Ok(())
}

/// Gives a node's containerd an image.
pub(super) fn import(cluster: &Cluster, node: &str, image: &std::path::Path) -> Result<()> {
    command::output(
        command::tool(cluster.program("ctr"))
            .arg("--address")
            .arg(containerd_socket(cluster, node))
            .args(["--namespace", "k8s.io", "images", "import", "--no-unpack"])
            .arg(image),
    )
    .map(drop)
    .with_context(|| format!("node {node} does not take the image {}", image.display()))
}

/// The folder with the node's files.
pub(super) fn node_folder(cluster: &Cluster, node: &str) -> PathBuf {
    cluster.folder.join(node)
}

/// n3 is 3.
pub(super) fn index_of(node: &str) -> u8 {
    node[1..].parse().expect("node names are n and a number")
}

fn containerd_socket(cluster: &Cluster, node: &str) -> PathBuf {
    node_folder(cluster, node).join("run/containerd/containerd.sock")
}

fn mount(cluster: &Cluster, node: &str) -> Result<()> {
    use std::fmt::Write;
    // Shared within the node: a mount by the kubelet must show in containers that ask for HostToContainer.
    let mut script = format!("mount --make-rshared /\nhostname {node}\n");
    for (folder, seen) in OWN_FOLDERS {
        std::fs::create_dir_all(seen).with_context(|| format!("cannot create {seen}"))?;
        let own = node_folder(cluster, node).join(folder);
        writeln!(script, "mount --bind {} {seen}\nmount --make-rshared {seen}", own.display())?;
    }
    script.push_str("mkdir -p /run/netns /run/lock\n");
    cluster.node_exec(node, &["sh", "-ec", &script]).map(drop).context("cannot set up the node's mounts")
}

fn write_configuration(cluster: &Cluster, node: &str) -> Result<()> {
    let folder = node_folder(cluster, node);
    for (own, _) in OWN_FOLDERS {
        let path = folder.join(own);
        std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
    }
    let index = index_of(node);
    let runc = command::find("runc").context("runc is not installed: `cargo xtask setup cluster`")?;
    let containerd = template::fill(
        include_str!("containerd.toml"),
        &[
            ("programs", &cluster.folder.join("bin").display().to_string()),
            ("runc", &runc.display().to_string()),
            ("pause_image", super::images::PAUSE),
        ],
    )?;
    cluster.write(&format!("{node}/containerd.toml"), &containerd)?;
    // Nobody answers DNS there: names outside of the cluster fail at once instead of leaving the machine.
    cluster.write(&format!("{node}/resolv.conf"), &format!("nameserver {}\n", cluster.subnet.machine()))?;
    let plugin = match cluster.options.cni {
        // Each pod is routed, so Services also work between two pods of one node, without `br_netfilter`.
        Cni::Ptp | Cni::KubeRouter => json!({"type": "ptp", "ipMasq": false}),
        // The same, with room for the overlay's headers.
        Cni::Vxlan => json!({"type": "ptp", "ipMasq": false, "mtu": overlay::MTU}),
        // A pod that is its own endpoint is reached through the port it sent from, hence hairpin.
        Cni::Bridge => {
            json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true})
        }
        // Its agent writes its own.
        Cni::Cilium => return Ok(()),
    };
    cluster.write(&format!("{node}/net.d/10-pods.conflist"), &network(cluster, index, plugin))
}

/// The network of a node's pods: `plugin` connects them, with addresses of the node's pod range.
fn network(cluster: &Cluster, index: u8, mut plugin: Value) -> String {
    let mut ranges = vec![json!([{"subnet": address::pods(index)}])];
    let mut routes = vec![json!({"dst": "0.0.0.0/0"})];
    if cluster.options.dual_stack {
        ranges.push(json!([{"subnet": address::pods_v6(index)}]));
        routes.push(json!({"dst": "::/0"}));
    }
    plugin["ipam"] = json!({
        "type": "host-local", "dataDir": "/var/lib/cni/networks", "ranges": ranges, "routes": routes,
    });
    json!({
        "cniVersion": "1.0.0", "name": cluster.options.name,
        "plugins": [
            plugin,
            {"type": "portmap", "capabilities": {"portMappings": true}},
        ],
    })
    .to_string()
}
