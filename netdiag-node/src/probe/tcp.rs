//! TCP connect: does the handshake complete, how long does it take, and what does the kernel say when it does not.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream as StdStream};
use std::time::{Duration, Instant};

use netdiag_common::observation::probe::{Attempt, Outcome, ProbeResult, Stage};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::{failed, micros, socket_in, without_socket};
use crate::netns::NetnsHandle;

/// How long a peer may take to answer our FIN. Closing earlier would send a RST to a server that greets first.
const FAREWELL_WITHIN: Duration = Duration::from_millis(500);
/// What a greeting server may send before we give up on it.
const MAX_GREETING_BYTES: u64 = 64 * 1024;

/// One attempt after the other: parallel ones would hide a backlog that only the second connection meets.
pub(super) async fn run(
    netns: &NetnsHandle,
    source_port: Option<u16>,
    to: SocketAddr,
    within: Duration,
    attempts: u8,
) -> ProbeResult {
    let mut result = ProbeResult { attempts: Vec::with_capacity(attempts.into()) };
    for _ in 0..attempts {
        let attempt = match socket_in(netns, Domain::for_address(to), Type::STREAM, Protocol::TCP).await {
            Ok(socket) => match bind(&socket, source_port, to) {
                Ok(()) => connect(socket, to, within).await,
                Err(error) => without_socket(&error),
            },
            Err(error) => without_socket(&error),
        };
        result.attempts.push(attempt);
    }
    result
}

/// To a port of any address of this namespace.
fn bind(socket: &Socket, port: Option<u16>, to: SocketAddr) -> io::Result<()> {
    let Some(port) = port else { return Ok(()) };
    let any: IpAddr = if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    // An earlier connection from this port may still be in TIME_WAIT.
    socket.set_reuse_address(true)?;
    socket.bind(&SocketAddr::new(any, port).into())
}

/// Of a socket that does not block, and is bound where it should be.
pub(crate) async fn connect(socket: Socket, to: SocketAddr, within: Duration) -> Attempt {
    let start = Instant::now();
    let begun = socket.connect(&to.into());
    // Chosen by the kernel when it routed the first packet; gone once the connect has failed.
    let source = socket.local_addr().ok().and_then(|address| address.as_socket()).filter(|source| source.port() != 0);
    let outcome = match begun {
        Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => failed(Stage::Connect, &error),
        _ => handshake(StdStream::from(socket), within).await,
    };
    Attempt { elapsed_us: micros(start.elapsed()), source, outcome }
}

async fn handshake(stream: StdStream, within: Duration) -> Outcome {
    let stream = match TcpStream::from_std(stream) {
        Ok(stream) => stream,
        Err(error) => return failed(Stage::Socket, &error),
    };
    match timeout(within, ended(&stream)).await {
        Err(_) => Outcome::TimedOut { stage: Stage::Connect },
        Ok(Err(error)) => failed(Stage::Connect, &error),
        Ok(Ok(())) => {
            tokio::spawn(close(stream));
            Outcome::Connected
        }
    }
}

/// connect(2): a non-blocking connect has ended when the socket is writable; `SO_ERROR` tells how.
async fn ended(stream: &TcpStream) -> io::Result<()> {
    stream.writable().await?;
    match stream.take_error()? {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// Sends FIN and reads until the peer's: a socket closed with unread bytes would send RST.
async fn close(stream: TcpStream) {
    if SockRef::from(&stream).shutdown(std::net::Shutdown::Write).is_ok() {
        let mut greeting = stream.take(MAX_GREETING_BYTES);
        let mut sink = tokio::io::sink();
        let _ = timeout(FAREWELL_WITHIN, tokio::io::copy(&mut greeting, &mut sink)).await;
    }
}
