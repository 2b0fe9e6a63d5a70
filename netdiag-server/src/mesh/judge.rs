//! What of the mesh breaks its target, and what that is: a zone, a node, a link, or one of the other targets. Pure.
//!
//! A link breaks its target when so many failures, or so many slow answers, would come by chance less than once in a thousand
//! while the target is kept: lately, so that a break is seen at once, or in the whole window, so that a rare loss is seen at
//! all. It does so no more when so many answers in a row would come as rarely while it did. What most links of a node, or most
//! between two zones, have in common is said once.

use std::collections::{BTreeMap, BTreeSet};

use netdiag_common::observation::mesh::Counts;
use netdiag_common::wire::AGENT_PORT;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ledger::Link;
use super::odds;
use super::{Kind, Role, Slo};

/// Of two zones' links: above it the cause lies between them.
const ZONE_SHARE: f64 = 0.8;
/// Of a node's links: from it on the cause lies at the node.
const NODE_SHARE: f64 = 0.5;
/// Links named as proof of one finding.
const MAX_PROOFS: usize = 4;
/// Findings of one answer. More have a cause that is none of the mesh's.
const MAX_FINDINGS: usize = 50;
/// Slow answers that a p99 allows.
const ABOVE_P99: f64 = 0.01;

/// How a link stands to its target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum State {
    /// No attempt has ended.
    Unknown,
    Good,
    /// Too many answers take longer than the target.
    Slow,
    /// Too many attempts fail.
    Loses,
}

/// Something that breaks its target.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// `mesh_zones_lose`, `mesh_node_loses`, `mesh_link_loses`, `mesh_target_loses`, and the same with `slow`.
    pub code: String,
    /// Nodes, zones or targets, by name.
    pub about: Vec<String>,
    pub claim: String,
    /// The worst links first.
    pub proof: Vec<String>,
    /// What to ask next.
    pub next: String,
    /// How many times as fast as the target allows failures or slow answers come, of all links that it is about.
    pub burn: f64,
}

pub fn state(link: &Link, slo: &Slo) -> State {
    let counts = &link.counts;
    match () {
        () if counts.told() == 0 => State::Unknown,
        () if loses(link, slo) => State::Loses,
        () if odds::is_too_many(slow(link, slo), counts.answered, ABOVE_P99) => State::Slow,
        () => State::Good,
    }
}

fn loses(link: &Link, slo: &Slo) -> bool {
    let are_too_many = |counts: &Counts| odds::is_too_many(counts.failures(), counts.told(), slo.loss);
    let spell = &link.spell;
    are_too_many(&link.lately)
        || (are_too_many(&link.counts) && !odds::has_passed(spell.failures, spell.told, spell.answered_since))
}

/// Answers that took longer than the target.
fn slow(link: &Link, slo: &Slo) -> u64 {
    link.times.above(slo.p99_us)
}

/// The worst first, and how many were left out.
pub fn judge(links: &[Link], zones: &BTreeMap<String, String>, slo: &Slo) -> (Vec<Finding>, usize) {
    let mut findings = Vec::new();
    for wanted in [State::Loses, State::Slow] {
        let judging = Judging { links, zones, slo, wanted };
        findings.extend(judging.between_nodes());
        findings.extend(judging.of_targets());
    }
    let left_out = findings.len().saturating_sub(MAX_FINDINGS);
    findings.truncate(MAX_FINDINGS);
    (findings, left_out)
}

/// One look at all links for one way of breaking the target.
struct Judging<'m> {
    links: &'m [Link],
    zones: &'m BTreeMap<String, String>,
    slo: &'m Slo,
    wanted: State,
}

/// Two nodes in the order of their names, with what was probed between them in both directions.
struct Pair<'m> {
    nodes: (&'m str, &'m str),
    links: Vec<&'m Link>,
    is_bad: bool,
}

impl<'m> Judging<'m> {
    fn between_nodes(&self) -> Vec<Finding> {
        let mut by_nodes: BTreeMap<(&str, &str), Vec<&Link>> = BTreeMap::new();
        for link in self.links.iter().filter(|link| link.counts.told() > 0) {
            if let Role::Peer(peer) = &link.subject.role {
                let (one, other) = (link.from.as_str(), peer.as_str());
                by_nodes.entry((one.min(other), one.max(other))).or_default().push(link);
            }
        }
        let pair = |(nodes, links): ((&'m str, &'m str), Vec<&'m Link>)| {
            let is_bad = links.iter().any(|link| self.is_wanted(link));
            Pair { nodes, links, is_bad }
        };
        let mut pairs: Vec<Pair<'m>> = by_nodes.into_iter().map(pair).collect();
        let mut findings = self.of_zones(&mut pairs);
        findings.extend(self.of_nodes(&mut pairs));
        for pair in pairs.iter().filter(|pair| pair.is_bad) {
            let (one, other) = pair.nodes;
            let claim = format!("the link between nodes {one} and {other} {}", self.verb());
            findings.push(self.finding("link", &[one, other], claim, &pair.links));
        }
        findings
    }

