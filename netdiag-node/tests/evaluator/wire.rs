//! Packets as they go over the wire: the test's mark in them, and what of them can be compared.

use std::net::IpAddr;
use std::os::fd::{AsFd as _, OwnedFd};

use netdiag_common::forwarding::packet::{Packet, Protocol};
use socket2::{SockAddr, SockRef};

/// Writes the test's mark into a packet: the identification, or the flow label.
pub fn mark(packet: &mut Packet, marker: u16) {
    let at = if packet.protocol == Protocol::Ipv4 { 4 } else { 2 };
    packet.bytes[at..at + 2].copy_from_slice(&marker.to_be_bytes());
}

pub fn marker_of(bytes: &[u8]) -> Option<u16> {
    let at = if bytes.first()? >> 4 == 4 { 4 } else { 2 };
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The packet without what the evaluator does not keep: checksums.
pub fn comparable(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let (transport, protocol) = if bytes[0] >> 4 == 4 {
        bytes[10..12].fill(0);
        (usize::from(bytes[0] & 0xf) * 4, bytes[9])
    } else {
        (40, bytes[6])
    };
    let place = match protocol {
        6 => 16,
        17 => 6,
        1 | 58 => 2,
        _ => return bytes,
    };
    if let Some(sum) = bytes.get_mut(transport + place..transport + place + 2) {
        sum.fill(0);
    }
    bytes
}

pub fn hardware_text(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

pub fn send_raw(socket: &OwnedFd, protocol: Protocol, bytes: &[u8], mark: u32) {
    let destination: IpAddr = match protocol {
        Protocol::Ipv4 => <[u8; 4]>::try_from(&bytes[16..20]).unwrap().into(),
        Protocol::Ipv6 => <[u8; 16]>::try_from(&bytes[24..40]).unwrap().into(),
    };
    let socket = SockRef::from(socket);
    socket.set_mark(mark).unwrap();
    let _ = socket.as_fd();
    // A rule that drops or rejects the packet is told to its sender as an error.
    let _ = socket.send_to(bytes, &SockAddr::from(std::net::SocketAddr::new(destination, 0)));
}
