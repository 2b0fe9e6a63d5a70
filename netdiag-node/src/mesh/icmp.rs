//! ICMP echo over a socket of its own per request.
//!
//! A ping socket (`SOCK_DGRAM`, Linux 3.0 for IPv4, 3.11 for IPv6) gets its own replies only, but sysctl `net.ipv4.ping_group_range`
//! may forbid it, also to root; then it is a raw one, which needs `CAP_NET_RAW` and sees every ICMP message of its peer.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netdiag_common::observation::mesh::FailureClass;
use pnet_packet::util::checksum;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;
use tokio::time::timeout;

/// RFC 792, RFC 4443: type of request and reply.
const ECHO_V4: (u8, u8) = (8, 0);
const ECHO_V6: (u8, u8) = (128, 129);
/// Type, code, checksum, identifier, sequence.
const HEAD_BYTES: usize = 8;
/// Of our payload: no other reply has the same one, whatever its identifier.
const COOKIE_BYTES: usize = 16;
/// IPv4 header with options, and one reply.
const ANSWER_BYTES: usize = 512;

/// Sends one request and waits for its reply.
pub(super) async fn echo(address: IpAddr, within: Duration) -> Result<(), FailureClass> {
    let (socket, is_raw) = open(address).map_err(|_| FailureClass::NotSent)?;
    let not_sent = |error: io::Error| class(&error).unwrap_or(FailureClass::NotSent);
    socket.connect(&SocketAddr::new(address, 0).into()).map_err(not_sent)?;
    // tokio drives any datagram socket so: it only calls send(2) and recv(2).
    let socket = UdpSocket::from_std(socket.into()).map_err(not_sent)?;
    let cookie = cookie();
    let request = request(address, &cookie);
    match timeout(within, exchange(&socket, &request, address, is_raw, &cookie)).await {
        Ok(end) => end,
        Err(_) => Err(FailureClass::NoAnswer),
    }
}

fn open(address: IpAddr) -> io::Result<(Socket, bool)> {
    let (domain, protocol) = match address {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    match Socket::new(domain, Type::DGRAM.nonblocking(), Some(protocol)) {
        Ok(socket) => Ok((socket, false)),
        Err(_) => Socket::new(domain, Type::RAW.nonblocking(), Some(protocol)).map(|socket| (socket, true)),
    }
}

async fn exchange(
    socket: &UdpSocket,
    request: &[u8],
    address: IpAddr,
    is_raw: bool,
    cookie: &[u8],
) -> Result<(), FailureClass> {
    socket.send(request).await.map_err(|error| class(&error).unwrap_or(FailureClass::NotSent))?;
    let mut bytes = [0; ANSWER_BYTES];
    loop {
        let length = socket.recv(&mut bytes).await.map_err(|error| class(&error).unwrap_or(FailureClass::NoAnswer))?;
        if is_reply(&bytes[..length], address, is_raw, cookie) {
            return Ok(());
        }
    }
}

fn class(error: &io::Error) -> Option<FailureClass> {
    match error.raw_os_error()? {
        libc::EHOSTUNREACH | libc::ENETUNREACH | libc::EHOSTDOWN => Some(FailureClass::Unreachable),
        libc::ECONNREFUSED => Some(FailureClass::Refused),
        _ => None,
    }
}

fn cookie() -> [u8; COOKIE_BYTES] {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let mut cookie = [0; COOKIE_BYTES];
    cookie[..8].copy_from_slice(&count.to_be_bytes());
    // Seeded anew each time: what is seen of one request does not tell the next one.
    cookie[8..].copy_from_slice(&RandomState::new().hash_one(count).to_be_bytes());
    cookie
}

/// Identifier and sequence are from the cookie; a ping socket's kernel writes its own identifier.
fn request(address: IpAddr, cookie: &[u8; COOKIE_BYTES]) -> Vec<u8> {
    let (kind, _) = kinds(address);
    let mut packet = vec![kind, 0, 0, 0, cookie[8], cookie[9], cookie[6], cookie[7]];
    packet.extend_from_slice(cookie);
    if address.is_ipv4() {
        // For ICMPv6 the kernel does it: the sum needs the source address.
        let sum = checksum(&packet, 1);
        packet[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

fn kinds(address: IpAddr) -> (u8, u8) {
    if address.is_ipv4() { ECHO_V4 } else { ECHO_V6 }
}

fn is_reply(bytes: &[u8], address: IpAddr, is_raw: bool, cookie: &[u8]) -> bool {
    let message = if is_raw && address.is_ipv4() { after_ipv4_head(bytes) } else { Some(bytes) };
    let Some(message) = message else { return false };
    let (_, reply) = kinds(address);
    message.starts_with(&[reply, 0]) && message.get(HEAD_BYTES..).is_some_and(|payload| payload == cookie)
}

/// Raw IPv4 sockets are given the header too (raw(7)).
fn after_ipv4_head(bytes: &[u8]) -> Option<&[u8]> {
    let words = bytes.first()? & 0x0f;
    bytes.get(usize::from(words) * 4..)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    const V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
    const V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

    #[test]
    fn a_request_has_a_right_checksum() {
        let packet = request(V4, &cookie());
        assert_eq!(packet.len(), HEAD_BYTES + COOKIE_BYTES);
        // With its own checksum in place the sum is 0 (RFC 1071 §1); no word of it is left out.
        assert_eq!(checksum(&packet, usize::MAX), 0);
        assert_ne!(cookie(), cookie());
    }

    #[test]
    fn only_the_reply_to_this_request_is_one() {
        let cookie = cookie();
        for (address, kind) in [(V4, 0), (V6, 129)] {
            let mut reply = request(address, &cookie);
            assert!(!is_reply(&reply, address, false, &cookie), "the request itself, as loopback shows it");
            reply[0] = kind;
            assert!(is_reply(&reply, address, false, &cookie));
            assert!(!is_reply(&reply, address, false, &[0; COOKIE_BYTES]), "another's");
            assert!(!is_reply(&reply[..12], address, false, &cookie), "cut off");
        }
        let mut with_head = vec![0x45; 20];
        let mut reply = request(V4, &cookie);
        reply[0] = 0;
        with_head.extend(reply);
        assert!(is_reply(&with_head, V4, true, &cookie));
        for hostile in [&[][..], &[0x4f], &[0x45; 20], &[0x40, 0, 0]] {
            assert!(!is_reply(hostile, V4, true, &cookie), "{hostile:?}");
        }
    }

    #[tokio::test]
    async fn loopback_answers() {
        if !nix::unistd::geteuid().is_root() {
            return println!("netdiag-skip: loopback_answers: not root");
        }
        assert_eq!(echo(V4, Duration::from_secs(5)).await, Ok(()));
    }
}
