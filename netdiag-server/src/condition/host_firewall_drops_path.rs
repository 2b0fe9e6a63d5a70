//! A packet filter rule that is not the cluster's own stops the path's packets on a node.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::rules::{Backend as Writer, Verdict as Action};

use super::rule::{Rule, stopping};
use super::trace::{Met, Packets, dropped, probe_of, rejected};
use super::way::{self, Search, search};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::filter::{Owner, Stop, owner, stops};
use crate::path::hops::{NodeHop, nodes, packet};
use crate::path::{Backend, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "host_firewall_drops_path",
    severity: Severity::High,
    words: Words {
        means: "a firewall rule on a node of the path drops or rejects the connection, and neither Kubernetes nor the \
                network plugin wrote it",
        how_we_know: "the rules of the client's and the endpoints' nodes are walked for the connection's first packet; \
                      probes, the rule's counter, dropped packets and ICMP errors agree",
        silent_when: "the rule belongs to kube-proxy, a network plugin or a policy engine, matches other packets, or the \
                      probe gets through; a rule that cannot be decided counts only when packets show that it dropped",
        what_to_do: "remove the rule, or allow pod and Service networks before it",
        sources: &[
            "nft(8), chains and hooks",
            "net/netfilter/core.c: nf_hook_slow",
            "net/netfilter/nf_tables_core.c: nft_do_chain",
        ],
    },
    faults: &["host-firewall-drop"],
    reads: &[
        Read::Topic("rules"),
        Read::Topic("network"),
        Read::Topic("drops"),
        Read::Topic("rejects"),
        Read::Topic("fate"),
        Read::Topic("listeners"),
        Read::Topic("probe"),
    ],
    lookalikes: &["policy_denies_path", "pod_network_route_missing", "kube_proxy_rules_stale"],
    explains: &[
        Explains { code: "topology_hints_leave_no_working_endpoint", relation: Relation::SamePath },
        Explains { code: "session_affinity_keeps_bad_endpoint", relation: Relation::SamePath },
    ],
    judge,
};

const REASONS: &[&str] = &["NETFILTER_DROP"];

/// A rule that stops one connection of the path.
struct Stopped {
    node: String,
    owner: Owner,
    /// `inet site fw handle 4`, so that one rule met twice counts once.
    place: String,
    text: String,
    packets: Option<u64>,
    read_at: Timestamp,
    predicts: &'static [Fate],
    fix: Fix,
    observed: Option<Proof>,
}

enum Found {
    Stopped(Box<Stopped>),
    Free,
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let pairs: Vec<(&Client, &Backend)> = path
        .clients
        .iter()
        .flat_map(|client| path.ready_backends().map(move |backend| (client, backend)))
        .filter(|(client, backend)| {
            client.addresses.iter().any(|own| own.is_ipv4() == backend.address.is_ipv4()) || client.addresses.is_empty()
        })
        .collect();
    if pairs.is_empty() {
        return Verdict::not_applicable("the path has no endpoint to follow packets to");
    }
    let mut found: Vec<Stopped> = Vec::new();
    let (mut dark, mut cut) = (false, 0);
    for (client, backend) in &pairs {
        match follow(path, client, backend, view) {
            Found::Stopped(stopped) => {
                cut += 1;
                if !found.iter().any(|known| known.node == stopped.node && known.place == stopped.place) {
                    found.push(*stopped);
                }
            }
            Found::Free => {}
            Found::Dark => dark = true,
        }
    }
    let Some(first) = found.first() else {
        if dark {
            return Verdict::unknown(view);
        }
        let nodes: BTreeSet<&str> = pairs.iter().flat_map(|(c, b)| [c.node.as_str(), b.node.as_str()]).collect();
        let nodes: Vec<&str> = nodes.into_iter().filter(|node| !node.is_empty()).collect();
        let met = search(path, view, |_, leg| stopping(leg).filter(|rule| !rule.owner.is_cluster()));
        return match met {
            Search::Met(met) => on_the_way(path, &met, view),
            Search::Not(_) => Verdict::clear(format!("no rule of a host firewall stops it on {}", nodes.join(", "))),
        };
    };
    let impact = if cut == pairs.len() { Impact::Breaks } else { Impact::Degrades };
    let mut claim = format!(
        "on node {}, {} stops the path to {}: {} ({})",
        first.node,
        first.place,
        path.target_words(),
        first.text,
        whose(first.owner)
    );
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {cut} of {} ways of this path are cut", pairs.len()));
    }
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for stopped in &found {
        ObjectRef::of_node(&stopped.node).add_once(&mut subjects);
    }
    let mut proofs = Vec::new();
    for stopped in &found {
        let text = format!("{}: {}", stopped.place, stopped.text);
        proofs.push(Proof::programmed("packet filter", &stopped.node, stopped.read_at, text));
        // A drop rule of these packets that has counted some: their own trace.
        if let Some(packets) = stopped.packets.filter(|packets| *packets > 0) {
            let text = format!("this rule has stopped {packets} packets");
            proofs.push(Proof::observed("the rule's counter", &stopped.node, stopped.read_at, text));
        }
        proofs.extend(stopped.observed.clone());
    }
    let (predicts, fix) = (first.predicts, first.fix.clone());
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts, fix })
}

