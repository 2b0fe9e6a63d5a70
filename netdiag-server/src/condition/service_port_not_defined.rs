//! The client dials a port that the Service does not have.

use netdiag_common::Netns;
use netdiag_common::observation::service_rules::Proxier;

use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{IntOrString, Object, Service};
use crate::evidence::{KindName, Look, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{Path, TargetObject};
use crate::question::{PortName, Target};

pub const CONDITION: Condition = Condition {
    code: "service_port_not_defined",
    severity: Severity::High,
    words: Words {
        means: "the asked port is not among the Service's ports, so no node forwards it",
        how_we_know: "the Service's ports do not hold it, and the client's node has no rule for it",
        silent_when: "the port exists for this protocol, or the Service is headless and clients dial the pods themselves",
        what_to_do: "dial one of the Service's ports, or add the port to the Service",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/service/#field-spec-ports",
            "https://kubernetes.io/docs/reference/networking/virtual-ips/#proxy-mode-nftables",
        ],
    },
    faults: &["svc-client-uses-wrong-port"],
    reads: &[Read::Kind(KindName::Services), Read::Topic("service_rules")],
    lookalikes: &["service_has_no_ready_endpoints", "kube_proxy_rules_stale"],
    explains: &[],
    judge,
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some(service) = path.service() else {
        // A name or an address may well be a Service's that we were not shown.
        let may_be = matches!(path.target, TargetObject::UnknownName | TargetObject::Address);
        return match view.services() {
            Look::Dark if may_be => Verdict::unknown(view),
            _ => Verdict::not_applicable("the path does not lead to a Service"),
        };
    };
    if let Some(port) = path.service_port() {
        let protocol = port.protocol.0.kubernetes();
        return Verdict::clear(format!("{} has port {}/{protocol}", service.reference(), port.port));
    }
    if service.cluster_ips().is_empty() {
        return Verdict::not_applicable("the Service has no address of its own: clients dial what is behind it");
    }
    let asked = match (&path.question.to, path.port) {
        (Target::Service { port: Some(PortName::Name(name)), .. }, _) => format!("port named {name:?}"),
        (_, Some(number)) => format!("port {number}/{}", path.protocol.kubernetes()),
        (_, None) => format!("{} port", path.protocol.kubernetes()),
    };
    let reference = service.reference();
    let there = if service.spec.ports.is_empty() { "no ports".to_owned() } else { service.ports_in_words() };
    let mut proofs = vec![Proof::intended(&reference, view.now(), format!("ports: {there}"))];
    let proxier = rules(path, view, &mut proofs);
    Verdict::found(Finding {
        since: service.metadata.changed_at,
        impact: Impact::Breaks,
        claim: format!("{reference} has no {asked}; it has {there}{}", hint(path, service)),
        proofs,
        predicts: match proxier {
            // Table kube-proxy, chain cluster-ips-check: what goes to a cluster IP and was not translated is rejected.
            // In IPVS mode the address is the node's own: nothing listens on its other ports.
            Some(Proxier::Nftables | Proxier::Ipvs) if asks_cluster_ip(path, service) => &[Fate::Refused],
            // Other proxiers leave the packet alone: it follows the default route, and whoever gets it decides.
            _ => &[Fate::Refused, Fate::Silence, Fate::Unreachable],
        },
        fix: Fix {
            text: format!("dial one of the ports {there}, or add the asked port to the Service"),
            commands: Vec::new(),
            verify: path.ask_again(),
        },
        subjects: vec![reference],
    })
}

/// Not by an address from outside of the cluster, for which no rule catches the other ports.
fn asks_cluster_ip(path: &Path, service: &Service) -> bool {
    let own = service.cluster_ips();
    path.addresses.iter().all(|address| own.contains(address))
}

/// The client's node has rules for this address, but none for this port.
fn rules(path: &Path, view: &mut View, proofs: &mut Vec<Proof>) -> Option<Proxier> {
    let (client, address) = (path.clients.first()?, *path.addresses.first()?);
    let Look::Seen(rules) = view.service_rules(&client.node, &Netns::Host) else { return None };
    let of_address = rules.value.entries.iter().filter(|entry| entry.address == address);
    let ports: Vec<String> =
        of_address.map(|entry| format!("{}/{}", entry.port, entry.protocol.kubernetes())).collect();
    let known = path.port.is_some_and(|port| rules.value.find(address, path.protocol, port).is_some());
    if !known && !ports.is_empty() {
        let others = match rules.value.proxier {
            Proxier::Nftables => "and refuse others",
            Proxier::Ipvs => "and leave others to the node itself, where nothing listens",
            _ => "and leave others to the default route",
        };
        let text = format!("the rules forward {address} for {} alone {others}", ports.join(", "));
        proofs.push(Proof::programmed("kube-proxy's rules", &client.node, rules.at, text));
    }
    Some(rules.value.proxier)
}

/// What the asked number is instead of a port of the Service.
fn hint(path: &Path, service: &Service) -> String {
    let Some(asked) = path.port else { return String::new() };
    let is_target = |target: &Option<IntOrString>| *target == Some(IntOrString::Number(asked));
    for port in &service.spec.ports {
        let (number, protocol) = (port.port, port.protocol.0);
        if protocol != path.protocol && number == asked {
            return format!("; {asked} is a port for {} only", protocol.kubernetes());
        }
        if is_target(&port.target_port) && number != asked {
            return format!("; {asked} is the pods' port behind port {number}");
        }
        if port.node_port == asked {
            return format!("; {asked} is the node port of port {number}, which nodes take at their own addresses");
        }
    }
    String::new()
}
