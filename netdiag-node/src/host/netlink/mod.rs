//! Netlink requests and their answers (RFC 3549 §2.3), for rtnetlink, sock_diag and ctnetlink. Decoding the payloads is
//! their readers' work: this module only knows headers and attributes.

mod message;

use std::io;
use std::ops::ControlFlow;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::sockopt::ReceiveTimeout;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket};
use nix::sys::time::TimeVal;

use super::ReadError;
use message::{HEADER_BYTES, Header, align};
pub(crate) use message::{IPV4, IPV6, UNSPECIFIED, address, attribute, attributes, int, long, messages, short, string};

/// Largest datagram the kernel fills for a dump is 32 KiB (`netlink_dump`, `max_recvmsg_len`); twice that to be safe.
const BUFFER_BYTES: usize = 64 * 1024;
/// The kernel answers at once; this only keeps a surprise from hanging a thread.
const ANSWER_WITHIN_S: i64 = 2;
/// A dump is repeated when the kernel says that the table changed under it, but not for ever.
pub(crate) const DUMP_TRIES: usize = 3;
/// `NLM_F_REQUEST | NLM_F_DUMP`, and `NLM_F_REQUEST | NLM_F_ACK`.
const REQUEST_DUMP: u16 = 0x301;
const REQUEST_ONE: u16 = 0x005;
/// Set in a dump's messages when they may not fit together (`NLM_F_DUMP_INTR`, Linux 3.0).
const DUMP_INTERRUPTED: u16 = 0x10;

/// A netlink socket in the network namespace of the thread that opened it.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

/// How a dump ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Complete,
    /// The kernel said that the table changed meanwhile (`NLM_F_DUMP_INTR`): what was seen may not fit together.
    Interrupted,
    /// The caller had enough. The rest of the answer is still in the socket, which is of no more use.
    Stopped,
}

impl Netlink {
    pub(crate) fn open(protocol: SockProtocol) -> Result<Self, ReadError> {
        let step = "open a netlink socket";
        let socket = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(|errno| call(step, errno))?;
        Self::with(socket, step)
    }

    /// `NETLINK_XFRM`, which nix has no name for. `EPROTONOSUPPORT` on a kernel without IPsec.
    pub(crate) fn open_xfrm() -> Result<Self, ReadError> {
        let step = "open a netlink socket for IPsec";
        // SAFETY: no pointers; a descriptor that is not negative is a new one that nobody else owns.
        let socket = unsafe {
            let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
            OwnedFd::from_raw_fd(
                Errno::result(libc::socket(libc::AF_NETLINK, kind, libc::NETLINK_XFRM))
                    .map_err(|errno| call(step, errno))?,
            )
        };
        Self::with(socket, step)
    }

