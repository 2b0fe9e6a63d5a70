//! One packet as a hook sees it: bytes from the network header on, and what the kernel keeps beside them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use super::conntrack::Connection;
use super::fact::Fact;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const GRE: u8 = 47;
pub const ICMPV6: u8 = 58;

/// Of byte 13 of TCP's header.
pub(super) mod flag {
    pub const FIN: u8 = 1;
    pub const SYN: u8 = 2;
    pub const RST: u8 = 4;
    pub const ACK: u8 = 16;
}

/// In network byte order.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// The network protocol of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Ipv4,
    Ipv6,
}

/// Where the packet enters the hooks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// It came in on this interface: prerouting first.
    Received { interface: u32 },
    /// A socket here sent it: output first.
    Sent,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    pub protocol: Protocol,
    pub origin: Origin,
    /// Ethernet header as received; empty when there is none, as with packets of this host.
    pub link: Vec<u8>,
    /// Whom on the link its sender gave it to, a router or the destination itself; none where that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_hop: Option<IpAddr>,
    /// From the network header on. May end before the packet does.
    pub bytes: Vec<u8>,
    /// `skb->len` while it is with netfilter: the network header and all behind it, in bytes.
    pub length: u32,
    /// Bytes that are not known, by their offset from the network header: a port that the kernel chose at random.
    pub unknown: Vec<UnknownBytes>,
    pub mark: Fact<u32>,
    pub priority: Fact<u32>,
    /// `skb->pkt_type`: 0 to this host, 1 broadcast, 2 multicast, 3 to another host.
    pub kind: Fact<u8>,
    pub socket: Fact<Option<Socket>>,
    /// What connection tracking has for it when it enters.
    pub connection: Fact<Connection>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnknownBytes {
    pub offset: usize,
    pub bytes: usize,
    pub why: String,
}

/// The socket that sent the packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Socket {
    pub uid: Fact<u32>,
    pub gid: Fact<u32>,
    /// `net_cls` class, which is what `meta cgroup` reads.
    pub class: Fact<u32>,
}

/// The transport header as far as a header that is there says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transport {
    pub protocol: u8,
    /// From the network header, in bytes.
    pub offset: usize,
    /// Offset of this fragment in units of eight bytes; 0 for whole packets and first fragments.
    pub fragment: u16,
}

impl Packet {
    /// A packet whose connection is new, and of which everything that belongs to no header is as the stack initialises it.
    pub fn new(protocol: Protocol, origin: Origin, bytes: Vec<u8>) -> Self {
        let socket = match origin {
            Origin::Received { .. } => Fact::Known(None),
            Origin::Sent => Fact::Unknown("the socket that sends it was not given".into()),
        };
        Self {
            protocol,
            origin,
            link: Vec::new(),
            next_hop: None,
            length: u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            bytes,
            unknown: Vec::new(),
            mark: Fact::Known(0),
            priority: Fact::Known(0),
            kind: Fact::Known(0),
            socket,
            connection: Fact::Known(Connection::New),
        }
    }

