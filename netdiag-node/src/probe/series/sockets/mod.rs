//! Sockets of a pod's control group: a tiny process joins the group and the namespace, makes sockets there when it is asked, and hands
//! them over.
//!
//! A socket belongs for good to the group of the process that makes it (`cgroup_sk_alloc`, kernel/cgroup/cgroup.c), and the
//! programs of that group are those that run for it, whoever connects it or sends by it (`sock_cgroup_ptr(&sk->sk_cgrp_data)` in
//! kernel/bpf/cgroup.c). A thread cannot leave its process's group, so it takes another process.
//!
//! It ends with this end of the channel, with the thread that started it, and after the longest time of a series.

mod process;

use std::ffi::OsStr;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, send, socketpair};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::sync::Mutex;
use tokio::time::timeout;

pub use process::{Arguments, serve};

use super::ready::watch;

/// The word of the command line that makes this program such a process.
pub const TASK: &str = "make-sockets";
/// To start a program and to move it takes some milliseconds; a group that is frozen takes for ever.
const JOINS_WITHIN: Duration = Duration::from_secs(2);
/// A process of a group that has used its share of the processors up waits for the next period, 100 ms as a rule.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// A question: number, domain, type, protocol; native order, since both ends are one program.
const QUESTION_BYTES: usize = 16;
/// What comes before the words of an answer: number, errno.
const ANSWER_HEADER: usize = 8;
/// With words.
const ANSWER_BYTES: usize = 512;

/// Whether probes of a pod are sent from its control group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joins {
    Never,
    /// Where programs are attached there that other sockets do not pass.
    WhereNeeded,
}

/// A control group whose sockets pass programs that this process's do not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// In the cgroup v2 tree.
    pub folder: PathBuf,
    /// A proc filesystem that shows the node's processes.
    pub proc: PathBuf,
    /// The programs, in words for where the group cannot be joined.
    pub programs: Vec<String>,
}

/// A process in a group, seen from here. It ends with this.
pub(super) struct Maker {
    process: Child,
    channel: OwnedFd,
    turn: Mutex<Turn>,
}

/// Who holds it asks; the others wait.
#[derive(Default)]
struct Turn {
    /// Of the last question.
    number: u32,
    /// It did not answer once: nobody else waits for it.
    is_broken: bool,
}

/// What the process said.
struct Answer {
    number: u32,
    socket: io::Result<Option<Socket>>,
    /// What failed, where that was no socket.
    words: String,
}

impl Maker {
    /// Called in the namespace that the sockets are to be of, on the thread that will use them. The error is in words with a remedy.
    pub(super) async fn start(group: &Group, uid: Option<u32>) -> Result<Self, String> {
        let failed = |why: String, remedy: &str| {
            format!("control group {} could not be joined: {why}; {remedy}", group.folder.display())
        };
        let maker = Self::spawn(group, uid).map_err(|error| {
            failed(
                format!("cannot start a process: {error}"),
                "see the limits of the agent's own pod for processes and memory",
            )
        })?;
        match timeout(JOINS_WITHIN, maker.hear()).await {
            Ok(Ok(Answer { socket: Ok(_), .. })) => Ok(maker),
            Ok(Ok(Answer { socket: Err(error), words, .. })) => Err(failed(words, remedy(&error))),
            Ok(Err(error)) => Err(failed(error.to_string(), "the pod may have ended meanwhile: ask again")),
            Err(_) => Err(failed(
                format!("the process in it did not begin within {} ms", JOINS_WITHIN.as_millis()),
                "see cgroup.freeze and cpu.max of the group: is the pod paused, or short of processor time?",
            )),
        }
    }

