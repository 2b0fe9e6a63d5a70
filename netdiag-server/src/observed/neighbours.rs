//! Hosts on the link that do not answer.

use std::net::SocketAddr;

use jiff::Timestamp;
use netdiag_common::observation::neighbour::{Neighbours, Unresolved};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Names, Peer, Place, Row, Selection, age};

/// A host whose link-layer address the kernel asked for and has not got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct NeighbourRow {
    #[serde(flatten)]
    pub place: Place,
    pub neighbour: Peer,
    pub device: String,
    /// `failed`: asked in vain. `incomplete`: asked, no answer yet.
    pub state: String,
    /// Milliseconds since somebody wanted to send to it.
    pub used_ms: Option<u64>,
    /// RFC 3339: since when it is so; empty when the agent does not know.
    #[schemars(with = "Option<String>")]
    pub first_at: Option<Timestamp>,
}

pub(super) fn rows(place: &Place, seen: &Neighbours, names: &Names, selection: &Selection) -> Vec<NeighbourRow> {
    let row = |entry: &Unresolved| {
        let neighbour = names.peer(SocketAddr::new(entry.address, 0));
        let meant = selection.has_reason(&[&entry.state, &entry.device, &neighbour.name, &neighbour.address]);
        meant.then(|| NeighbourRow {
            place: place.clone(),
            neighbour,
            device: entry.device.clone(),
            state: entry.state.clone(),
            used_ms: entry.used_ms,
            first_at: entry.first_at,
        })
    };
    seen.unresolved.iter().filter_map(row).collect()
}

impl Row for NeighbourRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("neighbour"),
        Column::Text("device"),
        Column::Text("state"),
        Column::Number("wanted"),
        Column::Number("since"),
    ];

    /// A neighbour of the cluster first, then who was wanted last.
    fn rank(&self) -> (u64, u64) {
        (u64::from(!self.neighbour.name.is_empty()), u64::MAX - self.used_ms.unwrap_or(u64::MAX))
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let name = match self.neighbour.name.as_str() {
            "" => self.neighbour.address.clone(),
            name => format!("{name} ({})", self.neighbour.address),
        };
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            name,
            self.device.clone(),
            self.state.clone(),
            self.used_ms.map_or_else(|| "?".to_owned(), |ms| format!("{} s", ms / 1_000)),
            self.first_at.map_or_else(|| "?".to_owned(), |at| age(at, now)),
        ]
    }
}
