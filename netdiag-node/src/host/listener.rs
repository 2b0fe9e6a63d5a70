//! Sockets that accept packets in one network namespace, by sock_diag (`net/ipv4/inet_diag.c`, Linux 3.3): TCP in LISTEN,
//! UDP bound and unconnected.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;

use netdiag_common::forwarding::packet::octets;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::listener::Listener;
use nix::sys::socket::SockProtocol;

use super::netlink::{self, IPV4, IPV6, Netlink, attributes, int};
use super::{ReadError, process};

/// `SOCK_DIAG_BY_FAMILY` of linux/sock_diag.h.
pub(crate) const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// Length of `struct inet_diag_req_v2`.
const REQUEST_BYTES: usize = 56;
/// Length of `struct inet_diag_msg`, before its attributes.
const MESSAGE_BYTES: usize = 72;
/// `INET_DIAG_SKV6ONLY` of linux/inet_diag.h.
const INET_DIAG_SKV6ONLY: u16 = 11;
/// `INET_DIAG_MARK` of linux/inet_diag.h.
const INET_DIAG_MARK: u16 = 15;
/// `INET_DIAG_SOCKOPT` of linux/inet_diag.h.
const INET_DIAG_SOCKOPT: u16 = 22;
/// `idiag_timer` of sockets in `TCP_TIME_WAIT`, and of no others (`inet_twsk_diag_fill`, Linux 6.18).
const TIME_WAIT_TIMER: u8 = 3;
/// Bit field `transparent` of `struct inet_diag_sockopt`, the sixth of its first byte.
const TRANSPARENT: u8 = if cfg!(target_endian = "little") { 1 << 5 } else { 1 << 2 };
/// Bit of `TCP_LISTEN`.
const LISTEN: u32 = 1 << 10;
/// Bit of `TCP_CLOSE`, which is what a UDP socket is in unless it was connected.
const UNCONNECTED: u32 = 1 << 7;

/// The calling thread's namespace, whose inode is `netns`; it is needed to look for the sockets' processes.
pub(crate) fn read(proc: &Path, netns: u64) -> Result<Vec<Listener>, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    let mut found = Vec::new();
    for (family, family_name) in [(IPV4, "IPv4"), (IPV6, "IPv6")] {
        for (protocol, states) in [(Protocol::Tcp, LISTEN), (Protocol::Udp, UNCONNECTED)] {
            let step = format!("list {family_name} {protocol} sockets");
            let request = request(family, protocol, states);
            found.extend(netlink.dump(SOCK_DIAG_BY_FAMILY, &request, &step, |payload| parse(payload, protocol))?);
        }
    }
    let inodes: HashSet<u64> = found.iter().map(|socket| socket.inode).filter(|inode| *inode != 0).collect();
    let mut owners = process::socket_owners(proc, netns, &inodes);
    let with_owner = |socket: Socket| Listener { process: owners.remove(&socket.inode), ..socket.listener };
    Ok(found.into_iter().map(with_owner).collect())
}

/// Where TCP sockets listen in the calling thread's namespace, without looking for their processes.
pub(crate) fn tcp_addresses() -> Result<Vec<SocketAddr>, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    let mut found = Vec::new();
    for family in [IPV4, IPV6] {
        let request = request(family, Protocol::Tcp, LISTEN);
        let decode = |payload: &[u8]| {
            parse(payload, Protocol::Tcp).map(|s| SocketAddr::new(s.listener.address, s.listener.port))
        };
        found.extend(netlink.dump(SOCK_DIAG_BY_FAMILY, &request, "list TCP sockets", decode)?);
    }
    Ok(found)
}

/// A packet that is delivered, as the kernel looks its socket up.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Delivered {
    pub protocol: Protocol,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    /// The interface it came in by.
    pub input: u32,
}

