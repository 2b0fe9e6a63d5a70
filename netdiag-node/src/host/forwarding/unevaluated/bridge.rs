//! What a bridge does with a packet that comes in by a port of it or leaves by one: filters (tables of nf_tables of the family
//! bridge, and legacy ebtables), ports that are too narrow, and ports that are kept apart.

use std::path::Path;

use netdiag_common::forwarding::Path as Way;
use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::{Decision, End, Place, Size};
use netdiag_common::forwarding::state::{BaseChain, Family, Hook};
use netdiag_common::observation::fate::{Fate, FateInterface};
use netdiag_common::observation::network::{Link, PortState};
use nix::sys::socket::SockProtocol;

use super::{Found, is_switched};
use crate::host::netlink::Netlink;
use crate::host::{ReadError, network};

/// Legacy tables that are there as modules. Which namespaces use them cannot be asked: asking for a table makes it.
const MODULES: &str = "/sys/module";
const LEGACY: [&str; 3] = ["broute", "filter", "nat"];

/// What a device takes beyond its MTU from a bridge: the tag of a VLAN (`__is_skb_forwardable`).
const VLAN_BYTES: u32 = 4;

/// Whether the interface is a bridge, or a port of one.
pub(super) fn is_bridged(interface: &FateInterface) -> Result<bool, ReadError> {
    let Some(master) = interface.master_index else { return Ok(interface.kind == "bridge") };
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    Ok(network::link(&mut netlink, master)?.is_some_and(|found| found.link.kind == "bridge"))
}

pub(super) fn filters(chains: &[BaseChain], interface: &str) -> Vec<Found> {
    let why = "filters of bridges are not evaluated: they may drop, change or redirect the packet";
    let found = |what: String, remedy: String| Found { what, why: why.to_owned(), remedy };
    let native = chains.iter().filter(|chain| chain.key.family == Family::Bridge).map(|chain| {
        let remedy = format!("`nft list table bridge {}` shows its rules", chain.key.table);
        found(format!("chain {} at {}", chain.key, chain.hook), remedy)
    });
    let legacy = LEGACY.iter().filter(|table| Path::new(MODULES).join(format!("ebtable_{table}")).exists());
    let legacy = legacy.map(|table| {
        let remedy =
            format!("`ebtables-legacy -t {table} -L --Lc` on that node lists it, and makes it where it is not");
        found(format!("legacy ebtables, table {table}, at the bridge of {interface}"), remedy)
    });
    native.chain(legacy).collect()
}

/// A port by which no packet of that length leaves, and its MTU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Narrow {
    pub name: String,
    pub mtu: u32,
    /// Whether there is a port that takes it.
    pub is_one_of_many: bool,
}

/// The ports of a bridge that drop what leaves by it on this path, without telling anybody (`br_dev_queue_push_xmit`). All of them
/// are looked at: which one it is changes with the bridge's own table.
pub(super) fn narrow_ports(bridge: u32, way: &Way) -> Result<Vec<Narrow>, ReadError> {
    let longest = match way.decisions.last() {
        _ if way.decisions.iter().any(is_switched) => way.packet.length,
        Some(Decision::Measured { length, size: Size::Fits, .. }) => *length,
        Some(Decision::Measured { mtu, .. }) => *mtu,
        _ => return Ok(Vec::new()),
    };
    let ports = ports(bridge)?;
    let is_narrow = |mtu: u32| longest > mtu.saturating_add(VLAN_BYTES);
    let is_one_of_many = ports.iter().any(|port| !is_narrow(port.mtu));
    let narrow = ports.into_iter().filter(|port| is_narrow(port.mtu));
    Ok(narrow.map(|port| Narrow { name: port.name, mtu: port.mtu, is_one_of_many }).collect())
}

/// What the narrow ports do to a path: it ends where all of them are, else they are named.
pub(super) fn narrowed(way: &mut Way, interface: u32, ports: &[Narrow]) {
    let Some(widest) = ports.iter().max_by_key(|port| port.mtu) else { return };
    if !widest.is_one_of_many {
        way.end = End::TooBig { interface, mtu: widest.mtu, with: None };
        return;
    }
    let names: Vec<String> = ports.iter().map(|port| format!("{} (MTU {})", port.name, port.mtu)).collect();
    way.gaps.push(format!("the bridge drops a packet of this length where it leaves by {}", names.join(", ")));
}

/// The ports of a bridge.
fn ports(bridge: u32) -> Result<Vec<Link>, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let links = network::links(&mut netlink)?.into_iter().map(|found| found.link);
    Ok(links.filter(|link| link.master_index == Some(bridge)).collect())
}

