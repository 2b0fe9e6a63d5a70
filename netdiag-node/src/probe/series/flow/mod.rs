//! Packets of one flow, each told apart by its number: an answer belongs to the packet it names, however late it comes.
//!
//! ICMP echo carries the number as its sequence number. Of UDP an error quotes only the header for sure (RFC 792), so the
//! datagram's length tells. Neither is hashed by routers that choose among equal paths, and nothing else differs.
//! Answers are read from a raw ICMP socket: the error queue of a UDP socket leaves the UDP header out.

mod message;

use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::Instant;

use message::{Content, ECHO_MARK, IPV4_HEADER, IPV6_HEADER, TRANSPORT_HEADER};
use netdiag_common::observation::series::{IcmpError, ProbeFailure, ProbeStage};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::context::{Context, local, of_errno};
use super::errqueue::{self, Origin};

/// What is read of an answer: an ICMP error quotes at most 1 280 bytes (RFC 4443 §2.4), and of an echo the start is enough.
const ANSWER_BYTES: usize = 2_048;
/// The port that a route is asked with where the flow has none; nothing is sent there.
const DISCARD_PORT: u16 = 9;

/// One flow to one target.
pub(super) struct Flow {
    to: SocketAddr,
    source: SocketAddr,
    /// Sends echo requests, and hears every ICMP message of the namespace.
    icmp: AsyncFd<Socket>,
    /// None: the flow is ICMP.
    udp: Option<AsyncFd<Socket>>,
    /// Of the echo requests.
    id: u16,
    /// In each packet's payload, so that answers to others are not ours.
    nonce: u64,
    /// The last number that was sent in a datagram of this many bytes, UDP header included.
    by_length: HashMap<u16, u16>,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Answer {
    /// Of the packet it answers. None for a datagram of a server that is no echo.
    pub(super) number: Option<u16>,
    pub(super) from: IpAddr,
    /// TTL or hop limit that it arrived with.
    pub(super) ttl: Option<u8>,
    pub(super) said: Said,
    pub(super) at: Instant,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Said {
    EchoReply,
    Datagram,
    Error(IcmpError),
}

impl Flow {
    /// By UDP, or by ICMP echo when `to` has port 0. `source_port`: of ICMP the identifier; none: any.
    pub(super) async fn open(
        context: &Context,
        to: SocketAddr,
        source_port: Option<u16>,
    ) -> Result<Self, ProbeFailure> {
        let domain = Domain::for_address(to);
        let (raw, icmp_protocol) =
            (Type::from(libc::SOCK_RAW), if to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 });
        let unready = |error: io::Error| local(ProbeStage::Socket, &error);
        // Connecting a datagram socket sends nothing: it asks for the route and so for the source address.
        let route = context.socket(domain, Type::DGRAM, Protocol::UDP).await?;
        let mut asked = to;
        if to.port() == 0 {
            asked.set_port(DISCARD_PORT);
        }
        route.connect(&asked.into()).map_err(|error| of_errno(ProbeStage::Connect, &error))?;
        let source = bound(&route).map_err(unready)?;
        drop(route);

        let icmp = context.socket(domain, raw, icmp_protocol).await?;
        let mut flow = Self {
            to,
            source: without_port(source),
            icmp: watched(icmp).map_err(unready)?,
            udp: None,
            id: 0,
            nonce: RandomState::new().build_hasher().finish(),
            by_length: HashMap::new(),
        };
        let random = u16::from_be_bytes([flow.nonce.to_be_bytes()[0], flow.nonce.to_be_bytes()[1]]);
        flow.id = source_port.unwrap_or(random);
        if to.port() != 0 {
            let udp = context.socket(domain, Type::DGRAM, Protocol::UDP).await?;
            // Not connected: an ICMP error would end the next send, and answers come from other addresses than asked.
            let mut source = flow.source;
            source.set_port(source_port.unwrap_or(0));
            udp.bind(&source.into()).map_err(unready)?;
            flow.source = bound(&udp).map_err(unready)?;
            flow.udp = Some(watched(udp).map_err(unready)?);
        }
        flow.hear_ttl().map_err(unready)?;
        Ok(flow)
    }

    /// What packets leave with; port 0 for ICMP.
    pub(super) fn source(&self) -> SocketAddr {
        self.source
    }

    /// The smallest packet that carries all marks, bytes with the IP header.
    pub(super) fn smallest(&self) -> u16 {
        let header = if self.to.is_ipv4() { IPV4_HEADER } else { IPV6_HEADER };
        u16::try_from(header + TRANSPORT_HEADER + ECHO_MARK).expect("below 100")
    }

    /// DF on every packet from now on, and the kernel's remembered path MTU does not count (IP_PMTUDISC_PROBE, Linux 2.6.22).
    pub(super) fn probe_mtu(&self) -> io::Result<()> {
        let (level, option, value) = if self.to.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
        };
        let length = libc::socklen_t::try_from(size_of_val(&value)).expect("4 fits");
        // SAFETY: the kernel reads `length` bytes of `value`, which lives until the call returns.
        let result =
            unsafe { libc::setsockopt(self.sender().as_raw_fd(), level, option, (&raw const value).cast(), length) };
        Errno::result(result)?;
        if !self.to.is_ipv4() {
            setsockopt(self.sender(), sockopt::Ipv6DontFrag, &true)?;
        }
        Ok(())
    }

