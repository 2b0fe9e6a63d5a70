//! A range of Services that holds pods: kube-proxy takes packets to such a pod for packets to a Service.
//!
//! In nftables mode it refuses what goes to a cluster IP and was not translated, and drops what goes to an address of a ServiceCIDR
//! that no Service has (`cluster-ips-check`, `pkg/proxy/nftables/proxier.go`, Kubernetes 1.36); in every mode it translates what goes
//! to a Service's address and port.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use netdiag_common::observation::rules::{Chain, Hook, Match, Rule, Ruleset, Table, Verdict};
use netdiag_common::observation::service_rules::ServiceAction;
use netdiag_common::{Gap, GapReason, Netns};

use super::between::pairs;
use super::trace::{Met, Packets, dropped, probe_of};
use crate::evidence::object::{Object, Pod, Service};
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::listing::named;
use crate::path::{Backend, Client, Path};

/// Why packets are dropped by a rule (`enum skb_drop_reason`).
const REASONS: &[&str] = &["NETFILTER_DROP"];
/// Of nftables mode alone. A table is listed even where its rules are too many to be read.
const KUBE_PROXY_TABLE: &str = "kube-proxy";
/// The set of it that has the cluster IPs.
const CLUSTER_IPS: &str = "cluster-ips";
/// Endpoints told of the Service that gets the packets.
const MAX_NAMED: usize = 3;
/// What helps where a Service and a pod have one address.
const APART: &str = "give the Service an address outside of the pods' range: delete it and make it anew, after the range of Services \
                     or the pods' range was changed so that they share no address";

/// Whether kube-proxy takes packets for pods of the path.
pub enum Taken {
    Found(Box<Finding>),
    No,
    Dark,
}

/// What one client's node does with packets to one pod.
struct Hit {
    claim: String,
    subjects: Vec<ObjectRef>,
    proofs: Vec<Proof>,
    predicts: &'static [Fate],
    fix: &'static str,
}

enum Found {
    Hit(Box<Hit>),
    No,
    Dark,
}

/// Only ways whose probe failed are looked at: what gets through is not taken.
pub fn judge(path: &Path, view: &mut View) -> Taken {
    let pairs = pairs(path);
    let (mut first, mut cut, mut dark) = (None, 0, false);
    for (client, backend) in &pairs {
        let own = backend.pod.as_deref().filter(|pod| !pod.spec.host_network);
        let Some(pod) = own else { continue };
        if !matches!(probe_of(path, view, client, backend), Met::Failed(_)) {
            continue;
        }
        match look(path, client, backend, pod, view) {
            Found::Hit(hit) => {
                cut += 1;
                first = first.or(Some(*hit));
            }
            Found::No => {}
            Found::Dark => dark = true,
        }
    }
    let Some(hit) = first else { return if dark { Taken::Dark } else { Taken::No } };
    let impact = if cut == pairs.len() { Impact::Breaks } else { Impact::Degrades };
    let mut claim = hit.claim;
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {cut} of {} ways of this path are cut like this", pairs.len()));
    }
    let fix = Fix { text: hit.fix.to_owned(), commands: Vec::new(), verify: path.ask_again() };
    let (subjects, proofs, predicts) = (hit.subjects, hit.proofs, hit.predicts);
    Taken::Found(Box::new(Finding { subjects, since: None, impact, claim, proofs, predicts, fix }))
}

fn look(path: &Path, client: &Client, backend: &Backend, pod: &Pod, view: &mut View) -> Found {
    let (Look::Seen(_), Look::Seen(_)) = (view.nodes(), view.services()) else { return Found::Dark };
    // Behind a Service the address is translated already, and no second time.
    let translated = if path.service().is_none() { translated(path, client, backend, pod, view) } else { Found::No };
    match translated {
        Found::No => in_range(path, client, backend, pod, view),
        found => found,
    }
}

/// A Service has the pod's very address.
fn translated(path: &Path, client: &Client, backend: &Backend, pod: &Pod, view: &mut View) -> Found {
    let Some(service) = view.cluster().service_by_address(backend.address) else { return Found::No };
    let rules = match view.service_rules(&client.node, &Netns::Host) {
        Look::Seen(rules) if rules.value.hooked => rules,
        // Packets get to none of them.
        Look::Seen(_) | Look::Absent(_) => return Found::No,
        Look::Dark => return Found::Dark,
    };
    let Some(rule) = rules.value.find(backend.address, path.protocol, backend.port) else { return Found::No };
    let (node, socket) = (&client.node, SocketAddr::new(backend.address, backend.port));
    let what = match &rule.action {
        // It gets its own packets all the same.
        ServiceAction::Endpoints(endpoints) if endpoints.iter().any(|one| one.address == backend.address) => {
            return Found::No;
        }
        ServiceAction::Endpoints(endpoints) => {
            let to = endpoints.iter().map(|one| SocketAddr::new(one.address, one.port));
            format!("leads connections to {socket} to {}", named(to, MAX_NAMED))
        }
        ServiceAction::Reject => format!("refuses connections to {socket}, since the Service has no endpoints"),
        ServiceAction::Drop => format!("drops connections to {socket}, since the Service has no endpoint on this node"),
    };
    let (service, pod) = (service.reference(), pod.reference());
    let has = format!("its cluster IP is {}", backend.address);
    Found::Hit(Box::new(Hit {
        claim: format!(
            "{service} has the cluster IP {}, which is {pod}'s address, too: on node {node} kube-proxy {what}",
            backend.address
        ),
        proofs: vec![
            Proof::programmed("kube-proxy's rules", node, rules.at, what),
            Proof::intended(&service, view.now(), has),
            Proof::intended(&pod, view.now(), format!("status.podIPs has {}", backend.address)),
        ],
        subjects: vec![service, pod],
        predicts: &[],
        fix: APART,
    }))
}

