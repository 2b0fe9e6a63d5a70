//! Whether a node does with packets of pods what NetworkPolicies say: for pods that policies isolate, the node is asked for the
//! fate of a packet that they allow, and of one that they deny. Whoever wrote the rules: what counts is what becomes of the packet.
//! Where Cilium's programs decide, its policy maps are asked. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use netdiag_common::forwarding::path::{End, Path};
use netdiag_common::observation::fate::{Fate, FateInterfaceKey, FateOrigin, FateRequest, FateTransport};
use netdiag_common::observation::network::Network;
use netdiag_common::observation::policy_map::{PolicyEntry, PolicyQuery, PolicyVerdict};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Gap, Need, Reading, Topic};

use super::masquerade::{SOURCE_PORT, SYN};
use super::pods::{self, Pods, has_links, host};
use super::{Difference, Kind, NodeDrift, Readings, gap};
use crate::condition::rule;
use crate::evidence::Cluster;
use crate::evidence::object::{IntOrString, NetworkPolicy, Object, Pod};
use crate::path::policy::{Decision, Direction, Flow, Side, decide, isolating};

/// Isolated pods of one node whose packets are followed: each costs the agent up to four evaluations.
const MAX_PODS: usize = 8;
/// Other ends that are thought of for one pod, until one is found that policies allow and one that they deny.
const MAX_PEERS: usize = 512;
/// Ports that are thought of for one pair.
const MAX_PORTS: usize = 8;
/// Of them, those that Services lead to: the others must have their turn too.
const MAX_SERVED: usize = 4;
/// Cilium's own end on every node; it decides before any rule does.
const CILIUM_LINK: &str = "cilium_host";
/// Where nobody names a port.
const USUAL_PORT: (Protocol, u16) = (Protocol::Tcp, 80);

/// One packet, and what policies say about it.
struct Try<'c> {
    flow: Flow<'c>,
    is_denied: bool,
    because: String,
    need: Need,
}

/// What became of it.
enum Found {
    /// Where, in words.
    Passes(String),
    Stopped(String),
    Unknown(String),
}

/// What to ask the node besides, once links are known.
pub(super) fn needs(cluster: &Cluster, pods: &Pods<'_>, node: &str, readings: &Readings) -> Vec<Need> {
    tries(cluster, pods, node, readings).into_iter().map(|one| one.need).collect()
}

pub(super) fn compare(cluster: &Cluster, pods: &Pods<'_>, readings: &Readings, drift: &mut NodeDrift) {
    if let Some(gap) = unread(cluster) {
        return drift.gaps.push(gap.clone());
    }
    let node = drift.node.clone();
    let what = "what NetworkPolicies have made of the node's rules";
    let mut unknown: BTreeMap<String, usize> = BTreeMap::new();
    for one in tries(cluster, pods, &node, readings) {
        let found = match readings.get(&one.need) {
            Some(Reading::Seen { value: Observation::Fate(fate), .. }) => became(fate),
            Some(Reading::Seen { value: Observation::PolicyMap(verdict), .. }) => told(verdict),
            Some(Reading::Unavailable { gap }) => Found::Unknown(gap.why.clone()),
            _ => Found::Unknown("the node did not tell it".to_owned()),
        };
        drift.policed += usize::from(!matches!(found, Found::Unknown(_)));
        let (expected, found, rule) = match (found, one.is_denied) {
            (Found::Passes(rule), true) => ("is stopped", "nothing stops it".to_owned(), rule),
            (Found::Stopped(rule), false) => ("gets through", "it is stopped".to_owned(), rule),
            (Found::Passes(_), false) | (Found::Stopped(_), true) => continue,
            (Found::Unknown(why), _) => {
                *unknown.entry(why).or_default() += 1;
                continue;
            }
        };
        let expected = format!("{} {expected}: {}", words(&one.flow), one.because);
        drift.differences.push(Difference {
            kind: Kind::Policy,
            service: String::new(),
            entrance: None,
            expected,
            found,
            rule,
        });
    }
    for (why, count) in unknown {
        let why = format!("of {count} packets that policies decide about: {why}");
        drift.gaps.push(gap(&node, what, why, "ask the policy engine itself what it has programmed"));
    }
    let isolated = isolated(cluster, pods, &node).count();
    if isolated > MAX_PODS {
        let why = format!("packets of {MAX_PODS} of {isolated} isolated pods were followed");
        drift.gaps.push(gap(&node, what, why, "look at single connections with netdiag trace"));
    }
}

/// Without these the API's meaning of a policy is not known.
fn unread(cluster: &Cluster) -> Option<&Gap> {
    cluster.network_policies.gap().or_else(|| cluster.namespaces.gap())
}

