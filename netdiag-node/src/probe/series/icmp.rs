//! ICMP echo (RFC 792, RFC 4443): round trip and TTL of the answer, or the ICMP error and who sent it.

use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use netdiag_common::observation::series::{IcmpProbe, IcmpReport, ProbeFailure, ProbeReport, ProbeStage};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};
use nix::sys::time::TimeSpec;
use pnet_packet::util::checksum;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::time::timeout;

use super::context::{Context, Ending, local, of_errno, of_queued, silence};
use super::errqueue::{self, Origin};
use super::ready::watch;
use super::schedule::micros;
use crate::clock;

/// Headers of IPv6 and ICMP, for the node's share of bytes.
const HEADER_BYTES: u64 = 48;
/// Type, code, checksum, id, sequence number.
const ECHO_HEADER: usize = 8;
const ECHO_REQUEST: u8 = 8;
const ECHO_REPLY: u8 = 0;
const ECHO_REQUEST_V6: u8 = 128;
const ECHO_REPLY_V6: u8 = 129;
/// The only packet of its socket.
const SEQUENCE: u16 = 1;
/// An error about a packet of somebody else ends a call too.
const MAX_SENDS: usize = 8;
/// Longest IPv4 header, which raw sockets hand over.
const MAX_IPV4_HEADER: usize = 60;

/// One echo request and its socket.
struct Echo<'a> {
    probe: &'a IcmpProbe,
    socket: Socket,
    /// Hears the ICMP of the whole namespace, with IPv4 headers, and needs a checksum.
    is_raw: bool,
    id: u16,
    request: Vec<u8>,
}

pub(super) async fn attempt(context: &Context, probe: &IcmpProbe, within: Duration) -> Ending {
    let to = Some(SocketAddr::new(probe.to, 0));
    if let Err(failure) = context.allow(probe.to) {
        return Ending::failed(None, to, failure);
    }
    context.spend(1, u64::from(probe.bytes) + HEADER_BYTES).await;
    let (socket, is_raw) = match open(context, probe.to).await {
        Ok(opened) => opened,
        Err(failure) => return Ending::failed(None, to, failure),
    };
    context.stamp_packets();
    let echo = match Echo::prepare(probe, socket, is_raw) {
        Ok(echo) => echo,
        Err(failure) => return Ending::failed(None, to, failure),
    };
    let source = echo.socket.local_addr().ok().and_then(|address| address.as_socket());
    let source = source.map(|source| SocketAddr::new(source.ip(), echo.id));
    let start = Instant::now();
    let answered = match echo.send() {
        Err(failure) => Err(failure),
        Ok(()) => timeout(within, echo.answer(start)).await.unwrap_or_else(|_| {
            Err(silence(ProbeStage::Answer, format!("no echo reply in {} ms", within.as_millis())))
        }),
    };
    match answered {
        Err(failure) => Ending::failed(source, to, failure),
        Ok(report) => {
            let phases = vec![("rtt", report.rtt_us)];
            Ending { source, to, failure: None, report: ProbeReport::Icmp(report), phases }
        }
    }
}

/// A ping socket where the namespace's `net.ipv4.ping_group_range` has this agent's group, else a raw one.
async fn open(context: &Context, to: IpAddr) -> Result<(Socket, bool), ProbeFailure> {
    let (domain, protocol) = match to {
        IpAddr::V4(_) => (Domain::IPV4, Protocol::ICMPV4),
        IpAddr::V6(_) => (Domain::IPV6, Protocol::ICMPV6),
    };
    match context.socket(domain, Type::DGRAM, protocol).await {
        Ok(socket) => Ok((socket, false)),
        Err(_) => Ok((context.socket(domain, Type::RAW, protocol).await?, true)),
    }
}