    fn with(socket: OwnedFd, step: &str) -> Result<Self, ReadError> {
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_WITHIN_S, 0)).map_err(|errno| call(step, errno))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER_BYTES] })
    }

    /// Lets the kernel look at what a dump asks for (`NETLINK_GET_STRICT_CHK`, Linux 4.20). One that cannot sends everything.
    pub(crate) fn check_strictly(&mut self) {
        const GET_STRICT_CHECK: i32 = 12;
        let (on, length) = (1_i32, libc::socklen_t::try_from(size_of::<i32>()).expect("four bytes"));
        // SAFETY: the option is an int, which lives until the call returns.
        unsafe {
            let socket = self.socket.as_raw_fd();
            libc::setsockopt(socket, libc::SOL_NETLINK, GET_STRICT_CHECK, (&raw const on).cast(), length);
        }
    }

    /// All messages of a dump, decoded one by one from their payloads. `step` names the dump in errors: `list routes`.
    ///
    /// `decode` returns none for a message that it does not want.
    pub(crate) fn dump<T>(
        &mut self,
        kind: u16,
        request: &[u8],
        step: &str,
        mut decode: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, ReadError> {
        for _ in 0..DUMP_TRIES {
            let mut found = Vec::new();
            let ended = self.exchange(kind, REQUEST_DUMP, request, step, &mut |payload| {
                found.extend(decode(payload));
                ControlFlow::Continue(())
            })?;
            if ended == Ended::Complete {
                return Ok(found);
            }
        }
        let source =
            io::Error::new(io::ErrorKind::Interrupted, format!("it changed during each of {DUMP_TRIES} tries"));
        Err(ReadError::Call { step: step.to_owned(), source })
    }

    /// Feeds the messages of a dump to `each` as they come, for dumps that are too large to be kept and may not be exact: what
    /// was added or removed meanwhile may be missing or be there twice.
    pub(crate) fn stream(
        &mut self,
        kind: u16,
        request: &[u8],
        step: &str,
        mut each: impl FnMut(&[u8]),
    ) -> Result<(), ReadError> {
        let mut all = |payload: &[u8]| {
            each(payload);
            ControlFlow::Continue(())
        };
        self.exchange(kind, REQUEST_DUMP, request, step, &mut all).map(|_| ())
    }

    /// As [`Netlink::stream`], until the caller has enough; says how the dump ended. Not repeated when it was interrupted: the
    /// caller has used what came before.
    pub(crate) fn walk(
        &mut self,
        kind: u16,
        request: &[u8],
        step: &str,
        each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<Ended, ReadError> {
        self.exchange(kind, REQUEST_DUMP, request, step, each)
    }

    /// The answer to a request about one object.
    pub(crate) fn get<T>(
        &mut self,
        kind: u16,
        request: &[u8],
        step: &str,
        mut decode: impl FnMut(&[u8]) -> Option<T>,
    ) -> Result<Option<T>, ReadError> {
        let mut found = None;
        self.exchange(kind, REQUEST_ONE, request, step, &mut |payload| {
            found = found.take().or_else(|| decode(payload));
            ControlFlow::Continue(())
        })?;
        Ok(found)
    }

    /// Sends one request and feeds every message of its answer to `each`.
    fn exchange(
        &mut self,
        kind: u16,
        flags: u16,
        request: &[u8],
        step: &str,
        each: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<Ended, ReadError> {
        self.sequence += 1;
        let mut bytes = Vec::with_capacity(HEADER_BYTES + request.len());
        let length = u32::try_from(HEADER_BYTES + request.len()).expect("requests are a few bytes");
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend(0u32.to_ne_bytes());
        bytes.extend(request);
        send(self.socket.as_raw_fd(), &bytes, MsgFlags::empty()).map_err(|errno| call(step, errno))?;

        let mut interrupted = false;
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut self.buffer, MsgFlags::MSG_TRUNC) {
                Ok(length) => length,
                Err(Errno::EINTR) => continue,
                Err(errno) => return Err(call(step, errno)),
            };
            if length > self.buffer.len() {
                return Err(malformed(step, &format!("a datagram of {length} bytes")));
            }
            let mut rest = &self.buffer[..length];
            while let Some(header) = Header::parse(rest) {
                let (Some(payload), aligned) = (rest.get(HEADER_BYTES..header.length), align(header.length)) else {
                    return Err(malformed(step, "a message longer than its datagram"));
                };
                rest = rest.get(aligned..).unwrap_or_default();
                if header.sequence != self.sequence {
                    continue;
                }
                interrupted |= header.flags & DUMP_INTERRUPTED != 0;
                match i32::from(header.kind) {
                    libc::NLMSG_ERROR | libc::NLMSG_DONE => {
                        // Both carry an errno, negated; 0 is the acknowledgement.
                        let errno = int(payload, 0).map_or(0, |value| value.cast_signed().wrapping_neg());
                        return match errno {
                            // Not through `Errno`, which does not know the numbers that ipset has of its own.
                            1.. => Err(ReadError::Call {
                                step: step.to_owned(),
                                source: io::Error::from_raw_os_error(errno),
                            }),
                            _ if interrupted => Ok(Ended::Interrupted),
                            _ => Ok(Ended::Complete),
                        };
                    }
                    libc::NLMSG_NOOP => {}
                    _ => {
                        if each(payload).is_break() {
                            return Ok(Ended::Stopped);
                        }
                    }
                }
            }
        }
    }
}

