//! The bytes of a crafted packet, from its IP header on.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::observation::series::RawProbe;
use netdiag_common::observation::series::transport::RawSegment;
use pnet_packet::icmp::IcmpTypes;
use pnet_packet::icmp::echo_request::MutableEchoRequestPacket;
use pnet_packet::icmpv6::Icmpv6Types;
use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet_packet::ipv4::MutableIpv4Packet;
use pnet_packet::ipv6::{MutableFragmentPacket, MutableIpv6Packet};
use pnet_packet::tcp::MutableTcpPacket;
use pnet_packet::udp::MutableUdpPacket;
use pnet_packet::util;

pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;
const FRAGMENT_HEADER: usize = 8;
const TCP_HEADER: usize = 20;
const UDP_HEADER: usize = 8;
const ECHO_HEADER: usize = 8;
/// TTL unless one is asked for (RFC 1700).
const DEFAULT_TTL: u8 = 64;
/// "Don't fragment" and "more fragments" among the three flags of IPv4 (RFC 791).
const MORE_FRAGMENTS: u8 = 0b001;
const WINDOW: u16 = 64_240;
/// Of all fragments of one packet; there is one packet.
const IDENTIFICATION: u16 = 0x6e64;

/// From where to where; an echo's id is the source's port.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) source: SocketAddr,
    pub(super) to: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
    Echo,
}

impl Transport {
    pub(super) fn of(segment: RawSegment) -> Self {
        match segment {
            RawSegment::Tcp { .. } => Self::Tcp,
            RawSegment::Udp => Self::Udp,
            RawSegment::Echo => Self::Echo,
        }
    }

    pub(super) fn protocol(self, is_v6: bool) -> IpNextHeaderProtocol {
        match (self, is_v6) {
            (Self::Tcp, _) => IpNextHeaderProtocols::Tcp,
            (Self::Udp, _) => IpNextHeaderProtocols::Udp,
            (Self::Echo, false) => IpNextHeaderProtocols::Icmp,
            (Self::Echo, true) => IpNextHeaderProtocols::Icmpv6,
        }
    }
}

/// The packet, or its fragments in order. None when it does not fit into IP's lengths.
pub(super) fn packets(probe: &RawProbe, ends: Ends) -> Option<Vec<Vec<u8>>> {
    let transport = Transport::of(probe.segment);
    let segment = segment(probe, ends)?;
    let protocol = transport.protocol(ends.to.is_ipv6());
    let ttl = probe.ttl.unwrap_or(DEFAULT_TTL);
    let part_bytes = probe.fragment_bytes.map_or(segment.len(), usize::from);
    let parts = segment.chunks(part_bytes.max(1));
    let last = parts.len().checked_sub(1)?;
    let is_whole = last == 0;
    let packets = parts.enumerate().map(|(number, part)| {
        let fragment = Fragment { offset: number * part_bytes, is_last: number == last, is_whole };
        match (ends.source.ip(), ends.to.ip()) {
            (IpAddr::V4(source), IpAddr::V4(to)) => {
                let mut bytes = vec![0; IPV4_HEADER + part.len()];
                let length = u16::try_from(bytes.len()).ok()?;
                let mut header = MutableIpv4Packet::new(&mut bytes)?;
                header.set_version(4);
                header.set_header_length(5);
                header.set_total_length(length);
                header.set_identification(IDENTIFICATION);
                header.set_flags(if fragment.is_last { 0 } else { MORE_FRAGMENTS });
                header.set_fragment_offset(u16::try_from(fragment.offset / 8).ok()?);
                header.set_ttl(ttl);
                header.set_next_level_protocol(protocol);
                header.set_source(source);
                header.set_destination(to);
                bytes[IPV4_HEADER..].copy_from_slice(part);
                Some(bytes)
            }
            (IpAddr::V6(source), IpAddr::V6(to)) => {
                let extension = if fragment.is_whole { Vec::new() } else { fragment.v6(protocol)? };
                let mut bytes = vec![0; IPV6_HEADER];
                let mut header = MutableIpv6Packet::new(&mut bytes)?;
                header.set_version(6);
                header.set_payload_length(u16::try_from(extension.len() + part.len()).ok()?);
                header.set_next_header(if fragment.is_whole { protocol } else { IpNextHeaderProtocols::Ipv6Frag });
                header.set_hop_limit(ttl);
                header.set_source(source);
                header.set_destination(to);
                bytes.extend(extension);
                bytes.extend(part);
                Some(bytes)
            }
            _ => None,
        }
    });
    packets.collect()
}

struct Fragment {
    /// Bytes of the segment before this part.
    offset: usize,
    is_last: bool,
    is_whole: bool,
}

impl Fragment {
    /// The extension header (RFC 8200 §4.5).
    fn v6(&self, protocol: IpNextHeaderProtocol) -> Option<Vec<u8>> {
        let mut bytes = vec![0; FRAGMENT_HEADER];
        let mut header = MutableFragmentPacket::new(&mut bytes)?;
        header.set_next_header(protocol);
        // The offset counts eights in the upper 13 bits, which is bytes in all 16; the last bit says that more follows.
        header.set_fragment_offset_with_flags(u16::try_from(self.offset).ok()? | u16::from(!self.is_last));
        header.set_id(IDENTIFICATION.into());
        Some(bytes)
    }
}

