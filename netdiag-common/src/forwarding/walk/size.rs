//! Whether the packet fits through the route that it takes, as `ip_forward`, `ip6_forward`, `ip_finish_output` and
//! `____dev_forward_skb` see it (Linux 6.18).
//!
//! Path MTUs that were learned from answers of routers are not read: the kernel uses them for packets of its own only, unless
//! `net.ipv4.ip_forward_use_pmtu` is set. A packet of its own that is long enough for one to matter names that. Segments that
//! are joined for the way through this host (GRO) have the size of each.

use crate::forwarding::machine::{Result, Run};
use crate::forwarding::packet::{Origin, Protocol};
use crate::forwarding::path::{Decision, End, Reject, Size};
use crate::forwarding::routing::{RoutedInterface, TableRoute};

/// `IP_MAX_MTU`
const MOST: u32 = 0xffff;

/// `IPV6_MIN_MTU`: a link with less has no IPv6.
const LEAST_IPV6: u32 = 1280;

/// `net.ipv4.route.min_pmtu`, as it is unless somebody sets it: no path MTU of IPv4 is learned below. Of IPv6 none is below
/// [`LEAST_IPV6`].
const LEAST_LEARNED_IPV4: u32 = 552;

/// What a device takes beyond its MTU from another one: the tag of a VLAN (`__is_skb_forwardable`).
const VLAN_BYTES: u32 = 4;

struct Mtu {
    bytes: u32,
    by_route: bool,
}

/// A packet that passes through, before the hook forward (`ip_exceeds_mtu`, `ip6_pkt_too_big`).
pub(super) fn forwarded(run: &mut Run<'_>, interface: u32) -> Result<Option<End>> {
    refused_if_long(run, interface, true)
}

/// A packet that IPVS sends to a real server, by the MTU of its route whoever sent it (`ensure_mtu_is_adequate`).
pub(super) fn scheduled(run: &mut Run<'_>, interface: u32) -> Result<Option<End>> {
    refused_if_long(run, interface, false)
}

fn refused_if_long(run: &mut Run<'_>, interface: u32, passes_through: bool) -> Result<Option<End>> {
    let Some(mtu) = mtu(run, interface, passes_through)? else { return Ok(None) };
    if run.packet.length <= mtu.bytes || may_be_fragmented(run) {
        return Ok(None);
    }
    Ok(Some(refused(run, interface, mtu.bytes)))
}

/// Whether a packet that passes through is longer than what leaves by the route.
pub(super) fn exceeds(run: &Run<'_>, interface: u32) -> Result<bool> {
    Ok(mtu(run, interface, true)?.is_some_and(|mtu| run.packet.length > mtu.bytes))
}

/// Fragmentation needed (RFC 792), packet too big (RFC 4443).
fn refused(run: &Run<'_>, interface: u32, mtu: u32) -> End {
    let (kind, code) = if run.packet.protocol == Protocol::Ipv4 { (3, 4) } else { (2, 0) };
    End::TooBig { interface, mtu, with: Some(Reject::Unreachable { kind, code }) }
}

/// A packet that leaves, behind its last hook.
pub(super) fn left(run: &mut Run<'_>, interface: u32) -> Result<Option<End>> {
    let passes_through = run.packet.origin != Origin::Sent;
    let is_ipv6 = run.packet.protocol == Protocol::Ipv6;
    // IPv6 looks again here, now by the route, and fragments nothing of others (`ip6_finish_output`, `ip6_fragment`).
    let Some(Mtu { bytes, by_route }) = mtu(run, interface, passes_through && !is_ipv6)? else { return Ok(None) };
    let length = run.packet.length;
    if is_ipv6 && passes_through && length > bytes {
        return Ok(Some(refused(run, interface, bytes)));
    }
    // What this host sends itself is divided by its socket, or by IP on its way out.
    let size = if length <= bytes { Size::Fits } else { Size::Fragmented };
    run.decisions.push(Decision::Measured { hook: run.hook, interface, mtu: bytes, by_route, length, size });
    let least_learned = if is_ipv6 { LEAST_IPV6 } else { LEAST_LEARNED_IPV4 };
    if size == Size::Fragmented {
        run.add_gap(
            "the packet leaves in pieces: on its further way, rules of a host that does not track connections see each of them, and \
             ports in the first one only",
        );
    } else if !passes_through && length > least_learned {
        run.add_gap("a path MTU that was learned for the destination is not read: where it is less, the packet leaves in pieces");
    }
    let largest = if size == Size::Fits { length } else { piece(run.packet.protocol, bytes) };
    let peer = run.state.routed_interface(interface)?.and_then(|routed| routed.peer_mtu);
    let is_refused = |peer: &u32| largest > peer.saturating_add(VLAN_BYTES);
    Ok(peer.filter(is_refused).map(|mtu| End::TooBig { interface, mtu, with: None }))
}

/// None where it is not known.
fn mtu(run: &Run<'_>, interface: u32, passes_through: bool) -> Result<Option<Mtu>> {
    let Some(routed) = run.state.routed_interface(interface)?.filter(|routed| routed.mtu != 0) else { return Ok(None) };
    let route = run.decisions.iter().rev().find_map(|decision| match decision {
        Decision::Routed { why, .. } => Some(why.as_ref().and_then(|why| why.route.as_ref())),
        _ => None,
    });
    let of_route = route.flatten().and_then(|route| of_route(route, run.packet.protocol, passes_through));
    let bytes = of_route.unwrap_or_else(|| of_interface(routed, run.packet.protocol));
    let least = if run.packet.protocol == Protocol::Ipv6 { LEAST_IPV6 } else { 0 };
    Ok(Some(Mtu { bytes: bytes.clamp(least, MOST.max(routed.mtu)), by_route: of_route.is_some() }))
}

/// `ip_dst_mtu_maybe_forward`, `ip6_dst_mtu_maybe_forward`: IPv6 takes packets of others by the MTU of the interface, unless
/// that of the route is locked.
fn of_route(route: &TableRoute, protocol: Protocol, passes_through: bool) -> Option<u32> {
    let counts = protocol == Protocol::Ipv4 || !passes_through || route.mtu_locked;
    route.mtu.filter(|_| counts)
}

fn of_interface(routed: &RoutedInterface, protocol: Protocol) -> u32 {
    match protocol {
        Protocol::Ipv4 => routed.mtu.min(MOST),
        Protocol::Ipv6 => routed.mtu6.unwrap_or(LEAST_IPV6),
    }
}

/// A packet of IPv4 whose sender allows it. IPv6 leaves it to senders.
fn may_be_fragmented(run: &Run<'_>) -> bool {
    /// `IP_DF`, in the upper byte.
    const DO_NOT_FRAGMENT: u8 = 0x40;
    run.packet.protocol == Protocol::Ipv4 && run.packet.bytes.get(6).is_some_and(|flags| flags & DO_NOT_FRAGMENT == 0)
}

/// The first piece of a fragmented packet: whole units of eight bytes behind its header.
fn piece(protocol: Protocol, mtu: u32) -> u32 {
    // With the header that says so.
    let header = if protocol == Protocol::Ipv4 { 20 } else { 48 };
    mtu.saturating_sub(header) / 8 * 8 + header
}
