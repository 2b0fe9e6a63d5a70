//! Datagrams to one server, from one socket: who answered is looked at here, not by the kernel, so that strangers are counted.

use std::io;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::AsRawFd as _;

use netdiag_common::observation::series::{ProbeFailure, ProbeStage};
use nix::sys::socket::{SockaddrStorage, recvfrom};
use socket2::{Domain, Protocol, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::super::context::{Context, local, of_errno};
use super::super::errqueue;

/// The most that a datagram holds.
const DATAGRAM_BYTES: usize = 65_535;

pub(super) struct Udp {
    socket: UdpSocket,
    server: SocketAddr,
    source: Option<SocketAddr>,
}

/// One datagram that came.
pub(super) enum Came {
    FromServer(Vec<u8>),
    /// From another address or port: forged, or a translation that was lost.
    FromOther,
}

impl Udp {
    pub(super) async fn open(context: &Context, server: SocketAddr) -> Result<Self, ProbeFailure> {
        context.allow(server.ip())?;
        let source = source(context, server).await?;
        let socket = context.socket(Domain::for_address(server), Type::DGRAM, Protocol::UDP).await?;
        // Without a connection the kernel reports ICMP errors only where they are queued (`__udp4_lib_err`, net/ipv4/udp.c).
        errqueue::enable(&socket, server.is_ipv6()).map_err(|error| local(ProbeStage::Socket, &error))?;
        let socket = UdpSocket::from_std(socket.into()).map_err(|error| local(ProbeStage::Socket, &error))?;
        Ok(Self { socket, server, source })
    }

    /// Address by the route, port as it was sent from.
    pub(super) fn source(&self) -> Option<SocketAddr> {
        let port = self.socket.local_addr().ok()?.port();
        Some(SocketAddr::new(self.source?.ip(), port))
    }

    pub(super) async fn send(&self, context: &Context, bytes: &[u8]) -> Result<(), ProbeFailure> {
        context.spend(1, bytes.len() as u64).await;
        // EPERM here is a packet filter's drop in the OUTPUT hook.
        match self.socket.send_to(bytes, self.server).await {
            Ok(_) => Ok(()),
            Err(error) => Err(self.failed(ProbeStage::Send, &error)),
        }
    }

    /// Waits for the next datagram or ICMP error.
    pub(super) async fn receive(&self) -> Result<Came, ProbeFailure> {
        loop {
            let ready = self.socket.ready(Interest::READABLE | Interest::ERROR).await;
            let ready = ready.map_err(|error| local(ProbeStage::Answer, &error))?;
            // One of the two: tokio's `try_io` takes a sum of interests for none of them (`Interest::mask`, tokio 1.54).
            let interest = if ready.is_error() { Interest::ERROR } else { Interest::READABLE };
            match self.socket.try_io(interest, || receive_one(&self.socket)) {
                Ok((bytes, Some(from))) if (from.ip(), from.port()) == (self.server.ip(), self.server.port()) => {
                    return Ok(Came::FromServer(bytes));
                }
                Ok(_) => return Ok(Came::FromOther),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(self.failed(ProbeStage::Answer, &error)),
            }
        }
    }

    fn failed(&self, stage: ProbeStage, error: &io::Error) -> ProbeFailure {
        let mut failure = of_errno(stage, error);
        if let Ok(Some(queued)) = errqueue::next(&self.socket) {
            failure.said_by = queued.offender;
            failure.icmp = queued.icmp();
        }
        failure
    }
}

/// Which address the route gives to packets to the server, by a connected socket that sends nothing.
async fn source(context: &Context, server: SocketAddr) -> Result<Option<SocketAddr>, ProbeFailure> {
    let socket = context.socket(Domain::for_address(server), Type::DGRAM, Protocol::UDP).await?;
    socket.connect(&server.into()).map_err(|error| of_errno(ProbeStage::Connect, &error))?;
    Ok(socket.local_addr().ok().and_then(|address| address.as_socket()))
}

/// A buffer is made when something is there: a thousand waiting probes hold none.
fn receive_one(socket: &UdpSocket) -> io::Result<(Vec<u8>, Option<SocketAddr>)> {
    let mut bytes = vec![0; DATAGRAM_BYTES];
    let (length, from) = recvfrom::<SockaddrStorage>(socket.as_raw_fd(), &mut bytes)?;
    bytes.truncate(length);
    bytes.shrink_to_fit();
    let v4 =
        from.as_ref().and_then(SockaddrStorage::as_sockaddr_in).map(|from| SocketAddr::from(SocketAddrV4::from(*from)));
    let v6 = || from.as_ref().and_then(SockaddrStorage::as_sockaddr_in6).map(|from| SocketAddrV6::from(*from).into());
    Ok((bytes, v4.or_else(v6)))
}