/// Met by the packet that was followed: before its translation, or in a pod's own namespace.
fn on_the_way(path: &Path, met: &way::Met<Rule>, view: &View) -> Verdict {
    let mut subjects: Vec<ObjectRef> = Vec::new();
    let (mut proofs, mut claims, mut commands) = (Vec::new(), Vec::new(), Vec::new());
    for stopped in &met.found {
        let (leg, rule) = (&stopped.leg, &stopped.what);
        let node = &leg.place.node;
        claims.push(format!(
            "on {}, {} stops the path to {}: {} ({})",
            leg.place.words(view),
            rule.place(),
            path.target_words(),
            rule.text,
            whose(rule.owner)
        ));
        proofs.push(Proof::programmed("packet filter", node, leg.at, format!("{}: {}", rule.place(), rule.text)));
        proofs.extend(rule.counted(node, leg.at));
        commands.extend(rule.removal(node));
        leg.place.subject(view).add_once(&mut subjects);
    }
    let fix = Fix {
        text: "if the rule is not meant for pods, remove it there, or accept pod and Service networks before it"
            .to_owned(),
        commands,
        verify: path.ask_again(),
    };
    let predicts = &[Fate::Silence, Fate::Refused, Fate::Unreachable, Fate::NotPermitted];
    let (claim, impact) = (claims.join("; "), met.impact);
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts, fix })
}

pub(super) fn whose(owner: Owner) -> String {
    match owner {
        Owner::Administrator => "written by nobody we know: an administrator".to_owned(),
        known => format!("written by {}", known.words()),
    }
}

/// Follows one connection through the nodes until something stops it.
fn follow(path: &Path, client: &Client, backend: &Backend, view: &mut View) -> Found {
    let mut dark = false;
    for hop in nodes(client, backend) {
        match on_node(path, client, backend, &hop, view) {
            Found::Stopped(stopped) => return Found::Stopped(stopped),
            Found::Dark => dark = true,
            Found::Free => {}
        }
    }
    if dark { Found::Dark } else { Found::Free }
}

