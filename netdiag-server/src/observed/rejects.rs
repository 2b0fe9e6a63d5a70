//! Refusals on the wire: ICMP errors and TCP resets, sent and received.

use std::net::IpAddr;

use jiff::Timestamp;
use netdiag_common::observation::reject::{RejectGroup, RejectKind, Rejects};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::drops::{ends, protocol};
use super::{Column, DropRow, Names, Peer, Place, Row, Selection, age};

/// Refusals of one kind, by the packets that were refused.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct RejectRow {
    #[serde(flatten)]
    pub place: Place,
    /// `icmp_sent`, `reset_sent`, `aborted`, `reset_received`, `error`.
    pub kind: String,
    /// `port unreachable`, the kernel's reason, the socket's state, or what the socket's owner was told.
    pub detail: String,
    pub protocol: String,
    /// The packet that was refused; None when it was counted without its addresses.
    pub from: Option<Peer>,
    pub to: Option<Peer>,
    pub packets: u64,
    #[schemars(with = "String")]
    pub first_at: Timestamp,
    #[schemars(with = "String")]
    pub last_at: Timestamp,
}

/// For any reason: drops are paired with them before the filter by reason.
pub(super) fn rows(node: &str, seen: &Rejects, names: &Names, selection: &Selection) -> Vec<RejectRow> {
    let row = |group: &RejectGroup| {
        let addresses: Vec<IpAddr> = group.tuple.iter().flat_map(|tuple| [tuple.source, tuple.destination]).collect();
        let (kind, detail) = words(&group.kind);
        let meant = selection.takes(&group.netns, &addresses);
        let (from, to) = group.tuple.as_ref().map(|tuple| ends(tuple, names)).unzip();
        meant.then(|| RejectRow {
            place: names.place(node, &group.netns),
            kind: kind.to_owned(),
            detail,
            protocol: group
                .tuple
                .as_ref()
                .map(|tuple| protocol(tuple.protocol, tuple.protocol_number))
                .unwrap_or_default(),
            from,
            to,
            packets: group.packets,
            first_at: group.first_at,
            last_at: group.last_at,
        })
    };
    seen.groups.iter().filter_map(row).collect()
}

pub(super) fn losses(seen: &Rejects) -> [(u64, &'static str); 7] {
    let accounts = &seen.accounts;
    [
        (accounts.coarse, "refusals counted without addresses, because the table was full"),
        (accounts.total_only, "refusals counted in total alone, because the coarse table was full, too"),
        (accounts.shed, "refusals of a flood, counted in total alone"),
        (accounts.missed, "refusals not counted, because the program was already running on that CPU"),
        (accounts.forgotten, "refusals whose addresses the agent forgot, because its window was full"),
        (accounts.unaccounted().unsigned_abs(), "refusals that the agent's accounts cannot explain"),
        (seen.omitted_groups, "kinds of refusals beyond the agent's list"),
    ]
}

fn words(kind: &RejectKind) -> (&'static str, String) {
    match kind {
        RejectKind::IcmpSent { icmp_type, code } => {
            let meaning = kind.icmp_meaning().map_or_else(|| format!("type {icmp_type} code {code}"), str::to_owned);
            ("icmp_sent", meaning)
        }
        RejectKind::ResetSent { reason } => ("reset_sent", reason.clone()),
        RejectKind::Aborted { reason } => ("aborted", reason.clone()),
        RejectKind::ResetReceived { state } => ("reset_received", format!("in {state}")),
        RejectKind::Error { errno } => ("error", error(*errno)),
    }
}

/// What the socket's owner reads, as strerror(3) has it; `icmp_err_convert` (net/ipv4/icmp.c) makes these of ICMP errors.
fn error(errno: i32) -> String {
    match errno {
        13 => "permission denied".to_owned(),
        90 => "message too long".to_owned(),
        92 => "protocol not available".to_owned(),
        101 => "network is unreachable".to_owned(),
        111 => "connection refused".to_owned(),
        112 => "host is down".to_owned(),
        113 => "no route to host".to_owned(),
        other => format!("errno {other}"),
    }
}

/// Resets by which a kernel says that an application is done with a connection: it closed while data was on its way or unread,
/// or the other end comes back to one that is over (`enum sk_rst_reason`, include/net/rstreason.h, Linux 6.10).
const RESETS_OF_CLOSING: [&str; 5] = [
    "TCP_ABORT_ON_CLOSE",
    "TCP_ABORT_ON_DATA",
    "TCP_ABORT_ON_LINGER",
    "TCP_DISCONNECT_WITH_DATA",
    "TCP_TIMEWAIT_SOCKET",
];

impl RejectRow {
    /// `icmp sent: port unreachable`.
    pub(super) fn refusal(&self) -> String {
        let kind = if self.kind == "error" { "socket told".to_owned() } else { self.kind.replace('_', " ") };
        format!("{kind}: {}", self.detail)
    }

    /// Whether it answered these dropped packets: same namespace, same kind of packet.
    pub(super) fn answers(&self, drop: &DropRow) -> bool {
        let is_answer = matches!(self.kind.as_str(), "icmp_sent" | "reset_sent");
        let same_packet = self.from.is_some() && (&self.from, &self.to) == (&drop.from, &drop.to);
        is_answer && same_packet && self.place == drop.place && self.protocol == drop.protocol
    }
}

impl Row for RejectRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("refusal"),
        Column::Text("of packets from"),
        Column::Text("to"),
        Column::Number("packets"),
        Column::Number("last"),
    ];

    fn rank(&self) -> (u64, u64) {
        (self.packets, 0)
    }

    /// Connections that an application ends by a reset, and those that end so when they were established, are how many
    /// programs close: no failure by themselves.
    fn is_trouble(&self) -> bool {
        match self.kind.as_str() {
            "aborted" => false,
            "reset_received" => self.detail == "in SYN_SENT",
            "reset_sent" => !RESETS_OF_CLOSING.contains(&self.detail.as_str()),
            _ => true,
        }
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let words = |peer: &Option<Peer>| peer.as_ref().map_or_else(|| "?".to_owned(), Peer::words);
        let to =
            if self.protocol.is_empty() { words(&self.to) } else { format!("{}/{}", words(&self.to), self.protocol) };
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            self.refusal(),
            words(&self.from),
            to,
            self.packets.to_string(),
            age(self.last_at, now),
        ]
    }
}
