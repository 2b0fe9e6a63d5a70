//! TCP: does the handshake complete, how long does it take, and who says what when it does not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, SocketAddr, TcpStream as StdStream};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use netdiag_common::observation::series::transport::TcpClose;
use netdiag_common::observation::series::{FailureClass, ProbeFailure, ProbeReport, ProbeStage, TcpProbe, TcpReport};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, Interest};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::context::{Context, Ending, local, of_errno, of_queued, silence};
use super::errqueue::{self, Origin};
use super::ready::watch;
use super::schedule::micros;
use super::tcp_info::{TcpInfo, tcp_info};

/// A SYN with the usual options, and the headers below.
const SYN_BYTES: u64 = 74;
/// How long a peer may take to answer our FIN. Closing earlier would send a RST to a server that greets first.
const FAREWELL_WITHIN: Duration = Duration::from_millis(500);
/// What a greeting server may send before we give up on it.
const MAX_GREETING_BYTES: u64 = 64 * 1024;

pub(super) async fn attempt(context: &Context, probe: &TcpProbe, within: Duration) -> Ending {
    let to = probe.to;
    let Handshake { socket, port, shaken, elapsed, info } =
        match handshake(context, probe.source_port.map_or(Port::Told, Port::Of), to, within).await {
            Ok(handshake) => handshake,
            Err(failure) => return Ending::failed(None, Some(to), failure),
        };
    // The port is gone once the connect has failed.
    let source = socket.local_addr().ok().and_then(|address| address.as_socket());
    let source = source.zip(port).map(|(source, port)| SocketAddr::new(source.ip(), port));
    let mut report = TcpReport {
        handshake_us: micros(elapsed),
        syns: info.map(|info| info.retransmits.saturating_add(1)),
        ..TcpReport::default()
    };
    let mut ending = Ending { source, to: Some(to), ..Ending::default() };
    match shaken {
        Err(failure) => ending.failure = Some(failure),
        Ok(()) => {
            report.rtt_us = info.map(|info| info.rtt_us);
            report.send_mss = info.map(|info| info.send_mss);
            ending.phases = vec![("connect", report.handshake_us)];
            let left = within.saturating_sub(elapsed);
            ending.failure = end(context, socket, probe, left, &mut report).await.err();
        }
    }
    ending.report = ProbeReport::Tcp(report);
    ending
}

/// A connection for a protocol above, and how long its handshake took, microseconds.
pub(super) async fn connect(
    context: &Context,
    port: Option<u16>,
    to: SocketAddr,
    within: Duration,
) -> Result<(TcpStream, u64), ProbeFailure> {
    let port = port.map_or(Port::Any, Port::Of);
    let Handshake { socket, shaken, elapsed, .. } = handshake(context, port, to, within).await?;
    shaken?;
    // From here on errors are told by reading and writing.
    errqueue::disable(&socket, to.is_ipv6()).map_err(|error| local(ProbeStage::Socket, &error))?;
    let stream = stream(socket).map_err(|error| local(ProbeStage::Socket, &error))?;
    stream.set_nodelay(true).map_err(|error| local(ProbeStage::Socket, &error))?;
    Ok((stream, micros(elapsed)))
}

/// Where a connection comes from.
#[derive(Clone, Copy)]
enum Port {
    Of(u16),
    /// Any, taken before the connect: nobody can tell afterwards which it was when the connect failed.
    Told,
    /// Any, as the kernel chooses it for a program that only connects.
    Any,
}

/// A connection attempt, whatever it came to.
struct Handshake {
    socket: Socket,
    /// None where the kernel chose one without telling.
    port: Option<u16>,
    shaken: Result<(), ProbeFailure>,
    elapsed: Duration,
    /// What the kernel knew at its end.
    info: Option<TcpInfo>,
}

/// An error: nothing was sent.
async fn handshake(context: &Context, port: Port, to: SocketAddr, within: Duration) -> Result<Handshake, ProbeFailure> {
    context.allow(to.ip())?;
    context.spend(1, SYN_BYTES).await;
    let socket = context.socket(Domain::for_address(to), Type::STREAM, Protocol::TCP).await?;
    let port = prepare(&socket, port, to).map_err(|error| local(ProbeStage::Socket, &error))?;
    let start = Instant::now();
    let (shaken, info) = shake(&socket, to, within).await;
    let elapsed = start.elapsed();
    let info = info.or_else(|| tcp_info(&socket).ok());
    let shaken = shaken.map_err(|mut failure| {
        if failure.class == FailureClass::Silence {
            let syns = info.map_or(1, |info| info.retransmits.saturating_add(1));
            let plural = if syns == 1 { "" } else { "s" };
            failure.why = format!("no answer to {syns} SYN{plural} in {} ms", elapsed.as_millis());
        }
        failure
    });
    Ok(Handshake { socket, port, shaken, elapsed, info })
}

/// What the handshake came to, and what the kernel knows where that told it.
async fn shake(socket: &Socket, to: SocketAddr, within: Duration) -> (Result<(), ProbeFailure>, Option<TcpInfo>) {
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
            (Err(said(of_errno(ProbeStage::Connect, &error), to)), None)
        }
        // On a path inside one machine it has ended before `connect` returned: then nothing waits.
        _ => match tcp_info(socket).ok().filter(|info| info.is_connected()) {
            Some(info) => (Ok(()), Some(info)),
            None => (shaken(socket, to, within).await, None),
        },
    }
}