fn call(step: &str, errno: Errno) -> ReadError {
    ReadError::Call { step: step.to_owned(), source: errno.into() }
}

fn malformed(step: &str, why: &str) -> ReadError {
    ReadError::Malformed { what: format!("the kernel's answer to `{step}`"), why: why.to_owned() }
}

/// A kernel that plays back datagrams instead of looking into its tables: recorded ones, and answers that the real one gives
/// too rarely to wait for.
#[cfg(test)]
pub(crate) mod playback {
    use nix::sys::socket::socketpair;

    use super::*;

    pub(crate) const DONE: [u8; 20] = message(3, 0, [0; 4]);

    /// A message with a payload of four bytes.
    pub(crate) const fn message(kind: u8, flags: u8, payload: [u8; 4]) -> [u8; 20] {
        let [a, b, c, d] = payload;
        [20, 0, 0, 0, kind, 0, flags, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d]
    }

    /// Answers the first request with the first list of datagrams, and so on. Sequence numbers are put in.
    pub(crate) fn netlink(answers: Vec<Vec<Vec<u8>>>) -> Netlink {
        let pair = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC);
        let (socket, kernel) = pair.unwrap();
        setsockopt(&socket, ReceiveTimeout, &TimeVal::new(ANSWER_WITHIN_S, 0)).unwrap();
        std::thread::spawn(move || {
            for datagrams in answers {
                let mut request = [0; 4096];
                if recv(kernel.as_raw_fd(), &mut request, MsgFlags::empty()).unwrap_or(0) == 0 {
                    return;
                }
                for mut datagram in datagrams {
                    number(&mut datagram, &request[8..12]);
                    // Fails when the reader had enough.
                    let _ = send(kernel.as_raw_fd(), &datagram, MsgFlags::MSG_NOSIGNAL);
                }
            }
        });
        Netlink { socket, sequence: 0, buffer: vec![0; BUFFER_BYTES] }
    }

    fn number(datagram: &mut [u8], sequence: &[u8]) {
        let mut at = 0;
        while let Some(header) = datagram.get(at..).and_then(Header::parse) {
            datagram[at + 8..at + 12].copy_from_slice(sequence);
            at += align(header.length);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupted_dump_is_repeated_but_not_for_ever() {
        let cut = || vec![playback::message(16, 0x10, [7; 4]).to_vec(), playback::DONE.to_vec()];
        let whole = || vec![playback::message(16, 0, [7; 4]).to_vec(), playback::DONE.to_vec()];
        let decode = |payload: &[u8]| payload.first().copied();
        let mut netlink = playback::netlink(vec![cut(), cut(), whole()]);
        assert_eq!(netlink.dump(1, &[], "list it", decode).unwrap(), [7]);
        let mut netlink = playback::netlink(vec![cut(), cut(), cut(), whole()]);
        let error = netlink.dump(1, &[], "list it", decode).unwrap_err().to_string();
        assert_eq!(error, "cannot list it: it changed during each of 3 tries");
    }

    #[test]
    fn walk_ends_when_its_reader_has_enough() {
        let many = (0..5).map(|n| playback::message(16, 0, [n; 4]).to_vec()).collect();
        let mut seen = 0;
        let ended = playback::netlink(vec![many]).walk(1, &[], "list it", &mut |_| {
            seen += 1;
            if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert_eq!((ended.unwrap(), seen), (Ended::Stopped, 2));
    }

    #[test]
    fn unknown_request_is_an_error_with_its_step() {
        let mut netlink = Netlink::open(SockProtocol::NetlinkRoute).unwrap();
        let error = netlink.get(9999, &[0; 16], "try the impossible", |_| Some(())).unwrap_err().to_string();
        assert!(error.starts_with("cannot try the impossible: "), "{error}");
    }
}
