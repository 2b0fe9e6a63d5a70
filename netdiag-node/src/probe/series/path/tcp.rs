//! By TCP: a connect() for each packet, one after the other from one port, and the socket's error queue tells who spoke.
//!
//! The kernel checks that an ICMP error quotes the SYN of the attempt that is on its way (`tcp_v4_err`, `tcp_v6_err`), so an
//! answer that comes late is nobody's.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use netdiag_common::observation::series::{PathProbe, ProbeFailure, ProbeStage};
use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::time::timeout_at;

use super::super::context::{Context, local, of_errno};
use super::super::errqueue;
use super::trail::{Heard, Trail, Word};

/// Below the kernel's first retransmission (1 s, `TCP_TIMEOUT_INIT`), so that one attempt is one SYN.
const WAIT: Duration = Duration::from_millis(700);
/// An answer within a cluster takes less.
const SHORTEST_WAIT: Duration = Duration::from_millis(20);
/// A SYN with its options and the IPv6 header, bytes.
const SYN_BYTES: u64 = 80;

pub(super) async fn walk(
    context: &Context,
    probe: &PathProbe,
    within: Duration,
) -> Result<(SocketAddr, Trail), ProbeFailure> {
    // Keeps the port for all attempts: another's connect() leaves ports alone that are bound with SO_REUSEADDR.
    let keeper = bound_to(context, probe.to, probe.source_port.unwrap_or(0)).await?;
    let port = keeper.local_addr().ok().and_then(|address| address.as_socket()).map_or(0, |address| address.port());
    let mut trail = Trail::new(probe.to.ip());
    let mut source = None;
    let over = Instant::now() + within;
    for round in 0..probe.tries {
        for ttl in 1..=probe.max_hops {
            let left = over.saturating_duration_since(Instant::now());
            if trail.is_beyond(ttl) || left.is_zero() {
                break;
            }
            let hops = if round == 0 { probe.max_hops } else { trail.tried() };
            let to_come = u32::from(probe.tries - round) * u32::from(hops) - u32::from(ttl - 1);
            let wait = (left / to_come.max(1)).clamp(SHORTEST_WAIT, WAIT).min(left);
            context.spend(1, SYN_BYTES).await;
            let socket = bound_to(context, probe.to, port).await?;
            prepare(&socket, probe.to, ttl).map_err(|error| local(ProbeStage::Socket, &error))?;
            let begun = Instant::now();
            let connected = socket.connect(&probe.to.into());
            source = source.or_else(|| socket.local_addr().ok()?.as_socket());
            match connected {
                Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => {
                    return Err(of_errno(ProbeStage::Connect, &error));
                }
                _ => trail.sent(ttl),
            }
            if let Some(heard) = outcome(socket, probe.to, begun, begun + wait).await? {
                trail.heard(ttl, heard);
            }
        }
    }
    Ok((source.unwrap_or_else(|| SocketAddr::new(any(probe.to), port)), trail))
}

async fn bound_to(context: &Context, to: SocketAddr, port: u16) -> Result<Socket, ProbeFailure> {
    let socket = context.socket(Domain::for_address(to), Type::STREAM, Protocol::TCP).await?;
    let bind = || {
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(any(to), port).into())
    };
    bind().map_err(|error| local(ProbeStage::Socket, &error))?;
    Ok(socket)
}

fn any(to: SocketAddr) -> IpAddr {
    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn prepare(socket: &Socket, to: SocketAddr, ttl: u8) -> io::Result<()> {
    errqueue::enable_with_ttl(socket, to.is_ipv6())?;
    // A connection that is made after all ends with RST: no port is left in TIME_WAIT.
    socket.set_linger(Some(Duration::ZERO))?;
    if to.is_ipv4() {
        setsockopt(socket, sockopt::Ipv4Ttl, &libc::c_int::from(ttl))?;
    } else {
        setsockopt(socket, sockopt::Ipv6Ttl, &libc::c_int::from(ttl))?;
    }
    Ok(())
}

/// None: nobody said anything.
async fn outcome(
    socket: Socket,
    to: SocketAddr,
    begun: Instant,
    until: Instant,
) -> Result<Option<Heard>, ProbeFailure> {
    let unready = |error: io::Error| local(ProbeStage::Connect, &error);
    let stream = TcpStream::from_std(socket.into()).map_err(unready)?;
    if timeout_at(until.into(), stream.writable()).await.is_err() {
        return Ok(None);
    }
    let after = begun.elapsed();
    let error = stream.take_error().map_err(unready)?;
    let said = errqueue::next(&stream).map_err(unready)?;
    if let Some((said, icmp, from)) = said.and_then(|said| Some((said.ttl, said.icmp()?, said.offender?))) {
        return Ok(Some(Heard { from, ttl: said, after, said: Word::Error(icmp) }));
    }
    let word = match error {
        None => "SYN ACK",
        Some(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => "RST",
        Some(error) => return Err(of_errno(ProbeStage::Connect, &error)),
    };
    // A connected socket does not tell with which TTL the far side's segment came.
    Ok(Some(Heard { from: to.ip(), ttl: None, after, said: Word::Answer(word) }))
}
