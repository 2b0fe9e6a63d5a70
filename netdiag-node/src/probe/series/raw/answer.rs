//! Whether a received message answers a crafted packet, and what it says.

use std::net::IpAddr;

use pnet_packet::icmp::IcmpTypes;
use pnet_packet::icmpv6::Icmpv6Types;
use pnet_packet::tcp::{TcpFlags, TcpPacket};

use super::packet::{Ends, IPV4_HEADER, IPV6_HEADER, Transport};
use crate::probe::series::icmp_error::{icmp_error, is_error};

/// The part of an ICMP error before the packet that it quotes.
const ERROR_HEADER: usize = 8;

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) from: IpAddr,
    pub(super) words: String,
}

/// A message of the protocol itself, with the IP header where `from` is IPv4 (raw(7)).
pub(super) fn reply(bytes: &[u8], from: IpAddr, transport: Transport, ends: Ends) -> Option<Answer> {
    if from != ends.to.ip() {
        return None;
    }
    let bytes = without_header(bytes, from)?;
    let port = |at: usize| Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]));
    let words = match transport {
        Transport::Echo => {
            let kind = if from.is_ipv6() { Icmpv6Types::EchoReply.0 } else { IcmpTypes::EchoReply.0 };
            (*bytes.first()? == kind && port(4)? == ends.source.port()).then(|| "echo reply".to_owned())?
        }
        Transport::Tcp | Transport::Udp if (port(0)?, port(2)?) != (ends.to.port(), ends.source.port()) => return None,
        Transport::Udp => "datagram".to_owned(),
        Transport::Tcp => flags(TcpPacket::new(bytes)?.get_flags()),
    };
    Some(Answer { from, words })
}

/// An ICMP error that quotes our packet: at least its first eight bytes (RFC 792).
pub(super) fn error(bytes: &[u8], from: IpAddr, transport: Transport, ends: Ends) -> Option<Answer> {
    let is_v6 = from.is_ipv6();
    let bytes = without_header(bytes, from)?;
    let (kind, code) = (*bytes.first()?, *bytes.get(1)?);
    if !is_error(is_v6, kind) {
        return None;
    }
    let mtu = u32::from_be_bytes(bytes.get(4..8)?.try_into().ok()?);
    // IPv4 has the MTU in the lower half.
    let mtu = if is_v6 { mtu } else { mtu & 0xffff };
    let quoted = bytes.get(ERROR_HEADER..)?;
    let (protocol, to, header) = if is_v6 {
        let to: [u8; 16] = quoted.get(24..IPV6_HEADER)?.try_into().ok()?;
        (*quoted.get(6)?, IpAddr::from(to), quoted.get(IPV6_HEADER..)?)
    } else {
        let to: [u8; 4] = quoted.get(16..IPV4_HEADER)?.try_into().ok()?;
        (*quoted.get(9)?, IpAddr::from(to), quoted.get(usize::from(quoted[0] & 0x0f) * 4..)?)
    };
    let number = |at: usize| Some(u16::from_be_bytes([*header.get(at)?, *header.get(at + 1)?]));
    let is_fragment = is_v6 && protocol == pnet_packet::ip::IpNextHeaderProtocols::Ipv6Frag.0;
    let is_ours = to == ends.to.ip()
        && (is_fragment
            || protocol == transport.protocol(is_v6).0
                && match transport {
                    Transport::Echo => number(4)? == ends.source.port(),
                    Transport::Tcp | Transport::Udp => (number(0)?, number(2)?) == (ends.source.port(), ends.to.port()),
                });
    is_ours.then(|| Answer { from, words: icmp_error(is_v6, kind, code, mtu).words })
}

/// Raw sockets hand over the header of IPv4, and none of IPv6.
fn without_header(bytes: &[u8], from: IpAddr) -> Option<&[u8]> {
    match from {
        IpAddr::V4(_) => bytes.get(usize::from(bytes.first()? & 0x0f) * 4..),
        IpAddr::V6(_) => Some(bytes),
    }
}

/// `RST`, `SYN ACK`: the way most people say it.
fn flags(flags: u8) -> String {
    if flags & TcpFlags::RST != 0 {
        return "RST".to_owned();
    }
    let names = [
        (TcpFlags::SYN, "SYN"),
        (TcpFlags::FIN, "FIN"),
        (TcpFlags::PSH, "PSH"),
        (TcpFlags::URG, "URG"),
        (TcpFlags::ACK, "ACK"),
    ];
    let set: Vec<&str> = names.iter().filter(|(flag, _)| flags & flag != 0).map(|(_, name)| *name).collect();
    if set.is_empty() { "segment without flags".to_owned() } else { set.join(" ") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn ends() -> Ends {
        Ends { source: "10.0.0.1:4000".parse().unwrap(), to: "10.0.0.2:80".parse().unwrap() }
    }

    /// An IPv4 header without options before `rest`.
    fn with_header(protocol: u8, to: [u8; 4], rest: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; IPV4_HEADER];
        (bytes[0], bytes[9]) = (0x45, protocol);
        bytes[16..20].copy_from_slice(&to);
        bytes.extend(rest);
        bytes
    }

    #[test]
    fn reset_is_ours_by_its_ports() {
        let mut segment = [0; 20];
        (segment[1], segment[2], segment[3]) = (80, 0x0f, 0xa0);
        (segment[12], segment[13]) = (0x50, TcpFlags::RST | TcpFlags::ACK);
        let bytes = with_header(6, [10, 0, 0, 1], &segment);
        let from = ends().to.ip();
        assert_eq!(reply(&bytes, from, Transport::Tcp, ends()).unwrap().words, "RST");
        assert!(reply(&bytes, "10.0.0.3".parse().unwrap(), Transport::Tcp, ends()).is_none());
        segment[1] = 81;
        assert!(reply(&with_header(6, [10, 0, 0, 1], &segment), from, Transport::Tcp, ends()).is_none());
    }

    #[test]
    fn error_is_ours_by_what_it_quotes() {
        let quoted = with_header(17, [10, 0, 0, 2], &[0x0f, 0xa0, 0, 80, 0, 8, 0, 0]);
        let mut message = vec![3, 13, 0, 0, 0, 0, 0, 0];
        message.extend(quoted);
        let bytes = with_header(1, [10, 0, 0, 1], &message);
        let router = "10.0.0.254".parse().unwrap();
        let found = error(&bytes, router, Transport::Udp, ends()).unwrap();
        assert_eq!((found.words.as_str(), found.from), ("administratively prohibited", router));
        assert!(error(&bytes, router, Transport::Tcp, ends()).is_none());
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..120), is_v6 in any::<bool>()) {
            let from: IpAddr = if is_v6 { "fd00::2".parse().unwrap() } else { ends().to.ip() };
            for transport in [Transport::Tcp, Transport::Udp, Transport::Echo] {
                let _ = reply(&bytes, from, transport, ends());
                let _ = error(&bytes, from, transport, ends());
            }
        }
    }
}