    fn spawn(group: &Group, uid: Option<u32>) -> io::Result<Self> {
        let family = AddressFamily::Unix;
        let (channel, theirs) = socketpair(family, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
        let mut command = Command::new("/proc/self/exe");
        command.arg0("netdiag-node").args([OsStr::new(TASK), OsStr::new("--group"), group.folder.as_os_str()]);
        command.arg("--proc").arg(&group.proc);
        if let Some(uid) = uid {
            command.arg("--uid").arg(uid.to_string());
        }
        command.env_clear().stdin(Stdio::from(theirs)).stdout(Stdio::null()).stderr(Stdio::null());
        let process = command.spawn()?;
        Ok(Self { process, channel, turn: Mutex::default() })
    }

    /// A non-blocking socket of the group.
    pub(super) async fn socket(&self, domain: Domain, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let mut turn = self.turn.lock().await;
        if turn.is_broken {
            return Err(io::Error::other("the process in the pod's control group has ended, or does not answer"));
        }
        turn.number = turn.number.wrapping_add(1);
        let number = turn.number;
        let answer = timeout(ANSWERS_WITHIN, self.ask(number, domain, kind, protocol)).await.unwrap_or_else(|_| {
            let why = format!("the process in the pod's control group did not answer within {ANSWERS_WITHIN:?}");
            Err(io::Error::other(why))
        });
        match answer {
            Err(error) => {
                turn.is_broken = true;
                Err(error)
            }
            Ok(socket) => socket?.ok_or_else(|| io::Error::other("an answer without a socket")),
        }
    }

    /// The inner error is of the socket, the outer one of the process.
    async fn ask(
        &self,
        number: u32,
        domain: Domain,
        kind: Type,
        protocol: Protocol,
    ) -> io::Result<io::Result<Option<Socket>>> {
        let words = [number.cast_signed(), domain.into(), kind.nonblocking().into(), protocol.into()];
        let question: [u8; QUESTION_BYTES] = std::array::from_fn(|at| words[at / 4].to_ne_bytes()[at % 4]);
        // Never waits: a process that does not read is one that does not answer.
        send(self.channel.as_raw_fd(), &question, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL)?;
        loop {
            let answer = self.hear().await?;
            // Who asked before may have given up.
            if answer.number == number {
                return Ok(answer.socket);
            }
        }
    }

    async fn hear(&self) -> io::Result<Answer> {
        loop {
            if let Some(answer) = self.next()? {
                return Ok(answer);
            }
            drop(watch(&self.channel, Interest::READABLE)?.readable().await?);
        }
    }

    /// None: there is none yet.
    fn next(&self) -> io::Result<Option<Answer>> {
        let mut bytes = [0; ANSWER_BYTES];
        let mut control = nix::cmsg_space!(i32);
        let mut parts = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let (length, socket) = match recvmsg::<()>(self.channel.as_raw_fd(), &mut parts, Some(&mut control), flags) {
            Err(nix::errno::Errno::EAGAIN) => return Ok(None),
            Err(errno) => return Err(errno.into()),
            Ok(message) => (message.bytes, message.cmsgs()?.find_map(taken)),
        };
        let Some((header, words)) = bytes[..length].split_at_checked(ANSWER_HEADER) else {
            return Err(io::Error::other("the process in the pod's control group has ended"));
        };
        let (number, errno) = header.split_at(4);
        let word = |bytes: &[u8]| i32::from_ne_bytes(bytes.try_into().expect("half of eight bytes"));
        let socket = match word(errno) {
            0 => Ok(socket),
            errno => Err(io::Error::from_raw_os_error(errno)),
        };
        let words = String::from_utf8_lossy(words).into_owned();
        Ok(Some(Answer { number: word(number).cast_unsigned(), socket, words }))
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        // Also one that is frozen dies of this.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The socket that came with an answer: one at most, since the kernel closes those that there is no room for.
fn taken(message: ControlMessageOwned) -> Option<Socket> {
    let ControlMessageOwned::ScmRights(descriptors) = message else { return None };
    // SAFETY: the kernel has just made these descriptors for this process, and nobody else knows of them.
    let mut sockets = descriptors.into_iter().map(|descriptor| unsafe { Socket::from_raw_fd(descriptor) });
    sockets.next()
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENODEV | libc::ESRCH) => "the container may have ended meanwhile: ask again",
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => {
            "run the agent as root with the capability SYS_ADMIN, where it sees the node's own cgroup tree mounted to be written to: at \
             /sys/fs/cgroup, or by hostPID and SYS_PTRACE at that of process 1"
        }
        Some(libc::EOPNOTSUPP) => {
            "the group is for threads of a process that is elsewhere (cgroup.type): no process can join it"
        }
        Some(libc::EAGAIN | libc::ENOSPC | libc::EBUSY | libc::ENOMEM) => {
            "the group takes no process more now: see pids.max, memory.max and cgroup.subtree_control of the pod's groups"
        }
        _ => "netdiag status lists what the agent lacks",
    }
}
