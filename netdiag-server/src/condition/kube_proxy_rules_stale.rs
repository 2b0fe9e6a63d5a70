//! A node's kube-proxy rules are not what EndpointSlices say: gone, incomplete, or old.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::kube_proxy::KubeProxy;
use netdiag_common::observation::service_rules::{Endpoint, Proxier, ServiceAction, ServiceRules};

use super::proxied::proxied;
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Object, Service, ServicePort};
use crate::evidence::{KindName, Look, ObjectRef, Seen, View};
use crate::finding::{Finding, Fix, Impact, Proof};
use crate::path::Path;
use crate::path::forwarding::{services_with_endpoints, wanted};

pub const CONDITION: Condition = Condition {
    code: "kube_proxy_rules_stale",
    severity: Severity::Critical,
    words: Words {
        means: "on one node the rules for the Service are missing, or lead to other endpoints than the EndpointSlices say",
        how_we_know: "the Service's addresses and ready endpoints are compared with the rules read from that node's \
                      kernel; kube-proxy's own health and last sync are read besides",
        silent_when: "the EndpointSlices changed a moment ago, the Service has no endpoints at all, the rules lead to those \
                      that topology hints leave for the node or to more of them, or nothing shows that kube-proxy serves \
                      the node (IPVS and other proxies)",
        what_to_do: "restart kube-proxy on that node, and remove what deletes its rules or keeps it from the API server",
        sources: &[
            "https://kubernetes.io/docs/reference/networking/virtual-ips/",
            "https://kubernetes.io/docs/tasks/debug/debug-application/debug-service/#is-the-kube-proxy-working",
        ],
    },
    faults: &["kp-missing-on-node", "kp-stale-rules"],
    reads: &[
        Read::Kind(KindName::Services),
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Nodes),
        Read::Topic("service_rules"),
        Read::Topic("kube_proxy"),
    ],
    lookalikes: &["service_has_no_ready_endpoints", "service_port_not_defined", "host_firewall_drops_path"],
    explains: &[],
    judge,
};

/// A change younger than this when the rules were read may not have reached them: kube-proxy syncs at least every second
/// when there is work (`--iptables-min-sync-period`), large tables take seconds.
const SETTLE_S: f64 = 10.0;
/// Other nodes asked whether kube-proxy's rules exist in this cluster at all.
const NEIGHBOURS: usize = 3;

/// What one node's rules lack for the asked port.
pub(super) struct Stale {
    pub(super) node: String,
    /// No connection to the address gets to a living endpoint.
    pub(super) breaks: bool,
    /// `has no rule for 10.96.0.7:80/tcp`, …
    pub(super) what: String,
    pub(super) proof: Proof,
}

/// What one node's rules say about the asked port.
pub(super) enum Node {
    Stale(Stale),
    Right,
    /// Rules have nothing to do there, whatever they are.
    Idle(&'static str),
    /// They were not compared.
    Silent(&'static str),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let (service, port) = match proxied(path) {
        Ok(found) => found,
        Err(because) => return Verdict::not_applicable(because),
    };
    let (Look::Seen(slices), Look::Seen(_)) = (view.endpoint_slices(), view.services()) else {
        return Verdict::unknown(view);
    };
    let nodes: BTreeSet<&str> = path.clients.iter().map(|client| client.node.as_str()).collect();
    let mut stale = Vec::new();
    let (mut dark, mut right) = (false, 0);
    let (mut silent, mut idle) = (None, None);
    for node in &nodes {
        match on_node(path, service, port, node, view) {
            Node::Stale(found) => stale.push(found),
            Node::Right => right += 1,
            Node::Idle(because) => idle = Some(because),
            Node::Silent(because) => silent = Some(because),
            Node::Dark => dark = true,
        }
    }
    let Some(first) = stale.first() else {
        return match (silent, idle) {
            _ if dark => Verdict::unknown(view),
            // Where rules were not compared, nothing is excluded.
            (Some(because), _) if right == 0 => Verdict::not_applicable(because),
            (None, Some(because)) if right == 0 => Verdict::clear(because),
            _ => Verdict::clear(format!("the rules of {right} nodes lead to the endpoints of the EndpointSlices")),
        };
    };
    let impact =
        if stale.iter().all(|s| s.breaks) && stale.len() == nodes.len() { Impact::Breaks } else { Impact::Degrades };
    let mut claim = format!("on node {}, {}", first.node, first.what);
    if nodes.len() > 1 {
        claim.push_str(&format!("; so on {} of {} nodes", stale.len(), nodes.len()));
    }
    let mut proofs: Vec<Proof> = stale.iter().map(|s| s.proof.clone()).collect();
    proofs.push(intended(path, service, port, &first.node, slices.at, view));
    proofs.extend(stale.iter().filter_map(|s| health(&s.node, view)));
    let mut subjects: Vec<ObjectRef> = stale.iter().map(|s| ObjectRef::of_node(&s.node)).collect();
    subjects.push(service.reference());
    let fix = fix(path, &first.node);
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: &[], fix })
}