    /// A packet between two addresses of one family; none when the families differ.
    pub fn between(
        origin: Origin,
        source: IpAddr,
        destination: IpAddr,
        protocol: u8,
        transport: &[u8],
    ) -> Option<Self> {
        let (version, bytes) = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                (Protocol::Ipv4, ipv4(source, destination, protocol, transport))
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                (Protocol::Ipv6, ipv6(source, destination, protocol, transport))
            }
            _ => return None,
        };
        Some(Self::new(version, origin, bytes))
    }

    pub fn source(&self) -> IpAddr {
        match self.protocol {
            Protocol::Ipv4 => Ipv4Addr::from(self.array::<4>(12)).into(),
            Protocol::Ipv6 => Ipv6Addr::from(self.array::<16>(8)).into(),
        }
    }

    pub fn destination(&self) -> IpAddr {
        match self.protocol {
            Protocol::Ipv4 => Ipv4Addr::from(self.array::<4>(16)).into(),
            Protocol::Ipv6 => Ipv6Addr::from(self.array::<16>(24)).into(),
        }
    }

    /// Type of service, or traffic class.
    pub fn service(&self) -> u8 {
        match self.protocol {
            Protocol::Ipv4 => self.bytes.get(1).copied().unwrap_or(0),
            Protocol::Ipv6 => (u16::from_be_bytes(self.array::<2>(0)) >> 4).to_le_bytes()[0],
        }
    }

    /// Time to live, or hop limit.
    pub fn hops_left(&self) -> u8 {
        let offset = if self.protocol == Protocol::Ipv4 { 8 } else { 7 };
        self.bytes.get(offset).copied().unwrap_or(0)
    }

    /// As `nft_set_pktinfo_ipv4` and `nft_set_pktinfo_ipv6` find it (Linux 6.18); none when the headers do not add up.
    pub fn transport(&self) -> Option<Transport> {
        match self.protocol {
            Protocol::Ipv4 => {
                let first = *self.bytes.first()?;
                let fragment = u16::from_be_bytes(self.bytes.get(6..8)?.try_into().ok()?) & 0x1fff;
                let offset = usize::from(first & 0xf) * 4;
                Some(Transport { protocol: *self.bytes.get(9)?, offset, fragment })
            }
            Protocol::Ipv6 => self.ipv6_transport(),
        }
    }

    /// As `ipv6_find_hdr` without a target: behind the last extension header, or at a later fragment's first byte.
    fn ipv6_transport(&self) -> Option<Transport> {
        let (mut next, mut offset) = (*self.bytes.get(6)?, 40);
        loop {
            let bytes = match next {
                0 | 43 | 60 => (usize::from(*self.bytes.get(offset + 1)?) + 1) * 8,
                // Authentication header, in words of four bytes.
                51 => (usize::from(*self.bytes.get(offset + 1)?) + 2) * 4,
                44 => {
                    let fragment = u16::from_be_bytes(self.bytes.get(offset + 2..offset + 4)?.try_into().ok()?) >> 3;
                    if fragment != 0 {
                        return Some(Transport { protocol: *self.bytes.get(offset)?, offset, fragment });
                    }
                    8
                }
                _ => return Some(Transport { protocol: next, offset, fragment: 0 }),
            };
            next = *self.bytes.get(offset)?;
            offset += bytes;
        }
    }

    /// Where a fragment begins, in units of eight bytes; none of whole packets (`ip_is_fragment`; of IPv6 as
    /// `nf_ct_frag6_gather` takes what is behind the first header).
    pub(super) fn fragment(&self) -> Option<u16> {
        match self.protocol {
            Protocol::Ipv4 => {
                // `IP_MF | IP_OFFSET`
                let field = self.number(6)? & 0x3fff;
                (field != 0).then_some(field & 0x1fff)
            }
            Protocol::Ipv6 => {
                // `IP6_MF | IP6_OFFSET`
                let field = self.number(42).filter(|_| self.bytes.get(6) == Some(&44))? & 0xfff9;
                (field != 0).then_some(field >> 3)
            }
        }
    }

    /// Source and destination port; none for protocols without ports, and fragments.
    pub fn ports(&self) -> Option<(u16, u16)> {
        let transport = self.transport().filter(|transport| transport.fragment == 0)?;
        let at = transport.offset;
        // TCP, UDP, DCCP, SCTP, UDP-Lite.
        matches!(transport.protocol, TCP | UDP | 33 | 132 | 136)
            .then(|| Some((self.number(at)?, self.number(at + 2)?)))
            .flatten()
    }

    /// The same, each only if it is known.
    pub fn known_ports(&self) -> (Option<u16>, Option<u16>) {
        let (Some(transport), Some((source, destination))) = (self.transport(), self.ports()) else {
            return (None, None);
        };
        let is_known = |at: usize| {
            !self.unknown.iter().any(|unknown| unknown.offset < at + 2 && unknown.offset + unknown.bytes > at)
        };
        let at = transport.offset;
        (is_known(at).then_some(source), is_known(at + 2).then_some(destination))
    }

    /// Two bytes in network byte order.
    pub(super) fn number(&self, offset: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.bytes.get(offset..offset + 2)?.try_into().ok()?))
    }

    /// Overwrites known bytes; what lies behind those that are held is lost.
    pub(super) fn write(&mut self, offset: usize, value: &[u8]) {
        self.unknown
            .retain(|unknown| unknown.offset + unknown.bytes <= offset || offset + value.len() <= unknown.offset);
        for (at, byte) in value.iter().enumerate() {
            if let Some(held) = self.bytes.get_mut(offset + at) {
                *held = *byte;
            }
        }
    }

    /// Makes the packet this long with a payload of zeros that is not held; never shorter than what is held.
    pub fn set_length(&mut self, bytes: u32) {
        let held = u32::try_from(self.bytes.len()).unwrap_or(u32::MAX);
        self.length = bytes.max(held).min(u16::MAX.into());
        let is_ipv4 = self.protocol == Protocol::Ipv4;
        let fits = |length: u32| u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes();
        self.write(
            if is_ipv4 { 2 } else { 4 },
            &fits(if is_ipv4 { self.length } else { self.length.saturating_sub(40) }),
        );
        if let Some(transport) =
            self.transport().filter(|transport| transport.protocol == UDP && transport.fragment == 0)
        {
            let before = u32::try_from(transport.offset).unwrap_or(u32::MAX);
            self.write(transport.offset + 4, &fits(self.length.saturating_sub(before)));
        }
    }

    /// Lets routers fragment a packet of IPv4.
    pub fn allow_fragments(&mut self) {
        if self.protocol == Protocol::Ipv4 {
            self.write(6, &[0]);
        }
    }

    fn array<const N: usize>(&self, offset: usize) -> [u8; N] {
        self.bytes.get(offset..offset + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }
}

