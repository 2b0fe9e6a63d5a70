//! ICMP messages as a raw socket gives them, and the echo requests that we send. Pure: bytes in, facts out.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netdiag_common::observation::series::IcmpError;

use super::super::icmp_error::{icmp_error, is_error};

/// Headers without options, bytes.
pub(super) const IPV4_HEADER: usize = 20;
pub(super) const IPV6_HEADER: usize = 40;
/// Of UDP and of ICMP echo alike, bytes.
pub(super) const TRANSPORT_HEADER: usize = 8;
/// Of a payload, bytes: the packet's number, or what keeps the checksum the same with it, and the flow's nonce.
pub(super) const ECHO_MARK: usize = 2 + size_of::<u64>();

const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;

/// One message that a raw ICMP socket received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) from: IpAddr,
    /// TTL or hop limit that it arrived with.
    pub(super) ttl: Option<u8>,
    pub(super) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Content {
    /// `nonce`: what followed the checksum's complement in the payload; none where the reply is too short.
    EchoReply { id: u16, number: u16, nonce: Option<u64> },
    /// About an echo request that was sent to `to`.
    OfEcho { error: IcmpError, to: IpAddr, id: u16, number: u16 },
    /// About a UDP datagram. `length`: its header and payload, bytes.
    OfUdp { error: IcmpError, source: SocketAddr, length: u16 },
}

/// `packet` begins with the IPv4 header, as raw sockets of that family give it.
pub(super) fn parse_v4(packet: &[u8]) -> Option<Message> {
    let (header, icmp) = split_v4(packet)?;
    let from = ipv4_at(header, 12)?;
    Some(Message { from, ttl: Some(header[8]), content: content(false, icmp)? })
}

/// `icmp` begins with the ICMPv6 header: raw sockets of that family tell address and hop limit beside the bytes.
pub(super) fn parse_v6(icmp: &[u8], from: Ipv6Addr, ttl: Option<u8>) -> Option<Message> {
    Some(Message { from: from.into(), ttl, content: content(true, icmp)? })
}

fn content(is_v6: bool, icmp: &[u8]) -> Option<Content> {
    let (head, rest) = icmp.split_at_checked(TRANSPORT_HEADER)?;
    let (kind, code) = (head[0], head[1]);
    if kind == if is_v6 { ECHO_REPLY_V6 } else { ECHO_REPLY } {
        let nonce = rest.get(2..ECHO_MARK).and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
        return Some(Content::EchoReply { id: number_at(head, 4)?, number: number_at(head, 6)?, nonce });
    }
    if !is_error(is_v6, kind) {
        return None;
    }
    // RFC 1191 §4: the low half of the second word; RFC 4443 §3.2: the whole word.
    let mtu = if is_v6 { u32::from_be_bytes(*head.get(4..)?.first_chunk()?) } else { u32::from(number_at(head, 6)?) };
    let error = icmp_error(is_v6, kind, code, mtu);
    let quoted = if is_v6 { quoted_v6(rest)? } else { quoted_v4(rest)? };
    let transport = quoted.transport;
    let is_echo = |request: u8| transport.first() == Some(&request);
    match i32::from(quoted.protocol) {
        libc::IPPROTO_UDP => {
            let source = SocketAddr::new(quoted.from, number_at(transport, 0)?);
            Some(Content::OfUdp { error, source, length: number_at(transport, 4)? })
        }
        libc::IPPROTO_ICMP if !is_v6 && is_echo(ECHO_REQUEST) => of_echo(error, &quoted),
        libc::IPPROTO_ICMPV6 if is_v6 && is_echo(ECHO_REQUEST_V6) => of_echo(error, &quoted),
        _ => None,
    }
}

fn of_echo(error: IcmpError, quoted: &Quoted<'_>) -> Option<Content> {
    let (id, number) = (number_at(quoted.transport, 4)?, number_at(quoted.transport, 6)?);
    Some(Content::OfEcho { error, to: quoted.to, id, number })
}

/// What an error quotes: the packet as it left this stack, since translation of its addresses is undone in what is quoted, too, before
/// raw sockets see it (`nf_nat_icmp_reply_translation`, on its last hook NF_INET_LOCAL_IN).
struct Quoted<'p> {
    protocol: u8,
    from: IpAddr,
    to: IpAddr,
    /// At least 8 bytes of it (RFC 792).
    transport: &'p [u8],
}