pub(super) fn on_node(path: &Path, service: &Service, port: &ServicePort, node: &str, view: &mut View) -> Node {
    let cluster = view.cluster();
    let own: Vec<IpAddr> = service.cluster_ips().into_iter().chain(service.external_ips()).collect();
    if !path.addresses.is_empty() && path.addresses.iter().all(|address| !own.contains(address)) {
        return Node::Silent("a node port is asked, whose rules name no address in every mode of kube-proxy");
    }
    let addresses: Vec<IpAddr> = path
        .addresses
        .iter()
        .copied()
        .filter(|address| own.contains(address))
        .filter(|address| !wanted(cluster, service, port, *address, node).endpoints.is_empty())
        .collect();
    if addresses.is_empty() {
        return Node::Idle("the Service has no endpoint that rules could lead to");
    }
    let rules = match view.service_rules(node, &Netns::Host) {
        Look::Seen(rules) if rules.value.proxier == Proxier::Ipvs => return Node::Silent(BY_IPVS),
        Look::Seen(rules) if rules.value.proxier != Proxier::None => rules,
        Look::Seen(Seen { at, .. }) | Look::Absent(at) => return without_rules(service, node, at, view),
        Look::Dark => return Node::Dark,
    };
    if !rules.value.hooked {
        let what =
            format!("kube-proxy's chains exist, but no base chain leads to them any more{}", all_missing(node, view));
        let text = format!("{} Service addresses in rules that no packet reaches", rules.value.entries.len());
        return stale(node, true, what, rules.at, text);
    }
    let mut partly = None;
    for address in addresses {
        match compare(service, port, address, node, rules, view) {
            Node::Right => {}
            Node::Stale(found) if !found.breaks => partly = Some(Node::Stale(found)),
            other => return other,
        }
    }
    partly.unwrap_or(Node::Right)
}

