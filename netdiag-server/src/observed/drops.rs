//! Dropped packets, by namespace, reason, place and connection.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::kfree_skb::{Direction, DropGroup, DropTuple, Drops};
use netdiag_common::observation::rules::Hook;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Column, Names, Peer, Place, Row, Selection, age};
use crate::harmless::harmless;

/// Packets of one connection's service side that were dropped for one reason at one place.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DropRow {
    #[serde(flatten)]
    pub place: Place,
    /// As the kernel names it: `NETFILTER_DROP`.
    pub reason: String,
    /// The kernel's function that dropped it.
    pub location: String,
    /// `in`, `forwarded`, `out`; empty when it is not known.
    pub direction: String,
    /// Netfilter's hook, where one dropped it and it is known: `forward`.
    pub hook: String,
    /// `tcp`, …, or the number; empty when the addresses are not known.
    pub protocol: String,
    /// None when packets were counted without their addresses.
    pub from: Option<Peer>,
    pub to: Option<Peer>,
    /// Where the client sent it, when a Service's address was translated.
    pub asked: Option<Peer>,
    pub packets: u64,
    pub bytes: u64,
    /// RFC 3339: first sight, as far back as the agent remembers.
    #[schemars(with = "String")]
    pub since: Timestamp,
    #[schemars(with = "String")]
    pub last_at: Timestamp,
    /// What kind of harmless drop it is, `echo reply`; empty for all others.
    pub harmless: String,
    /// How the sender was told, `icmp sent: port unreachable`; empty when nothing is known to have been sent back. A filter's own
    /// TCP resets are not known.
    #[serde(default)]
    pub answered: String,
    /// How often; kernels limit the rate of ICMP errors.
    #[serde(default)]
    pub answers: u64,
}

impl Row for DropRow {
    const COLUMNS: &'static [Column] = &[
        Column::Text("where"),
        Column::Text("node"),
        Column::Text("reason"),
        Column::Text("at"),
        Column::Text("from"),
        Column::Text("to"),
        Column::Text("answered by"),
        Column::Number("packets"),
        Column::Number("last"),
    ];

    fn rank(&self) -> (u64, u64) {
        (self.packets, self.bytes)
    }

    fn harmless_packets(&self) -> Option<u64> {
        (!self.harmless.is_empty()).then_some(self.packets)
    }

    fn cells(&self, now: Timestamp) -> Vec<String> {
        let at =
            if self.hook.is_empty() { self.location.clone() } else { format!("{} ({})", self.location, self.hook) };
        let words = |peer: &Option<Peer>| peer.as_ref().map_or_else(|| "?".to_owned(), Peer::words);
        let mut to = words(&self.to);
        if let Some(asked) = &self.asked {
            to = format!("{} via {to}", asked.words());
        }
        if !self.protocol.is_empty() {
            to = format!("{to}/{}", self.protocol);
        }
        let reason =
            if self.harmless.is_empty() { self.reason.clone() } else { format!("{} ({})", self.reason, self.harmless) };
        let last = age(self.last_at, now);
        vec![
            self.place.name.clone(),
            self.place.node.clone(),
            reason,
            at,
            words(&self.from),
            to,
            if self.answers < self.packets && !self.answered.is_empty() {
                format!("{} ({})", self.answered, self.answers)
            } else {
                self.answered.clone()
            },
            self.packets.to_string(),
            last,
        ]
    }
}

/// What one node dropped.
pub(super) fn rows(node: &str, seen: &Drops, names: &Names, selection: &Selection) -> Vec<DropRow> {
    let meant = seen.groups.iter().filter(|group| {
        selection.takes(&group.netns, &addresses(group)) && selection.has_reason(&[&group.reason, &group.location])
    });
    meant.map(|group| row(node, group, names)).collect()
}

pub(super) fn losses(seen: &Drops) -> [(u64, &'static str); 6] {
    let accounts = &seen.accounts;
    [
        (accounts.coarse, "packets counted without addresses, because the table was full"),
        (accounts.reason_only, "packets counted by reason alone, because the coarse table was full, too"),
        (accounts.missed, "packets not counted, because the program was already running on that CPU"),
        (accounts.forgotten, "packets whose addresses the agent forgot, because its window was full"),
        (accounts.unaccounted().unsigned_abs(), "packets that the agent's accounts cannot explain"),
        (seen.omitted_groups, "kinds of dropped packets beyond the agent's list"),
    ]
}

fn addresses(group: &DropGroup) -> Vec<IpAddr> {
    let tuple = group.tuple.iter().flat_map(|tuple| [tuple.source, tuple.destination]);
    let translated = group.translation.iter().flat_map(|to| [to.before.ip(), to.after.ip()]);
    tuple.chain(translated).collect()
}

fn row(node: &str, group: &DropGroup, names: &Names) -> DropRow {
    let peers = group.tuple.as_ref().map(|tuple| ends(tuple, names));
    let (from, to) = peers.unzip();
    DropRow {
        place: names.place(node, &group.netns),
        reason: group.reason.clone(),
        location: group.location.clone(),
        direction: group.direction.map_or("", direction).to_owned(),
        hook: group.hook.map_or("", hook).to_owned(),
        protocol: group.tuple.as_ref().map(|tuple| protocol(tuple.protocol, tuple.protocol_number)).unwrap_or_default(),
        from,
        to,
        asked: group.translation.map(|translation| names.peer(translation.before)),
        packets: group.packets,
        bytes: group.bytes,
        since: group.since.unwrap_or(group.first_at),
        last_at: group.last_at,
        harmless: harmless(group).unwrap_or_default().to_owned(),
        answered: String::new(),
        answers: 0,
    }
}

/// Source and destination; only the service's port is known.
pub(super) fn ends(tuple: &DropTuple, names: &Names) -> (Peer, Peer) {
    let (source_port, destination_port) =
        if tuple.port_is_destination { (0, tuple.service_port) } else { (tuple.service_port, 0) };
    let peer = |address, port| names.peer(SocketAddr::new(address, port));
    (peer(tuple.source, source_port), peer(tuple.destination, destination_port))
}

pub(super) fn protocol(known: Option<Protocol>, number: u8) -> String {
    known.map_or_else(|| format!("protocol {number}"), |protocol| protocol.to_string())
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Forwarded => "forwarded",
        Direction::Out => "out",
    }
}

fn hook(hook: Hook) -> &'static str {
    match hook {
        Hook::Ingress => "ingress",
        Hook::Prerouting => "prerouting",
        Hook::Input => "input",
        Hook::Forward => "forward",
        Hook::Output => "output",
        Hook::Postrouting => "postrouting",
        Hook::Egress => "egress",
    }
}
