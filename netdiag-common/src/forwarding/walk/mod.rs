//! The way of a packet through hooks and routing.
//!
//! ```text
//! received ─ ingress, where a flowtable may forward it ─ out
//! received ─ prerouting ─ route ┬─ input
//!                               └─ forward ─┐
//! sent ─ route ─ output ───────── route ────┴─ postrouting ─ out, or over lo to prerouting
//! ```
//!
//! What comes in by a port of a bridge is handed to another port past all of this, or through prerouting, forward and postrouting
//! ([`bridge`]), or is this host's. What IPVS takes at input or output leaves the hook there for its real server, and begins anew at output.

mod bridge;
mod chain;
mod offload;
mod order;
mod plan;
mod queue;
mod route;
mod size;
mod tracking;
mod virtual_server;
mod window;

pub(super) use self::plan::Plan;

use self::plan::Call;
use self::route::{Routed, route};
use self::virtual_server::Passed;
use super::fact::Fact;
use super::machine::{PacketSocket, Result, Run, Stop};
use super::packet::{Origin, Packet, Protocol};
use super::path::End;
use super::routing::Discard;
use super::state::{Hook, Route};

/// Runs the packet to its end.
pub(super) fn walk<'a>(run: &mut Run<'a>, plan: &Plan<'a>) -> Result<End> {
    run.gaps.clone_from(&plan.gaps);
    match run.packet.origin {
        Origin::Received { interface } => {
            run.input = run.state.interface(interface)?;
            if run.input.is_none() {
                return Err(run.unknown(format!("interface {interface} is not there")));
            }
            match offload::forwarded(run)? {
                Some(end) => Ok(end),
                None => match run.state.bridge_of(interface)? {
                    Some(bridge) => bridge::received(run, plan, bridge),
                    None => received(run, plan, None),
                },
            }
        }
        Origin::Sent => sent(run, plan),
    }
}

/// From prerouting on. A packet that came back over lo keeps the route it was sent by.
fn received<'a>(run: &mut Run<'a>, plan: &Plan<'a>, kept: Option<Route>) -> Result<End> {
    let before = run.packet.destination();
    run.route.clone_from(&kept);
    run.output = None;
    bridge::name_chains(run, plan, run.input);
    hook(run, plan, Hook::Prerouting)?;
    let kept = kept.filter(|_| run.packet.destination() == before);
    routed(run, plan, kept)
}

/// From the routing decision on, unless it is made already.
fn routed<'a>(run: &mut Run<'a>, plan: &Plan<'a>, decided: Option<Route>) -> Result<End> {
    let route = match decided {
        Some(route) => route,
        None => match route(run, run.input.map(|input| input.index))? {
            Routed::To(route) => route,
            Routed::Discarded(discard) => return Ok(End::Discarded(discard)),
        },
    };
    run.route = Some(route.clone());
    match route {
        Route::Local { .. } => match hook(run, plan, Hook::Input)? {
            Passed::On => delivered(run),
            Passed::Resent => output(run, plan),
        },
        Route::Forward { interface, .. } => {
            if run.given_socket.is_some() {
                return Ok(End::Discarded(never_forwarded(run.packet.protocol)));
            }
            if run.packet.hops_left() <= 1 {
                return Ok(End::HopsExhausted);
            }
            if let Some(end) = size::forwarded(run, interface)? {
                return Ok(end);
            }
            forwarded(&mut run.packet);
            run.output = run.state.interface(interface)?;
            hook(run, plan, Hook::Forward)?;
            // Answers of real servers are routed anew there.
            set_output(run)?;
            leave(run, plan)
        }
        Route::Refused { why } => Ok(End::NoRoute { why }),
        Route::Unfollowed { why } => Err(run.unknown(why)),
    }
}

/// Whoever asks next who takes it would ask for the socket of its own address, and not for that of a proxy.
fn delivered(run: &Run<'_>) -> Result<End> {
    match &run.given_socket {
        Some(PacketSocket::Given(why)) => {
            Err(run.unknown(format!("it goes to a transparent proxy, and which socket that has is not known: {why}")))
        }
        _ => Ok(End::Delivered),
    }
}

/// `ip_forward`, `ip6_forward`: no packet that has a socket is forwarded.
fn never_forwarded(protocol: Protocol) -> Discard {
    let function = if protocol == Protocol::Ipv4 { "ip_forward" } else { "ip6_forward" };
    let why = "a rule gave it a transparent proxy's socket, but its route does not lead to this host".into();
    Discard { reason: "NOT_SPECIFIED".into(), function: function.into(), why }
}

