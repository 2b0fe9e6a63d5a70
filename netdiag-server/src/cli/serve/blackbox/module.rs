//! Modules: what a scrape's `module` stands for. Ours, and those of a file in blackbox_exporter's own format (its CONFIGURATION.md,
//! v0.27), as far as our probes have what it says. A module with something that is not known is refused, with the reason, and the
//! others work: a probe that checks less than it was told to would be well for no reason.

use std::collections::BTreeMap;

use netdiag_common::observation::series::dns::DnsType;
use serde::Deserialize;
use serde_json::Value;

use crate::probe::{Family, Kind, Options, Transport};

/// Go's client stops after ten.
const REDIRECTS: u8 = 10;

/// By name; of those that cannot be probed, why.
#[derive(Debug)]
pub(crate) struct Modules(BTreeMap<String, Result<Module, String>>);

/// One module.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Module {
    pub kind: Kind,
    pub options: Options,
    pub timeout_ms: Option<u64>,
    /// None: IPv6 before IPv4, of those that the node has a way to.
    pub family: Option<Preferred>,
    /// DNS: what is asked for; none: as the scrape says.
    pub query_name: Option<String>,
    pub pass: Pass,
}

/// Which of a name's addresses is probed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Preferred {
    pub is_v6: bool,
    /// The other family where there is none of this one.
    pub falls_back: bool,
}

impl Preferred {
    /// Where nothing else will do.
    pub fn only(self) -> Option<Family> {
        (!self.falls_back).then_some(if self.is_v6 { Family::Ipv6 } else { Family::Ipv4 })
    }
}

/// What makes an answer a success, beside what the probe itself judges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Pass {
    /// HTTP: whether TLS has to be spoken; none: either way.
    pub tls: Option<bool>,
    /// A certificate that is not to be trusted does no harm.
    pub any_certificate: bool,
    /// DNS; empty: NOERROR.
    pub rcodes: Vec<String>,
}

impl Modules {
    /// Ours alone.
    pub(super) fn usual() -> Self {
        let module = |kind, options| Module {
            kind,
            options,
            timeout_ms: None,
            family: None,
            query_name: None,
            pass: Pass::default(),
        };
        let http = Options { expect: (200..300).collect(), redirects: Some(REDIRECTS), ..Options::default() };
        let dns = Options { records: vec![DnsType::A], ..Options::default() };
        let all = [
            ("http_2xx", module(Kind::Http, http)),
            ("tcp_connect", module(Kind::Tcp, Options::default())),
            ("tls_connect", module(Kind::Tls, Options::default())),
            ("icmp", module(Kind::Icmp, Options::default())),
            ("dns", module(Kind::Dns, dns)),
        ];
        Self(all.into_iter().map(|(name, module)| (name.to_owned(), Ok(module))).collect())
    }

    /// Ours, and a file's in place of those of the same name. An error is about the whole file.
    pub(crate) fn of(file: Option<&str>) -> Result<Self, String> {
        let mut modules = Self::usual();
        let Some(text) = file else { return Ok(modules) };
        let file: File = serde_saphyr::from_str(text).map_err(|error| format!("no list of modules: {error}"))?;
        for (name, value) in file.modules {
            let written: Result<Written, String> = serde_json::from_value(value).map_err(|error| error.to_string());
            let module = written.and_then(Written::module).map_err(|why| format!("module {name:?}: {why}"));
            modules.0.insert(name, module);
        }
        Ok(modules)
    }

    /// Why some cannot be probed, each with its name.
    pub(crate) fn refused(&self) -> impl Iterator<Item = &str> {
        self.0.values().filter_map(|module| module.as_ref().err()).map(String::as_str)
    }

