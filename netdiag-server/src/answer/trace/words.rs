//! Decisions, ends and assumptions of a way as a person reads them.

use std::net::SocketAddr;

use netdiag_common::forwarding::conntrack::{State, Tuple};
use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::packet::Packet;
use netdiag_common::forwarding::path::{Assumption, Decision, End, FlowStep, Place, Reject, Size, Tracked};
use netdiag_common::forwarding::routing::table::maker;
use netdiag_common::forwarding::routing::{Considered, Discard, Why};
use netdiag_common::forwarding::state::{ChainKey, Route};
use netdiag_common::forwarding::virtual_server::VirtualServerKey;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::fate::{FateInterfaceKey, FateOrigin};
use netdiag_common::observation::probe::Outcome;
use netdiag_common::observation::trace::{TraceEvent, TraceKind};

use crate::trace::{Direction, Leg, Sent, Way, WayEnd};

/// How one attempt ended, or how many of several got through.
pub(super) fn sent(sent: &Sent) -> String {
    match sent {
        Sent::Not { gap } => format!("not sent: {}", gap.why),
        Sent::Tried(result) => match &result.attempts[..] {
            [] => String::new(),
            [one] => one.outcome.words(),
            several => {
                let failed = several.iter().map(|attempt| &attempt.outcome);
                let first = failed.filter(|outcome| !matches!(outcome, Outcome::Connected)).map(Outcome::words).next();
                let first = first.map(|words| format!(" ({words})")).unwrap_or_default();
                format!("{} of {} attempts connected{first}", result.succeeded(), several.len())
            }
        },
    }
}

/// What is decided about the packet.
pub(super) fn decision(leg: &Leg, decision: &Decision) -> String {
    match decision {
        Decision::Tracked { tracked, .. } => match tracked {
            Tracked::State(State::New) => "connection tracking: new".to_owned(),
            Tracked::State(State::Established) => "connection tracking: established".to_owned(),
            Tracked::State(State::Related) => "connection tracking: related".to_owned(),
            Tracked::Invalid => "connection tracking: invalid".to_owned(),
            Tracked::Untracked => "connection tracking: left out".to_owned(),
        },
        Decision::Rule { chain, handle, verdict, comment, .. } => {
            rule(leg, chain, *handle, verdict, comment.as_deref().unwrap_or_default())
        }
        Decision::EndOfChain { chain, .. } => format!("{chain}: ends"),
        Decision::Policy { chain, verdict, .. } => format!("{chain}: policy {}", self::verdict(verdict)),
        Decision::Translated { from, to, .. } => {
            let is_chosen = from.source_port != to.source_port && leg.path().packet.known_ports().0.is_none();
            let chosen = if is_chosen { Tuple { source_port: 0, ..to.clone() } } else { to.clone() };
            let remark = if is_chosen { ", from a port that the kernel chooses" } else { "" };
            format!("translated: {} → {}{remark}", tuple(from), tuple(&chosen))
        }
        Decision::Scheduled { server, scheduler, to, of, .. } => scheduled(server, scheduler, *to, *of),
        Decision::Routed { route, why, .. } => match why.as_deref().and_then(because) {
            Some(because) => format!("{} ({because})", self::route(leg, route)),
            None => self::route(leg, route),
        },
        Decision::Flowtable { flowtable, step: FlowStep::Forwarded, .. } => {
            format!("flowtable {flowtable} forwards it, and no rule sees it")
        }
        Decision::Flowtable { flowtable, devices, .. } if devices.is_empty() => {
            format!("flowtable {flowtable} takes the connection, but is at no device: rules see its packets as before")
        }
        Decision::Flowtable { flowtable, devices, .. } => format!(
            "flowtable {flowtable} takes the connection: its later packets that arrive on {} pass no rules",
            devices.join(", ")
        ),
        Decision::Unheard { queue, bypass, .. } => {
            let so = if *bypass { "so the packet goes on, as the rule says" } else { "so the packet is dropped" };
            format!("queue {queue}: no program listens to it, {so}")
        }
        Decision::Switched { bridge, port, filtered, .. } => {
            let (bridge, port) = (interface(leg, *bridge), interface(leg, *port));
            let rules = if *filtered {
                "through the rules of IP (br_netfilter)"
            } else {
                "and no rule of IP sees it: br_netfilter is not loaded, or off for this bridge"
            };
            format!("bridge {bridge}: from port {port} to another one, {rules}")
        }
        Decision::Proxied { to, .. } => format!("a transparent proxy's socket takes it, as if it were for {to}"),
        Decision::Measured { interface, mtu, by_route, length, size, .. } => {
            let whose = if *by_route { "the route" } else { "the interface" };
            let fits = match size {
                Size::Fits => "fits",
                Size::Fragmented => "is sent in pieces",
            };
            let name = self::interface(leg, *interface);
            format!("size: {length} bytes, {fits}: the MTU is {mtu} ({whose}, dev {name})")
        }
    }
}

