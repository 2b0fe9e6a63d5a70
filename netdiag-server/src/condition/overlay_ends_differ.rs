//! The two ends of an overlay between nodes do not fit together, so what one sends the other throws away.

use std::net::SocketAddr;

use netdiag_common::observation::Protocol;

use super::between::pairs;
use super::overlay::{Crossing, Tunnelled, crossings};
use super::trace::{Met, Packets, dropped};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::{ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::Path;
use crate::path::filter::owner_of_tunnel;
use crate::path::overlay::{Entrance, Outer};

pub const CONDITION: Condition = Condition {
    code: "overlay_ends_differ",
    severity: Severity::High,
    words: Words {
        means: "pods of two nodes talk through a tunnel, and its two ends do not agree: on the network's number, on the UDP port, or \
                on the address of the other node; packets between their pods vanish",
        how_we_know: "the route to the other node's pod leads into a tunnel device; its parameters, its neighbour and its \
                      forwarding database say what is sent where, and are compared with the device and the addresses of the other \
                      node; the probe and dropped packets agree",
        silent_when: "the ends agree, the probe gets through, pods are routed without a tunnel, or a program says with each packet \
                      where it goes (Cilium, Open vSwitch): then nothing is written down that could be compared",
        what_to_do: "give both nodes the same configuration and let the network plugin's agent make the device anew",
        sources: &[
            "drivers/net/vxlan/vxlan_core.c: vxlan_rcv, vxlan_xmit",
            "https://github.com/flannel-io/flannel/blob/master/Documentation/backends.md#vxlan",
            "RFC 7348",
        ],
    },
    faults: &["cni-vxlan-param-mismatch"],
    reads: &[Read::Topic("network"), Read::Topic("drops"), Read::Topic("probe")],
    lookalikes: &[
        "overlay_port_blocked",
        "pods_lost_between_nodes",
        "pod_network_route_missing",
        "host_firewall_drops_path",
        "policy_denies_path",
    ],
    explains: &[],
    judge,
};

/// At the far end: no device with this number (`vxlan_rcv`, Linux 6.12 and later), nobody on this port (`__udp4_lib_rcv`).
const REASONS: &[&str] = &["VXLAN_VNI_NOT_FOUND", "NO_SOCKET"];

/// One direction whose ends differ.
pub(super) struct Differs {
    from: String,
    to: String,
    claim: String,
    proofs: Vec<Proof>,
    packets: Option<Packets>,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let crossings = crossings(path, view);
    if crossings.is_empty() {
        return Verdict::not_applicable("no endpoint of the path is a pod of another node");
    }
    let (mut found, mut broken, mut dark, mut tunnels): (Vec<Differs>, usize, bool, bool) =
        (Vec::new(), 0, false, false);
    for crossing in &crossings {
        let Some(directions) = crossing.tunnelled(view) else {
            dark = true;
            continue;
        };
        tunnels |= !directions.is_empty();
        let differing = differing(crossing, &directions);
        broken += usize::from(!differing.is_empty());
        for differs in differing {
            if !found.iter().any(|known| known.claim == differs.claim) {
                found.push(differs);
            }
        }
    }
    if found.is_empty() {
        return match (dark, tunnels) {
            (true, _) => Verdict::unknown(view),
            (false, true) => Verdict::clear("the ends of the tunnels between the nodes agree, or packets get through"),
            (false, false) => Verdict::not_applicable("no tunnel whose parameters are known leads to the other node"),
        };
    }
    let ways = pairs(path).len();
    let impact = if broken == ways { Impact::Breaks } else { Impact::Degrades };
    let mut claim: String = found.iter().map(|differs| differs.claim.as_str()).collect::<Vec<_>>().join("; ");
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {broken} of {ways} ways of this path are cut"));
    }
    let (mut subjects, mut proofs): (Vec<ObjectRef>, Vec<Proof>) = (Vec::new(), Vec::new());
    for differs in &found {
        for node in [&differs.from, &differs.to] {
            ObjectRef::of_node(node).add_once(&mut subjects);
        }
        proofs.extend(differs.proofs.iter().cloned());
    }
    // A packet that comes to nobody's port or number is dropped where it arrives.
    for differs in &found {
        proofs.extend(differs.packets.and_then(|packets| dropped(view, &differs.to, &packets, REASONS)));
    }
    let fix = Fix {
        text: format!(
            "give nodes {} and {} the same overlay configuration, and restart the network plugin's agent where it differs, so that \
             it makes the device and its entries anew",
            found[0].from, found[0].to
        ),
        commands: Vec::new(),
        verify: path.ask_again(),
    };
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: &[Fate::Silence], fix })
}

