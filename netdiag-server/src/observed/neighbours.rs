//! Hosts on the link that do not answer: those of this moment, and those that were asked for in vain during the window.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::observation::neighbour::{Failure, FailureKind, Failures, Neighbours, Unresolved};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Names, Peer, Place, Row, Selection, age};

/// A host whose link-layer address the kernel asked for and has not got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NeighbourRow {
    #[serde(flatten)]
    pub place: Place,
    /// Empty when it was counted without.
    pub neighbour: Peer,
    pub device: String,
    /// `failed`: asked in vain. `incomplete`: asked, no answer yet. `over`: it failed during the window, and is not in the list
    /// of those any more. `refused`: no room for it in the table.
    pub state: String,
    /// Milliseconds since somebody wanted to send to it.
    pub used_ms: Option<u64>,
    /// RFC 3339: since when it is so, or when it was so first; empty when the agent does not know.
    #[schemars(with = "Option<String>")]
    pub first_at: Option<Timestamp>,
    /// Times during the window that the kernel gave up, or found no room; empty when no program counts them.
    pub times: Option<u64>,
    /// RFC 3339: the last of them.
    #[schemars(with = "Option<String>")]
    pub last_at: Option<Timestamp>,
}

pub(super) fn rows(place: &Place, seen: &Neighbours, names: &Names, selection: &Selection) -> Vec<NeighbourRow> {
    let peer = |address: Option<IpAddr>| match address {
        Some(address) => names.peer(SocketAddr::new(address, 0)),
        None => Peer { address: String::new(), name: String::new() },
    };
    let mut counted: BTreeMap<_, &Failure> =
        seen.failures.iter().flat_map(|failures| &failures.groups).map(|failure| (key(failure), failure)).collect();
    let mut rows: Vec<NeighbourRow> = Vec::new();
    for Unresolved { address, link_index, device, state, used_ms, first_at, .. } in &seen.unresolved {
        let failure = counted.remove(&(FailureKind::Failed, *link_index, Some(*address)));
        rows.push(NeighbourRow {
            place: place.clone(),
            neighbour: peer(Some(*address)),
            device: device.clone(),
            state: state.clone(),
            used_ms: *used_ms,
            // Whoever counts sees the first failure, whoever looks now and then the first look at it.
            first_at: [*first_at, failure.map(|failure| failure.first_at)].into_iter().flatten().min(),
            times: failure.map(|failure| failure.times).or(seen.failures.as_ref().map(|_| 0)),
            last_at: failure.map(|failure| failure.last_at),
        });
    }
    rows.extend(counted.into_values().map(|failure| NeighbourRow {
        place: place.clone(),
        neighbour: peer(failure.address),
        device: failure.device.clone(),
        state: if failure.kind == FailureKind::Refused { "refused" } else { "over" }.to_owned(),
        used_ms: None,
        first_at: Some(failure.first_at),
        times: Some(failure.times),
        last_at: Some(failure.last_at),
    }));
    rows.retain(|row| selection.has_reason(&[&row.state, &row.device, &row.neighbour.name, &row.neighbour.address]));
    rows
}

fn key(failure: &Failure) -> (FailureKind, u32, Option<IpAddr>) {
    (failure.kind, failure.link_index, failure.address)
}

/// The accounts are the whole kernel's, and told with the node's own namespace.
pub(super) fn losses(place: &Place, failures: &Failures) -> Vec<(u64, &'static str)> {
    let mut losses = vec![(failures.omitted_groups, "neighbours that failed beyond the agent's list")];
    if place.is_host() {
        let accounts = &failures.accounts;
        losses.extend([
            (accounts.coarse, "failures of neighbours counted without an address, because the table was full"),
            (
                accounts.total_only,
                "failures of neighbours counted in total alone, because the coarse table was full, too",
            ),
            (accounts.missed, "failures of neighbours that the kernel counted and its tracepoint did not show"),
            (accounts.forgotten, "failures of neighbours whose address the agent forgot, because its window was full"),
            (accounts.unaccounted().unsigned_abs(), "failures of neighbours that the agent's accounts cannot explain"),
        ]);
    }
    losses
}

