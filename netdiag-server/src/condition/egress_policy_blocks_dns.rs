//! The client pod may send only to what its NetworkPolicies allow, and the cluster's DNS is not among it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netdiag_common::observation::Protocol;

use super::enforced::{Enforced, enforced_on};
use super::trace::{Packets, dropped};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::{NetworkPolicy, Object, Pod, Service, ServicePort};
use crate::evidence::{Cluster, KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::policy::{Decision, Denial, Direction, Enforcer, Flow, Side, decide, isolating};
use crate::path::{self, Backend, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "egress_policy_blocks_dns",
    severity: Severity::High,
    words: Words {
        means: "a NetworkPolicy isolates the client pod for egress, and no rule lets it ask the cluster's DNS",
        how_we_know: "the client's egress policies are evaluated for UDP to each DNS endpoint; the client's node shows a \
                      policy engine; lookups from the client stay without answer",
        silent_when: "nothing enforces policies on the client's node, a lookup is answered, or the pod asks name servers \
                      that are not the cluster's",
        what_to_do: "allow UDP and TCP 53 to the pods of the cluster's DNS in the egress policy",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/network-policies/#default-deny-all-egress-traffic",
            "https://kubernetes.io/docs/tasks/administer-cluster/declare-network-policy/",
        ],
    },
    faults: &["np-deny-egress-dns"],
    reads: &[
        Read::Kind(KindName::NetworkPolicies),
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Services),
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Namespaces),
        Read::Topic("resolver"),
        Read::Topic("network"),
        Read::Topic("rules"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["cluster_dns_has_no_endpoints", "kube_proxy_rules_stale", "host_firewall_drops_path"],
    explains: &[
        Explains { code: "policy_denies_path", relation: Relation::SamePolicy },
        Explains { code: "name_does_not_exist", relation: Relation::SamePath },
    ],
    judge,
};

const REASONS: &[&str] = &["TC_INGRESS", "TC_EGRESS", "NETFILTER_DROP"];