/// What forwarding changes before its hook: `ip_forward`, `ip6_forward`.
fn forwarded(packet: &mut Packet) {
    /// `ip_tos2prio`, by pairs of values of the type of service.
    const PRIORITY: [u32; 8] = [0, 0, 2, 2, 6, 6, 4, 4];
    spend_hop(packet);
    if packet.protocol == Protocol::Ipv4 {
        packet.priority = Fact::Known(PRIORITY[usize::from(packet.service() & 0x1e) >> 2]);
    }
}

fn spend_hop(packet: &mut Packet) {
    let hops = packet.hops_left().saturating_sub(1);
    packet.write(if packet.protocol == Protocol::Ipv4 { 8 } else { 7 }, &[hops]);
}

fn sent<'a>(run: &mut Run<'a>, plan: &Plan<'a>) -> Result<End> {
    set_route(run)?;
    if let Some(end) = refusal(run)? {
        return Ok(end);
    }
    output(run, plan)
}

/// From output on. What IPVS sends to a real server begins there once more (`ip_vs_nat_send_or_cont`).
fn output<'a>(run: &mut Run<'a>, plan: &Plan<'a>) -> Result<End> {
    if hook(run, plan, Hook::Output)? == Passed::Resent {
        return output(run, plan);
    }
    if let Some(end) = refusal(run)? {
        return Ok(end);
    }
    // The hook itself keeps the interface it began with; what follows uses the route of now.
    set_output(run)?;
    leave(run, plan)
}

fn leave<'a>(run: &mut Run<'a>, plan: &Plan<'a>) -> Result<End> {
    hook(run, plan, Hook::Postrouting)?;
    bridge::name_chains(run, plan, run.output);
    match run.route.clone() {
        Some(Route::Forward { interface, gateway, .. }) => {
            Ok(size::left(run, interface)?.unwrap_or(End::Sent { interface, gateway }))
        }
        Some(local @ Route::Local { .. }) => {
            run.input = run.output;
            received(run, plan, Some(local))
        }
        _ => Err(run.unknown("the packet left without a route")),
    }
}

fn refusal(run: &Run<'_>) -> Result<Option<End>> {
    match &run.route {
        Some(Route::Refused { why }) => Ok(Some(End::NoRoute { why: why.clone() })),
        Some(Route::Unfollowed { why }) => Err(run.unknown(why.clone())),
        _ => Ok(None),
    }
}

fn set_route(run: &mut Run<'_>) -> Result<()> {
    run.route = Some(own_route(run)?);
    set_output(run)
}

fn set_output(run: &mut Run<'_>) -> Result<()> {
    let index = run.route.as_ref().and_then(interface_of);
    run.output = index.map(|index| run.state.interface(index)).transpose()?.flatten();
    Ok(())
}

fn interface_of(route: &Route) -> Option<u32> {
    match route {
        Route::Local { interface } | Route::Forward { interface, .. } => Some(*interface),
        Route::Refused { .. } | Route::Unfollowed { .. } => None,
    }
}

/// Of a packet of this host, which is discarded by no more than its route.
fn own_route(run: &mut Run<'_>) -> Result<Route> {
    Ok(match route(run, None)? {
        Routed::To(route) => route,
        Routed::Discarded(discard) => Route::Refused { why: discard.why },
    })
}

fn hook<'a>(run: &mut Run<'a>, plan: &Plan<'a>, hook: Hook) -> Result<Passed> {
    run.hook = hook;
    // Input and output interface as the hook itself sees them.
    let (input, output) = (run.input, run.output);
    if hook == Hook::Output {
        run.input = None;
    }
    for call in plan.at(hook) {
        match call {
            Call::Conntrack => tracking::track(run)?,
            Call::Confirm => tracking::confirm(run),
            Call::Nat(chains) => tracking::translate(run, chains)?,
            Call::VirtualReply => virtual_server::reply(run)?,
            Call::VirtualRequest => {
                if virtual_server::request(run)? == Passed::Resent {
                    run.input = input;
                    return Ok(Passed::Resent);
                }
            }
            Call::Chains(chains) => {
                for chain in order::decided(run, chains)? {
                    chain::filter(run, chain)?;
                }
            }
            Call::Foreign(foreign) => {
                run.add_gap(format!("{} at {hook} is not evaluated", foreign.what));
            }
        }
        (run.chain, run.handle) = (None, None);
    }
    (run.input, run.output) = (input, output);
    Ok(Passed::On)
}

/// `ip_route_me_harder`
fn reroute(run: &mut Run<'_>) -> Result<()> {
    let route = own_route(run)?;
    run.route = Some(route.clone());
    match route {
        Route::Refused { .. } => Err(Stop::End(End::Dropped { by: run.place() })),
        _ => Ok(()),
    }
}
