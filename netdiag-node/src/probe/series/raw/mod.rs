//! One crafted packet, for proofs only: TCP with any flags, UDP or echo, with any TTL, whole or in fragments.

mod answer;
mod packet;

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use answer::Answer;
use netdiag_common::observation::series::transport::RawSegment;
use netdiag_common::observation::series::{ProbeFailure, ProbeReport, ProbeStage, RawProbe, RawReport};
use packet::{Ends, Transport};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::time::timeout;

use super::context::{Context, Ending, local, of_errno, silence, source_to};
use super::ready::watch;
use super::schedule::micros;

/// `IP_NODEFRAG` (Linux 2.6.37): connection tracking must not put our fragments together before they leave.
const IP_NODEFRAG: libc::c_int = 22;
/// What is read of an answer: its headers, and of an ICMP error the packet that it quotes.
const ANSWER_BYTES: usize = 2_048;

pub(super) async fn attempt(context: &Context, probe: &RawProbe, within: Duration) -> Ending {
    if let Err(failure) = context.allow(probe.to.ip()) {
        return Ending::failed(None, Some(probe.to), failure);
    }
    let Some(source) = source_to(probe.to) else {
        let error = io::Error::from_raw_os_error(libc::ENETUNREACH);
        return Ending::failed(None, Some(probe.to), of_errno(ProbeStage::Send, &error));
    };
    match exchange(context, probe, source, within).await {
        Err(failure) => Ending::failed(None, Some(probe.to), failure),
        Ok((source, report, failure)) => {
            let phases = report.rtt_us.map(|rtt| ("rtt", rtt)).into_iter().collect();
            Ending { source: Some(source), to: Some(probe.to), failure, report: ProbeReport::Raw(report), phases }
        }
    }
}

async fn exchange(
    context: &Context,
    probe: &RawProbe,
    source: IpAddr,
    within: Duration,
) -> Result<(SocketAddr, RawReport, Option<ProbeFailure>), ProbeFailure> {
    let failed = |error: io::Error| local(ProbeStage::Socket, &error);
    let domain = Domain::for_address(probe.to);
    let (protocol, icmp) = protocols(probe);
    // Holds the port, so that no program gets it meanwhile.
    let (_held, port) = hold(context, probe).await?;
    let ends = Ends { source: SocketAddr::new(source, port), to: probe.to };
    let replies = context.socket(domain, Type::RAW, protocol).await?;
    let errors = context.socket(domain, Type::RAW, icmp).await?;
    let sender = context.socket(domain, Type::RAW, Protocol::from(libc::IPPROTO_RAW)).await?;
    no_defragmentation(&sender, probe.to.is_ipv6()).map_err(failed)?;

    let packets = packet::packets(probe, ends).ok_or_else(|| failed(io::Error::from_raw_os_error(libc::EMSGSIZE)))?;
    let bytes = packets.iter().map(|packet| packet.len() as u64).sum();
    context.spend(u32::try_from(packets.len()).unwrap_or(u32::MAX), bytes).await;
    let start = Instant::now();
    let mut to = probe.to;
    // Of a raw IPv6 socket the port would be the protocol.
    to.set_port(0);
    for packet in &packets {
        sender.send_to(packet, &to.into()).map_err(|error| of_errno(ProbeStage::Send, &error))?;
    }
    let mut report = RawReport { sent: u32::try_from(packets.len()).unwrap_or(u32::MAX), ..RawReport::default() };
    let heard = timeout(within, hear(&replies, &errors, Transport::of(probe.segment), ends)).await;
    let failure = match heard {
        Err(_) => Some(silence(ProbeStage::Answer, format!("no answer in {} ms", within.as_millis()))),
        Ok(heard) => {
            let answer = heard.map_err(|error| local(ProbeStage::Answer, &error))?;
            report.rtt_us = Some(micros(start.elapsed()));
            report.answered_by = Some(answer.from);
            report.answer = Some(answer.words);
            None
        }
    };
    Ok((ends.source, report, failure))
}