impl Row for NeighbourRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("neighbour"),
        Column::Text("device"),
        Column::Text("state"),
        Column::Number("failed"),
        Column::Number("wanted"),
        Column::Number("since"),
    ];

    /// A neighbour of the cluster first, then who was wanted last.
    fn rank(&self) -> (u64, u64) {
        (u64::from(!self.neighbour.name.is_empty()), u64::MAX - self.used_ms.unwrap_or(u64::MAX))
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let name = match self.neighbour.name.as_str() {
            "" if self.neighbour.address.is_empty() => "?".to_owned(),
            "" => self.neighbour.address.clone(),
            name => format!("{name} ({})", self.neighbour.address),
        };
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            name,
            self.device.clone(),
            self.state.clone(),
            self.times.map_or_else(|| "?".to_owned(), |times| times.to_string()),
            self.used_ms.map_or_else(|| "?".to_owned(), |ms| format!("{} s", ms / 1_000)),
            self.first_at.map_or_else(|| "?".to_owned(), |at| age(at, now)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::Owner;
    use netdiag_common::observation::neighbour::FailureAccounts;

    use super::*;
    use crate::evidence::Cluster;
    use crate::observed::Wanted;

    fn failure(last: u8, kind: FailureKind, times: u64) -> Failure {
        let at: Timestamp = "2026-01-01T11:58:00Z".parse().expect("a time");
        let address = (last != 0).then(|| IpAddr::from([10, 0, 0, last]));
        Failure { address, link_index: 2, device: "eth0".to_owned(), kind, times, first_at: at, last_at: at }
    }

    #[test]
    fn a_neighbour_is_told_once_with_how_often_it_failed() {
        let unresolved = |last: u8| Unresolved {
            address: IpAddr::from([10, 0, 0, last]),
            link_index: 2,
            device: "eth0".to_owned(),
            state: "incomplete".to_owned(),
            changed_ms: None,
            used_ms: Some(1_000),
            probes: Some(4),
            first_at: "2026-01-01T11:59:00Z".parse().ok(),
        };
        let groups = vec![
            failure(9, FailureKind::Failed, 7),
            failure(8, FailureKind::Failed, 1),
            failure(9, FailureKind::Refused, 3),
            failure(0, FailureKind::Failed, 5),
        ];
        let since = failure(0, FailureKind::Failed, 0).first_at;
        let accounts = FailureAccounts { total: 16, attributed: 11, coarse: 5, ..FailureAccounts::default() };
        let failures = Failures { since, window_s: 300.0, accounts, groups, omitted_groups: 0 };
        let unresolved = vec![unresolved(9), unresolved(7)];
        let mut seen = Neighbours { unresolved, failures: Some(failures), ..Neighbours::default() };
        let cluster = Cluster::default();
        let names = Names::of(&cluster);
        let all = Wanted::default().select(&cluster).expect("all that there is");
        let place = names.place("n1", &Owner::Host);
        let told = |seen: &Neighbours| -> Vec<(String, String, Option<u64>, bool)> {
            let rows = rows(&place, seen, &names, &all);
            rows.into_iter()
                .map(|row| (row.neighbour.address, row.state, row.times, row.first_at == Some(since)))
                .collect()
        };
        let row =
            |address: &str, state: &str, times, is_first| (address.to_owned(), state.to_owned(), Some(times), is_first);
        let expected = [
            row("10.0.0.9", "incomplete", 7, true),
            row("10.0.0.7", "incomplete", 0, false),
            row("", "over", 5, true),
            row("10.0.0.8", "over", 1, true),
            row("10.0.0.9", "refused", 3, true),
        ];
        assert_eq!(told(&seen), expected);
        let lost: Vec<u64> = losses(&place, seen.failures.as_ref().expect("counted")).iter().map(|(n, _)| *n).collect();
        assert_eq!(lost, [0, 5, 0, 0, 0, 0]);
        // Where nothing counts, nothing is said of how often.
        seen.failures = None;
        assert_eq!(told(&seen)[0], ("10.0.0.9".to_owned(), "incomplete".to_owned(), None, false));
    }
}
