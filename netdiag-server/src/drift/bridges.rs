//! What bridges do with packets between their ports, where pods hang on them. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use netdiag_common::observation::Observation;
use netdiag_common::observation::network::{Link, Network};
use netdiag_common::observation::service_rules::Proxier;
use netdiag_common::observation::sysctl::Sysctls;
use netdiag_common::{Need, Reading, Topic};

use super::pods::{self, Inside, Pods};
use super::{Difference, Kind, NodeDrift, Readings, gap, node};
use crate::condition::bridge::{hooks_words, passes_hooks, sysctl_of};
use crate::evidence::object::Pod;

/// A pod's port of a bridge.
struct Port<'a> {
    pod: &'a Pod,
    address: IpAddr,
    link: &'a Link,
    bridge: &'a Link,
}

pub(super) fn compare(
    all: &Pods<'_>,
    host: &Network,
    inside: &[Inside<'_>],
    readings: &Readings,
    drift: &mut NodeDrift,
) {
    // Without kube-proxy's rules no Service is translated by what a bridge could bypass.
    if drift.proxier.is_none_or(|proxier| proxier == Proxier::None) {
        return;
    }
    let ports: Vec<Port> = inside.iter().flat_map(|inside| ports(inside, host)).collect();
    if ports.is_empty() {
        return;
    }
    let sysctls = match readings.get(&Need::host(drift.node.as_str(), Topic::Sysctls)) {
        Some(Reading::Seen { value: Observation::Sysctls(sysctls), .. }) => sysctls,
        Some(Reading::Unavailable { gap }) => return drift.gaps.push(gap.clone()),
        _ => return drift.gaps.push(node::unasked(&drift.node, "sysctls of bridges")),
    };
    hooks(&ports, sysctls, drift);
    hairpin(all, &ports, sysctls, drift);
}

fn ports<'a>(inside: &Inside<'a>, host: &'a Network) -> Vec<Port<'a>> {
    let port = |address: IpAddr| {
        let link = inside.link(address, host).filter(|link| link.bridge_port.is_some())?;
        let bridge = host.link(link.master_index?).filter(|master| master.bridge.is_some())?;
        Some(Port { pod: inside.pod, address, link, bridge })
    };
    inside.pod.addresses().filter_map(port).collect()
}

/// Answers from port to port must pass the filter where their Service's address is put back.
fn hooks(ports: &[Port<'_>], sysctls: &Sysctls, drift: &mut NodeDrift) {
    let mut said: BTreeSet<(u32, bool)> = BTreeSet::new();
    for port in ports.iter().filter(|port| !passes_hooks(port.bridge, port.address, sysctls)) {
        if !said.insert((port.bridge.index, port.address.is_ipv4())) {
            continue;
        }
        drift.differences.push(Difference {
            kind: Kind::BridgeHooks,
            service: String::new(),
            entrance: None,
            expected: format!("packets between pods on bridge {} pass the packet filter", port.bridge.name),
            found: hooks_words(port.bridge, port.address, sysctls),
            rule: format!("sysctl {}", sysctl_of(port.address)),
        });
    }
}

/// A pod that a Service leads to may ask that Service.
fn hairpin(all: &Pods<'_>, ports: &[Port<'_>], sysctls: &Sysctls, drift: &mut NodeDrift) {
    let is_off = |port: &&Port<'_>| {
        let hairpin = port.link.bridge_port.is_some_and(|port| port.hairpin);
        // Else the node itself sends packets back.
        !hairpin && all.is_endpoint(port.pod) && passes_hooks(port.bridge, port.address, sysctls)
    };
    let mut off: BTreeMap<&str, Vec<&Port>> = BTreeMap::new();
    for port in ports.iter().filter(is_off) {
        off.entry(&port.bridge.name).or_default().push(port);
    }
    for (bridge, ports) in off {
        if ports.iter().any(|port| port.bridge.bridge.is_some_and(|bridge| bridge.promiscuous)) {
            let why =
                format!("{bridge} is promiscuous, and kernels differ in what becomes of packets that it hands up");
            let what = format!("whether pods on bridge {bridge} reach themselves by their Services");
            drift.gaps.push(gap(&drift.node, &what, why, "turn hairpin mode on"));
            continue;
        }
        let mut pods: Vec<&Pod> = ports.iter().map(|port| port.pod).collect();
        pods.dedup_by_key(|pod| &pod.metadata.uid);
        drift.differences.push(Difference {
            kind: Kind::Hairpin,
            service: String::new(),
            entrance: None,
            expected: format!("hairpin mode on at the ports of pods that Services lead to, on bridge {bridge}"),
            found: format!("off at {}, of {} pods: {}", ports[0].link.name, pods.len(), pods::list(&pods)),
            rule: format!("ports of bridge {bridge}"),
        });
    }
}
