//! Packets that came in by IPv4: whether they are let in, to this host or on (`ip_route_input_slow`, `fib_validate_source`;
//! Linux 6.18, whose drop reasons are those of 6.14).

use std::net::{IpAddr, Ipv4Addr};

use super::super::packet::Protocol;
use super::super::state::Route;
use super::ipv4::without_interface;
use super::rule::are_initial;
use super::table::{Ipv4Settings, LOCAL_TABLE, RouteTable, RoutedInterface, TableKey, TableRoute, kind};
use super::{Discard, Flow, LOOPBACK, Lookup, Refusal, Result, Router};

/// `RTPROT_KERNEL`
const BY_KERNEL: u8 = 2;

const FULL_CHECK: &str = "routing rules or local routes of other kinds have been here before";

/// Settings of the interface and of all interfaces, as the kernel joins them (`IN_DEV_MAXCONF`, `IN_DEV_ORCONF`, …).
fn join(all: Ipv4Settings, own: Ipv4Settings) -> Ipv4Settings {
    Ipv4Settings {
        forwarding: own.forwarding,
        rp_filter: all.rp_filter.max(own.rp_filter),
        accept_local: all.accept_local || own.accept_local,
        route_localnet: all.route_localnet || own.route_localnet,
        src_valid_mark: all.src_valid_mark || own.src_valid_mark,
        send_redirects: all.send_redirects || own.send_redirects,
        bc_forwarding: all.bc_forwarding && own.bc_forwarding,
    }
}

/// What is wrong with a source; none when nothing is.
type Wrong = Option<Discard>;