    /// Sends packet `number` with `bytes` in all, the IP header included, at least [`Self::smallest`].
    /// Numbers of UDP packets that must be told apart need lengths of their own.
    pub(super) fn send(&mut self, number: u16, bytes: u16, ttl: Option<u8>) -> io::Result<()> {
        let limit = ttl.map_or(-1, libc::c_int::from);
        let header = if self.to.is_ipv4() {
            setsockopt(self.sender(), sockopt::Ipv4Ttl, &limit)?;
            IPV4_HEADER
        } else {
            setsockopt(self.sender(), sockopt::Ipv6Ttl, &limit)?;
            IPV6_HEADER
        };
        // Of the transport's header and payload.
        let length = usize::from(bytes.max(self.smallest())) - header;
        if let Some(udp) = &self.udp {
            self.by_length.insert(u16::try_from(length).expect("shorter than its packet"), number);
            let payload = message::datagram(number, self.nonce, length - TRANSPORT_HEADER);
            udp.get_ref().send_to(&payload, &self.to.into())?;
        } else {
            let request = message::echo_request(!self.to.is_ipv4(), self.id, number, self.nonce, length);
            self.icmp.get_ref().send_to(&request, &without_port(self.to).into())?;
        }
        Ok(())
    }

    /// MTU of the device that the route leaves by, bytes: what this kernel says to a packet that no device takes. None where
    /// it takes it, as loopback does: then the packet was sent.
    pub(super) fn device_mtu(&mut self, number: u16) -> io::Result<Option<u32>> {
        let is_v6 = !self.to.is_ipv4();
        errqueue::enable_with_ttl(self.sender(), is_v6)?;
        let sent = self.send(number, u16::MAX, None);
        let mut found = None;
        while let Some(error) = errqueue::next(self.sender())? {
            if error.origin == Origin::Local && error.errno == libc::EMSGSIZE {
                found = Some(error.info);
            }
        }
        errqueue::disable(self.sender(), is_v6)?;
        match sent {
            Err(error) if error.raw_os_error() == Some(libc::EMSGSIZE) => Ok(found),
            Err(error) => Err(error),
            Ok(()) => Ok(None),
        }
    }

    /// Waits for the next answer to any packet of this flow.
    pub(super) async fn next(&self) -> io::Result<Answer> {
        let heard = |socket: &Socket| hear(socket);
        loop {
            let (packet, is_icmp) = match &self.udp {
                None => (self.icmp.async_io(Interest::READABLE, heard).await?, true),
                Some(udp) => tokio::select! {
                    packet = self.icmp.async_io(Interest::READABLE, heard) => (packet?, true),
                    packet = udp.async_io(Interest::READABLE, heard) => (packet?, false),
                },
            };
            let answer = if is_icmp { self.of_icmp(&packet) } else { self.of_datagram(&packet) };
            if let Some(answer) = answer {
                return Ok(answer);
            }
        }
    }

    fn of_icmp(&self, packet: &Packet) -> Option<Answer> {
        let message = match packet.from.ip() {
            IpAddr::V4(_) => message::parse_v4(&packet.bytes)?,
            IpAddr::V6(from) => message::parse_v6(&packet.bytes, from, packet.ttl)?,
        };
        let (number, said) = match message.content {
            Content::EchoReply { id, number, nonce } => {
                (self.udp.is_none() && id == self.id && nonce == Some(self.nonce))
                    .then_some((number, Said::EchoReply))?
            }
            Content::OfEcho { error, to, id, number } => {
                (self.udp.is_none() && is_our_echo((to, id), (self.to.ip(), self.id))).then_some(())?;
                (number, Said::Error(error))
            }
            Content::OfUdp { error, source, length } => {
                (self.udp.is_some() && is_our_socket(source, self.source)).then_some(())?;
                (*self.by_length.get(&length)?, Said::Error(error))
            }
        };
        Some(Answer { number: Some(number), from: message.from, ttl: message.ttl, said, at: packet.at })
    }

