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

/// Most targets of one assignment.
pub const MAX_TARGETS: usize = 64;
/// Shortest and longest time between two attempts at one target, in milliseconds.
pub const INTERVAL_MS: std::ops::RangeInclusive<u32> = 100..=60_000;
/// Most attempts per second that an agent makes for all its assignments together.
pub const MAX_ATTEMPTS_PER_S: u64 = 100;
/// Longest time that an assignment is carried out without being renewed, in milliseconds.
pub const MAX_LEASE_MS: u32 = 600_000;
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
}

/// Rounds of one asker, oldest first; those in which nothing was scheduled yet are left out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeshReport {
    pub rounds: Vec<RoundReport>,
    /// Targets of the assignment that is answered with this, where the agent may not send; the others are probed.
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
    /// Of the answered attempts. Later phases may join; each has as many times as attempts that reached its end.
    pub phases: BTreeMap<Phase, Times>,
}

/// A part of an attempt that has a time of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// TCP: from the SYN to the established connection.
    Connect,
    /// ICMP: from the request to the reply.
    Echo,
    /// DNS: from the query to the answer.
    Answer,
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
    /// A DNS answer that is not NOERROR.
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
    /// Attempts of a thousand seconds, rounded up.
    pub fn attempts_per_1000s(&self) -> u64 {
        (self.targets.len() as u64 * 1_000_000).div_ceil(u64::from(self.interval_ms.max(1)))
    }
}

impl TargetProbe {
    /// The only phase of its attempts so far.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Tcp { .. } => Phase::Connect,
            Self::Icmp { .. } => Phase::Echo,
            Self::Dns { .. } => Phase::Answer,
        }
    }

    /// Where packets go to; port 0 for ICMP.
    pub fn destination(&self) -> SocketAddr {
        match self {
            Self::Tcp { address, port } => SocketAddr::new(*address, *port),
            Self::Icmp { address } => SocketAddr::new(*address, 0),
            Self::Dns { server, port, .. } => SocketAddr::new(*server, *port),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_or_are_told_apart() {
        let mut counts = Counts { scheduled: 10, answered: 6, untried: 1, open: 1, ..Counts::default() };
        counts.failed.insert(FailureClass::NoAnswer, 2);
        assert!(counts.is_balanced());
        assert_eq!((counts.failures(), counts.told()), (2, 8));
        let mut twice = counts.clone();
        twice.add(&counts);
        assert!(twice.is_balanced());
        assert_eq!((twice.scheduled, twice.failed[&FailureClass::NoAnswer]), (20, 4));
        twice.answered = u64::MAX;
        assert!(!twice.is_balanced(), "also when the terms overflow");
    }

    #[test]
    fn a_request_reads_as_it_was_written() {
        let probe = TargetProbe::Dns {
            server: IpAddr::from([10, 96, 0, 10]),
            port: 53,
            name: "kubernetes.default.svc.cluster.local".to_owned(),
            record: DnsRecord::A,
        };
        let request = MeshRequest::Assign(Assignment {
            asker: "a".to_owned(),
            generation: 3,
            interval_ms: 2_000,
            timeout_ms: 1_000,
            lease_ms: 60_000,
            targets: vec![Target { name: "dns/10.96.0.10:53/dns".to_owned(), probe }],
        });
        let text = serde_json::to_string(&request).unwrap();
        assert!(text.starts_with(r#"{"action":"assign","asker":"a","#), "{text}");
        assert_eq!(serde_json::from_str::<MeshRequest>(&text).unwrap(), request);
    }

    #[test]
    fn names_of_failures_are_those_of_the_wire() {
        for class in [
            FailureClass::Refused,
            FailureClass::Unreachable,
            FailureClass::NoAnswer,
            FailureClass::BadAnswer,
            FailureClass::NotSent,
        ] {
            assert_eq!(serde_json::to_value(class).unwrap(), class.name());
        }
    }
}
