//! Pods on a node's bridge, for conditions about what a bridge does with the packets of Services.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::observation::network::{Link, Network};
use netdiag_common::observation::service_rules::{Endpoint, Proxier, ServiceAction};
use netdiag_common::observation::sysctl::Sysctls;
use netdiag_common::{Gap, GapReason, Netns};

use crate::evidence::{Look, Seen, View};
use crate::path::{Client, Path};

/// A pod's interface and the port of the bridge that it hangs on.
pub struct Attached<'e> {
    /// The pod's own links and routes.
    pub pod: &'e Network,
    pub port: &'e Link,
    pub bridge: &'e Link,
    /// The node's links, and when they were read.
    pub host: Seen<'e, Network>,
}

/// Where a pod's interface leads to.
pub enum Interface<'e> {
    Bridged(Attached<'e>),
    /// To no port of a bridge of this node.
    Elsewhere,
    Dark,
}

/// The pod's interface that has `address`. The pod's namespace is looked into only where some link of the node is a port.
pub fn interface<'e>(node: &str, pod: &Netns, address: IpAddr, view: &mut View<'e>) -> Interface<'e> {
    let Look::Seen(host) = view.network(node, &Netns::Host) else { return Interface::Dark };
    if !host.value.links.iter().any(|link| link.bridge_port.is_some()) {
        return if host.value.left_out.is_empty() { Interface::Elsewhere } else { incomplete(node, host.value, view) };
    }
    let Look::Seen(pod) = view.network(node, pod) else { return Interface::Dark };
    let own =
        pod.value.addresses.iter().find(|own| own.address == address).and_then(|own| pod.value.link(own.link_index));
    let Some(own) = own else { return Interface::Elsewhere };
    // Indices are of one namespace each: both ends must name each other.
    let port =
        own.peer_index.and_then(|index| host.value.link(index)).filter(|port| port.peer_index == Some(own.index));
    let bridge = port.and_then(|port| host.value.link(port.master_index?)).filter(|master| master.bridge.is_some());
    match (port, bridge) {
        (Some(port), Some(bridge)) => Interface::Bridged(Attached { pod: pod.value, port, bridge, host }),
        (None, _) if !host.value.left_out.is_empty() => incomplete(node, host.value, view),
        _ => Interface::Elsewhere,
    }
}

fn incomplete<'e>(node: &str, network: &Network, view: &mut View<'e>) -> Interface<'e> {
    view.leave_open(Gap {
        what: format!("bridge ports of node {node}"),
        node: Some(node.to_owned()),
        reason: GapReason::Failed,
        why: format!("not everything was listed: {}", network.left_out.join(", ")),
        remedy: "`bridge -d link show` on the node lists all".to_owned(),
    });
    Interface::Dark
}

/// The sysctl that sends bridged packets of this family through the hooks of IP. nftables' chains are there, too.
pub fn sysctl_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "net.bridge.bridge-nf-call-iptables" } else { "net.bridge.bridge-nf-call-ip6tables" }
}

/// Whether packets from port to port pass these hooks, where Service addresses are translated: for all bridges of the
/// namespace, or for this one (`br_nf_pre_routing` in net/bridge/br_netfilter_hooks.c). Without the sysctl, the module
/// `br_netfilter` is not loaded, and no bridge's own setting has anything to act upon.
pub fn passes_hooks(bridge: &Link, address: IpAddr, sysctls: &Sysctls) -> bool {
    let Some(all) = sysctls.values.get(sysctl_of(address)) else { return false };
    let own = bridge
        .bridge
        .and_then(|bridge| if address.is_ipv4() { bridge.nf_call_iptables } else { bridge.nf_call_ip6tables });
    all != "0" || own == Some(true)
}

/// `net.bridge.bridge-nf-call-iptables is 0`, or that it is not there.
pub fn hooks_words(bridge: &Link, address: IpAddr, sysctls: &Sysctls) -> String {
    let name = sysctl_of(address);
    match sysctls.values.get(name) {
        None => format!("{name} is not there: br_netfilter is not loaded"),
        Some(value) if value == "0" && passes_hooks(bridge, address, sysctls) => {
            format!("{name} is 0, but bridge {} has such a setting of its own, which is on", bridge.name)
        }
        Some(value) => format!("{name} is {value}"),
    }
}

/// Where the rules of the client's node lead the asked port to.
pub enum Rules<'e> {
    LeadTo(Seen<'e, Vec<Endpoint>>),
    /// Nowhere, or nothing of kube-proxy is there: others translate.
    Nothing,
    Dark,
}

pub fn rules<'e>(path: &Path, client: &Client, address: IpAddr, view: &mut View<'e>) -> Rules<'e> {
    let seen = match view.service_rules(&client.node, &Netns::Host) {
        Look::Seen(seen) => seen,
        Look::Absent(_) => return Rules::Nothing,
        Look::Dark => return Rules::Dark,
    };
    if seen.value.proxier == Proxier::None || !seen.value.hooked {
        return Rules::Nothing;
    }
    let dialled = path.address_like(address).zip(path.port);
    match dialled.and_then(|(dialled, port)| seen.value.find(dialled, path.protocol, port)).map(|rule| &rule.action) {
        Some(ServiceAction::Endpoints(endpoints)) => Rules::LeadTo(Seen { value: endpoints, at: seen.at }),
        Some(ServiceAction::Reject | ServiceAction::Drop) => Rules::Nothing,
        None if seen.value.undecoded.is_empty() => Rules::Nothing,
        None => {
            view.leave_open(Gap {
                what: format!("Service rules of node {}", client.node),
                node: Some(client.node.clone()),
                reason: GapReason::Failed,
                why: format!("not decoded: {}", seen.value.undecoded.join(", ")),
                remedy: "ask again; the node's rules may have been changing".to_owned(),
            });
            Rules::Dark
        }
    }
}

/// `10.244.1.3:8080, 10.244.2.3:8080`.
pub fn list(endpoints: &[Endpoint]) -> String {
    let sockets = endpoints.iter().map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port).to_string());
    sockets.collect::<Vec<_>>().join(", ")
}
