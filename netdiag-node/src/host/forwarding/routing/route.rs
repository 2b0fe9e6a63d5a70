//! Routes out of `RTM_NEWROUTE`, with all that decides whether they are taken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use netdiag_common::forwarding::packet::Protocol;
use netdiag_common::forwarding::routing::{NextHop, TableKey, TableRoute};

use super::super::super::netlink::{IPV4, IPV6, address, attributes, int, short};

/// A learned exception of a route (path MTU, redirect), not a route of the table.
const CLONED: u32 = 0x200;

/// `RTNH_F_DEAD`, `RTNH_F_LINKDOWN`
const DEAD: u32 = 1;
const LINK_DOWN: u32 = 16;

/// Length of `struct rtnexthop`.
const NEXT_HOP_BYTES: usize = 8;

/// `RTA_*` that libc does not have.
const RTA_VIA: u16 = 18;
const RTA_PREF: u16 = 20;
const RTA_ENCAP_TYPE: u16 = 21;
const RTA_NH_ID: u16 = 30;

/// `struct rtmsg` and its attributes; none for what is no route of a table of IPv4 or IPv6.
pub(super) fn parse(payload: &[u8]) -> Option<(TableKey, TableRoute)> {
    let header: &[u8; 12] = payload.get(..12)?.try_into().ok()?;
    let [family, destination_bits, source_bits, service, table, protocol, scope, kind, ..] = *header;
    let (version, unspecified): (Protocol, IpAddr) = match family {
        IPV4 => (Protocol::Ipv4, Ipv4Addr::UNSPECIFIED.into()),
        IPV6 => (Protocol::Ipv6, Ipv6Addr::UNSPECIFIED.into()),
        _ => return None,
    };
    let flags = int(payload, 8)?;
    if flags & CLONED != 0 {
        return None;
    }
    let mut key = TableKey { protocol: version, table: table.into() };
    let mut destination = unspecified;
    let mut source = unspecified;
    let mut route = TableRoute {
        destination: IpNet::new(unspecified, 0).ok()?,
        source: None,
        kind,
        scope,
        service,
        metric: 0,
        protocol,
        preference: 0,
        own: None,
        object: None,
        encapsulation: None,
        mtu: None,
        mtu_locked: false,
        hops: Vec::new(),
    };
    let mut single = hop(flags);
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::RTA_DST => destination = address(value)?,
            libc::RTA_SRC => source = address(value)?,
            libc::RTA_TABLE => key.table = int(value, 0)?,
            libc::RTA_PRIORITY => route.metric = int(value, 0)?,
            libc::RTA_PREFSRC => route.own = address(value),
            libc::RTA_OIF => single.interface = int(value, 0),
            libc::RTA_GATEWAY => single.gateway = address(value),
            RTA_VIA => single.gateway = via(value),
            RTA_PREF => route.preference = *value.first()?,
            RTA_ENCAP_TYPE => route.encapsulation = short(value, 0),
            libc::RTA_METRICS => (route.mtu, route.mtu_locked) = mtu(value),
            RTA_NH_ID => route.object = int(value, 0),
            libc::RTA_MULTIPATH => route.hops = next_hops(value, &mut route.encapsulation),
            _ => {}
        }
    }
    if route.hops.is_empty() && (single.interface.is_some() || single.gateway.is_some()) {
        route.hops.push(single);
    }
    route.destination = prefix(destination, destination_bits, version)?;
    if source_bits != 0 {
        route.source = Some(prefix(source, source_bits, version)?);
    }
    Some((key, route))
}

/// `RTAX_MTU`, and whether `RTAX_LOCK` has its bit.
fn mtu(metrics: &[u8]) -> (Option<u32>, bool) {
    const LOCK: u16 = 1;
    const MTU: u16 = 2;
    let metric =
        |wanted: u16| attributes(metrics).find(|(kind, _)| *kind == wanted).and_then(|(_, value)| int(value, 0));
    (metric(MTU).filter(|mtu| *mtu != 0), metric(LOCK).is_some_and(|locks| locks & 1 << MTU != 0))
}

fn prefix(address: IpAddr, bits: u8, version: Protocol) -> Option<IpNet> {
    let fits = address.is_ipv4() == (version == Protocol::Ipv4);
    IpNet::new(address, bits).ok().filter(|_| fits).map(|net| net.trunc())
}

pub(super) fn hop(flags: u32) -> NextHop {
    let (dead, no_carrier) = (flags & DEAD != 0, flags & LINK_DOWN != 0);
    NextHop { interface: None, gateway: None, weight: 1, dead, no_carrier }
}

/// `struct rtnexthop`s, each followed by its own attributes.
fn next_hops(mut bytes: &[u8], encapsulation: &mut Option<u16>) -> Vec<NextHop> {
    let mut hops = Vec::new();
    while let (Some(length), Some(index)) = (short(bytes, 0), int(bytes, 4)) {
        let length = usize::from(length);
        let Some(nested) = bytes.get(NEXT_HOP_BYTES..length) else { break };
        let mut next = hop(bytes[2].into());
        next.interface = Some(index);
        next.weight = u32::from(bytes[3]) + 1;
        for (kind, value) in attributes(nested) {
            match kind {
                libc::RTA_GATEWAY => next.gateway = address(value),
                RTA_VIA => next.gateway = via(value),
                RTA_ENCAP_TYPE => *encapsulation = short(value, 0),
                _ => {}
            }
        }
        hops.push(next);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    hops
}

/// `struct rtvia`: a gateway of the other address family (RFC 5549).
fn via(value: &[u8]) -> Option<IpAddr> {
    address(value.get(2..)?)
}
