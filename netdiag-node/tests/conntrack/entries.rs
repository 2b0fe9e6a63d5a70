//! Entries of connection tracking made by netlink, as many as a test wants.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, socket};

/// Puts entries into the table of the calling thread's namespace: replied and assured UDP flows from 10.128.0.0 + n, which
/// the kernel does not evict early.
pub(super) fn insert(numbers: std::ops::Range<u32>) {
    const BATCH: usize = 200;
    let mut batch = Vec::new();
    let end = numbers.end;
    for n in numbers {
        let source = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 128, 0, 0)) + n);
        batch.extend(new_entry((source, 1000).into(), (Ipv4Addr::new(192, 0, 2, 1), 9).into()));
        if n + 1 == end || (n as usize + 1).is_multiple_of(BATCH) {
            tell(&batch);
            batch.clear();
        }
    }
}

/// Puts one such entry into it.
pub(super) fn insert_one(from: SocketAddr, to: SocketAddr) {
    tell(&new_entry(from, to));
}

fn tell(messages: &[u8]) {
    let socket =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter).unwrap();
    send(std::os::fd::AsRawFd::as_raw_fd(&socket), messages, MsgFlags::empty()).unwrap();
}

fn new_entry(from: SocketAddr, to: SocketAddr) -> Vec<u8> {
    // `enum ctattr_ip`, and the family of the message.
    let (source, destination, family) = if from.is_ipv4() { (1, 2, 2) } else { (3, 4, 10) };
    let nested = |kind: u16, inside: &[u8]| attribute(kind | 0x8000, inside);
    let tuple = |kind: u16, from: SocketAddr, to: SocketAddr| {
        let octets = |address: SocketAddr| match address.ip() {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        let ip = [attribute(source, &octets(from)), attribute(destination, &octets(to))].concat();
        let ports =
            [attribute(1, &[17]), attribute(2, &from.port().to_be_bytes()), attribute(3, &to.port().to_be_bytes())]
                .concat();
        nested(kind, &[nested(1, &ip), nested(2, &ports)].concat())
    };
    let body = [
        vec![family, 0, 0, 0],
        tuple(1, from, to),
        tuple(2, to, from),
        // Replied, assured and confirmed, for ten minutes.
        attribute(3, &14u32.to_be_bytes()),
        attribute(7, &600u32.to_be_bytes()),
    ]
    .concat();
    let length = u32::try_from(16 + body.len()).unwrap();
    // `IPCTNL_MSG_CT_NEW` with `NLM_F_REQUEST | NLM_F_EXCL | NLM_F_CREATE`.
    [&length.to_ne_bytes()[..], &256u16.to_ne_bytes(), &0x601u16.to_ne_bytes(), &[0; 8], &body].concat()
}

fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + payload.len()).unwrap();
    let mut bytes = [&length.to_ne_bytes()[..], &kind.to_ne_bytes(), payload].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}
