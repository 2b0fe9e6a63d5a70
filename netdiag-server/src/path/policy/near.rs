//! The rule that comes closest to allowing a connection, and the one thing it lacks.

use std::sync::Arc;

use netdiag_common::observation::Protocol;

use super::{Direction, Flow, Side};
use crate::evidence::Cluster;
use crate::evidence::object::{IntOrString, NetworkPolicy, Object, Pod, PolicyPeer, PolicyPort, PolicyRule};
use crate::evidence::selector::LabelSelector;
use crate::path::edit_distance;

#[derive(Debug)]
pub struct NearMiss<'c> {
    pub policy: &'c Arc<NetworkPolicy>,
    pub direction: Direction,
    /// Index of the rule in the policy's list.
    pub rule: usize,
    pub lack: Lack,
    /// A clause that follows the rule's name: `allows port 80/TCP, which is …`.
    pub text: String,
}

/// What a rule lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lack {
    /// It names the Service's port instead of the pod's; the index of the port in the rule.
    ServicePort { port: usize },
    /// The right number under another protocol; the index of the port in the rule.
    Protocol { port: usize },
    /// A port name that the pod does not have, or has for another number.
    PortName,
    /// Other ports.
    Port,
    /// One peer asks for namespace and pod labels together, and only one of them fits; the index of the peer.
    BothSelectors { peer: usize },
    /// The peer's labels fit, but it means the policy's own namespace.
    Namespace,
    /// One label is different.
    Label,
    /// An `except` takes the address out of the block.
    Except,
}

/// How close each lack is to a slip of the pen; the highest is reported.
fn closeness(lack: &Lack) -> u8 {
    match lack {
        Lack::ServicePort { .. } | Lack::BothSelectors { .. } => 5,
        Lack::Protocol { .. } | Lack::PortName => 4,
        Lack::Namespace | Lack::Label | Lack::Except => 3,
        Lack::Port => 2,
    }
}

pub(super) fn nearest<'c>(
    cluster: &Cluster,
    policies: &[&'c Arc<NetworkPolicy>],
    direction: Direction,
    flow: &Flow,
) -> Option<NearMiss<'c>> {
    let (_, peer) = flow.ends(direction);
    let mut best: Option<NearMiss> = None;
    for policy in policies {
        for (index, rule) in direction.rules(policy).iter().enumerate() {
            let peers = super::peers_allow(cluster, policy, rule, peer);
            let ports = super::ports_allow(rule, flow);
            let found = match (peers, ports) {
                (true, false) => Some(wrong_port(rule, flow)),
                (false, true) => wrong_peer(cluster, policy, rule, peer),
                _ => None,
            };
            let Some((lack, text)) = found else { continue };
            if best.as_ref().is_none_or(|best| closeness(&lack) > closeness(&best.lack)) {
                best = Some(NearMiss { policy, direction, rule: index, lack, text });
            }
        }
    }
    best
}

fn wrong_port(rule: &PolicyRule, flow: &Flow) -> (Lack, String) {
    let own = format!("{}/{}", flow.port, flow.protocol.kubernetes());
    let number = |port: &PolicyPort, wanted: u16| matches!(port.port, Some(IntOrString::Number(n)) if n == wanted);
    for (index, port) in rule.ports.iter().enumerate() {
        let protocol = port.protocol.0;
        if let Some(dialled) = flow.service_port
            && protocol == flow.protocol
            && number(port, dialled)
        {
            let text = format!("allows port {}, which is the Service's; the pods are reached at {own}", words(port));
            return (Lack::ServicePort { port: index }, text);
        }
        if protocol != flow.protocol && (number(port, flow.port) || port.port.is_none()) {
            return (Lack::Protocol { port: index }, format!("allows {}, but the connection is {own}", words(port)));
        }
    }
    for port in &rule.ports {
        if let (Some(IntOrString::Name(name)), Some(pod)) = (&port.port, flow.to.pod) {
            return (Lack::PortName, unknown_name(name, port.protocol.0, pod, &own));
        }
    }
    let list: Vec<String> = rule.ports.iter().map(words).collect();
    (Lack::Port, format!("allows {}, but the connection is {own}", list.join(", ")))
}

