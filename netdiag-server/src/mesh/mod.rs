//! The continuous mesh: who probes whom, round after round, what came of it, and what of that breaks its target.
//!
//! [`assign`], [`plan`], [`ledger`], [`judge`] and [`metrics`] are pure; [`rounds`] asks the agents.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub mod assign;
pub mod judge;
pub mod ledger;
pub mod metrics;
mod odds;
pub mod plan;
pub mod recorded;
pub mod rounds;
pub mod target;

pub use target::{ProbeTarget, UserTarget};

/// How long a round lasts, in milliseconds. Then other neighbours are probed, and what came of it is collected.
pub const ROUND_MS: u32 = 20_000;
/// Between two attempts at one target, in milliseconds: ten in a round.
pub const INTERVAL_MS: u32 = 2_000;
/// Of one attempt, in milliseconds: also a SYN that was lost once (RFC 6298, 1 s) fails, since what is looked for is loss.
pub const TIMEOUT_MS: u32 = 1_000;
/// What an agent goes on for without hearing from the server, in milliseconds: two rounds that were not renewed.
pub const LEASE_MS: u32 = 3 * ROUND_MS;
/// Targets that users may name.
pub const MAX_USER_TARGETS: usize = 16;

/// What such a target may have between two attempts, in milliseconds. Agents count its intervals from the beginning of each round,
/// whose end would cut any other one short.
pub fn user_intervals_ms() -> impl Iterator<Item = u32> {
    (INTERVAL_MS..=ROUND_MS).step_by(INTERVAL_MS as usize).filter(|ms| ROUND_MS.is_multiple_of(*ms))
}

/// What a mesh probes besides nodes, and what it has to hold.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    pub targets: Vec<UserTarget>,
    /// Where the peers' agents listen: their TCP target.
    pub agent_port: u16,
    pub slo: Slo,
}

/// The targets of service: breaking one is a finding.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct Slo {
    /// Share of attempts that may fail, 0 to 1.
    pub loss: f64,
    /// What 99 of 100 answers must keep, in microseconds.
    pub p99_us: u64,
}

impl Default for Slo {
    /// One in a thousand, and 100 ms: within one cluster both are generous.
    fn default() -> Self {
        Self { loss: 0.001, p99_us: 100_000 }
    }
}

/// What is probed, and how: the name of a target on the wire.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Subject {
    pub role: Role,
    pub kind: Kind,
}

/// What a target is to the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Another node, by its name.
    Peer(String),
    /// One replica of the cluster's DNS.
    Dns(SocketAddr),
    /// The cluster IP of Service default/kubernetes.
    Api,
    /// What a user named.
    User(String),
}

/// How a target is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Kind {
    Tcp,
    Icmp,
    /// ICMP echo to the IPv4 address of a peer whose first address is IPv6.
    Icmp4,
    /// ICMP echo to the IPv6 address of a peer whose first address is IPv4.
    Icmp6,
    Dns,
    /// TCP connect and a TLS handshake.
    Tls,
    /// A URL: the name's lookup, the connection and the answer.
    Http,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Icmp => "icmp",
            Self::Icmp4 => "icmp4",
            Self::Icmp6 => "icmp6",
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::Http => "http",
        }
    }

    /// What it is one of where families are not told apart.
    pub fn of_any_family(self) -> Self {
        match self {
            Self::Icmp4 | Self::Icmp6 => Self::Icmp,
            kind => kind,
        }
    }
}

impl Subject {
    pub fn new(role: Role, kind: Kind) -> Self {
        Self { role, kind }
    }
}

/// `peer/n2/tcp`, `dns/10.244.0.3:53/dns`, `api/kubernetes/tcp`, `user/registry/tcp`: no part has a slash.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.role {
            Role::Peer(node) => write!(f, "peer/{node}")?,
            Role::Dns(server) => write!(f, "dns/{server}")?,
            Role::Api => write!(f, "api/kubernetes")?,
            Role::User(name) => write!(f, "user/{name}")?,
        }
        write!(f, "/{}", self.kind.name())
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("{text:?} names no target of ours");
        let mut parts = text.split('/');
        let (Some(role), Some(name), Some(kind), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(unknown());
        };
        let kind = match kind {
            "tcp" => Kind::Tcp,
            "icmp" => Kind::Icmp,
            "icmp4" => Kind::Icmp4,
            "icmp6" => Kind::Icmp6,
            "dns" => Kind::Dns,
            "tls" => Kind::Tls,
            "http" => Kind::Http,
            _ => return Err(unknown()),
        };
        let role = match role {
            "peer" if !name.is_empty() => Role::Peer(name.to_owned()),
            "dns" => Role::Dns(name.parse().map_err(|_| unknown())?),
            "api" => Role::Api,
            "user" if !name.is_empty() => Role::User(name.to_owned()),
            _ => return Err(unknown()),
        };
        Ok(Self { role, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_read_as_they_were_written() {
        for subject in [
            Subject::new(Role::Peer("n2.example".to_owned()), Kind::Icmp),
            Subject::new(Role::Peer("n2".to_owned()), Kind::Icmp6),
            Subject::new(Role::Dns("[fd00::a]:53".parse().unwrap()), Kind::Dns),
            Subject::new(Role::Api, Kind::Tcp),
            Subject::new(Role::User("registry".to_owned()), Kind::Tcp),
            Subject::new(Role::User("web".to_owned()), Kind::Http),
        ] {
            assert_eq!(subject.to_string().parse(), Ok(subject));
        }
        for wrong in ["", "peer", "peer//tcp", "peer/n1/smtp", "dns/x/dns", "peer/n1/tcp/more", "who/n1/tcp"] {
            assert!(wrong.parse::<Subject>().is_err(), "{wrong}");
        }
    }
}