/// The cluster's DNS as a policy sees it.
struct Dns<'c> {
    service: &'c Arc<Service>,
    /// Of the Service's UDP port 53.
    servers: Vec<Backend>,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    if path.name.is_none() && !path.is_dns() {
        return Verdict::not_applicable("no name was asked, and the path does not lead to the cluster's DNS");
    }
    if !path.is_asked() {
        return Verdict::not_applicable("a scan does not ask about paths that are meant to be denied");
    }
    let [client] = path.clients.as_slice() else {
        return Verdict::not_applicable("the question names no pod whose policies could be asked");
    };
    let Some(pod) = client.pod.as_deref().filter(|pod| !pod.spec.host_network) else {
        return Verdict::not_applicable("policies do not speak about connections of a node's host");
    };
    let (Look::Seen(_), Look::Seen(_)) = (view.network_policies(), view.pods()) else { return Verdict::unknown(view) };
    let cluster = view.cluster();
    if isolating(cluster, pod, Direction::Egress).is_empty() {
        return Verdict::clear(format!("no NetworkPolicy isolates {} for egress", pod.reference()));
    }
    let (Look::Seen(_), Look::Seen(_), Look::Seen(_)) = (view.services(), view.endpoint_slices(), view.namespaces())
    else {
        return Verdict::unknown(view);
    };
    let Some(dns) = dns(cluster) else {
        return Verdict::not_applicable("the cluster has no DNS Service with endpoints");
    };
    if let Some(others) = other_servers(client, &dns, view) {
        return Verdict::clear(format!("{} asks {others}, not {}", pod.reference(), dns.service.reference()));
    }
    let flows: Vec<Flow> = dns.servers.iter().filter_map(|server| flow(client, server, Protocol::Udp)).collect();
    let denials: Vec<(&Flow, Denial)> = flows.iter().filter_map(|flow| Some((flow, denied(cluster, flow)?))).collect();
    let Some((first, denial)) = denials.first() else {
        if flows.iter().any(|flow| matches!(decide(cluster, flow), Decision::Undefined(_))) {
            return answered(path, client, view).map_or_else(|| Verdict::unknown(view), Verdict::clear);
        }
        return Verdict::clear(format!("the egress policies allow UDP to {} DNS endpoints", flows.len()));
    };
    if let Some(answered) = answered(path, client, view) {
        return Verdict::clear(answered);
    }
    let (enforcer, enforcing) = match enforced_on(view, &client.node) {
        Enforced::By(enforcer, proof) => (enforcer, proof),
        Enforced::Dark => return Verdict::unknown(view),
        Enforced::Nobody => {
            return Verdict::clear(format!(
                "no component that enforces policies was seen on node {}, so {} has no effect there",
                client.node,
                denial.policies[0].reference()
            ));
        }
    };
    let mut proofs: Vec<Proof> = denial.policies.iter().map(|policy| intended(policy, pod, first.port, view)).collect();
    proofs.push(enforcing);
    proofs.extend(denials.iter().find_map(|(flow, _)| {
        let destination = SocketAddr::new(flow.to.address, flow.port);
        let packets = Packets { source: flow.from.address, destination, protocol: Protocol::Udp };
        dropped(view, &client.node, &packets, REASONS)
    }));
    let mut subjects: Vec<ObjectRef> = denial.policies.iter().map(|policy| policy.reference()).collect();
    subjects.push(pod.reference());
    let impact = if denials.len() == flows.len() { Impact::Breaks } else { Impact::Degrades };
    Verdict::found(Finding {
        subjects,
        since: denial.policies.iter().filter_map(|policy| policy.metadata.changed_at).max(),
        impact,
        claim: claim(pod, denial, &dns, first.port, denials.len(), tcp_too(cluster, client, &dns)),
        proofs,
        predicts: if path.name.is_some() { lookup_fates(&enforcer) } else { enforcer.denies },
        fix: fix(path, denial.policies[0], &dns, first.port),
    })
}

fn dns(cluster: &Cluster) -> Option<Dns<'_>> {
    let service = cluster.dns_service()?;
    let is_dns = |port: &&ServicePort| port.port == 53 && port.protocol.0 == Protocol::Udp;
    let port = service.spec.ports.iter().find(is_dns)?;
    let mut servers = path::backends(cluster, service, port);
    servers.retain(|server| server.ready && !server.terminating);
    (!servers.is_empty()).then_some(Dns { service, servers })
}

