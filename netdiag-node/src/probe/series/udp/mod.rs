//! UDP: datagrams, and what comes back: echoes in order, late, double, strange, or ICMP errors and who sent them.

mod count;

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use count::Count;
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeReport, ProbeStage, UdpProbe};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::time::timeout_at;

use super::context::{Context, Ending, local, of_errno, of_queued, silence, source_to};
use super::errqueue::{self, Origin, QueuedError};
use super::ready::watch;

/// Headers of UDP and IP, for the node's share of bytes.
const HEADER_BYTES: u64 = 28;
/// Of the number that an echo begins with.
const NUMBER_BYTES: usize = 4;
/// What fills an echo after its number.
const FILL: u8 = b'n';
/// Largest datagram there is.
const MAX_DATAGRAM_BYTES: usize = 65_535;
/// How long doubles and late answers are awaited when every datagram was answered, in round trips, and the least and the most.
const SETTLE_TRIPS: u32 = 2;
const SETTLE_AT_LEAST: Duration = Duration::from_millis(2);
const SETTLE_AT_MOST: Duration = Duration::from_millis(200);

/// One attempt's socket and what it has seen.
struct Exchange<'a> {
    probe: &'a UdpProbe,
    socket: &'a UdpSocket,
    /// Of the first datagram: answers to an earlier attempt from the same port have other numbers.
    first: u32,
    count: Count,
    /// The first error, and how many there were.
    error: Option<QueuedError>,
    errors: u32,
}

pub(super) async fn attempt(context: &Context, probe: &UdpProbe, within: Duration) -> Ending {
    let to = probe.to;
    if let Err(failure) = context.allow(to.ip()) {
        return Ending::failed(None, Some(to), failure);
    }
    let deadline = Instant::now() + within;
    let socket = match context.socket(Domain::for_address(to), Type::DGRAM, Protocol::UDP).await {
        Ok(socket) => socket,
        Err(failure) => return Ending::failed(None, Some(to), failure),
    };
    let (socket, port) = match prepare(socket, probe) {
        Ok(prepared) => prepared,
        Err(error) => return Ending::failed(None, Some(to), local(ProbeStage::Socket, &error)),
    };
    // The socket is not connected, so that an answer from another address is seen; it has no source address of its own.
    let source = source_to(to).map(|source| SocketAddr::new(source, port));
    let first = u32::try_from(RandomState::new().hash_one(port) >> 32).expect("32 bits are left");
    let count = Count::new(probe.datagrams.into());
    let mut exchange = Exchange { probe, socket: &socket, first, count, error: None, errors: 0 };
    let failure = match exchange.run(context, deadline).await {
        Err(error) => Some(of_errno(ProbeStage::Send, &error)),
        Ok(()) => exchange.failure(within),
    };
    let report = exchange.count.report();
    let phases = exchange.count.trips_us().map(|micros| ("rtt", micros)).collect();
    Ending { source, to: Some(to), failure, report: ProbeReport::Udp(report), phases }
}

