//! SNMP counters of each namespace that grew in the window, by the kernel's own names.

use jiff::Timestamp;
use netdiag_common::observation::counter::Counters;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Place, Row, Selection, age};

/// One counter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CounterRow {
    #[serde(flatten)]
    pub place: Place,
    /// `TcpExt.ListenOverflows`.
    pub counter: String,
    pub value: u64,
    /// Growth in the window.
    pub grown_by: u64,
    /// Growth per second.
    pub rate: f64,
    /// RFC 3339: when it was last seen grown.
    #[schemars(with = "Option<String>")]
    pub last_at: Option<Timestamp>,
}

pub(super) fn rows(place: &Place, seen: &Counters, selection: &Selection) -> Vec<CounterRow> {
    let grown = seen.counters.iter().filter(|(name, counter)| counter.grew() && selection.has_reason(&[name]));
    let row = |(name, counter): (&String, &netdiag_common::observation::counter::Counter)| CounterRow {
        place: place.clone(),
        counter: name.clone(),
        value: counter.value,
        grown_by: counter.grown(),
        rate: (counter.rate(seen.window_s).unwrap_or(0.0) * 100.0).round() / 100.0,
        last_at: counter.last_at,
    };
    grown.map(row).collect()
}

/// What no healthy traffic moves, by the ends of names: RFC 4293, RFC 4113 and `tools/include/uapi/linux/snmp.h` use them.
fn is_failure(name: &str) -> bool {
    [
        "Errors",
        "Err",
        "Drop",
        "Drops",
        "Discards",
        "Overflows",
        "Fail",
        "Fails",
        "Failed",
        "Timeouts",
        "Aborts",
        "NoRoutes",
    ]
    .iter()
    .any(|end| name.ends_with(end))
}

impl Row for CounterRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("counter"),
        Column::Number("grown by"),
        Column::Extra("per s"),
        Column::Extra("value"),
        Column::Number("last"),
    ];

    fn rank(&self) -> (u64, u64) {
        (u64::from(is_failure(&self.counter)), self.grown_by)
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            self.counter.clone(),
            self.grown_by.to_string(),
            format!("{:.2}", self.rate),
            self.value.to_string(),
            self.last_at.map_or_else(|| "?".to_owned(), |at| age(at, now)),
        ]
    }
}
