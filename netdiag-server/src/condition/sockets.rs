//! Who listens behind a path: the endpoints of the path joined with the sockets of their network namespaces.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::Netns;
use netdiag_common::observation::kfree_skb::DropTuple;
use netdiag_common::observation::listener::Listener;
use netdiag_common::observation::reject::RejectKind;
use netdiag_common::observation::{Owner, Protocol};

use super::Verdict;
use crate::evidence::object::{Object, Pod};
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::Proof;
use crate::path::{Backend, Path};

/// Endpoints whose sockets are read; a larger Service is sampled.
const MAX_ENDPOINTS: usize = 16;

/// The sockets behind one endpoint.
pub(super) struct Behind<'p> {
    pub backend: &'p Backend,
    pub pod: &'p Pod,
    pub heard: Heard,
    pub at: Timestamp,
}

/// Whether somebody takes what is sent to the endpoint.
pub(super) enum Heard {
    Open,
    /// The port is listened on, but only at addresses that the endpoint's packets do not carry.
    Elsewhere(Vec<Listener>),
    /// Nobody has the port. What the pod does listen on, where its address reaches it, lowest port first.
    Nobody(Vec<Listener>),
}

/// What is known about all endpoints that get new connections.
pub(super) struct Sockets<'p> {
    pub behind: Vec<Behind<'p>>,
    /// Endpoints that could not be looked into.
    pub dark: usize,
    /// Endpoints that nobody tried to look into: no pods of this cluster, or beyond the sample.
    pub unread: usize,
}

impl<'p> Sockets<'p> {
    pub fn open(&self) -> usize {
        self.behind.iter().filter(|behind| matches!(behind.heard, Heard::Open)).count()
    }

    /// Every endpoint was seen, and none takes connections.
    pub fn all_closed(&self) -> bool {
        self.open() == 0 && self.dark == 0 && self.unread == 0
    }

    pub fn closed(&self, kind: fn(&Heard) -> bool) -> Vec<&Behind<'p>> {
        self.behind.iter().filter(|behind| kind(&behind.heard)).collect()
    }
}

/// The verdict of a path that leads to no socket.
pub(super) fn nothing_to_look_at(path: &Path) -> Option<Verdict> {
    if !matches!(path.protocol, Protocol::Tcp | Protocol::Udp) {
        return Some(Verdict::not_applicable("sockets are read for TCP and UDP alone"));
    }
    let nobody = path.ready_backends().next().is_none();
    nobody.then(|| Verdict::not_applicable("there is no endpoint that takes connections"))
}

pub(super) fn behind<'p>(path: &'p Path, view: &mut View) -> Sockets<'p> {
    let mut found = Sockets { behind: Vec::new(), dark: 0, unread: 0 };
    let families: BTreeSet<bool> = path.clients.iter().flat_map(|c| &c.addresses).map(IpAddr::is_ipv4).collect();
    let spoken = |backend: &&Backend| families.is_empty() || families.contains(&backend.address.is_ipv4());
    for (index, backend) in path.ready_backends().filter(spoken).enumerate() {
        let (Some(pod), Some(netns), true) = (backend.pod.as_deref(), backend.netns(), index < MAX_ENDPOINTS) else {
            found.unread += 1;
            continue;
        };
        let (listeners, at) = match view.listeners(&backend.node, &netns) {
            Look::Seen(seen) => (seen.value.as_slice(), seen.at),
            Look::Absent(at) => (&[][..], at),
            Look::Dark => {
                found.dark += 1;
                continue;
            }
        };
        found.behind.push(Behind { backend, pod, heard: heard(backend, pod, path.protocol, listeners), at });
    }
    found
}

