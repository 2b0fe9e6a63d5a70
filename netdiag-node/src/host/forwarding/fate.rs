//! What would become of one packet in the calling thread's network namespace, with the words that its way needs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::{Decision, End, Place};
use netdiag_common::forwarding::state::{ChainKey, Route, RouteQuery};
use netdiag_common::forwarding::{Outcome, Packet};
use netdiag_common::observation::Owner;
use netdiag_common::observation::fate::{
    Fate, FateInterface, FateInterfaceKey, FateNeighbour, FateOrigin, FateRequest, FateRule, LeftOut, LeftOutRole, Peer,
};
use netdiag_common::observation::network::Link;
use netdiag_common::{Gap, GapReason};
use nix::sys::socket::SockProtocol;

use super::route::Routes;
use super::unevaluated::{self, Surroundings};
use super::{Evaluation, delivery, evaluate_without, next_hop, without};
use crate::host::netlink::Netlink;
use crate::host::{ReadError, network, nftables};

/// Evaluates a packet and names what is on its way.
pub fn fate(request: &FateRequest, around: &mut Surroundings<'_>) -> Result<Fate, ReadError> {
    without::check(&request.without)?;
    let packet = packet(request)?;
    let Evaluation { outcome, state, legacy_rules, left_out } = evaluate_without(&packet, &request.without)?;
    let base: Vec<ChainKey> = state.hooks.iter().flat_map(|hooks| &hooks.chains).map(|base| base.key.clone()).collect();
    let mut unseen = Vec::new();
    let mut native = rules_of(&outcome, &left_out);
    native.retain(|chain, _| !chain.family.is_legacy());
    let rules = match nftables::in_words(&native, &base) {
        Ok(rules) => rules,
        Err(error) => {
            unseen.push(without_words(&error));
            Vec::new()
        }
    };
    let rules = rules.into_iter().map(|rule| FateRule {
        chain: rule.chain,
        handle: rule.handle,
        text: rule.text,
        comment: rule.comment,
        counter: rule.counter,
    });
    let neighbours = match next_hop::neighbours(&outcome) {
        Ok(neighbours) => neighbours,
        Err(error) => {
            unseen.push(unevaluated::unread("the neighbours that are given what is sent", &error));
            Vec::new()
        }
    };
    let mut interfaces = interfaces(&interfaces_of(&packet, &outcome), around.owner)?;
    let beside = beside(&interfaces, &neighbours);
    interfaces.extend(self::interfaces(&beside, around.owner)?);
    let input = interfaces.iter().find(|own| packet.origin == Origin::Received { interface: own.index });
    let is_bridge = |index: u32| interfaces.iter().any(|own| own.index == index && own.kind == "bridge");
    unseen.extend(input.filter(|input| input.master_index.is_some_and(|index| !is_bridge(index))).map(of_a_port));
    let rules = rules.chain(legacy_rules).collect();
    let (generation, deliveries) = (state.generation, Vec::new());
    let mut fate = Fate { generation, packet, outcome, rules, interfaces, deliveries, neighbours, unseen, left_out };
    let chains = state.hooks.as_ref().map_or(&[][..], |hooks| &hooks.chains);
    unevaluated::tell(&mut fate, request.by_kernel, chains, around);
    match delivery::deliveries(&fate, around) {
        Ok(deliveries) => fate.deliveries = deliveries,
        Err(error) => fate.unseen.push(unevaluated::unread("the sockets that take what is delivered", &error)),
    }
    Ok(fate)
}

/// The interfaces with these indexes, with their other ends. One that is gone is left out.
pub(crate) fn interfaces(
    indexes: &BTreeSet<u32>,
    owner: &mut dyn FnMut(Option<i32>) -> Option<Owner>,
) -> Result<Vec<FateInterface>, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let mut interfaces = Vec::new();
    for index in indexes {
        let Some(found) = network::link(&mut netlink, *index)? else { continue };
        let netns_id = found.peer_netns_id.map(u32::cast_signed);
        let peer = found.link.peer_index.map(|index| Peer { index, netns_id, owner: owner(netns_id) });
        let network::FoundLink { link, .. } = found;
        let Link { name, kind, master_index, bridge_port: port, vlan, .. } = link;
        interfaces.push(FateInterface { index: *index, name, kind, master_index, port, vlan, peer });
    }
    Ok(interfaces)
}