    /// Takes out the pairs that it explains.
    fn of_zones(&self, pairs: &mut Vec<Pair<'m>>) -> Vec<Finding> {
        let mut between: BTreeMap<(&str, &str), Vec<&Pair>> = BTreeMap::new();
        for pair in pairs.iter() {
            let (one, other) = (self.zone(pair.nodes.0), self.zone(pair.nodes.1));
            if one != other {
                between.entry((one.min(other), one.max(other))).or_default().push(pair);
            }
        }
        let mut findings = Vec::new();
        let mut explained = BTreeSet::new();
        for ((one, other), found) in between {
            let bad: Vec<&Pair> = found.iter().copied().filter(|pair| pair.is_bad).collect();
            // One node of a zone would explain it as well.
            let ends = |zone: &str| {
                let nodes = bad.iter().flat_map(|pair| [pair.nodes.0, pair.nodes.1]);
                nodes.filter(|node| self.zone(node) == zone).collect::<BTreeSet<&str>>().len()
            };
            if share(bad.len(), found.len()) < ZONE_SHARE || ends(one) < 2 || ends(other) < 2 {
                continue;
            }
            let verb = if self.wanted == State::Loses { "lose probes" } else { "answer each other slowly" };
            let claim = format!("zones {one} and {other} {verb}: {} of {} links between them", bad.len(), found.len());
            let links: Vec<&Link> = bad.iter().flat_map(|pair| pair.links.iter().copied()).collect();
            findings.push(self.finding("zones", &[one, other], claim, &links));
            explained.extend(bad.iter().map(|pair| pair.nodes));
        }
        pairs.retain(|pair| !explained.contains(&pair.nodes));
        findings
    }

    /// The node with most of its links bad, then the next one among what is left. Takes out the pairs that they explain.
    fn of_nodes(&self, pairs: &mut Vec<Pair<'m>>) -> Vec<Finding> {
        let mut findings = Vec::new();
        loop {
            let mut by_node: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
            for pair in pairs.iter() {
                for node in [pair.nodes.0, pair.nodes.1] {
                    let (bad, all) = by_node.entry(node).or_default();
                    *bad += usize::from(pair.is_bad);
                    *all += 1;
                }
            }
            let worst = by_node.into_iter().filter(|(_, (bad, all))| *bad >= 2 && share(*bad, *all) >= NODE_SHARE);
            let Some((node, (bad, all))) = worst.max_by_key(|(_, (bad, all))| (bad * 1_000 / all, *bad)) else {
                return findings;
            };
            let of_node = |pair: &Pair| pair.nodes.0 == node || pair.nodes.1 == node;
            let its: Vec<&Link> = pairs
                .iter()
                .filter(|pair| pair.is_bad && of_node(pair))
                .flat_map(|pair| pair.links.iter().copied())
                .collect();
            let claim = format!("node {node} {}: {bad} of {all} of its links", self.verb());
            findings.push(self.finding("node", &[node], claim, &its));
            pairs.retain(|pair| !of_node(pair));
        }
    }

    fn of_targets(&self) -> Vec<Finding> {
        let mut by_role: BTreeMap<&Role, Vec<&Link>> = BTreeMap::new();
        for link in self.links.iter().filter(|link| link.counts.told() > 0) {
            if !matches!(link.subject.role, Role::Peer(_)) {
                by_role.entry(&link.subject.role).or_default().push(link);
            }
        }
        let mut findings = Vec::new();
        for (role, links) in by_role {
            let bad: Vec<&Link> = links.iter().copied().filter(|link| self.is_wanted(link)).collect();
            if bad.is_empty() {
                continue;
            }
            let (name, asked) = (role_in_words(role), links.len());
            let verb = if self.wanted == State::Loses { "fails" } else { "answers slowly" };
            let claim = format!("{name} {verb} for {} of {asked} nodes", bad.len());
            findings.push(self.finding("target", &[&name], claim, &bad));
        }
        findings
    }

    fn is_wanted(&self, link: &Link) -> bool {
        state(link, self.slo) == self.wanted
    }