/// None for a later fragment.
fn quoted_v4(packet: &[u8]) -> Option<Quoted<'_>> {
    const OFFSET: u16 = 0x1fff;
    let (header, transport) = split_v4(packet)?;
    (number_at(header, 6)? & OFFSET == 0).then_some(())?;
    Some(Quoted { protocol: header[9], from: ipv4_at(header, 12)?, to: ipv4_at(header, 16)?, transport })
}

/// Extension headers are not followed: we send none.
fn quoted_v6(packet: &[u8]) -> Option<Quoted<'_>> {
    let (header, transport) = packet.split_at_checked(IPV6_HEADER)?;
    (header[0] >> 4 == 6).then_some(())?;
    Some(Quoted { protocol: header[6], from: ipv6_at(header, 8)?, to: ipv6_at(header, 24)?, transport })
}

fn ipv4_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv4Addr::from(*bytes.get(at..)?.first_chunk::<4>()?).into())
}

fn ipv6_at(bytes: &[u8], at: usize) -> Option<IpAddr> {
    Some(Ipv6Addr::from(*bytes.get(at..)?.first_chunk::<16>()?).into())
}

fn split_v4(packet: &[u8]) -> Option<(&[u8], &[u8])> {
    let first = *packet.first()?;
    let length = usize::from(first & 0xf) * 4;
    (first >> 4 == 4 && length >= IPV4_HEADER).then_some(())?;
    packet.split_at_checked(length)
}

fn number_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}

