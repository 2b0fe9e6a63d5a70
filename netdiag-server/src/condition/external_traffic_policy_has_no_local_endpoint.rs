//! `externalTrafficPolicy: Local`, and the node whose port is dialled has no endpoint: it drops what comes from outside.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Match, Rule, Ruleset, Verdict as Action};
use netdiag_common::observation::service_rules::{Proxier, ServiceAction};

use super::trace::{Packets, dropped};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Node, Object, Service, ServicePort};
use crate::evidence::{KindName, Look, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::forwarding::{endpoints, nodes_with_endpoints};
use crate::path::{Client, Path};

pub const CONDITION: Condition = Condition {
    code: "external_traffic_policy_has_no_local_endpoint",
    severity: Severity::High,
    words: Words {
        means: "a node port is dialled on a node without endpoints, and the Service lets each node use its own alone \
                (externalTrafficPolicy: Local)",
        how_we_know: "the Service's policy and the nodes of its endpoints; the dialled node's rules drop the port (in IPVS mode \
                      they lead to other nodes, whose answers go past it), and the probe gets no answer",
        silent_when: "that node has an endpoint that is ready or still serves, no node has one, or the traffic counts as the \
                      cluster's own: of the dialled node itself, or to a load balancer's address from a pod or node, which \
                      kube-proxy sends to all endpoints",
        what_to_do: "dial a node that has an endpoint (load balancers ask healthCheckNodePort), run one on every node, or set \
                     externalTrafficPolicy: Cluster",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/service-traffic-policy/",
            "kube-proxy pkg/proxy/topology.go: CategorizeEndpoints",
            "kube-proxy pkg/proxy/iptables/proxier.go: externalTrafficChain, pod traffic is short-circuited",
        ],
    },
    faults: &["svc-external-traffic-policy-local"],
    reads: &[
        Read::Kind(KindName::Services),
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Nodes),
        Read::Topic("service_rules"),
        Read::Topic("rules"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["service_has_no_ready_endpoints", "host_firewall_drops_path", "policy_denies_path"],
    explains: &[],
    judge,
};

const REASONS: &[&str] = &["NETFILTER_DROP"];
/// What iptables mode drops of Services without (local) endpoints at node ports.
const DROPS: &str = "KUBE-EXTERNAL-SERVICES";
/// Nodes named in a claim; more are counted.
const NAMED: usize = 3;

/// The node port that is dialled.
struct Dialled<'p> {
    service: &'p Service,
    port: &'p ServicePort,
    node: &'p Node,
    socket: SocketAddr,
    protocol: Protocol,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let (Some(service), Some(port)) = (path.service(), path.service_port()) else {
        return Verdict::not_applicable("the path does not lead to a Service's port");
    };
    if service.spec.external_traffic_policy != "Local" {
        return Verdict::not_applicable(
            "the Service lets nodes send what comes from outside to endpoints of all nodes",
        );
    }
    if service.external_ips().any(|own| path.addresses.contains(&own)) {
        let because = "what pods and nodes send to a load balancer's address goes to the endpoints of all nodes";
        return Verdict::clear(because);
    }
    let (Look::Seen(slices), Look::Seen(_), Look::Seen(_)) = (view.endpoint_slices(), view.services(), view.nodes())
    else {
        return Verdict::unknown(view);
    };
    let cluster = view.cluster();
    let asked = path.addresses.iter().find_map(|address| Some((*address, cluster.node_by_address(*address)?)));
    let (Some((address, node)), true) = (asked, path.port == Some(port.node_port)) else {
        return Verdict::not_applicable("no node port is asked");
    };
    let name = node.metadata.name.as_str();
    let socket = SocketAddr::new(address, port.node_port);
    if !endpoints(cluster, service, port, address, Some(name)).endpoints.is_empty() {
        return Verdict::clear(format!("node {name} has an endpoint of {}", service.reference()));
    }
    let with = nodes_with_endpoints(cluster, service, port, address);
    if with.is_empty() {
        return Verdict::clear(format!("no node has an endpoint of {}", service.reference()));
    }
    let dialled = Dialled { service, port, node, socket, protocol: path.protocol };
    if leads_on(&dialled, view) {
        return Verdict::clear(format!("the rules of node {name} lead {socket} to endpoints all the same"));
    }
    let outside: Vec<&Client> = path.clients.iter().filter(|client| client.node != name).collect();
    if outside.is_empty() {
        return Verdict::clear(format!(
            "the client is on node {name} itself, which sends its own traffic to all endpoints"
        ));
    }
    let mut cut = Vec::new();
    for client in &outside {
        match is_cut(path, client, address, view) {
            Some(true) => cut.push(*client),
            Some(false) => {}
            None => return Verdict::unknown(view),
        }
    }
    let Some(first) = cut.first() else {
        return Verdict::clear(format!("node {name} takes the clients' packets for the cluster's own"));
    };
    let impact = if cut.len() == path.clients.len() { Impact::Breaks } else { Impact::Degrades };
    Verdict::found(finding(path, &dialled, first, impact, &with, slices.at, view))
}