/// `virtual server 10.96.0.10:53/udp rr → 10.244.1.2:53 (1 of 2)`
fn scheduled(server: &VirtualServerKey, scheduler: &str, to: Option<SocketAddr>, of: Option<(usize, usize)>) -> String {
    match (to, of) {
        (Some(to), Some((place, count))) => format!("virtual server {server} {scheduler} → {to} ({place} of {count})"),
        (Some(to), None) => format!("virtual server {server} → {to}, as before for this connection"),
        (None, _) => format!("virtual server {server} {scheduler}: no real server takes connections"),
    }
}

/// The rule and the route of its table, with what the route says about who made it:
/// `rule 32766 from all lookup main: 10.0.0.0/24 proto bird`.
fn because(why: &Why) -> Option<String> {
    let Considered { priority, rule, .. } = why.rules.last()?;
    let route = why.route.as_ref().map(|route| format!(": {} proto {}", route.destination, maker(route.protocol)));
    Some(format!("rule {priority} {rule}{}", route.unwrap_or_default()))
}

/// What the kernel's trace says.
pub(super) fn event(leg: &Leg, event: &TraceEvent) -> String {
    let chain =
        ChainKey { family: event.family, table: event.table.as_str().into(), chain: event.chain.as_str().into() };
    match (event.kind, event.handle) {
        (TraceKind::Policy, _) => format!("{chain}: policy {}", verdict(&event.verdict)),
        (_, Some(handle)) => rule(leg, &chain, handle, &event.verdict, ""),
        (_, None) => format!("{chain}: ends"),
    }
}

fn rule(leg: &Leg, chain: &ChainKey, handle: u64, verdict: &Verdict, comment: &str) -> String {
    let known = leg.fate.rules.iter().find(|rule| rule.chain == *chain && rule.handle == handle);
    let text = known.map(|rule| rule.text.as_str()).unwrap_or_default();
    let mut words = match text {
        "" => format!("{chain} rule {handle}: {}", self::verdict(verdict)),
        text => format!("{chain} rule {handle}: {text}"),
    };
    if !comment.is_empty() && !words.contains(comment) {
        words.push_str(&format!(" \"{comment}\""));
    }
    words
}

fn verdict(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Stolen => "stolen".to_owned(),
        Verdict::Queue { number, .. } => format!("queue {number}"),
        Verdict::Continue => "continue".to_owned(),
        Verdict::Break => "break".to_owned(),
        Verdict::Jump(chain) => format!("jump {chain}"),
        Verdict::Goto(chain) => format!("goto {chain}"),
        Verdict::Return => "return".to_owned(),
        Verdict::Other(code) => format!("verdict {code}"),
    }
}

