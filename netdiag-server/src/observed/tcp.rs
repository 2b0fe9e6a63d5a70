//! TCP connections by what became of them, per namespace and service.

use std::net::SocketAddr;

use jiff::Timestamp;
use netdiag_common::observation::histogram::Histogram;
use netdiag_common::observation::tcp::{Outcome, Side, Tcp, TcpGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Names, Peer, Place, Row, Selection, age, below};

/// One service as seen from one namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TcpRow {
    #[serde(flatten)]
    pub place: Place,
    /// `client`: the service is the peer. `server`: it is here.
    pub side: String,
    /// As the socket sees it: a client's is the Service's address. None when it was counted without.
    pub service: Option<Peer>,
    /// Attempts that were begun, and those that are under way now.
    pub connects: u64,
    pub open: u64,
    pub established: u64,
    pub refused: u64,
    pub timed_out: u64,
    pub reset: u64,
    pub unreachable: u64,
    /// Closed by the application before an answer came.
    pub abandoned: u64,
    /// No local port was free.
    pub no_port: u64,
    pub other: u64,
    pub accepted: u64,
    /// Established connections that ended with an error.
    pub broken: u64,
    pub syn_retransmits: u64,
    pub synack_retransmits: u64,
    pub retransmits: u64,
    /// Microseconds below which half and 99 % of the handshakes were done, as powers of two.
    pub handshake_p50_us: Option<u64>,
    pub handshake_p99_us: Option<u64>,
    pub round_trip_p50_us: Option<u64>,
    #[schemars(with = "String")]
    pub first_at: Timestamp,
    #[schemars(with = "String")]
    pub last_at: Timestamp,
}

pub(super) fn rows(node: &str, seen: &Tcp, names: &Names, selection: &Selection) -> Vec<TcpRow> {
    let meant = |group: &&TcpGroup| {
        let address: Vec<_> = group.service.iter().map(SocketAddr::ip).collect();
        selection.takes(&group.netns, &address)
    };
    let rows = seen.groups.iter().filter(meant).map(|group| row(node, group, names));
    rows.filter(|row| selection.has_reason(&row.results())).collect()
}

pub(super) fn losses(seen: &Tcp) -> [(u64, &'static str); 8] {
    let accounts = &seen.accounts;
    [
        (accounts.untracked, "connection attempts not followed, because the table of attempts was full"),
        (accounts.lost, "connection attempts whose end was missed"),
        (accounts.coarse, "TCP events counted without the service, because the table was full"),
        (accounts.total_only, "TCP events counted in total alone, because the coarse table was full, too"),
        (accounts.missed, "TCP events not counted, because the program was already running on that CPU"),
        (accounts.forgotten, "TCP events whose service the agent forgot, because its window was full"),
        (accounts.unaccounted().unsigned_abs(), "connection attempts that the agent's accounts cannot explain"),
        (seen.omitted_groups, "TCP services beyond the agent's list"),
    ]
}

fn row(node: &str, group: &TcpGroup, names: &Names) -> TcpRow {
    let established = group.results.iter().filter(|result| result.outcome == Outcome::Established);
    let mut handshakes = Histogram::default();
    for bucket in established.flat_map(|result| &result.time.buckets) {
        handshakes.add(bucket.below_us, bucket.count, 0);
    }
    TcpRow {
        place: names.place(node, &group.netns),
        side: match group.side {
            Side::Client => "client",
            Side::Server => "server",
        }
        .to_owned(),
        service: group.service.map(|service| names.peer(service)),
        connects: group.connects,
        open: group.open,
        established: group.ended(Outcome::Established),
        refused: group.ended(Outcome::Refused),
        timed_out: group.ended(Outcome::TimedOut),
        reset: group.ended(Outcome::Reset),
        unreachable: group.ended(Outcome::Unreachable),
        abandoned: group.ended(Outcome::Abandoned),
        no_port: group.ended(Outcome::NoPort),
        other: group.ended(Outcome::Other),
        accepted: group.accepted,
        broken: group.broken.iter().map(|broken| broken.count).sum(),
        syn_retransmits: group.syn_retransmits,
        synack_retransmits: group.synack_retransmits,
        retransmits: group.retransmits,
        handshake_p50_us: handshakes.below_us(0.5),
        handshake_p99_us: handshakes.below_us(0.99),
        round_trip_p50_us: group.round_trip.below_us(0.5),
        first_at: group.first_at,
        last_at: group.last_at,
    }
}

impl TcpRow {
    /// Attempts that ended otherwise than established.
    pub fn failed(&self) -> u64 {
        self.failures().iter().map(|(count, _)| count).sum()
    }

    fn failures(&self) -> [(u64, &'static str); 7] {
        [
            (self.refused, "refused"),
            (self.timed_out, "timed out"),
            (self.reset, "reset"),
            (self.unreachable, "unreachable"),
            (self.abandoned, "abandoned"),
            (self.no_port, "no local port"),
            (self.other, "other"),
        ]
    }

    /// How attempts ended, for the filter by reason.
    fn results(&self) -> Vec<&'static str> {
        let all = self.failures().into_iter().chain([(self.established, "established"), (self.broken, "broken")]);
        all.filter(|(count, _)| *count > 0).map(|(_, word)| word).collect()
    }
}

impl Row for TcpRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("side"),
        Column::Text("service"),
        Column::Number("ok"),
        Column::Text("failed"),
        Column::Extra("open"),
        Column::Extra("syn again"),
        Column::Extra("resent"),
        Column::Extra("handshake p99"),
        Column::Number("last"),
    ];

    fn rank(&self) -> (u64, u64) {
        (self.failed() + self.broken, self.connects + self.accepted)
    }

    fn is_trouble(&self) -> bool {
        self.failed() > 0
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let failures = self.failures().into_iter().chain([(self.broken, "broken later")]);
        let failures: Vec<String> =
            failures.filter(|(count, _)| *count > 0).map(|(count, word)| format!("{count} {word}")).collect();
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            self.side.clone(),
            self.service.as_ref().map_or_else(|| "?".to_owned(), Peer::words),
            (self.established + self.accepted).to_string(),
            failures.join(", "),
            self.open.to_string(),
            (self.syn_retransmits + self.synack_retransmits).to_string(),
            self.retransmits.to_string(),
            below(self.handshake_p99_us),
            age(self.last_at, now),
        ]
    }
}
