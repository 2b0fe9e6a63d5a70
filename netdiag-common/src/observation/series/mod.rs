//! A series: attempts of one probe on a schedule, from one network namespace.
//!
//! Facts only: what was sent, what came back, who said so, and what was not tried. What an attempt met is told by class, errno
//! and stage; nothing is averaged away.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

pub mod dns;
pub mod http;
pub mod path;
pub mod tls;
pub mod transport;

pub use dns::{DnsProbe, DnsReport};
pub use http::{HttpProbe, HttpReport};
pub use path::{PathMtuProbe, PathMtuReport, PathProbe, PathReport, ThroughputProbe, ThroughputReport};
pub use tls::{TlsProbe, TlsReport};
pub use transport::{IcmpProbe, IcmpReport, RawProbe, RawReport, TcpProbe, TcpReport, UdpProbe, UdpReport};

/// Most attempts of one request. A longer series is several requests.
pub const MAX_SERIES_ATTEMPTS: u32 = 100_000;
/// Attempts that are told one by one; the rest is in the counts and times only.
pub const MAX_KEPT_ATTEMPTS: usize = 1_000;
/// Attempts at the same time.
pub const MAX_SERIES_PARALLEL: u16 = 1_000;
/// Longest timeout of one attempt, milliseconds.
pub const MAX_ATTEMPT_TIMEOUT_MS: u32 = 25_000;
/// Longest time of one series, milliseconds: below the longest answer of an agent.
pub const MAX_SERIES_MS: u64 = 30_000;

/// What to send, how often, and as whom. The limits above are the agent's, whatever a server asks.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SeriesRequest {
    pub probe: Probe,
    /// 1 to [`MAX_SERIES_ATTEMPTS`].
    pub count: u32,
    /// From one attempt's scheduled start to the next one's, microseconds, by an absolute schedule. 0: each as soon as there is a place.
    pub interval_us: u64,
    /// Of each attempt as a whole.
    pub timeout_ms: u32,
    /// Attempts that may be on their way at one time; 1: one after the other.
    pub parallel: u16,
    #[serde(default)]
    pub identity: Identity,
    /// Who asked, for the agent's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub asked_by: Option<String>,
}

/// As whom packets are sent, where it matters to rules and meshes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct Identity {
    /// Owner of the sockets (fsuid while they are made): what `meta skuid` and `-m owner` see.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// SO_MARK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
}

/// One kind of probe with its words.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Probe {
    Tcp(TcpProbe),
    Dns(DnsProbe),
    Http(HttpProbe),
    Tls(TlsProbe),
    Udp(UdpProbe),
    Icmp(IcmpProbe),
    PathMtu(PathMtuProbe),
    Path(PathProbe),
    Throughput(ThroughputProbe),
    Raw(RawProbe),
}

/// What came of a series.
///
/// Identities: `asked = made + untried`, `made = succeeded + failed`, `made = attempts.len() + not_kept`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SeriesResult {
    pub asked: u32,
    pub made: u32,
    pub succeeded: u32,
    pub failed: u32,
    /// Not begun at all: the time was over, or the node's caps were reached.
    pub untried: u32,
    /// Why the first of the untried was not tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub untried_because: Option<String>,
    /// Begun more than a millisecond after their scheduled time.
    pub late: u32,
    /// In order of their numbers; failed ones are kept before successful ones where there are too many.
    pub attempts: Vec<SeriesAttempt>,
    pub not_kept: u32,
    /// Times of all attempts that succeeded, by phase: `connect`, `lookup`, `tls`, `first_byte`, `total`, `rtt`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub times: Vec<PhaseTimes>,
    /// From the request to the first packet, microseconds: entering the namespace and making the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entered_us: Option<u64>,
    /// What could not be seen beside the attempts, in words with a remedy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unseen: Vec<String>,
}

/// How long one phase took, over all attempts that got through it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PhaseTimes {
    pub phase: String,
    pub count: u64,
    pub min_us: u64,
    pub p50_us: u64,
    pub p90_us: u64,
    pub p99_us: u64,
    pub max_us: u64,
    /// The whole histogram, base64 of HdrHistogram's V2 serialization: merged exactly where several are shown as one.
    pub histogram: String,
}

/// One attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeriesAttempt {
    /// 0 for the first.
    pub number: u32,
    /// Begun so long after the series, microseconds.
    pub at_us: u64,
    /// From its start to its end, microseconds.
    pub elapsed_us: u64,
    /// What the socket was bound to when it sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<SocketAddr>,
    /// Whom it was sent to; port 0 where the protocol has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    /// Where the node's connection tracking translated `to`: the endpoint behind a Service's address. None where it was not
    /// translated, or its entry was not found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<SocketAddr>,
    /// Why it is not a success. A report may be there beside it: a certificate that is wrong, an answer 503.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<ProbeFailure>,
    #[serde(default, skip_serializing_if = "ProbeReport::is_nothing")]
    pub report: ProbeReport,
}

