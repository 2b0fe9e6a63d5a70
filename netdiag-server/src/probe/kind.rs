//! Kinds of probe: their words, what each takes, and what is usual for it.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Kind {
    Tcp,
    Http,
    Dns,
    Tls,
    Udp,
    Icmp,
    Mtu,
    Path,
    Throughput,
    Raw,
    /// From the server's own socket outwards, one rung after the other.
    Ladder,
    /// Every kind of neighbour at once.
    Matrix,
}

impl Kind {
    pub const ALL: [Self; 12] = [
        Self::Tcp,
        Self::Http,
        Self::Dns,
        Self::Tls,
        Self::Udp,
        Self::Icmp,
        Self::Mtu,
        Self::Path,
        Self::Throughput,
        Self::Raw,
        Self::Ladder,
        Self::Matrix,
    ];

    /// The word of the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Http => "http",
            Self::Dns => "dns",
            Self::Tls => "tls",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
            Self::Mtu => "mtu",
            Self::Path => "path",
            Self::Throughput => "throughput",
            Self::Raw => "raw",
            Self::Ladder => "ladder",
            Self::Matrix => "matrix",
        }
    }

    /// Names of the [`Options`](super::Options) that mean something to it.
    pub fn options(self) -> &'static [&'static str] {
        match self {
            Self::Tcp => &["source_port", "close"],
            Self::Http => &[
                "https",
                "path",
                "method",
                "headers",
                "version",
                "redirects",
                "body_bytes",
                "expect",
                "grpc_health",
                "server_name",
                "alpn",
                "authorities",
                "secret",
            ],
            Self::Dns => &["records", "server", "transport", "edns_bytes", "apart", "server_name", "path"],
            Self::Tls => &["server_name", "alpn", "authorities", "secret", "each_version"],
            Self::Udp => &["source_port", "bytes", "payload", "datagrams", "gap_us"],
            Self::Icmp => &["bytes", "ttl", "dont_fragment"],
            Self::Mtu => &["tries", "from_bytes"],
            Self::Path => &["tries", "max_hops", "by"],
            Self::Throughput => &["duration_ms", "max_bytes"],
            Self::Raw => &["source_port", "segment", "flags", "ttl", "bytes", "fragment_bytes"],
            Self::Ladder => &["url", "authorities"],
            Self::Matrix => &[],
        }
    }

    /// Enough to tell a flake from a fault where attempts are cheap; one where each tells much or costs much.
    pub fn usual_count(self) -> u32 {
        match self {
            Self::Tcp | Self::Icmp => 3,
            Self::Ladder => 3,
            // Each of a few endpoints is met: one of three is missed by all of 20 once in 3 000 times.
            Self::Matrix => 20,
            _ => 1,
        }
    }

    /// Made of many ways to one Service.
    pub(super) fn is_of_a_service(self) -> bool {
        matches!(self, Self::Ladder | Self::Matrix)
    }

    pub(super) fn usual_timeout_ms(self) -> u32 {
        match self {
            // A neighbour that does not answer is told after 3.1 s (3 solicitations, 1 s apart, net/core/neighbour.c).
            Self::Tcp | Self::Http | Self::Tls => 5_000,
            // What resolvers wait by themselves: two rounds of two servers with 5 s each (resolv.conf(5)).
            Self::Dns | Self::Mtu | Self::Path => 25_000,
            Self::Udp | Self::Icmp | Self::Raw => 2_000,
            Self::Throughput => 10_000,
            Self::Ladder | Self::Matrix => 3_000,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