/// An echo request of `length` bytes from its ICMP header on, at least [`TRANSPORT_HEADER`] + [`ECHO_MARK`].
///
/// Requests of one id, nonce and length have the same checksum, whatever their number: routers that choose among equal paths
/// by the first four bytes of ICMP choose the same for all (Augustin et al., "Avoiding traceroute anomalies with Paris
/// traceroute", 2006).
pub(super) fn echo_request(is_v6: bool, id: u16, number: u16, nonce: u64, length: usize) -> Vec<u8> {
    let mut message = Vec::with_capacity(length);
    message.extend([if is_v6 { ECHO_REQUEST_V6 } else { ECHO_REQUEST }, 0, 0, 0]);
    message.extend(id.to_be_bytes());
    message.extend(number.to_be_bytes());
    message.extend((!number).to_be_bytes());
    message.extend(nonce.to_be_bytes());
    message.resize(length.max(TRANSPORT_HEADER + ECHO_MARK), 0);
    // Of ICMPv6 the kernel computes it (RFC 3542 §3.1).
    if !is_v6 {
        let sum = checksum(&message);
        message[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    message
}

/// A UDP payload of `length` bytes, at least [`ECHO_MARK`]: the number and the nonce, which an echo server sends back.
pub(super) fn datagram(number: u16, nonce: u64, length: usize) -> Vec<u8> {
    let mut payload = Vec::with_capacity(length);
    payload.extend(number.to_be_bytes());
    payload.extend(nonce.to_be_bytes());
    payload.resize(length.max(ECHO_MARK), 0);
    payload
}

/// Of an echo server's answer. None for what another server says.
pub(super) fn number_of_datagram(payload: &[u8], nonce: u64) -> Option<u16> {
    (payload.get(2..ECHO_MARK)? == nonce.to_be_bytes()).then(|| number_at(payload, 0))?
}

/// RFC 1071.
fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u64 = 0;
    for pair in bytes.chunks(2) {
        sum += u64::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).expect("folded to 16 bits")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 packet from 10.0.0.1 with TTL 63.
    fn ipv4(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x45, 0, 0, 0, 0, 0, 0x40, 0, 63, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        packet.extend(payload);
        packet
    }

    fn ipv6(protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, 64];
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend(payload);
        packet
    }

    fn reply(request: &[u8]) -> Vec<u8> {
        let mut reply = request.to_vec();
        reply[0] = ECHO_REPLY;
        reply
    }

    #[test]
    fn requests_differ_in_number_and_not_in_checksum() {
        let sums =
            [0, 1, 77, u16::MAX].map(|number| echo_request(false, 7, number, 0x0123_4567_89ab_cdef, 64)[2..4].to_vec());
        assert!(sums.iter().all(|sum| *sum == sums[0]), "{sums:?}");
        assert_eq!(checksum(&echo_request(false, 7, 3, 9, 65)), 0, "also with an odd length");
    }

    #[test]
    fn reply_is_known_by_id_number_and_nonce() {
        let message = parse_v4(&ipv4(1, &reply(&echo_request(false, 7, 3, 99, 40)))).unwrap();
        assert_eq!((message.from.to_string().as_str(), message.ttl), ("10.0.0.1", Some(63)));
        assert_eq!(message.content, Content::EchoReply { id: 7, number: 3, nonce: Some(99) });
    }

    #[test]
    fn echoed_datagram_names_its_number() {
        let payload = datagram(5, 99, 30);
        assert_eq!((payload.len(), number_of_datagram(&payload, 99)), (30, Some(5)));
        assert_eq!(number_of_datagram(&payload, 98), None);
        assert_eq!(number_of_datagram(b"pong", 99), None);
    }

    #[test]
    fn error_is_about_what_it_quotes() {
        let echo = echo_request(false, 7, 3, 99, 1_000);
        let mut error = vec![3, 4, 0, 0, 0, 0, 5, 120];
        error.extend(&ipv4(1, &echo)[..28]);
        let message = parse_v4(&ipv4(1, &error)).unwrap();
        let too_big = icmp_error(false, 3, 4, 1_400);
        let to = IpAddr::from([10, 0, 0, 2]);
        assert_eq!(message.content, Content::OfEcho { error: too_big, to, id: 7, number: 3 });

        let udp = [0x9c, 0x40, 0, 9, 0, 41, 0, 0];
        let mut error = vec![11, 0, 0, 0, 0, 0, 0, 0];
        error.extend(ipv4(17, &udp));
        let expired = icmp_error(false, 11, 0, 0);
        let source = SocketAddr::from(([10, 0, 0, 1], 40_000));
        let content = Content::OfUdp { error: expired, source, length: 41 };
        assert_eq!(parse_v4(&ipv4(1, &error)).unwrap().content, content);
    }

    #[test]
    fn version_6_has_its_own_numbers() {
        let echo = echo_request(true, 7, 3, 99, 40);
        let mut error = vec![2, 0, 0, 0, 0, 0, 5, 0];
        error.extend(ipv6(58, &echo));
        let message = parse_v6(&error, Ipv6Addr::LOCALHOST, Some(60)).unwrap();
        assert_eq!(message.ttl, Some(60));
        let too_big = icmp_error(true, 2, 0, 1_280);
        let to = "fd00::2".parse().unwrap();
        assert_eq!(message.content, Content::OfEcho { error: too_big, to, id: 7, number: 3 });
    }

    #[test]
    fn others_messages_and_broken_ones_are_nothing() {
        let mut error = vec![11, 0, 0, 0, 0, 0, 0, 0];
        error.extend(ipv4(6, &[0; 8]));
        assert_eq!(parse_v4(&ipv4(1, &error)), None, "about TCP");
        let neighbour = [135, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(parse_v6(&neighbour, Ipv6Addr::LOCALHOST, None), None);
        let mut fragment = ipv4(17, &[0; 8]);
        fragment[7] = 5;
        let mut error = vec![11, 0, 0, 0, 0, 0, 0, 0];
        error.extend(fragment);
        assert_eq!(parse_v4(&ipv4(1, &error)), None, "of a later fragment");
        // Each length that is too short, in both families.
        let mut error = vec![3, 3, 0, 0, 0, 0, 0, 0];
        error.extend(ipv4(17, &[0; 8]));
        let whole = ipv4(1, &error);
        assert!((0..whole.len() - 2).all(|length| parse_v4(&whole[..length]).is_none()));
        let mut error = vec![1, 4, 0, 0, 0, 0, 0, 0];
        error.extend(ipv6(17, &[0; 6]));
        assert!((0..error.len()).all(|length| parse_v6(&error[..length], Ipv6Addr::LOCALHOST, None).is_none()));
    }
}
