//! Targets that users name: `NAME=ADDRESS:PORT` on a command line, or entries of a file with a kind, an interval and more.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use netdiag_common::observation::mesh::{MAX_AUTHORITIES_BYTES, not_a_host};
use netdiag_common::observation::probe::{DnsRecord, MAX_PROBE_TIMEOUT_MS};
use reqwest::Url;
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{INTERVAL_MS, Kind, user_intervals_ms};

/// Of a target's name, in bytes.
const MAX_NAME_BYTES: usize = 63;
/// Statuses that one target may expect: there are 500.
const MAX_STATUSES: usize = 500;
/// RFC 1035 §2.3.4, without the last label's length.
const MAX_DNS_NAME_BYTES: usize = 253;
const MAX_LABEL_BYTES: usize = 63;
/// Every node is told of it in each round.
const MAX_URL_BYTES: usize = 2_048;
const DNS_PORT: u16 = 53;

/// An entry of a file of targets, as it is written there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeTarget {
    pub name: String,
    pub kind: TargetKind,
    /// tcp, tls: HOST:PORT. icmp: HOST. http, https: a URL. dns: the name to ask for. A HOST is an address, or the whole name of a
    /// Service: `web.shop.svc.cluster.local`.
    pub to: String,
    /// Between two attempts: one of [`user_intervals_ms`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<String>,
    /// Of one attempt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// http, https: statuses that are an answer; 200 to 399 without.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub status: Vec<u16>,
    /// dns: whom to ask, ADDRESS or ADDRESS:PORT; the cluster's DNS Service without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<String>,
    /// dns: A or AAAA.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub record: Option<String>,
    /// tls: SNI, and the name that the certificate must have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
    /// tls, https: PEM of the authorities to trust.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authorities: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TargetKind {
    Tcp,
    Tls,
    Icmp,
    Http,
    Https,
    Dns,
}

/// A target that can be planned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserTarget {
    pub name: String,
    pub aim: Aim,
    /// Probed once in so many of the mesh's intervals.
    pub every: u32,
    /// Of one attempt, where it is not the mesh's own.
    pub timeout_ms: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Aim {
    Tcp { host: Host, port: u16 },
    Tls { host: Host, port: u16, server_name: Option<String>, authorities: Option<String> },
    Icmp { host: Host },
    Http { url: String, is_of_service: bool, expect: Vec<u16>, authorities: Option<String> },
    Dns { name: String, record: DnsRecord, server: Option<SocketAddr> },
}

/// Where a target is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Address(IpAddr),
    /// The cluster IP of a Service.
    Service {
        namespace: String,
        name: String,
    },
}

impl UserTarget {
    pub fn kind(&self) -> Kind {
        match &self.aim {
            Aim::Tcp { .. } => Kind::Tcp,
            Aim::Tls { .. } => Kind::Tls,
            Aim::Icmp { .. } => Kind::Icmp,
            Aim::Http { .. } => Kind::Http,
            Aim::Dns { .. } => Kind::Dns,
        }
    }
}

/// `NAME=ADDRESS:PORT`, probed by TCP.
impl FromStr for UserTarget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let usage = || format!("use NAME=ADDRESS:PORT, IPv6 in brackets, instead of {text:?}");
        let (name, address) = text.split_once('=').ok_or_else(usage)?;
        check_name(name)?;
        let address: SocketAddr = address.parse().map_err(|_| usage())?;
        if address.port() == 0 {
            return Err(usage());
        }
        single_host(address.ip())?;
        let aim = Aim::Tcp { host: Host::Address(address.ip()), port: address.port() };
        Ok(Self { name: name.to_owned(), aim, every: 1, timeout_ms: None })
    }
}

/// As it was read from a command line; what a file has says more than fits there.
impl fmt::Display for UserTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.aim {
            Aim::Tcp { host: Host::Address(address), port } => {
                write!(f, "{}={}", self.name, SocketAddr::new(*address, *port))
            }
            _ => write!(f, "{} by {}", self.name, self.kind().name()),
        }
    }
}

/// Entries of `targets:` of a file in YAML. An error names the entry.
pub fn parse(text: &str) -> Result<Vec<ProbeTarget>, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        targets: Vec<Value>,
    }
    let file: File = serde_saphyr::from_str(text).map_err(|error| format!("no list of targets: {error}"))?;
    let entry = |(number, value): (usize, Value)| {
        let name = value.get("name").and_then(Value::as_str).map(|name| format!(" ({name})")).unwrap_or_default();
        let place = |why: String| format!("entry {}{name} of targets: {why}", number + 1);
        let target: ProbeTarget = serde_json::from_value(value).map_err(|error| place(error.to_string()))?;
        target.check().map_err(place)?;
        Ok(target)
    };
    file.targets.into_iter().enumerate().map(entry).collect()
}

