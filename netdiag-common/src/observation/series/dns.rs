//! DNS probes: one query, or the lookup that a program in the pod would make.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// What to ask whom.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DnsProbe {
    /// As it is typed: a search list is applied to it by [`DnsAsking::Lookup`] only.
    pub name: String,
    /// Record types, asked in this order.
    pub records: Vec<DnsType>,
    pub asking: DnsAsking,
    /// UDP payload size of EDNS (RFC 6891); none: no OPT record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edns_bytes: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum DnsAsking {
    /// As glibc's resolver does with the namespace's own resolv.conf: search list, ndots, attempts and timeouts of its options,
    /// its servers in order, TCP where an answer was truncated.
    Lookup {
        /// A and AAAA from one socket at the same time, as glibc does without `single-request`; else one after the other.
        together: bool,
    },
    /// One query for each record type, to this server alone, the name as it is.
    Server { server: SocketAddr, transport: DnsTransport },
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DnsTransport {
    /// UDP, and TCP where the answer was truncated.
    Udp,
    Tcp,
    /// DNS over TLS (RFC 7858); the name that the certificate must have.
    Tls {
        server_name: Option<String>,
    },
    /// DNS over HTTPS (RFC 8484), by POST.
    Https {
        host: String,
        path: String,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum DnsType {
    A,
    Aaaa,
    Cname,
    Mx,
    Ns,
    Ptr,
    Soa,
    Srv,
    Txt,
}

/// Every query of an attempt, in order, and what it came to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsReport {
    pub queries: Vec<DnsQuery>,
    /// Addresses of the final answer.
    pub addresses: Vec<IpAddr>,
    /// `/etc/hosts` has the name, so that no server was asked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub by_hosts: bool,
    /// getaddrinfo(3)'s word where a program would see an error: `EAI_NONAME`, `EAI_AGAIN`, `EAI_NODATA`, `EAI_FAIL`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub getaddrinfo: Option<String>,
    /// How many whole resolver timeouts lie in the elapsed time: 5 s each unless options say otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeouts: Option<DnsTimeouts>,
}

/// Time that was spent waiting for nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsTimeouts {
    pub count: u32,
    pub each_ms: u32,
}

/// One query and its answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DnsQuery {
    pub server: SocketAddr,
    /// `udp`, `tcp`, `tls`, `https`.
    pub transport: String,
    /// The whole name that was asked.
    pub name: String,
    pub record: DnsType,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    pub elapsed_us: u64,
    /// None where no answer was taken: see `failure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<DnsAnswer>,
    /// `no answer in 5000 ms`, `refused (ECONNREFUSED)`, `malformed: …`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Datagrams that came and were no answer: another id, another question, another sender.
    #[serde(default)]
    pub ignored: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DnsAnswer {
    /// `NOERROR`, `NXDOMAIN`, …
    pub rcode: String,
    /// Of the header: `aa`, `tc`, `rd`, `ra`, `ad`, `cd`.
    pub flags: Vec<String>,
    /// `NAME TTL TYPE DATA`, at most 64.
    pub records: Vec<String>,
    pub addresses: Vec<IpAddr>,
    /// The lowest of the answer's, seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u32>,
    /// The zone whose SOA came with a negative answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub soa: Option<String>,
    /// The server's own EDNS size, bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub edns_bytes: Option<u16>,
    pub bytes: u32,
}

impl DnsType {
    pub fn name(self) -> &'static str {
        match self {
            Self::A => "A",
            Self::Aaaa => "AAAA",
            Self::Cname => "CNAME",
            Self::Mx => "MX",
            Self::Ns => "NS",
            Self::Ptr => "PTR",
            Self::Soa => "SOA",
            Self::Srv => "SRV",
            Self::Txt => "TXT",
        }
    }
}

impl std::fmt::Display for DnsType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}
