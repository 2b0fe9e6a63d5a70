//! TLS probes: what a server serves, and what is wrong with it.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TlsProbe {
    pub to: SocketAddr,
    /// Of the first connection of each attempt; others have ports of their own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    #[serde(default)]
    pub words: TlsWords,
    /// Also tries TLS 1.2 and 1.3 apart, and the handshake without SNI, each with a connection of its own.
    #[serde(default)]
    pub each_version: bool,
}

/// How to speak and whom to trust.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
pub struct TlsWords {
    /// SNI, and the name that the certificate must have; none: without SNI, and the name is not checked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// ALPN, in order: `h2`, `http/1.1`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub alpn: Vec<String>,
    /// PEM of the authorities to trust; none: the system's where the agent has any, and the chain's own root is told apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TlsReport {
    pub handshake_us: u64,
    /// `TLSv1.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cipher: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alpn: Option<String>,
    /// As served, the server's own first.
    pub chain: Vec<Certificate>,
    pub ocsp_stapled: bool,
    /// A client certificate was asked for.
    pub client_certificate_wanted: bool,
    /// Everything that is wrong at once, worst first.
    pub problems: Vec<TlsProblem>,
    /// The other handshakes, where they were asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<TlsVariant>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub subject: String,
    pub issuer: String,
    /// DNS names and addresses.
    pub names: Vec<String>,
    /// RFC 3339.
    pub not_before: String,
    pub not_after: String,
    /// SHA-256 of the DER, hex.
    pub sha256: String,
    pub serial: String,
}

/// One more handshake of another kind: `TLSv1.2`, `TLSv1.3`, `without SNI`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TlsVariant {
    pub variant: String,
    pub works: bool,
    /// The served certificate's SHA-256, hex, where one was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// What is wrong with a server's TLS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum TlsProblem {
    /// The port speaks no TLS. `spoke`: its first bytes as text, where they are.
    PlainPort {
        spoke: Option<String>,
    },
    Expired {
        not_after: String,
    },
    NotYetValid {
        not_before: String,
    },
    WrongName {
        wanted: String,
        names: Vec<String>,
    },
    UnknownAuthority {
        issuer: String,
    },
    SelfSigned,
    MissingIntermediate {
        issuer: String,
    },
    ClientCertificateWanted,
    /// No version or cipher in common.
    NothingInCommon,
    Alert {
        number: u8,
        words: String,
    },
    Other {
        why: String,
    },
}
