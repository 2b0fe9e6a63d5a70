//! What the link layer does with a packet where it comes in and where it leaves: ports of bridges, VLANs, and the neighbour that
//! is given it.

use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::{Decision, End};
use netdiag_common::observation::fate::FateInterface;

use super::DecisionEntry;
use super::decision::predicted;
use super::words::interface;
use crate::trace::Leg;

/// Nothing for an interface that is neither a bridge's port nor a VLAN.
pub(super) fn arrival(leg: &Leg) -> Vec<DecisionEntry> {
    let Origin::Received { interface: index } = leg.fate.packet.origin else { return Vec::new() };
    let Some(input) = find(leg, index) else { return Vec::new() };
    let port = port(leg, input).map(|port| format!("link: in by {port}"));
    let vlan = vlan(leg, input).map(|vlan| format!("link: in by {vlan}"));
    vlan.into_iter().chain(port).map(predicted).collect()
}

/// Of a packet that is sent.
pub(super) fn departure(leg: &Leg) -> Vec<DecisionEntry> {
    let End::Sent { interface: index, .. } = leg.path().end else { return Vec::new() };
    let neighbour = leg.fate.neighbours.iter().find(|neighbour| neighbour.path == leg.path && !is_switched(leg));
    let told = neighbour.map(|neighbour| format!("{}, dev {}", neighbour.words(), interface(leg, index)));
    let port = neighbour.and_then(|neighbour| port(leg, find(leg, neighbour.port?)?));
    let vlan = find(leg, index).and_then(|output| vlan(leg, output));
    let link = [vlan, port].into_iter().flatten().map(|way| format!("link: out by {way}"));
    told.into_iter().chain(link).map(predicted).collect()
}

/// Its frame keeps the address that its sender gave it to, and this host's neighbours are not asked. They are where its destination was
/// translated (`br_nf_pre_routing_finish_bridge`, net/bridge/br_netfilter_hooks.c, Linux 6.18).
fn is_switched(leg: &Leg) -> bool {
    let is_switched = leg.path().decisions.iter().any(|decision| matches!(decision, Decision::Switched { .. }));
    is_switched && leg.path().packet.destination() == leg.fate.packet.destination()
}

/// `port veth1 of bridge cni0 (isolated)`
fn port(leg: &Leg, device: &FateInterface) -> Option<String> {
    let port = device.port?;
    let bridge = interface(leg, device.master_index?);
    Some(match port.words() {
        words if words.is_empty() => format!("port {} of bridge {bridge}", device.name),
        words => format!("port {} of bridge {bridge} ({words})", device.name),
    })
}

/// `eth0.100: VLAN 100 of dev eth0`
fn vlan(leg: &Leg, device: &FateInterface) -> Option<String> {
    let vlan = device.vlan?;
    Some(match vlan.lower_index {
        Some(lower) => format!("{}: {} of dev {}", device.name, vlan.words(), interface(leg, lower)),
        None => format!("{}: {} of a device in another namespace", device.name, vlan.words()),
    })
}

