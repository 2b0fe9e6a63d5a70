//! Links, addresses, routes, policy rules, neighbours and forwarding databases of one network namespace, by rtnetlink.

mod bridge;
mod fdb;
mod neighbour;
mod route;
mod rule;
mod tunnel;
mod upper;

use std::net::IpAddr;

use netdiag_common::forwarding::packet::octets;
use netdiag_common::observation::network::{Address, FdbEntry, Link, Network};
use nix::sys::socket::SockProtocol;

pub(crate) use neighbour::{parse as parse_neighbour, state as neighbour_state};

use super::ReadError;
use super::netlink::{IPV4, IPV6, Netlink, UNSPECIFIED, address, attribute, attributes, int, short, string};

/// Routes listed. A node that carries a full routing table would otherwise make reports of many megabytes; Kubernetes
/// nodes have one or two per node and pod.
const MAX_ROUTES: usize = 8_192;
/// Neighbours listed: the default `gc_thresh3` is 1024 per family.
const MAX_NEIGHBOURS: usize = 4_096;
/// Entries of forwarding databases listed: one per pod of a bridge, one or two per node of an overlay, some for multicast.
const MAX_FDB: usize = 8_192;
/// Links listed: a node runs a few hundred pods at most, each with one veth.
const MAX_LINKS: usize = 4_096;

/// `IFLA_EXT_MASK`: leave out the statistics of address families (`RTEXT_FILTER_SKIP_STATS`), which are most of a link's
/// message. The link's own stay.
pub(crate) const SKIP_STATISTICS: u32 = 1 << 3;
const IFLA_LINK_NETNSID: u16 = 37;

/// Everything of the calling thread's network namespace.
pub(crate) fn read() -> Result<Network, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let mut left_out = Vec::new();
    let links = links(&mut netlink)?.into_iter().map(|found| found.link).collect();
    let addresses = addresses(&mut netlink)?;
    let request = [0u8; 12];
    let routes: Vec<_> = netlink
        .dump(libc::RTM_GETROUTE, &request, "list routes", |payload| Some(route::parse(payload)))?
        .into_iter()
        .flatten()
        .collect();
    let policy_rules = netlink.dump(libc::RTM_GETRULE, &request, "list routing rules", rule::parse)?;
    let neighbours = netlink.dump(libc::RTM_GETNEIGH, &request, "list neighbours", neighbour::parse)?;
    let forwarding = forwarding(&mut netlink)?;
    Ok(Network {
        links: capped(links, MAX_LINKS, "links", &mut left_out),
        addresses,
        routes: capped(routes, MAX_ROUTES, "routes", &mut left_out),
        policy_rules,
        neighbours: capped(neighbours, MAX_NEIGHBOURS, "neighbours", &mut left_out),
        forwarding: capped(forwarding, MAX_FDB, "entries of forwarding databases", &mut left_out),
        left_out,
    })
}

/// A link and the namespace its other end is in.
pub(crate) struct FoundLink {
    pub(crate) link: Link,
    /// The namespace of the peer or of the device below, as this one numbers it (`ip netns list-id`); none when it is this one.
    pub(crate) peer_netns_id: Option<u32>,
    /// Next hops on it are asked for their link addresses (`arp_constructor`, net/ipv4/arp.c; `ndisc_constructor`,
    /// net/ipv6/ndisc.c; Linux 6.18): it has headers, and nothing says that nobody is to be asked.
    pub(crate) resolves: bool,
}

/// The links of the calling thread's network namespace.
pub(crate) fn links(netlink: &mut Netlink) -> Result<Vec<FoundLink>, ReadError> {
    let mut request = vec![0; 16];
    request.extend(attribute(libc::IFLA_EXT_MASK, &SKIP_STATISTICS.to_ne_bytes()));
    netlink.dump(libc::RTM_GETLINK, &request, "list links", parse_link)
}

/// The addresses of the calling thread's network namespace.
pub(crate) fn addresses(netlink: &mut Netlink) -> Result<Vec<Address>, ReadError> {
    let request = [UNSPECIFIED, 0, 0, 0, 0, 0, 0, 0];
    netlink.dump(libc::RTM_GETADDR, &request, "list addresses", parse_address)
}

