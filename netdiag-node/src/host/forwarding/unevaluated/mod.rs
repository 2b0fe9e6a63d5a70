//! What is on the way of a packet and can change it, and no evaluator follows: it is named, with whose it is and how to learn
//! what it does. Paths go on as if it let the packet pass unchanged.

mod bridge;
mod programs;
mod tc;
mod xfrm;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::{self, Decision, End};
use netdiag_common::forwarding::state::BaseChain;
use netdiag_common::observation::Owner;
use netdiag_common::observation::fate::Fate;
use netdiag_common::{Gap, GapReason};

use self::programs::Socket;
use self::tc::Side;
use self::xfrm::{Direction, Question};
use super::super::ReadError;
use crate::gap;

const IFLA_LINK_NETNSID: u16 = 37;

/// Index of lo in every namespace.
pub(super) const LOOPBACK: u32 = 1;

/// Things that are named for one fate with their remedies; each path names its own.
const MAX_FOUND: usize = 64;

/// What the agent knows around the namespace that a packet is in.
pub struct Surroundings<'a> {
    /// A proc filesystem that shows the node's processes.
    pub proc: &'a Path,
    /// Inode of the calling thread's network namespace.
    pub netns: u64,
    /// Whether it is a pod's, whose processes are few.
    pub is_pod: bool,
    /// Whether a BPF program is the agent's own, by its id.
    pub is_own: &'a dyn Fn(u32) -> bool,
    /// Whose namespace a number stands for, none this one.
    pub owner: &'a mut dyn FnMut(Option<i32>) -> Option<Owner>,
}

/// Something that is not evaluated.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    /// `BPF program cil_from_container (id 7, of Cilium) at tc ingress of lxc1`
    what: String,
    why: String,
    remedy: String,
}

/// Programs that packets of a pod's processes pass, and what this process sends in their place does not: each in words, with a
/// remedy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bypassed {
    /// Those at `group`, or above it: sockets of processes in that group pass them.
    pub at_group: Vec<String>,
    /// Those at other groups of the processes alone.
    pub elsewhere: Vec<String>,
    /// Folder, in the cgroup v2 tree, of the one of the processes' groups that has most of them. None: there are none.
    pub group: Option<PathBuf>,
}

/// Looks for programs that packets of these processes pass, and what this process sends does not. `ports`: of packets of TCP and
/// UDP. An error means that no control group could be looked at.
///
/// A socket belongs to the control group of the process that makes it (`cgroup_sk_alloc`, kernel/cgroup/cgroup.c), whatever its network
/// namespace is. To be called where paths of control groups are whole.
pub fn bypassed(proc: &Path, pids: &[u32], ports: bool, is_own: &dyn Fn(u32) -> bool) -> Result<Bypassed, ReadError> {
    let beside = programs::beside_our_own(proc, pids, ports, is_own)?;
    let mut bypassed = Bypassed { group: beside.group, ..Bypassed::default() };
    for (Found { what, remedy, .. }, is_at_group) in beside.programs {
        let list = if is_at_group { &mut bypassed.at_group } else { &mut bypassed.elsewhere };
        list.push(format!(
            "{what}: the pod's own packets pass it, what this agent sends for the pod does not; {remedy}"
        ));
    }
    Ok(bypassed)
}

/// A place where something may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Processes that send.
    Senders,
    In(u32),
    Out(u32),
    /// Processes that receive, and the choice among their sockets.
    Receivers,
}

