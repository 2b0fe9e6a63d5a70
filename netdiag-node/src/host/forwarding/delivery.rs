//! Which sockets take the packets that are delivered, and whose they are.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;

use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::{Decision, End, Path};
use netdiag_common::observation::Protocol;
use netdiag_common::observation::fate::{Fate, FateDelivery, FateSocket};

use super::unevaluated::{LOOPBACK, Surroundings};
use crate::host::listener::{self, Delivered, Taker};
use crate::host::{ReadError, process};

pub(super) fn deliveries(fate: &Fate, around: &Surroundings<'_>) -> Result<Vec<FateDelivery>, ReadError> {
    let mut found = Vec::new();
    for (number, path) in fate.outcome.paths.iter().enumerate() {
        if let Some(packet) = delivered(fate.packet.origin, path) {
            found.push((number, listener::takers(&packet)?));
        }
    }
    let inodes: HashSet<u64> = found.iter().flat_map(|(_, takers)| takers).map(|taker| taker.inode).collect();
    let inodes = inodes.into_iter().filter(|inode| *inode != 0).collect::<HashSet<u64>>();
    let owners =
        if inodes.is_empty() { HashMap::new() } else { process::socket_owners(around.proc, around.netns, &inodes) };
    let socket = |taker: Taker| FateSocket {
        address: taker.address,
        remote: taker.remote,
        process: owners.get(&taker.inode).cloned(),
    };
    let delivery =
        |(path, takers): (usize, Vec<Taker>)| FateDelivery { path, sockets: takers.into_iter().map(socket).collect() };
    Ok(found.into_iter().map(delivery).collect())
}

/// None for what has no ports, and for what more than one socket may take.
fn delivered(origin: Origin, path: &Path) -> Option<Delivered> {
    let packet = &path.packet;
    let (source, destination) = (packet.source(), packet.destination());
    if path.end != End::Delivered || destination.is_multicast() || packet.kind.known() != Some(&0) {
        return None;
    }
    let protocol = Protocol::from_number(packet.transport()?.protocol)?;
    if !matches!(protocol, Protocol::Tcp | Protocol::Udp) {
        return None;
    }
    let (from, to) = packet.known_ports();
    let proxied = path.decisions.iter().rev().find_map(|decision| match decision {
        Decision::Proxied { to, .. } => Some(*to),
        _ => None,
    });
    Some(Delivered {
        protocol,
        // Who listens takes packets from any port.
        source: SocketAddr::new(source, from.unwrap_or(0)),
        destination: match proxied {
            Some(to) => to,
            None => SocketAddr::new(destination, to?),
        },
        input: match origin {
            Origin::Received { interface } => interface,
            Origin::Sent => LOOPBACK,
        },
    })
}
