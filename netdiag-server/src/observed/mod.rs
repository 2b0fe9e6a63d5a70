//! What the nodes saw by themselves, joined with the names that Kubernetes gives: rows, one file per subject.
//!
//! A node knows namespaces and addresses; only the API knows that they are a pod, a Service or another node.

use std::collections::BTreeSet;

use jiff::Timestamp;
use netdiag_common::{Need, Topic};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

mod account;
mod counters;
mod devices;
mod dns;
mod dns_search;
mod drops;
mod failing;
mod flows;
mod gather;
mod limits;
mod names;
mod neighbours;
mod rejects;
mod select;
mod sockets;
mod tcp;
mod udp;

pub use account::Account;
pub use counters::CounterRow;
pub use devices::DeviceRow;
pub use dns::{DnsNameRow, DnsRow};
pub use dns_search::DnsSearchRow;
pub use drops::DropRow;
pub use failing::{Failing, failing};
pub use flows::{FlowRow, FlowTableRow};
pub use gather::{Gathered, Rows};
pub use limits::LimitRow;
pub use names::{Names, Peer, Place};
pub use neighbours::NeighbourRow;
pub use rejects::RejectRow;
pub use select::{SelectError, Selection, Wanted};
pub use sockets::SocketRow;
pub use tcp::TcpRow;
pub use udp::UdpRow;

/// What can be observed.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Subject {
    /// Packets that the kernel dropped
    Drops,
    /// ICMP errors and TCP resets
    Rejects,
    /// TCP connections by result
    Tcp,
    /// Datagrams that found their socket full
    Udp,
    /// DNS queries and answers
    Dns,
    /// Connection tracking: tables, and where Service addresses lead
    Flows,
    /// Network devices: state, errors, queues
    Devices,
    /// Hosts on the link that do not answer
    Neighbours,
    /// Sockets with connections, bytes or losses in their queues
    Sockets,
    /// Counters of the kernel that grew
    Counters,
}

impl Subject {
    /// What is shown together when nobody names a subject: what a node counts for itself and all its pods at once.
    pub const OVERVIEW: [Self; 5] = [Self::Drops, Self::Rejects, Self::Tcp, Self::Udp, Self::Dns];

    pub fn topic(self) -> Topic {
        match self {
            Self::Drops => Topic::Drops,
            Self::Rejects => Topic::Rejects,
            Self::Tcp => Topic::Tcp,
            Self::Udp => Topic::Udp,
            Self::Dns => Topic::Dns,
            Self::Flows => Topic::Flows,
            Self::Devices => Topic::Devices,
            Self::Neighbours => Topic::Neighbours,
            Self::Sockets => Topic::Sockets,
            Self::Counters => Topic::Counters,
        }
    }

    /// Each network namespace is asked by itself; of the others, the node's answer covers its pods.
    fn is_per_namespace(self) -> bool {
        matches!(self, Self::Devices | Self::Neighbours | Self::Sockets | Self::Counters)
    }
}

/// One line of a subject.
pub trait Row {
    const COLUMNS: &'static [Column];

    /// Decides the order, highest first: failures before plain traffic, much before little.
    fn rank(&self) -> (u64, u64);

    /// Something goes wrong: worth showing when nobody asked for this subject.
    fn is_trouble(&self) -> bool {
        true
    }

    /// Packets of a kind that is dropped where nothing is wrong.
    fn harmless_packets(&self) -> Option<u64> {
        None
    }

    /// One text per column. `now` is for ages.
    fn cells(&self, now: Timestamp) -> Vec<String>;
}

/// One column of a subject's table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Column {
    Text(&'static str),
    /// Set flush right, and never shortened.
    Number(&'static str),
    /// A number that a narrow terminal can do without.
    Extra(&'static str),
}

/// Rows of one subject, the most telling first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Section<R> {
    /// Nodes that could tell. With none of them, no rows says nothing.
    pub told_by: usize,
    pub rows: Vec<R>,
    /// Rows beyond those listed.
    pub more: usize,
    /// Rows left out because what they count harms nobody, and the packets in them.
    pub harmless_rows: usize,
    pub harmless_packets: u64,
}

/// Something that happened and is not in any row: forgotten, suppressed, shed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Loss {
    pub node: String,
    pub subject: Subject,
    /// `packets counted without addresses, because the table was full`.
    pub what: String,
    pub count: u64,
}

impl<R: Row> Section<R> {
    /// At most `limit` rows; what harms nobody is counted instead of shown unless `wanted` says so.
    pub fn new(gathered: Gathered<R>, wanted: &Wanted, limit: usize) -> Self {
        let Gathered { told_by, mut rows } = gathered;
        let (mut harmless_rows, mut harmless_packets) = (0, 0);
        rows.retain(|row| match row.harmless_packets().filter(|_| !wanted.all) {
            Some(packets) => {
                harmless_rows += 1;
                harmless_packets += packets;
                false
            }
            None => wanted.subject.is_some() || row.is_trouble(),
        });
        rows.sort_by_key(|row| std::cmp::Reverse(row.rank()));
        let more = rows.len().saturating_sub(limit);
        rows.truncate(limit);
        Self { told_by: told_by.len(), rows, more, harmless_rows, harmless_packets }
    }
}

/// Which needs a look has, and how many namespaces were too many for one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Needs {
    pub needs: BTreeSet<Need>,
    pub left_out: usize,
}

/// `12 s`, `3 min`: how long ago.
pub fn age(then: Timestamp, now: Timestamp) -> String {
    match now.duration_since(then).as_secs().max(0) {
        s @ 0..120 => format!("{s} s"),
        s @ 120..7_200 => format!("{} min", s / 60),
        s => format!("{} h", s / 3_600),
    }
}

/// `< 4 ms`: the power of two below which a share of the times lies.
fn below(us: Option<u64>) -> String {
    us.map_or_else(String::new, |us| format!("< {}", spent(us)))
}

/// `850 µs`, `40 ms`, `12 s`.
fn spent(us: u64) -> String {
    match us {
        0..10_000 => format!("{us} µs"),
        10_000..10_000_000 => format!("{} ms", us / 1_000),
        _ => format!("{} s", us / 1_000_000),
    }
}
