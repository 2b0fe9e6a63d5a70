//! What the kernel announces when flows begin and end: the ctnetlink groups NEW and DESTROY of the calling thread's
//! namespace (`ctnetlink_conntrack_event`, `net/netfilter/nf_conntrack_netlink.c`).
//!
//! Being a member costs every new flow of the namespace something, whether its announcement is read or not: see
//! [`crate::flows`].

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
};
use nix::sys::time::TimeVal;
use socket2::SockFilter;

use super::entry::{Entry, parse};
use crate::host::ReadError;
use crate::host::netlink::messages;

// `enum nfnetlink_groups`
const GROUP_NEW: libc::c_int = 1;
const GROUP_DESTROY: libc::c_int = 3;
/// `NFNL_SUBSYS_CTNETLINK << 8` with `IPCTNL_MSG_CT_NEW` and `IPCTNL_MSG_CT_DELETE`.
const NEW: u16 = 1 << 8;
const DELETE: u16 = 1 << 8 | 2;
/// What may wait for the reader: some 3 000 announcements of about 700 bytes with the kernel's own overhead. What does not
/// fit is lost, and counted.
const BUFFER_BYTES: usize = 2 * 1024 * 1024;
/// The kernel makes one datagram per announcement, of at most a few hundred bytes.
const DATAGRAM_BYTES: usize = 8 * 1024;
/// Place of the drops in what `SO_MEMINFO` returns (`SK_MEMINFO_DROPS`, Linux 4.12).
const DROPS: usize = 8;
const SO_MEMINFO: libc::c_int = 55;

/// One announcement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Announcement {
    New(Entry),
    Ended(Entry),
    Undecoded,
}

/// A socket that can join and leave the groups.
pub(crate) struct Listener {
    socket: OwnedFd,
    buffer: Vec<u8>,
    lost: u32,
}

impl Listener {
    /// Not a member yet. `wait` is how long [`Listener::hear`] waits for the first announcement.
    pub fn open(wait: Duration) -> Result<Self, ReadError> {
        let failed = |errno: Errno| call("open a socket for announcements of flows", errno);
        let socket =
            socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkNetFilter)
                .map_err(failed)?;
        // Beyond net.core.rmem_max only with the right to; else as much as everybody may have.
        setsockopt(&socket, RcvBufForce, &BUFFER_BYTES)
            .or_else(|_| setsockopt(&socket, RcvBuf, &BUFFER_BYTES))
            .map_err(failed)?;
        let micros = i64::try_from(wait.as_micros()).unwrap_or(i64::MAX);
        let wait = TimeVal::new(micros / 1_000_000, micros % 1_000_000);
        setsockopt(&socket, ReceiveTimeout, &wait).map_err(failed)?;
        // Without a number of its own the socket is taken for the sender of every announcement, and left out
        // (`nlmsg_notify` excludes port 0, `do_one_broadcast`).
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(failed)?;
        Ok(Self { socket, buffer: vec![0; DATAGRAM_BYTES], lost: 0 })
    }

    pub fn join(&self) -> Result<(), ReadError> {
        self.member(libc::NETLINK_ADD_MEMBERSHIP, &[GROUP_NEW, GROUP_DESTROY])
            .map_err(|errno| call("listen to announcements of flows", errno))
    }

    /// Beginnings alone.
    pub fn join_new(&self) -> Result<(), ReadError> {
        self.member(libc::NETLINK_ADD_MEMBERSHIP, &[GROUP_NEW])
            .map_err(|errno| call("listen to announcements of new flows", errno))
    }

    pub fn leave(&self) -> Result<(), ReadError> {
        self.member(libc::NETLINK_DROP_MEMBERSHIP, &[GROUP_NEW, GROUP_DESTROY])
            .map_err(|errno| call("stop listening to flows", errno))
    }

    /// Only announcements of IPv4 or IPv6 flows from `source` and to `destination`, whatever the group sends: the kernel leaves
    /// out the others before they need room. Nothing is left out where neither is given.
    pub fn only(&self, source: Option<IpAddr>, destination: Option<IpAddr>) -> Result<(), ReadError> {
        let program = filter(source, destination);
        if program.is_empty() {
            return Ok(());
        }
        let socket = socket2::SockRef::from(&self.socket);
        let step = "leave out announcements of other flows";
        socket.attach_filter(&program).map_err(|source| ReadError::Call { step: step.to_owned(), source })
    }

    fn member(&self, option: libc::c_int, groups: &[libc::c_int]) -> Result<(), Errno> {
        for group in groups {
            let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("4 fits");
            // SAFETY: the kernel reads `length` bytes from `group`, which lives until the call returns.
            let result = unsafe {
                libc::setsockopt(
                    self.socket.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    std::ptr::from_ref(group).cast(),
                    length,
                )
            };
            Errno::result(result)?;
        }
        Ok(())
    }

    /// Waits for an announcement, and takes all that are there, at most `most`. Returns how many the kernel has lost since
    /// the last call.
    pub fn hear(&mut self, most: usize, each: &mut dyn FnMut(Announcement)) -> Result<u64, ReadError> {
        self.take(MsgFlags::empty(), most, each)
    }

    /// As [`Listener::hear`], without waiting: what is left after [`Listener::leave`].
    pub fn rest(&mut self, most: usize, each: &mut dyn FnMut(Announcement)) -> Result<u64, ReadError> {
        self.take(MsgFlags::MSG_DONTWAIT, most, each)
    }

    fn take(&mut self, mut flags: MsgFlags, most: usize, each: &mut dyn FnMut(Announcement)) -> Result<u64, ReadError> {
        let mut heard = 0;
        while heard < most {
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) => {
                    announcements(&self.buffer[..length.min(self.buffer.len())], each);
                    heard += 1;
                }
                // Nothing there, or the wait is over.
                Err(Errno::EAGAIN) => break,
                // Some were lost: how many says the counter below. What is still in the buffer can be read.
                Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(errno) => return Err(call("hear announcements of flows", errno)),
            }
            flags = MsgFlags::MSG_DONTWAIT;
        }
        let lost = self.drops().unwrap_or(self.lost);
        let since = lost.wrapping_sub(self.lost);
        self.lost = lost;
        Ok(u64::from(since))
    }

    /// Announcements that found no room since the socket was made (`sk_drops`, `netlink_overrun`).
    fn drops(&self) -> Option<u32> {
        let mut numbers = [0u32; DROPS + 1];
        let mut length = libc::socklen_t::try_from(size_of_val(&numbers)).expect("36 fits");
        // SAFETY: the kernel writes at most `length` bytes into `numbers`, which lives until the call returns.
        let result = unsafe {
            libc::getsockopt(
                self.socket.as_raw_fd(),
                libc::SOL_SOCKET,
                SO_MEMINFO,
                numbers.as_mut_ptr().cast(),
                &raw mut length,
            )
        };
        (result == 0 && length as usize == size_of_val(&numbers)).then_some(numbers[DROPS])
    }
}

