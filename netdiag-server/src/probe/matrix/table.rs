//! What a matrix is told in: rows of cells, and the signature that names the fault.

use netdiag_common::observation::series::FailureClass;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::path::Client;
use crate::probe::tally::{AttemptEntry, Tally};
use crate::probe::words_of;

/// The columns that every matrix has, in their order.
pub const COLUMNS: [Column; 8] = [
    Column::VipSameNode,
    Column::VipOtherNode,
    Column::PodSameNode,
    Column::PodOtherNode,
    Column::NodeToNode,
    Column::SelfVip,
    Column::Name,
    Column::BigPackets,
];

/// Those behind them where the cluster has more than one zone. What they count is also in a column of [`COLUMNS`].
pub const ZONE_COLUMNS: [Column; 6] = [
    Column::VipSameZone,
    Column::VipOtherZone,
    Column::PodSameZone,
    Column::PodOtherZone,
    Column::NodeSameZone,
    Column::NodeOtherZone,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Column {
    /// The cluster IP, led to an endpoint on the client's node.
    VipSameNode,
    VipOtherNode,
    /// An endpoint's own address.
    PodSameNode,
    PodOtherNode,
    NodeToNode,
    /// The cluster IP, from an endpoint, led to itself.
    SelfVip,
    Name,
    /// The largest packets of the client's device reach an endpoint on another node, or it is told that they do not.
    BigPackets,
    /// The cluster IP, led to an endpoint on another node of the client's zone.
    VipSameZone,
    VipOtherZone,
    /// The address of an endpoint on another node of the client's zone.
    PodSameZone,
    PodOtherZone,
    NodeSameZone,
    NodeOtherZone,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, JsonSchema)]
pub struct Matrix {
    pub rows: Vec<Row>,
    /// Of the cluster's nodes, where there is more than one: then rows have the columns by zone, too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<String>,
    /// Sources and endpoints that are in no column by zone, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub without_zone: Vec<String>,
}

/// One source and family. The last row of a family is its signature: the worst of each column.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Row {
    /// `pod/shop/client on n1`; `signature`.
    pub from: String,
    /// `IPv4`, `IPv6`
    pub family: String,
    /// In the order of the table's columns.
    pub cells: Vec<Cell>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cell {
    pub column: Column,
    /// `✓`; `✗r` refused, `✗t` timed out, `✗n` unreachable, `✗` failed otherwise, with `2/3` before it where only some do; `–` where
    /// there is nothing to try.
    pub mark: String,
    pub made: u64,
    pub failed: u64,
    /// Of the most frequent failure, or why there was nothing to try.
    pub why: String,
}

impl Matrix {
    /// The signature of each family: in each column the worst of its rows.
    pub(super) fn sign(&mut self) {
        let mut families: Vec<String> = self.rows.iter().map(|row| row.family.clone()).collect();
        families.dedup();
        for family in families {
            let of_family = || self.rows.iter().filter(|row| row.family == family);
            let worst = |column: Column| {
                let cells = of_family().filter_map(|row| row.cells.iter().find(|cell| cell.column == column));
                cells.max_by_key(|cell| (cell.failed * 1_000 / cell.made.max(1), cell.made > 0)).cloned()
            };
            let cells = columns(!self.zones.is_empty()).filter_map(worst).collect();
            let after = self.rows.iter().rposition(|row| row.family == family).map_or(0, |last| last + 1);
            self.rows.insert(after, Row { from: "signature".to_owned(), family, cells });
        }
    }
}

fn columns(with_zones: bool) -> impl Iterator<Item = Column> {
    COLUMNS.into_iter().chain(ZONE_COLUMNS.into_iter().filter(move |_| with_zones))
}

impl Row {
    /// Nothing tried yet.
    pub(super) fn empty(source: &Client, is_v4: bool, with_zones: bool) -> Self {
        let place = if source.pod.is_some() { format!(" on {}", source.node) } else { String::new() };
        Self {
            from: format!("{}{place}", words_of(source)),
            family: if is_v4 { "IPv4" } else { "IPv6" }.to_owned(),
            cells: columns(with_zones).map(Cell::nothing).collect(),
        }
    }

    pub(super) fn set(&mut self, column: Column, cell: Cell) {
        if let Some(own) = self.cells.iter_mut().find(|own| own.column == column) {
            *own = cell;
        }
    }

    pub(super) fn add(&mut self, column: Column, attempts: &[&AttemptEntry], tally: &Tally) {
        let Some(cell) = self.cells.iter_mut().find(|cell| cell.column == column) else { return };
        cell.made += attempts.len() as u64;
        let failed: Vec<_> = attempts.iter().filter_map(|attempt| attempt.failure.as_ref()).collect();
        cell.failed += failed.len() as u64;
        if let Some(failure) = failed.first() {
            cell.why.clone_from(&failure.why);
            mark(failure.class).clone_into(&mut cell.mark);
        } else if attempts.is_empty() && cell.made == 0 && !tally.untried_because.is_empty() {
            cell.why.clone_from(&tally.untried_because);
        } else if cell.failed == 0 && cell.made > 0 {
            "✓".clone_into(&mut cell.mark);
        }
        if cell.failed > 0 && cell.failed < cell.made {
            let kind = cell.mark.rsplit(' ').next().unwrap_or_default().to_owned();
            cell.mark = format!("{}/{} {kind}", cell.failed, cell.made);
        }
    }
}

impl Cell {
    pub(super) fn nothing(column: Column) -> Self {
        Self { column, mark: "–".to_owned(), made: 0, failed: 0, why: String::new() }
    }
}

/// As the catalogue of faults writes them.
fn mark(class: FailureClass) -> &'static str {
    match class {
        FailureClass::Refused => "✗r",
        FailureClass::Silence | FailureClass::TooBig => "✗t",
        FailureClass::Unreachable => "✗n",
        _ => "✗",
    }
}

impl Column {
    /// In a sentence.
    pub fn words(self) -> String {
        self.title().join(" ").trim_end().to_owned()
    }

    /// Over its column of the table.
    pub fn title(self) -> [&'static str; 2] {
        match self {
            Self::VipSameNode => ["pod→VIP", "same node"],
            Self::VipOtherNode => ["pod→VIP", "cross node"],
            Self::PodSameNode => ["pod→pod IP", "same"],
            Self::PodOtherNode => ["pod→pod IP", "cross"],
            Self::NodeToNode => ["node→node", ""],
            Self::SelfVip => ["self", "VIP"],
            Self::Name => ["DNS", "name"],
            Self::BigPackets => ["big", "packets"],
            Self::VipSameZone => ["pod→VIP", "same zone"],
            Self::VipOtherZone => ["pod→VIP", "other zone"],
            Self::PodSameZone => ["pod→pod IP", "same zone"],
            Self::PodOtherZone => ["pod→pod IP", "other zone"],
            Self::NodeSameZone => ["node→node", "same zone"],
            Self::NodeOtherZone => ["node→node", "other zone"],
        }
    }
}