fn packet(request: &FateRequest) -> Result<Packet, ReadError> {
    let origin = match &request.origin {
        FateOrigin::Sent => Origin::Sent,
        FateOrigin::Received(FateInterfaceKey::Index(index)) => Origin::Received { interface: *index },
        FateOrigin::Received(FateInterfaceKey::Name(name)) => Origin::Received { interface: index_of(name)? },
    };
    let source = match request.source {
        Some(source) => source,
        None => source_to(request)?,
    };
    request.packet(origin, source).ok_or_else(|| ReadError::Malformed {
        what: "the packet that was asked about".into(),
        why: format!("{source} and {} are of two families", request.destination),
    })
}

/// The address of a socket that is not bound. Without a route there is none, which the evaluation will say.
fn source_to(request: &FateRequest) -> Result<IpAddr, ReadError> {
    let destination = request.destination;
    let query = RouteQuery {
        destination,
        source: None,
        input: None,
        output: None,
        mark: request.mark,
        service: 0,
        protocol: 0,
        ports: None,
        uid: None,
    };
    let none = if destination.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    Ok(match Routes::open()?.route(&query)? {
        Route::Forward { source: Some(source), .. } => source,
        // To itself from itself.
        Route::Local { .. } => destination,
        Route::Forward { .. } | Route::Refused { .. } | Route::Unfollowed { .. } => none,
    })
}

fn index_of(name: &str) -> Result<u32, ReadError> {
    nix::net::if_::if_nametoindex(name).map_err(|errno| match errno {
        nix::errno::Errno::ENODEV => ReadError::Gone { what: format!("interface {name}") },
        errno => ReadError::Call { step: format!("look up interface {name}"), source: errno.into() },
    })
}

pub(super) fn rules_of(outcome: &Outcome, left_out: &[LeftOut]) -> BTreeMap<ChainKey, BTreeSet<u64>> {
    let mut rules: BTreeMap<ChainKey, BTreeSet<u64>> = BTreeMap::new();
    let mut add = |chain: &ChainKey, handle: u64| {
        rules.entry(chain.clone()).or_default().insert(handle);
    };
    for path in &outcome.paths {
        for decision in &path.decisions {
            if let Decision::Rule { chain, handle, .. } = decision {
                add(chain, *handle);
            }
        }
        // One that was not evaluated has decided nothing.
        if let End::Unknown { by: Place { chain: Some(chain), handle: Some(handle), .. }, .. } = &path.end {
            add(chain, *handle);
        }
    }
    for LeftOut { rule, .. } in left_out.iter().filter(|left_out| left_out.role != LeftOutRole::Absent) {
        add(&rule.chain, rule.handle);
    }
    rules
}

fn interfaces_of(packet: &Packet, outcome: &Outcome) -> BTreeSet<u32> {
    let mut indexes = BTreeSet::new();
    if let Origin::Received { interface } = packet.origin {
        indexes.insert(interface);
    }
    for path in &outcome.paths {
        for decision in &path.decisions {
            if let Decision::Routed { route: Route::Local { interface } | Route::Forward { interface, .. }, .. }
            | Decision::Switched { bridge: interface, .. } = decision
            {
                indexes.insert(*interface);
            }
        }
        if let End::Sent { interface, .. } = path.end {
            indexes.insert(interface);
        }
    }
    indexes
}

/// The masters of ports on the way, the devices below VLANs, and the ports that neighbours are behind.
fn beside(interfaces: &[FateInterface], neighbours: &[FateNeighbour]) -> BTreeSet<u32> {
    let masters = interfaces.iter().filter_map(|own| own.master_index);
    let below = interfaces.iter().filter_map(|own| own.vlan?.lower_index);
    let ports = neighbours.iter().filter_map(|neighbour| neighbour.port);
    let is_new = |index: &u32| interfaces.iter().all(|own| own.index != *index);
    masters.chain(below).chain(ports).filter(is_new).collect()
}

/// A bond or a VRF hands the packet to this host as one of its own interface.
fn of_a_port(input: &FateInterface) -> Gap {
    Gap {
        what: format!("what the device does that {} is a port of", input.name),
        node: None,
        reason: GapReason::Failed,
        why: "bonds and VRFs are not evaluated".to_owned(),
        remedy: "ask for the fate of a packet that arrives on the device itself".to_owned(),
    }
}

fn without_words(error: &ReadError) -> Gap {
    Gap {
        what: "the words of the rules on the way".to_owned(),
        node: None,
        reason: GapReason::Failed,
        why: error.to_string(),
        remedy: "ask again; the decisions themselves are complete".to_owned(),
    }
}