/// What was learnt, by kind.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ProbeReport {
    /// Nothing came back at all.
    #[default]
    Nothing,
    Tcp(TcpReport),
    Dns(DnsReport),
    Http(Box<HttpReport>),
    Tls(Box<TlsReport>),
    Udp(UdpReport),
    Icmp(IcmpReport),
    PathMtu(PathMtuReport),
    Path(PathReport),
    Throughput(ThroughputReport),
    Raw(RawReport),
}

/// How an attempt failed: at which stage, as what, and who said so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProbeFailure {
    pub stage: ProbeStage,
    pub class: FailureClass,
    /// The kernel's error by its name: `ECONNREFUSED`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// Who sent the reset or the ICMP error. None for silence and for what this kernel decided itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said_by: Option<IpAddr>,
    /// The ICMP error, where one said so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub icmp: Option<IcmpError>,
    /// A clause for people: `no answer to 2 SYNs in 3000 ms`.
    pub why: String,
}

/// An ICMP error's type and code (RFC 792, RFC 4443).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IcmpError {
    pub kind: u8,
    pub code: u8,
    /// As people know it: `port unreachable`.
    pub words: String,
    /// The MTU that a "too big" names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// Where in its life an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ProbeStage {
    /// The namespace could not be entered, the socket not made or bound.
    Socket,
    /// A name was looked up.
    Lookup,
    Connect,
    Tls,
    /// The request was sent.
    Send,
    /// Waiting for the first byte of the answer.
    Answer,
    /// In the middle of the answer.
    Body,
    /// After our FIN.
    Close,
}

/// As what an attempt failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FailureClass {
    /// RST to a SYN, or ICMP port unreachable.
    Refused,
    /// Nothing came before the timeout.
    Silence,
    /// ICMP said unreachable or prohibited, or there is no route: EHOSTUNREACH, ENETUNREACH, EACCES, EPERM.
    Unreachable,
    /// RST after the handshake.
    Reset,
    /// The far side closed before it answered.
    Closed,
    /// The far side spoke another protocol, or broke this one.
    Protocol,
    /// DNS: the answer says that it failed: NXDOMAIN, SERVFAIL, REFUSED.
    Rcode,
    /// DNS: the name exists without a record of this type.
    NoData,
    /// TLS: what was served is not to be trusted.
    Certificate,
    /// TLS: an alert of the far side.
    Alert,
    /// HTTP: a status of 400 and above, or one that was not expected; gRPC: not SERVING.
    Status,
    /// A packet was too big for the path and nobody said so, or somebody did.
    TooBig,
    /// What the agent allows was reached: bytes, redirects.
    Limit,
    /// This node could not do it.
    Local,
}

impl ProbeReport {
    pub fn is_nothing(&self) -> bool {
        matches!(self, Self::Nothing)
    }
}

impl SeriesAttempt {
    pub fn succeeded(&self) -> bool {
        self.failure.is_none()
    }
}

impl Probe {
    /// The word of the command line, of metrics and of logs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Tcp(_) => "tcp",
            Self::Dns(_) => "dns",
            Self::Http(_) => "http",
            Self::Tls(_) => "tls",
            Self::Udp(_) => "udp",
            Self::Icmp(_) => "icmp",
            Self::PathMtu(_) => "mtu",
            Self::Path(_) => "path",
            Self::Throughput(_) => "throughput",
            Self::Raw(_) => "raw",
        }
    }
}

impl Probe {
    /// What it is sent to, for logs and messages: an address with its port where it has one, a URL, a name.
    pub fn target(&self) -> String {
        match self {
            Self::Tcp(probe) => probe.to.to_string(),
            Self::Dns(probe) => match &probe.asking {
                dns::DnsAsking::Lookup { .. } => probe.name.clone(),
                dns::DnsAsking::Server { server, .. } => format!("{} at {server}", probe.name),
            },
            Self::Http(probe) => probe.url.clone(),
            Self::Tls(probe) => probe.to.to_string(),
            Self::Udp(probe) => probe.to.to_string(),
            Self::Icmp(probe) => probe.to.to_string(),
            Self::PathMtu(probe) => probe.to.to_string(),
            Self::Path(probe) => probe.to.to_string(),
            Self::Throughput(probe) => probe.to.to_string(),
            Self::Raw(probe) => probe.to.to_string(),
        }
    }
}

impl std::fmt::Display for ProbeStage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Socket => "socket",
            Self::Lookup => "lookup",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::Send => "send",
            Self::Answer => "answer",
            Self::Body => "body",
            Self::Close => "close",
        })
    }
}

impl std::fmt::Display for FailureClass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Refused => "refused",
            Self::Silence => "silence",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Protocol => "protocol",
            Self::Rcode => "rcode",
            Self::NoData => "no_data",
            Self::Certificate => "certificate",
            Self::Alert => "alert",
            Self::Status => "status",
            Self::TooBig => "too_big",
            Self::Limit => "limit",
            Self::Local => "local",
        })
    }
}