fn route(leg: &Leg, route: &Route) -> String {
    match route {
        Route::Local { .. } => "routed: to this namespace itself".to_owned(),
        Route::Forward { interface, gateway: Some(gateway), .. } => {
            format!("routed: via {gateway} dev {}", self::interface(leg, *interface))
        }
        Route::Forward { interface, .. } => format!("routed: dev {}", self::interface(leg, *interface)),
        Route::Refused { why } | Route::Unfollowed { why } => format!("routed: {why}"),
    }
}

pub(super) fn interface(leg: &Leg, index: u32) -> String {
    match leg.fate.interfaces.iter().find(|interface| interface.index == index) {
        Some(interface) => interface.name.clone(),
        None => format!("interface {index}"),
    }
}

/// The interface that a packet arrives on; empty where a process sends it.
pub(super) fn arrival(leg: &Leg) -> String {
    match &leg.request.origin {
        FateOrigin::Sent => String::new(),
        FateOrigin::Received(FateInterfaceKey::Name(name)) => name.clone(),
        FateOrigin::Received(FateInterfaceKey::Index(index)) => interface(leg, *index),
    }
}

pub(super) fn packet(packet: &Packet) -> String {
    match Tuple::of(packet) {
        Some(of_packet) => tuple(&of_packet),
        None => format!("{} → {}", packet.source(), packet.destination()),
    }
}

fn tuple(tuple: &Tuple) -> String {
    let protocol =
        Protocol::from_number(tuple.protocol).map_or_else(|| tuple.protocol.to_string(), |it| it.to_string());
    let ends =
        [(tuple.source, tuple.source_port), (tuple.destination, tuple.destination_port)].map(|(address, port)| {
            if port == 0 { address.to_string() } else { SocketAddr::new(address, port).to_string() }
        });
    format!("{protocol} {} → {}", ends[0], ends[1])
}

pub(super) fn assumption(leg: &Leg, assumption: &Assumption) -> String {
    match assumption {
        Assumption::Chance { at, what, chance, .. } => {
            format!("{}: {what} chooses this with {:.1} %", place(leg, at), chance * 100.0)
        }
        Assumption::Unknown { at, what, holds } => {
            format!(
                "{}: it is not known whether {what}; here it does{}",
                place(leg, at),
                if *holds { "" } else { " not" }
            )
        }
    }
}

fn place(leg: &Leg, place: &Place) -> String {
    match (&place.chain, place.handle) {
        (Some(chain), Some(handle)) => rule(leg, chain, handle, &Verdict::Continue, ""),
        (Some(chain), None) => format!("the policy of {chain}"),
        (None, _) => format!("hook {}", place.hook),
    }
}

/// How a way ends.
pub(super) fn end(way: &Way) -> String {
    let answer = if way.legs.last().is_some_and(|leg| leg.direction == Direction::Reply) { "the answer " } else { "" };
    match &way.end {
        WayEnd::Answered => "answered".to_owned(),
        WayEnd::NobodyListens { address, port } => {
            format!("delivered, and no socket listens on {}", SocketAddr::new(*address, *port))
        }
        WayEnd::LeftCluster { to } => format!("{answer}leaves the cluster to {to}"),
        WayEnd::Astray => "the answer is delivered where nobody asked".to_owned(),
        WayEnd::Untranslated { from, why } => {
            format!("the answer comes from {from}, to which the client did not send: {why}")
        }
        WayEnd::Unseen { gap } => format!("{answer}not followed further: {}", gap.why),
        WayEnd::Circle => format!("{answer}goes in a circle"),
        WayEnd::Stopped | WayEnd::TunnelDrops { .. } => {
            let Some(leg) = way.legs.last() else { return "nothing was evaluated".to_owned() };
            let outer = leg.carrier.as_ref().map(|carrier| format!(", as the {}", carrier.words())).unwrap_or_default();
            let place = format!("on node {}{outer}", leg.place.node);
            match &way.end {
                WayEnd::TunnelDrops { why } => format!("{answer}dropped {place}: {why}"),
                _ => format!("{answer}{} {place}", stopped(leg)),
            }
        }
    }
}

