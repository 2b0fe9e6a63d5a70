//! The kernel's own answers about where packets go: `RTM_GETROUTE` for one packet, and the interfaces on its way.

use std::net::IpAddr;
use std::sync::Arc;

use netdiag_common::forwarding::packet::octets;
use netdiag_common::forwarding::routing::table::kind;
use netdiag_common::forwarding::state::{
    AddressQuery, FibEntry, FibQuery, Interface, InterfaceAddress, Route, RouteQuery,
};
use nix::sys::socket::SockProtocol;

use crate::host::ReadError;
use crate::host::netlink::{IPV4, IPV6, Netlink, UNSPECIFIED, address, attribute, attributes, int, short, string};

/// `RTM_F_FIB_MATCH`: the route of the table instead of the cached one of the destination (Linux 4.13).
const FIB_MATCH: u32 = 0x2000;

const RTA_DST: u16 = 1;
const RTA_SRC: u16 = 2;
const RTA_IIF: u16 = 3;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PREFSRC: u16 = 7;
const RTA_MULTIPATH: u16 = 9;
const RTA_MARK: u16 = 16;
const RTA_VIA: u16 = 18;
const RTA_UID: u16 = 25;
const RTA_IP_PROTO: u16 = 27;
const RTA_SPORT: u16 = 28;
const RTA_DPORT: u16 = 29;

/// `struct rtmsg`
const ROUTE_BYTES: usize = 12;

pub(super) struct Routes {
    netlink: Netlink,
}

/// An answer of `RTM_GETROUTE`.
struct Found {
    kind: u8,
    interfaces: Vec<u32>,
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
}

impl Routes {
    pub(super) fn open() -> Result<Self, ReadError> {
        Ok(Self { netlink: Netlink::open(SockProtocol::NetlinkRoute)? })
    }

    pub(super) fn route(&mut self, query: &RouteQuery) -> Result<Route, ReadError> {
        if is_multicast(query.destination) {
            return Ok(Route::Unfollowed { why: format!("{} is a multicast address", query.destination) });
        }
        let mut request = request(query.destination, query.service, 0);
        if query.mark != 0 {
            request.extend(attribute(RTA_MARK, &query.mark.to_ne_bytes()));
        }
        // Received packets are routed as the superuser's, which the kernel does not do for questions about IPv6.
        if let Some(uid) = query.uid.or(query.input.map(|_| 0)) {
            request.extend(attribute(RTA_UID, &uid.to_ne_bytes()));
        }
        // The kernel takes no other protocols here (`rtm_getroute_parse_ip_proto`).
        if matches!(query.protocol, 1 | 6 | 17 | 58) {
            request.extend(attribute(RTA_IP_PROTO, &[query.protocol]));
        }
        if let (6 | 17, Some((source, destination))) = (query.protocol, query.ports) {
            for (kind, port) in [(RTA_SPORT, source), (RTA_DPORT, destination)] {
                if port != 0 {
                    request.extend(attribute(kind, &port.to_be_bytes()));
                }
            }
        }
        let with_source = |request: &[u8]| {
            let source = query.source.map(|source| attribute(RTA_SRC, &octets(source))).unwrap_or_default();
            let mut request = [request, &source].concat();
            if let (Some(source), Some(length)) = (query.source, request.get_mut(2)) {
                *length = bits(source);
            }
            request
        };
        let answer = match query.input {
            Some(index) => {
                request.extend(attribute(RTA_IIF, &index.to_ne_bytes()));
                self.ask(&with_source(&request))
            }
            // A packet may carry an address that this host does not have, and is routed all the same
            // (`FLOWI_FLAG_ANYSRC`); the kernel refuses such a question. One from 127.0.0.1 it does not let out at all.
            None => match self.ask(&with_source(&request)) {
                Err(ReadError::Call { source, .. })
                    if source.raw_os_error() == Some(libc::EINVAL)
                        && !query.source.is_some_and(|own| own.is_loopback()) =>
                {
                    self.ask(&request)
                }
                answer => answer,
            },
        };
        Ok(match answer {
            Ok(Some(found)) => found.route(),
            Ok(None) => Route::Refused { why: "the kernel named no route".into() },
            Err(ReadError::Call { source, .. }) if is_refusal(&source) => {
                Route::Refused { why: source.to_string().to_lowercase() }
            }
            Err(error) => return Err(error),
        })
    }