/// Pods of the node that policies isolate, in either direction.
fn isolated<'c>(cluster: &'c Cluster, pods: &Pods<'c>, node: &str) -> impl Iterator<Item = &'c Pod> {
    let is_isolated = |pod: &&Pod| {
        [Direction::Ingress, Direction::Egress].iter().any(|way| !isolating(cluster, pod, *way).is_empty())
    };
    let chosen: Vec<&Pod> = pods.chosen(node).iter().copied().filter(is_isolated).collect();
    chosen.into_iter()
}

/// Of each isolated pod and direction one packet that is allowed and one that is denied, where there are such.
fn tries<'c>(cluster: &'c Cluster, pods: &Pods<'c>, node: &str, readings: &Readings) -> Vec<Try<'c>> {
    let Some(network) = host(readings, node) else { return Vec::new() };
    if unread(cluster).is_some() {
        return Vec::new();
    }
    let mut tries = Vec::new();
    for pod in isolated(cluster, pods, node).take(MAX_PODS) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let policies = isolating(cluster, pod, direction);
            if policies.is_empty() {
                continue;
            }
            let named: Vec<_> = policies.iter().flat_map(|policy| ports_of(policy, direction)).collect();
            let (mut allowed, mut denied) = (None, None);
            for flow in flows(cluster, pods, pod, (direction, &named)) {
                let place = match decide(cluster, &flow) {
                    Decision::Allowed(because) if allowed.is_none() => (&mut allowed, because, false),
                    // A node stops what its own pods send or get; the other end's policies are the other node's.
                    Decision::Denied(denials) if denied.is_none() => {
                        let is_own = |way: Direction, of: &Pod| way == direction && of.metadata.uid == pod.metadata.uid;
                        let Some(own) = denials.iter().find(|denial| is_own(denial.direction, denial.pod)) else {
                            continue;
                        };
                        let names: Vec<String> =
                            own.policies.iter().map(|policy| policy.reference().to_string()).collect();
                        let because = format!("no {} rule of {} allows it", direction.word(), names.join(" or "));
                        (&mut denied, because, true)
                    }
                    _ => continue,
                };
                let Some(need) = need(node, readings, network, (&flow, direction)) else { continue };
                let (slot, because, is_denied) = place;
                *slot = Some(Try { flow, is_denied, because, need });
                if allowed.is_some() && denied.is_some() {
                    break;
                }
            }
            tries.extend(allowed.into_iter().chain(denied));
        }
    }
    tries
}

/// Connections of this pod with others, its own namespace's first.
fn flows<'c>(
    cluster: &'c Cluster,
    pods: &Pods<'_>,
    pod: &'c Pod,
    (direction, named): (Direction, &[(Protocol, u16)]),
) -> Vec<Flow<'c>> {
    let own = &pod.metadata.namespace;
    let near = cluster.pods.in_namespace(own);
    let far = cluster.pods.iter().filter(|other| other.metadata.namespace != *own);
    let is_peer = |peer: &&Arc<Pod>| has_links(peer) && peer.metadata.uid != pod.metadata.uid;
    let mut flows = Vec::new();
    for peer in near.chain(far).filter(is_peer).take(MAX_PEERS) {
        let Some((address, other)) = addresses(pod, peer) else { continue };
        let side = |pod: &'c Pod, address| Side { address, pod: Some(pod), node: &pod.spec.node_name };
        let (from, to) = match direction {
            Direction::Ingress => (side(peer, other), side(pod, address)),
            Direction::Egress => (side(pod, address), side(peer, other)),
        };
        let ports = ports(&to, pods, named).into_iter();
        flows.extend(ports.map(|(protocol, port)| Flow { from, to, protocol, port, service_port: None }));
    }
    flows
}

