//! The words of each kind of probe on the command line. A new kind is one more variant.

use std::path::PathBuf;

use netdiag_common::observation::series::dns::DnsType;
use netdiag_common::observation::series::http::HttpVersion;
use netdiag_common::observation::series::path::PathBy;
use netdiag_common::observation::series::transport::TcpClose;

use super::super::Failure;
use super::common::{Asked, Common, record, word};
use crate::probe::{Kind, Options, Segment, Transport};

#[derive(Debug, clap::Subcommand)]
pub(super) enum KindArgs {
    /// TCP handshakes: by errno, and who said it
    Tcp(TcpArgs),
    /// HTTP requests by curl's phases; HTTP/2 and gRPC health too
    Http(HttpArgs),
    /// A lookup as a program would make it, or single queries to single servers
    Dns(DnsArgs),
    /// TLS handshakes: what is served, and what is wrong with it
    Tls(TlsArgs),
    /// UDP datagrams and what comes back
    Udp(UdpArgs),
    /// ICMP echo
    Icmp(IcmpArgs),
    /// The largest packet that reaches the target, and who says that larger ones do not
    Mtu(MtuArgs),
    /// The hops to the target, by one tuple
    Path(PathArgs),
    /// Bytes for a short time over one connection
    Throughput(ThroughputArgs),
    /// One crafted packet, for proofs
    Raw(RawArgs),
    /// From the endpoint's own listener outwards, rung after rung, from the pod, a twin and the node
    Ladder(LadderArgs),
    /// Every kind of neighbour at once: same node, other node, self, by name, by family
    Matrix(MatrixArgs),
}

