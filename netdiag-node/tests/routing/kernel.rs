//! The kernel's answers to the same questions: `RTM_GETROUTE`, for the packet and for the route of the table.

use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netdiag_common::forwarding::packet::octets;
use netdiag_common::forwarding::state::RouteQuery;
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};

/// `RTM_F_LOOKUP_TABLE`, `RTM_F_FIB_MATCH`
const TABLE: u32 = 0x1000;
pub const MATCH: u32 = 0x2000;

#[derive(Debug, Default, PartialEq)]
pub struct Answer {
    pub kind: u8,
    pub table: u32,
    pub service: u8,
    pub destination_bits: u8,
    pub destination: Option<IpAddr>,
    pub metric: u32,
    pub interface: Option<u32>,
    pub gateway: Option<IpAddr>,
    pub own: Option<IpAddr>,
}

pub fn ask(query: &RouteQuery, flags: u32) -> Result<Answer, Errno> {
    let kernel: OwnedFd =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute).unwrap();
    let bits = |address: &IpAddr| if address.is_ipv4() { 32 } else { 128 };
    let family = if query.destination.is_ipv4() { 2 } else { 10 };
    let source_bits = query.source.as_ref().map_or(0, bits);
    let mut body = vec![family, bits(&query.destination), source_bits, query.service, 0, 0, 0, 0];
    body.extend((TABLE | flags).to_ne_bytes());
    let mut add = |kind: u16, value: &[u8]| {
        body.extend(u16::try_from(4 + value.len()).unwrap().to_ne_bytes());
        body.extend(kind.to_ne_bytes());
        body.extend(value);
        body.resize(body.len().next_multiple_of(4), 0);
    };
    add(1, &octets(query.destination));
    if let Some(source) = query.source {
        add(2, &octets(source));
    }
    for (kind, value) in [(3, query.input), (4, query.output), (16, Some(query.mark)), (25, query.uid)] {
        if let Some(value) = value {
            add(kind, &value.to_ne_bytes());
        }
    }
    add(27, &[query.protocol]);
    if let Some((source, destination)) = query.ports {
        add(28, &source.to_be_bytes());
        add(29, &destination.to_be_bytes());
    }
    let mut request = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
    request.extend([26, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    request.extend(body);
    send(kernel.as_raw_fd(), &request, MsgFlags::empty()).unwrap();
    let mut buffer = [0; 8192];
    let length = recv(kernel.as_raw_fd(), &mut buffer, MsgFlags::empty()).unwrap();
    let message = &buffer[..length];
    // NLMSG_ERROR
    if number(message, 4) & 0xffff == 2 {
        return Err(Errno::from_raw(-number(message, 16).cast_signed()));
    }
    Ok(parse(&message[16..]))
}

fn parse(payload: &[u8]) -> Answer {
    let mut answer = Answer {
        destination_bits: payload[1],
        service: payload[3],
        table: payload[4].into(),
        kind: payload[7],
        ..Answer::default()
    };
    let mut rest = &payload[12..];
    while rest.len() >= 4 {
        let length = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
        let value = &rest[4..length];
        match u16::from_ne_bytes([rest[2], rest[3]]) {
            1 => answer.destination = Some(address(value)),
            4 => answer.interface = Some(number(value, 0)),
            5 => answer.gateway = Some(address(value)),
            6 => answer.metric = number(value, 0),
            7 => answer.own = Some(address(value)),
            15 => answer.table = number(value, 0),
            18 => answer.gateway = Some(address(&value[2..])),
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    answer
}

fn number(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn address(bytes: &[u8]) -> IpAddr {
    match <[u8; 4]>::try_from(bytes) {
        Ok(four) => four.into(),
        Err(_) => <[u8; 16]>::try_from(bytes).unwrap().into(),
    }
}
