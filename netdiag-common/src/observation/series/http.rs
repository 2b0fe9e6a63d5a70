//! HTTP probes: HTTP/1.1, HTTP/2 and gRPC health, by curl's phases.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use super::tls::{TlsReport, TlsWords};

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HttpProbe {
    /// `http://` or `https://`; its host is looked up by the namespace's resolv.conf unless it is an address or `to` is given.
    pub url: String,
    /// Connects here whatever the URL says; Host and SNI stay the URL's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    /// Of the first request's connection; those of redirects have ports of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    pub version: HttpVersion,
    /// `GET`, `HEAD`, `OPTIONS`; nothing that changes a server.
    pub method: String,
    /// `Host` overrides the URL's.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<(String, String)>,
    #[serde(default)]
    pub tls: TlsWords,
    /// The exchange goes on as if the certificate were good, with the asker's header fields and redirects. What is wrong with it is
    /// told all the same: as the failure of an attempt that has no other.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub any_certificate: bool,
    /// Redirects that are followed; at most 10, each to an address that the agent allows.
    pub redirects: u8,
    /// Bytes of the body that are read; at most 1 MiB. The rest is not awaited.
    pub body_bytes: u32,
    /// Statuses that are a success; empty: 200 to 399.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expect: Vec<u16>,
    /// grpc.health.v1.Health/Check of this service (empty: the server as a whole), by HTTP/2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_health: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HttpVersion {
    /// By ALPN over TLS, else HTTP/1.1.
    #[default]
    Any,
    Http1,
    /// Over plain TCP with prior knowledge.
    Http2,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HttpReport {
    /// One per request: the first and each redirect, in order.
    pub exchanges: Vec<HttpExchange>,
    /// The last exchange's TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<TlsReport>,
    /// `SERVING`, `NOT_SERVING`, `UNKNOWN`, `SERVICE_UNKNOWN`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_health: Option<String>,
    /// gRPC's own status of the answer, of head or trailers (gRPC's doc/statuscodes.md): HTTP's is 200 beside nearly all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HttpExchange {
    pub url: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<SocketAddr>,
    pub phases: HttpPhases,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// `HTTP/1.1`, `HTTP/2`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Who answered: `server`, `via`, `proxy-status`, `x-envoy-*`, `grpc-*`, `location`, `retry-after`, `content-type`, `content-length`; values cut at 256 bytes.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body that were read, and whether that was all of it.
    pub body_bytes: u64,
    pub whole: bool,
}

/// Each from its own start, microseconds; none where it was not reached or not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HttpPhases {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lookup_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connect_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_us: Option<u64>,
    /// From when the request was sent to the first byte of the answer: curl's time_starttransfer less its time_pretransfer. Of HTTP/2
    /// from when it was to be sent to the head.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_byte_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_us: Option<u64>,
    /// Until the answer was read; closing the connection is not in it, as in curl's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total_us: Option<u64>,
}
