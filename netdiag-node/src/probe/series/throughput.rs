//! Bytes for a short time over one TCP connection: how many arrive, and what that does to the round-trip time.
//!
//! It fills the link, so an agent makes none unless its operator started it with `--probe-throughput`, and then one at a time.
//! The node's share of bytes for other probes does not count here: what was asked bounds it.

use std::io;
use std::net::{Shutdown, SocketAddr};
use std::time::{Duration, Instant};

use netdiag_common::observation::series::{
    FailureClass, ProbeFailure, ProbeReport, ProbeStage, ThroughputProbe, ThroughputReport,
};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout_at};

use super::context::{Context, Ending, local, of_errno, silence};
use super::tcp_info::{TcpInfo, tcp_info};

/// Written and read at once.
const CHUNK_BYTES: usize = 64 * 1024;
/// How often the round-trip time is looked at: some hundred samples at most.
const SAMPLE_EVERY: Duration = Duration::from_millis(10);
/// How often it is looked whether the last bytes are acknowledged.
const DRAIN_EVERY: Duration = Duration::from_millis(1);

pub(super) async fn attempt(context: &Context, probe: &ThroughputProbe, within: Duration) -> Ending {
    let over = Instant::now() + within;
    if let Err(failure) = context.allow(probe.to.ip()) {
        return Ending::failed(None, Some(probe.to), failure);
    }
    let Ok(turn) = timeout_at(over.into(), context.fill_link()).await else {
        let why = format!("another throughput probe of this node did not end within {} ms", within.as_millis());
        let failure = ProbeFailure { class: FailureClass::Limit, ..silence(ProbeStage::Socket, why) };
        return Ending::failed(None, Some(probe.to), failure);
    };
    let _turn = match turn {
        Ok(turn) => turn,
        Err(failure) => return Ending::failed(None, Some(probe.to), failure),
    };
    let socket = match context.socket(Domain::for_address(probe.to), Type::STREAM, Protocol::TCP).await {
        Ok(socket) => socket,
        Err(failure) => return Ending::failed(None, Some(probe.to), failure),
    };
    let mut source = None;
    let connected = connect(socket, probe.to, &mut source);
    let stream = match timeout_at(over.into(), connected).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(failure)) => return Ending::failed(source, Some(probe.to), failure),
        Err(_) => {
            let why = format!("no answer to SYNs in {} ms", within.as_millis());
            return Ending::failed(source, Some(probe.to), silence(ProbeStage::Connect, why));
        }
    };
    let (report, failure) = fill(stream, probe, over).await;
    Ending { source, to: Some(probe.to), failure, report: ProbeReport::Throughput(report), ..Ending::default() }
}

async fn connect(socket: Socket, to: SocketAddr, source: &mut Option<SocketAddr>) -> Result<TcpStream, ProbeFailure> {
    let unready = |error: io::Error| local(ProbeStage::Socket, &error);
    let failed = |error: io::Error| of_errno(ProbeStage::Connect, &error);
    // What is left when the time is over is thrown away, and no port stays in TIME_WAIT.
    socket.set_linger(Some(Duration::ZERO)).map_err(unready)?;
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => return Err(failed(error)),
        _ => {}
    }
    *source = socket.local_addr().ok().and_then(|address| address.as_socket());
    let stream = TcpStream::from_std(socket.into()).map_err(unready)?;
    stream.writable().await.map_err(failed)?;
    match stream.take_error().map_err(failed)? {
        Some(error) => Err(failed(error)),
        None => Ok(stream),
    }
}

/// Writes, reads what the far side sends, and looks at the connection meanwhile.
async fn fill(stream: TcpStream, probe: &ThroughputProbe, over: Instant) -> (ThroughputReport, Option<ProbeFailure>) {
    let begun = Instant::now();
    let until = over.min(begun + Duration::from_millis(probe.duration_ms.into()));
    let before = match tcp_info(&SockRef::from(&stream)) {
        Ok(info) => info,
        Err(error) => return (ThroughputReport::default(), Some(local(ProbeStage::Connect, &error))),
    };
    let mut transfer = Transfer { stream, before, left: probe.max_bytes, written: 0, received: 0, rtts_us: Vec::new() };
    let ended = timeout_at(until.into(), transfer.run()).await;
    let elapsed = begun.elapsed();
    let report = transfer.report(elapsed);
    let failure = match ended {
        Ok(Err(error)) => Some(broken(&error, &report)),
        _ if report.bytes == 0 && report.received_bytes == 0 => {
            let why = format!("connected, and no byte was acknowledged in {} ms", elapsed.as_millis());
            Some(silence(ProbeStage::Body, why))
        }
        _ => None,
    };
    (report, failure)
}

fn broken(error: &io::Error, report: &ThroughputReport) -> ProbeFailure {
    let failure = of_errno(ProbeStage::Body, error);
    let why = format!("{} after {} bytes", failure.why, report.bytes + report.received_bytes);
    ProbeFailure { why, ..failure }
}

struct Transfer {
    stream: TcpStream,
    before: TcpInfo,
    /// Bytes that may still go, in both directions together.
    left: u64,
    written: u64,
    received: u64,
    rtts_us: Vec<u32>,
}

impl Transfer {
    /// Until all bytes went and were acknowledged.
    async fn run(&mut self) -> io::Result<()> {
        let zeros = vec![0; CHUNK_BYTES];
        let mut heard = vec![0; CHUNK_BYTES];
        let mut tick = interval(SAMPLE_EVERY);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first one is at once: nothing is under load yet.
        tick.tick().await;
        let mut is_open = true;
        while self.left > 0 {
            let chunk = usize::try_from(self.left).unwrap_or(usize::MAX).min(CHUNK_BYTES);
            let (mut from, mut to) = self.stream.split();
            // One of those that are ready, by chance: none holds up the others.
            tokio::select! {
                sent = to.write(&zeros[..chunk]) => {
                    let sent = sent? as u64;
                    self.written += sent;
                    self.left -= sent;
                }
                got = from.read(&mut heard[..chunk]), if is_open => {
                    let got = got? as u64;
                    is_open = got > 0;
                    self.received += got;
                    self.left -= got;
                }
                _ = tick.tick() => self.rtts_us.push(tcp_info(&SockRef::from(&self.stream))?.rtt_us),
            }
        }
        self.drain().await
    }

    async fn drain(&mut self) -> io::Result<()> {
        while self.acked(tcp_info(&SockRef::from(&self.stream))?) < self.written {
            if let Some(error) = self.stream.take_error()? {
                return Err(error);
            }
            sleep(DRAIN_EVERY).await;
        }
        Ok(())
    }

    /// What the kernel does not count, it has at least taken.
    fn acked(&self, now: TcpInfo) -> u64 {
        match (now.bytes_acked, self.before.bytes_acked) {
            (Some(now), Some(before)) => now.saturating_sub(before),
            _ => self.written,
        }
    }

    fn report(&mut self, elapsed: Duration) -> ThroughputReport {
        let now = tcp_info(&SockRef::from(&self.stream)).unwrap_or(self.before);
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Both);
        self.rtts_us.sort_unstable();
        let median_us = self.rtts_us.get(self.rtts_us.len() / 2).copied();
        ThroughputReport {
            bytes: self.acked(now),
            received_bytes: self.received,
            elapsed_us: u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX),
            retransmits: now.retransmits.saturating_sub(self.before.retransmits),
            idle_rtt_us: self.before.rtt_us,
            loaded_rtt_us: median_us.unwrap_or(now.rtt_us),
            send_mss: Some(now.send_mss),
        }
    }
}
