//! One socket out of `struct inet_diag_msg` (`inet_sk_diag_fill` in `net/ipv4/inet_diag.c`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netdiag_common::observation::Protocol;

use crate::host::netlink::{IPV4, IPV6, attributes, int};

/// Length of `struct inet_diag_msg`, before its attributes.
const MESSAGE_BYTES: usize = 72;
/// `INET_DIAG_SKMEMINFO` (Linux 3.2): an array of `SK_MEMINFO_*`.
const INET_DIAG_SKMEMINFO: u16 = 7;
const RECEIVE_MEMORY: usize = 0;
const RECEIVE_BUFFER: usize = 1;
/// `SK_MEMINFO_DROPS` (Linux 4.7).
const DROPS: usize = 8;

/// `TCP_LISTEN` and `TCP_SYN_RECV` of net/tcp_states.h.
pub(super) const LISTEN: u8 = 10;
pub(super) const SYN_RECEIVED: u8 = 3;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Socket {
    pub(super) protocol: Protocol,
    pub(super) state: u8,
    pub(super) local: SocketAddr,
    /// Port 0: none.
    pub(super) remote: SocketAddr,
    pub(super) receive_queue: u32,
    /// Of a socket that listens: the queue's limit.
    pub(super) send_queue: u32,
    pub(super) inode: u64,
    pub(super) receive_memory: u32,
    pub(super) receive_buffer: u32,
    pub(super) drops: u32,
}

pub(super) fn parse(payload: &[u8], protocol: Protocol) -> Option<Socket> {
    let (fixed, rest) = payload.split_at_checked(MESSAGE_BYTES)?;
    let end = |port: usize, address: usize| {
        let port = u16::from_be_bytes([fixed[port], fixed[port + 1]]);
        let address: IpAddr = match fixed[0] {
            IPV4 => Ipv4Addr::from(<[u8; 4]>::try_from(&fixed[address..address + 4]).ok()?).into(),
            IPV6 => Ipv6Addr::from(<[u8; 16]>::try_from(&fixed[address..address + 16]).ok()?).into(),
            _ => return None,
        };
        Some(SocketAddr::new(address, port))
    };
    let memory = attributes(rest).find(|(kind, _)| *kind == INET_DIAG_SKMEMINFO).map(|(_, value)| value);
    let memory = |at: usize| memory.and_then(|value| int(value, at * 4)).unwrap_or(0);
    Some(Socket {
        protocol,
        state: fixed[1],
        local: end(4, 8)?,
        remote: end(6, 24)?,
        receive_queue: int(fixed, 56)?,
        send_queue: int(fixed, 60)?,
        inode: u64::from(int(fixed, 68)?),
        receive_memory: memory(RECEIVE_MEMORY),
        receive_buffer: memory(RECEIVE_BUFFER),
        drops: memory(DROPS),
    })
}

/// `TCP_*` of net/tcp_states.h, as ss(8) spells them. UDP sockets use two of them.
pub(super) fn state_name(protocol: Protocol, state: u8) -> String {
    let name = match (protocol, state) {
        (Protocol::Udp, 7) => "unconnected",
        (_, 1) => "established",
        (_, 2) => "syn-sent",
        (_, SYN_RECEIVED | 12) => "syn-recv",
        (_, 4) => "fin-wait-1",
        (_, 5) => "fin-wait-2",
        (_, 6) => "time-wait",
        (_, 7) => "close",
        (_, 8) => "close-wait",
        (_, 9) => "last-ack",
        (_, LISTEN) => "listen",
        (_, 11) => "closing",
        (_, 13) => "bound",
        (_, other) => return format!("state {other}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of a full accept queue, as Linux 6.18 wrote them, without the netlink header.
    const FULL: &[u8] = include_bytes!("../../../tests/fixtures/host/sockdiag-listen");
    const ESTABLISHED: &[u8] = include_bytes!("../../../tests/fixtures/host/sockdiag-established");

    #[test]
    fn full_accept_queue_of_linux_6_18() {
        let socket = parse(FULL, Protocol::Tcp).unwrap();
        assert_eq!((socket.local.to_string().as_str(), socket.state), ("10.9.0.1:7777", LISTEN));
        assert_eq!((socket.receive_queue, socket.send_queue, socket.remote.port()), (2, 1, 0));
        assert!(socket.drops > 0 && socket.receive_buffer > 0 && socket.inode > 0, "{socket:?}");
    }

    #[test]
    fn connection_of_linux_6_18() {
        let socket = parse(ESTABLISHED, Protocol::Tcp).unwrap();
        assert_eq!((socket.remote.to_string().as_str(), socket.state), ("10.9.0.1:7777", 1));
        assert_eq!(state_name(socket.protocol, socket.state), "established");
    }

    #[test]
    fn states_are_those_of_ss() {
        let names = [(Protocol::Udp, 7), (Protocol::Tcp, 7), (Protocol::Tcp, 12), (Protocol::Tcp, 99)];
        let names = names.map(|(protocol, state)| state_name(protocol, state));
        assert_eq!(names, ["unconnected", "close", "syn-recv", "state 99"]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&bytes, Protocol::Udp);
        }
    }
}