    pub(super) fn get(&self, name: &str) -> Result<&Module, String> {
        let Some(module) = self.0.get(name) else {
            let known: Vec<&str> =
                self.0.iter().filter(|(_, module)| module.is_ok()).map(|(name, _)| name.as_str()).collect();
            return Err(format!("there is no module {name:?}; there is {}", known.join(", ")));
        };
        module.as_ref().map_err(String::clone)
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    modules: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    prober: String,
    timeout: Option<String>,
    #[serde(default)]
    http: Http,
    #[serde(default)]
    tcp: Tcp,
    #[serde(default)]
    icmp: Icmp,
    dns: Option<Dns>,
    #[serde(default)]
    grpc: Grpc,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Http {
    valid_status_codes: Vec<u16>,
    method: Option<String>,
    headers: BTreeMap<String, String>,
    follow_redirects: Option<bool>,
    /// What `follow_redirects` was called until v0.19.
    no_follow_redirects: bool,
    fail_if_ssl: bool,
    fail_if_not_ssl: bool,
    tls_config: Tls,
    preferred_ip_protocol: Option<String>,
    ip_protocol_fallback: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tcp {
    tls: bool,
    tls_config: Tls,
    preferred_ip_protocol: Option<String>,
    ip_protocol_fallback: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Icmp {
    dont_fragment: bool,
    payload_size: Option<u16>,
    ttl: Option<u8>,
    preferred_ip_protocol: Option<String>,
    ip_protocol_fallback: Option<bool>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Dns {
    query_name: String,
    query_type: Option<String>,
    transport_protocol: Option<String>,
    #[serde(default)]
    valid_rcodes: Vec<String>,
    preferred_ip_protocol: Option<String>,
    ip_protocol_fallback: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Grpc {
    service: String,
    tls: bool,
    tls_config: Tls,
    preferred_ip_protocol: Option<String>,
    ip_protocol_fallback: Option<bool>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tls {
    insecure_skip_verify: bool,
    server_name: Option<String>,
}

impl Written {
    fn module(self) -> Result<Module, String> {
        let timeout_ms = self.timeout.as_deref().map(milliseconds).transpose()?;
        let mut module = match self.prober.as_str() {
            "http" => self.http.module(),
            "tcp" => self.tcp.module(),
            "icmp" => self.icmp.module(),
            "dns" => self.dns.ok_or("prober dns needs dns.query_name")?.module(),
            "grpc" => self.grpc.module(),
            other => Err(format!("prober {other:?}: use http, tcp, icmp, dns or grpc")),
        }?;
        module.timeout_ms = timeout_ms;
        Ok(module)
    }
}

impl Http {
    fn module(self) -> Result<Module, String> {
        let method = self.method.map(|method| method.to_ascii_uppercase());
        if let Some(other) = method.as_deref().filter(|method| !["GET", "HEAD", "OPTIONS"].contains(method)) {
            return Err(format!("http.method {other:?}: use GET, HEAD or OPTIONS, a probe changes nothing"));
        }
        let tls = match (self.fail_if_ssl, self.fail_if_not_ssl) {
            (true, true) => return Err("http.fail_if_ssl and fail_if_not_ssl cannot both be kept".to_owned()),
            (true, false) => Some(false),
            (false, true) => Some(true),
            (false, false) => None,
        };
        let follows = self.follow_redirects.unwrap_or(!self.no_follow_redirects);
        let expect = self.valid_status_codes;
        let any_certificate = self.tls_config.insecure_skip_verify;
        let options = Options {
            method,
            headers: self.headers.iter().map(|(name, value)| format!("{name}: {value}")).collect(),
            redirects: Some(if follows { REDIRECTS } else { 0 }),
            expect: if expect.is_empty() { (200..300).collect() } else { expect },
            server_name: self.tls_config.server_name,
            any_certificate,
            ..Options::default()
        };
        let family = preferred(self.preferred_ip_protocol.as_deref(), self.ip_protocol_fallback)?;
        let pass = Pass { tls, any_certificate, rcodes: Vec::new() };
        Ok(Module { kind: Kind::Http, options, timeout_ms: None, family, query_name: None, pass })
    }
}

impl Tcp {
    fn module(self) -> Result<Module, String> {
        let Tls { insecure_skip_verify: any_certificate, server_name } = self.tls_config;
        if !self.tls && (any_certificate || server_name.is_some()) {
            return Err("tcp.tls_config means nothing without tcp.tls: true".to_owned());
        }
        let options = Options { server_name, ..Options::default() };
        let family = preferred(self.preferred_ip_protocol.as_deref(), self.ip_protocol_fallback)?;
        let kind = if self.tls { Kind::Tls } else { Kind::Tcp };
        let pass = Pass { any_certificate, ..Pass::default() };
        Ok(Module { kind, options, timeout_ms: None, family, query_name: None, pass })
    }
}

impl Icmp {
    fn module(self) -> Result<Module, String> {
        let options = Options {
            dont_fragment: self.dont_fragment,
            bytes: self.payload_size,
            ttl: self.ttl,
            ..Options::default()
        };
        let family = preferred(self.preferred_ip_protocol.as_deref(), self.ip_protocol_fallback)?;
        let (kind, pass) = (Kind::Icmp, Pass::default());
        Ok(Module { kind, options, timeout_ms: None, family, query_name: None, pass })
    }
}

impl Dns {
    fn module(self) -> Result<Module, String> {
        // Its default; servers may refuse it, and mostly do (RFC 8482).
        let asked = self.query_type.unwrap_or_else(|| "ANY".to_owned());
        let record: DnsType = serde_json::from_value(Value::String(asked.clone()))
            .map_err(|_| format!("dns.query_type {asked:?}: use A, AAAA, CNAME, MX, NS, PTR, SOA, SRV or TXT"))?;
        let transport = match self.transport_protocol.as_deref() {
            None | Some("udp") => Transport::Udp,
            Some("tcp") => Transport::Tcp,
            Some(other) => return Err(format!("dns.transport_protocol {other:?}: use udp or tcp")),
        };
        let options = Options { records: vec![record], transport: Some(transport), ..Options::default() };
        let family = preferred(self.preferred_ip_protocol.as_deref(), self.ip_protocol_fallback)?;
        let pass = Pass { rcodes: self.valid_rcodes, ..Pass::default() };
        let query_name = Some(self.query_name);
        Ok(Module { kind: Kind::Dns, options, timeout_ms: None, family, query_name, pass })
    }
}

impl Grpc {
    fn module(self) -> Result<Module, String> {
        let Tls { insecure_skip_verify: any_certificate, server_name } = self.tls_config;
        let options = Options { grpc_health: Some(self.service), https: self.tls, server_name, ..Options::default() };
        let family = preferred(self.preferred_ip_protocol.as_deref(), self.ip_protocol_fallback)?;
        let pass = Pass { any_certificate, ..Pass::default() };
        Ok(Module { kind: Kind::Http, options, timeout_ms: None, family, query_name: None, pass })
    }
}

fn preferred(protocol: Option<&str>, fallback: Option<bool>) -> Result<Option<Preferred>, String> {
    let falls_back = fallback.unwrap_or(true);
    let is_v6 = match protocol {
        // Its default is ip6, with the other one where there is none.
        None if falls_back => return Ok(None),
        None | Some("ip6") => true,
        Some("ip4") => false,
        Some(other) => return Err(format!("preferred_ip_protocol {other:?}: use ip4 or ip6")),
    };
    Ok(Some(Preferred { is_v6, falls_back }))
}

/// `5s`, `500ms`, `1m`.
fn milliseconds(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        _ => 0,
    };
    match digits.parse::<u64>() {
        Ok(number) if number > 0 && factor > 0 => Ok(number.saturating_mul(factor)),
        _ => Err(format!("timeout {text:?}: use a time such as 500ms, 5s or 1m")),
    }
}

#[cfg(test)]
mod tests;