impl<'a> Echo<'a> {
    fn prepare(probe: &'a IcmpProbe, socket: Socket, is_raw: bool) -> Result<Self, ProbeFailure> {
        let set_up = || {
            let is_v6 = probe.to.is_ipv6();
            errqueue::enable_with_ttl(&socket, is_v6)?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
            match (probe.ttl, is_v6) {
                (Some(ttl), false) => socket.set_ttl_v4(ttl.into())?,
                (Some(ttl), true) => socket.set_unicast_hops_v6(ttl.into())?,
                (None, _) => {}
            }
            if probe.dont_fragment {
                dont_fragment(&socket, is_v6)?;
            }
            // A ping socket's port is the id of its requests (`ping_get_port`).
            if let Some(id) = probe.identifier.filter(|_| !is_raw) {
                let any: IpAddr = if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
                socket.bind(&SocketAddr::new(any, id).into())?;
            }
            socket.local_addr()
        };
        let bound = set_up().map_err(|error| local(ProbeStage::Socket, &error))?;
        let random = RandomState::new().hash_one(probe);
        let to = match probe.to {
            IpAddr::V6(to) => SocketAddrV6::new(to, 0, 0, probe.scope.unwrap_or(0)).into(),
            IpAddr::V4(_) => SocketAddr::new(probe.to, 0),
        };
        // Connected: the kernel has chosen the source, and a raw socket does not hear what others send.
        socket.connect(&to.into()).map_err(|error| of_errno(ProbeStage::Send, &error))?;
        let bound = socket.local_addr().unwrap_or(bound);
        let id = if is_raw {
            probe.identifier.unwrap_or_else(|| u16::try_from(random >> 48).expect("16 bits are left"))
        } else {
            bound.as_socket().map_or(0, |bound| bound.port())
        };
        let mut request = vec![if probe.to.is_ipv6() { ECHO_REQUEST_V6 } else { ECHO_REQUEST }, 0, 0, 0];
        request.extend(id.to_be_bytes());
        request.extend(SEQUENCE.to_be_bytes());
        // Different each time, so that answers to others are not ours.
        request.extend(random.to_be_bytes().into_iter().cycle().take(probe.bytes.into()));
        // Ping sockets, and all of ICMPv6, have theirs from the kernel.
        if is_raw && probe.to.is_ipv4() {
            let sum = checksum(&request, 1);
            request[2..4].copy_from_slice(&sum.to_be_bytes());
        }
        Ok(Self { probe, socket, is_raw, id, request })
    }

    fn send(&self) -> Result<(), ProbeFailure> {
        for _ in 0..MAX_SENDS {
            let Err(error) = self.socket.send(&self.request) else { return Ok(()) };
            match self.error() {
                Told::Ours(failure) => return Err(failure),
                Told::OfOthers => {}
                Told::Nothing => return Err(of_errno(ProbeStage::Send, &error)),
            }
        }
        Err(local(
            ProbeStage::Send,
            &io::Error::other("errors about packets of others kept the request from being sent"),
        ))
    }

    async fn answer(&self, start: Instant) -> Result<IcmpReport, ProbeFailure> {
        // On a path inside one machine it is there already.
        if let Some(found) = self.take(start) {
            return found;
        }
        let interest = Interest::READABLE | Interest::ERROR;
        let failed = |error: io::Error| local(ProbeStage::Answer, &error);
        let waits = watch(&self.socket, interest).map_err(failed)?;
        loop {
            let mut ready = waits.ready(interest).await.map_err(failed)?;
            if let Some(found) = self.take(start) {
                return found;
            }
            ready.clear_ready();
        }
    }

    /// The answer or an error about the request, if one of them is there.
    fn take(&self, start: Instant) -> Option<Result<IcmpReport, ProbeFailure>> {
        let mut bytes = vec![0; MAX_IPV4_HEADER + self.request.len() + 1];
        loop {
            let mut control = nix::cmsg_space!(i32, i32, TimeSpec);
            let mut parts = [IoSliceMut::new(&mut bytes)];
            let descriptor = self.socket.as_raw_fd();
            let flags = MsgFlags::MSG_DONTWAIT;
            let (length, beside) = match recvmsg::<SockaddrStorage>(descriptor, &mut parts, Some(&mut control), flags) {
                // The error number may have gone by another call: then the queue alone has it.
                Err(nix::errno::Errno::EAGAIN) => return self.error().failure().map(Err),
                // An error that the queue explains is better told by it.
                Err(errno) => match self.error() {
                    Told::Ours(failure) => return Some(Err(failure)),
                    Told::OfOthers => continue,
                    Told::Nothing => return Some(Err(of_errno(ProbeStage::Answer, &errno.into()))),
                },
                // A ping socket hears replies with its id of every address (`ping_lookup`, net/ipv4/ping.c, Linux 6.18).
                Ok(message) if message.address.as_ref().and_then(address_of) != Some(self.probe.to) => continue,
                Ok(message) => (message.bytes, Beside::of(message.cmsgs().into_iter().flatten())),
            };
            if let Some(found) = self.reply(&bytes[..length]) {
                let rtt_us = micros(beside.before(start.elapsed()));
                let bytes = u16::try_from(found).unwrap_or(u16::MAX);
                return Some(Ok(IcmpReport { rtt_us, ttl: beside.ttl, bytes }));
            }
        }
    }

