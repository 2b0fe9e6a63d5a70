//! A target whose kernel answers no echo request: answers and errors are written by hand, so that they can be wrong.

use std::net::{IpAddr, SocketAddr, UdpSocket};

use pnet_packet::util::checksum;
use socket2::{Domain, Protocol, Socket, Type};

use crate::way::{TARGET, Way};

/// Protocol numbers.
const ICMP: u8 = 1;
const UDP: u8 = 17;
const ICMP_V6: u8 = 58;
/// Types of ICMP echo.
const REQUEST: u8 = 8;
const REPLY: u8 = 0;
const REQUEST_V6: u8 = 128;
const REPLY_V6: u8 = 129;
/// Of IPv4 without options, as raw sockets of that family hand it over, and of IPv6, which they keep.
const HEADERS: [usize; 2] = [20, 40];
/// Type, code, checksum, id, sequence number.
pub const ECHO_HEADER: usize = 8;

/// One echo request that came to the target.
pub struct Request<'a> {
    socket: &'a UdpSocket,
    from: SocketAddr,
    /// From the ICMP header on.
    pub bytes: &'a [u8],
}

/// An ICMP error.
#[derive(Clone, Copy)]
pub enum Wrong {
    TooBig { mtu: u32 },
    TimeExceeded,
}

/// Leaves each echo request to `each`, until the tests end. `family`: 0 is IPv4, 1 is IPv6.
pub fn answer(way: &Way, family: usize, each: impl Fn(&Request<'_>) + Send + 'static) {
    // The second since Linux 4.20.
    let ignores = ["net.ipv4.icmp_echo_ignore_all=1", "net.ipv6.icmp.echo_ignore_all=1"];
    way.target.sh(&format!("sysctl -qw {}", ignores[family]));
    let socket = mouth(way, TARGET[family]);
    std::thread::spawn(move || {
        let mut packet = [0; 2_048];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let (kind, header) = if from.is_ipv4() { (REQUEST, HEADERS[0]) } else { (REQUEST_V6, 0) };
            // Neighbours are asked for by ICMPv6 too.
            if let Some(bytes) = packet[..length].get(header..).filter(|bytes| bytes.first() == Some(&kind)) {
                each(&Request { socket: &socket, from, bytes });
            }
        }
    });
}

/// Speaks ICMP from an address of the target.
pub fn mouth(way: &Way, address: &str) -> UdpSocket {
    let address = SocketAddr::new(address.parse().unwrap(), 0);
    let protocol = if address.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    let raw = Type::from(libc::SOCK_RAW);
    let socket = way.target.run(|| Socket::new(Domain::for_address(address), raw, Some(protocol)).unwrap());
    socket.bind(&address.into()).unwrap();
    // For its calls, which every socket has that sends whole messages.
    socket.into()
}

impl Request<'_> {
    /// The true answer, not sent yet.
    pub fn reply(&self) -> Vec<u8> {
        let mut reply = self.bytes.to_vec();
        reply[0] = if self.from.is_ipv4() { REPLY } else { REPLY_V6 };
        reply
    }

    /// How large the packet was, with its IP header.
    pub fn packet_bytes(&self) -> usize {
        HEADERS[usize::from(self.from.is_ipv6())] + self.bytes.len()
    }

    pub fn send(&self, message: &[u8]) {
        self.send_by(self.socket, message);
    }

    pub fn send_by(&self, socket: &UdpSocket, message: &[u8]) {
        let mut message = message.to_vec();
        message[2..4].fill(0);
        // Of ICMPv6 the kernel computes it (RFC 3542 §3.1).
        if self.from.is_ipv4() {
            let sum = checksum(&message, 1);
            message[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        socket.send_to(&message, self.from).unwrap();
    }

    /// An error about this request.
    pub fn error(&self, wrong: Wrong) -> Vec<u8> {
        error(self.from.is_ipv6(), wrong, &self.quote(self.protocol(), self.bytes))
    }

    /// Errors about packets that the client did not send: others would be told of these.
    pub fn errors_about_others(&self, wrong: Wrong) -> Vec<Vec<u8>> {
        let changed = |change: fn(&mut Vec<u8>)| {
            let mut bytes = self.bytes.to_vec();
            change(&mut bytes);
            bytes
        };
        let own = self.protocol();
        let quotes = [
            self.quote(own, &changed(|bytes| bytes[4] ^= 1)),
            // A sequence number that no series reaches.
            self.quote(own, &changed(|bytes| bytes[6] ^= 0x40)),
            self.quote(own, &self.reply()),
            self.quote(UDP, self.bytes),
            self.quote(own, &self.bytes[..ECHO_HEADER - 4]),
            Vec::new(),
        ];
        quotes.iter().map(|quoted| error(self.from.is_ipv6(), wrong, quoted)).collect()
    }

    fn protocol(&self) -> u8 {
        if self.from.is_ipv4() { ICMP } else { ICMP_V6 }
    }

    /// A packet from the client to the target.
    fn quote(&self, protocol: u8, transport: &[u8]) -> Vec<u8> {
        let length = u16::try_from(transport.len()).unwrap();
        match (self.from.ip(), self.socket.local_addr().unwrap().ip()) {
            (IpAddr::V4(client), IpAddr::V4(target)) => {
                let [high, low] = (length + 20).to_be_bytes();
                let start = [0x45, 0, high, low, 0, 0, 0x40, 0, 1, protocol, 0, 0];
                [&start[..], &client.octets(), &target.octets(), transport].concat()
            }
            (IpAddr::V6(client), IpAddr::V6(target)) => {
                let [high, low] = length.to_be_bytes();
                let start = [0x60, 0, 0, 0, high, low, protocol, 1];
                [&start[..], &client.octets(), &target.octets(), transport].concat()
            }
            mixed => panic!("{mixed:?}"),
        }
    }
}

/// RFC 792 with RFC 1191 §4, and RFC 4443 §3. No more is quoted than fits into the smallest MTU of IPv6.
fn error(is_v6: bool, wrong: Wrong, quoted: &[u8]) -> Vec<u8> {
    const MOST_QUOTED: usize = 1_232;
    let (kind, code, word) = match (wrong, is_v6) {
        (Wrong::TooBig { mtu }, false) => (3, 4, mtu & 0xffff),
        (Wrong::TooBig { mtu }, true) => (2, 0, mtu),
        (Wrong::TimeExceeded, false) => (11, 0, 0),
        (Wrong::TimeExceeded, true) => (3, 0, 0),
    };
    let quoted = &quoted[..quoted.len().min(MOST_QUOTED)];
    [&[kind, code, 0, 0][..], &word.to_be_bytes(), quoted].concat()
}
