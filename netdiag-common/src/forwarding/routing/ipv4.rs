//! Tables and next hops of IPv4 (`fib_table_lookup`, `fib_select_path`, `ip_route_output_key_hash_rcu`; Linux 6.18).

use std::cmp::Reverse;
use std::net::{IpAddr, Ipv4Addr};

use super::super::packet::Protocol;
use super::super::state::{Route, RuleState};
use super::rule::{Found, are_initial};
use super::table::{DEFAULT_TABLE, LOCAL_TABLE, MAIN_TABLE, NextHop, RouteTable, TableKey, TableRoute, kind};
use super::{Flow, LOOPBACK, Lookup, Refusal, Result, Router};

/// The bits of the type of service that routes see (`fib_dscp_masked_match`).
const SERVICE: u8 = 0x1c;

const ONE_TRIE: &str = "no routing rule was ever added here, so that tables local and main are one";

fn key(table: u32) -> TableKey {
    TableKey { protocol: Protocol::Ipv4, table }
}

impl<'a> Router<'a> {
    /// `__fib_lookup`, and what stands in for it before the first rule is added.
    ///
    /// Until then the tables local and main are one trie (`fib_trie_table`), in which a longer prefix of main goes before a
    /// shorter one of local, and a throw of local leads past main; adding a rule separates them for good (`fib_unmerge`).
    /// Nothing tells which it is where the rules are the initial ones, so both ways are tried, and are one answer nearly
    /// always.
    pub(super) fn find4(&mut self, flow: &Flow) -> Result<Lookup<'a>> {
        if are_initial(self.state.routing_rules(Protocol::Ipv4)?) {
            let apart = match self.table4(flow, &[LOCAL_TABLE])? {
                Found::Nothing => self.table4(flow, &[MAIN_TABLE])?,
                found => found,
            };
            let together = self.table4(flow, &[LOCAL_TABLE, MAIN_TABLE])?;
            if apart != together && self.chooser.holds(ONE_TRIE) {
                let (table, found) = match together {
                    Found::Nothing => (DEFAULT_TABLE, self.table4(flow, &[DEFAULT_TABLE])?),
                    found => (MAIN_TABLE, found),
                };
                return Ok(match found {
                    Found::Route(route) => Lookup::Route(table, route),
                    Found::Refused(route, refusal) => {
                        (self.why.table, self.why.route) = (Some(table), Some(route.clone()));
                        Lookup::Refused(refusal)
                    }
                    Found::Nothing => Lookup::Refused(Refusal::Network),
                });
            }
        }
        self.look_up(flow, &mut |router, key| router.table4(flow, &[key.table]))
    }

    /// The longest prefix with a usable next hop, then by type of service and metric. Of several tables, the first one
    /// that is named goes first at each prefix.
    fn table4(&mut self, flow: &Flow, tables: &[u32]) -> Result<Found<'a>> {
        let mut routes: Vec<&'a TableRoute> = Vec::new();
        for table in tables {
            routes.extend(self.state.routes_to(key(*table), flow.destination)?);
        }
        // Stable: the kernel's order among equals.
        routes.sort_by_key(|route| Reverse(route.destination.prefix_len()));
        if tables.len() == 1 {
            routes.sort_by_key(|route| (Reverse(route.destination.prefix_len()), Reverse(route.service), route.metric));
        }
        // A next-hop object without a usable next hop ends the search among all routes that begin with the same address, of
        // whatever length: they are one leaf.
        let mut missed = None;
        for route in routes.into_iter().filter(|route| serves(route, flow)) {
            match route.kind {
                _ if missed == Some(route.destination.addr()) => {}
                kind::THROW => return Ok(Found::Nothing),
                kind::BLACKHOLE => return Ok(Found::Refused(route, Refusal::Blackhole)),
                kind::UNREACHABLE => return Ok(Found::Refused(route, Refusal::Host)),
                kind::PROHIBIT => return Ok(Found::Refused(route, Refusal::Prohibited)),
                _ if route.hops.iter().any(|hop| is_good(hop, flow.output)) => return Ok(Found::Route(route)),
                _ if route.object.is_some() => missed = Some(route.destination.addr()),
                _ => {}
            }
        }
        Ok(Found::Nothing)
    }

    /// `fib_select_path`: the next hop, and the route where that depends on which default router is alive.
    pub(super) fn select4(
        &mut self,
        flow: &Flow,
        table: u32,
        route: &'a TableRoute,
    ) -> Result<(&'a TableRoute, &'a NextHop)> {
        let route = if flow.output == 0 { self.default_router(flow, table, route)? } else { route };
        (self.why.table, self.why.route) = (Some(table), Some(route.clone()));
        let usable: Vec<&NextHop> = route.hops.iter().filter(|hop| is_good(hop, flow.output)).collect();
        if flow.output != 0 || usable.len() == 1 {
            return Ok((route, usable[0]));
        }
        let host = self.state.host_settings()?;
        self.why.hash_policy = Some(host.hash_policy[0]);
        // Since Linux 6.15 packets of this host rather leave where their source is from. Neighbours that do not answer
        // are passed over where that is set, and by groups of next-hop objects always.
        let by_weight =
            (flow.source.is_none() || flow.input != LOOPBACK) && !host.use_neighbours && route.object.is_none();
        let taken = if by_weight {
            let weights: Vec<u32> = usable.iter().map(|hop| hop.weight).collect();
            self.chooser.weighted("next hop by hash", &weights)
        } else {
            self.chooser.unweighted(usable.len(), |at| format!("the hash chooses {}", words(usable[at])))
        };
        Ok((route, usable[taken]))
    }

    /// `fib_select_default`: among default routes of one metric through routers, one whose neighbour entry is good.
    fn default_router(&mut self, flow: &Flow, table: u32, route: &'a TableRoute) -> Result<&'a TableRoute> {
        let first = route.hops.first();
        if route.destination.prefix_len() != 0
            || route.kind != kind::UNICAST
            || route.hops.len() != 1
            || first.is_none_or(|hop| hop.gateway.is_none())
        {
            return Ok(route);
        }
        let mut routes = self.state.routes_to(key(table), flow.destination)?;
        let rival = |other: &&TableRoute| {
            other.destination.prefix_len() == 0
                && serves(other, flow)
                && other.kind == kind::UNICAST
                && other.scope == route.scope
                && (other.metric == route.metric || other.service != route.service)
                && other.hops.first().is_some_and(|hop| hop.gateway.is_some() && !hop.dead)
        };
        routes.retain(rival);
        routes.sort_by_key(|other| (Reverse(other.service), other.metric));
        if routes.len() < 2 {
            return Ok(route);
        }
        let name = |at: usize| format!("of several default routers, {} is taken", words(&routes[at].hops[0]));
        let taken = self.chooser.unweighted(routes.len(), name);
        Ok(routes[taken])
    }

    /// The route of a packet of this host.
    pub(super) fn send4(&mut self, flow: &Flow) -> Result<Route> {
        let IpAddr::V4(destination) = flow.destination else { return Ok(Refusal::Blackhole.route()) };
        if flow.output != 0 && !self.state.routed_interface(flow.output)?.is_some_and(|interface| interface.up) {
            return Ok(Refusal::Network.route());
        }
        if destination.is_broadcast() {
            return Ok(Route::Unfollowed { why: format!("{destination} is for everybody on a link") });
        }
        if destination.is_unspecified() {
            return Ok(Route::Local { interface: LOOPBACK });
        }
        let (interface, gateway, source) = match self.find4(flow)? {
            // `apparently routing tables are wrong`: a destination is looked for on the link that was asked for.
            Lookup::Refused(_) if flow.output != 0 => {
                let source = self.own4(flow.output, None, super::source::LINK)?;
                (flow.output, None, source)
            }
            Lookup::Refused(refusal) => return Ok(refusal.route()),
            Lookup::Route(table, route) if route.kind == kind::LOCAL => {
                (self.why.table, self.why.route) = (Some(table), Some(route.clone()));
                return Ok(Route::Local { interface: LOOPBACK });
            }
            Lookup::Route(table, route) => {
                let (route, hop) = self.select4(flow, table, route)?;
                let Some(interface) = hop.interface else { return Ok(without_interface()) };
                match route.kind {
                    kind::UNICAST => {}
                    kind::BROADCAST => return Ok(Route::Local { interface }),
                    other => return Ok(Route::Unfollowed { why: format!("a route of type {other}") }),
                }
                let source = match (flow.source, route.own) {
                    (None, None) => self.own4(interface, hop.gateway, route.scope)?,
                    (None, own) => own,
                    (Some(_), _) => None,
                };
                (interface, self.gateway4(table, hop)?, source)
            }
        };
        // `__mkroute_output`
        let from = flow.source.or(source);
        if destination.octets()[0] == 0
            || (from.is_some_and(|from| from.is_loopback()) && !self.lets_out_localnet(interface)?)
        {
            return Ok(Refusal::Blackhole.route());
        }
        Ok(Route::Forward { interface, gateway, source: source.filter(|_| flow.source.is_none()) })
    }

    /// The router of a next hop. One that was an address of this host when the route was made is none: packets are then for
    /// whoever is on the link (`fib_check_nh_v4_gw` finds it in scope host, and `rt_set_nexthop` leaves it out). The kernel looked
    /// in the route's own table first, and does not say what it found.
    pub(super) fn gateway4(&mut self, table: u32, hop: &NextHop) -> Result<Option<IpAddr>> {
        let Some(gateway @ IpAddr::V4(_)) = hop.gateway else { return Ok(hop.gateway) };
        let near = match self.state.routing.tables.0.get(&key(table)) {
            Some(RouteTable::Whole(_)) => self.state.routes_to(key(table), gateway)?,
            _ => Vec::new(),
        };
        let local = near.iter().any(|route| route.kind == kind::LOCAL) || is_own(self.state, gateway)?;
        let none = local
            && self.chooser.holds(&format!("router {gateway} was an address of this host when the route was made"));
        Ok(if none { None } else { Some(gateway) })
    }

    fn lets_out_localnet(&self, interface: u32) -> Result<bool> {
        if interface == LOOPBACK || self.state.host_settings()?.all.ipv4.route_localnet {
            return Ok(true);
        }
        Ok(self.state.routed_interface(interface)?.is_some_and(|interface| interface.settings.ipv4.route_localnet))
    }
}