/// Binds the socket where that is wanted, and says to which port. Where all ports are bound already, the kernel may still find one that
/// is free for this destination.
fn prepare(socket: &Socket, port: Port, to: SocketAddr) -> io::Result<Option<u16>> {
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    errqueue::enable(socket, to.is_ipv6())?;
    if to.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    let number = match port {
        Port::Any => return Ok(None),
        Port::Told => 0,
        Port::Of(number) => {
            // An earlier connection from this port may still be known.
            socket.set_reuse_address(true)?;
            number
        }
    };
    match socket.bind(&SocketAddr::new(any, number).into()) {
        Err(error) if matches!(port, Port::Told) && error.kind() == io::ErrorKind::AddrInUse => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(socket.local_addr()?.as_socket().map(|bound| bound.port())),
    }
}

/// Waits for the end of the handshake.
async fn shaken(socket: &Socket, to: SocketAddr, within: Duration) -> Result<(), ProbeFailure> {
    if let Some(ended) = ended(socket, to) {
        return ended;
    }
    let waits = watch(socket, Interest::WRITABLE).map_err(|error| local(ProbeStage::Socket, &error))?;
    let waiting = async {
        loop {
            let mut ready = waits.writable().await.map_err(|error| local(ProbeStage::Connect, &error))?;
            if let Some(ended) = ended(socket, to) {
                return ended;
            }
            ready.clear_ready();
        }
    };
    timeout(within, waiting).await.unwrap_or_else(|_| Err(silence(ProbeStage::Connect, String::new())))
}

/// None: the handshake goes on.
fn ended(socket: &Socket, to: SocketAddr) -> Option<Result<(), ProbeFailure>> {
    let mut asked = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
    poll(&mut asked, PollTimeout::ZERO).ok()?;
    let seen = asked[0].revents()?;
    if seen.contains(PollFlags::POLLERR) {
        // An ICMP error for a SYN (Linux 5.8) ends the connect, at the latest with the next SYN (`tcp_v4_err`).
        while let Ok(Some(queued)) = errqueue::next(socket) {
            if matches!(queued.origin, Origin::Icmp | Origin::Icmp6) {
                return Some(Err(of_queued(ProbeStage::Connect, &queued)));
            }
        }
    }
    if seen.intersects(PollFlags::POLLERR | PollFlags::POLLHUP)
        && let Some(error) = socket.take_error().ok().flatten()
    {
        return Some(Err(said(of_errno(ProbeStage::Connect, &error), to)));
    }
    seen.contains(PollFlags::POLLOUT).then_some(Ok(()))
}

/// A reset has no other sender than the one that the socket speaks to.
fn said(mut failure: ProbeFailure, to: SocketAddr) -> ProbeFailure {
    if matches!(failure.class, FailureClass::Refused | FailureClass::Reset) {
        failure.said_by = Some(to.ip());
        let errno = failure.errno.as_deref().unwrap_or_default();
        failure.why = format!("RST from {} ({errno})", to.ip());
    }
    failure
}

/// Ends the connection. From one source port always by RST: a connection in TIME_WAIT would keep the port from the next attempt.
async fn end(
    context: &Context,
    socket: Socket,
    probe: &TcpProbe,
    left: Duration,
    report: &mut TcpReport,
) -> Result<(), ProbeFailure> {
    let failed = |error: io::Error| said(of_errno(ProbeStage::Close, &error), probe.to);
    match probe.close {
        // Boxed: its buffer would be in every attempt of every kind of close.
        TcpClose::HalfClose => Box::pin(half_close(stream(socket).map_err(failed)?, probe, left, report)).await,
        TcpClose::Orderly if probe.source_port.is_none() => {
            socket.shutdown(Shutdown::Write).map_err(failed)?;
            let mut stream = stream(socket).map_err(failed)?.take(MAX_GREETING_BYTES);
            context.afterwards(async move {
                let mut sink = tokio::io::sink();
                let _ = timeout(FAREWELL_WITHIN, tokio::io::copy(&mut stream, &mut sink)).await;
            });
            Ok(())
        }
        TcpClose::Orderly | TcpClose::Reset => socket.set_linger(Some(Duration::ZERO)).map_err(failed),
    }
}

/// FIN, and then whatever the far side still sends.
async fn half_close(
    mut stream: TcpStream,
    probe: &TcpProbe,
    left: Duration,
    report: &mut TcpReport,
) -> Result<(), ProbeFailure> {
    let start = Instant::now();
    let failed = |error: io::Error| said(of_errno(ProbeStage::Close, &error), probe.to);
    socket2::SockRef::from(&stream).shutdown(Shutdown::Write).map_err(failed)?;
    let (mut bytes, mut buffer) = (0, [0; 4_096]);
    let closed = loop {
        // Once it has answered, only a moment is given for the rest.
        let patience = if bytes == 0 { left } else { left.min(FAREWELL_WITHIN) };
        match timeout(patience.saturating_sub(start.elapsed()), stream.read(&mut buffer)).await {
            Ok(Ok(0)) => break true,
            Ok(Ok(read)) => bytes += read as u64,
            Ok(Err(error)) => return Err(failed(error)),
            Err(_) => break false,
        }
        if bytes > MAX_GREETING_BYTES {
            break false;
        }
    };
    report.after_close_bytes = Some(bytes);
    report.closed_by_peer = Some(closed);
    if probe.source_port.is_some() {
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).map_err(failed)?;
    }
    if closed || bytes > 0 {
        return Ok(());
    }
    Err(silence(
        ProbeStage::Close,
        format!("neither bytes nor FIN in {} ms after our FIN", start.elapsed().as_millis()),
    ))
}

fn stream(socket: Socket) -> io::Result<TcpStream> {
    TcpStream::from_std(StdStream::from(socket))
}
