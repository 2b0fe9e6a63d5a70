//! Which BPF programs are attached where, and what they are called: `bpf(2)`, for programs of others.

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use super::ReadError;
use super::netlink::string;

const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
/// `BPF_F_QUERY_EFFECTIVE`: those of the groups above as well.
const EFFECTIVE: u32 = 1;

/// Programs at one place that are listed. `BPF_MPROG_MAX` and `BPF_CGROUP_MAX_PROGS` are 64 for one group; effective ones
/// of nested groups add up.
const MAX_PROGRAMS: usize = 256;

/// `enum bpf_attach_type` of linux/bpf.h, as far as it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum Attach {
    CgroupIngress = 0,
    CgroupEgress = 1,
    /// Linux 4.10
    SocketCreate = 2,
    /// Linux 4.13
    SocketOperations = 3,
    Connect4 = 10,
    Connect6 = 11,
    SendMessage4 = 14,
    SendMessage6 = 15,
    /// Linux 5.2
    ReceiveMessage4 = 19,
    ReceiveMessage6 = 20,
    /// Linux 5.9
    SocketLookup = 36,
    /// Linux 6.6
    TcxIngress = 46,
    TcxEgress = 47,
    /// Linux 6.7
    NetkitPrimary = 54,
    NetkitPeer = 55,
}

#[derive(Debug, Clone, Copy)]
pub(crate) enum Target<'a> {
    Interface(u32),
    /// A control group or a network namespace.
    File(BorrowedFd<'a>),
}

/// `union bpf_attr`, the `query` member up to Linux 4.20.
#[repr(C)]
struct Query {
    target: u32,
    attach: u32,
    flags: u32,
    attach_flags: u32,
    ids: u64,
    count: u32,
    padding: u32,
}

/// Ids of the programs that run there, in their order. None where this kernel does not know such a place.
pub(crate) fn attached(target: Target<'_>, attach: Attach) -> Result<Vec<u32>, ReadError> {
    let in_group = matches!(
        attach,
        Attach::CgroupIngress
            | Attach::CgroupEgress
            | Attach::SocketCreate
            | Attach::SocketOperations
            | Attach::Connect4
            | Attach::Connect6
            | Attach::SendMessage4
            | Attach::SendMessage6
            | Attach::ReceiveMessage4
            | Attach::ReceiveMessage6
    );
    let mut ids = vec![0_u32; MAX_PROGRAMS];
    let mut query = Query {
        target: match target {
            Target::Interface(index) => index,
            Target::File(file) => file.as_raw_fd().cast_unsigned(),
        },
        attach: attach as u32,
        flags: if in_group { EFFECTIVE } else { 0 },
        attach_flags: 0,
        ids: ids.as_mut_ptr().expose_provenance() as u64,
        count: u32::try_from(MAX_PROGRAMS).expect("a few hundred"),
        padding: 0,
    };
    // SAFETY: the kernel writes `count` ids at most to `ids`, which has room for them, and the counts to `query`.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if result < 0 {
        let source = io::Error::last_os_error();
        return match source.raw_os_error() {
            // The kernel does not know this kind of place, or has nothing there.
            Some(libc::EINVAL | libc::ENOENT | libc::EOPNOTSUPP) => Ok(Vec::new()),
            // More than there is room for: those that fitted were written.
            Some(libc::ENOSPC) => Ok(ids),
            _ => Err(ReadError::Call { step: format!("list the BPF programs at {attach:?}"), source }),
        };
    }
    ids.truncate(query.count as usize);
    Ok(ids)
}

/// `struct bpf_prog_info` up to the name.
#[repr(C)]
struct Info {
    before: [u64; 8],
    name: [u8; 16],
}

/// `union bpf_attr`, the `info` member.
#[repr(C)]
struct InfoRequest {
    fd: u32,
    length: u32,
    info: u64,
}

/// The name that a program was loaded with, at most 15 bytes; empty when it has none. Needs `CAP_SYS_ADMIN`.
pub(crate) fn name(id: u32) -> io::Result<String> {
    // `union bpf_attr`: the id, `next_id`, `open_flags`.
    let by_id = [id, 0, 0];
    // SAFETY: the kernel reads the request, of the given size.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_GET_FD_BY_ID, by_id.as_ptr(), size_of_val(&by_id)) };
    let program = match i32::try_from(fd) {
        // SAFETY: a new descriptor that nobody else owns.
        Ok(fd) if fd >= 0 => unsafe { OwnedFd::from_raw_fd(fd) },
        _ => return Err(io::Error::last_os_error()),
    };
    let mut info = Info { before: [0; 8], name: [0; 16] };
    let length = u32::try_from(size_of::<Info>()).expect("80 bytes");
    let request = InfoRequest {
        fd: program.as_raw_fd().cast_unsigned(),
        length,
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes to `info`, whose counts are 0, so that it follows no pointer in it.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const request, size_of::<InfoRequest>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(string(&info.name)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_name_that_stays_small(name in proptest::array::uniform16(proptest::num::u8::ANY)) {
            let told = string(&name);
            // A byte that is no text is shown by a character of three.
            assert!(told.len() <= 3 * name.len() && !told.contains('\0'), "{told}");
        }
    }
}