    fn zone(&self, node: &str) -> &'m str {
        self.zones.get(node).map_or("", String::as_str)
    }

    fn verb(&self) -> &'static str {
        if self.wanted == State::Loses { "loses probes" } else { "answers slowly" }
    }

    fn finding(&self, what: &str, about: &[&str], claim: String, links: &[&Link]) -> Finding {
        let mut worst: Vec<&Link> = links.iter().copied().filter(|link| self.is_wanted(link)).collect();
        worst.sort_by(|one, other| self.burn([*other]).total_cmp(&self.burn([*one])));
        let verb = match (self.wanted, what) {
            (State::Loses, "zones") => "lose",
            (State::Loses, _) => "loses",
            _ => "slow",
        };
        Finding {
            code: format!("mesh_{what}_{verb}"),
            about: about.iter().map(|name| (*name).to_owned()).collect(),
            claim,
            proof: worst.iter().take(MAX_PROOFS).map(|link| self.proof(link)).collect(),
            next: worst.first().map(|link| next(link)).unwrap_or_default(),
            burn: self.burn(worst.iter().copied()),
        }
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of some minutes are far below 2^53")]
    fn burn<'l>(&self, links: impl IntoIterator<Item = &'l Link>) -> f64 {
        let (mut bad, mut all) = (0, 0);
        for link in links {
            if self.wanted == State::Loses {
                (bad, all) = (bad + link.counts.failures(), all + link.counts.told());
            } else {
                (bad, all) = (bad + slow(link, self.slo), all + link.counts.answered);
            }
        }
        let allowed = if self.wanted == State::Loses { self.slo.loss } else { ABOVE_P99 };
        // A target of no loss at all is burnt as one of a millionth.
        bad as f64 / all.max(1) as f64 / allowed.max(1e-6)
    }

    fn proof(&self, link: &Link) -> String {
        let (from, kind, counts) = (&link.from, link.subject.kind.name(), &link.counts);
        let to = match &link.subject.role {
            Role::Peer(peer) => peer.clone(),
            other => role_in_words(other),
        };
        if self.wanted == State::Loses {
            let classes = counts.failed.iter().filter(|(_, count)| **count > 0);
            let classes: Vec<String> = classes.map(|(class, count)| format!("{} {count}", class.name())).collect();
            let (failed, told, loss) = (counts.failures(), counts.told(), percent(self.slo.loss));
            let classes = classes.join(", ");
            return format!(
                "{from} to {to} by {kind}: {failed} of {told} failed ({classes}); the target allows {loss}"
            );
        }
        let (over, answered, target) = (slow(link, self.slo), counts.answered, milliseconds(self.slo.p99_us));
        let p99 = milliseconds(link.times.at_quantile(0.99).unwrap_or_default());
        format!("{from} to {to} by {kind}: p99 {p99}, {over} of {answered} answers above the target of {target}")
    }
}

#[expect(clippy::cast_precision_loss, reason = "links of a cluster are below 2^53")]
fn share(some: usize, all: usize) -> f64 {
    some as f64 / all.max(1) as f64
}

pub(super) fn role_in_words(role: &Role) -> String {
    match role {
        Role::Peer(node) => format!("node {node}"),
        Role::Dns(server) => format!("DNS replica {server}"),
        Role::Api => "Service default/kubernetes".to_owned(),
        Role::User(name) => format!("target {name}"),
    }
}

fn next(link: &Link) -> String {
    let from = &link.from;
    match &link.subject.role {
        Role::Peer(peer) => {
            format!("netdiag scan; then netdiag trace --from node/{from} --to node/{peer}:{AGENT_PORT}")
        }
        Role::Dns(server) => format!("netdiag diagnose --from node/{from} --to ip/{server} --protocol udp"),
        Role::Api => format!("netdiag diagnose --from node/{from} --to service/default/kubernetes:443"),
        Role::User(name) => match link.subject.kind {
            Kind::Tcp => format!("netdiag diagnose --from node/{from} --to ip/ADDRESS:PORT, as target {name} names it"),
            kind => format!("netdiag probe {} --from node/{from} --to TARGET, as target {name} names it", kind.name()),
        },
    }
}

/// `0.1 %`.
pub fn percent(share: f64) -> String {
    format!("{} %", (share * 1e6).round() / 1e4)
}

/// `0.214 ms`, `12.3 ms`, `1500 ms`.
pub fn milliseconds(us: u64) -> String {
    let (whole, part) = (us / 1_000, us % 1_000);
    match whole {
        0 => format!("0.{part:03} ms"),
        1..=99 => format!("{whole}.{} ms", part / 100),
        _ => format!("{whole} ms"),
    }
}

#[cfg(test)]
mod tests;
