//! Topology hints keep a node's clients to endpoints that do not answer, while others of the Service, ready as well, would.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::service_rules::{Endpoint, ServiceAction};

use super::proxied::{Clients, Shown, asked_cluster_ips, proxied};
use super::trace::{Met, probe_of};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Node, Object, Service, ServicePort};
use crate::evidence::{KindName, Look, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::listing::named;
use crate::path::forwarding::{Kept, kept_by_hints};
use crate::path::{Backend, Client, MAX_CLIENT_PROBES, Path};

pub const CONDITION: Condition = Condition {
    code: "topology_hints_leave_no_working_endpoint",
    severity: Severity::Medium,
    words: Words {
        means: "the hints of the EndpointSlices (trafficDistribution, topology-mode) keep a node's clients to endpoints of which \
                none answers, while endpoints that are meant for other zones or nodes would",
        how_we_know: "the hints in the EndpointSlices and the node's zone, rules of the client's node that lead to the hinted \
                      endpoints alone, and probes of the client: none gets to those, and one gets to another",
        silent_when: "the rules lead to other endpoints than the hinted ones, one of these answers, no other does, or no probe was \
                      sent; why an endpoint does not answer is not said here",
        what_to_do: "repair these endpoints or run more of them in the zone, or let the Service send to all of its endpoints",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/topology-aware-routing/",
            "https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/3015-prefer-same-node",
            "kube-proxy pkg/proxy/topology.go: CategorizeEndpoints, topologyModeFromHints",
        ],
    },
    faults: &["svc-topology-hints-starvation"],
    reads: &[
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Nodes),
        Read::Topic("service_rules"),
        Read::Topic("probe"),
    ],
    lookalikes: &[
        "internal_traffic_policy_has_no_local_endpoint",
        "kube_proxy_rules_stale",
        "target_port_not_listening",
        "listener_bound_to_loopback",
        "listen_queue_overflows",
        "policy_denies_path",
        "host_firewall_drops_path",
    ],
    explains: &[],
    judge,
};

/// Endpoints named in a claim; more are counted.
const NAMED: usize = 3;

/// The Service's port that is asked, at one of its addresses.
#[derive(Clone, Copy)]
struct Asked<'p> {
    path: &'p Path,
    service: &'p Service,
    port: &'p ServicePort,
    address: IpAddr,
}

/// A client whose way ends at hinted endpoints.
struct Cut<'p> {
    client: &'p Client,
    address: IpAddr,
    kept: Kept,
    silent: Vec<&'p Backend>,
    /// Left out, and takes the client's connections.
    working: &'p Backend,
    rules_at: Timestamp,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let (service, port) = match proxied(path) {
        Ok(found) => found,
        Err(because) => return Verdict::not_applicable(because),
    };
    let addresses = asked_cluster_ips(path, service);
    if addresses.is_empty() {
        return Verdict::not_applicable("the asked address is no cluster IP");
    }
    if service.spec.internal_traffic_policy == "Local" {
        return Verdict::not_applicable("internalTrafficPolicy: Local does not heed hints");
    }
    let (Look::Seen(slices), Look::Seen(nodes)) = (view.endpoint_slices(), view.nodes()) else {
        return Verdict::unknown(view);
    };
    let mut clients = Clients::new();
    for client in path.clients.iter().take(MAX_CLIENT_PROBES) {
        let Some(node) = nodes.value.get("", &client.node) else {
            clients.add(Shown::Silent("the API has no Node of the client's, so that its zone is not known"));
            continue;
        };
        for address in addresses.iter().copied().filter(|address| client.speaks_to(*address)) {
            clients.add(of_client(Asked { path, service, port, address }, client, node, view));
        }
    }
    let cut = &clients.faults;
    let Some(first) = cut.first() else { return clients.without_fault(view) };
    Verdict::found(finding(path, service, cut, first, slices.at, view))
}

fn of_client<'p>(asked: Asked<'p>, client: &'p Client, node: &Node, view: &mut View) -> Shown<Cut<'p>> {
    let Asked { path, service, port, address } = asked;
    let ways = kept_by_hints(view.cluster(), service, port, address, node);
    if ways.is_empty() {
        return Shown::Harmless("hints keep no ready endpoint of the Service from the clients' nodes");
    }
    let rules = match view.service_rules(&client.node, &Netns::Host) {
        Look::Seen(rules) if !rules.value.hooked => {
            return Shown::Silent("no packet reaches the rules of the client's node");
        }
        Look::Seen(rules) => rules,
        Look::Absent(_) => {
            return Shown::Silent("the client's node has no rules of kube-proxy that would follow hints");
        }
        Look::Dark => return Shown::Dark,
    };
    let have: BTreeSet<Endpoint> = match rules.value.find(address, path.protocol, port.port).map(|rule| &rule.action) {
        Some(ServiceAction::Endpoints(have)) => have.iter().cloned().collect(),
        None if !rules.value.undecoded.is_empty() => return Shown::Dark,
        _ => return Shown::Silent("the rules of the client's node lead to no endpoint of the Service"),
    };
    let Some(kept) = ways.into_iter().find(|way| way.endpoints == have) else {
        return Shown::Harmless("the rules of the clients' nodes lead to other endpoints than the hinted ones alone");
    };
    let silent: Vec<&Backend> = path.ready_backends().filter(|backend| is_in(&kept.endpoints, backend)).collect();
    let met: Vec<Met> = silent.iter().map(|backend| probe_of(path, view, client, backend)).collect();
    if met.contains(&Met::GotThrough) {
        return Shown::Harmless("an endpoint that hints keep the clients to takes their connections");
    }
    if silent.len() < kept.endpoints.len() || met.contains(&Met::Nothing) {
        return Shown::Silent("no probe says whether the endpoints that hints keep the clients to answer");
    }
    let others = path.ready_backends().filter(|backend| is_in(&kept.left_out, backend));
    let met: Vec<(&Backend, Met)> = others.map(|backend| (backend, probe_of(path, view, client, backend))).collect();
    match met.iter().find(|(_, met)| *met == Met::GotThrough) {
        Some((working, _)) => Shown::Fault(Cut { client, address, kept, silent, working, rules_at: rules.at }),
        None if met.iter().any(|(_, met)| *met == Met::Nothing) => {
            Shown::Silent("no probe says whether the endpoints that hints leave out answer")
        }
        None => Shown::Harmless("the endpoints that hints leave out do not answer, either"),
    }
}

