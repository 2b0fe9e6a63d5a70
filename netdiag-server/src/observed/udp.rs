//! Datagrams that reached a socket and found no room in it.

use jiff::Timestamp;
use netdiag_common::observation::udp::{Udp, UdpGroup};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Names, Place, Row, Selection, age};

/// What one port lost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct UdpRow {
    #[serde(flatten)]
    pub place: Place,
    /// The receiving socket's; None when it was counted without.
    pub port: Option<u16>,
    /// `receive buffer full`, `memory of all UDP sockets used up`, or the error's number.
    pub reason: String,
    pub packets: u64,
    #[schemars(with = "String")]
    pub first_at: Timestamp,
    #[schemars(with = "String")]
    pub last_at: Timestamp,
}

pub(super) fn rows(node: &str, seen: &Udp, names: &Names, selection: &Selection) -> Vec<UdpRow> {
    let row = |group: &UdpGroup| {
        let reason = reason(group.errno);
        let meant = selection.takes(&group.netns, &[]) && selection.has_reason(&[&reason]);
        meant.then(|| UdpRow {
            place: names.place(node, &group.netns),
            port: group.port,
            reason,
            packets: group.packets,
            first_at: group.first_at,
            last_at: group.last_at,
        })
    };
    seen.groups.iter().filter_map(row).collect()
}

pub(super) fn losses(seen: &Udp) -> [(u64, &'static str); 6] {
    let accounts = &seen.accounts;
    [
        (accounts.coarse, "lost datagrams counted without their port, because the table was full"),
        (accounts.total_only, "lost datagrams counted in total alone, because the coarse table was full, too"),
        (accounts.missed, "lost datagrams not counted, because the program was already running on that CPU"),
        (accounts.forgotten, "lost datagrams whose port the agent forgot, because its window was full"),
        (accounts.unaccounted().unsigned_abs(), "lost datagrams that the agent's accounts cannot explain"),
        (seen.omitted_groups, "UDP ports beyond the agent's list"),
    ]
}

/// `__udp_enqueue_schedule_skb` (net/ipv4/udp.c): ENOMEM for the socket's own buffer, ENOBUFS for the protocol's memory.
fn reason(errno: i32) -> String {
    match errno.abs() {
        12 => "receive buffer full".to_owned(),
        105 => "memory of all UDP sockets used up".to_owned(),
        other => format!("errno {other}"),
    }
}

impl Row for UdpRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Number("port"),
        Column::Text("reason"),
        Column::Number("packets"),
        Column::Number("last"),
    ];

    fn rank(&self) -> (u64, u64) {
        (self.packets, 0)
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            self.port.map_or_else(|| "?".to_owned(), |port| port.to_string()),
            self.reason.clone(),
            self.packets.to_string(),
            age(self.last_at, now),
        ]
    }
}