/// One link; none when there is none with this index.
pub(crate) fn link(netlink: &mut Netlink, index: u32) -> Result<Option<FoundLink>, ReadError> {
    let mut request = vec![0; 16];
    request[4..8].copy_from_slice(&index.to_ne_bytes());
    request.extend(attribute(libc::IFLA_EXT_MASK, &SKIP_STATISTICS.to_ne_bytes()));
    match netlink.get(libc::RTM_GETLINK, &request, &format!("read link {index}"), parse_link) {
        Err(ReadError::Call { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        found => found,
    }
}

/// What the kernel has of one host on a link; none when it has no entry (`neigh_get`, Linux 5.0).
pub(crate) fn neighbour<T>(
    netlink: &mut Netlink,
    link: u32,
    host: IpAddr,
    decode: impl FnMut(&[u8]) -> Option<T>,
) -> Result<Option<T>, ReadError> {
    let mut request = vec![if host.is_ipv4() { IPV4 } else { IPV6 }, 0, 0, 0];
    request.extend(link.to_ne_bytes());
    request.extend([0; 4]);
    request.extend(attribute(libc::NDA_DST, &octets(host)));
    match netlink.get(libc::RTM_GETNEIGH, &request, "look up a neighbour", decode) {
        Err(ReadError::Call { source, .. }) if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            Ok(None)
        }
        found => found,
    }
}

/// The forwarding databases of the calling thread's network namespace.
pub(crate) fn forwarding(netlink: &mut Netlink) -> Result<Vec<FdbEntry>, ReadError> {
    fdb::read(netlink)
}

/// `struct ifinfomsg` and its attributes.
pub(crate) fn parse_link(payload: &[u8]) -> Option<FoundLink> {
    let (hardware, index) = (short(payload, 2)?, int(payload, 4)?);
    let flags = int(payload, 8)?.cast_signed();
    let without = libc::IFF_NOARP | libc::IFF_LOOPBACK | libc::IFF_POINTOPOINT;
    let resolves = matches!(hardware, libc::ARPHRD_ETHER | libc::ARPHRD_INFINIBAND) && flags & without == 0;
    let mut link =
        Link { index, up: flags & libc::IFF_UP != 0, carrier: flags & libc::IFF_LOWER_UP != 0, ..Link::default() };
    let mut promiscuity = 0;
    let mut lower = None;
    let mut peer_netns_id = None;
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = string(value),
            // Other links' addresses are not Ethernet's: a tunnel's own end, a key of InfiniBand.
            libc::IFLA_ADDRESS if hardware == libc::ARPHRD_ETHER => link.mac = Some(neighbour::mac_text(value)),
            libc::IFLA_MTU => link.mtu = int(value, 0)?,
            libc::IFLA_LINK => lower = int(value, 0),
            libc::IFLA_MASTER => link.master_index = int(value, 0),
            libc::IFLA_PROMISCUITY => promiscuity = int(value, 0)?,
            libc::IFLA_LINKINFO => {
                let name = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                link.kind = name.map(|(_, name)| string(name)).unwrap_or_default();
                (link.bridge, link.bridge_port) = (bridge::bridge(value), bridge::port(value));
                link.tunnel = tunnel::tunnel(&link.kind, value);
                link.vlan = upper::vlan(&link.kind, value);
                link.vrf_table = upper::vrf_table(&link.kind, value);
            }
            IFLA_LINK_NETNSID => peer_netns_id = int(value, 0),
            _ => {}
        }
    }
    if let Some(bridge) = &mut link.bridge {
        bridge.promiscuous = promiscuity > 0;
    }
    if let Some(vlan) = &mut link.vlan {
        vlan.lower_index = lower.filter(|_| peer_netns_id.is_none());
    }
    // For other kinds (VLAN, macvlan, tunnels) IFLA_LINK is the device below, not another end.
    if matches!(&*link.kind, "veth" | "netkit") {
        link.peer_index = lower;
    }
    Some(FoundLink { link, peer_netns_id, resolves })
}

/// `struct ifaddrmsg` and its attributes.
fn parse_address(payload: &[u8]) -> Option<Address> {
    let prefix_length = *payload.get(1)?;
    let link_index = int(payload, 4)?;
    let mut own: Option<IpAddr> = None;
    for (kind, value) in attributes(payload.get(8..)?) {
        // On point-to-point links IFA_ADDRESS is the other end and IFA_LOCAL is ours.
        match kind {
            libc::IFA_LOCAL => own = address(value),
            libc::IFA_ADDRESS => own = own.or_else(|| address(value)),
            _ => {}
        }
    }
    Some(Address { link_index, address: own?, prefix_length })
}

fn capped<T>(mut list: Vec<T>, limit: usize, name: &str, left_out: &mut Vec<String>) -> Vec<T> {
    if list.len() > limit {
        left_out.push(format!("{} of {} {name}", list.len() - limit, list.len()));
        list.truncate(limit);
    }
    list
}

/// As nft spells families; none for the others (bridge, MPLS).
fn family_name(family: u8) -> Option<&'static str> {
    match family {
        IPV4 => Some("ip"),
        IPV6 => Some("ip6"),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
