//! A packet filter stops the outer packets of the overlay between two nodes.

use jiff::Timestamp;
use netdiag_common::observation::rules::Hook;
use netdiag_common::{Gap, GapReason, Netns};

use super::between::pairs;
use super::host_firewall_drops_path::{place, whose, words};
use super::overlay::{Tunnelled, crossings};
use super::trace::{Met, Packets, dropped};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::Path;
use crate::path::filter::{Packet, owner, stops};

pub const CONDITION: Condition = Condition {
    code: "overlay_port_blocked",
    severity: Severity::Critical,
    words: Words {
        means: "pods of two nodes talk through a tunnel, and a firewall rule on one of the nodes stops the tunnel's UDP port, or its \
                IP protocol: nodes reach each other, pods of different nodes do not",
        how_we_know: "the route to the other node's pod leads into a tunnel device; the rules of both nodes are walked for the \
                      packet that carries the pod's, from node address to node address; the probe, the rule's counter and dropped \
                      packets agree",
        silent_when: "no rule of the two nodes stops it, the probe gets through, or pods are routed without a tunnel; what a \
                      security group or a router between the nodes stops is pods_lost_between_nodes",
        what_to_do: "accept the tunnel's UDP port, or its IP protocol, between nodes before that rule",
        sources: &[
            "https://github.com/flannel-io/flannel/blob/master/Documentation/troubleshooting.md#firewalls",
            "nft(8), chains and hooks",
            "RFC 7348, RFC 2003",
        ],
    },
    faults: &["cni-vxlan-blocked", "cni-ipip-blocked"],
    reads: &[Read::Topic("network"), Read::Topic("rules"), Read::Topic("drops"), Read::Topic("probe")],
    lookalikes: &[
        "overlay_ends_differ",
        "pods_lost_between_nodes",
        "pod_network_route_missing",
        "host_firewall_drops_path",
        "policy_denies_path",
    ],
    explains: &[],
    judge,
};

const REASONS: &[&str] = &["NETFILTER_DROP"];
/// The hooks of the node that packs and of the node that unpacks.
const SENDS: &[Hook] = &[Hook::Output, Hook::Postrouting];
const TAKES: &[Hook] = &[Hook::Prerouting, Hook::Input];

/// A rule that stops the outer packets of one direction.
pub(super) struct Blocked {
    node: String,
    claim: String,
    place: String,
    proofs: Vec<Proof>,
    packets: Option<Packets>,
    /// `UDP port 8472`
    what: String,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let crossings = crossings(path, view);
    if crossings.is_empty() {
        return Verdict::not_applicable("no endpoint of the path is a pod of another node");
    }
    let (mut found, mut broken, mut dark, mut tunnels): (Vec<Blocked>, usize, bool, bool) =
        (Vec::new(), 0, false, false);
    for crossing in &crossings {
        let Some(directions) = crossing.tunnelled(view) else {
            dark = true;
            continue;
        };
        let mut is_cut = false;
        for direction in &directions {
            tunnels = true;
            if direction.entrance.tunnel.encapsulated && crossing.met != Met::GotThrough {
                view.leave_open(packed_once_more(direction));
                dark = true;
                continue;
            }
            let (blocked, is_dark) = blocked(direction, crossing.met, view);
            dark |= is_dark;
            is_cut |= !blocked.is_empty();
            for blocked in blocked {
                if !found.iter().any(|known| known.node == blocked.node && known.place == blocked.place) {
                    found.push(blocked);
                }
            }
        }
        broken += usize::from(is_cut);
    }
    let Some(first) = found.first() else {
        return match (dark, tunnels) {
            (true, _) => Verdict::unknown(view),
            (false, true) => Verdict::clear("no rule of the two nodes stops the tunnel's packets, or they get through"),
            (false, false) => Verdict::not_applicable("no tunnel whose parameters are known leads to the other node"),
        };
    };
    let ways = pairs(path).len();
    let impact = if broken == ways { Impact::Breaks } else { Impact::Degrades };
    let mut claim: String = found.iter().map(|blocked| blocked.claim.as_str()).collect::<Vec<_>>().join("; ");
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {broken} of {ways} ways of this path are cut"));
    }
    let fix = Fix {
        text: format!("accept {} between the nodes on node {}, before {}", first.what, first.node, first.place),
        commands: Vec::new(),
        verify: path.ask_again(),
    };
    let (mut subjects, mut proofs): (Vec<ObjectRef>, Vec<Proof>) = (Vec::new(), Vec::new());
    for blocked in &found {
        ObjectRef::of_node(&blocked.node).add_once(&mut subjects);
        proofs.extend(blocked.proofs.iter().cloned());
        proofs.extend(blocked.packets.and_then(|packets| dropped(view, &blocked.node, &packets, REASONS)));
    }
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: &[Fate::Silence], fix })
}

