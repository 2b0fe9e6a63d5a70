//! What is asked for when somebody probes: the same words on the command line, in the API and over MCP.

use netdiag_common::observation::series::MAX_SERIES_PARALLEL;
use netdiag_common::observation::series::dns::DnsType;
use netdiag_common::observation::series::http::HttpVersion;
use netdiag_common::observation::series::path::PathBy;
use netdiag_common::observation::series::transport::TcpClose;
use serde::{Deserialize, Serialize};

use super::kind::Kind;

/// `POST /v1/probe`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeRequest {
    pub kind: Kind,
    /// `pod/NAMESPACE/NAME` or `node/NAME`.
    pub from: String,
    /// `pod/NAMESPACE/NAME:PORT`, `service/NAMESPACE/NAME:PORT`, `node/NAME:PORT`, `NAME:PORT`, `ADDRESS:PORT` or a URL.
    pub to: String,
    #[serde(default)]
    pub family: Family,
    /// Attempts to each address; none: what is usual for the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<u32>,
    /// From one attempt's start to the next one's, microseconds; 0: as soon as there is a place.
    #[serde(default)]
    pub interval_us: u64,
    /// Of each attempt, milliseconds; none: what is usual for the kind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// Attempts that may be on their way at one time.
    #[serde(default = "one", skip_serializing_if = "is_one")]
    pub parallel: u16,
    /// Owner of the sockets, as `meta skuid` and meshes see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// SO_MARK.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<u32>,
    /// One attempt after the other, each followed by the kernels of the nodes on its way, until one fails. Of a ladder or matrix:
    /// what failed first, sent once more.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub follow: bool,
    /// Namespaces whose pods may send; nodes may not then. None: whichever the asker's own rights allow. Those end what is sent in any
    /// case; this is what the command line found out about them before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub only_from: Option<Vec<String>>,
    #[serde(default)]
    pub options: Options,
}

/// Which addresses of the target.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Family {
    /// Each that it has.
    #[default]
    Any,
    Ipv4,
    Ipv6,
}

/// Words of single kinds. Which kind takes which is [`Kind::options`].
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[expect(clippy::struct_excessive_bools, reason = "each is a word of its own")]
pub struct Options {
    /// Every attempt from this port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// How TCP ends: `orderly`, `half_close` or `reset`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub close: Option<TcpClose>,
    /// Payload, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u16>,
    /// What to send instead of an echo's payload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<String>,
    /// Datagrams of one attempt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub datagrams: Option<u16>,
    /// Between the datagrams of one attempt, microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gap_us: Option<u32>,
    /// TTL or hop limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dont_fragment: bool,
    /// DNS: types of records.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub records: Vec<DnsType>,
    /// DNS: `ADDRESS[:PORT]`, `service/NAMESPACE/NAME`, or `each` for every server that a lookup may meet; none: as a program asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// DNS: how to ask a server.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edns_bytes: Option<u16>,
    /// DNS: one record type after the other, as glibc does with `single-request`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub apart: bool,
    /// HTTP: TLS, where `to` is no URL.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub https: bool,
    /// HTTP: where `to` is no URL. DNS over HTTPS: of the queries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub method: Option<String>,
    /// HTTP: `NAME: VALUE`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<HttpVersion>,
    /// Redirects that are followed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub redirects: Option<u8>,
    /// Bytes of the body that are read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_bytes: Option<u32>,
    /// Statuses that are a success.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<u16>,
    /// The service that grpc.health.v1.Health is asked about; empty: the server as a whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_health: Option<String>,
    /// SNI, and the name that the certificate must have.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<String>,
    /// PEM of the authorities to trust.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authorities: Option<String>,
    /// HTTP: goes on whatever certificate is served, which stays a failure. No word of requests: only modules of `GET /probe` say it.
    #[serde(skip)]
    pub any_certificate: bool,
    /// TLS, HTTP: `NAMESPACE/NAME` of the Secret that the served certificate is compared with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    /// TLS: also each version apart, and without SNI.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub each_version: bool,
    /// Packets of each size or hop.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tries: Option<u8>,
    /// Path MTU: where the search begins, bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from_bytes: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_hops: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<PathBy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_bytes: Option<u64>,
    /// Raw: `tcp`, `udp` or `echo`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub segment: Option<Segment>,
    /// Raw TCP: flags by their names, `syn,ack`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fragment_bytes: Option<u16>,
    /// Ladder: a last rung, the URL under which people come from outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// How a DNS server is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    #[default]
    Udp,
    Tcp,
    Tls,
    Https,
}

/// What a crafted packet carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Segment {
    #[default]
    Tcp,
    Udp,
    Echo,
}