    /// A datagram of somebody else to our port is no answer.
    fn of_datagram(&self, packet: &Packet) -> Option<Answer> {
        (packet.from.ip() == self.to.ip() || packet.from.port() == self.to.port()).then_some(())?;
        let number = message::number_of_datagram(&packet.bytes, self.nonce);
        Some(Answer { number, from: packet.from.ip(), ttl: packet.ttl, said: Said::Datagram, at: packet.at })
    }

    fn sender(&self) -> &Socket {
        self.udp.as_ref().unwrap_or(&self.icmp).get_ref()
    }

    /// Raw IPv4 sockets have it in the header.
    fn hear_ttl(&self) -> io::Result<()> {
        if self.to.is_ipv4() {
            setsockopt(self.sender(), sockopt::Ipv4RecvTtl, &true)?;
        } else {
            setsockopt(self.icmp.get_ref(), sockopt::Ipv6RecvHopLimit, &true)?;
            setsockopt(self.sender(), sockopt::Ipv6RecvHopLimit, &true)?;
        }
        Ok(())
    }
}

/// Others in the namespace choose ids, too, and may have chosen ours: what ends their packets ends none of ours.
fn is_our_echo(quoted: (IpAddr, u16), ours: (IpAddr, u16)) -> bool {
    quoted == ours
}

/// Address and port are nobody else's while our socket has them. Where it was sent to says less: who balances at the socket (Cilium,
/// `BPF_CGROUP_UDP4_SENDMSG`) puts an endpoint there, and nobody puts the Service's address back into what an error quotes.
fn is_our_socket(quoted: SocketAddr, ours: SocketAddr) -> bool {
    (quoted.ip(), quoted.port()) == (ours.ip(), ours.port())
}

/// What one socket received: the start of it.
struct Packet {
    bytes: Vec<u8>,
    from: SocketAddr,
    ttl: Option<u8>,
    at: Instant,
}

fn hear(socket: &Socket) -> io::Result<Packet> {
    let mut bytes = vec![0; ANSWER_BYTES];
    let mut control = nix::cmsg_space!(i32);
    let mut parts = [IoSliceMut::new(&mut bytes)];
    let received =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let at = Instant::now();
    let from = received.address.and_then(|address| match (address.as_sockaddr_in(), address.as_sockaddr_in6()) {
        (Some(v4), _) => Some(SocketAddr::new(IpAddr::V4(v4.ip()), v4.port())),
        (_, Some(v6)) => Some(SocketAddr::new(IpAddr::V6(v6.ip()), v6.port())),
        _ => None,
    });
    let from = from.ok_or_else(|| io::Error::other("a packet without a sender's address"))?;
    let ttl = received.cmsgs()?.find_map(|message| match message {
        ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => u8::try_from(ttl).ok(),
        _ => None,
    });
    let length = received.bytes.min(ANSWER_BYTES);
    bytes.truncate(length);
    Ok(Packet { bytes, from, ttl, at })
}

fn watched(socket: Socket) -> io::Result<AsyncFd<Socket>> {
    // SAFETY: the `AsyncFd` owns the socket, which keeps its one descriptor open until it is dropped.
    let watched = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) };
    watched.map_err(|error| error.into_parts().1)
}

/// The scope of a link-local address stays.
fn without_port(mut address: SocketAddr) -> SocketAddr {
    address.set_port(0);
    address
}

fn bound(socket: &Socket) -> io::Result<SocketAddr> {
    let address = socket.local_addr()?.as_socket();
    address.ok_or_else(|| io::Error::other("the socket has no IP address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_about_others_packets_are_not_ours() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let ours = (address("10.244.2.5"), 7);
        assert!(is_our_echo((address("10.244.2.5"), 7), ours));
        assert!(!is_our_echo((address("10.244.2.6"), 7), ours), "an id that another one has chosen, too");
        assert!(!is_our_echo((address("10.244.2.5"), 8), ours));

        let socket = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(is_our_socket(socket("10.244.1.5:40000"), socket("10.244.1.5:40000")));
        assert!(!is_our_socket(socket("10.244.1.6:40000"), socket("10.244.1.5:40000")), "another address's port");
        assert!(!is_our_socket(socket("10.244.1.5:40001"), socket("10.244.1.5:40000")));
        let scoped = SocketAddr::V6(std::net::SocketAddrV6::new("fe80::1".parse().unwrap(), 40_000, 0, 2));
        assert!(is_our_socket(socket("[fe80::1]:40000"), scoped), "no error quotes a scope");
    }
}
