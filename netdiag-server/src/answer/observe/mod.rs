//! What the nodes saw by themselves in one window, schema `netdiag.observe/v1`: rows by subject, losses, and what is not seen.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use netdiag_common::{Gap, GapReason, Reading};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NotSeen, not_seen};
use crate::evidence::{Evidence, KindName};
use crate::observed::{
    Account, CounterRow, DeviceRow, DnsNameRow, DnsRow, DnsSearchRow, DropRow, FlowRow, FlowTableRow, Gathered,
    LimitRow, Loss, Names, NeighbourRow, RejectRow, Row, Rows, Section, Selection, SocketRow, Subject, TcpRow, UdpRow,
    Wanted,
};

mod frame;
mod table;

pub use frame::Size;

pub const OBSERVE_SCHEMA: &str = "netdiag.observe/v1";
/// Rows of one subject in JSON when it is asked for alone; a person sees what fits the terminal.
const MAX_ROWS: usize = 200;
/// Kinds of the API that rows and filters take names from.
const NAMING_KINDS: [KindName; 5] =
    [KindName::Pods, KindName::Services, KindName::EndpointSlices, KindName::Nodes, KindName::Namespaces];
/// Rows of each subject in the overview.
const MAX_OVERVIEW_ROWS: usize = 20;

/// One look at the cluster. Subjects that were not asked for are missing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Observe {
    /// Always `netdiag.observe/v1`.
    pub schema: String,
    pub cluster: String,
    /// When the nodes had answered, RFC 3339.
    #[schemars(with = "String")]
    pub at: Timestamp,
    /// Seconds that counts go back at most.
    pub window_s: u64,
    /// Nodes that were asked.
    pub nodes: Vec<String>,
    /// Of the nodes whose agents answered: which start of the agent, and how far back its counts go.
    #[serde(default)]
    pub agents: Vec<AgentEntry>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drops: Option<Section<DropRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rejects: Option<Section<RejectRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tcp: Option<Section<TcpRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub udp: Option<Section<UdpRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns: Option<Section<DnsRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_names: Option<Section<DnsNameRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dns_search: Option<Section<DnsSearchRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flow_tables: Option<Section<FlowTableRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flows: Option<Section<FlowRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<Section<DeviceRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub neighbours: Option<Section<NeighbourRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sockets: Option<Section<SocketRow>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<Section<CounterRow>>,
    /// What is bounded and nearly used up; with sockets, and with neighbours.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Section<LimitRow>>,
    /// What happened and is in no row.
    pub losses: Vec<Loss>,
    /// What the nodes' kernel programs counted in all, of each subject.
    #[serde(default)]
    pub accounts: Vec<Account>,
    /// What the kernels of these nodes tell nobody, whatever happens; without a node, those of all.
    #[serde(default)]
    pub untold: Vec<NotSeen>,
    pub not_seen: Vec<NotSeen>,
}

/// One node's agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AgentEntry {
    pub node: String,
    /// Random for each start of the agent; empty when it is not known.
    pub instance: String,
    /// Starts of the agent that whoever asks has met since its own start, after the first: each began to count anew.
    pub restarts: u64,
    /// RFC 3339: since when all subjects are counted. None when none of them is.
    #[schemars(with = "Option<String>")]
    pub counts_since: Option<Timestamp>,
    /// Its counts do not go back as far as the window.
    pub younger_than_window: bool,
}

/// Which start of a node's agent answered, as the source knows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Start {
    pub instance: String,
    pub restarts: u64,
}

