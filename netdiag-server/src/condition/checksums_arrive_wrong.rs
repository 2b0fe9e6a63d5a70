//! Packets between two nodes arrive with wrong checksums: the sender's offload, which should have made them, does not work.

use netdiag_common::Netns;
use netdiag_common::observation::kfree_skb::{DropGroup, DropTuple};
use netdiag_common::observation::network::{Link, Network};
use netdiag_common::observation::{Owner, Protocol};

use super::between::{self, Astray, Found, Leg, Routing};
use super::trace::Met;
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::{Cluster, KindName, Look, View};
use crate::finding::{Fate, Proof};
use crate::path::Path;
use crate::path::route::{Way, way, words};
use crate::trace::TUNNELS;

pub const CONDITION: Condition = Condition {
    code: "checksums_arrive_wrong",
    severity: Severity::High,
    words: Words {
        means: "packets from a node to another node's pods arrive with wrong checksums, so that the kernel there throws them away, as \
                where the checksum offload of the sender's tunnel, driver or hypervisor is broken",
        how_we_know: "the probe gets no answer, and the other node's kernel drops packets of that node for their checksums: those for the \
                      pod, or those of the tunnel that carries them; the counter of wrong checksums, where it is seen, has grown there",
        silent_when: "the probe gets through (what a bad link damages at random lets some through), nothing is dropped for its checksum \
                      on this way, or the counter does not grow; kernels that give no reasons for drops (before 5.17) do not tell it",
        what_to_do: "turn checksum offload off at the device that the sending node uses, then bring kernel, driver or hypervisor up to date",
        sources: &[
            "https://github.com/kubernetes/kubernetes/issues/88986",
            "https://github.com/flannel-io/flannel/issues/1282",
            "https://github.com/projectcalico/calico/issues/3145",
            "net/ipv4/tcp_ipv4.c: tcp_v4_rcv (TCP_CSUM), net/ipv4/udp.c: __udp4_lib_rcv (UDP_CSUM)",
        ],
    },
    faults: &["cni-vxlan-checksum-offload"],
    reads: &[
        Read::Kind(KindName::Nodes),
        Read::Kind(KindName::Pods),
        Read::Topic("network"),
        Read::Topic("drops"),
        Read::Topic("counters"),
        Read::Topic("probe"),
    ],
    lookalikes: &["overlay_port_blocked", "overlay_ends_differ", "host_firewall_drops_path", "policy_denies_path"],
    explains: &[Explains { code: "pods_lost_between_nodes", relation: Relation::SameNode }],
    judge,
};

const REASONS: &[&str] = &["TCP_CSUM", "UDP_CSUM"];

const ROUTING: Routing = Routing {
    look,
    verb: "lose packets so",
    reasons: REASONS,
    fix: |node| {
        format!(
            "turn checksum offload off at the device by which node {node} sends to the other node, and keep it off across restarts \
             (ChecksumOffloadBroken of Calico's FELIX_FEATUREDETECTOVERRIDE, a unit or a udev rule elsewhere); then bring the node's \
             kernel, the driver of its network device or the hypervisor up to date"
        )
    },
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    between::judge(path, view, &ROUTING)
}