/// The socket that takes it, as the kernel itself finds it (`inet_diag_find_one_icsk`, `udp_dump_one`); those that listen
/// with it where it is one of several (`SO_REUSEPORT`).
pub(crate) fn takers(packet: &Delivered) -> Result<Vec<Taker>, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    let family = if packet.destination.is_ipv4() { IPV4 } else { IPV6 };
    let step = format!("look up the {} socket for {}", packet.protocol, packet.destination);
    let found = match netlink.get(SOCK_DIAG_BY_FAMILY, &lookup(packet, family), &step, parse_taker) {
        Err(ReadError::Call { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => None,
        found => found?,
    };
    let Some(found) = found else {
        // A kernel without the module for a protocol finds nothing either, but cannot list (`inet_diag_lock_handler`).
        netlink.dump(SOCK_DIAG_BY_FAMILY, &request(family, packet.protocol, 0), &step, |_| None::<Taker>)?;
        return Ok(Vec::new());
    };
    if found.remote.is_some() {
        return Ok(vec![found]);
    }
    let states = if packet.protocol == Protocol::Tcp { LISTEN } else { UNCONNECTED };
    let family = if found.address.is_ipv4() { IPV4 } else { IPV6 };
    let step = format!("list the {} sockets on {}", packet.protocol, found.address);
    let alike =
        |other: &Taker| other.remote.is_none() && (other.address, other.device) == (found.address, found.device);
    let mut takers =
        netlink.dump(SOCK_DIAG_BY_FAMILY, &request(family, packet.protocol, states), &step, |payload| {
            parse_taker(payload).filter(alike)
        })?;
    // It was closed meanwhile, or is of a kind that is not listed.
    if !takers.iter().any(|other| other.inode == found.inode) {
        takers.push(found);
    }
    Ok(takers)
}

/// A socket as it takes a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Taker {
    pub address: SocketAddr,
    pub remote: Option<SocketAddr>,
    pub inode: u64,
    /// `TCP_*` of net/tcp_states.h; a connection that is being opened is in `TCP_SYN_RECV` here.
    pub state: u8,
    /// It was closed here first, and is in `TCP_TIME_WAIT` for the kernel, while `state` is `TCP_FIN_WAIT2` until its
    /// other end has closed it, too (`tw_substate`).
    pub is_time_wait: bool,
    /// `IP_TRANSPARENT`; none where the kernel does not say (Linux 5.10).
    pub transparent: Option<bool>,
    /// `SO_MARK`; none for those who may not see it (`CAP_NET_ADMIN`).
    pub mark: Option<u32>,
    device: u32,
}

/// `struct inet_diag_req_v2` for one socket. Its ends are those of the socket for TCP, and those of the packet for UDP.
fn lookup(packet: &Delivered, family: u8) -> Vec<u8> {
    /// `INET_DIAG_NOCOOKIE`
    const ANY_COOKIE: [u8; 8] = [0xff; 8];
    let (first, second) = match packet.protocol {
        Protocol::Udp => (packet.source, packet.destination),
        _ => (packet.destination, packet.source),
    };
    let mut bytes = vec![family, packet.protocol.number(), 0, 0];
    bytes.extend(u32::MAX.to_ne_bytes());
    bytes.extend(first.port().to_be_bytes());
    bytes.extend(second.port().to_be_bytes());
    for end in [first, second] {
        let mut address = octets(end.ip());
        address.resize(16, 0);
        bytes.extend(address);
    }
    bytes.extend(packet.input.to_ne_bytes());
    bytes.extend(ANY_COOKIE);
    bytes
}

fn parse_taker(payload: &[u8]) -> Option<Taker> {
    let fixed = payload.get(..MESSAGE_BYTES)?;
    let end = |port: usize, address: usize| {
        let port = u16::from_be_bytes([fixed[port], fixed[port + 1]]);
        let length = match fixed[0] {
            IPV4 => 4,
            IPV6 => 16,
            _ => return None,
        };
        Some(SocketAddr::new(netlink::address(&fixed[address..address + length])?, port))
    };
    let remote = end(6, 24)?;
    let find = |wanted: u16| {
        let mut rest = attributes(payload.get(MESSAGE_BYTES..).unwrap_or_default());
        rest.find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
    };
    Some(Taker {
        address: end(4, 8)?,
        remote: (remote.port() != 0).then_some(remote),
        inode: u64::from(int(fixed, 68)?),
        state: fixed[1],
        is_time_wait: fixed[2] == TIME_WAIT_TIMER,
        transparent: find(INET_DIAG_SOCKOPT).and_then(<[u8]>::first).map(|options| options & TRANSPARENT != 0),
        mark: find(INET_DIAG_MARK).and_then(|value| int(value, 0)),
        device: int(fixed, 40)?,
    })
}

/// One socket, before its process is known.
#[derive(Debug)]
struct Socket {
    listener: Listener,
    inode: u64,
}

fn request(family: u8, protocol: Protocol, states: u32) -> Vec<u8> {
    request_with(family, protocol, states, 0)
}

/// `struct inet_diag_req_v2`. `extensions` has a bit for each attribute wanted, lowest for `INET_DIAG_MEMINFO`.
pub(crate) fn request_with(family: u8, protocol: Protocol, states: u32, extensions: u8) -> Vec<u8> {
    let mut bytes = vec![family, protocol.number(), extensions, 0];
    bytes.extend(states.to_ne_bytes());
    bytes.resize(REQUEST_BYTES, 0);
    bytes
}