/// The name servers of the client, when none of them is the cluster's DNS. A file that cannot be read is taken to be what
/// the kubelet writes.
fn other_servers(client: &Client, dns: &Dns, view: &mut View) -> Option<String> {
    let Look::Seen(resolver) = view.resolver(&client.node, &client.netns) else { return None };
    let (servers, own) = (&resolver.value.nameservers, dns.service.cluster_ips());
    let is_own = |server: &IpAddr| own.contains(server) || dns.servers.iter().any(|backend| backend.address == *server);
    if servers.iter().any(is_own) {
        return None;
    }
    Some(servers.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}

fn flow<'c>(client: &'c Client, server: &'c Backend, protocol: Protocol) -> Option<Flow<'c>> {
    let from = Side::client(client, server.address)?;
    Some(Flow { from, to: Side::backend(server), protocol, port: server.port, service_port: None })
}

fn denied<'c>(cluster: &'c Cluster, flow: &Flow<'c>) -> Option<Denial<'c>> {
    match decide(cluster, flow) {
        Decision::Denied(denials) => denials.into_iter().find(|denial| denial.direction == Direction::Egress),
        Decision::Allowed(_) | Decision::Undefined(_) => None,
    }
}

/// Whether long answers, which are asked for again over TCP, would fail as well.
fn tcp_too(cluster: &Cluster, client: &Client, dns: &Dns) -> bool {
    dns.servers.iter().any(|server| flow(client, server, Protocol::Tcp).is_some_and(|f| denied(cluster, &f).is_some()))
}

/// Any answer, even that there is no such name, shows that queries get out.
fn answered(path: &Path, client: &Client, view: &mut View) -> Option<String> {
    let silent = [Fate::LookupSilence, Fate::LookupRefused, Fate::LookupUnreachable, Fate::LookupNotPermitted];
    let lookups = path::lookups(path, view);
    if let Some(seen) = lookups.iter().find(|probe| probe.fate().is_none_or(|fate| !silent.contains(&fate))) {
        return Some(format!("the client's queries are answered: {}", seen.words(path)));
    }
    if path.name.is_some() {
        return None;
    }
    let request = path.addresses.first().and_then(|address| path.address_probe(*address))?;
    let Look::Seen(seen) = view.probe(&client.node, &client.netns, request) else { return None };
    (seen.value.succeeded() > 0).then(|| format!("the probe from {} got through", client.reference))
}

fn claim(pod: &Pod, denial: &Denial, dns: &Dns, port: u16, denied: usize, tcp: bool) -> String {
    let policies: Vec<String> = denial.policies.iter().map(|policy| policy.reference().to_string()).collect();
    let isolates = if policies.len() == 1 { "isolates" } else { "isolate" };
    let protocols = if tcp { "UDP or TCP" } else { "UDP" };
    let mut claim = format!(
        "{} {isolates} {} for egress, and no rule allows {protocols} {port} to the pods of {}, so names cannot be looked up",
        policies.join(" and "),
        pod.reference(),
        dns.service.reference()
    );
    if denied < dns.servers.len() {
        claim.push_str(&format!(" at {denied} of {} DNS endpoints", dns.servers.len()));
    }
    claim
}

fn intended(policy: &NetworkPolicy, pod: &Pod, port: u16, view: &View) -> Proof {
    let rules = match policy.spec.egress.len() {
        0 => "it has no egress rule".to_owned(),
        count => format!("none of its {count} egress rules allows {port}/UDP to the DNS pods"),
    };
    let text = format!("selects {} ({}) for egress; {rules}", pod.reference(), policy.spec.pod_selector);
    Proof::intended(policy.reference(), view.now(), text)
}

/// How the engine's denial looks to a resolver.
fn lookup_fates(enforcer: &Enforcer) -> &'static [Fate] {
    match enforcer.denies {
        [Fate::Silence] => &[Fate::LookupSilence],
        [Fate::Refused] => &[Fate::LookupRefused],
        [Fate::Silence, Fate::Unreachable] => &[Fate::LookupSilence, Fate::LookupUnreachable],
        _ => &[Fate::LookupSilence, Fate::LookupRefused, Fate::LookupUnreachable, Fate::LookupNotPermitted],
    }
}

fn fix(path: &Path, policy: &NetworkPolicy, dns: &Dns, port: u16) -> Fix {
    let meta = &dns.service.metadata;
    let rule = serde_json::json!({
        "to": [{
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": meta.namespace}},
            "podSelector": {"matchLabels": dns.service.spec.selector},
        }],
        "ports": [{"protocol": "UDP", "port": port}, {"protocol": "TCP", "port": port}],
    });
    let (at, value) = match policy.spec.egress.len() {
        0 => ("/spec/egress", serde_json::json!([rule])),
        _ => ("/spec/egress/-", rule.clone()),
    };
    let patch = serde_json::json!([{"op": "add", "path": at, "value": value}]);
    let (namespace, name) = (&policy.metadata.namespace, &policy.metadata.name);
    Fix {
        text: format!("add to spec.egress of {}: {rule}", policy.reference()),
        commands: vec![format!("kubectl -n {namespace} patch networkpolicy {name} --type=json -p '{patch}'")],
        verify: path.ask_again(),
    }
}
