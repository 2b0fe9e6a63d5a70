//! Packets of connections that a flowtable has: forwarded from the device on, past all other hooks (`nf_flow_table_inet.c`,
//! `nf_flow_table_ip.c`, Linux 6.18).

use super::route::{Routed, route};
use super::{size, spend_hop};
use crate::forwarding::conntrack::{Connection, State, status};
use crate::forwarding::expression::NatKind;
use crate::forwarding::fact::Fact;
use crate::forwarding::flowtable::Flowtable;
use crate::forwarding::machine::{Result, Run, TrackedEntry, Tracking, UnknownPorts};
use crate::forwarding::packet::{Packet, Protocol, TCP, flag};
use crate::forwarding::path::{Decision, End, FlowStep};
use crate::forwarding::state::{Hook, Route};

const ROUTE_OF_NOW: &str = "the route that a flowtable keeps for a connection is not shown; that of now was evaluated";

/// `nf_flow_offload_ip_hook`, `nf_flow_offload_ipv6_hook`: where the packet goes; none when it is left to the rules.
pub(super) fn forwarded(run: &mut Run<'_>) -> Result<Option<End>> {
    let (Fact::Known(Connection::Existing(entry)), Some(input)) = (run.packet.connection.clone(), run.input) else {
        return Ok(None);
    };
    if entry.status & status::OFFLOADED == 0 || !is_forwardable(&run.packet) {
        return Ok(None);
    }
    let (state, protocol) = (run.state, run.packet.protocol);
    let all = state.flowtables()?.iter().filter(|flowtable| flowtable.family.sees(protocol));
    let (here, elsewhere): (Vec<&Flowtable>, Vec<&Flowtable>) = all.partition(|own| own.is_at(&input.name));
    let Some(flowtable) = here.first() else { return Ok(None) };
    run.hook = Hook::Ingress;
    // Which of several has the connection is not shown.
    if !elsewhere.is_empty() && !run.decide(&format!("a flowtable at {} has the connection", input.name)) {
        return Ok(None);
    }
    let question = "the flowtable still forwards packets that begin or end their connection";
    if is_of_another_state(&run.packet) && !run.decide(question) {
        return Ok(None);
    }
    let (packet, decisions, gaps) = (run.packet.clone(), run.decisions.len(), run.gaps.len());
    run.decisions.push(Decision::Flowtable {
        hook: run.hook,
        flowtable: flowtable.to_string(),
        devices: flowtable.device_words(),
        step: FlowStep::Forwarded,
    });
    let unknown_ports = UnknownPorts::default();
    run.tracking =
        Tracking::Tracked(Box::new(TrackedEntry { state: State::Established, entry, new: false, unknown_ports }));
    run.apply_translation(NatKind::Destination);
    let routed = route(run, Some(input.index))?;
    run.apply_translation(NatKind::Source);
    let Routed::To(Route::Forward { interface, gateway, .. }) = routed else {
        return Err(run.unknown("a flowtable has a route for the packet that is not there any more"));
    };
    if size::exceeds(run, interface)? {
        // Rules and routing see to it.
        run.packet = packet;
        run.decisions.truncate(decisions);
        run.gaps.truncate(gaps);
        run.tracking = Tracking::Unseen;
        return Ok(None);
    }
    spend_hop(&mut run.packet);
    run.gaps.push(ROUTE_OF_NOW.into());
    Ok(Some(size::left(run, interface)?.unwrap_or(End::Sent { interface, gateway })))
}

/// `nf_flow_tuple_ip`, `nf_flow_tuple_ipv6`: whole packets without options.
fn is_forwardable(packet: &Packet) -> bool {
    /// `IP_MF | IP_OFFSET`
    const FRAGMENT: u16 = 0x3fff;
    let Some(transport) = packet.transport() else { return false };
    let is_plain = match packet.protocol {
        Protocol::Ipv4 => transport.offset == 20 && packet.number(6).is_some_and(|flags| flags & FRAGMENT == 0),
        Protocol::Ipv6 => transport.offset == 40,
    };
    is_plain && packet.hops_left() > 1
}

/// A segment that begins or ends a connection. One that ends it goes back to the rules in kernels before the state `CLOSING` of
/// flowtables, and is forwarded by those that have it; one that begins it again goes back when the end was seen
/// (`nf_flow_state_check`).
fn is_of_another_state(packet: &Packet) -> bool {
    const OTHERS: u8 = flag::SYN | flag::FIN | flag::RST;
    let segment = packet.transport().filter(|transport| transport.protocol == TCP);
    segment.is_some_and(|tcp| packet.bytes.get(tcp.offset + 13).is_none_or(|flags| flags & OTHERS != 0))
}