/// How a leg ends that goes no further.
pub(in crate::answer) fn stopped(leg: &Leg) -> String {
    match &leg.path().end {
        End::Delivered => "delivered".to_owned(),
        End::Sent { interface, .. } => format!("sent by {}", self::interface(leg, *interface)),
        End::Dropped { by } => format!("dropped by {}", place(leg, by)),
        End::Rejected { by, with } => {
            let with = match with {
                Reject::TcpReset => "a TCP reset".to_owned(),
                Reject::Unreachable { kind, code } => format!("ICMP type {kind} code {code}"),
            };
            format!("rejected with {with} by {}", place(leg, by))
        }
        End::Queued { by, among: Some((first, last)), .. } => {
            format!("given to a program by one of the queues {first}-{last}, by {}", place(leg, by))
        }
        End::Queued { by, number, .. } => format!("given to a program by queue {number}, by {}", place(leg, by)),
        End::Taken { by, what } => format!("taken by {what}, by {}", place(leg, by)),
        End::NoRoute { why } => format!("not routed ({why})"),
        End::Discarded(Discard { reason, function, why }) => format!("discarded: {why} ({reason} in {function})"),
        End::TooBig { interface, mtu, with: Some(Reject::Unreachable { kind, code }) } => format!(
            "too long for the MTU {mtu} of dev {} ({} bytes; ICMP type {kind} code {code} says so)",
            self::interface(leg, *interface),
            leg.path().packet.length
        ),
        End::TooBig { interface, mtu, .. } => format!(
            "dropped without a word behind dev {}: {} bytes, and the device there has MTU {mtu}",
            self::interface(leg, *interface),
            leg.path().packet.length
        ),
        End::HopsExhausted => "at the end of its time to live".to_owned(),
        End::Unknown { by, because } => format!("not known further, because {because}, at {}", place(leg, by)),
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::forwarding::tunnel::{Encapsulation, Outer};

    use super::*;
    use crate::answer::trace::example::leg;
    use crate::trace::Carrier;

    #[test]
    fn an_outer_packet_that_is_dropped_is_told_as_the_tunnels() {
        let outer = Outer {
            encapsulation: Encapsulation::Vxlan { vni: 1, port: 8_472 },
            source: None,
            destination: "172.30.0.12".parse().unwrap(),
            lower_index: None,
            mac: None,
        };
        let carrier = Carrier { inside: 0, device: "flannel.1".to_owned(), outer };
        let leg = leg(Some(2), Vec::new(), 3);
        let legs = vec![leg.clone(), Leg { carrier: Some(carrier), ..leg }];
        let why = "no device has VNI 1".to_owned();
        let mut way = Way { legs, end: WayEnd::TunnelDrops { why } };
        let outer = "on node n1, as the outer packet of flannel.1 (VXLAN, VNI 1, UDP port 8472)";
        assert_eq!(end(&way), format!("dropped {outer}: no device has VNI 1"));
        way.end = WayEnd::Stopped;
        assert_eq!(end(&way), format!("sent by interface 3 {outer}"));
        way.legs.pop();
        assert_eq!(end(&way), "sent by interface 3 on node n1");
    }

    #[test]
    fn a_virtual_server_is_told_with_the_real_one_that_it_chose() {
        let server = VirtualServerKey::Address { address: "10.96.0.10".parse().unwrap(), protocol: 17, port: 53 };
        let to = "10.244.1.2:53".parse().ok();
        assert_eq!(
            scheduled(&server, "rr", to, Some((1, 2))),
            "virtual server 10.96.0.10:53/udp rr → 10.244.1.2:53 (1 of 2)"
        );
        assert_eq!(
            scheduled(&server, "rr", None, None),
            "virtual server 10.96.0.10:53/udp rr: no real server takes connections"
        );
    }
}