/// Where the addresses of the original tuple are in a datagram: it begins with `struct nlmsghdr` (16 bytes) and `struct nfgenmsg`
/// (4), then the headers of CTA_TUPLE_ORIG, CTA_TUPLE_IP and the source's attribute (4 each), which
/// `ctnetlink_conntrack_event` writes first.
const SOURCE_AT: u32 = 32;

/// A classic BPF program that takes the whole datagram when the addresses are these.
fn filter(source: Option<IpAddr>, destination: Option<IpAddr>) -> Vec<SockFilter> {
    let mut words = Vec::new();
    for (address, is_source) in [(source, true), (destination, false)] {
        let octets = match address {
            Some(IpAddr::V4(address)) => address.octets().to_vec(),
            Some(IpAddr::V6(address)) => address.octets().to_vec(),
            None => continue,
        };
        let length = u32::try_from(octets.len()).expect("4 or 16");
        // The destination follows, behind the header of its own attribute.
        let start = if is_source { SOURCE_AT } else { SOURCE_AT + length + 4 };
        let values = octets.chunks_exact(4).map(|four| u32::from_be_bytes([four[0], four[1], four[2], four[3]]));
        words.extend((start..).step_by(4).zip(values));
    }
    if words.is_empty() {
        return Vec::new();
    }
    let step = |code: u32, jump_if_not: u8, k: u32| {
        SockFilter::new(u16::try_from(code).expect("codes have 16 bits"), 0, jump_if_not, k)
    };
    let checks = u8::try_from(words.len()).expect("8 words at most");
    let mut program = Vec::new();
    for (done, (at, value)) in (0u8..).zip(words) {
        program.push(step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, at));
        // Two instructions for each word that is left, and then the one that takes.
        let refuse = (checks - done - 1) * 2 + 1;
        program.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, refuse, value));
    }
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, u32::MAX));
    program.push(step(libc::BPF_RET | libc::BPF_K, 0, 0));
    program
}

/// The announcements of one datagram.
fn announcements(datagram: &[u8], each: &mut dyn FnMut(Announcement)) {
    for (kind, payload) in messages(datagram) {
        match (kind, parse(payload)) {
            (NEW, Some(entry)) => each(Announcement::New(entry)),
            (DELETE, Some(entry)) => each(Announcement::Ended(entry)),
            (NEW | DELETE, None) => each(Announcement::Undecoded),
            _ => {}
        }
    }
}

fn call(step: &str, errno: Errno) -> ReadError {
    ReadError::Call { step: step.to_owned(), source: io::Error::from(errno) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::conntrack::recorded;

    #[test]
    fn begin_and_end_of_a_service_flow_are_heard() {
        let mut heard = Vec::new();
        for datagram in recorded::announcements() {
            announcements(&datagram, &mut |announcement| heard.push(announcement));
        }
        let service = |entry: &Entry| entry.original.destination_port == 80 && entry.is_destination_rewritten();
        let new = heard.iter().filter(|a| matches!(a, Announcement::New(entry) if service(entry)));
        assert_eq!(new.count(), 2);
        let ended: Vec<&Entry> = heard
            .iter()
            .filter_map(|announcement| match announcement {
                Announcement::Ended(entry) => Some(entry),
                _ => None,
            })
            .collect();
        assert!(ended.iter().any(|entry| service(entry) && entry.is_assured()));
        assert!(ended.iter().any(|entry| entry.protocol == 17 && !entry.is_replied()));
        assert!(!heard.contains(&Announcement::Undecoded));
    }

    proptest::proptest! {
        #[test]
        fn any_datagram_ends(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            announcements(&bytes, &mut |_| {});
        }
    }
}