fn is_in(endpoints: &BTreeSet<Endpoint>, backend: &Backend) -> bool {
    endpoints.contains(&Endpoint { address: backend.address, port: backend.port })
}

fn finding(path: &Path, service: &Service, cut: &[Cut], first: &Cut, at: Timestamp, view: &View) -> Finding {
    let reference = service.reference();
    let Cut { client, kept, silent, working, .. } = first;
    let all = kept.endpoints.len() + kept.left_out.len();
    let mut claim = format!(
        "hints keep the clients on node {} to {} of {all} ready endpoints of {reference}, those for {}, and none of them answers: {}; \
         {} would, but is left to others",
        client.node,
        kept.endpoints.len(),
        kept.whose,
        words(silent),
        working.words()
    );
    // A client of two address families is cut off once.
    let nodes: BTreeSet<&str> = cut.iter().map(|cut| cut.client.node.as_str()).collect();
    if path.clients.len() > 1 {
        claim.push_str(&format!("; so on {} of {} nodes", nodes.len(), path.clients.len()));
    }
    let mut subjects = vec![reference];
    for backend in cut.iter().flat_map(|cut| &cut.silent) {
        if let Some(pod) = &backend.pod {
            pod.reference().add_once(&mut subjects);
        }
    }
    Finding {
        subjects,
        since: None,
        impact: if nodes.len() == path.clients.len() && !is_half(path, cut) {
            Impact::Breaks
        } else {
            Impact::Degrades
        },
        claim,
        proofs: proofs(path, service, first, at, view),
        predicts: &[Fate::Refused, Fate::Silence, Fate::Unreachable, Fate::NotPermitted],
        fix: fix(path, service, first),
    }
}

/// Of two addresses that a client dials, one works.
fn is_half(path: &Path, cut: &[Cut]) -> bool {
    let dialled = |client: &Client| path.addresses.iter().filter(|address| client.speaks_to(**address)).count();
    path.clients.iter().map(dialled).sum::<usize>() > cut.len()
}

fn proofs(path: &Path, service: &Service, cut: &Cut, at: Timestamp, view: &View) -> Vec<Proof> {
    let reference = service.reference();
    let Cut { client, address, kept, working, rules_at, .. } = cut;
    let port = path.port.unwrap_or_default();
    let mut proofs = vec![
        Proof::intended(
            format!("EndpointSlices of {reference}"),
            at,
            format!(
                "ready and hinted for {}: {}; ready and hinted for others: {}",
                kept.whose,
                list(&kept.endpoints),
                list(&kept.left_out)
            ),
        ),
        Proof::programmed(
            "kube-proxy's rules",
            &client.node,
            *rules_at,
            format!("{}/{} leads to {} alone", SocketAddr::new(*address, port), path.protocol, list(&kept.endpoints)),
        ),
        Proof::probe(
            format!("probe from {}", client.reference),
            &client.node,
            view.now(),
            format!("{} took a connection from {}", working.words(), client.reference),
        ),
    ];
    if let Some(distribution) = &service.spec.traffic_distribution {
        proofs.insert(1, Proof::intended(&reference, at, format!("spec.trafficDistribution is {distribution}")));
    }
    proofs
}

fn words(backends: &[&Backend]) -> String {
    named(backends.iter().map(|backend| backend.words()), NAMED)
}

fn list(endpoints: &BTreeSet<Endpoint>) -> String {
    named(endpoints.iter().map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port)), NAMED)
}

fn fix(path: &Path, service: &Service, cut: &Cut) -> Fix {
    let (namespace, name) = (&service.metadata.namespace, &service.metadata.name);
    let whose = &cut.kept.whose;
    let (way, commands) = if service.spec.traffic_distribution.is_some() {
        let patch = r#"[{"op":"remove","path":"/spec/trafficDistribution"}]"#;
        let command = format!("kubectl -n {namespace} patch service {name} --type=json -p '{patch}'");
        ("remove spec.trafficDistribution", vec![command])
    } else {
        (
            "remove the annotation service.kubernetes.io/topology-mode, or the hints of whoever writes the EndpointSlices",
            Vec::new(),
        )
    };
    Fix {
        text: format!(
            "repair the endpoints for {whose} or run more of them for it; meanwhile, {way}, so that its clients are sent to the others, \
             too"
        ),
        commands,
        verify: path.ask_again(),
    }
}