fn differing(crossing: &Crossing, directions: &[Tunnelled]) -> Vec<Differs> {
    if crossing.met == Met::GotThrough {
        return Vec::new();
    }
    directions.iter().filter_map(differs).collect()
}

pub(super) fn differs(direction: &Tunnelled) -> Option<Differs> {
    let outer = direction.outer?;
    let exit = direction.exit?;
    let mut claims = Vec::new();
    let Tunnelled { from, to, entrance, far, near, .. } = direction;
    let device = &entrance.link.name;
    if let (Some(sent), Some(taken)) = (outer.id, exit.tunnel.id)
        && sent != taken
    {
        claims.push(format!(
            "{device} of node {from} sends with network number {sent}, {} of node {to} takes {taken}",
            exit.link.name
        ));
    }
    if let (Some(sent), Some(taken)) = (outer.port, exit.tunnel.port)
        && sent != taken
    {
        claims.push(format!(
            "{device} of node {from} sends to UDP port {sent}, {} of node {to} listens on {taken}",
            exit.link.name
        ));
    }
    let has = |network: &netdiag_common::observation::network::Network, address| {
        network.addresses.iter().any(|own| own.address == address)
    };
    if !has(far.network, outer.destination) {
        claims.push(format!(
            "{device} of node {from} sends packets for pods of node {to} to {}, which is no address of that node",
            outer.destination
        ));
    }
    if let Some(source) = outer.source.filter(|source| !has(near.network, *source)) {
        claims.push(format!("{device} of node {from} sends from {source}, which is no address of that node"));
    }
    if claims.is_empty() {
        return None;
    }
    let proofs = vec![
        Proof::programmed("tunnel", from, near.at, words(*entrance, Some(outer))),
        Proof::programmed("tunnel", to, far.at, words(exit, None)),
    ];
    let packets = outer.source.zip(outer.port).map(|(source, port)| Packets {
        source,
        destination: SocketAddr::new(outer.destination, port),
        protocol: Protocol::Udp,
    });
    Some(Differs { from: (*from).to_owned(), to: (*to).to_owned(), claim: claims.join("; "), proofs, packets })
}

/// `flannel.1: vxlan, number 1, UDP port 8472, local 172.30.0.11, sends to 172.30.0.12; flannel gives its device that name`.
fn words(Entrance { link, tunnel }: Entrance, outer: Option<Outer>) -> String {
    let mut words = format!("{}: {}", link.name, link.kind);
    if let Some(id) = outer.map_or(tunnel.id, |outer| outer.id) {
        words.push_str(&format!(", number {id}"));
    }
    if let Some(port) = outer.map_or(tunnel.port, |outer| outer.port) {
        words.push_str(&format!(", UDP port {port}"));
    }
    if let Some(local) = tunnel.local {
        words.push_str(&format!(", local {local}"));
    }
    if let Some(outer) = outer {
        words.push_str(&format!(", sends to {}", outer.destination));
    }
    if let Some(owner) = owner_of_tunnel(&link.kind, &link.name) {
        words.push_str(&format!("; {} gives its device that name", owner.words()));
    }
    words
}
