//! The link of a node is bad: frames arrive damaged, or its carrier comes and goes, so packets are lost at random.

use netdiag_common::observation::counter::Counter;
use netdiag_common::observation::device::{Device, Devices};
use netdiag_common::observation::probe::{Attempt, Outcome, ProbeRequest};
use netdiag_common::observation::tcp::{Outcome as Ended, Side, TcpGroup};
use netdiag_common::observation::{Owner, Protocol};
use netdiag_common::{Gap, GapReason, Netns};

use super::between::{crosses, pairs};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::{KindName, Look, ObjectRef, Seen, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::route::{Way, way, words};
use crate::path::{
    Backend, Client, FEWEST_FAILURES, MAX_BACKEND_PROBES, MAX_CLIENT_PROBES, Path, SMALLEST_SHARE_PERCENT,
};

pub const CONDITION: Condition = Condition {
    code: "node_link_faulty",
    severity: Severity::High,
    words: Words {
        means: "a node's network device on the way receives damaged frames or loses its carrier again and again, so packets between \
                nodes are lost at random",
        how_we_know: "some probes to the other nodes, or SYNs of the client's own connects, are lost while others are not; and the \
                      hardware device that the node's route to the other node leads to counts damaged frames or lost carriers in the \
                      window",
        silent_when: "nothing is lost or everything is, the errors are of another device or before the window, or too few to be felt; \
                      not seen are frames that a switch on the way counts and drops, and devices below a VLAN or a tunnel",
        what_to_do: "replace the cable, optics, port or network device, and keep pods off the node until then",
        sources: &[
            "https://docs.kernel.org/networking/statistics.html",
            "include/uapi/linux/if_link.h: struct rtnl_link_stats64 (rx_crc_errors, rx_frame_errors), IFLA_CARRIER_DOWN_COUNT",
            "RFC 6298 2.1",
        ],
    },
    faults: &["host-link-errors"],
    reads: &[
        Read::Kind(KindName::Nodes),
        Read::Topic("network"),
        Read::Topic("devices"),
        Read::Topic("tcp"),
        Read::Topic("probe"),
    ],
    lookalikes: &["neighbour_unresolved", "conntrack_table_full", "listen_queue_overflows", "host_firewall_drops_path"],
    explains: &[],
    judge,
};

/// Nodes whose devices are read: with their drivers' numbers they are many.
const MAX_NODES: usize = 8;
/// Nodes described one by one when all is well.
const MAX_NAMED: usize = 2;
/// The first retransmission comes a second after the packet (RFC 6298 2.1); what takes nearly that long needed one.
const AGAIN_US: u64 = 900_000;
/// Damaged frames of a thousand from which on losses are felt: below, one connection in hundreds meets one.
const DAMAGED_PER_MILLE: u64 = 1;
/// And fewer in a window are a disturbance that is over.
const FEWEST_DAMAGED: u64 = 10;
/// Losing the carrier once is a restart of the switch or of the device.
const FEWEST_LOST_CARRIERS: u64 = 2;

/// What one client meets on its ways to other nodes.
struct Lossy {
    proof: Proof,
    /// Whose device is looked at, and the node that it sends to: both ends of each way.
    ways: Vec<(String, String)>,
}

/// A device that damages packets of the path.
struct Bad {
    node: String,
    device: String,
    /// `received 812 damaged frames of 40812 in 300 s`.
    what: String,
    proofs: Vec<Proof>,
}

enum Found {
    Bad(Box<Bad>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    if !pairs(path).into_iter().any(crosses) {
        return Verdict::not_applicable("no endpoint of the path is a pod of another node");
    }
    let clients = path.clients.iter().take(MAX_CLIENT_PROBES);
    let losses: Vec<Lossy> = clients.filter_map(|client| lossy(path, client, view)).collect();
    let mut ways: Vec<&(String, String)> = Vec::new();
    for ends in losses.iter().flat_map(|lossy| &lossy.ways) {
        if !ways.iter().any(|(node, _)| *node == ends.0) {
            ways.push(ends);
        }
    }
    if ways.is_empty() {
        return Verdict::not_applicable("no packet between nodes is known to be lost while others are not");
    }
    let (mut bad, mut fine, mut dark): (Vec<Bad>, Vec<String>, bool) = (Vec::new(), Vec::new(), false);
    for (node, to_node) in ways.into_iter().take(MAX_NODES) {
        match look(node, to_node, view) {
            Found::Bad(found) => bad.push(*found),
            Found::Fine(because) => fine.push(because),
            Found::Dark => dark = true,
        }
    }
    let Some(first) = bad.first() else {
        fine.truncate(MAX_NAMED);
        return if dark { Verdict::unknown(view) } else { Verdict::clear(fine.join("; ")) };
    };
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for one in &bad {
        ObjectRef::of_node(&one.node).add_once(&mut subjects);
    }
    let mut proofs: Vec<Proof> = bad.iter().flat_map(|one| one.proofs.clone()).collect();
    proofs.extend(losses.into_iter().next().map(|lossy| lossy.proof));
    Verdict::found(Finding {
        subjects,
        since: None,
        // Some packets get through, or it would not have been looked at.
        impact: Impact::Degrades,
        claim: format!("{} of node {} {}", first.device, first.node, first.what),
        proofs,
        predicts: &[Fate::Silence],
        fix: fix(path, first),
    })
}

/// Packets of the client to other nodes are lost, and others are not.
fn lossy(path: &Path, client: &Client, view: &mut View) -> Option<Lossy> {
    let spoken = |backend: &&Backend| client.speaks_to(backend.address);
    let all: Vec<&Backend> = path.ready_backends().filter(spoken).take(MAX_BACKEND_PROBES).collect();
    let there: Vec<&Backend> = all.iter().copied().filter(|backend| crosses((client, *backend))).collect();
    if there.is_empty() {
        return None;
    }
    // What goes to the Service may stay on the node, unless every endpoint is on another one.
    let is_only_way = there.len() == all.len();
    let proof = match by_probes(path, client, &there, is_only_way, view) {
        Probes::Lossy(proof) => proof,
        Probes::Through if is_only_way => by_traffic(path, client, view)?,
        Probes::Through | Probes::Silent => return None,
    };
    let mut ways = Vec::new();
    for backend in there {
        ways.push((client.node.clone(), backend.node.clone()));
        ways.push((backend.node.clone(), client.node.clone()));
    }
    Some(Lossy { proof, ways })
}

enum Probes {
    /// Some are lost.
    Lossy(Proof),
    /// None is lost, or none was sent.
    Through,
    /// All are lost, which chance does not do.
    Silent,
}

/// The probes that show the symptom, so that they are sent once.
fn by_probes(path: &Path, client: &Client, there: &[&Backend], is_only_way: bool, view: &mut View) -> Probes {
    let mut requests: Vec<ProbeRequest> = Vec::new();
    if path.service().is_some() {
        requests.extend(there.iter().filter_map(|backend| path.backend_probe(backend)));
    }
    if is_only_way {
        let addresses = path.addresses.iter().copied().filter(|address| client.speaks_to(*address));
        requests.extend(addresses.filter_map(|address| path.address_probe(address)));
    }
    let (mut lost, mut of, mut last_at) = (0, 0, None);
    for request in requests {
        if let Look::Seen(seen) = view.probe(&client.node, &client.netns, request) {
            lost += seen.value.attempts.iter().filter(|attempt| is_lost(attempt)).count();
            of += seen.value.attempts.len();
            last_at = Some(seen.at);
        }
    }
    let Some(at) = last_at.filter(|_| lost > 0) else { return Probes::Through };
    if lost == of {
        return Probes::Silent;
    }
    let text = format!("{lost} of {of} probes to other nodes got no answer, or only to a second packet");
    Probes::Lossy(Proof::probe(format!("probe from {}", client.reference), &client.node, at, text))
}

/// The client's own connects of the window, as its kernel counted them.
fn by_traffic(path: &Path, client: &Client, view: &mut View) -> Option<Proof> {
    let port = path.port.filter(|_| path.protocol == Protocol::Tcp)?;
    let Look::Seen(tcp) = view.tcp(&client.node, &Netns::Host) else { return None };
    let is_own = |group: &&TcpGroup| {
        let is_client = match (&group.netns, &client.netns) {
            (Owner::Host, Netns::Host) => true,
            (Owner::Pod { uid }, Netns::Pod(own)) => uid == own,
            _ => false,
        };
        let service = group.service.filter(|service| service.port() == port);
        is_client && group.side == Side::Client && service.is_some_and(|service| path.addresses.contains(&service.ip()))
    };
    let group = tcp.value.groups.iter().find(is_own)?;
    let (again, connects, made) = (group.syn_retransmits, group.connects, group.ended(Ended::Established));
    let is_telling = again >= FEWEST_FAILURES && again * 100 >= connects * SMALLEST_SHARE_PERCENT;
    // Where every SYN is lost there is another reason.
    (is_telling && made > 0).then(|| {
        let window_s = tcp.value.window_s;
        let text =
            format!("{again} SYNs of {connects} connects had to be sent again in {window_s:.0} s, {made} were made");
        Proof::observed(format!("TCP connections of {}", client.reference), &client.node, tcp.at, text)
    })
}

fn is_lost(attempt: &Attempt) -> bool {
    match attempt.outcome {
        Outcome::Connected => attempt.elapsed_us >= AGAIN_US,
        // A DNS probe is sent once; what comes late was not lost.
        Outcome::Answered { .. } | Outcome::Failed { .. } => false,
        Outcome::TimedOut { .. } => true,
    }
}

fn look(node: &str, to_node: &str, view: &mut View) -> Found {
    let Look::Seen(nodes) = view.nodes() else { return Found::Dark };
    let Some(to) = nodes.value.get("", to_node).and_then(|node| node.internal_ips().next()) else {
        return Found::Fine(format!("node {to_node} has no address of its own"));
    };
    let Look::Seen(network) = view.network(node, &Netns::Host) else { return Found::Dark };
    // Without a way nothing is lost by chance: that is another condition's.
    let (Way::Known(route) | Way::OnlyDefault(route)) = way(network.value, to) else {
        return Found::Fine(format!("node {node} has no way to node {to_node}"));
    };
    let devices = match view.devices(node, &Netns::Host) {
        Look::Seen(devices) => devices,
        Look::Absent(_) => return Found::Fine(format!("node {node} has no network devices")),
        Look::Dark => return Found::Dark,
    };
    let carrying: Vec<&Device> = hardware(devices.value, route.link_index).collect();
    if carrying.is_empty() {
        return Found::Fine(format!("no hardware device of node {node} is known to lead to node {to_node}"));
    }
    if carrying.iter().any(|device| is_first_look(device)) {
        view.leave_open(first_look(node));
        return Found::Dark;
    }
    let Some((device, what)) = carrying.iter().find_map(|device| Some((*device, fault(device, devices)?))) else {
        return Found::Fine(format!("no device of node {node} that leads to node {to_node} counts damaged frames"));
    };
    let text = format!("to node {to_node} at {to}: {}", words(&route, network.value));
    let proofs = vec![
        Proof::programmed("routes", node, network.at, text),
        Proof::observed("network devices", node, devices.at, format!("{} {what}", device.name)),
    ];
    Found::Bad(Box::new(Bad { node: node.to_owned(), device: device.name.clone(), what, proofs }))
}

/// The hardware that a route's device is, or that is bundled in it (bond, bridge). What a VLAN or a tunnel sends by is not told.
fn hardware(devices: &Devices, index: Option<u32>) -> impl Iterator<Item = &Device> {
    let leads =
        move |device: &&Device| index == Some(device.index) || (index.is_some() && device.master_index == index);
    devices.devices.iter().filter(leads).filter(|device| device.kind.is_empty())
}

/// What is wrong with the device, as the end of a sentence.
fn fault(device: &Device, devices: Seen<Devices>) -> Option<String> {
    let window_s = devices.value.window_s;
    let lost_carriers = device.carrier_down.grown();
    if lost_carriers >= FEWEST_LOST_CARRIERS {
        return Some(format!("lost its carrier {lost_carriers} times in {window_s:.0} s"));
    }
    let of = statistic(device, "rx_packets");
    // Not what drivers count besides: frames that are too long for the device are no fault of the link.
    let damaged = statistic(device, "rx_crc_errors") + statistic(device, "rx_frame_errors");
    let all = of + damaged;
    let is_felt = damaged >= FEWEST_DAMAGED && damaged * 1_000 >= all * DAMAGED_PER_MILLE;
    is_felt.then(|| format!("received {damaged} damaged frames of {all} in {window_s:.0} s"))
}

/// Growth of a counter of the kernel; one that is not there is 0.
fn statistic(device: &Device, name: &str) -> u64 {
    device.statistics.get(name).copied().map_or(0, Counter::grown)
}

/// It has seen faults, and nobody knows when.
fn is_first_look(device: &Device) -> bool {
    let errors = ["rx_crc_errors", "rx_frame_errors"].into_iter().filter_map(|name| device.statistics.get(name));
    errors.chain([&device.carrier_down]).any(|counter| counter.value > 0 && counter.delta.is_none())
}

fn first_look(node: &str) -> Gap {
    Gap {
        what: format!("whether frames arrive damaged on node {node} now"),
        node: Some(node.to_owned()),
        reason: GapReason::NotRecorded,
        why: "the agent looks at the counters of a device there for the first time, so their growth is not known"
            .to_owned(),
        remedy: "ask again in a minute".to_owned(),
    }
}

fn fix(path: &Path, bad: &Bad) -> Fix {
    let Bad { node, device, .. } = bad;
    Fix {
        text: format!(
            "replace the cable, the optics or the switch's port at {device} of node {node}, then the device itself; keep new pods \
             off the node until then, and move those that matter"
        ),
        commands: vec![format!("ethtool -S {device}  # on node {node}"), format!("kubectl cordon {node}")],
        verify: path.ask_again(),
    }
}