/// Ports of this end, those first that most depends on: what Services lead to, what policies name, what its containers declare.
fn ports(to: &Side<'_>, pods: &Pods<'_>, named: &[(Protocol, u16)]) -> Vec<(Protocol, u16)> {
    let can_be_asked = |(protocol, _): &(Protocol, u16)| matches!(protocol, Protocol::Tcp | Protocol::Udp);
    let declared = to.pod.into_iter().flat_map(|to| &to.spec.containers).flat_map(|container| &container.ports);
    let declared = declared.map(|port| (port.protocol.0, port.container_port));
    let served = pods.served(to.address).filter(can_be_asked).take(MAX_SERVED);
    let mut ports = Vec::new();
    for port in served.chain(named.iter().copied()).chain(declared).chain([USUAL_PORT]).filter(can_be_asked) {
        if ports.len() < MAX_PORTS && !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}

/// Of one family.
fn addresses(pod: &Pod, peer: &Pod) -> Option<(IpAddr, IpAddr)> {
    pod.addresses().find_map(|own| Some((own, peer.addresses().find(|other| other.is_ipv4() == own.is_ipv4())?)))
}

/// Numbers that its rules name.
fn ports_of(policy: &NetworkPolicy, direction: Direction) -> impl Iterator<Item = (Protocol, u16)> {
    direction.rules(policy).iter().flat_map(|rule| &rule.ports).filter_map(|port| match &port.port {
        Some(IntOrString::Number(number)) => Some((port.protocol.0, *number)),
        _ => None,
    })
}

/// What to ask about the flow's first packet: of rules, as it comes to the node; of Cilium, as its programs see it. None where it is not known by which interface, or where it would not be routed.
fn need(node: &str, readings: &Readings, network: &Network, (flow, direction): (&Flow<'_>, Direction)) -> Option<Need> {
    let (from, to) = (&flow.from, &flow.to);
    if network.links.iter().any(|link| link.name == CILIUM_LINK) {
        let ingress = direction == Direction::Ingress;
        let (pod, peer) = if ingress { (to.address, from.address) } else { (from.address, to.address) };
        let query = PolicyQuery { pod, peer, ingress, protocol: flow.protocol, port: flow.port };
        return Some(Need::host(node, Topic::PolicyMap(query)));
    }
    let interface = if from.node == node {
        let end = pods::end(from.pod?, from.address, readings, network)?;
        // From port to port of one bridge rules count only where sysctls say so.
        if end.master_index.is_some() && to.node == node {
            return None;
        }
        end.master_index.unwrap_or(end.index)
    } else {
        network.route_to(from.address)?.link_index?
    };
    let (source_port, destination_port) = (Some(SOURCE_PORT), Some(flow.port));
    let transport = match flow.protocol {
        Protocol::Tcp => FateTransport::Tcp { source_port, destination_port, flags: SYN },
        Protocol::Udp => FateTransport::Udp { source_port, destination_port },
        _ => return None,
    };
    let origin = FateOrigin::Received(FateInterfaceKey::Index(interface));
    let request = FateRequest::new(origin, Some(from.address), to.address, transport);
    Some(Need::host(node, Topic::Fate(request)))
}

/// The same on every way that it can take.
fn became(fate: &Fate) -> Found {
    let mut ends = fate.outcome.paths.iter().map(|path| end(fate, path));
    let Some(mut found) = ends.next() else { return Found::Unknown("the agent told no way of it".to_owned()) };
    for other in ends {
        found = match (found, other) {
            (Found::Passes(place), Found::Passes(_)) => Found::Passes(place),
            (Found::Stopped(rule), Found::Stopped(_)) => Found::Stopped(rule),
            (Found::Unknown(why), _) | (_, Found::Unknown(why)) => Found::Unknown(why),
            _ => Found::Unknown("rules decide by what is not known of the packet".to_owned()),
        };
    }
    found
}

fn end(fate: &Fate, path: &Path) -> Found {
    if let Some(gap) = path.gaps.first() {
        return Found::Unknown(gap.clone());
    }
    match &path.end {
        End::Sent { .. } | End::Delivered => Found::Passes("hook forward".to_owned()),
        End::Dropped { .. } | End::Rejected { .. } => Found::Stopped(match rule::stop(fate, path) {
            Some(rule) => format!("{}: {} (written by {})", rule.place(), rule.text, rule.writer()),
            None => "the policy of a base chain".to_owned(),
        }),
        End::Queued { number, .. } => Found::Unknown(format!("a program decides about it (queue {number})")),
        End::Taken { what, .. } => Found::Unknown(format!("{what} takes it")),
        End::Unknown { because, .. } => Found::Unknown(because.clone()),
        End::NoRoute { .. } | End::Discarded(_) | End::HopsExhausted | End::TooBig { .. } => {
            Found::Unknown("it is not forwarded, whatever rules say".to_owned())
        }
    }
}

/// What Cilium's maps have for it.
fn told(verdict: &PolicyVerdict) -> Found {
    let PolicyVerdict { engine, endpoint, identity, map, entry, .. } = verdict;
    let place =
        format!("map {map} of {engine} (endpoint {endpoint}, identity {identity} of the other end): {}", entry.word());
    match entry {
        PolicyEntry::Allows => Found::Passes(place),
        PolicyEntry::Denies | PolicyEntry::Missing => Found::Stopped(place),
        PolicyEntry::Redirects { port } => Found::Unknown(format!("{engine} sends it to a proxy at port {port}")),
        PolicyEntry::WantsAuthentication => Found::Unknown(format!("{engine} wants both ends authenticated")),
    }
}

/// `Pod shop/client to Pod shop/web-1, port 8080/tcp`
fn words(flow: &Flow<'_>) -> String {
    format!("{} to {}, port {}/{}", flow.from.words(), flow.to.words(), flow.port, flow.protocol)
}
