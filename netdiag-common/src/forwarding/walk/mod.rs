//! The way of a packet through hooks and routing.
//!
//! ```text
//! received ─ prerouting ─ route ┬─ input
//!                               └─ forward ─┐
//! sent ─ route ─ output ───────── route ────┴─ postrouting ─ out, or over lo to prerouting
//! ```

mod chain;
mod order;
mod plan;
mod tracking;

pub(super) use self::plan::Plan;

use self::plan::Call;
use super::fact::Fact;
use super::machine::{Result, Run, Stop};
use super::packet::{Origin, Packet, Protocol};
use super::path::{Decision, End};
use super::state::{Hook, Route, RouteQuery};

/// Runs the packet to its end.
pub(super) fn walk<'a>(run: &mut Run<'a>, plan: &Plan<'a>) -> Result<End> {
    run.gaps.clone_from(&plan.gaps);
    match run.packet.origin {
        Origin::Received { interface } => {
            run.input = run.state.interface(interface)?;
            if run.input.is_none() {
                return Err(run.unknown(format!("interface {interface} is not there")));
            }
            received(run, plan, None)
        }
        Origin::Sent => sent(run, plan),
    }
}

/// From prerouting on. A packet that came back over lo keeps the route it was sent by.
fn received<'a>(run: &mut Run<'a>, plan: &Plan<'a>, kept: Option<&'a Route>) -> Result<End> {
    let before = run.packet.destination();
    run.route = kept;
    run.output = None;
    hook(run, plan, Hook::Prerouting)?;
    let route = match kept {
        Some(route) if run.packet.destination() == before => route,
        _ => route(run, run.input.map(|input| input.index))?,
    };
    run.route = Some(route);
    match route {
        Route::Local { .. } => {
            hook(run, plan, Hook::Input)?;
            Ok(End::Delivered)
        }
        Route::Forward { interface, .. } => {
            if run.packet.hops_left() <= 1 {
                return Ok(End::HopsExhausted);
            }
            forwarded(&mut run.packet);
            run.output = run.state.interface(*interface)?;
            hook(run, plan, Hook::Forward)?;
            leave(run, plan)
        }
        Route::Refused { why } => Ok(End::NoRoute { why: why.clone() }),
        Route::Unfollowed { why } => Err(run.unknown(why.clone())),
    }
}

/// What forwarding changes before its hook: `ip_forward`, `ip6_forward`.
fn forwarded(packet: &mut Packet) {
    /// `ip_tos2prio`, by pairs of values of the type of service.
    const PRIORITY: [u32; 8] = [0, 0, 2, 2, 6, 6, 4, 4];
    let hops = packet.hops_left().saturating_sub(1);
    match packet.protocol {
        Protocol::Ipv4 => {
            packet.write(8, &[hops]);
            packet.priority = Fact::Known(PRIORITY[usize::from(packet.service() & 0x1e) >> 2]);
        }
        Protocol::Ipv6 => packet.write(7, &[hops]),
    }
}

fn sent<'a>(run: &mut Run<'a>, plan: &Plan<'a>) -> Result<End> {
    set_route(run)?;
    if let Some(end) = refusal(run)? {
        return Ok(end);
    }
    hook(run, plan, Hook::Output)?;
    if let Some(end) = refusal(run)? {
        return Ok(end);
    }
    // The hook itself keeps the interface it began with; what follows uses the route of now.
    let output = run.route.and_then(interface_of);
    run.output = output.map(|index| run.state.interface(index)).transpose()?.flatten();
    leave(run, plan)
}

fn leave<'a>(run: &mut Run<'a>, plan: &Plan<'a>) -> Result<End> {
    hook(run, plan, Hook::Postrouting)?;
    match run.route {
        Some(Route::Forward { interface, gateway, .. }) => Ok(End::Sent { interface: *interface, gateway: *gateway }),
        Some(local @ Route::Local { .. }) => {
            run.input = run.output;
            received(run, plan, Some(local))
        }
        _ => Err(run.unknown("the packet left without a route")),
    }
}

fn refusal(run: &Run<'_>) -> Result<Option<End>> {
    match run.route {
        Some(Route::Refused { why }) => Ok(Some(End::NoRoute { why: why.clone() })),
        Some(Route::Unfollowed { why }) => Err(run.unknown(why.clone())),
        _ => Ok(None),
    }
}

fn set_route(run: &mut Run<'_>) -> Result<()> {
    let route = route(run, None)?;
    let index = interface_of(route);
    run.route = Some(route);
    run.output = index.map(|index| run.state.interface(index)).transpose()?.flatten();
    Ok(())
}

fn interface_of(route: &Route) -> Option<u32> {
    match route {
        Route::Local { interface } | Route::Forward { interface, .. } => Some(*interface),
        Route::Refused { .. } | Route::Unfollowed { .. } => None,
    }
}

fn route<'a>(run: &mut Run<'a>, input: Option<u32>) -> Result<&'a Route> {
    let mark = match run.packet.mark.clone() {
        Fact::Known(mark) => mark,
        Fact::Unknown(why) => {
            if !run.decide("no routing rule asks for the packet's mark") {
                return Err(run.unknown(format!("the route may depend on the mark, and {why}")));
            }
            0
        }
    };
    let uid = match &run.packet.socket {
        Fact::Known(Some(socket)) if input.is_none() => socket.uid.known().copied(),
        _ => None,
    };
    let query = RouteQuery {
        destination: run.packet.destination(),
        source: Some(run.packet.source()),
        input,
        mark,
        service: if run.packet.protocol == Protocol::Ipv4 { run.packet.service() & 0xfc } else { 0 },
        protocol: run.packet.transport().map_or(0, |transport| transport.protocol),
        ports: run.packet.ports(),
        uid,
    };
    let route = run.state.route(&query)?;
    run.decisions.push(Decision::Routed { hook: run.hook, route: route.clone() });
    Ok(route)
}

fn hook<'a>(run: &mut Run<'a>, plan: &Plan<'a>, hook: Hook) -> Result<()> {
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
            Call::Chains(chains) => {
                for chain in order::decided(run, chains)? {
                    chain::filter(run, chain)?;
                }
            }
            Call::Foreign(foreign) => {
                let gap = format!("{} at {hook} is not evaluated", foreign.what);
                if !run.gaps.contains(&gap) {
                    run.gaps.push(gap);
                }
            }
        }
        (run.chain, run.handle) = (None, None);
    }
    (run.input, run.output) = (input, output);
    Ok(())
}

/// `ip_route_me_harder`
fn reroute(run: &mut Run<'_>) -> Result<()> {
    let route = route(run, None)?;
    run.route = Some(route);
    match route {
        Route::Refused { .. } => Err(Stop::End(End::Dropped { by: run.place() })),
        _ => Ok(()),
    }
}
