//! Programs that do nothing, in the places where the agent has its own: what looking costs before anything is looked at.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result};

use super::bpf::{call, halves};

const PROG_LOAD: libc::c_int = 5;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const LINK_CREATE: libc::c_int = 28;

const CGROUP_SKB: u32 = 8;
const RAW_TRACEPOINT: u32 = 17;

const INGRESS: u32 = 0;
const EGRESS: u32 = 1;

/// How the kernel lists them.
pub(super) const NAME: &str = "nd_empty";

/// Where the agent counts in the measured loads. A kernel that lacks one costs nothing there.
const TRACEPOINTS: [&CStr; 8] = [
    c"kfree_skb",
    c"icmp_send",
    c"inet_sk_error_report",
    c"inet_sock_set_state",
    c"tcp_receive_reset",
    c"tcp_retransmit_skb",
    c"tcp_send_reset",
    c"udp_fail_queue_rcv_skb",
];

/// One at the tracepoint of dropped packets.
pub(super) fn at_drops() -> Result<Vec<OwnedFd>> {
    at_tracepoint(c"kfree_skb").context("cannot attach an empty program to kfree_skb")
}

/// One in each place, those for packets at the group of pods.
pub(super) fn everywhere(pods: &Path) -> Result<Vec<OwnedFd>> {
    let mut descriptors = Vec::new();
    for tracepoint in TRACEPOINTS {
        match at_tracepoint(tracepoint) {
            Ok(attached) => descriptors.extend(attached),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let name = tracepoint.to_string_lossy();
                return Err(error).with_context(|| format!("cannot attach an empty program to {name}"));
            }
        }
    }
    let group = File::open(pods).with_context(|| format!("cannot open {}", pods.display()))?;
    for direction in [INGRESS, EGRESS] {
        let program = load(CGROUP_SKB, 1).context("cannot load an empty program for packets")?;
        let request = [program.as_raw_fd().cast_unsigned(), group.as_raw_fd().cast_unsigned(), direction, 0];
        let link = call(LINK_CREATE, &request)
            .with_context(|| format!("cannot attach an empty program to {}", pods.display()))?;
        descriptors.extend([program, link]);
    }
    Ok(descriptors)
}

fn at_tracepoint(name: &CStr) -> io::Result<Vec<OwnedFd>> {
    let program = load(RAW_TRACEPOINT, 0)?;
    let (low, high) = halves(name.as_ptr().expose_provenance() as u64);
    let link = call(RAW_TRACEPOINT_OPEN, &[low, high, program.as_raw_fd().cast_unsigned(), 0])?;
    Ok(vec![program, link])
}

/// A program that returns `result` at once.
fn load(kind: u32, result: u32) -> io::Result<OwnedFd> {
    // r0 = result; exit
    let instructions: [u64; 2] = [0xb7 | u64::from(result) << 32, 0x95];
    let mut load = [0_u32; 16];
    (load[0], load[1]) = (kind, 2);
    (load[2], load[3]) = halves(instructions.as_ptr().expose_provenance() as u64);
    (load[4], load[5]) = halves(c"GPL".as_ptr().expose_provenance() as u64);
    // Words 12 to 15.
    (load[12], load[13]) = halves(u64::from_ne_bytes(*b"nd_empty"));
    call(PROG_LOAD, &load)
}