    /// How many bytes of payload the answer has, when it is ours.
    fn reply(&self, mut bytes: &[u8]) -> Option<usize> {
        if self.is_raw && self.probe.to.is_ipv4() {
            let header_bytes = usize::from(bytes.first()? & 0x0f) * 4;
            bytes = bytes.get(header_bytes..)?;
        }
        let (header, payload) = bytes.split_at_checked(ECHO_HEADER)?;
        let kind = if self.probe.to.is_ipv6() { ECHO_REPLY_V6 } else { ECHO_REPLY };
        let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let is_ours = header[0] == kind && number(4) == self.id && number(6) == SEQUENCE;
        (is_ours && self.request.get(ECHO_HEADER..) == Some(payload)).then_some(payload.len())
    }

    fn error(&self) -> Told {
        let mut told = Told::Nothing;
        while let Ok(Some(queued)) = errqueue::next(&self.socket) {
            match queued.origin {
                Origin::Other => {}
                Origin::Icmp | Origin::Icmp6 if !self.quotes_ours(&queued.quoted) => told = Told::OfOthers,
                Origin::Local | Origin::Icmp | Origin::Icmp6 => {
                    return Told::Ours(of_queued(ProbeStage::Answer, &queued));
                }
            }
        }
        told
    }

    /// Whether an error's packet may be this request. A raw socket is told of errors about every echo to its target
    /// (`raw_icmp_error`, net/ipv4/raw.c), a ping socket about every echo with its id (`ping_err`, net/ipv4/ping.c, Linux 6.18).
    fn quotes_ours(&self, quoted: &[u8]) -> bool {
        // Raw sockets of IPv6 get it with its header (`rawv6_err`); an echo request begins with another number.
        let header_bytes =
            if self.probe.to.is_ipv6() && quoted.first().is_some_and(|byte| byte >> 4 == 6) { 40 } else { 0 };
        let Some(header) = quoted.get(header_bytes..header_bytes + ECHO_HEADER) else { return true };
        let number = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        header[0] == self.request[0] && number(4) == self.id && number(6) == SEQUENCE
    }
}

/// What a socket's queue of errors holds.
enum Told {
    Ours(ProbeFailure),
    /// About packets of others alone.
    OfOthers,
    Nothing,
}

impl Told {
    fn failure(self) -> Option<ProbeFailure> {
        match self {
            Self::Ours(failure) => Some(failure),
            Self::OfOthers | Self::Nothing => None,
        }
    }
}

fn address_of(from: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = from.as_sockaddr_in().map(|from| from.ip().into());
    v4.or_else(|| from.as_sockaddr_in6().map(|from| from.ip().into()))
}

/// What the kernel tells of an answer beside its bytes.
#[derive(Default)]
struct Beside {
    ttl: Option<u8>,
    /// When it came, by the wall clock.
    came: Option<TimeSpec>,
}

impl Beside {
    fn of(messages: impl Iterator<Item = ControlMessageOwned>) -> Self {
        let mut beside = Self::default();
        for message in messages {
            match message {
                ControlMessageOwned::Ipv4Ttl(ttl) | ControlMessageOwned::Ipv6HopLimit(ttl) => {
                    beside.ttl = u8::try_from(ttl).ok();
                }
                ControlMessageOwned::ScmTimestampns(came) => beside.came = Some(came),
                _ => {}
            }
        }
        beside
    }

    /// How much of the time until now had passed when the answer came: how long this thread took to hear of it is not the network's.
    /// All of it where the wall clock was set meanwhile.
    fn before(&self, elapsed: Duration) -> Duration {
        self.came.and_then(clock::since).and_then(|ago| elapsed.checked_sub(ago)).unwrap_or(elapsed)
    }
}

/// With DF whatever was learnt of the path before: this packet is to find it out (`IP_PMTUDISC_PROBE`).
fn dont_fragment(socket: &Socket, is_v6: bool) -> io::Result<()> {
    let (level, option, value) = if is_v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_PMTUDISC_PROBE)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_PROBE)
    };
    let length = libc::socklen_t::try_from(size_of_val(&value)).expect("4 fits");
    // SAFETY: the kernel reads `length` bytes from `value`, which lives until the call returns.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length) };
    nix::errno::Errno::result(result).map(drop).map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wall_clock_that_was_set_leaves_the_time_as_it_is() {
        let elapsed = Duration::from_millis(3);
        let years = i64::from(u32::MAX) * 4;
        for came in [None, Some(TimeSpec::new(0, 0)), Some(TimeSpec::new(years, 0))] {
            assert_eq!(Beside { ttl: None, came }.before(elapsed), elapsed, "{came:?}");
        }
    }
}
