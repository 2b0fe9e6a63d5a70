//! A node has rules in legacy iptables and in nf_tables at once, and those of the backend that the cluster does not use stop
//! the path.

use std::net::SocketAddr;

use netdiag_common::Netns;
use netdiag_common::observation::rules::{Backend as Writer, Chain, Table, Verdict as Action};
use netdiag_common::observation::service_rules::Proxier;

use super::host_firewall_drops_path::{place, predicts, whose, words};
use super::trace::{Met, Packets, dropped, probe_of};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::filter::{Owner, Stop, owner, stops};
use crate::path::hops::{NodeHop, nodes, packet};
use crate::path::{Backend, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "iptables_legacy_and_nft_mixed",
    severity: Severity::High,
    words: Words {
        means: "a node filters packets by legacy iptables and by nf_tables at once, and a rule of the backend that its \
                kube-proxy does not use stops the path, where the other backend's tools do not show it",
        how_we_know: "both backends are read: kube-proxy's rules are in one, the rule that stops the connection's first \
                      packet in the other; its counter, the probe and dropped packets agree",
        silent_when: "one backend alone has rules, those of the other let the path through, or the rule that stops it is in \
                      kube-proxy's own backend",
        what_to_do: "keep one backend: write the rules that are wanted with the tools of kube-proxy's, empty the other's \
                     tables, and let one variant of iptables be the default (update-alternatives)",
        sources: &[
            "https://wiki.nftables.org/wiki-nftables/index.php/Legacy_xtables_tools",
            "xtables-nft(8): iptables-legacy and iptables-nft do not see each other's rules",
            "https://github.com/kubernetes/kubernetes/issues/71305",
        ],
    },
    faults: &["kp-legacy-nft-mix"],
    reads: &[
        Read::Topic("rules"),
        Read::Topic("service_rules"),
        Read::Topic("network"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["policy_denies_path", "pod_network_route_missing", "kube_proxy_rules_stale"],
    explains: &[Explains { code: "host_firewall_drops_path", relation: Relation::SameNode }],
    judge,
};

const REASONS: &[&str] = &["NETFILTER_DROP"];

/// A rule of the other backend that stops one connection of the path.
struct Stopped {
    node: String,
    /// Where the rules of kube-proxy are.
    used: &'static str,
    hidden: &'static str,
    owner: Owner,
    place: String,
    text: String,
    predicts: &'static [Fate],
    command: String,
    proofs: Vec<Proof>,
}

enum OnNode {
    Stopped(Box<Stopped>),
    /// Both backends were looked at, or one alone has rules.
    Free,
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let pairs: Vec<(&Client, &Backend)> = path
        .clients
        .iter()
        .flat_map(|client| path.ready_backends().map(move |backend| (client, backend)))
        .filter(|(client, backend)| client.speaks_to(backend.address))
        .collect();
    if pairs.is_empty() {
        return Verdict::not_applicable("the path has no endpoint to follow packets to");
    }
    let (mut found, mut dark, mut cut): (Vec<Stopped>, bool, usize) = (Vec::new(), false, 0);
    for (client, backend) in &pairs {
        for hop in nodes(client, backend) {
            match on_node(path, client, backend, &hop, view) {
                OnNode::Stopped(stopped) => {
                    cut += 1;
                    if !found.iter().any(|known| known.node == stopped.node && known.place == stopped.place) {
                        found.push(*stopped);
                    }
                    break;
                }
                OnNode::Free => {}
                OnNode::Dark => dark = true,
            }
        }
    }
    let Some(first) = found.first() else {
        return if dark {
            Verdict::unknown(view)
        } else {
            Verdict::clear("no rule outside of kube-proxy's own backend stops it")
        };
    };
    let impact = if cut == pairs.len() { Impact::Breaks } else { Impact::Degrades };
    let mut claim = format!(
        "on node {}, {} and {} both filter packets: kube-proxy's rules are in {}, and in {} {} stops the path to {}: {} \
         ({})",
        first.node,
        first.used,
        first.hidden,
        first.used,
        first.hidden,
        first.place,
        path.target_words(),
        first.text,
        whose(first.owner)
    );
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {cut} of {} ways of this path are cut", pairs.len()));
    }
    let mut subjects: Vec<ObjectRef> = found.iter().map(|stopped| ObjectRef::of_node(&stopped.node)).collect();
    subjects.dedup_by(|a, b| a.same_object(b));
    let fix = Fix {
        text: format!(
            "remove the rule, or write it with the tools of {} if it is wanted; then empty the tables of {} on node {}, so that \
             one backend alone decides",
            first.used, first.hidden, first.node
        ),
        commands: vec![format!("{}  # on node {}", first.command, first.node)],
        verify: path.ask_again(),
    };
    let predicts = first.predicts;
    let proofs = found.into_iter().flat_map(|stopped| stopped.proofs).collect();
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts, fix })
}