impl ProbeTarget {
    /// What it means. The error is a clause without its name.
    pub fn check(&self) -> Result<UserTarget, String> {
        check_name(&self.name)?;
        self.only_known_fields()?;
        let (to, authorities) = (self.to.as_str(), self.authorities.clone());
        authorities.as_deref().map_or(Ok(()), check_authorities)?;
        let aim = match self.kind {
            TargetKind::Tcp => {
                let (host, port) = host_and_port(to)?;
                Aim::Tcp { host, port }
            }
            TargetKind::Tls => {
                let (host, port) = host_and_port(to)?;
                let server_name = self.server_name.clone().or_else(|| name_of(&host, to));
                if let Some(name) = server_name.clone().filter(|name| ServerName::try_from(name.clone()).is_err()) {
                    return Err(format!("server_name {name:?} is no name that a certificate can have"));
                }
                Aim::Tls { host, port, server_name, authorities }
            }
            TargetKind::Icmp => Aim::Icmp { host: host(to)? },
            TargetKind::Http => self.url("http", None)?,
            TargetKind::Https => self.url("https", authorities)?,
            TargetKind::Dns => Aim::Dns {
                name: dns_name(to)?,
                record: match self.record.as_deref() {
                    None | Some("A") => DnsRecord::A,
                    Some("AAAA") => DnsRecord::Aaaa,
                    Some(other) => return Err(format!("record {other:?}: use A or AAAA")),
                },
                server: self.server.as_deref().map(dns_server).transpose()?,
            },
        };
        Ok(UserTarget { name: self.name.clone(), aim, every: self.every()?, timeout_ms: self.timeout_ms()? })
    }

    fn only_known_fields(&self) -> Result<(), String> {
        use TargetKind::{Dns, Http, Https, Tls};
        for (field, is_given, kinds) in [
            ("status", !self.status.is_empty(), &[Http, Https][..]),
            ("server", self.server.is_some(), &[Dns]),
            ("record", self.record.is_some(), &[Dns]),
            ("server_name", self.server_name.is_some(), &[Tls]),
            ("authorities", self.authorities.is_some(), &[Tls, Https]),
        ] {
            if is_given && !kinds.contains(&self.kind) {
                return Err(format!("{field} means nothing to kind {}", self.kind.name()));
            }
        }
        Ok(())
    }

    fn url(&self, scheme: &str, authorities: Option<String>) -> Result<Aim, String> {
        if self.to.len() > MAX_URL_BYTES {
            return Err(format!("a URL of {} bytes, {MAX_URL_BYTES} are the limit", self.to.len()));
        }
        let url = Url::parse(&self.to).map_err(|error| format!("{:?} is no URL: {error}", self.to))?;
        let host = url.host_str().unwrap_or_default();
        if url.scheme() != scheme || host.is_empty() || url.port() == Some(0) {
            return Err(format!("{:?}: use {scheme}://HOST[:PORT]/PATH", self.to));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("a URL with a user is not asked: every node would know the password".to_owned());
        }
        if let Some(wrong) = self.status.iter().find(|status| !(100..600).contains(*status)) {
            return Err(format!("status {wrong}: use 100 to 599"));
        }
        if self.status.len() > MAX_STATUSES {
            return Err(format!("{} statuses, {MAX_STATUSES} are the limit", self.status.len()));
        }
        let is_of_service = service_of(host)?.is_some();
        Ok(Aim::Http { url: url.to_string(), is_of_service, expect: self.status.clone(), authorities })
    }

    fn every(&self) -> Result<u32, String> {
        let Some(text) = &self.interval else { return Ok(1) };
        let asked_ms = milliseconds(text);
        let Some(interval_ms) = user_intervals_ms().find(|ms| asked_ms == Some(*ms)) else {
            let all: Vec<String> = user_intervals_ms().map(|ms| format!("{}s", ms / 1_000)).collect();
            return Err(format!("interval {text:?}: use one of {}", all.join(", ")));
        };
        Ok(interval_ms / INTERVAL_MS)
    }

    fn timeout_ms(&self) -> Result<Option<u32>, String> {
        let Some(text) = &self.timeout else { return Ok(None) };
        let wrong = || format!("timeout {text:?}: use a time such as 500ms or 2s, {MAX_PROBE_TIMEOUT_MS}ms at most");
        let timeout_ms = milliseconds(text).filter(|ms| (1..=MAX_PROBE_TIMEOUT_MS).contains(ms)).ok_or_else(wrong)?;
        Ok(Some(timeout_ms))
    }
}

