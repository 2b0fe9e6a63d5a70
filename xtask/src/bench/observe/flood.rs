//! A flood of small datagrams that are all dropped, from one processor, in namespaces of its own.

use std::mem::zeroed;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;

use crate::bench::space::Space;

pub(super) const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;
pub(super) const PAYLOAD_BYTES: usize = 18;
/// Datagrams of one system call.
const BATCH: usize = 64;
/// Batches with ports drawn beforehand, so that the loop is nothing but system calls.
const BATCHES: usize = 256;
pub(super) const SLICE: Duration = Duration::from_millis(10);
const FIRST_PORT: u16 = 10_000;

/// Sends to `flows` ports of `to`, drawn at random, from processor 0. Nanoseconds per packet in each slice of the time: what
/// else the machine did meanwhile spoils some slices and not all.
pub(super) fn flood(space: &Space, to: Ipv4Addr, flows: u16, duration: Duration) -> Result<Vec<f64>> {
    space.run(|| {
        pin(0)?;
        let socket = UdpSocket::bind("0.0.0.0:0").context("cannot open a socket")?;
        let payload = [b'n'; PAYLOAD_BYTES];
        let mut part = libc::iovec { iov_base: payload.as_ptr().cast_mut().cast(), iov_len: payload.len() };
        let mut addresses = addresses(to, flows);
        let mut messages: Vec<libc::mmsghdr> = addresses
            .iter_mut()
            .map(|address| {
                // SAFETY: integers and pointers only.
                let mut message: libc::mmsghdr = unsafe { zeroed() };
                message.msg_hdr.msg_name = (&raw mut *address).cast();
                message.msg_hdr.msg_namelen = libc::socklen_t::try_from(size_of_val(address)).expect("16 bytes");
                message.msg_hdr.msg_iov = &raw mut part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        let batch = libc::c_uint::try_from(BATCH).expect("64");
        let started = Instant::now();
        let (mut slices, mut slice, mut packets) = (Vec::new(), started, 0_u32);
        for first in (0..messages.len()).step_by(BATCH).cycle() {
            let messages = &mut messages[first..first + BATCH];
            // SAFETY: `batch` messages, whose pointers lead to memory that lives as long as this function.
            let sent = unsafe { libc::sendmmsg(socket.as_raw_fd(), messages.as_mut_ptr(), batch, 0) };
            packets += u32::try_from(sent).map_err(|_| std::io::Error::last_os_error()).context("cannot send")?;
            if slice.elapsed() >= SLICE {
                slices.push(slice.elapsed().as_secs_f64() * 1e9 / f64::from(packets));
                (slice, packets) = (Instant::now(), 0);
            }
            if started.elapsed() >= duration {
                break;
            }
        }
        Ok(slices)
    })
}

fn addresses(to: Ipv4Addr, flows: u16) -> Vec<libc::sockaddr_in> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut draw = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        u16::try_from((state >> 16) % u64::from(flows)).expect("below the number of flows")
    };
    (0..BATCH * BATCHES)
        .map(|_| {
            // SAFETY: integers only.
            let mut address: libc::sockaddr_in = unsafe { zeroed() };
            address.sin_family = libc::sa_family_t::try_from(libc::AF_INET).expect("2");
            address.sin_port = (FIRST_PORT + draw()).to_be();
            address.sin_addr.s_addr = u32::from_ne_bytes(to.octets());
            address
        })
        .collect()
}

/// Moves the calling thread to one processor.
pub(super) fn pin(cpu: usize) -> Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu).with_context(|| format!("there is no processor {cpu}"))?;
    sched_setaffinity(Pid::from_raw(0), &cpus).with_context(|| format!("cannot move to processor {cpu}"))
}
