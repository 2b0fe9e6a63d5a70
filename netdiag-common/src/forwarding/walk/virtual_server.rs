//! What IPVS does at its hooks: it sends packets for virtual servers to real ones, and gives answers of real servers the
//! virtual address (`ip_vs_in` and `ip_vs_out` in ip_vs_core.c, `ip_vs_nat_xmit` in ip_vs_xmit.c, of Linux 5.10 and 6.1).
//!
//! A real server elsewhere: its packets pass neither the rest of this hook nor forward, but output from the beginning and then
//! postrouting. One on this host: the packet goes on where it is. Either way IPVS leaves it alone from then on.

use std::net::SocketAddr;

use super::route::{Routed, route_to};
use super::{interface_of, reroute, size, spend_hop};
use crate::forwarding::conntrack::{Connection, Direction, Newcomer, Tuple, newcomer, status};
use crate::forwarding::expression::NatKind;
use crate::forwarding::fact::Fact;
use crate::forwarding::machine::{Result, Run, Stop, Tracking};
use crate::forwarding::packet::{Packet, Protocol, TCP, UDP, octets};
use crate::forwarding::path::{Decision, End, Reject};
use crate::forwarding::state::{Hook, Route};
use crate::forwarding::virtual_server::{
    ForwardingMethod, RealServer, VirtualServer, VirtualServerKey, is_balanced, real_server,
};

/// Flags of TCP.
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

/// Whether the packet goes on through the hook that it is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    On,
    /// IPVS sends it, from output on.
    Resent,
}

/// `ip_vs_in`
pub(super) fn request(run: &mut Run<'_>) -> Result<Passed> {
    // What arrives for everybody is nobody's (`PACKET_HOST`).
    let is_for_all = run.hook == Hook::Input && run.packet.kind.known().is_some_and(|kind| *kind != 0);
    if run.balanced || is_for_all {
        return Ok(Passed::On);
    }
    let Some((protocol, _)) = balanced(run) else { return Ok(Passed::On) };
    let (_, Some(port)) = run.packet.known_ports() else {
        run.add_gap(
            "whether the packet is for a virtual server of IPVS is not known: its destination port is not known",
        );
        return Ok(Passed::On);
    };
    let Some((key, own_port, server)) = find(run, protocol, port)? else { return Ok(Passed::On) };
    match connection(run)? {
        Seen::Answer => Ok(Passed::On),
        Seen::Known(real) => {
            decide(run, key, server, Some(real), None);
            send(run, real, server)
        }
        Seen::New if protocol == TCP && !begins(run)? => Ok(Passed::On),
        Seen::New => {
            let Some((real, of)) = choose(run, key, server) else {
                decide(run, key, server, None, None);
                return Err(Stop::End(refused(run)));
            };
            // A catch-all of clients that stay, and a server of a mark, keep the port (`ip_vs_sched_persist`).
            let keeps = real.port == 0 || (server.persistent && own_port != port);
            let to = SocketAddr::new(real.address, if keeps { port } else { real.port });
            decide(run, key, server, Some(to), Some(of));
            match real.method {
                ForwardingMethod::Masquerading => send(run, to, server),
                ForwardingMethod::Local => {
                    run.balanced = true;
                    Ok(Passed::On)
                }
                method => Err(run.unknown(format!("{to} gets its packets by {method}, which is not evaluated"))),
            }
        }
    }
}

/// `ip_vs_out`
pub(super) fn reply(run: &mut Run<'_>) -> Result<()> {
    if run.balanced {
        return Ok(());
    }
    let Some((protocol, flags)) = balanced(run) else { return Ok(()) };
    // The first packet of a connection answers nothing.
    if protocol == TCP && flags & (SYN | ACK) == SYN {
        return Ok(());
    }
    let settings = run.state.virtual_settings()?;
    let entry = match &run.tracking {
        Tracking::Tracked(tracked) if settings.conntrack => &tracked.entry,
        _ => {
            run.add_gap(
                "whether the packet answers for a virtual server is not known: connections of IPVS are not read",
            );
            return Ok(());
        }
    };
    if entry.direction != Direction::Reply || real_server(entry).is_none() {
        return Ok(());
    }
    let dialled = SocketAddr::new(entry.original.destination, entry.original.destination_port);
    rewrite(run, NatKind::Source, dialled);
    run.balanced = true;
    // `ip_vs_route_me_harder`
    if settings.snat_reroute && run.hook != Hook::Input && !matches!(run.route, Some(Route::Local { .. })) {
        reroute(run)?;
    }
    Ok(())
}

