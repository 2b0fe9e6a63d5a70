//! Tuples that are known before anything is sent, and where a packet of one may come to. Pure.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::Netns;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::series::Probe;
use netdiag_common::observation::series::dns::{DnsAsking, DnsTransport};
use netdiag_common::observation::series::path::PathBy;
use netdiag_common::observation::series::transport::RawSegment;
use netdiag_common::observation::tag::{MAX_TAG_ALTERNATIVES, TagTuple};

use crate::evidence::Cluster;
use crate::evidence::object::ServicePort;
use crate::followed::Asked;
use crate::path::{self, Backend, Client};
use crate::trace::Place;

const HTTP_PORT: u16 = 80;
const HTTPS_PORT: u16 = 443;

/// The protocol of a probe's first packet, and where it goes, with port 0 where it has none; none where that is not known before
/// it is sent.
pub(super) fn ends(probe: &Probe) -> Option<(Protocol, SocketAddr)> {
    match probe {
        Probe::Tcp(probe) => Some((Protocol::Tcp, probe.to)),
        Probe::Tls(probe) => Some((Protocol::Tcp, probe.to)),
        Probe::Http(probe) => Some((Protocol::Tcp, probe.to.or_else(|| named_by(&probe.url))?)),
        Probe::Icmp(probe) => Some(echo(probe.to)),
        Probe::Udp(probe) => Some((Protocol::Udp, probe.to)),
        Probe::Raw(probe) => match probe.segment {
            RawSegment::Tcp { .. } => Some((Protocol::Tcp, probe.to)),
            RawSegment::Udp => Some((Protocol::Udp, probe.to)),
            RawSegment::Echo => Some(echo(probe.to.ip())),
        },
        Probe::Dns(probe) => match probe.asking {
            DnsAsking::Server { server, transport: DnsTransport::Udp } => Some((Protocol::Udp, server)),
            _ => None,
        },
        Probe::Path(probe) => match probe.by {
            PathBy::Tcp => Some((Protocol::Tcp, probe.to)),
            PathBy::Udp => Some((Protocol::Udp, probe.to)),
            // Its echoes are of one size, and differ in a number that no kernel program reads.
            PathBy::Icmp => None,
        },
        Probe::PathMtu(probe) if probe.to.port() == 0 => Some(echo(probe.to.ip())),
        Probe::PathMtu(probe) => Some((Protocol::Udp, probe.to)),
        // More packets than an agent tells of.
        Probe::Throughput(_) => None,
    }
}

/// The name that the probe's URL has and that is looked up before it is sent.
pub(super) fn name_of(probe: &Probe) -> Option<(String, u16)> {
    let Probe::Http(probe) = probe else { return None };
    let uri = probe.url.parse::<http::Uri>().ok().filter(|_| probe.to.is_none())?;
    let host = uri.host().filter(|host| host.trim_matches(['[', ']']).parse::<IpAddr>().is_err())?;
    Some((host.to_owned(), port_of(&uri)))
}

fn echo(to: IpAddr) -> (Protocol, SocketAddr) {
    (if to.is_ipv4() { Protocol::Icmp } else { Protocol::Icmpv6 }, SocketAddr::new(to, 0))
}

/// Where a URL leads whose host is an address.
fn named_by(url: &str) -> Option<SocketAddr> {
    let uri: http::Uri = url.parse().ok()?;
    let address = uri.host()?.trim_matches(['[', ']']).parse().ok()?;
    Some(SocketAddr::new(address, port_of(&uri)))
}

fn port_of(uri: &http::Uri) -> u16 {
    let usual = if uri.scheme_str() == Some("https") { HTTPS_PORT } else { HTTP_PORT };
    uri.port_u16().unwrap_or(usual)
}