/// An IPv4 packet without options, 64 hops from its end.
fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + transport.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend(transport);
    bytes
}

fn ipv6(source: Ipv6Addr, destination: Ipv6Addr, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let length = u16::try_from(transport.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut bytes = vec![0x60, 0, 0, 0, length[0], length[1], protocol, 64];
    bytes.extend(source.octets());
    bytes.extend(destination.octets());
    bytes.extend(transport);
    bytes
}

/// A TCP header without options. `flags` as in its byte 13: 2 is SYN, 16 is ACK.
pub fn tcp(source_port: u16, destination_port: u16, flags: u8) -> Vec<u8> {
    let mut bytes = Vec::from(source_port.to_be_bytes());
    bytes.extend(destination_port.to_be_bytes());
    bytes.extend([0; 8]);
    // Twenty bytes; a window that receivers accept.
    bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes
}

pub fn udp(source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::from(source_port.to_be_bytes());
    bytes.extend(destination_port.to_be_bytes());
    bytes.extend(u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes());
    bytes.extend([0, 0]);
    bytes.extend(payload);
    bytes
}

/// An ICMP or ICMPv6 message with an identifier, such as an echo request.
pub fn icmp(kind: u8, code: u8, identifier: u16) -> Vec<u8> {
    let mut bytes = vec![kind, code, 0, 0];
    bytes.extend(identifier.to_be_bytes());
    bytes.extend([0, 1]);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(next: u8, rest: &[u8]) -> Packet {
        let any = IpAddr::V6(Ipv6Addr::LOCALHOST);
        Packet::between(Origin::Sent, any, any, next, rest).unwrap()
    }

    #[test]
    fn ports_are_found_behind_extension_headers() {
        // Hop-by-hop options, then UDP.
        let mut rest = vec![UDP, 0, 0, 0, 0, 0, 0, 0];
        rest.extend(udp(1000, 53, b""));
        let packet = v6(0, &rest);
        assert_eq!(packet.ports(), Some((1000, 53)));
        assert_eq!(packet.transport().unwrap().offset, 48);
    }

    #[test]
    fn later_fragments_have_no_ports() {
        let mut rest = vec![UDP, 0, 0, 8, 0, 0, 0, 1];
        rest.extend(udp(1000, 53, b""));
        let packet = v6(44, &rest);
        assert_eq!(packet.transport().unwrap().fragment, 1);
        assert_eq!(packet.ports(), None);
    }

    #[test]
    fn headers_that_do_not_add_up_have_no_transport() {
        let mut packet = v6(0, &[]);
        packet.bytes.truncate(41);
        assert_eq!(packet.transport(), None);
    }

    #[test]
    fn addresses_and_ports_are_read_back() {
        let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let packet = Packet::between(Origin::Sent, source, destination, TCP, &tcp(4242, 80, 2)).unwrap();
        assert_eq!((packet.source(), packet.destination(), packet.ports()), (source, destination, Some((4242, 80))));
        assert_eq!(packet.length, 40);
    }
}
