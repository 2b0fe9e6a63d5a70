//! Filters of bridges, where the packet comes in by a port of one or leaves by one: tables of nf_tables of the family
//! bridge, and legacy ebtables.

use std::path::Path;

use netdiag_common::forwarding::Path as Way;
use netdiag_common::forwarding::path::{Decision, End, Size};
use netdiag_common::forwarding::state::{BaseChain, Family};
use netdiag_common::observation::fate::FateInterface;
use nix::sys::socket::SockProtocol;

use super::Found;
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

/// The ports of a bridge that drop what leaves by it on this path, without telling anybody (`br_dev_queue_push_xmit`). Which
/// port it is, the bridge's own table decides, which is not read.
pub(super) fn narrow_ports(bridge: u32, way: &Way) -> Result<Vec<Narrow>, ReadError> {
    let Some(Decision::Measured { mtu, length, size, .. }) = way.decisions.last() else { return Ok(Vec::new()) };
    let longest = if *size == Size::Fits { *length } else { *mtu };
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let ports: Vec<_> = network::links(&mut netlink)?
        .into_iter()
        .map(|found| found.link)
        .filter(|link| link.master_index == Some(bridge))
        .collect();
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