/// The same probe from a port that is known, or as an echo with such an identifier; none for DNS, whose messages have an
/// identifier instead.
pub(super) fn from_port(probe: &mut Probe, number: u16) -> Option<u16> {
    let port = match probe {
        Probe::Tcp(probe) => &mut probe.source_port,
        Probe::Udp(probe) => &mut probe.source_port,
        Probe::Raw(probe) => &mut probe.source_port,
        Probe::Tls(probe) => &mut probe.source_port,
        Probe::Http(probe) => &mut probe.source_port,
        Probe::Icmp(probe) => &mut probe.identifier,
        Probe::Path(probe) => &mut probe.source_port,
        Probe::PathMtu(probe) => &mut probe.source_port,
        Probe::Dns(_) | Probe::Throughput(_) => return None,
    };
    Some(*port.get_or_insert(number))
}

/// What to arm where: the packet as it is sent, as it may be translated, and on every node that it may come to.
pub(super) fn asked(
    cluster: &Cluster,
    client: &Client,
    (protocol, to): (Protocol, SocketAddr),
    port: Option<u16>,
) -> Asked {
    let own = client.addresses.iter().copied().find(|address| address.is_ipv4() == to.is_ipv4());
    let source = own.and_then(|own| Some((own, port?)));
    let is_echo = matches!(protocol, Protocol::Icmp | Protocol::Icmpv6);
    let tuple = |source: Option<(IpAddr, u16)>, to: SocketAddr| TagTuple {
        protocol,
        source: source.map(|(address, _)| address),
        source_port: source.map(|(_, port)| port),
        destination: to.ip(),
        destination_port: (!is_echo).then_some(to.port()),
    };
    let backends = backends(cluster, protocol, to);
    let mut tuples = vec![tuple(source, to)];
    // A node may send from another of its addresses, and what leaves for somebody else's is translated on the way. An echo from
    // anybody has nothing that tells it from others'.
    if is_echo {
        let others = client.addresses.iter().filter(|address| address.is_ipv4() == to.is_ipv4());
        tuples.extend(others.filter_map(|other| Some(tuple(Some((*other, port?)), to))));
    } else if client.netns == Netns::Host || backends.is_empty() {
        tuples.push(tuple(None, to));
    }
    let mut nodes = vec![client.node.clone()];
    let owner = cluster.pod_by_address(to.ip()).map(|pod| pod.spec.node_name.clone());
    nodes.extend(owner.or_else(|| cluster.node_by_address(to.ip()).map(|node| node.metadata.name.clone())));
    for backend in &backends {
        let endpoint = SocketAddr::new(backend.address, backend.port);
        tuples.extend([tuple(source, endpoint), tuple(None, endpoint)]);
        if tuples.len() <= 1 + MAX_TAG_ALTERNATIVES && !backend.node.is_empty() {
            nodes.push(backend.node.clone());
        }
    }
    let client = Place { node: client.node.clone(), netns: client.netns.clone() };
    let mut tuples = once(tuples).into_iter();
    let tuple = tuples.next().expect("the packet as it is sent");
    Asked { client, tuple, alternatives: tuples.collect(), nodes: once(nodes) }
}

/// Each only where it comes first.
fn once<T: PartialEq>(all: Vec<T>) -> Vec<T> {
    let mut kept: Vec<T> = Vec::new();
    for one in all {
        if !kept.contains(&one) {
            kept.push(one);
        }
    }
    kept
}

