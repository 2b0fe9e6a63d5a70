//! A socket's error queue (ip(7), IP_RECVERR): ICMP errors about packets of this socket, and who sent them.

use std::io;
use std::io::IoSliceMut;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd as _};

use netdiag_common::observation::series::IcmpError;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, SockaddrStorage, recvmsg, setsockopt, sockopt};

use super::icmp_error::icmp_error;

/// What is kept of the packet that the error is about; an ICMP error quotes at most 1 280 bytes (RFC 4443 §2.4).
const QUOTED_BYTES: usize = 1_280;

/// One error, with the one who said so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct QueuedError {
    /// What the system call fails with.
    pub(super) errno: i32,
    pub(super) origin: Origin,
    /// Type and code of the ICMP message; 0 for what this kernel decided.
    pub(super) kind: u8,
    pub(super) code: u8,
    /// The MTU of a "too big", also of the local device.
    pub(super) info: u32,
    /// Who sent the ICMP message.
    pub(super) offender: Option<IpAddr>,
    /// TTL or hop limit that the ICMP message came with, where the socket asks for it.
    pub(super) ttl: Option<u8>,
    /// What the error quotes, of UDP from behind its header, of ICMP with it: often nothing.
    pub(super) quoted: Vec<u8>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// This kernel.
    Local,
    Icmp,
    Icmp6,
    /// Time stamps, zero-copy notices: no error.
    Other,
}

impl QueuedError {
    /// None for what no ICMP message said.
    pub(super) fn icmp(&self) -> Option<IcmpError> {
        match self.origin {
            Origin::Icmp => Some(icmp_error(false, self.kind, self.code, self.info)),
            Origin::Icmp6 => Some(icmp_error(true, self.kind, self.code, self.info)),
            Origin::Local | Origin::Other => None,
        }
    }
}

/// Errors are queued from now on, with the TTL that they came with, as that of whatever else comes.
pub(super) fn enable_with_ttl(socket: &impl AsFd, is_v6: bool) -> io::Result<()> {
    enable(socket, is_v6)?;
    if is_v6 {
        setsockopt(socket, sockopt::Ipv6RecvHopLimit, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv4RecvTtl, &true)?;
    }
    Ok(())
}

/// Errors are queued from now on.
pub(super) fn enable(socket: &impl AsFd, is_v6: bool) -> io::Result<()> {
    set(socket, is_v6, true)
}

/// No more of them: errors are the system calls' alone again.
pub(super) fn disable(socket: &impl AsFd, is_v6: bool) -> io::Result<()> {
    set(socket, is_v6, false)
}

fn set(socket: &impl AsFd, is_v6: bool, is_on: bool) -> io::Result<()> {
    if is_v6 {
        setsockopt(socket, sockopt::Ipv6RecvErr, &is_on)?;
    } else {
        setsockopt(socket, sockopt::Ipv4RecvErr, &is_on)?;
    }
    Ok(())
}

/// The oldest error of the queue; never waits. None: the queue is empty.
pub(super) fn next(socket: &impl AsFd) -> io::Result<Option<QueuedError>> {
    let mut quoted = vec![0; QUOTED_BYTES];
    let mut control =
        nix::cmsg_space!(libc::sock_extended_err, libc::sockaddr_in6, libc::sock_extended_err, libc::sockaddr_in6, i32);
    let flags = MsgFlags::MSG_ERRQUEUE | MsgFlags::MSG_DONTWAIT;
    let mut parts = [IoSliceMut::new(&mut quoted)];
    let raw = socket.as_fd().as_raw_fd();
    let (mut error, length) = match recvmsg::<SockaddrStorage>(raw, &mut parts, Some(&mut control), flags) {
        Err(Errno::EAGAIN) => return Ok(None),
        Err(errno) => return Err(errno.into()),
        Ok(message) => (parse(message.cmsgs()?), message.bytes),
    };
    quoted.truncate(length);
    if let Some(error) = &mut error {
        error.quoted = quoted;
    }
    Ok(error)
}

fn parse(messages: impl Iterator<Item = ControlMessageOwned>) -> Option<QueuedError> {
    let (mut found, mut ttl) = (None, None);
    for message in messages {
        match message {
            ControlMessageOwned::Ipv4RecvErr(error, offender) => {
                let address = offender.map(|address| Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr)).into());
                found = Some(of(&error, address));
            }
            ControlMessageOwned::Ipv6RecvErr(error, offender) => {
                let address = offender.map(|address| Ipv6Addr::from(address.sin6_addr.s6_addr).into());
                found = Some(of(&error, address));
            }
            ControlMessageOwned::Ipv4Ttl(value) | ControlMessageOwned::Ipv6HopLimit(value) => {
                ttl = u8::try_from(value).ok();
            }
            _ => {}
        }
    }
    found.map(|error| QueuedError { ttl, ..error })
}

fn of(error: &libc::sock_extended_err, offender: Option<IpAddr>) -> QueuedError {
    let origin = match error.ee_origin {
        libc::SO_EE_ORIGIN_LOCAL => Origin::Local,
        libc::SO_EE_ORIGIN_ICMP => Origin::Icmp,
        libc::SO_EE_ORIGIN_ICMP6 => Origin::Icmp6,
        _ => Origin::Other,
    };
    QueuedError {
        errno: error.ee_errno.cast_signed(),
        origin,
        kind: error.ee_type,
        code: error.ee_code,
        info: error.ee_info,
        // Of a local error the kernel leaves the address empty.
        offender: offender.filter(|address| !address.is_unspecified()),
        ttl: None,
        quoted: Vec::new(),
    }
}
