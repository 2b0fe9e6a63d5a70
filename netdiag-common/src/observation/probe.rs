//! One active probe from a pod's or the node's network namespace.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What to send. Hard limits are the agent's: see [`MAX_PROBE_TIMEOUT_MS`].
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ProbeRequest {
    /// TCP connect, then close with RST-free shutdown. Sends no payload.
    TcpConnect {
        address: IpAddr,
        port: u16,
        timeout_ms: u32,
        /// Repeats the connect one after the other, for partial failures; 1 for a single one.
        attempts: u8,
        /// What the socket is bound to; none for a port that the kernel chooses.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_port: Option<u16>,
    },
    /// One DNS query over UDP to `server`, without search list.
    Dns {
        server: IpAddr,
        /// The interface of a link-local server, by name or index: `eth0` of `fe80::1%eth0`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        zone: Option<String>,
        port: u16,
        name: String,
        record: DnsRecord,
        timeout_ms: u32,
    },
}

/// Longest timeout of one attempt that an agent accepts, in milliseconds.
pub const MAX_PROBE_TIMEOUT_MS: u32 = 5_000;
/// Most attempts that an agent makes for one request.
pub const MAX_PROBE_ATTEMPTS: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsRecord {
    A,
    Aaaa,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeResult {
    /// One per attempt, in order.
    pub attempts: Vec<Attempt>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attempt {
    /// From the first packet to the outcome, microseconds.
    pub elapsed_us: u64,
    /// Source address and port that were used, when the socket got that far.
    #[serde(default)]
    pub source: Option<std::net::SocketAddr>,
    pub outcome: Outcome,
}

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "snake_case")]
pub enum Outcome {
    /// The handshake completed.
    Connected,
    /// A DNS answer came.
    Answered { rcode: String, addresses: Vec<IpAddr>, truncated: bool },
    /// Nothing came back before the timeout.
    TimedOut { stage: Stage },
    /// The kernel returned an error. `errno` is its name: `ECONNREFUSED`, `EHOSTUNREACH`, `ENETUNREACH`, …
    Failed { stage: Stage, errno: String },
}

/// Where an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The socket could not be made or bound.
    Socket,
    Connect,
    /// Sent, waiting for an answer.
    Answer,
}

impl ProbeResult {
    pub fn succeeded(&self) -> usize {
        self.attempts.iter().filter(|a| matches!(a.outcome, Outcome::Connected | Outcome::Answered { .. })).count()
    }

    pub fn failed(&self) -> usize {
        self.attempts.len() - self.succeeded()
    }
}

impl Outcome {
    pub fn is_refused(&self) -> bool {
        matches!(self, Self::Failed { errno, .. } if errno == "ECONNREFUSED")
    }

    pub fn is_timeout(&self) -> bool {
        matches!(self, Self::TimedOut { .. }) || matches!(self, Self::Failed { errno, .. } if errno == "ETIMEDOUT")
    }

    /// As a sentence's end: `connected`, `refused (ECONNREFUSED)`, `no answer`, …
    pub fn words(&self) -> String {
        match self {
            Self::Connected => "connected".to_owned(),
            Self::Answered { rcode, addresses, .. } if addresses.is_empty() => format!("answered {rcode}"),
            Self::Answered { rcode, addresses, .. } => {
                let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
                format!("answered {rcode}: {}", list.join(", "))
            }
            Self::TimedOut { .. } => "no answer".to_owned(),
            Self::Failed { errno, .. } => match errno.as_str() {
                "ECONNREFUSED" => "refused (ECONNREFUSED)".to_owned(),
                "EHOSTUNREACH" => "host unreachable (EHOSTUNREACH)".to_owned(),
                "ENETUNREACH" => "network unreachable (ENETUNREACH)".to_owned(),
                other => format!("failed ({other})"),
            },
        }
    }
}