fn unknown_name(name: &str, protocol: Protocol, pod: &Pod, own: &str) -> String {
    let has = match pod.named_port(name, protocol) {
        Some(number) => format!("is {number} in {}", pod.reference()),
        None => format!("is no {} port of {}", protocol.kubernetes(), pod.reference()),
    };
    format!("allows port {name:?}, which {has}; the connection is {own}")
}

/// `80/TCP`, `8000-8080/TCP`, `every TCP port`.
fn words(port: &PolicyPort) -> String {
    let protocol = port.protocol.0.kubernetes();
    match (&port.port, port.end_port) {
        (None, _) => format!("every {protocol} port"),
        (Some(first), Some(last)) => format!("{first}-{last}/{protocol}"),
        (Some(port), None) => format!("{port}/{protocol}"),
    }
}

fn wrong_peer(cluster: &Cluster, policy: &NetworkPolicy, rule: &PolicyRule, side: &Side) -> Option<(Lack, String)> {
    let misses = rule.peers.iter().enumerate().filter_map(|(index, peer)| match (&peer.ip_block, side.pod) {
        (Some(block), _) => {
            let out =
                block.cidr.contains(&side.address).then(|| block.except.iter().find(|n| n.contains(&side.address)));
            let text = format!("allows {} except {}, which holds {}", block.cidr, out??, side.address);
            Some((Lack::Except, text))
        }
        (None, Some(pod)) => pod_peer(cluster, policy, peer, index, pod),
        (None, None) => None,
    });
    // The first of equals, since max_by_key takes the last.
    misses.collect::<Vec<_>>().into_iter().rev().max_by_key(|(lack, _)| closeness(lack))
}

fn pod_peer(
    cluster: &Cluster,
    policy: &NetworkPolicy,
    peer: &PolicyPeer,
    index: usize,
    pod: &Pod,
) -> Option<(Lack, String)> {
    let namespace_fits = super::namespace_matches(cluster, policy, peer, pod);
    let pod_fits = super::pod_matches(peer, pod);
    let own = pod.reference();
    match (&peer.namespace_selector, &peer.pod_selector) {
        (Some(namespaces), Some(pods)) if namespace_fits != pod_fits => {
            let (fits, not) = if namespace_fits { ("namespace", "labels") } else { ("labels", "namespace") };
            let text = format!(
                "allows only pods with {pods} that are also in a namespace with {namespaces} (one peer with both \
                 selectors); the {fits} of {own} fit, the {not} do not"
            );
            Some((Lack::BothSelectors { peer: index }, text))
        }
        (None, Some(pods)) if pod_fits => {
            let text = format!(
                "allows pods with {pods} of namespace {} alone; {own} is in another namespace",
                policy.metadata.namespace
            );
            Some((Lack::Namespace, text))
        }
        (_, Some(pods)) if namespace_fits => one_label_off(pods, pod)
            .map(|different| (Lack::Label, format!("allows pods with {pods}, but {own} has {different}"))),
        _ => None,
    }
}

/// `app=client instead of app=clinet`, when that is the only difference.
fn one_label_off(selector: &LabelSelector, pod: &Pod) -> Option<String> {
    let labels = &pod.metadata.labels;
    let wrong: Vec<_> = selector.match_labels.iter().filter(|(key, value)| labels.get(*key) != Some(*value)).collect();
    let expressions =
        LabelSelector { match_expressions: selector.match_expressions.clone(), ..LabelSelector::default() };
    let [(key, value)] = wrong.as_slice() else { return None };
    if !expressions.matches(labels) {
        return None;
    }
    // A third of the letters, else it is another label and not a slip.
    let alike = |own: &str| edit_distance(own, value) * 3 <= value.len().max(3);
    let others_fit = selector.match_labels.len() > 1;
    match labels.get(*key) {
        Some(own) if others_fit || alike(own) => Some(format!("{key}={own} instead of {key}={value}")),
        None if others_fit => Some(format!("no label {key}")),
        _ => None,
    }
}
