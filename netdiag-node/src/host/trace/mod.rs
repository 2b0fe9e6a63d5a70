//! An armed trace in the calling thread's network namespace: a table of nf_tables that lives as long as a socket of ours
//! marks a few packets of one tuple, and the kernel reports what its packet filter does with them.
//!
//! Nothing stays: the table belongs to the socket (`NFT_TABLE_F_OWNER`, Linux 5.12), so the kernel removes it when the
//! socket closes, however this process ends. Without that flag nothing is armed.

pub(super) use self::batch::TABLE;

mod assembly;
mod batch;
pub mod event;

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use netdiag_common::observation::Owner;
use netdiag_common::observation::trace::{TraceRecord, TraceRequest};
use nix::errno::Errno;
use nix::sys::socket::sockopt::{RcvBuf, RcvBufForce, ReceiveTimeout};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, getsockname, recv, send, setsockopt,
    socket,
};
use nix::sys::time::TimeVal;

use self::assembly::Assembly;
use self::batch::{Batch, TABLE_MESSAGE};
use super::netlink::{Netlink, int};
use super::nftables::ExactTables;
use super::nftables::attribute::Attributes;
use super::{ReadError, forwarding};
use crate::clock;

/// `NFNLGRP_NFTRACE`
static TRACES: libc::c_int = 9;

/// Events of 64 packets that all come at once, as the kernel accounts for them.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;
/// An event has 300 bytes; the kernel sends one per datagram.
const EVENT_BYTES: usize = 16 << 10;
/// The kernel answers at once, or waits for a transaction of another writer.
const ANSWER_WITHIN_S: i64 = 5;
/// How long a packet that was marked last may take to leave: it is worked off at once, unless it is queued.
const LINGER: Duration = Duration::from_millis(200);
/// How soon a trace ends that nobody waits for any more, in microseconds.
const LOOK_EVERY_US: i64 = 50_000;

/// A trace that is armed until this is dropped.
pub struct Armed {
    /// Owns the table.
    owner: OwnedFd,
    events: OwnedFd,
    request: TraceRequest,
    assembly: Assembly,
    since: Timestamp,
}

/// Arms what is asked, whose limits the caller has checked. An error of kind `AlreadyExists` says that another trace is
/// armed in this namespace.
pub fn arm(request: &TraceRequest) -> Result<Armed, ReadError> {
    let events = open("listen to traces of nf_tables")?;
    setsockopt(&events, RcvBufForce, &RECEIVE_BUFFER_BYTES)
        .or_else(|_| setsockopt(&events, RcvBuf, &RECEIVE_BUFFER_BYTES))
        .map_err(|errno| call("listen to traces of nf_tables", errno))?;
    setsockopt(&events, ReceiveTimeout, &TimeVal::new(0, LOOK_EVERY_US))
        .map_err(|errno| call("listen to traces of nf_tables", errno))?;
    join(&events)?;
    let base = ExactTables::open()?.base_chains()?;
    let owner = open("open a netlink socket")?;
    setsockopt(&owner, ReceiveTimeout, &TimeVal::new(ANSWER_WITHIN_S, 0))
        .map_err(|errno| call("open a netlink socket", errno))?;
    let since = clock::now();
    commit(&owner, &batch::arm(request))?;
    let assembly = Assembly::new(batch::family(&request.tuple), base, request.packets);
    let armed = Armed { owner, events, request: request.clone(), assembly, since };
    // A kernel that took the flag without acting on it would keep the table for ever.
    if !armed.is_owned()? {
        commit(&armed.owner, &batch::disarm(request))?;
        return Err(no_owner());
    }
    Ok(armed)
}

impl Armed {
    /// Listens until all packets came, the time is over or `is_over`, disarms, and tells what was seen. `owner` as for
    /// [`forwarding::fate()`].
    pub fn collect(
        mut self,
        until: Instant,
        is_over: &dyn Fn() -> bool,
        owner: &mut dyn FnMut(Option<i32>) -> Option<Owner>,
    ) -> Result<TraceRecord, ReadError> {
        let mut buffer = vec![0; EVENT_BYTES];
        let mut lost = false;
        let mut last = Instant::now();
        while Instant::now() < until && !is_over() && !(self.assembly.is_full() && last.elapsed() > LINGER) {
            if take(&self.events, MsgFlags::empty(), &mut buffer, &mut self.assembly, &mut lost)? {
                last = Instant::now();
            }
        }
        let matched = self.matched();
        let Self { owner: table, events, mut assembly, since, .. } = self;
        drop(table);
        let disarmed = clock::now();
        while take(&events, MsgFlags::MSG_DONTWAIT, &mut buffer, &mut assembly, &mut lost)? {}
        let (packets, left_out) = assembly.finish();
        let indexes = packets.iter().flat_map(|packet| &packet.events).flat_map(|event| [event.input, event.output]);
        let interfaces = forwarding::interfaces(&indexes.flatten().collect(), owner)?;
        Ok(TraceRecord { armed: since, disarmed, matched, packets, lost, left_out, interfaces })
    }

