//! What the kernel says about a loaded program.

use std::io;
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};

/// `struct bpf_prog_info` up to what we read (include/uapi/linux/bpf.h, Linux 6.18). Unread fields are words.
#[repr(C)]
#[derive(Clone, Copy)]
pub(super) struct ProgramInfo {
    _unread: [u64; 24],
    /// Nanoseconds and runs, while somebody has the kernel count them. Only the tests look.
    pub(super) run_time_ns: u64,
    pub(super) runs: u64,
    pub(super) recursion_misses: u64,
    /// In its low half, since Linux 5.16. Only the tests look: it shows that the fields lie where we think.
    pub(super) verified_instructions: u64,
}
const _: () = assert!(offset_of!(ProgramInfo, recursion_misses) == 208);

/// `union bpf_attr`, the `info` member.
#[repr(C)]
struct InfoRequest {
    fd: u32,
    length: u32,
    info: u64,
}

pub(super) fn program_info(program: BorrowedFd<'_>) -> io::Result<ProgramInfo> {
    const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
    let mut info =
        ProgramInfo { _unread: [0; 24], run_time_ns: 0, runs: 0, recursion_misses: 0, verified_instructions: 0 };
    let request = InfoRequest {
        fd: program.as_raw_fd().cast_unsigned(),
        length: u32::try_from(size_of::<ProgramInfo>()).expect("224 bytes"),
        info: (&raw mut info).expose_provenance() as u64,
    };
    // SAFETY: the kernel writes at most `length` bytes to `info`, and reads `request` of the given size. All pointers in
    // `info` are 0 with counts of 0, so it follows none.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, &raw const request, size_of::<InfoRequest>()) };
    if result == 0 { Ok(info) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsFd, FromRawFd, OwnedFd};

    use super::*;

    /// `struct bpf_attr` for BPF_PROG_LOAD, as far as a socket filter of two instructions needs it.
    #[repr(C)]
    struct LoadRequest {
        kind: u32,
        instructions: u32,
        code: u64,
        license: u64,
        unused: [u64; 4],
    }

    /// `r0 = 0; exit`.
    const RETURN_ZERO: [u64; 2] = [0xb7, 0x95];

    fn smallest_program() -> io::Result<OwnedFd> {
        const BPF_PROG_LOAD: libc::c_int = 5;
        const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
        let request = LoadRequest {
            kind: BPF_PROG_TYPE_SOCKET_FILTER,
            instructions: 2,
            code: RETURN_ZERO.as_ptr().expose_provenance() as u64,
            license: c"GPL".as_ptr().expose_provenance() as u64,
            unused: [0; 4],
        };
        // SAFETY: the kernel reads the request and what it points to, all of which outlive the call.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const request, size_of::<LoadRequest>()) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: a new descriptor that nobody else owns.
        Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd).expect("a descriptor")) })
    }

    #[test]
    fn the_fields_lie_where_the_kernel_writes_them() {
        let test = "the_fields_lie_where_the_kernel_writes_them";
        let program = match smallest_program() {
            Ok(program) => program,
            Err(error) => return eprintln!("netdiag-skip: {test}: cannot load a program: {error}"),
        };
        let info = program_info(program.as_fd()).unwrap();
        let path = format!("/proc/self/fdinfo/{}", program.as_raw_fd());
        #[expect(clippy::disallowed_methods, reason = "the kernel's own text, to compare with")]
        let text = std::fs::read_to_string(path).unwrap();
        let number = |name: &str| {
            let line = text.lines().find(|line| line.starts_with(name))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        };
        // Before Linux 5.12 and 5.16 the kernel does not count them, says so by leaving out the line, and writes nothing.
        assert_eq!(number("recursion_misses:").unwrap_or(0), info.recursion_misses);
        let verified = number("verified_insns:");
        assert_eq!(verified.unwrap_or(0), info.verified_instructions & 0xffff_ffff);
        assert!(matches!(verified, None | Some(2)), "{verified:?}");
    }
}