/// Protocol and flags of TCP of a packet that IPVS knows by its ports.
fn balanced(run: &mut Run<'_>) -> Option<(u8, u8)> {
    if newcomer(&run.packet) == Newcomer::Error {
        run.add_gap("what IPVS does with ICMP errors is not evaluated");
        return None;
    }
    run.packet.ports()?;
    let transport = run.packet.transport().filter(|transport| is_balanced(transport.protocol))?;
    let flags = if transport.protocol == TCP { flags(&run.packet, transport.offset) } else { 0 };
    Some((transport.protocol, flags))
}

fn flags(packet: &Packet, offset: usize) -> u8 {
    packet.bytes.get(offset + 13).copied().unwrap_or(0)
}

/// `ip_vs_service_find`: by the mark, by address and port, by address alone. Also the port that it is known by.
fn find<'a>(run: &mut Run<'a>, protocol: u8, port: u16) -> Result<Option<(VirtualServerKey, u16, &'a VirtualServer)>> {
    let mark = match run.packet.mark.clone() {
        Fact::Known(mark) => mark,
        Fact::Unknown(why) => {
            if !run.decide("no virtual server of IPVS is for the packet's mark") {
                return Err(run.unknown(format!("a virtual server may be for the packet's mark, and {why}")));
            }
            0
        }
    };
    let of_mark = (mark != 0).then_some((VirtualServerKey::Mark { protocol: run.packet.protocol, mark }, 0));
    let address = run.packet.destination();
    let of_address = [port, 0].map(|port| (VirtualServerKey::Address { address, protocol, port }, port));
    let state = run.state;
    for (key, own_port) in of_mark.into_iter().chain(of_address) {
        if let Some(server) = state.virtual_server(&key)? {
            return Ok(Some((key, own_port, server)));
        }
    }
    Ok(None)
}

/// What is known of a packet's connection for a virtual server.
enum Seen {
    New,
    /// Its real server.
    Known(SocketAddr),
    /// The packet is the other end's.
    Answer,
}

fn connection(run: &mut Run<'_>) -> Result<Seen> {
    const UNREAD: &str = "the packet is of a connection that was there before, and those of IPVS are not read";
    let why = match (&run.tracking, &run.packet.connection) {
        (Tracking::Tracked(tracked), _) if tracked.new => return Ok(Seen::New),
        (Tracking::Tracked(tracked), _) if tracked.entry.direction == Direction::Reply => return Ok(Seen::Answer),
        (Tracking::Tracked(tracked), _) => {
            return real_server(&tracked.entry).map(Seen::Known).ok_or_else(|| run.unknown(UNREAD));
        }
        (Tracking::Unknown(why), _) | (_, Fact::Unknown(why)) => why.clone(),
        (_, Fact::Known(Connection::New)) => return Ok(Seen::New),
        (_, Fact::Known(Connection::Existing(_))) => return Err(run.unknown(UNREAD)),
    };
    if run.decide("the packet begins a connection of IPVS") {
        return Ok(Seen::New);
    }
    Err(run.unknown(format!("connections of IPVS are not read, and {why}")))
}

/// `tcp_conn_schedule`. What begins none goes on to this host, unless it is of a connection that nobody else has.
fn begins(run: &Run<'_>) -> Result<bool> {
    let settings = run.state.virtual_settings()?;
    let offset = run.packet.transport().map_or(0, |transport| transport.offset);
    let flags = flags(&run.packet, offset);
    if flags & RST == 0 && (settings.sloppy_tcp || flags & SYN != 0) {
        return Ok(true);
    }
    if settings.conntrack && matches!(run.tracking, Tracking::Tracked(_)) {
        return Ok(false);
    }
    Err(run.unknown("the packet begins no connection, and those of IPVS are not read"))
}

/// One of the real servers that take connections, its place among them from 1, and how many they are. `ip_vs_rr_schedule`
/// takes one after the other and `ip_vs_wrr_schedule` each as often as its weight says, so that of many connections each
/// gets its share; where they are in their turn is not shown. Other schedulers look at connections and hashes.
fn choose<'a>(
    run: &mut Run<'_>,
    key: VirtualServerKey,
    server: &'a VirtualServer,
) -> Option<(&'a RealServer, (usize, usize))> {
    let taking: Vec<&RealServer> = server.destinations.iter().filter(|real| real.weight > 0).collect();
    if taking.is_empty() {
        return None;
    }
    let scheduler = format!("scheduler {} of virtual server {key}", server.scheduler);
    if server.persistent {
        run.add_gap(format!("clients of virtual server {key} stay with a real server, and with which one is not read"));
    }
    let in_turn = !server.persistent && !taking.iter().any(|real| real.limited);
    let taken = match server.scheduler.as_str() {
        "rr" if in_turn => run.draw_weighted(&scheduler, &vec![1; taking.len()]),
        "wrr" if in_turn => run.draw_weighted(&scheduler, &taking.iter().map(|real| real.weight).collect::<Vec<_>>()),
        _ => {
            let last = taking.len() - 1;
            let question =
                |real: &RealServer| format!("the {scheduler} chooses {}", SocketAddr::new(real.address, real.port));
            (0..last).find(|at| run.decide(&question(taking[*at]))).unwrap_or(last)
        }
    };
    Some((taking[taken], (taken + 1, taking.len())))
}