    /// `inet_dev_addr_type`, `__nft_fib6_eval_type`. Of IPv4 only what the local table holds has a type of its own.
    pub(super) fn address_type(&mut self, query: &AddressQuery) -> Result<u32, ReadError> {
        let found = match self.ask(&request(query.address, 0, FIB_MATCH)) {
            Ok(found) => found,
            Err(ReadError::Call { source, .. }) if is_refusal(&source) => None,
            Err(error) => return Err(error),
        };
        let kind = match (query.address, found, query.interface) {
            (IpAddr::V4(_), Some(found), interface) => {
                let here = interface.is_none_or(|interface| found.interfaces.contains(&interface));
                if here && matches!(found.kind, kind::LOCAL | kind::BROADCAST | kind::MULTICAST) {
                    found.kind
                } else {
                    kind::UNICAST
                }
            }
            (IpAddr::V4(_), None, _) => kind::UNICAST,
            (IpAddr::V6(_), None, _) => kind::UNREACHABLE,
            (IpAddr::V6(own), Some(found), interface) => {
                let on_interface = match interface {
                    Some(index) => self.addresses(index)?.iter().any(|address| address.address == IpAddr::V6(own)),
                    None => false,
                };
                match found.kind {
                    kind::ANYCAST => kind::ANYCAST,
                    kind::BLACKHOLE | kind::UNREACHABLE | kind::PROHIBIT => found.kind,
                    _ if on_interface || (interface.is_none() && found.kind == kind::LOCAL) => kind::LOCAL,
                    _ if own.is_multicast() => kind::MULTICAST,
                    _ => kind::UNICAST,
                }
            }
        };
        Ok(u32::from(kind))
    }