/// From readings to rows. Pure. `starts`: of the agents, by node. `left_out`: namespaces that were too many for one look.
pub fn build(
    evidence: &Evidence,
    selection: &Selection,
    wanted: &Wanted,
    starts: &BTreeMap<String, Start>,
    left_out: usize,
) -> Observe {
    let names = Names::of(&evidence.cluster);
    let mut rows = Rows::default();
    let mut gaps = Vec::new();
    let mut answered = BTreeSet::new();
    for (need, reading) in evidence.readings() {
        match reading {
            Reading::Seen { value, .. } => {
                answered.insert(need.node.as_str());
                rows.add(need, value, &names, selection);
            }
            Reading::Unavailable { gap } => gaps.push(gap.clone()),
            Reading::Absent { .. } | Reading::NotAsked { .. } => {}
        }
    }
    let named = evidence.kind_gaps().into_iter().filter(|(kind, _)| NAMING_KINDS.contains(kind));
    gaps.extend(named.map(|(_, gap)| gap.clone()));
    rows.pair(selection);
    let subjects = wanted.subjects();
    rows.losses.retain(|loss| subjects.contains(&loss.subject));
    rows.accounts.retain(|account| subjects.contains(&account.subject));
    let unseen = rows.unseen.iter().filter(|(subject, _)| subjects.contains(subject)).map(|(_, gap)| gap.clone());
    let (untold, unseen): (Vec<Gap>, Vec<Gap>) = unseen.partition(|gap| gap.reason == GapReason::Kernel);
    gaps.extend(unseen);
    let mut not_seen = not_seen::grouped(&gaps);
    if left_out > 0 {
        not_seen.push(NotSeen {
            what: format!("{left_out} more network namespaces"),
            node: String::new(),
            why: "one look asks a limited number of namespaces one by one".to_owned(),
            remedy: "say which with --node, --namespace or --pod".to_owned(),
        });
    }
    let untold = untold_by(untold, &selection.nodes);
    let sections = Sections { wanted };
    let agents = answered.into_iter().map(|node| {
        let since = rows.accounts.iter().filter(|account| account.node == node).map(|account| account.since).max();
        agent(node, starts.get(node), since, evidence.now, wanted)
    });
    Observe {
        schema: OBSERVE_SCHEMA.to_owned(),
        cluster: evidence.cluster.name.clone(),
        at: evidence.now,
        window_s: wanted.window.seconds(),
        nodes: selection.nodes.iter().cloned().collect(),
        agents: agents.collect(),
        drops: sections.of(Subject::Drops, rows.drops),
        rejects: sections.of(Subject::Rejects, rows.rejects),
        tcp: sections.of(Subject::Tcp, rows.tcp),
        udp: sections.of(Subject::Udp, rows.udp),
        dns: sections.of(Subject::Dns, rows.dns),
        dns_names: sections.of(Subject::Dns, rows.dns_names),
        // Nothing of it is a failure.
        dns_search: wanted.subject.and_then(|_| sections.of(Subject::Dns, rows.dns_search)),
        flow_tables: sections.of(Subject::Flows, rows.flow_tables),
        flows: sections.of(Subject::Flows, rows.flows),
        devices: sections.of(Subject::Devices, rows.devices),
        neighbours: sections.of(Subject::Neighbours, rows.neighbours),
        sockets: sections.of(Subject::Sockets, rows.sockets),
        counters: sections.of(Subject::Counters, rows.counters),
        limits: sections.of_any(&[Subject::Neighbours, Subject::Sockets], rows.limits),
        losses: rows.losses,
        accounts: rows.accounts,
        untold,
        not_seen,
    }
}

/// Gaps that come with every look at such kernels: what all nodes lack is one entry.
fn untold_by(gaps: Vec<Gap>, nodes: &BTreeSet<String>) -> Vec<NotSeen> {
    let mut by_gap: Vec<(Gap, BTreeSet<String>)> = Vec::new();
    for mut gap in gaps {
        let node = gap.node.take().unwrap_or_default();
        match by_gap.iter_mut().find(|(known, _)| *known == gap) {
            Some((_, nodes)) => {
                nodes.insert(node);
            }
            None => by_gap.push((gap, BTreeSet::from([node]))),
        }
    }
    let entries = by_gap.into_iter().map(|(gap, lacking)| NotSeen {
        what: gap.what,
        node: if lacking == *nodes { String::new() } else { lacking.into_iter().collect::<Vec<_>>().join(", ") },
        why: gap.why,
        remedy: gap.remedy,
    });
    entries.collect()
}

fn agent(node: &str, start: Option<&Start>, since: Option<Timestamp>, now: Timestamp, wanted: &Wanted) -> AgentEntry {
    let Start { instance, restarts } = start.cloned().unwrap_or_default();
    let window_s = wanted.window.seconds();
    // A window begins with one of the agent's slots: twelve for an hour, ten seconds each for the shorter ones.
    let slack_s = if window_s >= 3_600 { 300 } else { 10 };
    let covered_s = since.map(|since| now.duration_since(since).as_secs().unsigned_abs());
    let younger_than_window = covered_s.is_some_and(|covered_s| covered_s + slack_s < window_s);
    AgentEntry { node: node.to_owned(), instance, restarts, counts_since: since, younger_than_window }
}

/// Cuts rows to what was asked for.
struct Sections<'w> {
    wanted: &'w Wanted,
}

impl Sections<'_> {
    fn of<R: Row>(&self, subject: Subject, gathered: Gathered<R>) -> Option<Section<R>> {
        self.of_any(&[subject], gathered)
    }

    fn of_any<R: Row>(&self, subjects: &[Subject], gathered: Gathered<R>) -> Option<Section<R>> {
        let limit = if self.wanted.subject.is_some() { MAX_ROWS } else { MAX_OVERVIEW_ROWS };
        let is_wanted = self.wanted.subjects().iter().any(|subject| subjects.contains(subject));
        is_wanted.then(|| Section::new(gathered, self.wanted, limit))
    }
}

impl Observe {
    /// Every node that was asked told something about every subject.
    pub fn is_complete(&self) -> bool {
        let told = [
            self.drops.as_ref().map(|section| section.told_by),
            self.rejects.as_ref().map(|section| section.told_by),
            self.tcp.as_ref().map(|section| section.told_by),
            self.udp.as_ref().map(|section| section.told_by),
            self.dns.as_ref().map(|section| section.told_by),
            self.dns_names.as_ref().map(|section| section.told_by),
            self.flow_tables.as_ref().map(|section| section.told_by),
            self.flows.as_ref().map(|section| section.told_by),
            self.devices.as_ref().map(|section| section.told_by),
            self.neighbours.as_ref().map(|section| section.told_by),
            self.sockets.as_ref().map(|section| section.told_by),
            self.counters.as_ref().map(|section| section.told_by),
        ];
        told.into_iter().flatten().all(|nodes| nodes == self.nodes.len())
    }
}
