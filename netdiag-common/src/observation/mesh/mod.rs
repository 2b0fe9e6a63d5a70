//! The continuous mesh: what an agent probes again and again, and what came of it.
//!
//! The server assigns, the agent runs the assignment for as long as it is renewed, and reports counts that obey an identity:
//! scheduled = answered + failed + untried + open.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::probe::DnsRecord;

mod times;

pub use times::{LONGEST_US, SIGNIFICANT_DIGITS, Times, TimesError, empty};

/// Most targets of one assignment: twenty peers of two address families by three probes each, and what is probed besides.
pub const MAX_TARGETS: usize = 96;
/// Shortest and longest time between two attempts at one target, in milliseconds.
pub const INTERVAL_MS: std::ops::RangeInclusive<u32> = 100..=60_000;
/// Most attempts per second that an agent makes for all its assignments together: for all targets of two assignments, one with an
/// attempt every two seconds, as a server keeps it, and one with one in each second, as who looks besides asks for.
pub const MAX_ATTEMPTS_PER_S: u64 = 150;
/// Longest time that an assignment is carried out without being renewed, in milliseconds.
pub const MAX_LEASE_MS: u32 = 600_000;
/// A target's turn comes in every interval, or in each one of so many at most: a minute of the usual interval.
pub const EVERY: std::ops::RangeInclusive<u32> = 1..=30;
/// Longest PEM of the authorities that a target's certificate may come from, in bytes: four certificates, and all of an
/// assignment's stay below what an agent reads of a request.
pub const MAX_AUTHORITIES_BYTES: usize = 8 * 1024;
/// Longest name of an asker or a target, in bytes: a node's name is at most 253.
pub const MAX_NAME_BYTES: usize = 320;
/// Askers whose assignments one agent carries out side by side: a server, and somebody who looks besides.
pub const MAX_ASKERS: usize = 2;
/// Rounds that an agent keeps of one asker: the one at work and those before it, so that attempts that were still open when
/// a round ended are told with the next report.
pub const KEPT_ROUNDS: usize = 3;

/// What the server wants of an agent's mesh.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum MeshRequest {
    /// Carry this out from now on, in place of what the same asker assigned before; the same generation again renews it.
    Assign(Assignment),
    /// Only report. Renews nothing.
    Look { asker: String },
}

/// What to probe, again and again, until the lease ends.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Assignment {
    /// Random for each start of who assigns: assignments of different askers run side by side.
    pub asker: String,
    /// Grows with each assignment of this asker.
    pub generation: u64,
    /// Between two attempts at one target; targets are spread evenly over it.
    pub interval_ms: u32,
    /// Of one attempt.
    pub timeout_ms: u32,
    /// The agent stops when nothing was assigned for this long.
    pub lease_ms: u32,
    pub targets: Vec<Target>,
}

/// One thing to probe.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// The server's, echoed in the report.
    pub name: String,
    pub probe: TargetProbe,
    /// Its turn comes once in so many intervals, in the first of them.
    #[serde(default = "in_each", skip_serializing_if = "is_in_each")]
    pub every: u32,
    /// Of one attempt, where it is not the assignment's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
}

fn in_each() -> u32 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde asks so")]
fn is_in_each(every: &u32) -> bool {
    *every == 1
}

/// How a target is probed, always from the node's own namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum TargetProbe {
    /// TCP connect, then an orderly close without payload.
    Tcp { address: IpAddr, port: u16 },
    /// ICMP echo.
    Icmp { address: IpAddr },
    /// One query over UDP. Any answer but NOERROR is a failure.
    Dns { server: IpAddr, port: u16, name: String, record: DnsRecord },
    /// TCP connect and a TLS handshake. A certificate that is not to be trusted is a failure.
    Tls {
        address: IpAddr,
        port: u16,
        /// SNI, and the name that the certificate must have; none: without SNI, and the name is not checked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        server_name: Option<String>,
        /// PEM of the authorities to trust; none: the system's, where the agent has any.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authorities: Option<String>,
    },
    /// GET; redirects are not followed.
    Http {
        /// `http://` or `https://`.
        url: String,
        /// Who is asked for the URL's host, at port 53; none: whom the node's resolv.conf names.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        dns: Option<IpAddr>,
        /// Statuses that are an answer; empty: 200 to 399.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        expect: Vec<u16>,
        /// As of TLS.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        authorities: Option<String>,
    },
}

/// Rounds of one asker, oldest first; those in which nothing was scheduled yet are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshReport {
    pub rounds: Vec<RoundReport>,
    /// Targets of the assignment that is at work, where the agent may not send; the others are probed. What a name stands for is
    /// known only when it was looked up, and is then told of later rounds too until another attempt finds otherwise.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedTarget>,
}

/// A target that is not probed, by the agent's own configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedTarget {
    pub name: String,
    pub why: String,
    pub remedy: String,
}

/// What became of one assignment so far. Counts grow from report to report until `ended` and nothing is open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoundReport {
    pub generation: u64,
    /// The node's wall clock: with the node it names the round, also after the agent was started anew.
    pub started: Timestamp,
    /// Nothing more will be scheduled.
    pub ended: bool,
    /// From when attempts were due until they were made, of all targets: the agent's own delay.
    pub delay: Times,
    pub targets: Vec<TargetReport>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetReport {
    pub name: String,
    pub counts: Counts,
    /// Of the answered attempts as a whole, by [`Phase::Total`] or the only phase there is, and for parts of attempts as many times as
    /// reached the part's end.
    pub phases: BTreeMap<Phase, Times>,
}