/// Looks at each place of each path once, and adds what is there to the paths and to what was not seen. `chains` are all base
/// chains.
///
/// Sockets of tunnels pass no programs of control groups (`by_kernel`): `inet_create` passes over sockets of the kernel, a device
/// neither connects nor calls `sendmsg`, what it sends is not its socket's own (`BPF_CGROUP_RUN_PROG_INET_EGRESS` compares them), and
/// `udp_queue_rcv_one_skb` hands a datagram to the tunnel before any filter (Linux 6.18).
pub(super) fn tell(fate: &mut Fate, by_kernel: bool, chains: &[BaseChain], around: &Surroundings<'_>) {
    let bridge = bridge_of_input(fate);
    let mut places: BTreeMap<Place, Vec<usize>> = BTreeMap::new();
    for (number, path) in fate.outcome.paths.iter().enumerate() {
        let ways = if path.decisions.iter().any(is_switched) {
            let behind = fate.neighbours.iter().find(|neighbour| neighbour.path == number);
            places_of_switched(fate.packet.origin, behind.and_then(|neighbour| neighbour.port))
        } else {
            // What a bridge hands up to this host comes in by the bridge then.
            places_of(fate.packet.origin, path).into_iter().chain(bridge.map(Place::In)).collect()
        };
        for place in ways {
            places.entry(place).or_default().push(number);
        }
    }
    let flow = (fate.packet.protocol, fate.packet.transport().map_or(0, |transport| transport.protocol));
    for (place, paths) in places {
        let mut found = Vec::new();
        let looked = match place {
            Place::In(index) => programs::at_interface(index, Side::Ingress, around, &mut found),
            Place::Out(index) => programs::at_interface(index, Side::Egress, around, &mut found),
            Place::Senders if by_kernel => Ok(()),
            Place::Receivers if by_kernel => programs::at_socket_lookup(around, &mut found),
            Place::Senders => programs::at_groups(Socket::Sends, flow, around, &mut found),
            Place::Receivers => programs::at_groups(Socket::Receives, flow, around, &mut found)
                .and_then(|()| programs::at_socket_lookup(around, &mut found)),
        };
        let bridged = match place {
            // Told of its port.
            Place::In(index) if Some(index) == bridge => Ok(Vec::new()),
            Place::In(index) | Place::Out(index) => bridge_filters(fate, index, chains),
            Place::Senders | Place::Receivers => Ok(Vec::new()),
        };
        for found in found {
            add(fate, &paths, found);
        }
        if let Err(error) = looked {
            fate.unseen.push(unread(&format!("BPF programs {}", words(fate, place)), &error));
        }
        match bridged {
            Ok(found) => found.into_iter().for_each(|found| add(fate, &paths, found)),
            Err(error) => fate.unseen.push(unread(&format!("bridges {}", words(fate, place)), &error)),
        }
    }
    policies(fate);
    narrow_bridges(fate);
    if let Err(error) = bridge::keep_apart(fate) {
        fate.unseen.push(unread("the ports of a bridge", &error));
    }
}

fn narrow_bridges(fate: &mut Fate) {
    for path in &mut fate.outcome.paths {
        let End::Sent { interface, .. } = path.end else { continue };
        let is_bridge = fate.interfaces.iter().any(|known| known.index == interface && known.kind == "bridge");
        if !is_bridge {
            continue;
        }
        match bridge::narrow_ports(interface, path) {
            Ok(ports) => bridge::narrowed(path, interface, &ports),
            Err(error) => fate.unseen.push(unread("the ports of a bridge", &error)),
        }
    }
}

fn bridge_filters(fate: &Fate, index: u32, chains: &[BaseChain]) -> Result<Vec<Found>, ReadError> {
    match fate.interfaces.iter().find(|interface| interface.index == index) {
        Some(interface) if bridge::is_bridged(interface)? => Ok(bridge::filters(chains, &interface.name)),
        _ => Ok(Vec::new()),
    }
}