impl TargetKind {
    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls => "tls",
            Self::Icmp => "icmp",
            Self::Http => "http",
            Self::Https => "https",
            Self::Dns => "dns",
        }
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME_BYTES || !name.chars().all(is_plain) {
        return Err(format!(
            "{name:?} cannot name a target: use up to {MAX_NAME_BYTES} letters, digits, '-', '_' and '.'"
        ));
    }
    Ok(())
}

fn host_and_port(to: &str) -> Result<(Host, u16), String> {
    let usage = || format!("{to:?}: use HOST:PORT, IPv6 in brackets");
    let (host_text, port) = to.rsplit_once(':').ok_or_else(usage)?;
    let port = port.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(usage)?;
    let is_bare_v6 = host_text.contains(':') && !host_text.starts_with('[');
    if is_bare_v6 { Err(usage()) } else { Ok((host(host_text)?, port)) }
}

fn host(text: &str) -> Result<Host, String> {
    if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
        single_host(address)?;
        return Ok(Host::Address(address));
    }
    let usage = || format!("{text:?}: use an address, or a Service's whole name: NAME.NAMESPACE.svc.DOMAIN");
    service_of(text)?.ok_or_else(usage)
}

/// What agents would refuse is refused here, where only this entry is lost by it, and not a whole assignment.
fn single_host(address: IpAddr) -> Result<(), String> {
    match not_a_host(address) {
        Some(why) => Err(format!("{address} is no single host: {why}")),
        None => Ok(()),
    }
}

/// The Service of a name of the cluster's DNS; none where it is another name.
fn service_of(host: &str) -> Result<Option<Host>, String> {
    let labels: Vec<&str> = host.trim_end_matches('.').split('.').collect();
    match labels[..] {
        [name, namespace, "svc"] => {
            Err(format!("{host:?}: write the whole name, as {name}.{namespace}.svc.cluster.local"))
        }
        [name, namespace, "svc", ..] => {
            Ok(Some(Host::Service { namespace: namespace.to_owned(), name: name.to_owned() }))
        }
        _ => Ok(None),
    }
}

/// The name of a Service as it was written, which its certificate should have.
fn name_of(host: &Host, to: &str) -> Option<String> {
    let name = to.rsplit_once(':').map(|(name, _)| name.trim_end_matches('.').to_owned());
    if matches!(host, Host::Service { .. }) { name } else { None }
}

/// As [`single_host`]: agents take no label that begins with a hyphen, and one dot at the end.
fn dns_name(text: &str) -> Result<String, String> {
    let labels = text.strip_suffix('.').unwrap_or(text).split('.');
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let is_label = |label: &str| {
        (1..=MAX_LABEL_BYTES).contains(&label.len()) && !label.starts_with('-') && label.chars().all(is_plain)
    };
    if text.len() > MAX_DNS_NAME_BYTES || !labels.into_iter().all(is_label) {
        return Err(format!("{text:?} is no name to ask a DNS server for"));
    }
    Ok(text.to_owned())
}

fn check_authorities(pem: &str) -> Result<(), String> {
    if pem.len() > MAX_AUTHORITIES_BYTES {
        return Err(format!("authorities of {} bytes, {MAX_AUTHORITIES_BYTES} are the limit", pem.len()));
    }
    let read: Result<Vec<CertificateDer<'_>>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    let certificates = read.map_err(|error| format!("the authorities are no PEM: {error}"))?;
    let (usable, _) = RootCertStore::empty().add_parsable_certificates(certificates);
    if usable == 0 {
        return Err("the authorities hold no usable certificate; give PEM blocks CERTIFICATE".to_owned());
    }
    Ok(())
}

fn dns_server(text: &str) -> Result<SocketAddr, String> {
    let address = text.parse::<IpAddr>().map(|address| SocketAddr::new(address, DNS_PORT));
    let server = address.or_else(|_| text.parse::<SocketAddr>()).ok().filter(|server| server.port() > 0);
    let usage = || format!("server {text:?}: use ADDRESS or ADDRESS:PORT, IPv6 with a port in brackets");
    let server = server.ok_or_else(usage)?;
    single_host(server.ip())?;
    Ok(server)
}

/// `2s`, `500ms`.
fn milliseconds(text: &str) -> Option<u32> {
    let (digits, factor) = match text.strip_suffix("ms") {
        Some(digits) => (digits, 1),
        None => (text.strip_suffix('s')?, 1_000),
    };
    digits.parse::<u32>().ok()?.checked_mul(factor)
}

#[cfg(test)]
mod tests;