/// A part of an attempt that has a time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Phase {
    /// HTTP: from the question for its host's addresses to the answer.
    Lookup,
    /// TCP: from the SYN to the established connection.
    Connect,
    /// ICMP: from the request to the reply.
    Echo,
    /// DNS: from the query to the answer.
    Answer,
    /// TLS, HTTP: the handshake.
    Tls,
    /// HTTP: from the request to the first byte of its answer.
    FirstByte,
    /// TLS, HTTP: the whole attempt.
    Total,
}

/// Attempts at one target: scheduled = answered + failed + untried + open.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// Attempts whose time has come.
    pub scheduled: u64,
    pub answered: u64,
    pub failed: BTreeMap<FailureClass, u64>,
    /// Not made, since the agent was behind by a whole interval or had too many open: says nothing about the network.
    pub untried: u64,
    /// Made, and neither answered nor failed yet.
    pub open: u64,
    /// Of those made, how many were behind their time by more than a timer's slack.
    pub late: u64,
}

/// Why an attempt has no good answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum FailureClass {
    /// RST, or ICMP port unreachable: the host is there and nothing listens.
    Refused,
    /// ICMP or the own kernel: no way to the host.
    Unreachable,
    /// Nothing came before the timeout.
    NoAnswer,
    /// A DNS answer that is not NOERROR, another status than expected, a certificate that is not to be trusted, another protocol.
    BadAnswer,
    /// This node's own kernel would not send it.
    NotSent,
}

impl FailureClass {
    /// As on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::NoAnswer => "no_answer",
            Self::BadAnswer => "bad_answer",
            Self::NotSent => "not_sent",
        }
    }
}

impl MeshRequest {
    pub fn asker(&self) -> &str {
        match self {
            Self::Assign(assignment) => &assignment.asker,
            Self::Look { asker } => asker,
        }
    }
}

impl Assignment {
    /// Attempts of a thousand seconds, rounded up for each target.
    pub fn attempts_per_1000s(&self) -> u64 {
        let interval_ms = u64::from(self.interval_ms.max(1));
        let of = |target: &Target| 1_000_000_u64.div_ceil(interval_ms * u64::from(target.every.max(1)));
        self.targets.iter().map(of).sum()
    }
}

impl Target {
    /// Probed in each interval, with the assignment's timeout.
    pub fn new(name: String, probe: TargetProbe) -> Self {
        Self { name, probe, every: in_each(), timeout_ms: None }
    }
}

impl Phase {
    /// As on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lookup => "lookup",
            Self::Connect => "connect",
            Self::Echo => "echo",
            Self::Answer => "answer",
            Self::Tls => "tls",
            Self::FirstByte => "first_byte",
            Self::Total => "total",
        }
    }
}

impl TargetReport {
    /// Of the answered attempts as a whole; parts have other phases.
    pub fn whole(&self) -> Option<(Phase, &Times)> {
        let total = self.phases.get(&Phase::Total).map(|times| (Phase::Total, times));
        total.or_else(|| self.phases.last_key_value().map(|(phase, times)| (*phase, times)))
    }
}

impl TargetProbe {
    /// The phase that is the whole attempt.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Tcp { .. } => Phase::Connect,
            Self::Icmp { .. } => Phase::Echo,
            Self::Dns { .. } => Phase::Answer,
            Self::Tls { .. } | Self::Http { .. } => Phase::Total,
        }
    }

    /// Where packets go to; port 0 for ICMP. None of a URL, whose host may be a name.
    pub fn destination(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp { address, port } | Self::Tls { address, port, .. } => Some(SocketAddr::new(*address, *port)),
            Self::Icmp { address } => Some(SocketAddr::new(*address, 0)),
            Self::Dns { server, port, .. } => Some(SocketAddr::new(*server, *port)),
            Self::Http { .. } => None,
        }
    }
}

impl Counts {
    pub fn failures(&self) -> u64 {
        self.failed.values().sum()
    }

    /// Attempts that say something about the network: answered or failed.
    pub fn told(&self) -> u64 {
        self.answered + self.failures()
    }

    /// Whether the terms add up.
    pub fn is_balanced(&self) -> bool {
        let terms = [self.answered, self.untried, self.open].into_iter().chain(self.failed.values().copied());
        terms.map(u128::from).sum::<u128>() == u128::from(self.scheduled)
    }

    pub fn add(&mut self, other: &Self) {
        self.scheduled += other.scheduled;
        self.answered += other.answered;
        for (class, count) in &other.failed {
            *self.failed.entry(*class).or_default() += count;
        }
        self.untried += other.untried;
        self.open += other.open;
        self.late += other.late;
    }
}

/// Why nobody probes this address: one packet to it would be answered by many, or by nobody that can be named. None of a single
/// host's.
pub fn not_a_host(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("it is no address"),
        _ if address.is_multicast() => Some("it is multicast"),
        IpAddr::V4(address) if address.is_broadcast() => Some("it is broadcast"),
        IpAddr::V6(address) if address.is_unicast_link_local() => Some("it needs an interface"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