/// `struct inet_diag_msg` and its attributes. None for a connected socket, in case a kernel's filter lets one through.
fn parse(payload: &[u8], protocol: Protocol) -> Option<Socket> {
    let (fixed, rest) = payload.split_at_checked(MESSAGE_BYTES)?;
    let big_endian = |at: usize| u16::from_be_bytes([fixed[at], fixed[at + 1]]);
    let (port, remote_port) = (big_endian(4), big_endian(6));
    if remote_port != 0 {
        return None;
    }
    let address = match fixed[0] {
        IPV4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(&fixed[8..12]).ok()?)),
        IPV6 => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[8..24]).ok()?)),
        _ => return None,
    };
    let v6_only = attributes(rest).any(|(kind, value)| kind == INET_DIAG_SKV6ONLY && value.first() == Some(&1));
    let listener = Listener {
        protocol,
        address,
        port,
        v6_only,
        ifindex: int(fixed, 40)?,
        receive_queue: int(fixed, 56)?,
        // For a TCP socket in LISTEN the kernel reports the accept queue's limit here; for UDP, bytes to be sent.
        backlog: if protocol == Protocol::Tcp { int(fixed, 60)? } else { 0 },
        process: None,
    };
    Some(Socket { listener, inode: u64::from(int(fixed, 68)?) })
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, UdpSocket};

    use super::*;
    use crate::host::netlink::attribute;

    fn message(family: u8, address: &[u8], port: u16, remote_port: u16) -> Vec<u8> {
        let mut bytes = vec![family, 10, 0, 0];
        bytes.extend(port.to_be_bytes());
        bytes.extend(remote_port.to_be_bytes());
        bytes.extend(address);
        bytes.resize(MESSAGE_BYTES, 0);
        bytes[56] = 3;
        bytes[60] = 128;
        bytes[68] = 77;
        bytes
    }

    #[test]
    fn v6_only_is_told_apart_from_dual_stack() {
        let mut bytes = message(IPV6, &[0; 16], 8080, 0);
        assert!(!parse(&bytes, Protocol::Tcp).unwrap().listener.v6_only);
        bytes.extend(attribute(INET_DIAG_SKV6ONLY, &[1]));
        let socket = parse(&bytes, Protocol::Tcp).unwrap();
        assert!(socket.listener.v6_only);
        assert_eq!((socket.listener.receive_queue, socket.listener.backlog, socket.inode), (3, 128, 77));
    }

    #[test]
    fn connected_socket_does_not_listen() {
        assert!(parse(&message(IPV4, &[127, 0, 0, 1], 5000, 53), Protocol::Udp).is_none());
    }

    #[test]
    fn truncated_message_is_skipped() {
        let bytes = message(IPV4, &[127, 0, 0, 1], 80, 0);
        assert!(parse(&bytes[..MESSAGE_BYTES - 1], Protocol::Tcp).is_none());
    }

    #[test]
    fn who_takes_a_packet_is_told_with_its_options() {
        let mut bytes = message(IPV4, &[127, 0, 0, 1], 80, 0);
        let plain = parse_taker(&bytes).unwrap();
        assert_eq!((plain.transparent, plain.mark, plain.state), (None, None, 10));
        bytes.extend(attribute(INET_DIAG_SOCKOPT, &[TRANSPARENT, 0]));
        bytes.extend(attribute(INET_DIAG_MARK, &7_u32.to_ne_bytes()));
        let told = parse_taker(&bytes).unwrap();
        assert_eq!((told.transparent, told.mark), (Some(true), Some(7)));
    }

    #[test]
    fn a_socket_that_waits_for_its_other_end_to_close_is_told_by_its_timer() {
        let mut bytes = message(IPV4, &[127, 0, 0, 1], 80, 5_000);
        // `TCP_FIN_WAIT2`, with a process still, and without one.
        bytes[1] = 5;
        assert!(!parse_taker(&bytes).unwrap().is_time_wait);
        bytes[2] = TIME_WAIT_TIMER;
        assert!(parse_taker(&bytes).unwrap().is_time_wait);
    }

    #[test]
    fn own_sockets_are_found_with_this_process() {
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        let udp = UdpSocket::bind("[::1]:0").unwrap();
        let proc = Path::new("/proc");
        let netns = process::netns_inode(proc, std::process::id()).unwrap().unwrap();
        let found = read(proc, netns).unwrap();
        for (protocol, address) in
            [(Protocol::Tcp, tcp.local_addr().unwrap()), (Protocol::Udp, udp.local_addr().unwrap())]
        {
            let own = found
                .iter()
                .find(|l| l.protocol == protocol && l.address == address.ip() && l.port == address.port())
                .unwrap_or_else(|| panic!("no {protocol} {address}"));
            assert_eq!(own.process.as_ref().unwrap().pid, std::process::id());
        }
    }
}