/// The transport's header and payload, with its checksum.
fn segment(probe: &RawProbe, ends: Ends) -> Option<Vec<u8>> {
    let (source, to) = (ends.source.port(), ends.to.port());
    let with = |header: usize| vec![0; header + usize::from(probe.bytes)];
    let is_v6 = ends.to.is_ipv6();
    let (mut bytes, checksum_at) = match probe.segment {
        RawSegment::Tcp { flags } => {
            let mut bytes = with(TCP_HEADER);
            let mut header = MutableTcpPacket::new(&mut bytes)?;
            header.set_source(source);
            header.set_destination(to);
            header.set_sequence(1);
            header.set_acknowledgement(u32::from(flags & 0x10 != 0));
            header.set_data_offset(5);
            header.set_flags(flags & 0x3f);
            header.set_window(WINDOW);
            (bytes, 16)
        }
        RawSegment::Udp => {
            let mut bytes = with(UDP_HEADER);
            let length = u16::try_from(bytes.len()).ok()?;
            let mut header = MutableUdpPacket::new(&mut bytes)?;
            header.set_source(source);
            header.set_destination(to);
            header.set_length(length);
            (bytes, 6)
        }
        RawSegment::Echo => {
            let mut bytes = with(ECHO_HEADER);
            let mut header = MutableEchoRequestPacket::new(&mut bytes)?;
            header.set_icmp_type(IcmpTypes::EchoRequest);
            header.set_identifier(source);
            header.set_sequence_number(1);
            if is_v6 {
                bytes[0] = Icmpv6Types::EchoRequest.0;
            }
            (bytes, 2)
        }
    };
    let protocol = Transport::of(probe.segment).protocol(is_v6);
    let sum = match (ends.source.ip(), ends.to.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) if probe.segment == RawSegment::Echo => util::checksum(&bytes, checksum_at / 2),
        (IpAddr::V4(source), IpAddr::V4(to)) => {
            util::ipv4_checksum(&bytes, checksum_at / 2, &[], &source, &to, protocol)
        }
        (IpAddr::V6(source), IpAddr::V6(to)) => {
            util::ipv6_checksum(&bytes, checksum_at / 2, &[], &source, &to, protocol)
        }
        _ => return None,
    };
    // Of UDP a sum of 0 would say that there is none (RFC 768).
    let sum = if sum == 0 && probe.segment == RawSegment::Udp { 0xffff } else { sum };
    bytes[checksum_at..checksum_at + 2].copy_from_slice(&sum.to_be_bytes());
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use pnet_packet::Packet as _;
    use pnet_packet::ipv4::Ipv4Packet;
    use pnet_packet::ipv6::{FragmentPacket, Ipv6Packet};
    use pnet_packet::tcp::{TcpPacket, ipv4_checksum};

    use super::*;

    fn made(to: &str, segment: RawSegment, bytes: u16, fragment_bytes: Option<u16>) -> Vec<Vec<u8>> {
        let to: SocketAddr = to.parse().unwrap();
        let source = if to.is_ipv4() { "10.0.0.1:4000" } else { "[fd00::1]:4000" };
        let probe = RawProbe { to, source_port: None, segment, ttl: Some(7), bytes, fragment_bytes };
        packets(&probe, Ends { source: source.parse().unwrap(), to }).unwrap()
    }

    #[test]
    fn whole_segment_has_its_checksum() {
        let made = made("10.0.0.2:80", RawSegment::Tcp { flags: 2 }, 10, None);
        let [bytes] = &made[..] else { panic!("{made:?}") };
        let ip = Ipv4Packet::new(bytes).unwrap();
        assert_eq!((ip.get_ttl(), ip.get_flags(), usize::from(ip.get_total_length())), (7, 0, bytes.len()));
        let tcp = TcpPacket::new(ip.payload()).unwrap();
        assert_eq!((tcp.get_flags(), tcp.get_destination()), (2, 80));
        assert_eq!(tcp.get_checksum(), ipv4_checksum(&tcp, &ip.get_source(), &ip.get_destination()));
    }

    #[test]
    fn fragments_cover_the_segment_once() {
        let made4 = made("10.0.0.2:0", RawSegment::Echo, 100, Some(40));
        let parts: Vec<_> = made4.iter().map(|bytes| Ipv4Packet::new(bytes).unwrap()).collect();
        let told: Vec<_> =
            parts.iter().map(|ip| (ip.get_fragment_offset() * 8, ip.get_flags(), ip.payload().len())).collect();
        assert_eq!(told, [(0, 1, 40), (40, 1, 40), (80, 0, 28)]);
        let made6 = made("[fd00::2]:53", RawSegment::Udp, 100, Some(64));
        let told: Vec<_> = made6
            .iter()
            .map(|bytes| {
                let ip = Ipv6Packet::new(bytes).unwrap();
                assert_eq!(usize::from(ip.get_payload_length()), bytes.len() - IPV6_HEADER);
                FragmentPacket::new(ip.payload()).unwrap().get_fragment_offset_with_flags()
            })
            .collect();
        assert_eq!(told, [1, 64]);
    }
}