pub(super) fn without_interface() -> Route {
    Route::Unfollowed { why: "the next hop has no interface".into() }
}

fn serves(route: &TableRoute, flow: &Flow) -> bool {
    route.service == 0 || route.service == flow.service & SERVICE
}

/// `fib_lookup_good_nhc`
fn is_good(hop: &NextHop, output: u32) -> bool {
    !hop.dead && (output == 0 || hop.interface == Some(output))
}

fn words(hop: &NextHop) -> String {
    match (hop.gateway, hop.interface) {
        (Some(gateway), Some(interface)) => format!("next hop {gateway} at interface {interface}"),
        (None, Some(interface)) => format!("interface {interface}"),
        _ => "a next hop without an interface".into(),
    }
}

/// `__ip_dev_find`: whether this host has the address. Of IPv6 no source is refused.
pub(super) fn is_own(state: &RuleState, address: IpAddr) -> Result<bool> {
    let IpAddr::V4(own) = address else { return Ok(true) };
    if own == Ipv4Addr::UNSPECIFIED {
        return Ok(true);
    }
    let routes = state.routes_to(key(LOCAL_TABLE), address)?;
    let longest = routes.into_iter().max_by_key(|route| route.destination.prefix_len());
    Ok(longest.is_some_and(|route| route.kind == kind::LOCAL))
}
