//! What NetworkPolicies say about one connection, in both directions, by the API's definition (networking.k8s.io/v1).
//!
//! Policies see the connection after the Service's translation: the endpoint's address and port. Whether anything
//! enforces them is the business of `enforcer`.

use std::net::IpAddr;
use std::sync::Arc;

use netdiag_common::observation::Protocol;

use super::{Backend, Client, Path};
use crate::evidence::Cluster;
use crate::evidence::object::{IntOrString, NetworkPolicy, Object, Pod, PolicyPeer, PolicyPort, PolicyRule};

mod enforcer;
mod near;

pub use enforcer::{Enforcer, enforcer};
pub use near::{Lack, NearMiss};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Into the server pod.
    Ingress,
    /// Out of the client pod.
    Egress,
}

/// One end of a connection.
#[derive(Debug, Clone, Copy)]
pub struct Side<'c> {
    pub address: IpAddr,
    /// None for hosts (pods with hostNetwork too: selectors do not see them) and for addresses outside the cluster.
    pub pod: Option<&'c Pod>,
    /// Node of the pod or host; empty when unknown.
    pub node: &'c str,
}

/// One connection, as policies see it.
#[derive(Debug, Clone, Copy)]
pub struct Flow<'c> {
    pub from: Side<'c>,
    pub to: Side<'c>,
    pub protocol: Protocol,
    /// At the endpoint.
    pub port: u16,
    /// What the client dials, when a Service translates it to another number.
    pub service_port: Option<u16>,
}

#[derive(Debug)]
pub enum Decision<'c> {
    /// The clause says why: no policy isolates, or which rule allows.
    Allowed(String),
    /// In the order the packet meets them: egress before ingress.
    Denied(Vec<Denial<'c>>),
    /// Engines differ about this case; the clause says what it is.
    Undefined(String),
}

/// One direction in which no rule allows the connection.
#[derive(Debug)]
pub struct Denial<'c> {
    pub direction: Direction,
    /// The pod that the policies isolate.
    pub pod: &'c Pod,
    /// Every policy that isolates it in this direction.
    pub policies: Vec<&'c Arc<NetworkPolicy>>,
    /// The rule that comes closest to allowing it, when one does.
    pub near: Option<NearMiss<'c>>,
}

impl Direction {
    pub fn word(self) -> &'static str {
        match self {
            Self::Ingress => "ingress",
            Self::Egress => "egress",
        }
    }

    fn policy_type(self) -> &'static str {
        match self {
            Self::Ingress => "Ingress",
            Self::Egress => "Egress",
        }
    }

    pub fn rules(self, policy: &NetworkPolicy) -> &[PolicyRule] {
        match self {
            Self::Ingress => &policy.spec.ingress,
            Self::Egress => &policy.spec.egress,
        }
    }
}

impl<'c> Side<'c> {
    /// The client's end, in the family of `to`.
    pub fn client(client: &'c Client, to: IpAddr) -> Option<Self> {
        let address = client.addresses.iter().copied().find(|own| own.is_ipv4() == to.is_ipv4())?;
        let pod = client.pod.as_deref().filter(|pod| !pod.spec.host_network);
        Some(Self { address, pod, node: &client.node })
    }

    pub fn backend(backend: &'c Backend) -> Self {
        let pod = backend.pod.as_deref().filter(|pod| !pod.spec.host_network);
        Self { address: backend.address, pod, node: &backend.node }
    }

    /// `Pod shop/web-1` or the bare address.
    pub fn words(&self) -> String {
        self.pod.map_or_else(|| self.address.to_string(), |pod| pod.reference().to_string())
    }
}

impl<'c> Flow<'c> {
    /// From this client of the path to this endpoint; none when they share no address family.
    pub fn of(path: &Path, client: &'c Client, backend: &'c Backend) -> Option<Self> {
        Some(Self {
            from: Side::client(client, backend.address)?,
            to: Side::backend(backend),
            protocol: path.protocol,
            port: backend.port,
            service_port: path.service_port().map(|port| port.port).filter(|port| *port != backend.port),
        })
    }

    /// The end whose policies count in this direction, and the end that their rules are about.
    pub fn ends(&self, direction: Direction) -> (&Side<'c>, &Side<'c>) {
        match direction {
            Direction::Ingress => (&self.to, &self.from),
            Direction::Egress => (&self.from, &self.to),
        }
    }
}

/// The policies that isolate this pod in this direction.
pub fn isolating<'c>(cluster: &'c Cluster, pod: &Pod, direction: Direction) -> Vec<&'c Arc<NetworkPolicy>> {
    let policies = cluster.network_policies.in_namespace(&pod.metadata.namespace);
    policies
        .filter(|policy| has_type(policy, direction) && policy.spec.pod_selector.matches(&pod.metadata.labels))
        .collect()
}

/// `policyTypes` as the API server would default it: Ingress always, Egress when there are egress rules.
fn has_type(policy: &NetworkPolicy, direction: Direction) -> bool {
    let types = &policy.spec.policy_types;
    if types.is_empty() {
        return direction == Direction::Ingress || !policy.spec.egress.is_empty();
    }
    types.iter().any(|name| name == direction.policy_type())
}