fn decide(
    run: &mut Run<'_>,
    key: VirtualServerKey,
    server: &VirtualServer,
    to: Option<SocketAddr>,
    of: Option<(usize, usize)>,
) {
    let scheduler = server.scheduler.clone();
    run.decisions.push(Decision::Scheduled { hook: run.hook, server: key, scheduler, to, of });
}

/// `ip_vs_leave`: port unreachable, of TCP too.
fn refused(run: &Run<'_>) -> End {
    let (kind, code) = if run.packet.protocol == Protocol::Ipv4 { (3, 3) } else { (1, 4) };
    End::Rejected { by: run.place(), with: Reject::Unreachable { kind, code } }
}

/// `ip_vs_nat_xmit`, `ip_vs_nat_xmit_v6`
fn send(run: &mut Run<'_>, real: SocketAddr, server: &VirtualServer) -> Result<Passed> {
    let settings = run.state.virtual_settings()?;
    let route = match route_to(run, real.ip())? {
        Routed::To(route) => route,
        Routed::Discarded(discard) => Route::Refused { why: discard.why },
    };
    let is_local = match &route {
        Route::Local { .. } => true,
        Route::Forward { .. } => false,
        Route::Refused { why } => return Err(Stop::End(End::NoRoute { why: why.clone() })),
        Route::Unfollowed { why } => return Err(run.unknown(why.clone())),
    };
    // Packets from elsewhere do not get to addresses of the host itself, and packets from those do not get elsewhere
    // (`crosses_local_route_boundary`).
    let crosses =
        if is_local { run.hook == Hook::Input && real.ip().is_loopback() } else { run.packet.source().is_loopback() };
    if crosses {
        return Err(Stop::End(End::Dropped { by: run.place() }));
    }
    if let Some(interface) = interface_of(&route).filter(|_| !is_local) {
        // `decrement_ttl`
        if run.packet.hops_left() <= 1 {
            return Err(Stop::End(End::HopsExhausted));
        }
        spend_hop(&mut run.packet);
        if let Some(end) = size::scheduled(run, interface)? {
            return Err(Stop::End(end));
        }
        run.output = run.state.interface(interface)?;
    }
    rewrite(run, NatKind::Destination, real);
    keep(run, real, settings.conntrack, server.one_packet);
    run.balanced = true;
    if is_local {
        return Ok(Passed::On);
    }
    run.route = Some(route);
    Ok(Passed::Resent)
}

/// `ip_vs_update_conntrack`, or `ip_vs_notrack` where conntrack is to know nothing of IPVS.
fn keep(run: &mut Run<'_>, real: SocketAddr, conntrack: bool, one_packet: bool) {
    match &mut run.tracking {
        Tracking::Tracked(_) | Tracking::Template { .. } if !conntrack => run.tracking = Tracking::Untracked,
        Tracking::Tracked(tracked) => {
            let entry = &mut tracked.entry;
            let is_settled = entry.status & status::CONFIRMED != 0 || entry.direction == Direction::Reply;
            if !(is_settled || one_packet && entry.original.protocol == UDP) {
                (entry.reply.source, entry.reply.source_port) = (real.ip(), real.port());
            }
        }
        _ => {}
    }
}

/// `tcp_dnat_handler`, `tcp_snat_handler` and their like.
fn rewrite(run: &mut Run<'_>, end: NatKind, to: SocketAddr) {
    let Some(from) = Tuple::of(&run.packet) else { return };
    let (address_at, port_at) = match (end, run.packet.protocol) {
        (NatKind::Source, Protocol::Ipv4) => (12, 0),
        (NatKind::Source, Protocol::Ipv6) => (8, 0),
        (NatKind::Destination, Protocol::Ipv4) => (16, 2),
        (NatKind::Destination, Protocol::Ipv6) => (24, 2),
    };
    run.packet.write(address_at, &octets(to.ip()));
    if let Some(transport) = run.packet.transport() {
        run.packet.write(transport.offset + port_at, &to.port().to_be_bytes());
    }
    if let Some(to) = Tuple::of(&run.packet)
        && to != from
    {
        run.decisions.push(Decision::Translated { hook: run.hook, from, to });
    }
}
