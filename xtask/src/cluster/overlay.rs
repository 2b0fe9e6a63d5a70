//! An overlay as flannel's VXLAN backend makes it: a device per node, and each other node's pod range behind that node's device.
//!
//! Everything is written down, nothing is learned: the route names the other node's device as its gateway, a permanent neighbour
//! gives its Ethernet address, and the forwarding database says to which node's address the packet goes. What pods send to anybody
//! else carries their node's address (`--ip-masq`), so that nodes answer pods of other nodes without the overlay.

use anyhow::Result;

use super::Cluster;
use super::address;
use super::underlay::ip;
use crate::command;

/// As flannel calls and numbers them; the port is what Linux took before IANA had one.
const DEVICE: &str = "flannel.1";
const DEVICE_V6: &str = "flannel-v6.1";
const VNI: &str = "1";
const PORT: &str = "8472";

/// What is left of 1 500 bytes: VXLAN over IPv4 adds 50, over IPv6 70.
pub(super) const MTU: u16 = 1_450;
const MTU_V6: u16 = 1_430;

/// One family of the overlay.
struct Family {
    device: &'static str,
    mtu: u16,
    flag: &'static str,
    /// As nft calls it.
    protocol: &'static str,
    range: &'static str,
    node: fn(&Cluster, u8) -> String,
    pods: fn(u8) -> String,
}

const V4: Family = Family {
    device: DEVICE,
    mtu: MTU,
    flag: "-4",
    protocol: "ip",
    range: address::POD_RANGE,
    node: |cluster, index| cluster.subnet.node(index),
    pods: address::pods,
};
const V6: Family = Family {
    device: DEVICE_V6,
    mtu: MTU_V6,
    flag: "-6",
    protocol: "ip6",
    range: address::POD_RANGE_V6,
    node: |_, index| address::node_v6(index),
    pods: address::pods_v6,
};

/// Makes the devices, and tells each node where the others' pods are.
pub(super) fn create(cluster: &Cluster) -> Result<()> {
    let families: &[Family] = if cluster.options.dual_stack { &[V4, V6] } else { &[V4] };
    for family in families {
        for index in 1..=cluster.options.nodes {
            device(cluster, family, index)?;
            masquerade(cluster, family, index)?;
            for other in (1..=cluster.options.nodes).filter(|&other| other != index) {
                peer(cluster, family, index, other)?;
            }
        }
    }
    Ok(())
}

fn device(cluster: &Cluster, family: &Family, index: u8) -> Result<()> {
    let (netns, device) = (netns(cluster, index), family.device);
    let (local, mtu) = ((family.node)(cluster, index), family.mtu.to_string());
    ip(&[
        "-n",
        &netns,
        "link",
        "add",
        device,
        "address",
        &mac(index),
        "mtu",
        &mtu,
        "type",
        "vxlan",
        "id",
        VNI,
        "local",
        &local,
        "dev",
        "eth0",
        "dstport",
        PORT,
        "nolearning",
    ])?;
    let address = end(family, index);
    let mut arguments = vec!["-n", &netns, "addr", "add", &address, "dev", device];
    // No duplicate address detection: the address must be usable at once.
    arguments.extend((family.flag == "-6").then_some("nodad"));
    ip(&arguments)?;
    ip(&["-n", &netns, "link", "set", device, "up"])
}

fn peer(cluster: &Cluster, family: &Family, index: u8, other: u8) -> Result<()> {
    let (netns, device, mac) = (netns(cluster, index), family.device, mac(other));
    let (gateway, node) = (end(family, other), (family.node)(cluster, other));
    command::output(command::tool("bridge").args([
        "-n",
        &netns,
        "fdb",
        "append",
        &mac,
        "dev",
        device,
        "dst",
        &node,
        "self",
        "permanent",
    ]))?;
    ip(&["-n", &netns, "neigh", "add", &gateway, "lladdr", &mac, "dev", device, "nud", "permanent"])?;
    let pods = (family.pods)(other);
    ip(&["-n", &netns, family.flag, "route", "add", &pods, "via", &gateway, "dev", device, "onlink"])
}

/// The two rules of flannel's (pkg/trafficmngr/nftables) that this cluster needs.
fn masquerade(cluster: &Cluster, family: &Family, index: u8) -> Result<()> {
    let Family { protocol, range, flag, .. } = family;
    let rules = format!(
        "table {protocol} flannel-ipv{} {{ chain postrtg {{ type nat hook postrouting priority srcnat; \
         {protocol} saddr {range} {protocol} daddr {range} return; \
         {protocol} saddr {range} masquerade fully-random; }}; }}",
        flag.trim_start_matches('-')
    );
    ip(&["netns", "exec", &netns(cluster, index), "nft", &rules])
}

/// The first address of the node's pod range, which no pod gets.
fn end(family: &Family, index: u8) -> String {
    let pods = (family.pods)(index);
    pods.split_once('/').map_or(pods.clone(), |(address, _)| address.to_owned())
}

/// Locally administered, the node's number at its end.
fn mac(index: u8) -> String {
    format!("02:0e:00:00:00:{index:02x}")
}

fn netns(cluster: &Cluster, index: u8) -> String {
    cluster.netns_name(&format!("n{index}"))
}
