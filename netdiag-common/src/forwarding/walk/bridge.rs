//! Packets that come in by a port of a bridge: for this host, or for another port (`br_handle_frame_finish`, net/bridge/br_input.c,
//! Linux 6.18).
//!
//! With `br_netfilter` they pass prerouting within the bridge, and what goes to another port passes forward and postrouting there
//! as well, with the bridge in place of both interfaces (`br_nf_pre_routing`, `br_nf_forward_ip` and `br_nf_post_routing`,
//! net/bridge/br_netfilter_hooks.c). What is for this host has passed prerouting then, and does not pass it once more
//! (`ip_sabotage_in`); the port that it came in by stays known on its further way.

use std::net::IpAddr;

use super::route::{Routed, is_behind, is_own, route, route_to};
use super::{Plan, hook, routed};
use crate::forwarding::bridge::{Between, Bridge};
use crate::forwarding::machine::{Result, Run};
use crate::forwarding::packet::Protocol;
use crate::forwarding::path::{Decision, End};
use crate::forwarding::routing::Discard;
use crate::forwarding::state::{Hook, Interface, Route};

/// The bit of a group in an Ethernet address, in its first byte.
const GROUP: u8 = 1;

/// Drop reason of a host that does not forward.
const NOT_FORWARDED: &str = "IP_INADDRERRORS";

/// Names the chains of bridges, where the interface is one.
pub(super) fn name_chains(run: &mut Run<'_>, plan: &Plan<'_>, interface: Option<&Interface>) {
    if interface.is_some_and(|interface| interface.kind.as_deref() == Some("bridge")) {
        for chain in &plan.of_bridges {
            run.add_gap(chain.as_str());
        }
    }
}

/// From the port on.
pub(super) fn received<'a>(run: &mut Run<'a>, plan: &Plan<'a>, bridge: &'a Bridge) -> Result<End> {
    let Some(port) = run.input else { return Err(run.unknown("the packet came in by no interface")) };
    let is_for_host = is_for_host(run, bridge)?;
    // To IP, it comes in by the bridge.
    run.input = run.state.interface(bridge.index)?;
    if !bridge.is_filtered(run.packet.protocol) {
        if is_for_host {
            return super::received(run, plan, None);
        }
        name_chains(run, plan, run.input);
        run.decisions.push(switched(bridge, port, false));
        return Ok(End::Sent { interface: bridge.index, gateway: None });
    }
    let before = run.packet.destination();
    name_chains(run, plan, run.input);
    run.between = Some(Between { input: &port.name, outputs: Vec::new() });
    hook(run, plan, Hook::Prerouting)?;
    let next = if run.packet.destination() == before {
        if is_for_host { Next::Host(None) } else { Next::Port { gateway: None } }
    } else {
        translated(run, bridge)?
    };
    let gateway = match next {
        Next::Port { gateway } => gateway,
        Next::Host(route) => return routed(run, plan, route),
        Next::Discarded(discard) => return Ok(End::Discarded(discard)),
    };
    run.decisions.push(switched(bridge, port, true));
    let others = bridge.ports.iter().filter(|other| other.index != port.index);
    let outputs = others.map(|other| &*other.name).collect();
    run.between = Some(Between { input: &port.name, outputs });
    run.route = Some(Route::Forward { interface: bridge.index, gateway, source: None });
    run.output = run.input;
    hook(run, plan, Hook::Forward)?;
    run.input = None;
    hook(run, plan, Hook::Postrouting)?;
    Ok(End::Sent { interface: bridge.index, gateway })
}

fn switched(bridge: &Bridge, port: &Interface, filtered: bool) -> Decision {
    Decision::Switched { hook: Hook::Forward, bridge: bridge.index, port: port.index, filtered }
}

/// Where a packet goes that passed prerouting in a bridge.
enum Next {
    Port {
        gateway: Option<IpAddr>,
    },
    /// By this route, if it is known already.
    Host(Option<Route>),
    Discarded(Discard),
}

/// A packet whose destination was translated goes where its route says, which may be back to the bridge (`br_nf_pre_routing_finish`,
/// `br_nf_pre_routing_finish_ipv6`). IPv4 goes back there also where this host does not forward.
fn translated(run: &mut Run<'_>, bridge: &Bridge) -> Result<Next> {
    let found = match route(run, Some(bridge.index))? {
        Routed::To(found) => found,
        Routed::Discarded(discard) if run.packet.protocol == Protocol::Ipv4 && discard.reason == NOT_FORWARDED => {
            let destination = run.packet.destination();
            return Ok(match route_to(run, destination)? {
                Routed::To(Route::Forward { interface, gateway, .. }) if interface == bridge.index => {
                    Next::Port { gateway }
                }
                _ => Next::Discarded(discard),
            });
        }
        Routed::Discarded(discard) => return Ok(Next::Discarded(discard)),
    };
    Ok(match found {
        Route::Forward { interface, gateway, .. } if interface == bridge.index => Next::Port { gateway },
        other => Next::Host(Some(other)),
    })
}

/// By its Ethernet address. Where that is not known, by the host that its sender gave it to: one behind this bridge, or
/// this host. One that is neither by the routes of this host may be behind the bridge all the same, which needs no address
/// here, or this host answers for it. Where that is not known either, a packet whose destination is not behind this bridge
/// had to be given to this host. Of all others, nobody but their sender knows.
fn is_for_host(run: &mut Run<'_>, bridge: &Bridge) -> Result<bool> {
    let destination = run.packet.destination();
    let frame: Option<[u8; 6]> = run.packet.link.get(..6).and_then(|to| to.try_into().ok());
    let is_broadcast = matches!(destination, IpAddr::V4(address) if address.is_broadcast());
    if frame.map_or(is_broadcast || destination.is_multicast(), |to| to[0] & GROUP != 0) {
        run.add_gap(format!(
            "bridge {} hands a packet to a group to other ports, too, which is not evaluated",
            bridge.name
        ));
        return Ok(true);
    }
    if let Some(to) = frame {
        return Ok(bridge.own.contains(&to));
    }
    let question = format!("its sender gave the packet to another host at bridge {}, and not to this one", bridge.name);
    let is_for_another = match run.packet.next_hop {
        Some(hop) => is_behind(run, hop, bridge.index)? || (!is_own(run, hop)? && run.decide(&question)),
        None => is_behind(run, destination, bridge.index)? && run.decide(&question),
    };
    Ok(!is_for_another)
}
