//! Tables and next hops of IPv6 (`fib6_table_lookup`, `rt6_select`, `fib6_select_path`; Linux 6.18).
//!
//! A table is a tree by destination, in whose nodes hang trees by source. The routes of one node are tried by metric and, of one
//! metric, by a score; a node without a usable route leads back to the next shorter prefix. Taken to be built with
//! `CONFIG_IPV6_ROUTER_PREF` and `CONFIG_IPV6_SUBTREES`, as distributions do.

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnet::IpNet;

use super::super::state::Route;
use super::received::refuses6;
use super::rule::Found;
use super::table::{NextHop, TableKey, TableRoute, kind};
use super::{Discard, Flow, LOOPBACK, Lookup, Refusal, Result, Router};

/// `NUD_FAILED`
const FAILED: u16 = 0x20;

/// What `ip6_pol_route` is called with.
#[derive(Clone, Copy)]
struct Wanted {
    /// Rather a route out of this interface; 0 for none.
    interface: u32,
    /// `RT6_LOOKUP_F_IFACE`: no other one.
    only: bool,
    /// `RT6_LOOKUP_F_REACHABLE`: hosts look for routers that answer.
    reachable: bool,
}

/// One node of the tree: its routes, in the kernel's order.
type Node<'a> = Vec<&'a TableRoute>;

impl<'a> Router<'a> {
    pub(super) fn route6(&mut self, flow: &Flow, input: Option<u32>) -> Result<(Route, Option<Discard>)> {
        let all = self.state.host_settings()?.all.ipv6;
        let strict = is_strict(flow.destination);
        // Received packets rather go back where they came from (`ip6_pol_route_input`).
        let wanted = Wanted {
            interface: input.unwrap_or(flow.output),
            only: strict || (input.is_none() && flow.output != 0 && flow.source.is_none()),
            reachable: !all.forwarding,
        };
        let found = self.look_up(flow, &mut |router, key| router.table6(flow, key, wanted))?;
        let (table, route) = match found {
            Lookup::Refused(refusal) => return Ok((refusal.route(), self.refused6(input, all.forwarding, true)?)),
            Lookup::Route(table, route) => (table, route),
        };
        (self.why.table, self.why.route) = (Some(table), Some(route.clone()));
        let local = matches!(route.kind, kind::LOCAL | kind::ANYCAST);
        let discarded = self.refused6(input, all.forwarding, local)?;
        let route = match route.kind {
            _ if local => Route::Local { interface: LOOPBACK },
            kind::UNICAST => {
                let hop = self.select6(route, wanted)?;
                let source = route.own.filter(|_| flow.source.is_none() && input.is_none());
                match hop.interface {
                    Some(interface) => Route::Forward { interface, gateway: hop.gateway, source },
                    None => super::ipv4::without_interface(),
                }
            }
            other => Route::Unfollowed { why: format!("a route of type {other}") },
        };
        Ok((route, discarded))
    }

    fn refused6(&self, input: Option<u32>, forwarding: bool, local: bool) -> Result<Option<Discard>> {
        let Some(input) = input else { return Ok(None) };
        let interface = self.state.routed_interface(input)?;
        Ok(interface.and_then(|interface| refuses6(interface, forwarding, input, local)))
    }