#[derive(Debug, clap::Args)]
pub(super) struct TcpArgs {
    /// Every attempt from this port: finds stale entries of connection tracking
    #[arg(long, value_name = "PORT")]
    source_port: Option<u16>,
    /// How it ends: orderly, half_close or reset
    #[arg(long, value_name = "HOW", value_parser = word::<TcpClose>)]
    close: Option<TcpClose>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct HttpArgs {
    /// TLS, where --to is no URL
    #[arg(long)]
    https: bool,
    /// Where --to is no URL
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// GET, HEAD or OPTIONS
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// `NAME: VALUE`; may be given several times
    #[arg(short = 'H', long, value_name = "HEADER")]
    header: Vec<String>,
    /// any, http1 or http2
    #[arg(long, value_name = "VERSION", value_parser = word::<HttpVersion>)]
    http_version: Option<HttpVersion>,
    /// Redirects that are followed
    #[arg(long, value_name = "NUMBER")]
    redirects: Option<u8>,
    /// Bytes of the body that are read
    #[arg(long, value_name = "BYTES")]
    body_bytes: Option<u32>,
    /// Statuses that are a success; else 200 to 399
    #[arg(long, value_name = "STATUS", value_delimiter = ',')]
    expect: Vec<u16>,
    /// Ask grpc.health.v1.Health about this service; empty for the server as a whole
    #[arg(long, value_name = "SERVICE")]
    grpc_health: Option<String>,
    #[command(flatten)]
    tls: TlsWords,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct TlsWords {
    /// SNI, and the name that the certificate must have
    #[arg(long, value_name = "NAME")]
    server_name: Option<String>,
    /// ALPN, in order
    #[arg(long, value_name = "PROTOCOL", value_delimiter = ',')]
    alpn: Vec<String>,
    /// PEM file of the authorities to trust
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Compare the served certificate with that of this Secret (type kubernetes.io/tls)
    #[arg(long, value_name = "NAMESPACE/NAME")]
    secret: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct DnsArgs {
    /// Types of records
    #[arg(long = "type", value_name = "TYPE", value_delimiter = ',', value_parser = record)]
    record: Vec<DnsType>,
    /// ADDRESS[:PORT], service/NAMESPACE/NAME, or each: those of resolv.conf, the cluster's DNS, the node's cache, upstreams; else as a program asks
    #[arg(long, value_name = "SERVER")]
    server: Option<String>,
    /// How to ask a server
    #[arg(long, value_enum, requires = "server")]
    transport: Option<Transport>,
    /// Payload size of EDNS
    #[arg(long, value_name = "BYTES")]
    edns_bytes: Option<u16>,
    /// One record type after the other
    #[arg(long)]
    apart: bool,
    /// Name in the server's certificate, for DNS over TLS and HTTPS
    #[arg(long, value_name = "NAME", requires = "server")]
    server_name: Option<String>,
    /// Path of the queries, for DNS over HTTPS; else /dns-query
    #[arg(long, value_name = "PATH", requires = "server")]
    path: Option<String>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct TlsArgs {
    /// Also each version apart, and without SNI
    #[arg(long)]
    each_version: bool,
    #[command(flatten)]
    tls: TlsWords,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct UdpArgs {
    #[arg(long, value_name = "PORT")]
    source_port: Option<u16>,
    /// Bytes of payload
    #[arg(long, value_name = "BYTES")]
    bytes: Option<u16>,
    /// What to send, for servers that are no echo
    #[arg(long, value_name = "TEXT", conflicts_with = "bytes")]
    payload: Option<String>,
    /// Datagrams of one attempt, from one socket
    #[arg(long, value_name = "NUMBER")]
    datagrams: Option<u16>,
    /// Between them, microseconds
    #[arg(long, value_name = "MICROSECONDS")]
    gap_us: Option<u32>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct IcmpArgs {
    /// Bytes after the ICMP header
    #[arg(long, value_name = "BYTES")]
    bytes: Option<u16>,
    #[arg(long, value_name = "HOPS")]
    ttl: Option<u8>,
    #[arg(long)]
    dont_fragment: bool,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct MtuArgs {
    /// Packets of each size
    #[arg(long, value_name = "NUMBER")]
    tries: Option<u8>,
    /// Where the search begins
    #[arg(long, value_name = "BYTES")]
    from_bytes: Option<u16>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct PathArgs {
    /// Packets for each hop
    #[arg(long, value_name = "NUMBER")]
    tries: Option<u8>,
    #[arg(long, value_name = "HOPS")]
    max_hops: Option<u8>,
    /// udp, tcp or icmp
    #[arg(long, value_name = "PROTOCOL", value_parser = word::<PathBy>)]
    by: Option<PathBy>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct ThroughputArgs {
    #[arg(long, value_name = "MILLISECONDS")]
    duration_ms: Option<u32>,
    #[arg(long, value_name = "BYTES")]
    max_bytes: Option<u64>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct RawArgs {
    #[arg(long, value_name = "PORT")]
    source_port: Option<u16>,
    #[arg(long, value_enum, default_value = "tcp")]
    segment: Segment,
    /// fin, syn, rst, psh, ack, urg; else syn
    #[arg(long, value_name = "FLAG", value_delimiter = ',')]
    flags: Vec<String>,
    #[arg(long, value_name = "HOPS")]
    ttl: Option<u8>,
    /// Bytes of payload
    #[arg(long, value_name = "BYTES")]
    bytes: Option<u16>,
    /// Cut into fragments of so many bytes each
    #[arg(long, value_name = "BYTES")]
    fragment_bytes: Option<u16>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct LadderArgs {
    /// A last rung: the URL under which people come from outside
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// PEM file of the authorities to trust at Ingresses, Gateways and the URL
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    #[command(flatten)]
    common: Common,
}

#[derive(Debug, clap::Args)]
pub(super) struct MatrixArgs {
    #[command(flatten)]
    common: Common,
}

impl KindArgs {
    pub fn asked(self) -> Result<Asked, Failure> {
        let none = Options::default();
        let (kind, options, common) = match self {
            Self::Tcp(a) => (Kind::Tcp, Options { source_port: a.source_port, close: a.close, ..none }, a.common),
            Self::Http(a) => {
                let options = Options {
                    https: a.https,
                    path: a.path,
                    method: a.method,
                    headers: a.header,
                    version: a.http_version,
                    redirects: a.redirects,
                    body_bytes: a.body_bytes,
                    expect: a.expect,
                    grpc_health: a.grpc_health,
                    ..a.tls.options()?
                };
                (Kind::Http, options, a.common)
            }
            Self::Dns(a) => {
                let options = Options {
                    records: a.record,
                    server: a.server,
                    transport: a.transport,
                    edns_bytes: a.edns_bytes,
                    apart: a.apart,
                    server_name: a.server_name,
                    path: a.path,
                    ..none
                };
                (Kind::Dns, options, a.common)
            }
            Self::Tls(a) => {
                let options = Options { each_version: a.each_version, ..a.tls.options()? };
                (Kind::Tls, options, a.common)
            }
            Self::Udp(a) => {
                let (source_port, bytes, payload) = (a.source_port, a.bytes, a.payload);
                (
                    Kind::Udp,
                    Options { source_port, bytes, payload, datagrams: a.datagrams, gap_us: a.gap_us, ..none },
                    a.common,
                )
            }
            Self::Icmp(a) => {
                (Kind::Icmp, Options { bytes: a.bytes, ttl: a.ttl, dont_fragment: a.dont_fragment, ..none }, a.common)
            }
            Self::Mtu(a) => (Kind::Mtu, Options { tries: a.tries, from_bytes: a.from_bytes, ..none }, a.common),
            Self::Path(a) => (Kind::Path, Options { tries: a.tries, max_hops: a.max_hops, by: a.by, ..none }, a.common),
            Self::Throughput(a) => {
                (Kind::Throughput, Options { duration_ms: a.duration_ms, max_bytes: a.max_bytes, ..none }, a.common)
            }
            Self::Raw(a) => {
                let options = Options {
                    source_port: a.source_port,
                    segment: Some(a.segment),
                    flags: a.flags,
                    ttl: a.ttl,
                    bytes: a.bytes,
                    fragment_bytes: a.fragment_bytes,
                    ..none
                };
                (Kind::Raw, options, a.common)
            }
            Self::Ladder(a) => {
                (Kind::Ladder, Options { url: a.url, authorities: authorities(a.ca)?, ..none }, a.common)
            }
            Self::Matrix(a) => (Kind::Matrix, none, a.common),
        };
        Ok(common.asked(kind, options))
    }
}

impl TlsWords {
    fn options(self) -> Result<Options, Failure> {
        let authorities = authorities(self.ca)?;
        let Self { server_name, alpn, secret, .. } = self;
        Ok(Options { server_name, alpn, authorities, secret, ..Options::default() })
    }
}

/// The PEM of a file.
fn authorities(file: Option<PathBuf>) -> Result<Option<String>, Failure> {
    let Some(path) = file else { return Ok(None) };
    #[expect(clippy::disallowed_methods, reason = "a file that the user names")]
    let read = std::fs::read_to_string(&path);
    read.map(Some).map_err(|error| Failure(format!("cannot read {}: {error}", path.display())))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::probe::ProbeRequest;

    /// As the program's own command, which gives `--version` to each of its subcommands.
    #[derive(Debug, clap::Parser)]
    #[command(version, propagate_version = true)]
    struct Line {
        #[command(subcommand)]
        kind: KindArgs,
    }

    fn asked(line: &str) -> ProbeRequest {
        let line = Line::try_parse_from(format!("probe {line} --from pod/shop/client --to web.shop:80").split(' '));
        line.expect("a line").kind.asked().expect("a request").request
    }

    #[test]
    fn no_two_options_share_a_name() {
        <Line as clap::CommandFactory>::command().debug_assert();
    }

    #[test]
    fn each_kind_takes_the_options_it_offers() {
        for (line, kind) in [
            ("tcp --source-port 4000 --close reset -c 10 --interval 10ms", Kind::Tcp),
            ("http --path /healthz --expect 200,204 --http-version http2 --method HEAD --alpn h2", Kind::Http),
            ("http --https --secret shop/web-tls", Kind::Http),
            ("dns --type a,AAAA --server each --transport tcp --apart", Kind::Dns),
            ("dns --server 10.96.0.10 --transport https --server-name dns.example --path /resolve", Kind::Dns),
            ("tls --each-version --server-name web.shop --secret shop/web-tls", Kind::Tls),
            ("udp --datagrams 10 --bytes 100 --gap-us 5", Kind::Udp),
            ("icmp --ttl 3 --dont-fragment --bytes 1400", Kind::Icmp),
            ("mtu --tries 3 --from-bytes 9000", Kind::Mtu),
            ("path --by udp --max-hops 5", Kind::Path),
            ("throughput --duration-ms 500 --max-bytes 1000", Kind::Throughput),
            ("raw --segment udp --flags syn,ack --ttl 1", Kind::Raw),
            ("ladder --url http://shop.example/", Kind::Ladder),
            ("matrix -c 30", Kind::Matrix),
        ] {
            let request = asked(line);
            assert_eq!(request.kind, kind, "{line}");
            assert_eq!(request.strange_options(), Vec::<String>::new(), "{line}");
        }
    }

    #[test]
    fn an_interval_is_kept_by_as_many_attempts_as_a_timeout_holds() {
        let request = asked("tcp -c 10 --interval 500us --timeout 20ms");
        assert_eq!((request.interval_us, request.timeout_ms, request.parallel), (500, Some(20), 40));
        assert_eq!(asked("tcp --interval 10ms --source-port 4000").parallel, 1, "one port holds one connection");
        assert_eq!(asked("tcp -c 10").parallel, 1);
    }
}
