//! What is bounded and nearly used up: file descriptors, local ports, memory of sockets, CPU time. All of them look like a
//! broken network from outside.

use jiff::Timestamp;
use netdiag_common::observation::neighbour::Neighbours;
use netdiag_common::observation::socket::{ControlGroup, DescriptorUse, PortUse, SocketMemory, Sockets};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Place, Row, Selection};

/// From here on a limit is listed, in percent: what is used at one moment says little about the worst one.
const NEAR_PERCENT: u64 = 80;

/// One limit that is near.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LimitRow {
    #[serde(flatten)]
    pub place: Place,
    /// `file descriptors`, `local ports to 10.0.0.9:443`, `periods of CPU time`, …
    pub what: String,
    /// Of CPU time: periods of the window in which the quota was used up, and all periods.
    pub used: u64,
    pub limit: u64,
    /// `nginx (pid 101)`, or the container; empty where it is nobody's in particular.
    pub of: String,
}

pub(super) fn of_sockets(place: &Place, seen: &Sockets, selection: &Selection) -> Vec<LimitRow> {
    let row =
        |what: String, used: u64, limit: u64, of: String| LimitRow { place: place.clone(), what, used, limit, of };
    let descriptors = seen.descriptors.iter().filter_map(|DescriptorUse { process, open, limit }| {
        let of = format!("{} (pid {})", process.name, process.pid);
        Some(row("file descriptors".to_owned(), *open, (*limit)?, of))
    });
    let range = u64::from(seen.ports.last.saturating_sub(seen.ports.first)) + 1;
    let ports = seen.ports.busiest.iter().map(|PortUse { destination, ports, .. }| {
        row(format!("local ports to {destination}"), u64::from(*ports), range, String::new())
    });
    let memory = memory(&seen.memory)
        .into_iter()
        .filter_map(|(what, used, limit)| Some(row(what.to_owned(), used, limit?, String::new())));
    let near = descriptors.chain(ports).chain(memory).filter(LimitRow::is_near);
    // A quota is there to be used up now and then; every period in which it was is a pause of everything in the group.
    let throttled = seen.groups.iter().filter_map(|group: &ControlGroup| {
        let cpu = group.cpu.as_ref()?;
        let throttled = cpu.throttled_periods.delta.filter(|periods| *periods > 0)?;
        let of = group.container_id.as_ref().map_or_else(|| "pod".to_owned(), |id| format!("container {id:.12}"));
        Some(row("throttled periods of CPU time".to_owned(), throttled, cpu.periods.grown(), of))
    });
    near.chain(throttled).filter(|row| selection.has_reason(&[&row.what, &row.of])).collect()
}

/// The kernel has one table per family for all its namespaces: told with the node's own.
pub(super) fn of_neighbours(place: &Place, seen: &Neighbours, selection: &Selection) -> Vec<LimitRow> {
    let row = |table: &netdiag_common::observation::neighbour::NeighbourTable| LimitRow {
        place: place.clone(),
        what: format!("entries of {}", table.name),
        used: u64::from(table.entries),
        limit: u64::from(table.gc_thresh3),
        of: String::new(),
    };
    let rows = seen.tables.iter().filter(|_| place.is_host()).map(row).filter(LimitRow::is_near);
    rows.filter(|row| selection.has_reason(&[&row.what])).collect()
}

fn memory(seen: &SocketMemory) -> [(&'static str, u64, Option<u64>); 4] {
    let high = |limits: Option<[u64; 3]>| limits.map(|[_, _, high]| high);
    [
        ("pages of TCP memory", seen.tcp_pages, high(seen.tcp_limit_pages)),
        ("pages of UDP memory", seen.udp_pages, high(seen.udp_limit_pages)),
        ("TCP sockets without a process", seen.orphans, seen.orphan_limit),
        ("sockets in time-wait", seen.time_wait, seen.time_wait_limit),
    ]
}

impl LimitRow {
    fn is_near(&self) -> bool {
        self.limit > 0 && self.used.saturating_mul(100) >= self.limit.saturating_mul(NEAR_PERCENT)
    }
}

impl Row for LimitRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("limit of"),
        Column::Number("used"),
        Column::Number("limit"),
        Column::Text("whose"),
    ];

    fn rank(&self) -> (u64, u64) {
        (self.used.saturating_mul(100) / self.limit.max(1), self.used)
    }

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            self.what.clone(),
            self.used.to_string(),
            self.limit.to_string(),
            self.of.clone(),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_near_from_four_fifths_on() {
        let row = |used, limit| LimitRow {
            place: Place { node: String::new(), namespace: String::new(), pod: String::new(), name: String::new() },
            what: String::new(),
            used,
            limit,
            of: String::new(),
        };
        assert!(row(80, 100).is_near() && row(u64::MAX, 1).is_near());
        assert!(!row(79, 100).is_near() && !row(5, 0).is_near());
    }
}
