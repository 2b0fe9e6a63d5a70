//! Programs of two instructions that let everything pass, with names, at hooks of a device, a control group or a namespace.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_PIN: libc::c_int = 6;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_LINK_DETACH: libc::c_int = 34;

/// Program type, attach type, the verdict that lets pass, flags of the link (include/uapi/linux/bpf.h, if_link.h).
#[derive(Debug, Clone, Copy)]
pub struct Hook {
    pub kind: u32,
    pub attach: u32,
    pub verdict: i32,
    pub flags: u32,
}

pub const TC: Hook = Hook { kind: 3, attach: 0, verdict: -1, flags: 0 };
pub const TCX_INGRESS: Hook = Hook { kind: 3, attach: 46, verdict: -1, flags: 0 };
pub const TCX_EGRESS: Hook = Hook { kind: 3, attach: 47, verdict: -1, flags: 0 };
pub const XDP: Hook = Hook { kind: 6, attach: 37, verdict: 2, flags: 2 };
pub const GROUP_EGRESS: Hook = Hook { kind: 8, attach: 1, verdict: 1, flags: 0 };
pub const SOCKET_CREATE: Hook = Hook { kind: 9, attach: 2, verdict: 1, flags: 0 };
pub const SOCKET_OPERATIONS: Hook = Hook { kind: 13, attach: 3, verdict: 1, flags: 0 };
pub const RECEIVE4: Hook = Hook { kind: 18, attach: 19, verdict: 1, flags: 0 };
pub const CONNECT4: Hook = Hook { kind: 18, attach: 10, verdict: 1, flags: 0 };
pub const SOCKET_LOOKUP: Hook = Hook { kind: 30, attach: 36, verdict: 1, flags: 0 };

pub fn load(hook: Hook, name: &str) -> io::Result<OwnedFd> {
    // r0 = verdict; exit
    let instructions: [u64; 2] = [0xb7 | u64::from(hook.verdict.cast_unsigned()) << 32, 0x95];
    let license = c"GPL";
    // `union bpf_attr`, words of 32 bits: type, count, instructions, licence, … name, … expected_attach_type.
    let mut load = [0_u32; 20];
    load[0] = hook.kind;
    load[1] = 2;
    (load[2], load[3]) = halves(instructions.as_ptr().expose_provenance() as u64);
    (load[4], load[5]) = halves(license.as_ptr().expose_provenance() as u64);
    let mut bytes = [0_u8; 16];
    for (to, from) in bytes[..15].iter_mut().zip(name.bytes()) {
        *to = from;
    }
    for (word, four) in load[12..16].iter_mut().zip(bytes.chunks_exact(4)) {
        *word = u32::from_ne_bytes(four.try_into().expect("four bytes"));
    }
    // Of the links of tcx and XDP the type is known without.
    load[17] = if hook.kind == 3 || hook.kind == 6 { 0 } else { hook.attach };
    call(BPF_PROG_LOAD, &load).map(descriptor)
}

/// A program where it is attached, until this is dropped.
pub struct Link(OwnedFd);

impl Drop for Link {
    /// Closing is not enough: a child that another test starts just then has the descriptor, too, until it executes.
    fn drop(&mut self) {
        let detached = call(BPF_LINK_DETACH, &[self.0.as_raw_fd().cast_unsigned()]);
        assert!(detached.is_ok() || std::thread::panicking(), "{detached:?}");
    }
}

/// Attaches to a device by its index, or to what a descriptor is of.
pub fn attach(hook: Hook, name: &str, target: u32) -> io::Result<Link> {
    let program = load(hook, name)?;
    let mut link = [0_u32; 12];
    link[0] = program.as_raw_fd().cast_unsigned();
    link[1] = target;
    link[2] = hook.attach;
    link[3] = hook.flags;
    call(BPF_LINK_CREATE, &link).map(|created| Link(descriptor(created)))
}

/// Keeps a program below a mounted bpffs.
pub fn pin(program: &OwnedFd, path: &Path) -> io::Result<()> {
    let path = CString::new(path.to_str().expect("a plain path")).expect("a plain path");
    let (low, high) = halves(path.as_ptr().expose_provenance() as u64);
    call(BPF_OBJ_PIN, &[low, high, program.as_raw_fd().cast_unsigned(), 0]).map(|_| ())
}

/// The words of a pointer, as they lie in memory.
fn halves(address: u64) -> (u32, u32) {
    let half = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    let bytes = address.to_ne_bytes();
    (half(&bytes[..4]), half(&bytes[4..]))
}

fn descriptor(result: i32) -> OwnedFd {
    // SAFETY: a new descriptor that nobody else has.
    unsafe { OwnedFd::from_raw_fd(result) }
}

fn call(command: libc::c_int, attributes: &[u32]) -> io::Result<i32> {
    // SAFETY: the kernel reads the attributes, of the given size, and what they point to, which lives until it returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(io::Error::last_os_error()),
    }
}
