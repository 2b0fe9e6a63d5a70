//! Programs of two instructions that drop everything, at hooks of a device or of a control group.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;

/// Program type, attach type, the verdict that drops, flags of the link (include/uapi/linux/bpf.h, if_link.h).
struct Hook {
    kind: u32,
    attach: u32,
    verdict: i32,
    flags: u32,
}

fn hook(name: &str) -> Hook {
    let (kind, attach, verdict, flags) = match name {
        "tcx-ingress" => (3, 46, 2, 0),
        "tcx-egress" => (3, 47, 2, 0),
        "xdp-generic" => (6, 37, 1, 2),
        "xdp-native" => (6, 37, 1, 4),
        "cgroup-ingress" => (8, 0, 0, 0),
        "cgroup-egress" => (8, 1, 0, 0),
        _ => panic!("no such hook: {name}"),
    };
    Hook { kind, attach, verdict, flags }
}

/// Attaches to a device by its index, or to a control group by its descriptor. Ends when the result is dropped.
pub fn drop_all(name: &str, target: u32) -> io::Result<OwnedFd> {
    let hook = hook(name);
    // r0 = verdict; exit
    let instructions: [u64; 2] = [0xb7 | u64::from(hook.verdict.cast_unsigned()) << 32, 0x95];
    let license = c"GPL";
    // `union bpf_attr`, words of 32 bits: type, count, instructions, licence, … expected_attach_type.
    let mut load = [0_u32; 20];
    load[0] = hook.kind;
    load[1] = 2;
    let address = instructions.as_ptr().expose_provenance() as u64;
    (load[2], load[3]) = halves(address);
    (load[4], load[5]) = halves(license.as_ptr().expose_provenance() as u64);
    load[17] = hook.attach;
    let program = call(BPF_PROG_LOAD, &load)?;
    let mut link = [0_u32; 12];
    link[0] = program.as_raw_fd().cast_unsigned();
    link[1] = target;
    link[2] = hook.attach;
    link[3] = hook.flags;
    call(BPF_LINK_CREATE, &link)
}

/// The words of a pointer, as they lie in memory.
fn halves(address: u64) -> (u32, u32) {
    let half = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().expect("four bytes"));
    let bytes = address.to_ne_bytes();
    (half(&bytes[..4]), half(&bytes[4..]))
}

fn call(command: libc::c_int, attributes: &[u32]) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes, of the given size, and what they point to, which lives until it returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    match i32::try_from(result) {
        // SAFETY: a new descriptor that nobody else has.
        Ok(descriptor) if descriptor >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(descriptor) }),
        _ => Err(io::Error::last_os_error()),
    }
}