/// IPsec. What goes over lo is not looked up (`disable_policy` and `disable_xfrm` of lo are on).
fn policies(fate: &mut Fate) {
    let mut questions = Vec::new();
    let mut paths = Vec::new();
    for (number, path) in fate.outcome.paths.iter().enumerate() {
        let is_received = matches!(fate.packet.origin, Origin::Received { .. });
        // What IPVS sends to a real server leaves as if this host sent it.
        let is_forwarded = is_received && !path.decisions.iter().any(is_scheduled);
        let (directions, output): (&[Direction], _) = match path.end {
            // What a bridge switches is IP's for its filter only.
            End::Sent { .. } if path.decisions.iter().any(is_switched) => (&[], None),
            End::Sent { interface, .. } if is_forwarded => (&[Direction::Forward, Direction::Out], Some(interface)),
            End::Sent { interface, .. } => (&[Direction::Out], Some(interface)),
            End::Delivered if is_received => (&[Direction::In], None),
            _ => (&[], None),
        };
        for direction in directions {
            questions.push(Question { direction: *direction, packets: [&fate.packet, &path.packet], output });
            paths.push(number);
        }
    }
    if questions.is_empty() {
        return;
    }
    match xfrm::met(&questions) {
        Ok(met) => {
            for (found, path) in met.into_iter().zip(paths) {
                if let Some(found) = found {
                    add(fate, &[path], found);
                }
            }
        }
        Err(error) => fate.unseen.push(unread("XFRM policies", &error)),
    }
}

fn is_scheduled(decision: &Decision) -> bool {
    matches!(decision, Decision::Scheduled { .. })
}

fn is_switched(decision: &Decision) -> bool {
    matches!(decision, Decision::Switched { .. })
}

/// The bridge that the packet comes in by a port of.
fn bridge_of_input(fate: &Fate) -> Option<u32> {
    let Origin::Received { interface } = fate.packet.origin else { return None };
    let master = fate.interfaces.iter().find(|own| own.index == interface)?.master_index?;
    fate.interfaces.iter().any(|own| own.index == master && own.kind == "bridge").then_some(master)
}

/// From one port of a bridge to another one, if that is known: it passes neither side of the bridge's own device.
fn places_of_switched(origin: Origin, port: Option<u32>) -> Vec<Place> {
    let input = match origin {
        Origin::Received { interface } => Some(Place::In(interface)),
        Origin::Sent => None,
    };
    input.into_iter().chain(port.map(Place::Out)).collect()
}

fn places_of(origin: Origin, path: &path::Path) -> Vec<Place> {
    let mut places = match origin {
        Origin::Received { interface } => vec![Place::In(interface)],
        Origin::Sent => vec![Place::Senders],
    };
    match (&path.end, origin) {
        (End::Sent { interface, .. }, _) => places.push(Place::Out(*interface)),
        (End::Delivered, Origin::Sent) => {
            places.extend([Place::Out(LOOPBACK), Place::In(LOOPBACK), Place::Receivers]);
        }
        (End::Delivered, _) => places.push(Place::Receivers),
        _ => {}
    }
    places
}

fn add(fate: &mut Fate, paths: &[usize], found: Found) {
    let Found { what, why, remedy } = found;
    let gap = format!("{what} is not evaluated");
    for number in paths {
        if let Some(path) = fate.outcome.paths.get_mut(*number).filter(|path| !path.gaps.contains(&gap)) {
            path.gaps.push(gap.clone());
        }
    }
    let is_told = fate.unseen.iter().any(|before| before.what == what);
    if !is_told && fate.unseen.len() < MAX_FOUND {
        fate.unseen.push(Gap { what, node: None, reason: GapReason::Failed, why, remedy });
    }
}

pub(super) fn unread(what: &str, error: &ReadError) -> Gap {
    Gap {
        what: what.to_owned(),
        node: None,
        reason: gap::read_reason(error),
        why: error.to_string(),
        remedy: "netdiag status lists the rights and mounts that the agent on this node lacks".to_owned(),
    }
}

fn words(fate: &Fate, place: Place) -> String {
    let name = |index: u32| {
        let found = fate.interfaces.iter().find(|interface| interface.index == index);
        found.map_or_else(|| format!("interface {index}"), |interface| interface.name.clone())
    };
    match place {
        Place::Senders => "of the control groups that send".to_owned(),
        Place::Receivers => "of the control groups that receive".to_owned(),
        Place::In(index) => format!("at the ingress of {}", name(index)),
        Place::Out(index) => format!("at the egress of {}", name(index)),
    }
}
