//! Routes out of `RTM_NEWROUTE`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netdiag_common::forwarding::routing::table::maker;
use netdiag_common::observation::network::{Route, RouteKind};

use super::{IPV4, IPV6, address, attributes, int, short};

/// A learned exception (path MTU, redirect) of a route, not a route of the table.
const RTM_F_CLONED: u32 = 0x200;
/// Of `RTA_METRICS` (`include/uapi/linux/rtnetlink.h`).
const RTAX_MTU: u16 = 2;
/// Length of `struct rtnexthop`.
const NEXT_HOP_BYTES: usize = 8;

#[derive(Default, Clone, Copy)]
struct Hop {
    gateway: Option<IpAddr>,
    link_index: Option<u32>,
}

/// `struct rtmsg` and its attributes: one route per next hop.
pub(super) fn parse(payload: &[u8]) -> Vec<Route> {
    parse_message(payload).unwrap_or_default()
}

fn parse_message(payload: &[u8]) -> Option<Vec<Route>> {
    let unspecified = match *payload.first()? {
        IPV4 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IPV6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let prefix_length = *payload.get(1)?;
    let kind = kind(*payload.get(7)?);
    let flags = int(payload, 8)?;
    if flags & RTM_F_CLONED != 0 {
        return None;
    }
    let mut destination = unspecified;
    let mut table = u32::from(*payload.get(4)?);
    let mut metric = 0;
    let mut mtu = None;
    let mut source = None;
    let mut single = Hop::default();
    let mut hops = Vec::new();
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_DST => destination = address(value)?,
            libc::RTA_TABLE => table = int(value, 0)?,
            libc::RTA_PRIORITY => metric = int(value, 0)?,
            libc::RTA_PREFSRC => source = address(value),
            libc::RTA_OIF => single.link_index = int(value, 0),
            libc::RTA_GATEWAY => single.gateway = address(value),
            libc::RTA_VIA => single.gateway = via(value),
            libc::RTA_METRICS => {
                mtu = attributes(value).find(|(kind, _)| *kind == RTAX_MTU).and_then(|(_, value)| int(value, 0));
            }
            libc::RTA_MULTIPATH => hops = next_hops(value),
            _ => {}
        }
    }
    if hops.is_empty() {
        hops.push(single);
    }
    let destination = IpNet::new(destination, prefix_length).ok()?;
    let protocol = maker(*payload.get(5)?);
    let routes = hops.into_iter().map(|hop| Route {
        destination,
        kind,
        gateway: hop.gateway,
        link_index: hop.link_index,
        source,
        table,
        metric,
        mtu,
        protocol: protocol.clone(),
    });
    Some(routes.collect())
}

/// `struct rtnexthop`s, each followed by its own attributes.
fn next_hops(mut bytes: &[u8]) -> Vec<Hop> {
    let mut hops = Vec::new();
    while let (Some(length), Some(link)) = (short(bytes, 0), int(bytes, 4)) {
        let length = usize::from(length);
        let Some(nested) = bytes.get(NEXT_HOP_BYTES..length) else { break };
        let gateway = attributes(nested).find_map(|(kind, value)| match kind {
            libc::RTA_GATEWAY => address(value),
            libc::RTA_VIA => via(value),
            _ => None,
        });
        hops.push(Hop { gateway, link_index: Some(link) });
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

/// `struct rtvia`: a gateway of the other address family (RFC 5549).
fn via(value: &[u8]) -> Option<IpAddr> {
    address(value.get(2..)?)
}

fn kind(number: u8) -> RouteKind {
    match number {
        libc::RTN_UNICAST => RouteKind::Unicast,
        libc::RTN_LOCAL => RouteKind::Local,
        libc::RTN_BROADCAST => RouteKind::Broadcast,
        libc::RTN_MULTICAST => RouteKind::Multicast,
        libc::RTN_BLACKHOLE => RouteKind::Blackhole,
        libc::RTN_UNREACHABLE => RouteKind::Unreachable,
        libc::RTN_PROHIBIT => RouteKind::Prohibit,
        libc::RTN_THROW => RouteKind::Throw,
        _ => RouteKind::Other,
    }
}
