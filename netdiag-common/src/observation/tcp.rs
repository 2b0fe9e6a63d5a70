//! TCP connections as the kernel's sockets lived them: attempts by result, handshake time, retransmits, round trips.
//!
//! What leaves no trace in a socket's state is not here: a `connect()` that finds no route fails before the first SYN, and
//! only the namespace's counter `IpOutNoRoutes` knows of it.

use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Owner;
use super::histogram::Histogram;
use crate::Gap;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Tcp {
    /// The window's start; counts are what happened since.
    pub since: Timestamp,
    /// Seconds of the window.
    pub window_s: f64,
    /// Of the whole kernel, not only of this node's namespaces.
    pub accounts: TcpAccounts,
    /// Most failures first, then most connections.
    pub groups: Vec<TcpGroup>,
    /// Groups beyond those listed; what they counted is in `accounts` all the same.
    #[serde(default)]
    pub omitted_groups: u64,
    /// What this kernel or these rights do not let us say.
    #[serde(default)]
    pub unseen: Vec<Gap>,
}

/// Each term has its own kernel counter. The identity, in connection attempts:
/// `open_before + connects + unmatched = established + refused + timed_out + reset + unreachable + abandoned + no_port +
/// other + untracked + lost + open + unaccounted`, where `unaccounted` must be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TcpAccounts {
    /// Attempts under way when the window began.
    pub open_before: u64,
    /// Attempts begun: sockets that were about to send their first SYN.
    pub connects: u64,
    /// Results of attempts that we did not see begin, that are `untracked`, or given up as `lost`.
    pub unmatched: u64,
    pub established: u64,
    /// `ECONNREFUSED`: a RST came, or an ICMP error that means the same.
    pub refused: u64,
    /// `ETIMEDOUT`.
    pub timed_out: u64,
    /// `ECONNRESET` and `EPIPE`.
    pub reset: u64,
    /// `EHOSTUNREACH`, `ENETUNREACH` and their kind.
    pub unreachable: u64,
    /// Closed by the application before an answer came, as most libraries' own timeouts do.
    pub abandoned: u64,
    /// Ended at once because no local port was free.
    pub no_port: u64,
    /// Any other error.
    pub other: u64,
    /// Begun while the table of attempts was full: not followed, so that their results are `unmatched`.
    pub untracked: u64,
    /// No longer followed, because the event that ended them was missed.
    pub lost: u64,
    /// Attempts under way now.
    pub open: u64,

    /// Connections that a listener completed.
    pub accepted: u64,
    /// Established connections that ended with an error.
    pub broken: u64,
    pub syn_retransmits: u64,
    pub synack_retransmits: u64,
    pub retransmits: u64,

    /// Of all events, how they were counted: with a full key, with a coarse one because the set was full, in a namespace
    /// that is not this node's, by total alone because the coarse set was full too.
    pub attributed: u64,
    pub coarse: u64,
    pub foreign_netns: u64,
    pub total_only: u64,
    /// Events that found the programs running on that CPU and were not counted anywhere.
    pub missed: u64,
    /// Events whose key user space forgot because its window was full; part of the terms above.
    pub forgotten: u64,
}

impl TcpAccounts {
    /// What the identity cannot explain; 0 unless a counter lies.
    pub fn unaccounted(&self) -> i64 {
        let ended = self.established
            + self.refused
            + self.timed_out
            + self.reset
            + self.unreachable
            + self.abandoned
            + self.no_port
            + self.other;
        let begun = self.open_before + self.connects + self.unmatched;
        begun.cast_signed() - (ended + self.untracked + self.lost + self.open).cast_signed()
    }
}

/// One service as seen from one namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TcpGroup {
    pub netns: Owner,
    /// As the socket sees it: a client's is the Service's address, not yet translated. Port 0 when both ports could be a
    /// client's. None at the coarse level.
    #[serde(default)]
    pub service: Option<SocketAddr>,
    pub side: Side,
    /// Attempts begun.
    pub connects: u64,
    /// Attempts under way now, and when the oldest of them began.
    #[serde(default)]
    pub open: u64,
    #[serde(default)]
    pub oldest_open_at: Option<Timestamp>,
    /// Attempts that ended.
    #[serde(default)]
    pub results: Vec<ConnectResult>,
    /// Connections that the listener completed.
    #[serde(default)]
    pub accepted: u64,
    /// SYNs and SYN-ACKs sent again.
    #[serde(default)]
    pub syn_retransmits: u64,
    #[serde(default)]
    pub synack_retransmits: u64,
    /// Segments of established connections sent again.
    #[serde(default)]
    pub retransmits: u64,
    /// Established connections that ended with an error.
    #[serde(default)]
    pub broken: Vec<Broken>,
    /// Smoothed round trip of connections when they began to close.
    #[serde(default)]
    pub round_trip: Histogram,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
}

/// Which end of the connection this namespace has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The service is the peer. Known from the attempt; for what happens to a connection later, the lower port is taken as
    /// the service's.
    Client,
    /// The service is here.
    Server,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectResult {
    pub outcome: Outcome,
    /// The socket's error, 0 when there was none.
    pub errno: i32,
    /// From the first SYN to the result; `time.count` attempts ended this way.
    pub time: Histogram,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Broken {
    pub outcome: Outcome,
    pub errno: i32,
    pub count: u64,
}

/// What became of a connection, by the socket's error.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Established,
    Refused,
    TimedOut,
    Reset,
    Unreachable,
    /// Closed by the application before an answer came.
    Abandoned,
    /// No local port was free (`EADDRNOTAVAIL`).
    NoPort,
    Other,
}

impl TcpGroup {
    /// Attempts that ended this way.
    pub fn ended(&self, outcome: Outcome) -> u64 {
        self.results.iter().filter(|result| result.outcome == outcome).map(|result| result.time.count).sum()
    }

    /// Attempts that ended otherwise than established.
    pub fn failed(&self) -> u64 {
        let failures = self.results.iter().filter(|result| result.outcome != Outcome::Established);
        failures.map(|result| result.time.count).sum()
    }
}