impl Router<'_> {
    pub(super) fn receive(&mut self, flow: &Flow, input: u32) -> Result<(Route, Option<Discard>)> {
        let Some(interface) = self.state.routed_interface(input)? else {
            return Ok((Route::Unfollowed { why: format!("interface {input} is not there") }, None));
        };
        let settings = join(self.state.host_settings()?.all.ipv4, interface.settings.ipv4);
        let IpAddr::V4(destination) = flow.destination else { return Ok((Refusal::Blackhole.route(), None)) };
        let source = match flow.source {
            Some(IpAddr::V4(source)) => source,
            _ => Ipv4Addr::UNSPECIFIED,
        };
        if let Some(wrong) = martian(source, destination, settings) {
            return Ok(drop_for(wrong));
        }
        let local = Route::Local { interface: LOOPBACK };
        let unspecified = source.is_unspecified() && destination.is_unspecified();
        if destination.is_broadcast() || unspecified {
            return self.receive_broadcast(flow, input, source, settings);
        }
        let (table, route) = match self.find4(flow)? {
            Lookup::Refused(_) if !settings.forwarding => return Ok(drop_for(not_forwarded(input))),
            Lookup::Refused(refusal) => return Ok((refusal.route(), None)),
            Lookup::Route(table, route) => (table, route),
        };
        match route.kind {
            kind::BROADCAST if settings.bc_forwarding => {
                Ok((Route::Unfollowed { why: "broadcasts to a network are forwarded here".into() }, None))
            }
            kind::BROADCAST => {
                self.found(table, route);
                self.receive_broadcast(flow, input, source, settings)
            }
            kind::LOCAL => {
                self.found(table, route);
                let wrong = self.validate(flow, source, input, 0, settings)?;
                Ok(wrong.map_or((local, None), drop_for))
            }
            _ if !settings.forwarding => {
                self.found(table, route);
                Ok(drop_for(not_forwarded(input)))
            }
            kind::UNICAST => {
                let (_, hop) = self.select4(flow, table, route)?;
                let gateway = self.gateway4(table, hop)?;
                let Some(output) = hop.interface else { return Ok((without_interface(), None)) };
                let wrong = self.validate(flow, source, input, output, settings)?;
                let route = Route::Forward { interface: output, gateway, source: None };
                Ok(wrong.map_or((route, None), drop_for))
            }
            other => {
                self.found(table, route);
                let why = format!("{destination} has a route of type {other}");
                Ok(drop_for(discard("IP_INVALID_DEST", why)))
            }
        }
    }

    fn found(&mut self, table: u32, route: &TableRoute) {
        (self.why.table, self.why.route) = (Some(table), Some(route.clone()));
    }

    fn receive_broadcast(
        &mut self,
        flow: &Flow,
        input: u32,
        source: Ipv4Addr,
        settings: Ipv4Settings,
    ) -> Result<(Route, Option<Discard>)> {
        if source.octets()[0] != 0 {
            // As if the source answered to nobody in particular.
            let flow = Flow { destination: Ipv4Addr::UNSPECIFIED.into(), ..flow.clone() };
            if let Some(wrong) = self.validate(&flow, source, input, 0, settings)? {
                return Ok(drop_for(wrong));
            }
        }
        Ok((Route::Local { interface: LOOPBACK }, None))
    }

    /// `fib_validate_source`. `output` is where the packet would leave, 0 for this host.
    fn validate(
        &mut self,
        flow: &Flow,
        source: Ipv4Addr,
        input: u32,
        output: u32,
        settings: Ipv4Settings,
    ) -> Result<Wrong> {
        // What it looks up is no part of why the packet goes where it goes.
        let why = std::mem::take(&mut self.why);
        let wrong = if settings.rp_filter == 0 && (input != output || !settings.send_redirects) {
            self.validate_simply(flow, source, input, output, settings)
        } else {
            self.validate_fully(flow, source, input, output, settings)
        };
        self.why = why;
        wrong
    }

    /// Without filter only addresses of this host are refused. In a namespace that has seen rules or local routes other than the
    /// usual ones, the kernel looks a route up for it, and remembers that for good.
    fn validate_simply(
        &mut self,
        flow: &Flow,
        source: Ipv4Addr,
        input: u32,
        output: u32,
        settings: Ipv4Settings,
    ) -> Result<Wrong> {
        if settings.accept_local {
            return Ok(None);
        }
        let full = self.validate_fully(flow, source, input, output, settings)?;
        if self.has_custom_routing()? {
            return Ok(full);
        }
        let own = self.state.addresses()?.iter().any(|(_, own)| own.address == IpAddr::V4(source));
        let simple = own.then(|| local_source(source));
        if simple.is_some() == full.is_some() || !self.chooser.holds(FULL_CHECK) { Ok(simple) } else { Ok(full) }
    }

    fn has_custom_routing(&self) -> Result<bool> {
        if !are_initial(self.state.routing_rules(Protocol::Ipv4)?) {
            return Ok(true);
        }
        let key = TableKey { protocol: Protocol::Ipv4, table: LOCAL_TABLE };
        Ok(match self.state.routing.tables.0.get(&key) {
            Some(RouteTable::Whole(routes)) => {
                routes.iter().any(|route| route.kind == kind::LOCAL && route.protocol != BY_KERNEL)
            }
            _ => false,
        })
    }

    /// `__fib_validate_source`
    fn validate_fully(
        &mut self,
        flow: &Flow,
        source: Ipv4Addr,
        input: u32,
        output: u32,
        settings: Ipv4Settings,
    ) -> Result<Wrong> {
        let back = Flow {
            protocol: Protocol::Ipv4,
            destination: source.into(),
            source: Some(flow.destination).filter(|address| !address.is_unspecified()),
            input: if output == 0 { LOOPBACK } else { output },
            output: 0,
            mark: if settings.src_valid_mark { flow.mark } else { 0 },
            ports: (flow.ports.1, flow.ports.0),
            ..flow.clone()
        };
        let (table, route) = match self.find4(&back)? {
            Lookup::Refused(_) => {
                let why = format!("there is no route back to {source}");
                return Ok((settings.rp_filter != 0).then(|| discard("IP_RPFILTER", why)));
            }
            Lookup::Route(table, route) => (table, route),
        };
        match route.kind {
            kind::UNICAST => {}
            kind::LOCAL if settings.accept_local => {}
            kind::LOCAL => return Ok(Some(local_source(source))),
            other => {
                let why = format!("source {source} has a route of type {other}");
                return Ok(Some(discard("IP_INVALID_SOURCE", why)));
            }
        }
        let here = route.hops.iter().any(|hop| hop.interface == Some(input));
        if here || (route.kind == kind::LOCAL && input == LOOPBACK) {
            return Ok(None);
        }
        let strict = settings.rp_filter == 1;
        let without_address = settings.rp_filter != 0 && !self.has_address(input)?;
        if !strict && !without_address {
            return Ok(None);
        }
        let way = route.hops.iter().filter_map(|hop| hop.interface).map(|index| index.to_string());
        let way = way.collect::<Vec<_>>().join(", ");
        let destination = route.destination;
        Ok(Some(discard(
            "IP_RPFILTER",
            format!("the way back to {source} is by interface {way} ({destination} of table {table}), not by {input}"),
        )))
    }

    fn has_address(&self, input: u32) -> Result<bool> {
        let interface = self.state.interface(input)?;
        Ok(interface.is_some_and(|interface| interface.addresses.iter().any(|own| own.address.is_ipv4())))
    }
}