/// Of the answers, and of errors.
fn protocols(probe: &RawProbe) -> (Protocol, Protocol) {
    let icmp = if probe.to.is_ipv4() { Protocol::ICMPV4 } else { Protocol::ICMPV6 };
    match probe.segment {
        RawSegment::Tcp { .. } => (Protocol::TCP, icmp),
        RawSegment::Udp => (Protocol::UDP, icmp),
        RawSegment::Echo => (icmp, icmp),
    }
}

/// A bound socket and its port; for an echo an id of nobody in particular.
async fn hold(context: &Context, probe: &RawProbe) -> Result<(Option<Socket>, u16), ProbeFailure> {
    let (kind, protocol) = match probe.segment {
        RawSegment::Tcp { .. } => (Type::STREAM, Protocol::TCP),
        RawSegment::Udp => (Type::DGRAM, Protocol::UDP),
        RawSegment::Echo => {
            let random = RandomState::new().hash_one(probe) >> 48;
            return Ok((None, probe.source_port.unwrap_or(u16::try_from(random).expect("16 bits are left"))));
        }
    };
    let socket = context.socket(Domain::for_address(probe.to), kind, protocol).await?;
    let any: IpAddr = if probe.to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let bind = || {
        if probe.source_port.is_some() {
            socket.set_reuse_address(true)?;
        }
        socket.bind(&SocketAddr::new(any, probe.source_port.unwrap_or(0)).into())?;
        Ok(socket.local_addr()?.as_socket().map_or(0, |bound| bound.port()))
    };
    let port = bind().map_err(|error: io::Error| local(ProbeStage::Socket, &error))?;
    Ok((Some(socket), port))
}

fn no_defragmentation(socket: &Socket, is_v6: bool) -> io::Result<()> {
    if is_v6 {
        return Ok(());
    }
    let on: libc::c_int = 1;
    let length = libc::socklen_t::try_from(size_of_val(&on)).expect("4 fits");
    // SAFETY: the kernel reads `length` bytes from `on`, which lives until the call returns.
    let result =
        unsafe { libc::setsockopt(socket.as_raw_fd(), libc::IPPROTO_IP, IP_NODEFRAG, (&raw const on).cast(), length) };
    nix::errno::Errno::result(result).map(drop).map_err(io::Error::from)
}

/// The first message that answers: of the protocol itself, or an ICMP error that quotes our packet.
async fn hear(replies: &Socket, errors: &Socket, transport: Transport, ends: Ends) -> io::Result<Answer> {
    let (watched_replies, watched_errors) = (watch(replies, Interest::READABLE)?, watch(errors, Interest::READABLE)?);
    loop {
        let mut ready = tokio::select! {
            biased;
            ready = watched_replies.readable() => ready?,
            ready = watched_errors.readable() => ready?,
        };
        ready.clear_ready();
        let found = take(replies, |from, bytes| answer::reply(bytes, from, transport, ends))?;
        let found = match found {
            Some(found) => Some(found),
            None => take(errors, |from, bytes| answer::error(bytes, from, transport, ends))?,
        };
        if let Some(found) = found {
            return Ok(found);
        }
    }
}

/// Reads until something is the answer, or nothing is left.
fn take(socket: &Socket, mut parse: impl FnMut(IpAddr, &[u8]) -> Option<Answer>) -> io::Result<Option<Answer>> {
    let mut bytes = [0; ANSWER_BYTES];
    loop {
        let received = nix::sys::socket::recvfrom::<nix::sys::socket::SockaddrStorage>(socket.as_raw_fd(), &mut bytes);
        let (length, from) = match received {
            Err(nix::errno::Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
            Ok(received) => received,
        };
        let from = from.and_then(|from| match (from.as_sockaddr_in(), from.as_sockaddr_in6()) {
            (Some(v4), _) => Some(IpAddr::from(v4.ip())),
            (_, Some(v6)) => Some(IpAddr::from(v6.ip())),
            _ => None,
        });
        if let Some(found) = from.and_then(|from| parse(from, &bytes[..length])) {
            return Ok(Some(found));
        }
    }
}