fn heard(backend: &Backend, pod: &Pod, protocol: Protocol, listeners: &[Listener]) -> Heard {
    let of_port = |listener: &&Listener| listener.protocol == protocol && listener.port == backend.port;
    if listeners.iter().filter(of_port).any(|listener| listener.accepts(backend.address)) {
        return Heard::Open;
    }
    // In the node's namespace other processes listen, too: theirs say nothing about this pod.
    let own = |listener: &&Listener| !pod.spec.host_network || is_of(listener, pod);
    // A wildcard of the other address family is no narrow binding; it does not have the port for this family.
    let narrow: Vec<Listener> =
        listeners.iter().filter(of_port).filter(own).filter(|l| !l.address.is_unspecified()).cloned().collect();
    if !narrow.is_empty() {
        return Heard::Elsewhere(narrow);
    }
    let reached = |listener: &&Listener| listener.protocol == protocol && listener.accepts(backend.address);
    let mut others: Vec<Listener> = listeners.iter().filter(reached).filter(own).cloned().collect();
    others.sort_by_key(|listener| listener.port);
    others.dedup_by_key(|listener| listener.port);
    Heard::Nobody(others)
}

/// The process runs in a container of this pod. Container ids in the API carry their runtime's scheme.
fn is_of(listener: &Listener, pod: &Pod) -> bool {
    let Some(id) = listener.process.as_ref().and_then(|process| process.container_id.as_deref()) else { return false };
    pod.status.container_statuses.iter().any(|status| status.container_id.ends_with(id))
}

/// `web (pid 101)`, or that it is not known.
pub(super) fn process_in_words(listener: &Listener) -> String {
    match &listener.process {
        Some(process) => format!("{} (pid {})", process.name, process.pid),
        None => "a process we could not find".to_owned(),
    }
}

/// `Pod shop/web-1, Pod shop/web-2`; each pod once, however many addresses it has.
pub(super) fn pods(behind: &[&Behind]) -> Vec<ObjectRef> {
    let mut pods: Vec<ObjectRef> = Vec::new();
    for one in behind {
        let reference = one.pod.reference();
        if !pods.contains(&reference) {
            pods.push(reference);
        }
    }
    pods
}

/// Packets to this endpoint that its own kernel dropped because no socket took them, and what it answered.
pub(super) fn refused_packets(behind: &Behind, protocol: Protocol, view: &mut View) -> Vec<Proof> {
    let backend = behind.backend;
    let here = match backend.netns() {
        Some(Netns::Host) => Owner::Host,
        Some(Netns::Pod(uid)) => Owner::Pod { uid },
        None => return Vec::new(),
    };
    let is_to_it = |tuple: &DropTuple| {
        tuple.destination == backend.address
            && tuple.protocol == Some(protocol)
            && tuple.port_is_destination
            && tuple.service_port == backend.port
    };
    let socket = SocketAddr::new(backend.address, backend.port);
    let mut proofs = Vec::new();
    if let Look::Seen(drops) = view.drops(&backend.node, &Netns::Host) {
        let groups = drops.value.groups.iter().filter(|group| {
            group.reason == "NO_SOCKET" && group.netns == here && group.tuple.as_ref().is_some_and(is_to_it)
        });
        let packets: u64 = groups.map(|group| group.packets).sum();
        let text =
            format!("{packets} packets to {socket} found no socket (NO_SOCKET) in {:.0} s", drops.value.window_s);
        proofs.extend((packets > 0).then(|| Proof::observed("dropped packets", &backend.node, drops.at, text)));
    }
    if let Look::Seen(rejects) = view.rejects(&backend.node, &Netns::Host) {
        // TCP refuses by a reset, UDP by ICMP's port unreachable (RFC 9293 3.10.7.1, RFC 1122 4.1.3.1).
        let refuses = |kind: &RejectKind| match kind {
            RejectKind::ResetSent { .. } => protocol == Protocol::Tcp,
            RejectKind::IcmpSent { icmp_type: 3, code: 3 } => protocol == Protocol::Udp,
            _ => false,
        };
        let groups =
            rejects.value.groups.iter().filter(|group| {
                refuses(&group.kind) && group.netns == here && group.tuple.as_ref().is_some_and(is_to_it)
            });
        let packets: u64 = groups.map(|group| group.packets).sum();
        let answer = if protocol == Protocol::Tcp { "a reset" } else { "ICMP port unreachable" };
        let text = format!("{packets} packets to {socket} answered with {answer} in {:.0} s", rejects.value.window_s);
        proofs.extend((packets > 0).then(|| Proof::observed("refusals", &backend.node, rejects.at, text)));
    }
    proofs
}
