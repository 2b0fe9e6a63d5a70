//! Connection tracking: how full the tables are, and where Service addresses lead flows.

use std::net::SocketAddr;

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::flow::{FlowMapping, FlowTable, Flows, RulesToday};
use netdiag_common::observation::{Owner, Protocol};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Names, Peer, Place, Row, Selection};

/// The table of one network namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowTableRow {
    #[serde(flatten)]
    pub place: Place,
    pub entries: u64,
    pub limit: u64,
}

/// Flows to one address that lead to one endpoint.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FlowRow {
    pub node: String,
    /// What the clients asked for.
    pub to: Peer,
    pub protocol: Protocol,
    /// Where the packets go instead.
    pub endpoint: Peer,
    pub flows: u64,
    pub unreplied: u64,
    pub assured: u64,
    /// Seconds since the latest packet of any of them.
    pub latest_packet_s: Option<u32>,
    /// What the Service rules say today: `lead there`, `lead elsewhere`, `lead nowhere`, `say nothing`, `not known`.
    pub rules: String,
    /// A new flow would not go there.
    pub outdated: bool,
}

pub(super) fn table_rows(node: &str, seen: &Flows, names: &Names, selection: &Selection) -> Vec<FlowTableRow> {
    let row = |table: &FlowTable| {
        let owner = match &table.netns {
            Netns::Host => Owner::Host,
            Netns::Pod(uid) => Owner::Pod { uid: uid.clone() },
        };
        let place = names.place(node, &owner);
        selection.takes(&owner, &[]).then_some(FlowTableRow { place, entries: table.entries, limit: table.limit })
    };
    seen.tables.iter().filter_map(row).collect()
}

pub(super) fn rows(node: &str, seen: &Flows, names: &Names, selection: &Selection) -> Vec<FlowRow> {
    let row = |mapping: &FlowMapping| {
        let endpoint = &mapping.endpoint;
        let rules = rules_in_words(mapping.rules);
        let addresses = [mapping.address, endpoint.address];
        let meant = selection.takes(&Owner::Host, &addresses) && selection.has_reason(&[rules]);
        meant.then(|| FlowRow {
            node: node.to_owned(),
            to: names.peer(SocketAddr::new(mapping.address, mapping.port)),
            protocol: mapping.protocol,
            endpoint: names.peer(SocketAddr::new(endpoint.address, endpoint.port)),
            flows: mapping.flows,
            unreplied: mapping.unreplied,
            assured: mapping.assured,
            latest_packet_s: mapping.latest_packet_s,
            rules: rules.to_owned(),
            outdated: mapping.rules.is_outdated(),
        })
    };
    seen.snapshot.mappings.iter().filter_map(row).collect()
}

pub(super) fn losses(seen: &Flows) -> [(u64, &'static str); 4] {
    let changes = seen.changes.as_ref();
    [
        (
            changes.map_or(0, |changes| changes.lost),
            "announcements of flows lost, because the socket's buffer was full",
        ),
        (changes.map_or(0, |changes| changes.undecoded), "announcements of flows that could not be decoded"),
        (seen.snapshot.omitted_mapping_flows, "flows of mappings beyond the agent's list"),
        (seen.pods_left_out, "pods whose table is not listed"),
    ]
}

fn rules_in_words(rules: RulesToday) -> &'static str {
    match rules {
        RulesToday::LeadThere => "lead there",
        RulesToday::LeadElsewhere => "lead elsewhere",
        RulesToday::LeadNowhere => "lead nowhere",
        RulesToday::SayNothing => "say nothing",
        RulesToday::NotKnown => "not known",
    }
}

impl Row for FlowTableRow {
    const COLUMNS: &'static [Column] =
        &[Column::Text("where"), Column::Text("node"), Column::Number("entries"), Column::Number("limit")];

    fn rank(&self) -> (u64, u64) {
        (self.entries, 0)
    }

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        let place = &self.place;
        vec![place.name.clone(), place.node.clone(), self.entries.to_string(), self.limit.to_string()]
    }
}

impl Row for FlowRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("node"),
        Column::Text("to"),
        Column::Text("leads to"),
        Column::Number("flows"),
        Column::Extra("unreplied"),
        Column::Number("last"),
        Column::Text("rules today"),
    ];

    fn rank(&self) -> (u64, u64) {
        (u64::from(self.outdated), self.flows)
    }

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.node.clone(),
            format!("{}/{}", self.to.words(), self.protocol),
            self.endpoint.words(),
            self.flows.to_string(),
            self.unreplied.to_string(),
            self.latest_packet_s.map_or_else(|| "?".to_owned(), |seconds| format!("{seconds} s")),
            self.rules.clone(),
        ]
    }
}
