//! The kernel's own account of its programs.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

const PROG_GET_NEXT_ID: libc::c_int = 11;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const ENABLE_STATS: libc::c_int = 32;

/// `struct bpf_prog_info` up to what we read (include/uapi/linux/bpf.h, Linux 6.18).
#[repr(C)]
struct Info {
    _before_name: [u64; 8],
    name: [u8; 16],
    _between: [u64; 14],
    run_time_ns: u64,
    run_count: u64,
}
const _: () = assert!(std::mem::offset_of!(Info, run_time_ns) == 192);

/// What the kernel says about a program.
#[derive(Debug, Clone)]
pub(super) struct Program {
    pub(super) id: u32,
    /// At most 15 bytes of it.
    pub(super) name: String,
    run_time_ns: u64,
    run_count: u64,
}

impl Program {
    /// Nanoseconds of each run since `before`, with the account itself.
    pub(super) fn ns_per_run(&self, before: &Self) -> Option<f64> {
        let runs = self.run_count.checked_sub(before.run_count).filter(|runs| *runs > 0)?;
        #[expect(clippy::cast_precision_loss, reason = "a measurement of a second")]
        Some((self.run_time_ns - before.run_time_ns) as f64 / runs as f64)
    }
}

/// All programs in the kernel.
pub(super) fn programs() -> Vec<Program> {
    let mut found = Vec::new();
    let mut request = [0_u32; 4];
    // SAFETY: the kernel reads and writes the given bytes.
    while unsafe { libc::syscall(libc::SYS_bpf, PROG_GET_NEXT_ID, request.as_mut_ptr(), size_of_val(&request)) } == 0 {
        request[0] = request[1];
        // A program that went away meanwhile is none.
        if let Ok(program) = program(request[0]) {
            found.push(program);
        }
    }
    found
}

pub(super) fn program(id: u32) -> Result<Program> {
    let fd = call(PROG_GET_FD_BY_ID, &[id, 0, 0, 0]).with_context(|| format!("cannot open program {id}"))?;
    // SAFETY: integers only.
    let mut info: Info = unsafe { std::mem::zeroed() };
    let (low, high) = halves((&raw mut info).expose_provenance() as u64);
    let length = u32::try_from(size_of::<Info>()).expect("208 bytes");
    let request = [fd.as_raw_fd().cast_unsigned(), length, low, high];
    // SAFETY: the kernel writes at most `length` bytes to `info`, whose pointers are all null.
    let result = unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, request.as_ptr(), size_of_val(&request)) };
    if result != 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("cannot ask about program {id}"));
    }
    let name = CStr::from_bytes_until_nul(&info.name).unwrap_or_default().to_string_lossy().into_owned();
    Ok(Program { id, name, run_time_ns: info.run_time_ns, run_count: info.run_count })
}

/// Lets the kernel measure each run of each program until the result is dropped (Linux 5.8).
pub(super) fn enable_stats() -> Result<OwnedFd> {
    call(ENABLE_STATS, &[0]).context("cannot enable statistics of BPF programs")
}

pub(super) fn halves(word: u64) -> (u32, u32) {
    let half = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    let bytes = word.to_ne_bytes();
    (half(&bytes[..4]), half(&bytes[4..]))
}

pub(super) fn call(command: libc::c_int, attributes: &[u32]) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes, of the given size, and what they point to, which lives until it returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    match i32::try_from(result) {
        // SAFETY: a new descriptor that nobody else has.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
