//! The mesh as it stands, schema `netdiag.mesh/v1`: findings, links, zones, and the heat map in text and as SVG.

use std::collections::BTreeMap;

use jiff::Timestamp;
use netdiag_common::observation::mesh::{Counts, FailureClass, Phase};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NotSeen, not_seen};
use crate::mesh::judge::{self, Finding, State};
use crate::mesh::ledger::Link;
use crate::mesh::recorded::Recorded;
use crate::mesh::rounds::Look;
use crate::mesh::{Kind, Role, Slo, Subject};

mod map;
mod svg;
mod text;

pub const MESH_SCHEMA: &str = "netdiag.mesh/v1";
/// Links listed in one answer: all of a cluster of 70 nodes. Those that break their target come first.
const MAX_LINKS: usize = 10_000;

/// What `netdiag probe mesh` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MeshAnswer {
    /// Always `netdiag.mesh/v1`.
    pub schema: String,
    pub cluster: String,
    /// RFC 3339.
    #[schemars(with = "String")]
    pub at: Timestamp,
    pub status: MeshStatus,
    /// Seconds that the answer goes back; 0 before the first report.
    pub window_s: u64,
    /// Rounds that were assigned so far.
    pub rounds: u64,
    pub slo: Slo,
    pub findings: Vec<Finding>,
    /// Findings that are not listed.
    pub findings_left_out: usize,
    /// By zone, then by name: the order of the heat map.
    pub nodes: Vec<MeshNode>,
    /// Every node's attempts at other nodes and targets; those that break their target first when not all are listed.
    pub links: Vec<MeshLink>,
    pub links_left_out: usize,
    /// The same between zones, added up exactly. Links between the nodes of one zone are that zone's with itself.
    pub zones: Vec<MeshLink>,
    pub not_seen: Vec<NotSeen>,
}

/// The worst of all links.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum MeshStatus {
    /// Everything that was to be probed was, and keeps its target.
    Good,
    /// Something breaks its target.
    Breaks,
    /// What was probed keeps its target, and not everything was.
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MeshNode {
    pub node: String,
    /// Of the label `topology.kubernetes.io/zone`; empty without one.
    pub zone: String,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct MeshLink {
    /// A node; a zone among `zones`.
    pub from: String,
    /// A node or zone; else the address of a DNS replica, `kubernetes`, or the name of a user's target.
    pub to: String,
    pub target: TargetName,
    pub kind: Kind,
    pub state: State,
    pub scheduled: u64,
    pub answered: u64,
    pub failed: BTreeMap<FailureClass, u64>,
    /// Not made, because the agent was behind. With those open, answered and failed it adds up to those scheduled.
    pub untried: u64,
    pub open: u64,
    /// Failed of those that ended, 0 to 1; missing when none has.
    pub loss: Option<f64>,
    /// The same of its last two rounds.
    pub loss_lately: Option<f64>,
    /// Microseconds; missing when nothing answered.
    pub p50_us: Option<u64>,
    pub p99_us: Option<u64>,
    pub max_us: Option<u64>,
    /// Of kinds with more than one; those that failed later count in the ones that they got through.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub phases: Vec<MeshPhase>,
}

/// A part of attempts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MeshPhase {
    pub phase: Phase,
    pub count: u64,
    /// Microseconds.
    pub p50_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
}

/// What a target is to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum TargetName {
    Peer,
    Dns,
    Api,
    User,
}

/// Puts what is known into words. Pure.
pub fn build(look: &Look, at: Timestamp) -> MeshAnswer {
    let slo = look.settings.slo;
    let (findings, findings_left_out) = judge::judge(&look.links, &look.zones, &slo);
    let mut nodes: Vec<MeshNode> =
        look.zones.iter().map(|(node, zone)| MeshNode { node: node.clone(), zone: zone.clone() }).collect();
    nodes.sort_by(|one, other| (&one.zone, &one.node).cmp(&(&other.zone, &other.node)));
    let mut links: Vec<MeshLink> = look.links.iter().map(|found| link(found, &slo)).collect();
    let links_left_out = links.len().saturating_sub(MAX_LINKS);
    if links_left_out > 0 {
        links.sort_by_key(|link| std::cmp::Reverse(link.state));
        links.truncate(MAX_LINKS);
    }
    let not_seen = not_seen::grouped(&look.gaps);
    let status = match () {
        () if !findings.is_empty() => MeshStatus::Breaks,
        () if !not_seen.is_empty() || !links.iter().any(|link| link.state != State::Unknown) => MeshStatus::Unknown,
        () => MeshStatus::Good,
    };
    let window_s = look.since.map_or(0, |since| u64::try_from(at.duration_since(since).as_secs()).unwrap_or(0));
    MeshAnswer {
        schema: MESH_SCHEMA.to_owned(),
        cluster: look.cluster.clone(),
        at,
        status,
        window_s,
        rounds: look.rounds,
        slo,
        findings,
        findings_left_out,
        nodes,
        links,
        links_left_out,
        zones: between_zones(look),
        not_seen,
    }
}

fn link(found: &Link, slo: &Slo) -> MeshLink {
    let (target, to) = match &found.subject.role {
        Role::Peer(node) => (TargetName::Peer, node.clone()),
        Role::Dns(server) => (TargetName::Dns, server.to_string()),
        Role::Api => (TargetName::Api, "kubernetes".to_owned()),
        Role::User(name) => (TargetName::User, name.clone()),
    };
    let (counts, times) = (&found.counts, &found.times);
    MeshLink {
        from: found.from.clone(),
        to,
        target,
        kind: found.subject.kind,
        state: judge::state(found, slo),
        scheduled: counts.scheduled,
        answered: counts.answered,
        failed: counts.failed.iter().filter(|(_, count)| **count > 0).map(|(class, count)| (*class, *count)).collect(),
        untried: counts.untried,
        open: counts.open,
        loss: loss(counts),
        loss_lately: loss(&found.lately),
        p50_us: times.at_quantile(0.5),
        p99_us: times.at_quantile(0.99),
        max_us: times.max_us(),
        phases: found.parts.iter().filter_map(|(phase, times)| part(*phase, times)).collect(),
    }
}

fn part(phase: Phase, times: &Recorded) -> Option<MeshPhase> {
    let (p50_us, p99_us) = (times.at_quantile(0.5)?, times.at_quantile(0.99)?);
    Some(MeshPhase { phase, count: times.len(), p50_us, p99_us, max_us: times.max_us()? })
}

#[expect(clippy::cast_precision_loss, reason = "counts of some minutes are far below 2^53")]
fn loss(counts: &Counts) -> Option<f64> {
    (counts.told() > 0).then(|| counts.failures() as f64 / counts.told() as f64)
}

/// Every pair of zones between which something was probed.
fn between_zones(look: &Look) -> Vec<MeshLink> {
    let mut sums: BTreeMap<(&str, &str, Kind), Link> = BTreeMap::new();
    for found in &look.links {
        let Role::Peer(peer) = &found.subject.role else { continue };
        let (Some(from), Some(to)) = (look.zones.get(&found.from), look.zones.get(peer)) else { continue };
        let kind = found.subject.kind;
        let new = || Link::new(from, Subject::new(Role::Peer(to.clone()), kind));
        let sum = sums.entry((from, to, kind)).or_insert_with(new);
        sum.counts.add(&found.counts);
        sum.lately.add(&found.lately);
        sum.spell.join(&found.spell);
        sum.times.add(&found.times);
    }
    sums.values().map(|sum| link(sum, &look.settings.slo)).collect()
}

#[cfg(test)]
mod tests;
