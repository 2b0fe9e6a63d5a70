//! The system calls: which tables there are, and the bytes of one.

use std::io;
use std::os::fd::AsRawFd;

use socket2::{Domain, Protocol, Socket, Type};

use crate::host::ReadError;

/// Ten thousand Services in iptables mode are about 40 MB. More than this is not read.
const MAX_TABLE_BYTES: u32 = 64 << 20;

/// A table may be replaced between asking for its size and its entries.
const MAX_ATTEMPTS: u32 = 4;

/// `IPT_SO_GET_INFO`, `IP6T_SO_GET_INFO`
const GET_INFO: libc::c_int = 64;
/// `IPT_SO_GET_ENTRIES`, `IP6T_SO_GET_ENTRIES`
const GET_ENTRIES: libc::c_int = 65;

const NAME_BYTES: usize = 32;
/// `struct ipt_getinfo`
const INFO_BYTES: usize = 84;
/// `struct ipt_get_entries` without its entries.
const ENTRIES_HEADER_BYTES: usize = 40;

pub(super) const HOOKS: usize = 5;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ipv4 => "ip",
            Self::Ipv6 => "ip6",
        }
    }

    pub(super) fn command(self) -> &'static str {
        match self {
            Self::Ipv4 => "iptables",
            Self::Ipv6 => "ip6tables",
        }
    }
}

/// One table as the kernel keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    /// Bit n: the table has a chain at hook n.
    pub valid_hooks: u32,
    /// Offset of each base chain's first rule.
    pub hook_entry: [u32; HOOKS],
    /// Offset of each base chain's policy.
    pub underflow: [u32; HOOKS],
    pub entries: Vec<u8>,
}

/// Tables that somebody has used in this namespace. None of them when the kernel has no legacy iptables.
pub(super) fn table_names(family: Family) -> Result<Vec<String>, ReadError> {
    // Not /proc/net, which is the namespace of the process's first thread.
    let path = match family {
        Family::Ipv4 => "/proc/thread-self/net/ip_tables_names",
        Family::Ipv6 => "/proc/thread-self/net/ip6_tables_names",
    };
    #[expect(clippy::disallowed_methods, reason = "host/ is where the agent opens files")]
    match std::fs::read_to_string(path) {
        Ok(names) => Ok(names.lines().filter(|name| name.len() < NAME_BYTES).map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(ReadError::File { path: path.into(), source }),
    }
}

/// The table's entries; none when there are too many.
pub(super) fn table(family: Family, name: &str) -> io::Result<Option<Blob>> {
    let domain = match family {
        Family::Ipv4 => Domain::IPV4,
        Family::Ipv6 => Domain::IPV6,
    };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)))?;
    let mut attempt = 1;
    loop {
        match read_once(&socket, family, name) {
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) && attempt < MAX_ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

fn read_once(socket: &Socket, family: Family, name: &str) -> io::Result<Option<Blob>> {
    let mut info = [0u8; INFO_BYTES];
    info[..name.len()].copy_from_slice(name.as_bytes());
    get(socket, family, GET_INFO, &mut info)?;
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let words = |at: usize| std::array::from_fn(|hook| word(at + 4 * hook));
    let size = word(80);
    if size > MAX_TABLE_BYTES {
        return Ok(None);
    }
    let mut entries = vec![0u8; ENTRIES_HEADER_BYTES + size as usize];
    entries[..name.len()].copy_from_slice(name.as_bytes());
    entries[NAME_BYTES..NAME_BYTES + 4].copy_from_slice(&size.to_ne_bytes());
    get(socket, family, GET_ENTRIES, &mut entries)?;
    entries.drain(..ENTRIES_HEADER_BYTES);
    Ok(Some(Blob { valid_hooks: word(32), hook_entry: words(36), underflow: words(56), entries }))
}

/// Fills `value`, which starts with what is asked for.
fn get(socket: &Socket, family: Family, option: libc::c_int, value: &mut [u8]) -> io::Result<()> {
    let level = match family {
        Family::Ipv4 => libc::SOL_IP,
        Family::Ipv6 => libc::SOL_IPV6,
    };
    let mut length = libc::socklen_t::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: `value` is writable for `length` bytes for the whole call, and the kernel writes no more than that.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut length) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