    fn table6(&mut self, flow: &Flow, key: TableKey, wanted: Wanted) -> Result<Found<'a>> {
        let routes = self.state.routes_to(key, flow.destination)?;
        let nodes = nodes(routes, flow.source);
        let found = match self.first_usable(&nodes, wanted)? {
            // Rather a router that does not answer than none.
            None if wanted.reachable => self.first_usable(&nodes, Wanted { reachable: false, ..wanted })?,
            found => found,
        };
        Ok(match found {
            None => Found::Nothing,
            Some(route) => match route.kind {
                kind::THROW => Found::Nothing,
                kind::BLACKHOLE => Found::Refused(route, Refusal::Blackhole),
                kind::UNREACHABLE => Found::Refused(route, Refusal::Host),
                kind::PROHIBIT => Found::Refused(route, Refusal::Prohibited),
                _ => Found::Route(route),
            },
        })
    }

    fn first_usable(&self, nodes: &[Node<'a>], wanted: Wanted) -> Result<Option<&'a TableRoute>> {
        for node in nodes {
            if let Some(route) = self.best(node, wanted)? {
                return Ok(Some(route));
            }
        }
        Ok(None)
    }

    /// `find_rr_leaf`: the best score of the lowest metric; if that has none, of all the others together.
    fn best(&self, node: &Node<'a>, wanted: Wanted) -> Result<Option<&'a TableRoute>> {
        let lowest = node.iter().map(|route| route.metric).min();
        let (first, rest): (Node<'a>, Node<'a>) = node.iter().partition(|route| Some(route.metric) == lowest);
        for routes in [first, rest] {
            let mut found: Option<(i32, &'a TableRoute)> = None;
            for route in routes {
                // A next-hop object that drops everything is taken as soon as it is met.
                if route.object.is_some() && route.kind == kind::BLACKHOLE {
                    return Ok(Some(route));
                }
                for hop in &route.hops {
                    let score = self.score(route, hop, wanted)?;
                    if let Some(score) = score.filter(|score| found.is_none_or(|(best, _)| *score > best)) {
                        found = Some((score, route));
                    }
                }
            }
            if let Some((_, route)) = found {
                return Ok(Some(route));
            }
        }
        Ok(None)
    }

    /// `find_match` and `rt6_score_route`; none for what cannot be used.
    fn score(&self, route: &TableRoute, hop: &NextHop, wanted: Wanted) -> Result<Option<i32>> {
        if hop.dead {
            return Ok(None);
        }
        let there = wanted.interface == 0 || hop.interface == Some(wanted.interface);
        if !there && wanted.only {
            return Ok(None);
        }
        if wanted.reachable
            && let (Some(gateway), Some(interface)) = (hop.gateway, hop.interface)
            && self.state.neighbour(interface, gateway)? & FAILED != 0
        {
            return Ok(None);
        }
        let preference = match route.preference {
            1 => 3,
            3 => 1,
            _ => 2,
        };
        Ok(Some(preference * 4 + if there { 2 } else { 0 }))
    }

    /// `fib6_select_path`
    fn select6(&mut self, route: &'a TableRoute, wanted: Wanted) -> Result<&'a NextHop> {
        let mut usable: Vec<&NextHop> = Vec::new();
        for hop in &route.hops {
            // Of a next-hop object, whatever the interface that was asked for.
            let wanted = if route.object.is_some() { Wanted { interface: 0, only: false, ..wanted } } else { wanted };
            let avoided = match self.avoided_group {
                Some(group) => self.is_of_group(hop, group)?,
                None => false,
            };
            if !avoided && self.score(route, hop, Wanted { reachable: false, ..wanted })?.is_some() {
                usable.push(hop);
            }
        }
        if usable.len() > 1 {
            self.why.hash_policy = Some(self.state.host_settings()?.hash_policy[1]);
        }
        let weights: Vec<u32> = usable.iter().map(|hop| hop.weight).collect();
        let taken = self.chooser.weighted("next hop by hash", &weights);
        // What was avoided are not all, or the rule would not have been left for this route.
        Ok(usable.get(taken).copied().unwrap_or(&route.hops[0]))
    }
}

/// `rt6_need_strict`: addresses that mean something on one link only.
fn is_strict(destination: IpAddr) -> bool {
    match destination {
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_multicast() || address.is_loopback(),
        IpAddr::V4(_) => false,
    }
}

/// The nodes in the order in which they are tried (`fib6_node_lookup`, `fib6_backtrack`). A node with routes for certain sources
/// is passed over at first if the source is none of them, with its routes for all sources.
fn nodes(routes: Vec<&TableRoute>, source: Option<IpAddr>) -> Vec<Node<'_>> {
    let source = source.unwrap_or(std::net::Ipv6Addr::UNSPECIFIED.into());
    let fits = |prefix: &IpNet| prefix.contains(&source);
    let mut lengths: Vec<u8> = routes.iter().map(|route| route.destination.prefix_len()).collect();
    lengths.sort_by_key(|length| Reverse(*length));
    lengths.dedup();
    let mut nodes: Vec<Node<'_>> = Vec::new();
    let mut begun = false;
    for length in lengths {
        let here: Node<'_> = routes.iter().copied().filter(|route| route.destination.prefix_len() == length).collect();
        let (by_source, for_all): (Node<'_>, Node<'_>) = here.into_iter().partition(|route| route.source.is_some());
        // The root is where every search ends.
        let passed_over = !begun && !by_source.is_empty() && length != 0;
        let mut fitting: Vec<(u8, &TableRoute)> = by_source
            .into_iter()
            .filter_map(|route| route.source.filter(fits).map(|prefix| (prefix.prefix_len(), route)))
            .collect();
        fitting.sort_by_key(|(length, _)| Reverse(*length));
        let passed_over = passed_over && fitting.is_empty();
        for group in fitting.chunk_by(|a, b| a.0 == b.0) {
            nodes.push(group.iter().map(|(_, route)| *route).collect());
        }
        if !for_all.is_empty() && !passed_over {
            nodes.push(for_all);
        }
        begun = !nodes.is_empty();
    }
    nodes
}