fn on_node(path: &Path, client: &Client, backend: &Backend, hop: &NodeHop, view: &mut View) -> OnNode {
    let rules = match view.rules(hop.node, &Netns::Host) {
        Look::Seen(rules) => rules,
        Look::Absent(_) => return OnNode::Free,
        Look::Dark => return OnNode::Dark,
    };
    let any = |legacy: bool| {
        let of_backend = |table: &&Table| (table.backend == Writer::IptablesLegacy) == legacy;
        rules.value.tables.iter().filter(of_backend).any(acts)
    };
    if !any(true) || !any(false) {
        return OnNode::Free;
    }
    let proxier = match view.service_rules(hop.node, &Netns::Host) {
        Look::Seen(seen) => seen,
        Look::Absent(_) => return OnNode::Free,
        Look::Dark => return OnNode::Dark,
    };
    let (used, hidden, legacy_is_hidden) = match proxier.value.proxier {
        Proxier::Nftables | Proxier::IptablesNft => ("nf_tables", "legacy iptables", true),
        Proxier::IptablesLegacy => ("legacy iptables", "nf_tables", false),
        Proxier::None | Proxier::Ipvs => return OnNode::Free,
    };
    let network = view.network(hop.node, &Netns::Host).seen().map(|network| network.value);
    let packet = packet(path, client, backend, network);
    let stops = stops(rules.value, hop.hooks, &packet, hop.translated);
    // What may stop it before and is no rule of the cluster's is another cause.
    let others = stops.iter().take_while(|stop| !is_hidden(stop, legacy_is_hidden));
    if others.clone().any(|stop| stop.sure || !owner(stop.table, stop.chain, stop.rule).is_cluster()) {
        return OnNode::Free;
    }
    let Some(stop) = stops.get(others.count()) else { return OnNode::Free };
    let met = probe_of(path, view, client, backend);
    if met == Met::GotThrough {
        return OnNode::Free;
    }
    let seen = |source| Packets {
        source,
        destination: SocketAddr::new(backend.address, backend.port),
        protocol: path.protocol,
    };
    let observed = packet.source.and_then(|source| dropped(view, hop.node, &seen(source), REASONS));
    let counted = stop.rule.and_then(|rule| rule.counter).map(|counter| counter.packets).filter(|packets| *packets > 0);
    let fates = predicts(stop);
    let shown = (counted.is_some() || observed.is_some()) && matches!(met, Met::Failed(fate) if fates.contains(&fate));
    if !stop.sure && !shown {
        return OnNode::Free;
    }
    let (place, text) = (place(stop), words(stop));
    let mut proofs = vec![Proof::programmed(hidden, hop.node, rules.at, format!("{place}: {text}"))];
    let entries = proxier.value.entries.len();
    let text_used = format!("kube-proxy's rules for {entries} addresses and ports of Services are in {used}");
    proofs.push(Proof::programmed("kube-proxy's rules", hop.node, proxier.at, text_used));
    if let Some(packets) = counted {
        let text = format!("this rule has stopped {packets} packets");
        proofs.push(Proof::observed("the rule's counter", hop.node, rules.at, text));
    }
    proofs.extend(observed);
    let command = list_command(stop, legacy_is_hidden);
    OnNode::Stopped(Box::new(Stopped {
        node: hop.node.to_owned(),
        used,
        hidden,
        owner: owner(stop.table, stop.chain, stop.rule),
        place,
        text,
        predicts: fates,
        command,
        proofs,
    }))
}

/// The table does something: it has a rule, or a policy that drops.
fn acts(table: &Table) -> bool {
    let drops = |chain: &Chain| chain.base.as_ref().is_some_and(|base| base.policy == Action::Drop);
    table.chains.iter().any(|chain| !chain.rules.is_empty() || drops(chain))
}

/// A native nf_tables rule next to legacy iptables is no mix of two variants of iptables: `nft` shows it to everybody.
fn is_hidden(stop: &Stop, legacy_is_hidden: bool) -> bool {
    match stop.table.backend {
        Writer::IptablesLegacy => legacy_is_hidden,
        Writer::IptablesNft => !legacy_is_hidden,
        Writer::Nftables => false,
    }
}

/// What shows the rule: which one to remove, a person decides.
fn list_command(stop: &Stop, legacy: bool) -> String {
    let program = match (stop.table.family.as_str(), legacy) {
        ("ip6", true) => "ip6tables-legacy",
        (_, true) => "iptables-legacy",
        ("ip6", false) => "ip6tables-nft",
        (_, false) => "iptables-nft",
    };
    format!("{program} -t {} -S {}", stop.table.name, stop.chain.name)
}