/// The rules of one address of the Service against the endpoints it should have.
fn compare(
    service: &Service,
    port: &ServicePort,
    address: IpAddr,
    node: &str,
    rules: Seen<ServiceRules>,
    view: &mut View,
) -> Node {
    let wanted = wanted(view.cluster(), service, port, address, node);
    // Which endpoints hints leave depends on the node's zone.
    if wanted.hinted && matches!(view.nodes(), Look::Dark) {
        return Node::Dark;
    }
    let newest = wanted.changed_at.max(service.metadata.changed_at);
    if newest.is_some_and(|changed| is_settling(changed, rules.at, view.now())) {
        return Node::Silent("the Service or its EndpointSlices changed less than 10 s before the rules were read");
    }
    let socket = SocketAddr::new(address, port.port);
    let protocol = port.protocol.0;
    let all = wanted.unhinted.len();
    let rule = rules.value.find(address, protocol, port.port);
    let (breaks, what, text) = match rule.map(|rule| &rule.action) {
        None if !rules.value.undecoded.is_empty() => return Node::Dark,
        None => {
            let missing = missing_services(rules.value, node, view);
            let count = if missing > 1 { format!(" ({missing} Services are missing there)") } else { String::new() };
            let what =
                format!("kube-proxy's rules have no entry for {socket}/{protocol} of {}{count}", service.reference());
            (true, what, format!("no entry for {socket}/{protocol} among {}", rules.value.entries.len()))
        }
        Some(ServiceAction::Reject | ServiceAction::Drop) => {
            let what = format!(
                "kube-proxy's rules still turn connections to {socket}/{protocol} of {} away, although it has {all} \
                 ready endpoints",
                service.reference()
            );
            (true, what, format!("{socket}/{protocol} is refused or dropped"))
        }
        Some(ServiceAction::Endpoints(have)) => {
            let have: BTreeSet<Endpoint> = have.iter().cloned().collect();
            // A proxy that heeds no hints sends to more endpoints, which are the Service's as well.
            let extra = list(have.difference(&wanted.unhinted));
            let is_other_way = wanted.instead.contains(&have);
            let missing = if is_other_way { Vec::new() } else { list(wanted.endpoints.difference(&have)) };
            if extra.is_empty() && missing.is_empty() {
                return Node::Right;
            }
            let breaks = have.is_disjoint(&wanted.unhinted);
            let what = differences(service, &format!("{socket}/{protocol}"), &extra, &missing, have.len());
            (breaks, what, format!("{socket}/{protocol} leads to {}", list(have.iter()).join(", ")))
        }
    };
    stale(node, breaks, what, rules.at, text)
}

/// Nodes have clocks of their own: one that is ahead must not make a change look old.
fn is_settling(changed: Timestamp, read_at: Timestamp, now: Timestamp) -> bool {
    read_at.min(now).duration_since(changed).as_secs_f64() < SETTLE_S
}

fn differences(service: &Service, socket: &str, extra: &[String], missing: &[String], have: usize) -> String {
    let mut parts = Vec::new();
    if !extra.is_empty() {
        let (some, are) = (extra.join(", "), if extra.len() == 1 { "is no endpoint" } else { "are no endpoints" });
        parts.push(format!("send {} of {have} connections to {some}, which {are} of it any more", extra.len()));
    }
    if !missing.is_empty() {
        parts.push(format!("know nothing of {}", missing.join(", ")));
    }
    format!("kube-proxy's rules for {socket} of {} are old: they {}", service.reference(), parts.join(" and "))
}

fn list<'e>(endpoints: impl Iterator<Item = &'e Endpoint>) -> Vec<String> {
    endpoints.map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port).to_string()).collect()
}

/// Its virtual servers name no Service, and what differs for a moment while endpoints end is not told apart.
const BY_IPVS: &str = "kube-proxy works by IPVS there: netdiag drift compares its virtual servers";

/// No rules of kube-proxy at all: a fault only where kube-proxy is what serves Services.
fn without_rules(service: &Service, node: &str, at: Timestamp, view: &mut View) -> Node {
    if let Look::Seen(proxy) = view.kube_proxy(node, &Netns::Host) {
        if proxy.value.mode.as_deref() == Some("ipvs") {
            return Node::Silent(BY_IPVS);
        }
        if proxy.value.running {
            return none_at_all(service, node, at, "kube-proxy runs, but its rules are gone", view);
        }
    }
    let others: Vec<String> =
        view.cluster().nodes.iter().map(|n| n.metadata.name.clone()).filter(|n| n != node).take(NEIGHBOURS).collect();
    let mut dark = false;
    for other in others {
        match view.service_rules(&other, &Netns::Host) {
            Look::Seen(rules) if rules.value.proxier != Proxier::None => {
                let what = format!("there are no rules of kube-proxy, as node {other} has them");
                return none_at_all(service, node, at, &what, view);
            }
            Look::Seen(_) | Look::Absent(_) => {}
            Look::Dark => dark = true,
        }
    }
    if dark { Node::Dark } else { Node::Silent("no node shows rules of kube-proxy: another proxy may serve Services") }
}