/// Walks both directions. Needs the policies, the pods and, where a rule selects namespaces, the namespaces.
pub fn decide<'c>(cluster: &'c Cluster, flow: &Flow<'c>) -> Decision<'c> {
    if flow.from.address == flow.to.address {
        return Decision::Allowed("a pod may always reach itself".to_owned());
    }
    let mut denials = Vec::new();
    let mut allowed = Vec::new();
    let mut undefined = None;
    for direction in [Direction::Egress, Direction::Ingress] {
        let (own, peer) = flow.ends(direction);
        let Some(pod) = own.pod else { continue };
        let policies = isolating(cluster, pod, direction);
        if policies.is_empty() {
            continue;
        }
        // The API guarantees that a node reaches its own pods (kubelet's probes); engines exempt both directions.
        if peer.pod.is_none() && !peer.node.is_empty() && peer.node == own.node {
            allowed.push(format!("{} is the host of {}, which no policy cuts off", peer.words(), pod.reference()));
            continue;
        }
        let rule = policies.iter().find_map(|policy| {
            let rules = direction.rules(policy);
            let index = rules.iter().position(|rule| allows(cluster, policy, rule, peer, flow))?;
            Some((
                format!("{} rule {} of {} allows it", direction.word(), index + 1, policy.reference()),
                policy,
                index,
            ))
        });
        match rule {
            Some((_, policy, index)) if only_by_blocks(cluster, &policies, direction, peer, flow) => {
                undefined = Some(format!(
                    "{} rule {} of {} allows the address of a pod by an ipBlock, which engines read differently",
                    direction.word(),
                    index + 1,
                    policy.reference()
                ));
            }
            Some((rule, ..)) => allowed.push(rule),
            None if direction == Direction::Ingress && peer.pod.is_none() && !peer.node.is_empty() => {
                undefined = Some(format!(
                    "policies isolate {} for ingress, and engines differ about connections from the host of another node",
                    pod.reference()
                ));
            }
            None => {
                let near = near::nearest(cluster, &policies, direction, flow);
                denials.push(Denial { direction, pod, policies, near });
            }
        }
    }
    if !denials.is_empty() {
        return Decision::Denied(denials);
    }
    if let Some(because) = undefined {
        return Decision::Undefined(because);
    }
    if allowed.is_empty() {
        allowed.push("no policy isolates either end".to_owned());
    }
    Decision::Allowed(allowed.join(" and "))
}

/// Blocks are meant for addresses outside the cluster. Calico lets them hold pods, Cilium does not.
fn only_by_blocks(
    cluster: &Cluster,
    policies: &[&Arc<NetworkPolicy>],
    direction: Direction,
    peer: &Side,
    flow: &Flow,
) -> bool {
    let by_labels = |policy: &NetworkPolicy, rule: &PolicyRule| {
        let mut peers = rule.peers.iter().filter(|peer| peer.ip_block.is_none());
        rule.peers.is_empty() || peers.any(|other| peer_matches(cluster, policy, other, peer))
    };
    let mut rules = policies.iter().flat_map(|policy| direction.rules(policy).iter().map(move |rule| (policy, rule)));
    peer.pod.is_some() && !rules.any(|(policy, rule)| by_labels(policy, rule) && ports_allow(rule, flow))
}

fn allows(cluster: &Cluster, policy: &NetworkPolicy, rule: &PolicyRule, peer: &Side, flow: &Flow) -> bool {
    peers_allow(cluster, policy, rule, peer) && ports_allow(rule, flow)
}

/// No peers means every peer.
fn peers_allow(cluster: &Cluster, policy: &NetworkPolicy, rule: &PolicyRule, side: &Side) -> bool {
    rule.peers.is_empty() || rule.peers.iter().any(|peer| peer_matches(cluster, policy, peer, side))
}

fn peer_matches(cluster: &Cluster, policy: &NetworkPolicy, peer: &PolicyPeer, side: &Side) -> bool {
    if let Some(block) = &peer.ip_block {
        return block.cidr.contains(&side.address) && !block.except.iter().any(|net| net.contains(&side.address));
    }
    if peer.pod_selector.is_none() && peer.namespace_selector.is_none() {
        return false;
    }
    let Some(pod) = side.pod else { return false };
    namespace_matches(cluster, policy, peer, pod) && pod_matches(peer, pod)
}

/// Without a namespaceSelector a peer means the policy's own namespace.
fn namespace_matches(cluster: &Cluster, policy: &NetworkPolicy, peer: &PolicyPeer, pod: &Pod) -> bool {
    match &peer.namespace_selector {
        None => pod.metadata.namespace == policy.metadata.namespace,
        Some(selector) => {
            let namespace = cluster.namespaces.get("", &pod.metadata.namespace);
            namespace.is_some_and(|namespace| selector.matches(&namespace.metadata.labels))
        }
    }
}

fn pod_matches(peer: &PolicyPeer, pod: &Pod) -> bool {
    peer.pod_selector.as_ref().is_none_or(|selector| selector.matches(&pod.metadata.labels))
}

/// No ports means every port of every protocol.
fn ports_allow(rule: &PolicyRule, flow: &Flow) -> bool {
    rule.ports.is_empty() || rule.ports.iter().any(|port| port_matches(port, flow))
}

fn port_matches(port: &PolicyPort, flow: &Flow) -> bool {
    if port.protocol.0 != flow.protocol {
        return false;
    }
    match &port.port {
        None => true,
        Some(IntOrString::Number(first)) => (*first..=port.end_port.unwrap_or(*first)).contains(&flow.port),
        // A name means the port of that name in the destination pod, whatever the direction.
        Some(IntOrString::Name(name)) => {
            flow.to.pod.and_then(|pod| pod.named_port(name, flow.protocol)) == Some(flow.port)
        }
    }
}

#[cfg(test)]
mod tests;
