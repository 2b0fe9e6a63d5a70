//! The process in the control group. It is this same program, started again, and does nothing but this.
//!
//! It keeps one capability, opens no file after it has joined, and reads nothing but questions of 16 bytes.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;

use netdiag_common::observation::series::MAX_SERIES_MS;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::sys::socket::{ControlMessage, MsgFlags, recv, sendmsg};
use socket2::{Domain, Protocol, Socket, Type};

use super::super::enter::own_sockets_as;
use super::{ANSWER_BYTES, ANSWER_HEADER, QUESTION_BYTES};
use crate::attribution::enter_cgroup_root;
use crate::gap::Failure;
use crate::host::{ReadError, cgroup};

/// More than any series makes: ten for each of its attempts.
const MOST_SOCKETS: u32 = 1_000_000;
/// After the longest series the kernel ends what is still here.
const MOST_SECONDS: u64 = MAX_SERIES_MS / 1_000 + 10;
/// For a name, `TASK_COMM_LEN` takes 15 bytes.
const NAME: &std::ffi::CStr = c"netdiag-sockets";

/// What it is told when it is started. Standard input is the channel.
#[derive(Debug, Clone, PartialEq, Eq, clap::Args)]
pub struct Arguments {
    /// Folder of the control group
    #[arg(long)]
    pub group: PathBuf,
    /// A proc filesystem that shows the node's processes
    #[arg(long)]
    pub proc: PathBuf,
    /// Owner of the sockets
    #[arg(long)]
    pub uid: Option<u32>,
}

/// Joins the group, says so, and makes sockets until the channel's other end is closed. It stays in the network namespace that it was
/// started in.
pub fn serve(arguments: &Arguments) {
    let channel = io::stdin().as_raw_fd();
    if let Err((error, words)) = settle(arguments) {
        let _ = answer(channel, 0, &Err(error), &words);
        return;
    }
    let mut is_heard = answer(channel, 0, &Ok(None), "");
    for _ in 0..MOST_SOCKETS {
        if is_heard.is_err() {
            return;
        }
        let mut question = [0; QUESTION_BYTES];
        match recv(channel, &mut question, MsgFlags::empty()) {
            Ok(QUESTION_BYTES) => {}
            Err(Errno::EINTR) => continue,
            // The other end is closed.
            _ => return,
        }
        let word = |at: usize| {
            i32::from_ne_bytes([question[4 * at], question[4 * at + 1], question[4 * at + 2], question[4 * at + 3]])
        };
        let made = make(word(1), word(2), word(3));
        is_heard = answer(channel, word(0), &made.map(Some), "");
    }
}

/// The error, and what failed with it.
fn settle(arguments: &Arguments) -> Result<(), (io::Error, String)> {
    let named =
        |what: &'static str| move |errno: Errno| (io::Error::from(errno), format!("cannot {what}: {}", errno.desc()));
    // Before the group: one that is frozen is not left again.
    end_with_parent().map_err(named("end with the agent"))?;
    nix::unistd::alarm::set(u32::try_from(MOST_SECONDS).unwrap_or(u32::MAX));
    // For those who wonder what it is.
    prctl::set_name(NAME).map_err(named("take a name"))?;
    // The kernel lets nobody move processes out of or into what the own cgroup namespace does not show (`nsdelegate`).
    enter_cgroup_root(&arguments.proc);
    cgroup::join(&arguments.group).map_err(|error| {
        let words = error.to_string();
        match error {
            ReadError::Call { source, .. } | ReadError::File { source, .. } => (source, words),
            _ => (io::Error::other("no such group"), words),
        }
    })?;
    if let Some(uid) = arguments.uid {
        own_sockets_as(uid).map_err(|failure: Failure| (Errno::EPERM.into(), failure.to_string()))?;
    }
    keep_raw_sockets_alone().map_err(|error| {
        let words = format!("cannot give capabilities up: {error}");
        (error, words)
    })?;
    prctl::set_no_new_privs().map_err(named("give new privileges up"))?;
    // Again: a change of the user for files has taken it back (`commit_creds`, kernel/cred.c).
    end_with_parent().map_err(named("end with the agent"))
}

fn end_with_parent() -> nix::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)
}

/// `_LINUX_CAPABILITY_VERSION_3` and `CAP_NET_RAW` of linux/capability.h.
const CAPABILITY_VERSION: u32 = 0x2008_0522;
const NET_RAW: u32 = 1 << 13;

/// `struct __user_cap_header_struct`.
#[repr(C)]
struct CapabilityHeader {
    version: u32,
    /// 0 is the calling thread.
    pid: i32,
}

/// `struct __user_cap_data_struct`: 32 capabilities.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySets {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Of all capabilities it needs that for ICMP and crafted packets, where the agent has it.
fn keep_raw_sockets_alone() -> io::Result<()> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION, pid: 0 };
    let mut sets = [CapabilitySets::default(); 2];
    // SAFETY: the kernel reads the header and writes two sets, which version 3 has.
    if unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    let kept = sets[0].permitted & NET_RAW;
    let sets = [CapabilitySets { effective: kept, permitted: kept, inheritable: 0 }, CapabilitySets::default()];
    // SAFETY: the kernel reads the header and two sets.
    if unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sockets of the internet alone: nothing else is a probe's.
fn make(domain: i32, kind: i32, protocol: i32) -> io::Result<Socket> {
    if !matches!(domain, libc::AF_INET | libc::AF_INET6) {
        return Err(Errno::EAFNOSUPPORT.into());
    }
    Socket::new(Domain::from(domain), Type::from(kind), Some(Protocol::from(protocol)))
}

/// Here the socket is closed afterwards: it is the agent's alone.
fn answer(channel: RawFd, number: i32, made: &io::Result<Option<Socket>>, words: &str) -> nix::Result<usize> {
    let errno = match made {
        Ok(_) => 0,
        Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
    };
    let mut bytes = Vec::with_capacity(ANSWER_HEADER + words.len());
    bytes.extend(number.to_ne_bytes());
    bytes.extend(errno.to_ne_bytes());
    bytes.extend(words.bytes());
    bytes.truncate(ANSWER_BYTES);
    let descriptors: Vec<RawFd> = made.iter().flatten().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights };
    sendmsg::<()>(channel, &[IoSlice::new(&bytes)], control, MsgFlags::MSG_NOSIGNAL, None)
}
