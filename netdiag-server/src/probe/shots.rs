//! What each kind of probe sends, from its words and the ends of the path.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::observation::series::dns::{DnsAsking, DnsProbe, DnsTransport, DnsType};
use netdiag_common::observation::series::http::HttpVersion;
use netdiag_common::observation::series::path::PathBy;
use netdiag_common::observation::series::tls::TlsWords;
use netdiag_common::observation::series::transport::RawSegment;
use netdiag_common::observation::series::{
    HttpProbe, IcmpProbe, PathMtuProbe, PathProbe, Probe, RawProbe, TcpProbe, ThroughputProbe, TlsProbe, UdpProbe,
};

use super::kind::Kind;
use super::plan::{Ends, PlanError, Shot, needs_port};
use super::words::{Family, Options, ProbeRequest, Segment, Transport};
use crate::evidence::Cluster;
use crate::path;

/// ping's, bytes.
const ECHO_BYTES: u16 = 56;
/// Two packets can be lost by chance where one is sent after the other.
const USUAL_TRIES: u8 = 2;
const USUAL_HOPS: u8 = 16;
const USUAL_DURATION_MS: u32 = 3_000;
const USUAL_MAX_BYTES: u64 = 64 << 20;
/// The most that is read of a body unless told otherwise.
const USUAL_BODY_BYTES: u32 = 64 << 10;
/// Where traceroute(8) begins: nobody listens there.
const TRACEROUTE_PORT: u16 = 33_434;
pub(super) const DNS_PORT: u16 = 53;
pub(super) const DNS_TLS_PORT: u16 = 853;
const HTTPS_PORT: u16 = 443;
/// RFC 8484, 4.1.1: what every server of it uses.
const DNS_QUERY_PATH: &str = "/dns-query";
/// FIN to URG as the header's 13th byte has them.
const FLAGS: [&str; 6] = ["fin", "syn", "rst", "psh", "ack", "urg"];
const SYN: u8 = 2;

/// The probe to one address.
pub(super) fn at(request: &ProbeRequest, ends: &Ends) -> Result<Shot, PlanError> {
    if needs_port(request) && ends.port.is_none() {
        return Err(PlanError::Port { to: request.to.clone(), kind: request.kind });
    }
    let to = SocketAddr::new(ends.address, ends.port.unwrap_or(0));
    let options = &request.options;
    let probe = match request.kind {
        Kind::Tcp => {
            Probe::Tcp(TcpProbe { to, source_port: options.source_port, close: options.close.unwrap_or_default() })
        }
        Kind::Http => {
            let host = ends.name.clone().unwrap_or_else(|| host_of(ends.address));
            return url(request, &url_of(request, &host, ends.port), Some(to));
        }
        Kind::Tls => Probe::Tls(TlsProbe {
            to,
            source_port: None,
            words: tls(options, ends.name.as_deref()),
            each_version: options.each_version,
        }),
        Kind::Udp => Probe::Udp(UdpProbe {
            to,
            source_port: options.source_port,
            bytes: options.bytes.unwrap_or(32),
            payload: options.payload.as_ref().map(|payload| payload.as_bytes().to_vec()),
            datagrams: options.datagrams.unwrap_or(3),
            gap_us: options.gap_us.unwrap_or(10_000),
        }),
        Kind::Icmp => Probe::Icmp(IcmpProbe {
            to: ends.address,
            bytes: options.bytes.unwrap_or(ECHO_BYTES),
            ttl: options.ttl,
            dont_fragment: options.dont_fragment,
            scope: None,
            identifier: None,
        }),
        Kind::Mtu => Probe::PathMtu(PathMtuProbe {
            // Without a port asked for, echoes: a Service's port would be met by the UDP of nobody.
            to: SocketAddr::new(ends.address, if ends.name.is_some() { 0 } else { to.port() }),
            from_bytes: options.from_bytes,
            tries: options.tries.unwrap_or(USUAL_TRIES),
            source_port: None,
        }),
        Kind::Path => {
            let by = options.by.unwrap_or(if to.port() == 0 { PathBy::Icmp } else { PathBy::Tcp });
            let port = match by {
                PathBy::Icmp => 0,
                PathBy::Udp if to.port() == 0 => TRACEROUTE_PORT,
                PathBy::Udp | PathBy::Tcp => to.port(),
            };
            Probe::Path(PathProbe {
                to: SocketAddr::new(ends.address, port),
                by,
                max_hops: options.max_hops.unwrap_or(USUAL_HOPS),
                tries: options.tries.unwrap_or(USUAL_TRIES),
                source_port: None,
            })
        }
        Kind::Throughput => Probe::Throughput(ThroughputProbe {
            to,
            duration_ms: options.duration_ms.unwrap_or(USUAL_DURATION_MS),
            max_bytes: options.max_bytes.unwrap_or(USUAL_MAX_BYTES),
        }),
        Kind::Raw => Probe::Raw(RawProbe {
            to,
            source_port: options.source_port,
            segment: segment(options)?,
            ttl: options.ttl,
            bytes: options.bytes.unwrap_or(0),
            fragment_bytes: options.fragment_bytes,
        }),
        Kind::Dns | Kind::Ladder | Kind::Matrix => {
            return Err(PlanError::Target {
                to: request.to.clone(),
                wanted: "a name for dns, a Service for the others",
            });
        }
    };
    Ok(Shot { to: shown(to), probe })
}