/// The rules of both nodes that stop its packets, and whether something could not be seen or decided.
pub(super) fn blocked(direction: &Tunnelled, met: Met, view: &mut View) -> (Vec<Blocked>, bool) {
    let (mut found, mut dark) = (Vec::new(), false);
    let Some(outer) = direction.outer else { return (found, dark) };
    let Some((protocol, destination)) = outer.to().filter(|_| met != Met::GotThrough) else { return (found, dark) };
    for (node, looked, hooks) in [(direction.from, direction.near, SENDS), (direction.to, direction.far, TAKES)] {
        let rules = match view.rules(node, &Netns::Host) {
            Look::Seen(rules) => rules,
            Look::Absent(_) => continue,
            Look::Dark => {
                dark = true;
                continue;
            }
        };
        let is_sender = node == direction.from;
        let other = if is_sender { Some(outer.destination) } else { outer.source };
        let device = other.and_then(|other| {
            let index = looked.network.route_to(other)?.link_index?;
            looked.network.link(index).map(|link| link.name.as_str())
        });
        let packet = Packet {
            source: outer.source,
            dialled: destination,
            endpoint: destination,
            protocol,
            input: device.filter(|_| !is_sender),
            output: device.filter(|_| is_sender),
        };
        let all = stops(rules.value, hooks, &packet, true);
        dark |= all.is_empty() && rules.value.left_out_elsewhere().next().is_some();
        let sure = all.iter().find(|stop| stop.sure);
        let Some(stop) = sure else {
            // A network plugin lets its own tunnel through, by sets that this walk does not look into.
            dark |= all.iter().any(|stop| !owner(stop.table, stop.chain, stop.rule).is_cluster());
            continue;
        };
        let (place, text) = (place(stop), words(stop));
        // What the network plugin or kube-proxy drops is not for an administrator to accept.
        let claim = format!(
            "on node {node}, {place} stops the packets of {} from node {} to node {} ({}): {text} ({})",
            direction.entrance.link.name,
            direction.from,
            direction.to,
            outer.words(),
            whose(owner(stop.table, stop.chain, stop.rule))
        );
        let mut proofs = vec![
            Proof::programmed(
                "tunnel",
                direction.from,
                direction.near.at,
                format!(
                    "{} carries packets for pods of node {} to {} ({})",
                    direction.entrance.link.name,
                    direction.to,
                    outer.destination,
                    outer.words()
                ),
            ),
            Proof::programmed("packet filter", node, rules.at, format!("{place}: {text}")),
        ];
        proofs.extend(counted(stop.rule.and_then(|rule| rule.counter).map(|counter| counter.packets), node, rules.at));
        let packets = outer.source.map(|source| Packets { source, destination, protocol });
        found.push(Blocked { node: node.to_owned(), claim, place, proofs, packets, what: outer.words() });
        // What is stopped on the first node never gets to the second.
        break;
    }
    (found, dark)
}

/// What the rules would have to be walked for is not told.
fn packed_once_more(direction: &Tunnelled) -> Gap {
    let Tunnelled { from, to, entrance, .. } = direction;
    let device = &entrance.link.name;
    Gap {
        what: format!("whether nodes {from} and {to} let packets of {device} pass"),
        node: Some((*from).to_owned()),
        reason: GapReason::Failed,
        why: format!("what {device} packs is packed once more (FOU, GUE, MPLS), and by which port is not read"),
        remedy: format!("look at `ip -d link show {device}` for its `encap`, and at rules of both nodes for its port"),
    }
}

fn counted(packets: Option<u64>, node: &str, at: Timestamp) -> Option<Proof> {
    let packets = packets.filter(|packets| *packets > 0)?;
    Some(Proof::observed("the rule's counter", node, at, format!("this rule has stopped {packets} packets")))
}
