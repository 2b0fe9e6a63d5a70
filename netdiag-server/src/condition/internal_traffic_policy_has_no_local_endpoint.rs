//! `internalTrafficPolicy: Local`, and no endpoint on the client's node: its kube-proxy drops what goes to the Service.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::service_rules::ServiceAction;

use super::proxied::{asked_cluster_ips, proxied};
use super::{Condition, Read, Severity, Verdict, Words, proof};
use crate::evidence::object::{Object, Service, ServicePort};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::forwarding::{endpoints, nodes_with_endpoints};
use crate::path::{Client, Path};

pub const CONDITION: Condition = Condition {
    code: "internal_traffic_policy_has_no_local_endpoint",
    severity: Severity::High,
    words: Words {
        means: "the Service asks for endpoints on the client's own node (internalTrafficPolicy: Local), and there is none",
        how_we_know: "the Service's policy and the nodes of its endpoints in the EndpointSlices; the rules of the client's \
                      node drop its address, while endpoints on other nodes are ready",
        silent_when: "an endpoint on that node is ready or still serves while it terminates, no node has one, or the \
                      node's rules lead to endpoints all the same",
        what_to_do: "run an endpoint on every node that has clients (a DaemonSet), or set internalTrafficPolicy: Cluster",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/service-traffic-policy/",
            "kube-proxy pkg/proxy/topology.go: CategorizeEndpoints",
        ],
    },
    faults: &["svc-internal-traffic-policy-local"],
    reads: &[Read::Kind(KindName::Services), Read::Kind(KindName::EndpointSlices), Read::Topic("service_rules")],
    lookalikes: &["service_has_no_ready_endpoints", "kube_proxy_rules_stale", "policy_denies_path"],
    explains: &[],
    judge,
};

/// Nodes named in a claim; more are counted.
const NAMED: usize = 3;

fn judge(path: &Path, view: &mut View) -> Verdict {
    let (service, port) = match proxied(path) {
        Ok(found) => found,
        Err(because) => return Verdict::not_applicable(because),
    };
    if service.spec.internal_traffic_policy != "Local" {
        return Verdict::clear(format!("{} sends to endpoints of all nodes", service.reference()));
    }
    let (Look::Seen(slices), Look::Seen(_)) = (view.endpoint_slices(), view.services()) else {
        return Verdict::unknown(view);
    };
    let Some(address) = asked_cluster_ips(path, service).first().copied() else {
        return Verdict::not_applicable("the asked address is no cluster IP, so this policy does not hold for it");
    };
    let with = nodes_with_endpoints(view.cluster(), service, port, address);
    if with.is_empty() {
        return Verdict::clear(format!("no node has an endpoint of {}", service.reference()));
    }
    let lacks =
        |client: &&Client| endpoints(view.cluster(), service, port, address, Some(&client.node)).endpoints.is_empty();
    let without: Vec<&Client> = path.clients.iter().filter(lacks).collect();
    let cut: Vec<&Client> = without.into_iter().filter(|client| !leads_on(client, address, port, path, view)).collect();
    let Some(first) = cut.first() else {
        return Verdict::clear(
            "the clients' nodes have endpoints of the Service, or rules that lead to others".to_owned(),
        );
    };
    Verdict::found(finding(path, service, port, &Cut { first, all: &cut, with: &with, address, at: slices.at }, view))
}

struct Cut<'a> {
    first: &'a Client,
    all: &'a [&'a Client],
    with: &'a [String],
    address: IpAddr,
    at: Timestamp,
}

/// Proxies other than kube-proxy may not know the policy, and rules may be older than it.
fn leads_on(client: &Client, address: IpAddr, port: &ServicePort, path: &Path, view: &mut View) -> bool {
    let Look::Seen(rules) = view.service_rules(&client.node, &Netns::Host) else { return false };
    let rule = rules.value.find(address, path.protocol, port.port);
    rule.is_some_and(|rule| matches!(rule.action, ServiceAction::Endpoints(_)))
}

fn finding(path: &Path, service: &Service, port: &ServicePort, cut: &Cut, view: &mut View) -> Finding {
    let reference = service.reference();
    let node = &cut.first.node;
    let shown = cut.with.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let others = match cut.with.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} others"),
    };
    let nodes: BTreeSet<&str> = cut.all.iter().map(|client| client.node.as_str()).collect();
    let mut claim = format!(
        "{reference} has internalTrafficPolicy: Local, and no endpoint of it is on node {node}; those it has are on {others}"
    );
    if path.clients.len() > 1 {
        claim.push_str(&format!("; so on {} of {} nodes", nodes.len(), path.clients.len()));
    }
    let socket = SocketAddr::new(cut.address, port.port);
    let mut proofs = vec![
        Proof::intended(&reference, cut.at, "spec.internalTrafficPolicy is Local"),
        Proof::intended(
            format!("EndpointSlices of {reference}"),
            cut.at,
            format!("for {socket} none names node {node}; the endpoints are on {others}"),
        ),
    ];
    proofs.extend(proof::refused_by_rules(cut.first, cut.address, port.port, path.protocol, view));
    let mut subjects = vec![reference.clone()];
    subjects.extend(nodes.into_iter().map(ObjectRef::of_node));
    let (namespace, name) = (&service.metadata.namespace, &service.metadata.name);
    Finding {
        subjects,
        since: None,
        impact: if cut.all.len() == path.clients.len() { Impact::Breaks } else { Impact::Degrades },
        claim,
        proofs,
        // kube-proxy drops (KEP 2086); what leaves the node's own sockets is told so. Others refuse.
        predicts: &[Fate::Silence, Fate::NotPermitted, Fate::Unreachable, Fate::Refused],
        fix: Fix {
            text: format!(
                "run an endpoint of {reference} on node {node} and every other node with clients, as a DaemonSet does; if \
                 any endpoint will do, let the policy be Cluster"
            ),
            commands: vec![format!(
                "kubectl -n {namespace} patch service {name} -p '{{\"spec\":{{\"internalTrafficPolicy\":\"Cluster\"}}}}'"
            )],
            verify: path.ask_again(),
        },
    }
}
