//! The virtual server of IPVS that a packet is for, and its real servers (generic netlink, `ip_vs_ctl.c`).
//!
//! Asked only where IPVS has servers: asking for a family that is not there would load its module.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::forwarding::Packet;
use netdiag_common::forwarding::packet::{Protocol, TCP, UDP, octets};
use nix::sys::socket::SockProtocol;

use super::Found;
use crate::host::netlink::{IPV4, IPV6, Netlink, address, attribute, attributes, int, short, string};
use crate::host::{ReadError, genetlink};

// Of linux/ip_vs.h.
const FAMILY: &str = "IPVS";
const VERSION: u8 = 1;
const GET_SERVICE: u8 = 4;
const GET_DESTINATION: u8 = 8;
const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;
const SERVICE_FAMILY: u16 = 1;
const SERVICE_PROTOCOL: u16 = 2;
const SERVICE_ADDRESS: u16 = 3;
const SERVICE_PORT: u16 = 4;
const SERVICE_SCHEDULER: u16 = 6;
const DESTINATION_ADDRESS: u16 = 1;
const DESTINATION_PORT: u16 = 2;
const DESTINATION_METHOD: u16 = 3;
const DESTINATION_WEIGHT: u16 = 4;
const DESTINATION_FAMILY: u16 = 11;

/// Length of `struct genlmsghdr`.
const HEADER_BYTES: usize = 4;

/// Real servers that are named one by one.
const MAX_NAMED: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq)]
struct Real {
    address: SocketAddr,
    method: u32,
    weight: u32,
}

/// None when the packet's destination is no virtual server.
pub(super) fn server(packet: &Packet) -> Result<Option<Found>, ReadError> {
    let protocol = packet.transport().map_or(0, |transport| transport.protocol);
    let (TCP | UDP, (_, Some(port))) = (protocol, packet.known_ports()) else { return Ok(None) };
    let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
    let Some(family) = genetlink::family(&mut netlink, FAMILY)? else { return Ok(None) };
    let asked = service(packet.destination(), protocol, port);
    let scheduler = match netlink.get(family, &request(GET_SERVICE, &asked), "look up a virtual server", scheduler) {
        Err(ReadError::Call { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ESRCH | libc::ENOENT | libc::ENOMSG)) =>
        {
            return Ok(None);
        }
        found => found?,
    };
    let Some(scheduler) = scheduler else { return Ok(None) };
    let v4 = packet.protocol == Protocol::Ipv4;
    let reals =
        netlink.dump(family, &request(GET_DESTINATION, &asked), "list real servers", |payload| real(payload, v4))?;
    Ok(Some(found(protocol, SocketAddr::new(packet.destination(), port), &scheduler, &reals)))
}

fn found(protocol: u8, server: SocketAddr, scheduler: &str, reals: &[Real]) -> Found {
    let protocol = if protocol == TCP { "tcp" } else { "udp" };
    let mut words: Vec<String> = reals.iter().take(MAX_NAMED).map(Real::words).collect();
    if reals.len() > MAX_NAMED {
        words.push(format!("and {} more", reals.len() - MAX_NAMED));
    }
    let real = if words.is_empty() { "without real servers".to_owned() } else { words.join(", ") };
    Found {
        what: format!("IPVS virtual server {protocol} {server} (scheduler {scheduler}: {real})"),
        why: "IPVS is not evaluated: it sends the packet to one of its real servers, or refuses it without any"
            .to_owned(),
        remedy: "ask for the fate of a packet to a real server; `ipvsadm -Lnc` shows which one a connection has"
            .to_owned(),
    }
}

impl Real {
    fn words(&self) -> String {
        let method = match self.method & 7 {
            0 => "masquerading",
            1 => "local",
            2 => "tunnel",
            3 => "direct routing",
            _ => "bypass",
        };
        format!("{} by {method} with weight {}", self.address, self.weight)
    }
}