    /// The route that holds a destination; none when none does.
    pub(super) fn fib(&mut self, query: &FibQuery) -> Result<Option<FibEntry>, ReadError> {
        let mut request = request(query.destination, query.service, FIB_MATCH);
        if query.mark != 0 {
            request.extend(attribute(RTA_MARK, &query.mark.to_ne_bytes()));
        }
        if let Some(index) = query.interface {
            request.extend(attribute(RTA_OIF, &index.to_ne_bytes()));
        }
        match self.ask(&request) {
            Ok(found) => Ok(found
                .filter(|found| !matches!(found.kind, kind::BLACKHOLE | kind::UNREACHABLE | kind::PROHIBIT))
                .map(|found| FibEntry { kind: found.kind, interfaces: found.interfaces })),
            Err(ReadError::Call { source, .. }) if is_refusal(&source) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// One interface with its addresses; none when there is none with this index.
    pub(super) fn interface(&mut self, index: u32) -> Result<Option<Interface>, ReadError> {
        let mut request = vec![0; 16];
        request[4..8].copy_from_slice(&index.to_ne_bytes());
        let step = format!("read link {index}");
        let found = match self.netlink.get(libc::RTM_GETLINK, &request, &step, parse_interface) {
            Err(ReadError::Call { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => None,
            found => found?,
        };
        let Some(mut interface) = found else { return Ok(None) };
        interface.addresses = self.addresses(index)?;
        Ok(Some(interface))
    }

    fn addresses(&mut self, index: u32) -> Result<Vec<InterfaceAddress>, ReadError> {
        let all = self.all_addresses()?;
        Ok(all.into_iter().filter(|(of, _)| *of == index).map(|(_, address)| address).collect())
    }

    /// The addresses of all interfaces, with their indexes.
    pub(super) fn all_addresses(&mut self) -> Result<Vec<(u32, InterfaceAddress)>, ReadError> {
        let request = [UNSPECIFIED, 0, 0, 0, 0, 0, 0, 0];
        self.netlink.dump(libc::RTM_GETADDR, &request, "list addresses", |payload| {
            Some((int(payload, 4)?, parse_address(payload)?))
        })
    }

    fn ask(&mut self, request: &[u8]) -> Result<Option<Found>, ReadError> {
        self.netlink.get(libc::RTM_GETROUTE, request, "look up a route", parse_route)
    }
}

impl Found {
    fn route(self) -> Route {
        let interface = self.interfaces.first().copied();
        match (self.kind, interface) {
            (kind::LOCAL | kind::BROADCAST | kind::ANYCAST, Some(interface)) => Route::Local { interface },
            (kind::UNICAST, Some(interface)) => {
                Route::Forward { interface, gateway: self.gateway, source: self.source }
            }
            (kind::BLACKHOLE, _) => Route::Refused { why: "blackhole".into() },
            (kind::UNREACHABLE, _) => Route::Refused { why: "unreachable".into() },
            (kind::PROHIBIT, _) => Route::Refused { why: "prohibited".into() },
            (kind, _) => Route::Unfollowed { why: format!("a route of type {kind}") },
        }
    }
}

/// `struct rtmsg` for a destination.
fn request(destination: IpAddr, service: u8, flags: u32) -> Vec<u8> {
    let family = if destination.is_ipv4() { IPV4 } else { IPV6 };
    let mut request = vec![family, bits(destination), 0, service, 0, 0, 0, 0];
    request.extend(flags.to_ne_bytes());
    request.extend(attribute(RTA_DST, &octets(destination)));
    request
}

fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn is_multicast(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_multicast(),
        IpAddr::V6(address) => address.is_multicast(),
    }
}

/// Errors that are answers about the route.
fn is_refusal(error: &std::io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::ENETUNREACH
                | libc::EHOSTUNREACH
                | libc::EACCES
                | libc::EINVAL
                | libc::EXDEV
                | libc::EAGAIN
                | libc::ESRCH
        )
    )
}

fn parse_route(payload: &[u8]) -> Option<Found> {
    let mut found = Found { kind: *payload.get(7)?, interfaces: Vec::new(), gateway: None, source: None };
    for (kind, value) in attributes(payload.get(ROUTE_BYTES..)?) {
        match kind {
            RTA_OIF => found.interfaces.extend(int(value, 0)),
            RTA_GATEWAY => found.gateway = address(value),
            // A gateway of the other family, behind its family.
            RTA_VIA => found.gateway = value.get(2..).and_then(address),
            RTA_PREFSRC => found.source = address(value),
            RTA_MULTIPATH => found.interfaces.extend(next_hops(value)),
            _ => {}
        }
    }
    Some(found)
}

/// The interfaces of `struct rtnexthop`, one after the other.
fn next_hops(mut bytes: &[u8]) -> Vec<u32> {
    let mut interfaces = Vec::new();
    while let (Some(length), Some(index)) = (short(bytes, 0), int(bytes, 4)) {
        interfaces.push(index);
        bytes = bytes.get(usize::from(length).next_multiple_of(4).max(8)..).unwrap_or_default();
    }
    interfaces
}

fn parse_interface(payload: &[u8]) -> Option<Interface> {
    let mut interface = Interface {
        index: int(payload, 4)?,
        name: Arc::from(""),
        kind: None,
        hardware: short(payload, 2)?,
        group: 0,
        addresses: Vec::new(),
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => interface.name = Arc::from(&*string(value)),
            libc::IFLA_GROUP => interface.group = int(value, 0)?,
            libc::IFLA_LINKINFO => {
                let name = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                interface.kind = name.map(|(_, name)| string(name));
            }
            _ => {}
        }
    }
    Some(interface)
}

/// `struct ifaddrmsg` and its attributes.
fn parse_address(payload: &[u8]) -> Option<InterfaceAddress> {
    let (prefix, scope) = (*payload.get(1)?, *payload.get(3)?);
    let mut flags = u32::from(*payload.get(2)?);
    let mut own: Option<IpAddr> = None;
    for (kind, value) in attributes(payload.get(8..)?) {
        // On point-to-point links IFA_ADDRESS is the other end and IFA_LOCAL is ours.
        match kind {
            libc::IFA_LOCAL => own = address(value),
            libc::IFA_ADDRESS => own = own.or_else(|| address(value)),
            libc::IFA_FLAGS => flags = int(value, 0)?,
            _ => {}
        }
    }
    Some(InterfaceAddress { address: own?, prefix, scope, flags })
}