fn prepare(socket: Socket, probe: &UdpProbe) -> io::Result<(UdpSocket, u16)> {
    let is_v6 = probe.to.is_ipv6();
    errqueue::enable_with_ttl(&socket, is_v6)?;
    if is_v6 {
        socket.set_only_v6(true)?;
    }
    if probe.source_port.is_some() {
        socket.set_reuse_address(true)?;
    }
    let any: IpAddr = if is_v6 { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    socket.bind(&SocketAddr::new(any, probe.source_port.unwrap_or(0)).into())?;
    let socket = UdpSocket::from(socket);
    let port = socket.local_addr()?.port();
    Ok((socket, port))
}

impl Exchange<'_> {
    /// An error is one of sending that no ICMP message explains.
    async fn run(&mut self, context: &Context, deadline: Instant) -> io::Result<()> {
        let start = Instant::now();
        let gap = Duration::from_micros(self.probe.gap_us.into());
        let mut bytes = self.payload();
        // Not `READABLE` alone: an error would not wake it.
        let interest = Interest::READABLE | Interest::ERROR;
        let watched = watch(self.socket, interest)?;
        loop {
            let next = start + gap * self.count.sent();
            let all_sent = self.count.sent() == u32::from(self.probe.datagrams);
            if !all_sent && Instant::now() >= next {
                context.spend(1, bytes.len() as u64 + HEADER_BYTES).await;
                self.send(&mut bytes)?;
                // What is on its way inside one machine is back before anybody waits for it.
                self.take();
                continue;
            }
            let until = if all_sent { self.settled().unwrap_or(deadline).min(deadline) } else { next.min(deadline) };
            if Instant::now() >= until && (all_sent || until == deadline) {
                return Ok(());
            }
            let Ok(ready) = timeout_at(until.into(), watched.ready(interest)).await else { continue };
            ready?.clear_ready();
            self.take();
        }
    }

    /// When nothing more is expected; none while something is.
    fn settled(&self) -> Option<Instant> {
        if self.count.answered() + self.errors < self.count.sent() {
            return None;
        }
        let (last, slowest) = self.count.last_answer().zip(self.count.slowest()).unzip();
        let one = self.probe.datagrams == 1 || last.is_none();
        let settle = (slowest.unwrap_or_default() * SETTLE_TRIPS).clamp(SETTLE_AT_LEAST, SETTLE_AT_MOST);
        Some(if one { Instant::now() } else { last? + settle })
    }

    fn payload(&self) -> Vec<u8> {
        self.probe.payload.clone().unwrap_or_else(|| vec![FILL; self.probe.bytes.into()])
    }

    /// Whether datagrams tell their numbers.
    fn is_numbered(&self) -> bool {
        self.probe.payload.is_none() && usize::from(self.probe.bytes) >= NUMBER_BYTES
    }

    fn send(&mut self, bytes: &mut [u8]) -> io::Result<()> {
        if self.is_numbered() {
            let number = self.first.wrapping_add(self.count.sent());
            bytes[..NUMBER_BYTES].copy_from_slice(&number.to_be_bytes());
        }
        let mut tries_left = 1;
        loop {
            match self.socket.send_to(bytes, self.probe.to) {
                Ok(_) => break,
                // The error of a datagram before this one, told with this call (`sock_error`); this one was not sent.
                Err(_) if tries_left > 0 && self.take_errors() => tries_left -= 1,
                // The device's queue is full: this datagram is lost like any other.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::EAGAIN)) => break,
                Err(error) => return Err(error),
            }
        }
        self.count.sent_one(Instant::now());
        Ok(())
    }

    /// Everything that is there.
    fn take(&mut self) {
        let mut bytes = vec![0; MAX_DATAGRAM_BYTES.min(usize::from(self.probe.bytes).max(2_048) + 1)];
        self.take_errors();
        // An error of the socket is told once, and the queue has said it already.
        let mut errors_left = 8;
        loop {
            match self.socket.recv_from(&mut bytes) {
                Ok((length, from)) => self.answer(&bytes[..length], from, Instant::now()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock || errors_left == 0 => break,
                Err(_) => {
                    errors_left -= 1;
                    self.take_errors();
                }
            }
        }
    }

    /// Whether there were any.
    fn take_errors(&mut self) -> bool {
        let before = self.errors;
        while let Ok(Some(queued)) = errqueue::next(self.socket) {
            if matches!(queued.origin, Origin::Icmp | Origin::Icmp6) {
                self.errors += 1;
                self.error.get_or_insert(queued);
            }
        }
        self.errors > before
    }

    fn answer(&mut self, bytes: &[u8], from: SocketAddr, at: Instant) {
        let is_from_there = (from.ip(), from.port()) == (self.probe.to.ip(), self.probe.to.port());
        let number = if self.is_numbered() {
            let (number, fill) = bytes.split_at_checked(NUMBER_BYTES).unwrap_or_default();
            let number = number.try_into().map_or(0, u32::from_be_bytes).wrapping_sub(self.first);
            let is_whole = bytes.len() == usize::from(self.probe.bytes) && fill.iter().all(|byte| *byte == FILL);
            (is_whole && number < self.count.sent()).then_some(number)
        } else {
            // Servers that are no echo answer in their own words: the oldest datagram without an answer is meant.
            Some(self.count.oldest_open())
        };
        match number {
            Some(number) if is_from_there => self.count.answered_one(number, at),
            _ => self.count.strange_one((!is_from_there).then_some(from)),
        }
    }

    fn failure(&self, within: Duration) -> Option<ProbeFailure> {
        let report = self.count.report();
        if report.lost == 0 && report.sent == u32::from(self.probe.datagrams) {
            return None;
        }
        let unsent = u32::from(self.probe.datagrams) - report.sent;
        if report.answered == 0 {
            if let Some(queued) = &self.error {
                return Some(of_queued(ProbeStage::Answer, queued));
            }
            if let Some(other) = report.answered_by {
                let mut failure =
                    silence(ProbeStage::Answer, format!("answers came from {other}, not from {}", self.probe.to));
                failure.class = FailureClass::Protocol;
                failure.said_by = Some(other.ip());
                return Some(failure);
            }
        }
        let mut why =
            format!("{} of {} datagrams were not answered in {} ms", report.lost, report.sent, within.as_millis());
        if unsent > 0 {
            why = format!("{why}, and {unsent} were not sent in that time");
        }
        let mut failure = silence(ProbeStage::Answer, why);
        if let Some(queued) = &self.error {
            let told = of_queued(ProbeStage::Answer, queued);
            failure.why = format!("{}; {} times {}", failure.why, self.errors, told.why);
            (failure.said_by, failure.icmp) = (told.said_by, told.icmp);
        }
        Some(failure)
    }
}
