//! Network devices and what went wrong on them in the window.

use jiff::Timestamp;
use netdiag_common::observation::counter::Counter;
use netdiag_common::observation::device::{Device, Devices};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Place, Row, Selection};

/// One device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceRow {
    #[serde(flatten)]
    pub place: Place,
    pub device: String,
    /// `veth`, `bridge`, …; empty for hardware and loopback.
    pub kind: String,
    pub mtu: u32,
    /// `up`, `down` (by the administrator), `no carrier`.
    pub state: String,
    /// Counters of errors and losses that grew in the window.
    pub grown: Vec<Grown>,
    /// Packets waiting in its queues now.
    pub backlog_packets: u64,
}

/// One counter's growth in the window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Grown {
    /// By the kernel's or the driver's name: `rx_dropped`, `qdisc fq_codel drops`.
    pub name: String,
    pub by: u64,
}

pub(super) fn rows(place: &Place, seen: &Devices, selection: &Selection) -> Vec<DeviceRow> {
    let rows = seen.devices.iter().map(|device| row(place, device));
    let meant = |row: &DeviceRow| {
        let grown = row.grown.iter().map(|grown| grown.name.as_str());
        selection.has_reason(&grown.chain([row.device.as_str(), row.state.as_str()]).collect::<Vec<_>>())
    };
    rows.filter(meant).chain(softnet(place, seen, selection)).collect()
}

fn row(place: &Place, device: &Device) -> DeviceRow {
    let statistics = device.statistics.iter().filter(|(name, _)| is_loss(name));
    let mut grown: Vec<Grown> = statistics.filter_map(|(name, counter)| grown(name.clone(), *counter)).collect();
    grown.extend(
        device.queues.iter().filter_map(|queue| self::grown(format!("qdisc {} drops", queue.kind), queue.drops)),
    );
    // Of the driver's numbers, only those whose meaning is known: the others may count anything.
    let driver = device.driver_statistics.iter().filter(|statistic| statistic.meaning.is_some());
    grown.extend(driver.filter_map(|statistic| self::grown(statistic.name.clone(), statistic.counter)));
    grown.extend(self::grown("carrier lost".to_owned(), device.carrier_down));
    DeviceRow {
        place: place.clone(),
        device: device.name.clone(),
        kind: device.kind.clone(),
        mtu: device.mtu,
        state: match (device.up, device.carrier) {
            (false, _) => "down",
            (true, false) => "no carrier",
            (true, true) => "up",
        }
        .to_owned(),
        grown,
        backlog_packets: device.queues.iter().map(|queue| u64::from(queue.backlog_packets)).sum(),
    }
}

/// The machine's receive backlog, as a device of its own.
fn softnet(place: &Place, seen: &Devices, selection: &Selection) -> Option<DeviceRow> {
    let sum = |of: fn(&netdiag_common::observation::device::Softnet) -> Counter| {
        seen.softnet.iter().filter_map(|cpu| of(cpu).delta).sum::<u64>()
    };
    let terms = [("backlog drops", sum(|cpu| cpu.dropped)), ("time squeezes", sum(|cpu| cpu.time_squeeze))];
    let grown: Vec<Grown> =
        terms.iter().filter(|(_, by)| *by > 0).map(|(name, by)| Grown { name: (*name).to_owned(), by: *by }).collect();
    let names: Vec<&str> = grown.iter().map(|grown| grown.name.as_str()).collect();
    if grown.is_empty() || !selection.has_reason(&names) {
        return None;
    }
    Some(DeviceRow {
        place: place.clone(),
        device: "(receive backlog)".to_owned(),
        kind: String::new(),
        mtu: 0,
        state: "up".to_owned(),
        backlog_packets: seen.softnet.iter().filter_map(|cpu| cpu.backlog).map(u64::from).sum(),
        grown,
    })
}

fn grown(name: String, counter: Counter) -> Option<Grown> {
    counter.delta.filter(|by| *by > 0).map(|by| Grown { name, by })
}

/// Of `struct rtnl_link_stats64`, what is neither traffic nor harmless: everything with an error's or a loss's name.
fn is_loss(name: &str) -> bool {
    ["error", "dropped", "missed", "overrun", "fifo", "nohandler", "collisions"].iter().any(|word| name.contains(word))
}

impl Row for DeviceRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("device"),
        Column::Text("kind"),
        Column::Text("state"),
        Column::Extra("mtu"),
        Column::Extra("waiting"),
        Column::Text("grown"),
    ];

    fn rank(&self) -> (u64, u64) {
        (self.grown.iter().map(|grown| grown.by).sum(), u64::from(self.state != "up"))
    }

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        let grown: Vec<String> = self.grown.iter().map(|grown| format!("{} +{}", grown.name, grown.by)).collect();
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            self.device.clone(),
            self.kind.clone(),
            self.state.clone(),
            self.mtu.to_string(),
            self.backlog_packets.to_string(),
            grown.join(", "),
        ]
    }
}