/// What the bridge does not hand on of a packet that came in by a port of it and leaves by the bridge again. It leaves by the port
/// that its neighbour is behind or, where that is not known, by any other one.
pub(super) fn keep_apart(fate: &mut Fate) -> Result<(), ReadError> {
    let Origin::Received { interface } = fate.packet.origin else { return Ok(()) };
    let Some(input) = fate.interfaces.iter().find(|own| own.index == interface) else { return Ok(()) };
    let (Some(flags), Some(bridge)) = (input.port, input.master_index) else { return Ok(()) };
    let name = fate.interfaces.iter().find(|own| own.index == bridge).map_or("", |own| own.name.as_str());
    // `br_handle_frame` and `br_handle_frame_finish` of net/bridge/br_input.c (Linux 6.18).
    let closed = flags.state.filter(|state| *state != PortState::Forwarding).map(|state| {
        format!(
            "port {} of bridge {name} is {}: it takes no packet in, unless the bridge keeps a state for each VLAN",
            input.name,
            state.word()
        )
    });
    let isolated = flags.isolated == Some(true);
    let ports = if isolated { ports(bridge)? } else { Vec::new() };
    for (number, way) in fate.outcome.paths.iter_mut().enumerate() {
        way.gaps.extend(closed.clone());
        let leaves = matches!(way.end, End::Sent { interface: output, .. } if output == bridge);
        if !leaves || !way.decisions.iter().any(is_switched) {
            continue;
        }
        let behind = fate.neighbours.iter().find(|neighbour| neighbour.path == number).and_then(|found| found.port);
        // `should_deliver` of net/bridge/br_forward.c.
        if behind == Some(interface) && !flags.hairpin {
            let port = &input.name;
            way.gaps.push(format!(
                "the neighbour is behind port {port} of bridge {name}, by which the packet came in: without hairpin mode the bridge \
                 drops it"
            ));
        }
        if !isolated {
            continue;
        }
        let may_be = |port: &&Link| behind.map_or(port.index != interface, |behind| port.index == behind);
        let exits: Vec<&Link> = ports.iter().filter(may_be).collect();
        kept_apart(way, &input.name, name, &exits);
    }
    Ok(())
}

/// Isolation on a path that came in by an isolated port: nobody knows how it ends where all ports are isolated that it may leave
/// by, else they are named (`should_deliver`, net/bridge/br_forward.c, with `br_skb_isolated`, net/bridge/br_private.h; Linux 6.18).
///
/// What this host routes is of no port (`br_dev_xmit` forgets where it came in).
fn kept_apart(way: &mut Way, input: &str, bridge: &str, exits: &[&Link]) {
    let is_isolated = |port: &&Link| port.bridge_port.is_some_and(|flags| flags.isolated == Some(true));
    let isolated: Vec<&str> = exits.iter().copied().filter(is_isolated).map(|port| port.name.as_str()).collect();
    if isolated.is_empty() {
        return;
    }
    let because = format!(
        "isolated port {input} of bridge {bridge} reaches no other isolated port ({}): the bridge drops the packet",
        isolated.join(", ")
    );
    if isolated.len() == exits.len() {
        way.end = End::Unknown { by: Place { hook: Hook::Forward, chain: None, handle: None }, because };
    } else {
        way.gaps.push(because);
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::forwarding::packet::{Packet, UDP, udp};
    use netdiag_common::observation::network::BridgePort;

    use super::*;

    fn port(index: u32, isolated: bool) -> Link {
        let flags = BridgePort { isolated: Some(isolated), ..BridgePort::default() };
        Link {
            index,
            name: format!("veth{index}"),
            kind: "veth".into(),
            mtu: 1500,
            up: true,
            carrier: true,
            master_index: Some(4),
            bridge_port: Some(flags),
            ..Link::default()
        }
    }

    /// A path out of the bridge, by one of these ports.
    fn through(exits: &[&Link]) -> Way {
        let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let origin = Origin::Received { interface: 5 };
        let packet = Packet::between(origin, source, destination, UDP, &udp(1, 2, b"")).unwrap();
        let end = End::Sent { interface: 4, gateway: None };
        let mut way =
            Way { assumptions: Vec::new(), decisions: Vec::new(), gaps: Vec::new(), end, packet, connection: None };
        kept_apart(&mut way, "veth5", "br0", exits);
        way
    }

    #[test]
    fn two_isolated_ports_may_not_reach_each_other() {
        let (isolated, other) = (port(6, true), port(7, false));
        let way = through(&[&isolated]);
        let End::Unknown { because, .. } = &way.end else { panic!("{:?}", way.end) };
        assert!(because.starts_with("isolated port veth5 of bridge br0 reaches no other"), "{because}");
        let way = through(&[&isolated, &other]);
        assert!(matches!(way.end, End::Sent { .. }) && way.gaps[0].contains("(veth6)"), "{way:?}");
        for exits in [&[&other][..], &[]] {
            let way = through(exits);
            assert!(matches!(way.end, End::Sent { .. }) && way.gaps.is_empty(), "{way:?}");
        }
    }
}