/// Without the port where there is none.
pub(super) fn shown(to: SocketAddr) -> String {
    if to.port() == 0 { to.ip().to_string() } else { to.to_string() }
}

/// As it stands in a URL.
pub(super) fn host_of(address: IpAddr) -> String {
    match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("[{address}]"),
    }
}

/// The URL of a host that was not named by one.
pub(super) fn url_of(request: &ProbeRequest, host: &str, port: Option<u16>) -> String {
    let options = &request.options;
    let scheme = if options.https { "https" } else { "http" };
    let path = options.path.as_deref().unwrap_or("/");
    let slash = if path.starts_with('/') { "" } else { "/" };
    let port = port.map(|port| format!(":{port}")).unwrap_or_default();
    format!("{scheme}://{host}{port}{slash}{path}")
}

/// The probe of a URL; `to` is where it connects whatever the URL says.
pub(super) fn url(request: &ProbeRequest, url: &str, to: Option<SocketAddr>) -> Result<Shot, PlanError> {
    let options = &request.options;
    let known = url.parse::<http::Uri>().ok().filter(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some_and(|host| !host.is_empty())
    });
    let Some(uri) = known else {
        return Err(PlanError::Word {
            what: "the URL",
            given: url.to_owned(),
            wanted: "http://HOST[:PORT]/PATH or https://…",
        });
    };
    let method = options.method.as_deref().unwrap_or("GET").to_ascii_uppercase();
    if !["GET", "HEAD", "OPTIONS"].contains(&method.as_str()) {
        let wanted = "GET, HEAD or OPTIONS: a probe changes nothing";
        return Err(PlanError::Word { what: "the method", given: method, wanted });
    }
    let headers = options.headers.iter().map(|header| {
        let parts = header.split_once(':').map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned()));
        parts.filter(|(name, _)| !name.is_empty()).ok_or_else(|| PlanError::Word {
            what: "the header",
            given: header.clone(),
            wanted: "NAME: VALUE",
        })
    });
    let probe = Probe::Http(HttpProbe {
        url: url.to_owned(),
        to,
        source_port: None,
        version: match (options.version, &options.grpc_health) {
            (Some(version), _) => version,
            (None, Some(_)) if uri.scheme_str() == Some("http") => HttpVersion::Http2,
            (None, _) => HttpVersion::Any,
        },
        method,
        headers: headers.collect::<Result<_, _>>()?,
        tls: tls(options, uri.host().filter(|host| is_name(host))),
        any_certificate: options.any_certificate,
        redirects: options.redirects.unwrap_or(0),
        body_bytes: options.body_bytes.unwrap_or(USUAL_BODY_BYTES),
        expect: options.expect.clone(),
        grpc_health: options.grpc_health.clone(),
    });
    Ok(Shot { to: to.map_or_else(|| url.to_owned(), |to| format!("{url} at {to}")), probe })
}

fn is_name(host: &str) -> bool {
    host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().is_err()
}

fn tls(options: &Options, name: Option<&str>) -> TlsWords {
    TlsWords {
        server_name: options.server_name.clone().or_else(|| name.map(str::to_owned)),
        alpn: options.alpn.clone(),
        authorities: options.authorities.clone(),
    }
}