fn request(command: u8, service: &[u8]) -> Vec<u8> {
    let mut bytes = vec![command, VERSION, 0, 0];
    bytes.extend(attribute(SERVICE, service));
    bytes
}

/// What a virtual server is known by.
fn service(address: IpAddr, protocol: u8, port: u16) -> Vec<u8> {
    let family = u16::from(if address.is_ipv4() { IPV4 } else { IPV6 });
    let mut bytes = octets(address);
    bytes.resize(16, 0);
    [
        attribute(SERVICE_FAMILY, &family.to_ne_bytes()),
        attribute(SERVICE_PROTOCOL, &u16::from(protocol).to_ne_bytes()),
        attribute(SERVICE_ADDRESS, &bytes),
        attribute(SERVICE_PORT, &port.to_be_bytes()),
    ]
    .concat()
}

fn nested(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(payload.get(HEADER_BYTES..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn scheduler(payload: &[u8]) -> Option<String> {
    let fields = nested(payload, SERVICE)?;
    attributes(fields).find(|(kind, _)| *kind == SERVICE_SCHEDULER).map(|(_, name)| string(name))
}

/// One real server. Its family is the virtual one's on kernels that do not say (before Linux 3.18).
fn real(payload: &[u8], v4: bool) -> Option<Real> {
    let (mut bytes, mut family, mut port) = (None, u16::from(if v4 { IPV4 } else { IPV6 }), 0);
    let (mut method, mut weight) = (0, 0);
    for (kind, value) in attributes(nested(payload, DESTINATION)?) {
        match kind {
            DESTINATION_ADDRESS => bytes = Some(value),
            DESTINATION_FAMILY => family = short(value, 0)?,
            DESTINATION_PORT => port = u16::from_be(short(value, 0)?),
            DESTINATION_METHOD => method = int(value, 0)?,
            DESTINATION_WEIGHT => weight = int(value, 0)?,
            _ => {}
        }
    }
    let length = if family == u16::from(IPV4) { 4 } else { 16 };
    let address = address(bytes?.get(..length)?)?;
    Some(Real { address: SocketAddr::new(address, port), method, weight })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn destination(address: &[u8], port: u16, weight: u32) -> Vec<u8> {
        let mut bytes = address.to_vec();
        bytes.resize(16, 0);
        let fields = [
            attribute(DESTINATION_ADDRESS, &bytes),
            attribute(DESTINATION_PORT, &port.to_be_bytes()),
            attribute(DESTINATION_METHOD, &0_u32.to_ne_bytes()),
            attribute(DESTINATION_WEIGHT, &weight.to_ne_bytes()),
        ];
        [vec![GET_DESTINATION, VERSION, 0, 0], attribute(DESTINATION, &fields.concat())].concat()
    }

    #[test]
    fn real_servers_are_told_with_their_weights() {
        let reals: Vec<Real> = [([10, 0, 0, 1], 1), ([10, 0, 0, 2], 0)]
            .iter()
            .filter_map(|(at, weight)| real(&destination(at, 6443, *weight), true))
            .collect();
        let found = found(TCP, "10.96.0.1:443".parse().unwrap(), "rr", &reals);
        assert_eq!(
            found.what,
            "IPVS virtual server tcp 10.96.0.1:443 (scheduler rr: 10.0.0.1:6443 by masquerading with weight 1, 10.0.0.2:6443 by \
             masquerading with weight 0)"
        );
    }

    #[test]
    fn a_service_is_asked_for_by_what_the_kernel_knows_it_by() {
        let fields = service("10.96.0.1".parse().unwrap(), TCP, 443);
        let found: Vec<(u16, Vec<u8>)> = attributes(&fields).map(|(kind, value)| (kind, value.to_vec())).collect();
        assert_eq!(found[2].1.len(), 16);
        assert_eq!(found[3], (SERVICE_PORT, vec![1, 187]));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_server_or_none(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = (real(&bytes, true), scheduler(&bytes));
            let message = [vec![0; 4], attribute(DESTINATION, &bytes)].concat();
            let _ = real(&message, false);
        }
    }
}