fn look<'p>(leg: Leg<'p>, met: Met, view: &mut View) -> Found<'p> {
    if met != Met::Failed(Fate::Silence) {
        return Found::Fine(format!("no probe between nodes {} and {} goes unanswered", leg.node, leg.to_node));
    }
    let Look::Seen(network) = view.network(leg.node, &Netns::Host) else { return Found::Dark };
    let (network, at) = (network.value, network.at);
    let (Way::Known(route) | Way::OnlyDefault(route)) = way(network, leg.to) else {
        return Found::Fine(format!("node {} has no way to {}", leg.node, leg.to));
    };
    let device = route.link_index.and_then(|index| network.link(index));
    let drops = match view.drops(leg.to_node, &Netns::Host) {
        Look::Seen(drops) => drops,
        Look::Absent(_) => return Found::Fine(format!("node {} drops nothing", leg.to_node)),
        Look::Dark => return Found::Dark,
    };
    let Look::Seen(_) = view.pods() else { return Found::Dark };
    let cluster = view.cluster();
    let damaged = drops.value.groups.iter().find_map(|group| {
        let tuple = group.tuple.as_ref().filter(|_| REASONS.contains(&group.reason.as_str()))?;
        let carries = carries(tuple, &leg, device, cluster)?;
        is_of_node(tuple, leg.node, network, cluster).then_some((group, tuple, carries))
    });
    let Some((group, tuple, carries)) = damaged else {
        return Found::Fine(format!("node {} drops no packet of node {} for its checksum", leg.to_node, leg.node));
    };
    let counter = match counted(group, tuple, leg.to_node, view) {
        Counted::Grew(proof) => Some(proof),
        Counted::Same(name) => {
            return Found::Fine(format!("{name} of node {} does not grow", leg.to_node));
        }
        Counted::Unknown => None,
    };
    let what = match carries {
        Carries::Pod => format!("packets from node {} to {} on node {}", leg.node, leg.to, leg.to_node),
        Carries::Tunnel => format!(
            "packets of the tunnel from node {} to node {} (UDP port {})",
            leg.node, leg.to_node, tuple.service_port
        ),
    };
    let claim = format!("{what} arrive with wrong checksums, and the kernel there throws them away");
    let told = format!(
        "{} packets from {} to {} dropped in {:.0} s: {} at {}",
        group.packets, tuple.source, tuple.destination, drops.value.window_s, group.reason, group.location
    );
    let by = device.map_or("", |device| device.kind.as_str());
    let by = if by.is_empty() { String::new() } else { format!(" ({by})") };
    let mut proofs = vec![
        Proof::observed("dropped packets", leg.to_node, drops.at, told),
        Proof::programmed("routes", leg.node, at, format!("to {}: {}{by}", leg.to, words(&route, network))),
    ];
    proofs.extend(counter);
    let command = device.map(|device| {
        let feature = if TUNNELS.contains(&device.kind.as_str()) { "tx-checksum-ip-generic" } else { "tx" };
        format!("ethtool -K {} {feature} off  # on node {}", device.name, leg.node)
    });
    Found::Astray(Box::new(Astray { leg, claim, proofs, predicts: &[Fate::Silence], command }))
}

/// What a dropped packet was.
enum Carries {
    /// The pod's own.
    Pod,
    /// One that packs those for pods.
    Tunnel,
}

/// None when it was neither for the pod nor of the tunnel that leads to its node.
fn carries(tuple: &DropTuple, leg: &Leg, device: Option<&Link>, cluster: &Cluster) -> Option<Carries> {
    if tuple.destination == leg.to {
        return Some(Carries::Pod);
    }
    let port = device?.tunnel.as_ref()?.port?;
    let is_for_tunnel =
        tuple.protocol == Some(Protocol::Udp) && tuple.port_is_destination && tuple.service_port == port;
    let taker = cluster.node_by_address(tuple.destination)?;
    (is_for_tunnel && taker.metadata.name == leg.to_node).then_some(Carries::Tunnel)
}

/// One of the node's pods sent it, or the node itself.
fn is_of_node(tuple: &DropTuple, node: &str, network: &Network, cluster: &Cluster) -> bool {
    let is_own = network.addresses.iter().any(|own| own.address == tuple.source);
    is_own || cluster.pod_by_address(tuple.source).is_some_and(|pod| pod.spec.node_name == node)
}

/// What the receiving namespace's own counter says.
enum Counted {
    Grew(Proof),
    /// Its name: it did not grow.
    Same(&'static str),
    Unknown,
}

fn counted(group: &DropGroup, tuple: &DropTuple, node: &str, view: &mut View) -> Counted {
    // UDP of IPv6 is counted elsewhere.
    let name = match (tuple.protocol, tuple.source.is_ipv4()) {
        (Some(Protocol::Tcp), _) => "Tcp.InCsumErrors",
        (Some(Protocol::Udp), true) => "Udp.InCsumErrors",
        _ => return Counted::Unknown,
    };
    let netns = match &group.netns {
        Owner::Host => Netns::Host,
        Owner::Pod { uid } => Netns::Pod(uid.clone()),
        Owner::Unknown { .. } => return Counted::Unknown,
    };
    let Look::Seen(counters) = view.counters(node, &netns) else { return Counted::Unknown };
    match counters.value.get(name).and_then(|counter| counter.delta) {
        Some(0) => Counted::Same(name),
        Some(grown) => {
            let text = format!("{name} has grown by {grown} in {:.0} s", counters.value.window_s);
            Counted::Grew(Proof::observed("network counters", node, counters.at, text))
        }
        None => Counted::Unknown,
    }
}