/// Whether the interface lets IPv6 in and on: `ip6_rcv_core`, `ip6_forward`.
pub(super) fn refuses6(interface: &RoutedInterface, all_forwarding: bool, input: u32, local: bool) -> Option<Discard> {
    let settings = interface.settings.ipv6;
    if settings.disabled {
        let why = format!("IPv6 is disabled at interface {input}");
        return Some(Discard { reason: "IPV6DISABLED".into(), function: "ip6_rcv_core".into(), why });
    }
    if !local && !all_forwarding && !settings.force_forwarding {
        let why = "net.ipv6.conf.all.forwarding is 0".into();
        return Some(Discard { reason: "NOT_SPECIFIED".into(), function: "ip6_forward".into(), why });
    }
    None
}

/// Addresses that no packet may have (`ip_route_input_slow`).
fn martian(source: Ipv4Addr, destination: Ipv4Addr, settings: Ipv4Settings) -> Option<Discard> {
    if source.is_multicast() || source.is_broadcast() {
        return Some(discard("IP_INVALID_SOURCE", format!("{source} is no source")));
    }
    if destination.is_broadcast() || (source.is_unspecified() && destination.is_unspecified()) {
        return None;
    }
    if source.octets()[0] == 0 {
        return Some(discard("IP_INVALID_SOURCE", format!("{source} is no source")));
    }
    if destination.octets()[0] == 0 {
        return Some(discard("IP_INVALID_DEST", format!("{destination} is no destination")));
    }
    if (destination.is_loopback() || source.is_loopback()) && !settings.route_localnet {
        let address = if destination.is_loopback() { destination } else { source };
        return Some(discard("IP_LOCALNET", format!("{address} came from outside, and route_localnet is 0")));
    }
    None
}

fn local_source(source: Ipv4Addr) -> Discard {
    discard("IP_LOCAL_SOURCE", format!("source {source} is an address of this host, and accept_local is 0"))
}

fn discard(reason: &str, why: String) -> Discard {
    Discard { reason: reason.into(), function: "ip_rcv_finish_core".into(), why }
}

fn not_forwarded(input: u32) -> Discard {
    let why = format!("net.ipv4.conf.*.forwarding of interface {input} is 0");
    Discard { reason: "IP_INADDRERRORS".into(), function: "ip_error".into(), why }
}

fn drop_for(discard: Discard) -> (Route, Option<Discard>) {
    (Route::Refused { why: discard.why.clone() }, Some(discard))
}