/// Whether this client's packets are from outside for the dialled node. A pod's may carry its own address, which kube-proxy
/// takes for the cluster's own, or its node's: only a packet tells. None when that could not be seen.
fn is_cut(path: &Path, client: &Client, address: IpAddr, view: &mut View) -> Option<bool> {
    if client.netns == Netns::Host {
        return Some(true);
    }
    let request = path.address_probe(address)?;
    let Look::Seen(seen) = view.probe(&client.node, &client.netns, request) else { return None };
    let met = seen.value.attempts.iter().map(|attempt| Fate::of(&attempt.outcome));
    Some(!seen.value.attempts.is_empty() && met.into_iter().all(|fate| fate == Some(Fate::Silence)))
}

/// Another proxy than kube-proxy, or rules older than the policy. In IPVS mode kube-proxy falls back to other nodes' endpoints
/// and leaves the client's address, so that they answer it from addresses it never asked (`syncEndpoint`, pkg/proxy/ipvs).
fn leads_on(dialled: &Dialled, view: &mut View) -> bool {
    let Look::Seen(rules) = view.service_rules(&dialled.node.metadata.name, &Netns::Host) else { return false };
    let rule = rules.value.find(dialled.socket.ip(), dialled.protocol, dialled.socket.port());
    rules.value.proxier != Proxier::Ipvs && rule.is_some_and(|rule| matches!(rule.action, ServiceAction::Endpoints(_)))
}

fn finding(
    path: &Path,
    dialled: &Dialled,
    client: &Client,
    impact: Impact,
    with: &[String],
    at: Timestamp,
    view: &mut View,
) -> Finding {
    let Dialled { service, node, socket, .. } = dialled;
    let (reference, name) = (service.reference(), &node.metadata.name);
    let shown = with.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    let others = match with.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} others"),
    };
    let mut proofs = vec![
        Proof::intended(&reference, at, "spec.externalTrafficPolicy is Local"),
        Proof::intended(
            format!("EndpointSlices of {reference}"),
            at,
            format!("for {socket} none names node {name}; the endpoints are on {others}"),
        ),
    ];
    proofs.extend(told_otherwise(dialled, view));
    // Pods' packets carry their own address, or their node's where they are masqueraded.
    let node_of_client = view.cluster().nodes.get("", &client.node);
    let sources =
        client.addresses.iter().copied().chain(node_of_client.into_iter().flat_map(|node| node.internal_ips()));
    let sources: Vec<IpAddr> = sources.collect();
    proofs.extend(sources.into_iter().find_map(|source| {
        dropped(view, name, &Packets { source, destination: *socket, protocol: dialled.protocol }, REASONS)
    }));
    let (namespace, service_name) = (&service.metadata.namespace, &service.metadata.name);
    Finding {
        subjects: vec![reference.clone(), node.reference()],
        since: None,
        impact,
        claim: format!(
            "{reference} has externalTrafficPolicy: Local, and node {name}, whose port {} is dialled, has no endpoint of it; \
             those it has are on {others}",
            socket.port()
        ),
        proofs,
        predicts: &[Fate::Silence],
        fix: Fix {
            text: format!(
                "dial a node with an endpoint ({others}), as load balancers do that ask the Service's healthCheckNodePort; if \
                 the client's address need not be kept, let the policy be Cluster"
            ),
            commands: vec![format!(
                "kubectl -n {namespace} patch service {service_name} -p '{{\"spec\":{{\"externalTrafficPolicy\":\"Cluster\"}}}}'"
            )],
            verify: path.ask_again(),
        },
    }
}

/// To drop, or to send elsewhere what comes to the port.
fn told_otherwise(dialled: &Dialled, view: &mut View) -> Option<Proof> {
    let (node, socket) = (&dialled.node.metadata.name, dialled.socket);
    if let Look::Seen(rules) = view.service_rules(node, &Netns::Host)
        && let Some(rule) = rules.value.find(socket.ip(), dialled.protocol, socket.port())
    {
        let text = match &rule.action {
            ServiceAction::Drop => Some(format!("the rules drop connections to {socket} ({})", dialled.protocol)),
            ServiceAction::Endpoints(endpoints) => endpoints.first().map(|endpoint| {
                format!(
                    "the virtual server {socket} ({}) leads to {} on another node, which answers its client past this node",
                    dialled.protocol,
                    SocketAddr::new(endpoint.address, endpoint.port)
                )
            }),
            ServiceAction::Reject => None,
        };
        if let Some(text) = text {
            return Some(Proof::programmed("kube-proxy's rules", node, rules.at, text));
        }
    }
    let Look::Seen(rules) = view.rules(node, &Netns::Host) else { return None };
    let rule = drop_rule(rules.value, dialled)?;
    let counted = rule.counter.filter(|counter| counter.packets > 0);
    let counted = counted.map(|counter| format!("; it has counted {} packets", counter.packets)).unwrap_or_default();
    let text = format!("chain {DROPS}: {}{counted}", rule.text);
    Some(Proof::programmed("kube-proxy's rules", node, rules.at, text))
}

fn drop_rule<'r>(ruleset: &'r Ruleset, dialled: &Dialled) -> Option<&'r Rule> {
    let chains = ruleset.tables.iter().flat_map(|table| &table.chains).filter(|chain| chain.name == DROPS);
    let node_port = dialled.port.node_port;
    chains.flat_map(|chain| &chain.rules).find(|rule| {
        rule.verdict == Action::Drop
            && rule.matches.iter().any(|found| match found {
                Match::DestinationPort { ranges, negated: false } => {
                    matches!(&ranges[..], [range] if range.first == node_port && range.last == node_port)
                }
                _ => false,
            })
    })
}