fn segment(options: &Options) -> Result<RawSegment, PlanError> {
    match options.segment.unwrap_or_default() {
        Segment::Udp => return Ok(RawSegment::Udp),
        Segment::Echo => return Ok(RawSegment::Echo),
        Segment::Tcp => {}
    }
    let mut flags = 0;
    for word in &options.flags {
        let Some(bit) = FLAGS.iter().position(|flag| flag.eq_ignore_ascii_case(word)) else {
            return Err(PlanError::Word {
                what: "the flag",
                given: word.clone(),
                wanted: "fin, syn, rst, psh, ack or urg",
            });
        };
        flags |= 1 << bit;
    }
    Ok(RawSegment::Tcp { flags: if options.flags.is_empty() { SYN } else { flags } })
}

/// The lookup of a name: as a program makes it, or by the server that was named.
pub(super) fn dns(request: &ProbeRequest, name: &str, cluster: &Cluster) -> Result<Vec<Shot>, PlanError> {
    let port = dns_port(&request.options);
    let by = |server: SocketAddr| {
        let asking = DnsAsking::Server { server, transport: transport(&request.options) };
        query(request, name, format!("{name} by {server}"), asking)
    };
    let Some(text) = request.options.server.as_deref() else { return Ok(vec![lookup(request, name)]) };
    let wanted = "ADDRESS, ADDRESS:PORT, service/NAMESPACE/NAME or each";
    let strange = || PlanError::Word { what: "the server", given: text.to_owned(), wanted };
    if let Some((namespace, name)) = text.strip_prefix("service/").and_then(|rest| rest.split_once('/')) {
        let service = path::exists(&cluster.services, "Service", namespace, name)?;
        return Ok(service.cluster_ips().into_iter().map(|ip| by((ip, port).into())).collect());
    }
    let address = text.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, port));
    Ok(vec![by(address.or_else(|_| text.parse::<SocketAddr>()).map_err(|_| strange())?)])
}

/// As a program of the client's pod looks it up.
pub(super) fn lookup(request: &ProbeRequest, name: &str) -> Shot {
    query(request, name, name.to_owned(), DnsAsking::Lookup { together: !request.options.apart })
}

pub(super) fn query(request: &ProbeRequest, name: &str, to: String, asking: DnsAsking) -> Shot {
    let (records, edns_bytes) = (records(request), request.options.edns_bytes);
    Shot { to, probe: Probe::Dns(DnsProbe { name: name.to_owned(), records, asking, edns_bytes }) }
}

/// Of servers whose port is not said.
pub(super) fn dns_port(options: &Options) -> u16 {
    match options.transport.unwrap_or_default() {
        Transport::Udp | Transport::Tcp => DNS_PORT,
        Transport::Tls => DNS_TLS_PORT,
        Transport::Https => HTTPS_PORT,
    }
}

/// A program asks for the families that it may use.
pub(super) fn records(request: &ProbeRequest) -> Vec<DnsType> {
    match (request.options.records.as_slice(), request.family) {
        ([], Family::Any) => vec![DnsType::A, DnsType::Aaaa],
        ([], Family::Ipv4) => vec![DnsType::A],
        ([], Family::Ipv6) => vec![DnsType::Aaaa],
        (given, _) => given.to_vec(),
    }
}

pub(super) fn transport(options: &Options) -> DnsTransport {
    match options.transport.unwrap_or_default() {
        Transport::Udp => DnsTransport::Udp,
        Transport::Tcp => DnsTransport::Tcp,
        Transport::Tls => DnsTransport::Tls { server_name: options.server_name.clone() },
        Transport::Https => DnsTransport::Https {
            host: options.server_name.clone().unwrap_or_default(),
            path: options.path.clone().unwrap_or_else(|| DNS_QUERY_PATH.to_owned()),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_any_certificate_will_do_is_the_askers_word() {
        for wanted in [false, true] {
            let mut request = ProbeRequest::new(Kind::Http, "node/n1", "https://a.example/");
            request.options.any_certificate = wanted;
            let shot = url(&request, &request.to, None).expect("a shot");
            let Probe::Http(probe) = shot.probe else { panic!("another probe") };
            assert_eq!(probe.any_certificate, wanted);
        }
    }
}