fn find(leg: &Leg, index: u32) -> Option<&FateInterface> {
    leg.fate.interfaces.iter().find(|interface| interface.index == index)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use netdiag_common::forwarding::Packet;
    use netdiag_common::forwarding::packet::{UDP, udp};
    use netdiag_common::forwarding::state::Hook;
    use netdiag_common::observation::fate::FateNeighbour;
    use netdiag_common::observation::network::{BridgePort, Vlan};

    use super::*;
    use crate::answer::trace::example;
    use crate::answer::trace::words::decision;

    const PORT: u32 = 5;
    const BRIDGE: u32 = 4;
    const VLAN: u32 = 7;
    const LOWER: u32 = 2;

    /// In by a port of cni0, or by a VLAN, and out by an interface.
    fn leg(input: u32, output: u32, neighbours: Vec<FateNeighbour>) -> Leg {
        let device = |index: u32, name: &str| FateInterface {
            index,
            name: name.to_owned(),
            kind: String::new(),
            master_index: None,
            port: None,
            vlan: None,
            peer: None,
        };
        let isolated = BridgePort { isolated: Some(true), ..BridgePort::default() };
        let tag = Vlan { id: 100, protocol: 0x8100, lower_index: Some(LOWER) };
        let interfaces = vec![
            FateInterface { master_index: Some(BRIDGE), port: Some(isolated), ..device(PORT, "veth1") },
            device(BRIDGE, "cni0"),
            FateInterface { vlan: Some(tag), ..device(VLAN, "eth0.100") },
            device(LOWER, "eth0"),
        ];
        let mut leg = example::leg(Some(input), Vec::new(), output);
        let fate = Arc::get_mut(&mut leg.fate).unwrap();
        (fate.interfaces, fate.neighbours) = (interfaces, neighbours);
        leg
    }

    fn neighbour(interface: u32, port: Option<u32>) -> FateNeighbour {
        let (state, mac) = (Some("reachable".to_owned()), Some("02:00:00:00:00:09".to_owned()));
        FateNeighbour { path: 0, interface, address: "10.0.0.2".parse().unwrap(), state, mac, port }
    }

    fn words(entries: Vec<DecisionEntry>) -> Vec<String> {
        entries.into_iter().map(|entry| entry.what).collect()
    }

    #[test]
    fn ports_of_a_bridge_are_named_with_their_flags() {
        let leg = leg(PORT, BRIDGE, vec![neighbour(BRIDGE, Some(PORT))]);
        assert_eq!(words(arrival(&leg)), ["link: in by port veth1 of bridge cni0 (isolated)"]);
        let out = [
            "neighbour 10.0.0.2: 02:00:00:00:00:09 (reachable), dev cni0",
            "link: out by port veth1 of bridge cni0 (isolated)",
        ];
        assert_eq!(words(departure(&leg)), out);
    }

    #[test]
    fn a_bridge_asks_no_neighbour_unless_the_destination_was_translated() {
        let mut leg = leg(PORT, BRIDGE, vec![neighbour(BRIDGE, Some(PORT))]);
        let fate = Arc::get_mut(&mut leg.fate).unwrap();
        let switched = Decision::Switched { hook: Hook::Forward, bridge: BRIDGE, port: PORT, filtered: true };
        fate.outcome.paths[0].decisions.push(switched);
        assert_eq!(words(departure(&leg)), [""; 0]);
        let (source, origin) = ("10.244.1.2".parse().unwrap(), Origin::Received { interface: PORT });
        let service = "10.96.0.7".parse().unwrap();
        let fate = Arc::get_mut(&mut leg.fate).unwrap();
        fate.packet = Packet::between(origin, source, service, UDP, &udp(1, 2, b"")).unwrap();
        assert!(words(departure(&leg))[0].starts_with("neighbour 10.0.0.2"));
    }

    #[test]
    fn what_a_bridge_hands_on_says_whether_rules_see_it() {
        let leg = leg(PORT, BRIDGE, Vec::new());
        let of = |filtered| {
            decision(&leg, &Decision::Switched { hook: Hook::Forward, bridge: BRIDGE, port: PORT, filtered })
        };
        assert_eq!(of(true), "bridge cni0: from port veth1 to another one, through the rules of IP (br_netfilter)");
        assert!(of(false).ends_with("no rule of IP sees it: br_netfilter is not loaded, or off for this bridge"));
    }

    #[test]
    fn a_vlan_is_named_with_the_device_below() {
        let leg = leg(VLAN, VLAN, Vec::new());
        assert_eq!(words(arrival(&leg)), ["link: in by eth0.100: VLAN 100 of dev eth0"]);
        assert_eq!(words(departure(&leg)), ["link: out by eth0.100: VLAN 100 of dev eth0"]);
    }

    #[test]
    fn plain_links_have_nothing_to_say() {
        let leg = leg(LOWER, LOWER, Vec::new());
        assert_eq!((words(arrival(&leg)), words(departure(&leg))), (Vec::new(), Vec::new()));
    }
}