    /// Packets that our rules matched, whether they were marked or not.
    fn matched(&self) -> Option<u64> {
        let (table_and_name, kind, data, packets) = (batch::about_table(&self.request), 3, 4, 2);
        let mut request = table_and_name;
        super::nftables::attribute::push(&mut request, 2, &[batch::MATCHED.as_bytes(), b"\0"].concat());
        super::nftables::attribute::push(&mut request, kind, &batch::COUNTER.to_be_bytes());
        let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter).ok()?;
        let answer = netlink.get(message(libc::NFT_MSG_GETOBJ), &request, "read a counter", |payload| {
            Attributes(Attributes(payload.get(4..)?).find(data)?).u64(packets)
        });
        answer.ok()?
    }

    fn is_owned(&self) -> Result<bool, ReadError> {
        let own = getsockname::<NetlinkAddr>(self.owner.as_raw_fd())
            .map_err(|errno| call("name a netlink socket", errno))?
            .pid();
        let (flags, owner) = (2, 7);
        let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
        let request = batch::about_table(&self.request);
        let found = netlink.get(message(libc::NFT_MSG_GETTABLE), &request, "read the table of a trace", |payload| {
            let of = Attributes(payload.get(4..)?);
            Some(of.u32(flags)? & batch::OWNER != 0 && of.u32(owner)? == own)
        })?;
        Ok(found == Some(true))
    }
}

fn open(step: &str) -> Result<OwnedFd, ReadError> {
    let flags = SockFlag::SOCK_CLOEXEC;
    let opened = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)
        .map_err(|errno| call(step, errno))?;
    bind(opened.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(|errno| call(step, errno))?;
    Ok(opened)
}

fn join(events: &OwnedFd) -> Result<(), ReadError> {
    let length = libc::socklen_t::try_from(size_of::<libc::c_int>()).expect("4 fits");
    // SAFETY: the kernel reads `length` bytes of a constant that lives for the call.
    let result = unsafe {
        libc::setsockopt(
            events.as_raw_fd(),
            libc::SOL_NETLINK,
            libc::NETLINK_ADD_MEMBERSHIP,
            (&raw const TRACES).cast(),
            length,
        )
    };
    if result == 0 { Ok(()) } else { Err(call("listen to traces of nf_tables", Errno::last())) }
}

/// Sends a transaction and waits until its last message is acknowledged. All of it holds, or nothing.
fn commit(owner: &OwnedFd, batch: &Batch) -> Result<(), ReadError> {
    let step = "arm a trace";
    send(owner.as_raw_fd(), &batch.bytes, MsgFlags::empty()).map_err(|errno| call(step, errno))?;
    let mut buffer = vec![0; EVENT_BYTES];
    loop {
        let length = match recv(owner.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => length,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(call(step, errno)),
        };
        // Answers come one per datagram: header, error, and what they answer.
        let answer = buffer.get(..length).unwrap_or_default();
        let (sequence, code) = (int(answer, 8).unwrap_or(0), int(answer, 16).unwrap_or(0).cast_signed());
        match code.wrapping_neg() {
            0 if sequence >= batch.messages => return Ok(()),
            0 => {}
            libc::EINVAL | libc::EOPNOTSUPP if sequence == TABLE_MESSAGE => return Err(no_owner()),
            // A table of this name that another socket owns (`nft_table_lookup`). Without the right to arm anything it is the
            // transaction's first message that fails.
            libc::EPERM if sequence == TABLE_MESSAGE => return Err(call(step, Errno::EEXIST)),
            libc::EOPNOTSUPP | libc::EPROTONOSUPPORT => {
                return Err(ReadError::Unsupported { feature: "nf_tables".into() });
            }
            libc::ENOENT => {
                return Err(ReadError::Unsupported { feature: "counters, limits and traces of nf_tables".into() });
            }
            errno => return Err(call(step, Errno::from_raw(errno))),
        }
    }
}

/// Takes one datagram; false when none came for a while, or with `MSG_DONTWAIT` when there is none.
fn take(
    events: &OwnedFd,
    flags: MsgFlags,
    buffer: &mut [u8],
    assembly: &mut Assembly,
    lost: &mut bool,
) -> Result<bool, ReadError> {
    match recv(events.as_raw_fd(), buffer, flags) {
        Ok(length) => {
            event::events(buffer.get(..length).unwrap_or_default()).for_each(|event| assembly.feed(event));
            Ok(true)
        }
        Err(Errno::ENOBUFS) => {
            *lost = true;
            Ok(true)
        }
        Err(Errno::EAGAIN) => Ok(false),
        Err(Errno::EINTR) => Ok(true),
        Err(errno) => Err(call("read traces of nf_tables", errno)),
    }
}

fn message(kind: libc::c_int) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_NFTABLES << 8 | kind).expect("message types are below 256")
}

fn no_owner() -> ReadError {
    ReadError::Unsupported { feature: "tables of nf_tables that end with their socket (Linux 5.12)".into() }
}

fn call(step: &str, errno: Errno) -> ReadError {
    ReadError::Call { step: step.to_owned(), source: io::Error::from(errno) }
}