/// The rule against addresses that no Service has meets the pod's.
fn in_range(path: &Path, client: &Client, backend: &Backend, pod: &Pod, view: &mut View) -> Found {
    let rules = match view.rules(&client.node, &Netns::Host) {
        Look::Seen(rules) => rules,
        Look::Absent(_) => return Found::No,
        Look::Dark => return Found::Dark,
    };
    let hook = if client.netns == Netns::Host { Hook::Output } else { Hook::Forward };
    let Some(rule) = unallocated(rules.value, hook, backend.address) else {
        let has_table = rules.value.tables.iter().any(|table| table.name == KUBE_PROXY_TABLE);
        let is_cut = has_table && rules.value.left_out_elsewhere().next().is_some();
        return if is_cut { Found::Dark } else { Found::No };
    };
    let (node, address) = (&client.node, backend.address);
    let refusing = match (rule.before(address), view.cluster().service_by_address(address)) {
        (Before::Refuses(refusing), Some(service)) => Some((refusing, service)),
        (Before::Asks(refusing), Some(service)) => match view.service_rules(node, &Netns::Host) {
            Look::Seen(known) if known.value.entries.iter().any(|entry| entry.address == address) => {
                Some((refusing, service))
            }
            Look::Seen(_) | Look::Absent(_) => return disagreeing(node, address, view),
            Look::Dark => return Found::Dark,
        },
        (Before::Refuses(_), None) | (Before::Passes, Some(_)) => return disagreeing(node, address, view),
        (Before::Asks(_) | Before::Passes, None) => None,
    };
    if let Some((refusing, service)) = refusing {
        let proofs = rule.proofs(refusing, node, rules.at);
        return refused(path, client, backend, pod, service, proofs, view);
    }
    let mut subjects = Vec::new();
    let mut proofs = rule.proofs(rule.rule, node, rules.at);
    if let Look::Seen(ranges) = view.service_cidrs() {
        for range in ranges.value.iter() {
            let Some(net) = range.spec.cidrs.iter().find(|net| net.contains(&address)) else { continue };
            subjects.push(range.reference());
            proofs.push(Proof::intended(range.reference(), ranges.at, format!("spec.cidrs has {net}")));
        }
    }
    let mut whose = pod.reference().to_string();
    if let Some(owner) = view.cluster().nodes.get("", &backend.node) {
        subjects.push(owner.reference().on_node(&backend.node));
        if let Some(net) = owner.spec.pod_cidrs.iter().find(|net| net.contains(&address)) {
            whose.push_str(&format!(" and an address of {net}, the pods of node {}", backend.node));
            let text = format!("its pods have addresses of {net}");
            proofs.push(Proof::intended(owner.reference(), view.now(), text));
        }
    }
    proofs.extend(packets(path, client, backend).and_then(|packets| dropped(view, node, &packets, REASONS)));
    Found::Hit(Box::new(Hit {
        claim: format!(
            "the range of Services {} holds {address}, {whose}: on node {node} kube-proxy drops new connections to it, as to an \
             address that no Service has",
            rule.net
        ),
        subjects,
        proofs,
        // The own host's packet filter says so to its own programs.
        predicts: &[Fate::Silence, Fate::NotPermitted],
        fix: "give Services a range that shares no address with pods and nodes: a ServiceCIDR besides `kubernetes` can be deleted once no \
              Service has an address of it; the API server's first one and pods' ranges are chosen when a cluster is made",
    }))
}

/// The rule against ports that a Service does not have meets the pod's address, which is a cluster IP, too.
fn refused(
    path: &Path,
    client: &Client,
    backend: &Backend,
    pod: &Pod,
    service: &Service,
    mut proofs: Vec<Proof>,
    view: &mut View,
) -> Found {
    let (node, socket) = (&client.node, SocketAddr::new(backend.address, backend.port));
    let (service, pod) = (service.reference(), pod.reference());
    let has = format!("its cluster IP is {}", backend.address);
    proofs.push(Proof::intended(&service, view.now(), has));
    proofs.push(Proof::intended(&pod, view.now(), format!("status.podIPs has {}", backend.address)));
    proofs.extend(packets(path, client, backend).and_then(|packets| dropped(view, node, &packets, REASONS)));
    Found::Hit(Box::new(Hit {
        claim: format!(
            "{service} has the cluster IP {}, which is {pod}'s address, too: on node {node} kube-proxy refuses new connections to \
             {socket}, as to ports of a cluster IP that it does not translate",
            backend.address
        ),
        subjects: vec![service, pod],
        proofs,
        // The own host's packet filter says so to its own programs.
        predicts: &[Fate::Refused, Fate::NotPermitted],
        fix: APART,
    }))
}

