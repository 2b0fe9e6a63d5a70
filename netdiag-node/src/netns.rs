//! Work inside a network namespace: on a thread of its own, which enters, works and ends.
//!
//! A thread that has entered never returns to a pool: a later task would silently look at the wrong namespace.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::linux::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;

use crate::host::{ReadError, file};

/// An open network namespace. It lives as long as this handle, also when its last process ends.
#[derive(Debug, Clone)]
pub struct NetnsHandle {
    descriptor: Arc<OwnedFd>,
    /// Inode of the namespace: the number in `readlink /proc/PID/ns/net`.
    pub inode: u64,
}

impl NetnsHandle {
    /// `path` is `/proc/PID/ns/net` or a bind mount of it below `/run/netns`.
    pub fn open(path: &Path) -> Result<Self, ReadError> {
        let descriptor = OwnedFd::from(file::open(path)?);
        let stat =
            fstat(&descriptor).map_err(|errno| ReadError::File { path: PathBuf::from(path), source: errno.into() })?;
        Ok(Self { descriptor: Arc::new(descriptor), inode: stat.st_ino })
    }

    /// Moves the calling thread in. Only for threads that end with this work.
    pub fn enter(&self) -> Result<(), ReadError> {
        match setns(self.descriptor.as_fd(), CloneFlags::CLONE_NEWNET) {
            Ok(()) => Ok(()),
            // Entering needs CAP_SYS_ADMIN even where we are already: without it the node's own namespace stays readable. To look
            // first where we are takes longer than to enter: a thread's folder of /proc is made when somebody looks at it.
            Err(_) if own_inode() == Some(self.inode) => Ok(()),
            Err(errno) => {
                Err(ReadError::Call { step: format!("enter network namespace {}", self.inode), source: errno.into() })
            }
        }
    }

    /// Runs `work` on a new thread inside the namespace and waits for it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> Result<T, ReadError> + Send) -> Result<T, ReadError> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("netns".to_owned())
                .spawn_scoped(scope, || {
                    self.enter()?;
                    work()
                })
                .map_err(|source| ReadError::Call { step: "start a thread".to_owned(), source })?;
            thread.join().unwrap_or_else(|_| {
                Err(ReadError::Malformed {
                    what: format!("network namespace {}", self.inode),
                    why: "its reader panicked".to_owned(),
                })
            })
        })
    }

    pub(crate) fn raw(&self) -> i32 {
        self.descriptor.as_raw_fd()
    }
}

/// Inode of the calling thread's network namespace.
fn own_inode() -> Option<u64> {
    Some(std::fs::metadata("/proc/thread-self/ns/net").ok()?.st_ino())
}

/// `SO_NETNS_COOKIE` (Linux 5.14), which libc does not name; the value of asm-generic/socket.h.
const SO_NETNS_COOKIE: libc::c_int = 71;

/// The cookie of the calling thread's network namespace: unlike the inode it is never used again. None on older kernels.
pub fn own_cookie() -> Option<u64> {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::DGRAM, None).ok()?;
    let mut cookie = 0u64;
    let mut length = libc::socklen_t::try_from(size_of::<u64>()).expect("8 fits");
    // SAFETY: the kernel writes at most `length` bytes into `cookie`, which lives until the call returns.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    (result == 0).then_some(cookie)
}

/// Whether the error means that the namespace or process disappeared between finding and opening it.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}