/// A neighbour that does not answer is told after 3.1 s; longer than that a tag need not stay.
const FOLLOWED_TIMEOUT_MS: u32 = 3_500;
/// The same of hops and of a search: many packets, one after the other.
const FOLLOWED_WALK_MS: u32 = 10_000;

fn one() -> u16 {
    1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_one(parallel: &u16) -> bool {
    *parallel == 1
}

impl ProbeRequest {
    /// One question in the usual way.
    pub fn new(kind: Kind, from: &str, to: &str) -> Self {
        Self {
            kind,
            from: from.to_owned(),
            to: to.to_owned(),
            family: Family::Any,
            count: None,
            interval_us: 0,
            timeout_ms: None,
            parallel: 1,
            uid: None,
            mark: None,
            follow: false,
            only_from: None,
            options: Options::default(),
        }
    }

    pub fn count(&self) -> u32 {
        let is_alone = self.follow && !self.kind.is_of_a_service();
        self.count.unwrap_or_else(|| if is_alone { 1 } else { self.kind.usual_count() })
    }

    pub fn timeout_ms(&self) -> u32 {
        let of_duration = |duration: u32| duration.saturating_add(5_000);
        self.timeout_ms.unwrap_or_else(|| match (self.kind, self.options.duration_ms) {
            (Kind::Throughput, Some(duration)) => of_duration(duration),
            (Kind::Path | Kind::Mtu, _) if self.follow => FOLLOWED_WALK_MS,
            _ if self.follow => FOLLOWED_TIMEOUT_MS,
            _ => self.kind.usual_timeout_ms(),
        })
    }

    /// With an interval so many that one which is not answered delays no other; one port holds one connection.
    pub fn usual_parallel(&self) -> u16 {
        if self.options.source_port.is_some() {
            return 1;
        }
        let in_time = (u64::from(self.timeout_ms()) * 1_000).checked_div(self.interval_us).unwrap_or(1);
        u16::try_from(in_time).unwrap_or(u16::MAX).clamp(1, MAX_SERIES_PARALLEL)
    }

    /// Options that are given and mean nothing to the kind.
    pub fn strange_options(&self) -> Vec<String> {
        let Ok(serde_json::Value::Object(given)) = serde_json::to_value(&self.options) else { return Vec::new() };
        given.keys().filter(|key| !self.kind.options().contains(&key.as_str())).cloned().collect()
    }
}

impl Family {
    pub fn holds(self, address: std::net::IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::Ipv4 => address.is_ipv4(),
            Self::Ipv6 => address.is_ipv6(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_belongs_to_a_kind_and_every_name_is_an_option() {
        let known = serde_json::json!({
            "source_port": 1, "close": "reset", "bytes": 1, "payload": "a", "datagrams": 1, "gap_us": 1, "ttl": 1,
            "dont_fragment": true, "records": ["A"], "server": "a", "transport": "tcp", "edns_bytes": 1, "apart": true,
            "https": true, "path": "/", "method": "GET", "headers": ["a: b"], "version": "http1", "redirects": 1,
            "body_bytes": 1, "expect": [200], "grpc_health": "", "server_name": "a", "alpn": ["h2"], "authorities": "a",
            "secret": "a/b", "each_version": true, "tries": 1, "from_bytes": 1, "max_hops": 1, "by": "udp", "duration_ms": 1,
            "max_bytes": 1, "segment": "tcp", "flags": ["syn"], "fragment_bytes": 8, "url": "http://a",
        });
        let options: Options = serde_json::from_value(known.clone()).expect("all options");
        let written = serde_json::to_value(&options).expect("options are JSON");
        assert_eq!(written, known, "an option is lost or new");
        let names: Vec<&str> = Kind::ALL.iter().flat_map(|kind| kind.options()).copied().collect();
        for name in &names {
            assert!(known.get(name).is_some(), "{name} is no option");
        }
        for name in known.as_object().expect("options").keys() {
            assert!(names.contains(&name.as_str()), "{name} belongs to no kind");
        }
    }

    #[test]
    fn what_a_kind_does_not_know_is_named() {
        let text = r#"{"kind": "tcp", "from": "node/n1", "to": "node/n2:22", "options": {"ttl": 3, "source_port": 5}}"#;
        let request: ProbeRequest = serde_json::from_str(text).expect("a request");
        assert_eq!(request.strange_options(), ["ttl"]);
        assert_eq!((request.count(), request.timeout_ms(), request.parallel), (3, 5_000, 1));
    }

    #[test]
    fn no_request_goes_on_with_any_certificate() {
        let text = r#"{"kind": "http", "from": "node/n1", "to": "https://a", "options": {"any_certificate": true}}"#;
        let error = serde_json::from_str::<ProbeRequest>(text).expect_err("an unknown word");
        assert!(error.to_string().contains("unknown field `any_certificate`"), "{error}");
    }
}