fn none_at_all(service: &Service, node: &str, at: Timestamp, what: &str, view: &View) -> Node {
    let what =
        format!("{what}: nothing translates the addresses of {}{}", service.reference(), all_missing(node, view));
    stale(node, true, what, at, "no rules of kube-proxy were found".to_owned())
}

fn all_missing(node: &str, view: &View) -> String {
    match services_with_endpoints(view.cluster(), node).count() {
        0 | 1 => String::new(),
        count => format!(" (all {count} Services are missing there)"),
    }
}

/// Services with endpoints of which not one address and port has an entry.
fn missing_services(rules: &ServiceRules, node: &str, view: &View) -> usize {
    // Not by `find`: with ten thousand Services that would be a search in the rules for each of them.
    let own: BTreeSet<(IpAddr, Protocol, u16)> =
        rules.entries.iter().map(|entry| (entry.address, entry.protocol, entry.port)).collect();
    let has = |service: &Service| {
        let ports =
            |address| service.spec.ports.iter().any(|port| own.contains(&(address, port.protocol.0, port.port)));
        service.cluster_ips().into_iter().any(ports)
    };
    services_with_endpoints(view.cluster(), node).filter(|service| !has(service)).count()
}

fn stale(node: &str, breaks: bool, what: String, at: Timestamp, text: String) -> Node {
    let proof = Proof::programmed("kube-proxy's rules", node, at, text);
    Node::Stale(Stale { node: node.to_owned(), breaks, what, proof })
}

pub(super) fn intended(
    path: &Path,
    service: &Service,
    port: &ServicePort,
    node: &str,
    at: Timestamp,
    view: &View,
) -> Proof {
    let endpoints: BTreeSet<Endpoint> = path
        .addresses
        .iter()
        .flat_map(|address| wanted(view.cluster(), service, port, *address, node).endpoints)
        .collect();
    let text = format!("endpoints are {}", list(endpoints.iter()).join(", "));
    Proof::intended(format!("EndpointSlices of {}", service.reference()), at, text)
}

/// What kube-proxy says about itself; nothing when it did not answer.
pub(super) fn health(node: &str, view: &mut View) -> Option<Proof> {
    let Look::Seen(seen) = view.kube_proxy(node, &Netns::Host) else { return None };
    let KubeProxy { running, healthz_status, last_sync, last_queued, sync_failures, .. } = seen.value;
    let mut words = vec![if *running { "kube-proxy runs".to_owned() } else { "no kube-proxy runs".to_owned() }];
    words.extend(healthz_status.map(|status| format!("/healthz says {status}")));
    words.extend(last_sync.map(|at| format!("last sync {at}")));
    if let (Some(sync), Some(queued)) = (last_sync, last_queued)
        && queued > sync
    {
        words.push(format!("changes are waiting since {queued}"));
    }
    words.extend(sync_failures.filter(|failures| *failures > 0).map(|failures| format!("{failures} failed syncs")));
    Some(Proof::observed("kube-proxy", node, seen.at, words.join(", ")))
}

fn fix(path: &Path, node: &str) -> Fix {
    Fix {
        text: format!(
            "restart kube-proxy on node {node} (where it is a DaemonSet, delete its pod there), and find what removed the \
             rules or stopped it from reading the API: its log says the last sync"
        ),
        commands: vec![format!(
            "kubectl -n kube-system delete pod -l k8s-app=kube-proxy --field-selector spec.nodeName={node}"
        )],
        verify: path.ask_again(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_whose_clock_is_ahead_does_not_make_a_change_old() {
        let at = |text: &str| text.parse::<Timestamp>().expect("a time");
        let (changed, now) = (at("2026-01-01T12:00:00Z"), at("2026-01-01T12:00:04Z"));
        assert!(is_settling(changed, at("2026-01-01T12:00:03Z"), now));
        assert!(is_settling(changed, at("2026-01-01T12:05:00Z"), now));
        assert!(!is_settling(changed, at("2026-01-01T12:00:11Z"), at("2026-01-01T12:00:12Z")));
    }
}
