//! DNS queries and answers, as the sockets of the node's pods sent and received them; of all the machine's processes where the
//! kubelet keeps no groups in the cgroup v2 tree (cgroup v1).
//!
//! A query counts once, where its client sends it. What a DNS server on this node received and answered is kept apart.
//! Queries inside TLS, HTTPS or QUIC cannot be seen.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::histogram::Histogram;
use super::{Owner, Protocol};

use crate::Gap;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Dns {
    /// The window's start; counts are what happened since.
    pub since: Timestamp,
    /// Seconds of the window.
    pub window_s: f64,
    /// Of the whole kernel, not only of this node's namespaces.
    pub accounts: DnsAccounts,
    /// What was asked, by namespace, server and protocol; most queries first.
    pub clients: Vec<DnsClient>,
    /// What servers on this node were asked, by namespace, address and protocol; most queries first.
    #[serde(default)]
    pub servers: Vec<DnsServer>,
    /// Clients and servers beyond those listed; their messages are in `accounts` all the same.
    #[serde(default)]
    pub omitted_groups: u64,
    /// The names asked most, by namespace; most queries first. From the transactions whose names were read.
    #[serde(default)]
    pub names: Vec<DnsName>,
    /// How many names were read and how many of them a search list made, by namespace.
    #[serde(default)]
    pub reading: Vec<DnsNames>,
    /// Queries that failed, were repeated or cut off; newest first, a few of each kind.
    #[serde(default)]
    pub exemplars: Vec<DnsExemplar>,
    /// What this kernel or these rights do not let us say.
    #[serde(default)]
    pub unseen: Vec<Gap>,
}

/// Each term has its own counter. The identity, in queries:
/// `queries + open_before = answered + unanswered + unparsed + shed + open + unaccounted`, where `unaccounted` must be 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsAccounts {
    /// Messages that clients sent to a DNS port, without repeats of a query that is still open.
    pub queries: u64,
    /// Queries that were open when the window began.
    #[serde(default)]
    pub open_before: u64,
    /// Queries whose answer reached the socket that had asked.
    pub answered: u64,
    /// Queries that nobody answered within [`DnsAccounts::patience_ms`] of the last try.
    pub unanswered: u64,
    /// Messages to a DNS port that are no query: too short, an answer, several questions, another opcode.
    pub unparsed: u64,
    /// Queries that found the table of open queries full: counted here, not followed.
    pub shed: u64,
    /// Queries that still wait for their answer.
    pub open: u64,
    /// How long a query waits before it counts as unanswered. Resolvers repeat after 5 s or less.
    pub patience_ms: u64,
    /// Queries sent again from the same socket with the same id.
    pub retries: u64,
    /// Answers that nobody waits for: late, double, or to a query that was shed.
    pub unmatched: u64,
    /// TCP segments between or behind messages, which are not looked into.
    pub tcp_rest: u64,
    /// Closed queries in no group because the kernel's set was full; part of the terms above.
    pub ungrouped: u64,
    /// Closed queries of namespaces that are not this node's; part of the terms above, in no group.
    pub foreign_netns: u64,
    /// Queries that arrived at servers on this kernel, and the answers that these sent; a segment that TCP sends again counts
    /// again.
    pub served_queries: u64,
    pub served_answers: u64,
    /// Closed queries whose names were read.
    pub names_read: u64,
    /// Closed queries whose names were held back by the rate limit, or lost because the ring was full.
    pub names_suppressed: u64,
    pub names_lost: u64,
    /// Closed queries whose group user space forgot because its window was full; part of the terms above.
    pub forgotten: u64,
}

impl DnsAccounts {
    /// What the identity cannot explain; 0 unless a counter lies.
    pub fn unaccounted(&self) -> i64 {
        let parts = self.answered + self.unanswered + self.unparsed + self.shed + self.open;
        (self.queries + self.open_before).cast_signed() - parts.cast_signed()
    }
}

/// What one namespace asked one server. Counts are of closed queries: those answered, given up or shed in the window.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DnsClient {
    pub netns: Owner,
    /// Where the packet went: a Service's address from a pod, but the endpoint's from the node's own namespace, which translates
    /// packets before they are seen.
    pub server: SocketAddr,
    pub protocol: Protocol,
    /// The server is on this node: a link-local address, or one that a socket of the node itself serves (NodeLocal DNSCache).
    #[serde(default)]
    pub node_local: bool,
    pub answered: u64,
    pub unanswered: u64,
    pub shed: u64,
    pub retries: u64,
    /// Retries that came 4.5 to 5.5 s after the try before: the default timeout of glibc and musl.
    pub retries_after_5s: u64,
    /// Answers with TC set: the client has to ask again by TCP.
    pub truncated: u64,
    /// Answers with NOERROR and no record.
    pub empty: u64,
    /// By name as in the IANA registry "DNS RCODEs": NOERROR, NXDOMAIN, …; what has no counter of its own is OTHER.
    pub rcodes: BTreeMap<String, u64>,
    /// By type of the question: A, AAAA, …; what has no counter of its own is OTHER.
    pub types: BTreeMap<String, u64>,
    /// From the first try to the answer: what the application waited.
    pub latency: Histogram,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
}

/// What arrived at one server's socket on this node, and what it sent back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsServer {
    pub netns: Owner,
    /// The address that the clients' packets had when they arrived.
    pub address: SocketAddr,
    pub protocol: Protocol,
    pub queries: u64,
    pub answers: u64,
    pub truncated: u64,
    pub rcodes: BTreeMap<String, u64>,
    pub first_at: Timestamp,
    pub last_at: Timestamp,
}

/// One name that one namespace asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsName {
    pub netns: Owner,
    /// Lower case, absolute, without the last dot; bytes that are not printable ASCII as `\DDD` (RFC 1035 §5.1).
    pub name: String,
    /// `A`, `AAAA`, …, `TYPE65534`.
    pub record: String,
    /// While the name had a place in a bounded table (space-saving counts): at most `excess` of them are other names'.
    pub queries: u64,
    #[serde(default)]
    pub excess: u64,
    pub nxdomain: u64,
    /// Other answers than NOERROR and NXDOMAIN.
    pub failed: u64,
    pub unanswered: u64,
    pub retries: u64,
    pub longest_us: u64,
}

/// The names of one namespace together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsNames {
    pub netns: Owner,
    /// Closed queries whose names were read.
    pub read: u64,
    /// Of these, in names that are not listed.
    pub rest: u64,
    /// Of these, answered NXDOMAIN and followed within 5 s by the next name that a search list makes of the same word.
    pub search_tries: u64,
    /// Of these, names with a whole cluster name in front of the suffix: `a.b.svc.cluster.local.b.svc.cluster.local`.
    pub doubled_suffix: u64,
    /// One of the names that a search list made.
    #[serde(default)]
    pub search_example: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsExemplar {
    /// When the first try was sent.
    pub at: Timestamp,
    pub netns: Owner,
    pub server: SocketAddr,
    pub protocol: Protocol,
    /// As in [`DnsName::name`]; empty when the question is broken.
    pub name: String,
    pub record: String,
    /// As in [`DnsClient::rcodes`], with the number for others; None: nobody answered.
    pub rcode: Option<String>,
    pub truncated: bool,
    /// How often it was sent.
    pub tries: u32,
    /// Until the answer; None when there was none.
    pub latency_us: Option<u64>,
}