/// Whose address it is decides what the rules do, and there are two answers to it.
fn disagreeing(node: &str, address: IpAddr, view: &mut View) -> Found {
    let family = if address.is_ipv4() { "ip" } else { "ip6" };
    view.leave_open(Gap {
        what: format!("what kube-proxy's rules on node {node} do with packets to {address}"),
        node: Some(node.to_owned()),
        reason: GapReason::Failed,
        why: format!("they and the API do not agree on whether a Service has {address}"),
        remedy: format!(
            "ask again; `nft list set {family} {KUBE_PROXY_TABLE} {CLUSTER_IPS}` on the node lists what they refuse"
        ),
    });
    Found::Dark
}

fn packets(path: &Path, client: &Client, backend: &Backend) -> Option<Packets> {
    let destination = SocketAddr::new(backend.address, backend.port);
    let source = client.addresses.iter().copied().find(|own| own.is_ipv4() == destination.is_ipv4())?;
    Some(Packets { source, destination, protocol: path.protocol })
}

/// The rule that drops packets to a range.
struct Unallocated<'r> {
    table: &'r Table,
    chain: &'r Chain,
    rule: &'r Rule,
    net: IpNet,
}

/// What the rules before it do with packets to one address.
enum Before<'r> {
    /// They refuse them: it is a cluster IP.
    Refuses(&'r Rule),
    /// They refuse them if the set of cluster IPs has it, and the rules were read without the set's elements.
    Asks(&'r Rule),
    Passes,
}

/// kube-proxy's against this address, when packets of this hook come to it.
fn unallocated(ruleset: &Ruleset, hook: Hook, address: IpAddr) -> Option<Unallocated<'_>> {
    all_unallocated(ruleset, hook).find(|rule| rule.net.contains(&address))
}

/// The ranges of Services that kube-proxy's rules have; none in other modes than nftables.
pub(crate) fn ranges_in_rules(ruleset: &Ruleset) -> Vec<IpNet> {
    all_unallocated(ruleset, Hook::Forward).map(|rule| rule.net).collect()
}

fn all_unallocated(ruleset: &Ruleset, hook: Hook) -> impl Iterator<Item = Unallocated<'_>> {
    let own = ruleset.tables.iter().filter(|table| table.name == KUBE_PROXY_TABLE);
    own.flat_map(move |table| table.chains.iter().map(move |chain| (table, chain)))
        .filter(move |(table, chain)| leads_to(table, hook, &chain.name))
        .flat_map(|(table, chain)| chain.rules.iter().map(move |rule| (table, chain, rule)))
        .flat_map(|(table, chain, rule)| {
            let nets = match (&rule.matches[..], &rule.verdict) {
                ([Match::Destination { nets, negated: false }], Verdict::Drop) => nets.as_slice(),
                _ => &[],
            };
            nets.iter().map(move |net| Unallocated { table, chain, rule, net: *net })
        })
}

/// A base chain of the hook jumps to this chain.
fn leads_to(table: &Table, hook: Hook, name: &str) -> bool {
    let mut bases = table.chains.iter().filter(|chain| chain.base.as_ref().is_some_and(|base| base.hook == hook));
    let jumps = |rule: &Rule| matches!(&rule.verdict, Verdict::Jump { chain } if chain == name);
    bases.any(|base| base.rules.iter().any(jumps))
}

impl<'r> Unallocated<'r> {
    fn before(&self, address: IpAddr) -> Before<'r> {
        let before = self.chain.rules.iter().take_while(|rule| rule.handle != self.rule.handle);
        for rule in before.filter(|rule| matches!(rule.verdict, Verdict::Reject { .. })) {
            match &rule.matches[..] {
                [Match::Destination { nets, negated: false }] if nets.iter().any(|net| net.contains(&address)) => {
                    return Before::Refuses(rule);
                }
                [Match::Other { text }] if text.ends_with(&format!("@{CLUSTER_IPS}")) => return Before::Asks(rule),
                _ => {}
            }
        }
        Before::Passes
    }

    /// Of this rule or of one before it.
    fn proofs(&self, rule: &Rule, node: &str, at: Timestamp) -> Vec<Proof> {
        let Self { table, chain, .. } = self;
        let place = format!("table {} {}, chain {}, handle {}", table.family, table.name, chain.name, rule.handle);
        let mut proofs = vec![Proof::programmed("packet filter", node, at, format!("{place}: {}", rule.text))];
        if let Some(counter) = rule.counter.filter(|counter| counter.packets > 0) {
            let text = format!("this rule has stopped {} packets", counter.packets);
            proofs.push(Proof::observed("the rule's counter", node, at, text));
        }
        proofs
    }
}
