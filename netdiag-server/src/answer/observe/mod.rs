//! What the nodes saw by themselves in one window, schema `netdiag.observe/v1`: rows by subject, losses, and what is not seen.

use jiff::Timestamp;
use netdiag_common::Reading;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NotSeen, not_seen};
use crate::evidence::Evidence;
use crate::observed::{
    CounterRow, DeviceRow, DnsNameRow, DnsRow, DropRow, FlowRow, FlowTableRow, Gathered, Loss, Names, NeighbourRow,
    RejectRow, Row, Rows, Section, Selection, SocketRow, Subject, TcpRow, UdpRow, Wanted,
};

mod frame;
mod table;

pub use frame::Size;

pub const OBSERVE_SCHEMA: &str = "netdiag.observe/v1";
/// Rows of one subject in JSON when it is asked for alone; a person sees what fits the terminal.
const MAX_ROWS: usize = 200;
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
    /// What happened and is in no row.
    pub losses: Vec<Loss>,
    pub not_seen: Vec<NotSeen>,
}

/// From readings to rows. Pure. `left_out`: namespaces that were too many for one look.
pub fn build(evidence: &Evidence, selection: &Selection, wanted: &Wanted, left_out: usize) -> Observe {
    let names = Names::of(&evidence.cluster);
    let mut rows = Rows::default();
    let mut gaps = Vec::new();
    for (need, reading) in evidence.readings() {
        match reading {
            Reading::Seen { value, .. } => rows.add(need, value, &names, selection),
            Reading::Unavailable { gap } => gaps.push(gap.clone()),
            Reading::Absent { .. } | Reading::NotAsked { .. } => {}
        }
    }
    gaps.extend(evidence.kind_gaps().into_iter().map(|(_, gap)| gap.clone()));
    gaps.append(&mut rows.unseen);
    let mut not_seen = not_seen::grouped(&gaps);
    if left_out > 0 {
        not_seen.push(NotSeen {
            what: format!("{left_out} more network namespaces"),
            node: String::new(),
            why: "one look asks a limited number of namespaces one by one".to_owned(),
            remedy: "say which with --node, --namespace or --pod".to_owned(),
        });
    }
    let sections = Sections { wanted };
    Observe {
        schema: OBSERVE_SCHEMA.to_owned(),
        cluster: evidence.cluster.name.clone(),
        at: evidence.now,
        window_s: wanted.window.seconds(),
        nodes: selection.nodes.iter().cloned().collect(),
        drops: sections.of(Subject::Drops, rows.drops),
        rejects: sections.of(Subject::Rejects, rows.rejects),
        tcp: sections.of(Subject::Tcp, rows.tcp),
        udp: sections.of(Subject::Udp, rows.udp),
        dns: sections.of(Subject::Dns, rows.dns),
        dns_names: sections.of(Subject::Dns, rows.dns_names),
        flow_tables: sections.of(Subject::Flows, rows.flow_tables),
        flows: sections.of(Subject::Flows, rows.flows),
        devices: sections.of(Subject::Devices, rows.devices),
        neighbours: sections.of(Subject::Neighbours, rows.neighbours),
        sockets: sections.of(Subject::Sockets, rows.sockets),
        counters: sections.of(Subject::Counters, rows.counters),
        losses: rows.losses,
        not_seen,
    }
}

/// Cuts rows to what was asked for.
struct Sections<'w> {
    wanted: &'w Wanted,
}

impl Sections<'_> {
    fn of<R: Row>(&self, subject: Subject, gathered: Gathered<R>) -> Option<Section<R>> {
        let limit = if self.wanted.subject.is_some() { MAX_ROWS } else { MAX_OVERVIEW_ROWS };
        self.wanted.subjects().contains(&subject).then(|| Section::new(gathered, self.wanted, limit))
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