/// Where a packet to this address may be translated to, those first that get new connections.
fn backends(cluster: &Cluster, protocol: Protocol, to: SocketAddr) -> Vec<Backend> {
    let asked = Some((protocol, to.port()));
    let service = cluster.service_by_address(to.ip()).or_else(|| cluster.service_by_external_address(to.ip(), asked));
    let found = match service {
        Some(service) => {
            let is_it = |port: &&ServicePort| port.protocol.0 == protocol && port.port == to.port();
            service.spec.ports.iter().find(is_it).map(|port| path::backends(cluster, service, port))
        }
        None if cluster.node_by_address(to.ip()).is_some() => cluster
            .service_by_node_port(protocol, to.port())
            .map(|(service, port)| path::backends(cluster, service, port)),
        None => None,
    };
    let mut backends = found.unwrap_or_default();
    backends.retain(|backend| backend.address.is_ipv4() == to.is_ipv4());
    backends.sort_by_key(|backend| !backend.ready);
    backends
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::probe::tests::world;
    use crate::probe::{Kind, ProbeRequest, plan, shots};
    use crate::question::Origin;

    fn asked_to(to: &str) -> Asked {
        asked_by(Protocol::Tcp, to)
    }

    fn asked_by(protocol: Protocol, to: &str) -> Asked {
        let world = world();
        let from = Origin::Pod { namespace: "shop".to_owned(), name: "client".to_owned() };
        let client = plan::client(&from, &world).expect("a client");
        asked(&world, &client, (protocol, to.parse().expect("an address")), Some(61_000))
    }

    #[test]
    fn a_service_is_followed_to_each_endpoint_and_behind_a_masquerade() {
        let asked = asked_to("10.96.0.80:80");
        assert_eq!(asked.tuple.to_string(), "tcp 10.244.1.2 port 61000 → 10.96.0.80 port 80");
        let others: Vec<String> = asked.alternatives.iter().map(ToString::to_string).collect();
        assert_eq!(
            others,
            [
                "tcp 10.244.1.2 port 61000 → 10.244.1.4 port 8080",
                "tcp anywhere → 10.244.1.4 port 8080",
                "tcp 10.244.1.2 port 61000 → 10.244.2.5 port 8080",
                "tcp anywhere → 10.244.2.5 port 8080",
            ]
        );
        assert_eq!(asked.nodes, ["n1", "n2"]);
    }

    #[test]
    fn an_echo_is_known_by_its_identifier_and_by_nothing_else() {
        let asked = asked_by(Protocol::Icmp, "10.244.2.5:0");
        assert_eq!((asked.tuple.source_port, asked.tuple.destination_port), (Some(61_000), None));
        assert_eq!((asked.alternatives.len(), asked.nodes), (0, vec!["n1".to_owned(), "n2".to_owned()]));
    }

    #[test]
    fn a_url_leads_to_its_address_and_a_name_is_looked_up_first() {
        let to = |url: &str| named_by(url).map(|to| to.to_string());
        assert_eq!(to("http://10.0.0.1/x").as_deref(), Some("10.0.0.1:80"));
        assert_eq!(to("https://[fd00::1]:8443/").as_deref(), Some("[fd00::1]:8443"));
        assert_eq!((to("https://shop.example/"), to("not a url")), (None, None));
        let name = |url: &str| {
            let request = ProbeRequest::new(Kind::Http, "pod/shop/client", url);
            name_of(&shots::url(&request, url, None).expect("a URL").probe)
        };
        assert_eq!(name("https://shop.example/x"), Some(("shop.example".to_owned(), 443)));
        assert_eq!(name("http://shop.example:8080/"), Some(("shop.example".to_owned(), 8_080)));
        assert_eq!((name("http://10.0.0.1/"), name("https://[fd00::1]:8443/")), (None, None));
    }

    #[test]
    fn a_node_port_leads_over_the_node_that_is_asked() {
        let asked = asked_to("172.30.0.12:30080");
        assert_eq!((asked.alternatives.len(), asked.nodes), (4, vec!["n1".to_owned(), "n2".to_owned()]));
    }

    #[test]
    fn what_is_nobodys_is_followed_as_far_as_there_are_agents() {
        let asked = asked_to("203.0.113.7:443");
        let others: Vec<String> = asked.alternatives.iter().map(ToString::to_string).collect();
        assert_eq!(
            (others, asked.nodes),
            (vec!["tcp anywhere → 203.0.113.7 port 443".to_owned()], vec!["n1".to_owned()])
        );
    }
}