fn on_node(path: &Path, client: &Client, backend: &Backend, hop: &NodeHop, view: &mut View) -> Found {
    let rules = match view.rules(hop.node, &Netns::Host) {
        Look::Seen(rules) => rules,
        Look::Absent(_) => return Found::Free,
        Look::Dark => return Found::Dark,
    };
    let network = view.network(hop.node, &Netns::Host).seen().map(|network| network.value);
    let packet = packet(path, client, backend, network);
    let stops = stops(rules.value, hop.hooks, &packet, hop.translated);
    let foreign = |stop: &&Stop| !owner(stop.table, stop.chain, stop.rule).is_cluster();
    if !stops.iter().any(|stop| foreign(&stop)) {
        return if rules.value.left_out_elsewhere().next().is_none() { Found::Free } else { Found::Dark };
    }
    let met = probe_of(path, view, client, backend);
    if met == Met::GotThrough {
        return Found::Free;
    }
    let packets = packet.source.map(|source| Packets {
        source,
        destination: SocketAddr::new(backend.address, backend.port),
        protocol: path.protocol,
    });
    // A rule that rejects drops, too: what it answered says more.
    let observed = packets.and_then(|packets| {
        let dropped = dropped(view, hop.node, &packets, REASONS);
        rejected(view, hop.node, &packets).or(dropped)
    });
    for stop in stops {
        let owner = owner(stop.table, stop.chain, stop.rule);
        // What the cluster's own rules stop for certain never gets to a later rule.
        if owner.is_cluster() {
            if stop.sure {
                return Found::Free;
            }
            continue;
        }
        let predicts = predicts(&stop);
        let counted = stop.rule.and_then(|rule| rule.counter).map(|counter| counter.packets);
        let shown = counted.is_some_and(|packets| packets > 0) || observed.is_some();
        let failed_so = matches!(met, Met::Failed(fate) if predicts.contains(&fate));
        let believed = stop.sure || (shown && failed_so);
        if !believed {
            continue;
        }
        return Found::Stopped(Box::new(Stopped {
            node: hop.node.to_owned(),
            owner,
            place: place(&stop),
            text: words(&stop),
            packets: counted,
            read_at: rules.at,
            predicts,
            fix: fix(path, hop.node, &stop, owner),
            observed,
        }));
    }
    Found::Free
}

/// `table inet site, chain fw, handle 4`; the position instead of the handle for legacy iptables.
pub(crate) fn place(stop: &Stop) -> String {
    let Stop { table, chain, .. } = stop;
    let number = match (stop.rule, table.backend) {
        (None, _) => ", policy".to_owned(),
        (Some(rule), Writer::IptablesLegacy) => format!(", rule {}", rule.handle),
        (Some(rule), _) => format!(", handle {}", rule.handle),
    };
    format!("table {} {}, chain {}{number}", table.family, table.name, chain.name)
}

pub(crate) fn words(stop: &Stop) -> String {
    match stop.rule {
        None => "the chain drops what no rule accepts".to_owned(),
        Some(rule) => match &rule.comment {
            Some(comment) if !rule.text.contains(comment.as_str()) => format!("{} (comment {comment:?})", rule.text),
            _ => rule.text.clone(),
        },
    }
}

pub(super) fn predicts(stop: &Stop) -> &'static [Fate] {
    match stop.rule.map(|rule| &rule.verdict) {
        Some(Action::Reject { with }) if with.contains("port") || with.contains("reset") => &[Fate::Refused],
        Some(Action::Reject { .. }) => &[Fate::Unreachable, Fate::NotPermitted],
        _ => &[Fate::Silence, Fate::NotPermitted],
    }
}

fn fix(path: &Path, node: &str, stop: &Stop, owner: Owner) -> Fix {
    let Stop { table, chain, .. } = stop;
    let text = match owner {
        Owner::Ufw => {
            format!("allow the pod and Service networks in ufw on node {node}: `ufw route allow` for forwarded packets")
        }
        Owner::Firewalld => {
            format!("put the pod and Service networks into firewalld's trusted zone on node {node}, and reload")
        }
        Owner::Docker => {
            format!("Docker drops what it does not know: accept the pod networks in chain DOCKER-USER on node {node}")
        }
        _ => format!("if the rule is not meant for pods, remove it on node {node} or accept the pod network before it"),
    };
    let command = match (owner, stop.rule, table.backend) {
        (Owner::Administrator, Some(rule), Writer::Nftables) => {
            Some(format!("nft delete rule {} {} {} handle {}", table.family, table.name, chain.name, rule.handle))
        }
        (Owner::Administrator, Some(rule), Writer::IptablesNft) if rule.text.starts_with('-') => {
            Some(format!("iptables -t {} -D {} {}", table.name, chain.name, rule.text))
        }
        (Owner::Administrator, Some(rule), Writer::IptablesLegacy) => {
            Some(format!("iptables-legacy -t {} -D {} {}", table.name, chain.name, rule.handle))
        }
        _ => None,
    };
    let command = command.map(|command| match table.family.as_str() {
        "ip6" if command.starts_with("ip") => format!("ip6{}", &command[2..]),
        _ => command,
    });
    let commands = command.map(|command| format!("{command}  # on node {node}"));
    Fix { text, commands: commands.into_iter().collect(), verify: path.ask_again() }
}
