//! The wire: one network namespace per host, a bridge in a further one, and the routes a cloud network would have.

use std::path::Path;

use anyhow::Result;

use super::address::{self, CONTROL_PLANE_V6};
use super::{Cluster, Cni, overlay};
use crate::command;

/// The name of the namespace that holds the bridge; its port to a host is called `port-HOST`.
pub(super) const SWITCH: &str = "switch";

/// Creates the namespaces of all hosts, connects them and the machine itself, and sets every route.
pub(super) fn create(cluster: &Cluster) -> Result<()> {
    let subnet = cluster.subnet;
    let switch = cluster.netns_name(SWITCH);
    ip(&["netns", "add", &switch])?;
    ip(&["-n", &switch, "link", "set", "lo", "up"])?;
    ip(&["-n", &switch, "link", "add", "br0", "type", "bridge"])?;
    ip(&["-n", &switch, "link", "set", "br0", "up"])?;

    host(cluster, "cp", &subnet.control_plane(), CONTROL_PLANE_V6)?;
    for index in 1..=cluster.options.nodes {
        host(cluster, &format!("n{index}"), &subnet.node(index), &address::node_v6(index))?;
    }
    let machine = format!("{}-root", cluster.options.name);
    ip(&["link", "add", &machine, "type", "veth", "peer", "name", "port-root", "netns", &switch])?;
    ip(&["-n", &switch, "link", "set", "port-root", "master", "br0", "up"])?;
    ip(&["addr", "add", &format!("{}/24", subnet.machine()), "dev", &machine])?;
    ip(&["link", "set", &machine, "up"])?;

    for index in 1..=cluster.options.nodes {
        route_pods_of(cluster, index, "cp")?;
        let netns = cluster.netns_name(&format!("n{index}"));
        ip(&["-n", &netns, "route", "add", "default", "via", &subnet.machine()])?;
        if cluster.options.cni == Cni::Vxlan {
            continue;
        }
        for other in (1..=cluster.options.nodes).filter(|&other| other != index) {
            route_pods_of(cluster, other, &format!("n{index}"))?;
        }
    }
    if cluster.options.cni == Cni::Vxlan {
        overlay::create(cluster)?;
    }
    Ok(())
}

/// Removes the namespaces and with them everything inside.
pub(super) fn remove(cluster: &Cluster) -> Result<()> {
    let machine = format!("{}-root", cluster.options.name);
    if Path::new("/sys/class/net").join(&machine).exists() {
        ip(&["link", "del", &machine])?;
    }
    for netns in namespaces(cluster) {
        ip(&["netns", "del", &netns])?;
    }
    Ok(())
}

/// The network namespaces of this cluster that exist.
pub(super) fn namespaces(cluster: &Cluster) -> Vec<String> {
    let hosts = cluster.node_names().chain(["cp".to_owned(), SWITCH.to_owned()]);
    let names = hosts.map(|host| cluster.netns_name(&host));
    names.filter(|name| Path::new("/run/netns").join(name).exists()).collect()
}

fn host(cluster: &Cluster, name: &str, v4: &str, v6: &str) -> Result<()> {
    let (switch, netns, port) = (cluster.netns_name(SWITCH), cluster.netns_name(name), format!("port-{name}"));
    ip(&["netns", "add", &netns])?;
    ip(&["-n", &netns, "link", "set", "lo", "up"])?;
    ip(&["link", "add", "name", "eth0", "netns", &netns, "type", "veth", "peer", "name", &port, "netns", &switch])?;
    ip(&["-n", &switch, "link", "set", &port, "master", "br0", "up"])?;
    ip(&["-n", &netns, "addr", "add", &format!("{v4}/24"), "dev", "eth0"])?;
    ip(&["-n", &netns, "link", "set", "eth0", "up"])?;
    sysctl(&netns, "net.ipv4.ip_forward=1")?;
    if cluster.options.dual_stack {
        // No duplicate address detection: the address must be usable at once.
        ip(&["-n", &netns, "addr", "add", &format!("{v6}/64"), "dev", "eth0", "nodad"])?;
        sysctl(&netns, "net.ipv6.conf.all.forwarding=1")?;
    }
    Ok(())
}

/// Tells `host` where the pods of node `index` are.
fn route_pods_of(cluster: &Cluster, index: u8, host: &str) -> Result<()> {
    let netns = cluster.netns_name(host);
    ip(&["-n", &netns, "route", "add", &address::pods(index), "via", &cluster.subnet.node(index)])?;
    if cluster.options.dual_stack {
        ip(&["-n", &netns, "-6", "route", "add", &address::pods_v6(index), "via", &address::node_v6(index)])?;
    }
    Ok(())
}

pub(super) fn ip(arguments: &[&str]) -> Result<()> {
    command::output(command::tool("ip").args(arguments)).map(drop)
}

fn sysctl(netns: &str, setting: &str) -> Result<()> {
    command::output(&mut command::words(&["ip", "netns", "exec", netns, "sysctl", "-qw", setting])).map(drop)
}
