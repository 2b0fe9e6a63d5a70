//! DNS queries by client and server, and the names asked most.

use std::collections::BTreeMap;

use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::dns::{Dns, DnsClient, DnsName};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Names, Peer, Place, Row, Selection, age, below, spent};

/// What one namespace asked one server. Counts are of queries that were answered or given up in the window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsRow {
    #[serde(flatten)]
    pub place: Place,
    pub server: Peer,
    pub protocol: Protocol,
    pub answered: u64,
    pub unanswered: u64,
    pub retries: u64,
    /// Retries after the resolver's whole timeout: each cost its application about 5 s.
    pub retries_after_5s: u64,
    /// Answers that did not fit and were asked again by TCP.
    pub truncated: u64,
    /// Answers by their code: `NOERROR`, `NXDOMAIN`, `SERVFAIL`, …
    pub rcodes: BTreeMap<String, u64>,
    /// Microseconds below which half and 99 % of the answers came, as powers of two.
    pub latency_p50_us: Option<u64>,
    pub latency_p99_us: Option<u64>,
    #[schemars(with = "String")]
    pub first_at: Timestamp,
    #[schemars(with = "String")]
    pub last_at: Timestamp,
}

/// One name that one namespace asked for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DnsNameRow {
    #[serde(flatten)]
    pub place: Place,
    pub asked: String,
    /// `A`, `AAAA`, …
    pub record: String,
    /// At most this many, and at least this many less `excess`.
    pub queries: u64,
    pub excess: u64,
    pub nxdomain: u64,
    /// Other answers than NOERROR and NXDOMAIN.
    pub failed: u64,
    pub unanswered: u64,
    pub longest_us: u64,
}

pub(super) fn rows(node: &str, seen: &Dns, names: &Names, selection: &Selection) -> Vec<DnsRow> {
    let meant = seen.clients.iter().filter(|client| selection.takes(&client.netns, &[client.server.ip()]));
    let rows = meant.map(|client| row(node, client, names));
    rows.filter(|row| selection.has_reason(&row.results())).collect()
}

pub(super) fn name_rows(node: &str, seen: &Dns, names: &Names, selection: &Selection) -> Vec<DnsNameRow> {
    let row = |name: &DnsName| {
        let meant = selection.takes(&name.netns, &[]) && selection.has_reason(&[&name.name, &name.record]);
        meant.then(|| DnsNameRow {
            place: names.place(node, &name.netns),
            asked: name.name.clone(),
            record: name.record.clone(),
            queries: name.queries,
            excess: name.excess,
            nxdomain: name.nxdomain,
            failed: name.failed,
            unanswered: name.unanswered,
            longest_us: name.longest_us,
        })
    };
    seen.names.iter().filter_map(row).collect()
}

pub(super) fn losses(seen: &Dns) -> [(u64, &'static str); 8] {
    let accounts = &seen.accounts;
    [
        (accounts.shed, "DNS queries not followed, because the table of open queries was full"),
        (accounts.unparsed, "messages to a DNS port that are no query"),
        (accounts.ungrouped, "DNS queries counted in total alone, because the table was full"),
        (accounts.names_suppressed, "DNS names not read, because of the limit on their rate"),
        (accounts.names_lost, "DNS names lost, because the ring was full"),
        (accounts.forgotten, "DNS queries whose client the agent forgot, because its window was full"),
        (accounts.unaccounted().unsigned_abs(), "DNS queries that the agent's accounts cannot explain"),
        (seen.omitted_groups, "DNS clients and servers beyond the agent's list"),
    ]
}

fn row(node: &str, client: &DnsClient, names: &Names) -> DnsRow {
    DnsRow {
        place: names.place(node, &client.netns),
        server: names.peer(client.server),
        protocol: client.protocol,
        answered: client.answered,
        unanswered: client.unanswered,
        retries: client.retries,
        retries_after_5s: client.retries_after_5s,
        truncated: client.truncated,
        rcodes: client.rcodes.clone(),
        latency_p50_us: client.latency.below_us(0.5),
        latency_p99_us: client.latency.below_us(0.99),
        first_at: client.first_at,
        last_at: client.last_at,
    }
}

impl DnsRow {
    /// Answers that are an error of the server's. That a name does not exist is an answer: search lists ask for many such.
    pub fn server_errors(&self) -> u64 {
        let errors = self.rcodes.iter().filter(|(code, _)| !matches!(code.as_str(), "NOERROR" | "NXDOMAIN"));
        errors.map(|(_, count)| count).sum()
    }

    fn results(&self) -> Vec<&str> {
        let unanswered = (self.unanswered > 0).then_some("no answer");
        self.rcodes.keys().map(String::as_str).chain(unanswered).collect()
    }
}

impl Row for DnsRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("server"),
        Column::Number("answered"),
        Column::Number("no answer"),
        Column::Text("codes"),
        Column::Extra("retries"),
        Column::Extra("p50"),
        Column::Number("p99"),
        Column::Number("last"),
    ];

    fn rank(&self) -> (u64, u64) {
        (self.unanswered + self.server_errors(), self.answered)
    }

    fn is_trouble(&self) -> bool {
        self.unanswered + self.server_errors() > 0
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let codes: Vec<String> = self.rcodes.iter().map(|(code, count)| format!("{count} {code}")).collect();
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            format!("{}/{}", self.server.words(), self.protocol),
            self.answered.to_string(),
            self.unanswered.to_string(),
            codes.join(", "),
            self.retries.to_string(),
            below(self.latency_p50_us),
            below(self.latency_p99_us),
            age(self.last_at, now),
        ]
    }
}

impl Row for DnsNameRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("name"),
        Column::Text("type"),
        Column::Number("queries"),
        Column::Number("no such name"),
        Column::Number("failed"),
        Column::Number("no answer"),
        Column::Extra("longest"),
    ];

    fn rank(&self) -> (u64, u64) {
        (self.failed + self.unanswered, self.queries)
    }

    fn is_trouble(&self) -> bool {
        self.failed + self.unanswered > 0
    }

    fn cells(&self, _now: Timestamp) -> Vec<String> {
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            self.asked.clone(),
            self.record.clone(),
            self.queries.to_string(),
            self.nxdomain.to_string(),
            self.failed.to_string(),
            self.unanswered.to_string(),
            if self.longest_us == 0 { String::new() } else { spent(self.longest_us) },
        ]
    }
}
