//! A range of Services that holds pods: kube-proxy takes packets to such a pod for packets to a Service.
//!
//! In nftables mode it drops what goes to an address of a ServiceCIDR that no Service has (`cluster-ips-check`,
//! `pkg/proxy/nftables/proxier.go`, Kubernetes 1.36); in every mode it translates what goes to a Service's address and port.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::rules::{Chain, Hook, Match, Rule, Ruleset, Table, Verdict};
use netdiag_common::observation::service_rules::ServiceAction;

use super::between::pairs;
use super::trace::{Met, Packets, dropped, probe_of};
use crate::evidence::object::{Object, Pod};
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::listing::named;
use crate::path::{Backend, Client, Path};

/// Why packets are dropped by a rule (`enum skb_drop_reason`).
const REASONS: &[&str] = &["NETFILTER_DROP"];
/// Of nftables mode alone. A table is listed even where its rules are too many to be read.
const KUBE_PROXY_TABLE: &str = "kube-proxy";
/// Endpoints told of the Service that gets the packets.
const MAX_NAMED: usize = 3;

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
        Look::Seen(rules) => rules,
        Look::Absent(_) => return Found::No,
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
        fix: "give the Service an address outside of the pods' range: delete it and make it anew, after the range of Services or the \
              pods' range was changed so that they share no address",
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
    let mut subjects = Vec::new();
    let mut proofs = rule.proofs(node, rules.at);
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
    let source = client.addresses.iter().copied().find(|own| own.is_ipv4() == address.is_ipv4());
    let destination = SocketAddr::new(address, backend.port);
    let protocol = path.protocol;
    let packets = source.map(|source| Packets { source, destination, protocol });
    proofs.extend(packets.and_then(|packets| dropped(view, node, &packets, REASONS)));
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

/// The rule that drops packets to a range.
struct Unallocated<'r> {
    table: &'r Table,
    chain: &'r Chain,
    rule: &'r Rule,
    net: IpNet,
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

impl Unallocated<'_> {
    fn proofs(&self, node: &str, at: Timestamp) -> Vec<Proof> {
        let Self { table, chain, rule, .. } = self;
        let place = format!("table {} {}, chain {}, handle {}", table.family, table.name, chain.name, rule.handle);
        let mut proofs = vec![Proof::programmed("packet filter", node, at, format!("{place}: {}", rule.text))];
        if let Some(counter) = rule.counter.filter(|counter| counter.packets > 0) {
            let text = format!("this rule has stopped {} packets", counter.packets);
            proofs.push(Proof::observed("the rule's counter", node, at, text));
        }
        proofs
    }
}
