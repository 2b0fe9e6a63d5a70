//! Sockets of one network namespace by state, their queues, and the limits they and their processes live under.

pub(crate) mod group;

mod descriptor;
mod diag;
mod memory;
mod ports;
mod tally;

use std::collections::HashSet;
use std::path::Path;

use netdiag_common::observation::Protocol;
use netdiag_common::observation::socket::Sockets;
use nix::sys::socket::SockProtocol;

pub(crate) use memory::Limits;

use super::listener::{SOCK_DIAG_BY_FAMILY, request_with};
use super::netlink::{IPV4, IPV6, Netlink};
use super::{ReadError, process};

const ALL_STATES: u32 = u32::MAX;
/// `1 << (INET_DIAG_SKMEMINFO - 1)` of linux/inet_diag.h.
const WITH_MEMORY: u8 = 1 << 6;

/// Whose processes' limits are told.
pub(crate) enum Processes<'a> {
    /// These, of a pod.
    Of(&'a [u32]),
    /// All in the namespace with this inode.
    In(u64),
}

/// The calling thread's namespace, whose inode is `netns`. Groups are not filled in.
pub(crate) fn read(proc: &Path, netns: u64, processes: &Processes<'_>, limits: &Limits) -> Result<Sockets, ReadError> {
    let mut left_out = Vec::new();
    let range = ports::range(proc)?;
    let mut tally = tally::Tally::new(range);
    let mut netlink = Netlink::open(SockProtocol::NetlinkSockDiag)?;
    for (family, family_name) in [(IPV4, "IPv4"), (IPV6, "IPv6")] {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            let step = format!("list {family_name} {protocol} sockets");
            let request = request_with(family, protocol, ALL_STATES, WITH_MEMORY);
            netlink.stream(SOCK_DIAG_BY_FAMILY, &request, &step, |payload| {
                if let Some(socket) = diag::parse(payload, protocol) {
                    tally.add(socket);
                }
            })?;
        }
    }
    let mut found = tally.finish(&mut left_out);
    let inodes: HashSet<u64> =
        found.listeners.iter().map(|(inode, _)| *inode).chain(found.queues.iter().map(|(inode, _)| *inode)).collect();
    let owners = process::socket_owners(proc, netns, &inodes);
    for (inode, listener) in &mut found.listeners {
        listener.process = owners.get(inode).cloned();
    }
    for (inode, queue) in &mut found.queues {
        queue.process = owners.get(inode).cloned();
    }
    let pids = match processes {
        Processes::Of(pids) => pids.to_vec(),
        Processes::In(inode) => process::in_netns(proc, *inode)?,
    };
    Ok(Sockets {
        since: None,
        window_s: 0.0,
        states: found.states,
        listeners: found.listeners.into_iter().map(|(_, listener)| listener).collect(),
        queues: found.queues.into_iter().map(|(_, queue)| queue).collect(),
        memory: memory::read(proc, limits)?,
        ports: found.ports,
        descriptors: descriptor::read(proc, &pids, &mut left_out),
        files: match processes {
            Processes::Of(_) => None,
            Processes::In(_) => descriptor::files(proc)?,
        },
        groups: Vec::new(),
        left_out,
    })
}
