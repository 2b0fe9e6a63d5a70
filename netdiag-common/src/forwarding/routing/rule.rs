//! The rules, from the first one on until one decides (`fib_rules_lookup`, `net/core/fib_rules.c`, Linux 6.18).

use std::net::IpAddr;

use ipnet::IpNet;

use super::super::packet::Protocol;
use super::super::state::RuleState;
use super::table::{DEFAULT_TABLE, LOCAL_TABLE, MAIN_TABLE, NextHop, RoutingRule, TableKey, TableRoute, action};
use super::{Considered, Flow, LOOPBACK, Lookup, MAX_NAMED_RULES, Refusal, Result, Router, RuleResult};

/// Rules that one lookup looks at. They can only lead forwards, unless they were read while they changed.
const MAX_RULES: usize = 100_000;

/// What one table says.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Found<'a> {
    Route(&'a TableRoute),
    /// Nothing, or `throw`.
    Nothing,
    Refused(&'a TableRoute, Refusal),
}

/// How a family looks into one of its tables.
pub(super) type TableLookup<'a, 'r> = &'r mut dyn FnMut(&mut Router<'a>, TableKey) -> Result<Found<'a>>;

impl<'a> Router<'a> {
    pub(super) fn look_up(&mut self, flow: &Flow, table: TableLookup<'a, '_>) -> Result<Lookup<'a>> {
        let rules = self.state.routing_rules(flow.protocol)?;
        let mut at = 0;
        let mut seen = 0;
        while let Some(rule) = rules.get(at) {
            seen += 1;
            if seen > MAX_RULES {
                break;
            }
            at += 1;
            if !self.matches(rule, flow)? {
                self.why.passed += 1;
                continue;
            }
            let key = TableKey { protocol: flow.protocol, table: rule.table };
            let result = match rule.action {
                action::TO_TABLE => match table(self, key)? {
                    Found::Nothing => RuleResult::NoRoute,
                    Found::Route(route) if self.suppresses(rule, route)? => RuleResult::Suppressed,
                    Found::Route(route) => {
                        self.consider(rule, RuleResult::Decided);
                        return Ok(Lookup::Route(rule.table, route));
                    }
                    Found::Refused(route, refusal) => {
                        self.consider(rule, RuleResult::Decided);
                        (self.why.table, self.why.route) = (Some(rule.table), Some(route.clone()));
                        return Ok(Lookup::Refused(refusal));
                    }
                },
                action::GOTO => {
                    // Without a target it does nothing. Targets come later: the kernel refuses others.
                    let target = rule.goto.and_then(|goto| rules.iter().position(|rule| rule.priority == goto));
                    at = target.map_or(at, |target| target.max(at));
                    RuleResult::GoesOn
                }
                action::NOP => RuleResult::GoesOn,
                refusing => {
                    self.consider(rule, RuleResult::Decided);
                    return Ok(Lookup::Refused(match refusing {
                        action::UNREACHABLE => Refusal::Network,
                        action::PROHIBIT => Refusal::Prohibited,
                        _ => Refusal::Blackhole,
                    }));
                }
            };
            self.consider(rule, result);
        }
        Ok(Lookup::Refused(Refusal::Network))
    }

    fn consider(&mut self, rule: &RoutingRule, result: RuleResult) {
        if self.why.rules.len() >= MAX_NAMED_RULES && result != RuleResult::Decided {
            self.why.unnamed += 1;
            return;
        }
        self.why.rules.push(Considered { priority: rule.priority, rule: rule.to_string(), result });
    }

    /// `fib_rule_match`, with `fib4_rule_match` and `fib6_rule_match`.
    fn matches(&mut self, rule: &RoutingRule, flow: &Flow) -> Result<bool> {
        let matches = self.selects(rule, flow)?;
        Ok(matches != rule.inverted)
    }

    fn selects(&mut self, rule: &RoutingRule, flow: &Flow) -> Result<bool> {
        let by_header = (flow.mark ^ rule.mark) & rule.mask == 0
            && is_within(rule.destination, Some(flow.destination))
            && is_within(rule.source, flow.source)
            && by_service(rule, flow)
            && (rule.protocol == 0 || rule.protocol == flow.transport)
            && rule.source_ports.is_none_or(|ports| ports.hold(flow.ports.0))
            && rule.destination_ports.is_none_or(|ports| ports.hold(flow.ports.1));
        // No VRF is on the way: `Router::answer`.
        if !by_header || rule.vrf {
            return Ok(false);
        }
        if !is_interface(self.state, rule.input.as_deref(), flow.input)?
            || !is_interface(self.state, rule.output.as_deref(), flow.output)?
        {
            return Ok(false);
        }
        if let Some((first, last)) = rule.users {
            let user = match flow.user {
                Some(user) => (first..=last).contains(&user),
                None => self.chooser.holds(&format!("the packet's user is one of {first} to {last}")),
            };
            if !user {
                return Ok(false);
            }
        }
        let words = |other: &String| format!("the packet matches `{other}` of routing rule {}", rule.priority);
        Ok(rule.others.iter().all(|other| self.chooser.holds(&words(other))))
    }

    /// `fib4_rule_suppress`, `fib6_rule_suppress`. Of several next hops, IPv4 looks at the first one and IPv6 at the one
    /// that the hash chose.
    fn suppresses(&mut self, rule: &RoutingRule, route: &TableRoute) -> Result<bool> {
        if rule.suppressed_length.is_some_and(|length| u32::from(route.destination.prefix_len()) <= length) {
            return Ok(true);
        }
        let Some(group) = rule.suppressed_group else { return Ok(false) };
        let mut hops = route.hops.iter().filter(|hop| !hop.dead);
        let Some(first) = route.hops.first() else { return Ok(false) };
        if route.destination.addr().is_ipv4() || route.hops.len() == 1 {
            return self.is_of_group(first, group);
        }
        let of_group = hops.try_fold((false, false), |(some, others), hop| {
            let is = self.is_of_group(hop, group)?;
            Ok((some || is, others || !is))
        })?;
        Ok(match of_group {
            (true, true) => {
                let avoided = self.chooser.holds(&format!("the hash chooses no next hop of interface group {group}"));
                self.avoided_group = self.avoided_group.or(Some(group).filter(|_| avoided));
                !avoided
            }
            (some, _) => some,
        })
    }

    pub(super) fn is_of_group(&self, hop: &NextHop, group: u32) -> Result<bool> {
        let Some(index) = hop.interface else { return Ok(false) };
        Ok(self.state.interface(index)?.is_some_and(|interface| interface.group == group))
    }
}

/// A source that is not chosen yet is within no prefix. (For Mobile IPv6 a rule may ask for the source that would be chosen,
/// `FIB_RULE_FIND_SADDR`, which no tool sets.)
fn is_within(prefix: Option<IpNet>, address: Option<IpAddr>) -> bool {
    match (prefix, address) {
        (None, _) => true,
        (Some(prefix), Some(address)) => prefix.contains(&address),
        (Some(prefix), None) => prefix.prefix_len() == 0,
    }
}

/// Rules with a type of service compare its three lower bits with those of IPv4 (`fib_dscp_masked_match`), and all six
/// of IPv6.
fn by_service(rule: &RoutingRule, flow: &Flow) -> bool {
    if let Some((value, mask)) = rule.differentiated {
        return (value ^ (flow.service >> 2)) & mask == 0;
    }
    let visible = if flow.protocol == Protocol::Ipv4 { 0x1c } else { 0xfc };
    rule.service == 0 || rule.service == flow.service & visible
}

fn is_interface(state: &RuleState, name: Option<&str>, index: u32) -> Result<bool> {
    match (name, index) {
        (None, _) => Ok(true),
        (Some(_), 0) => Ok(false),
        (Some(name), LOOPBACK) => Ok(name == "lo"),
        (Some(name), index) => Ok(state.interface(index)?.is_some_and(|interface| &*interface.name == name)),
    }
}

/// Whether nothing but the rules that a namespace begins with is there.
pub(super) fn are_initial(rules: &[RoutingRule]) -> bool {
    let wanted = [(0, LOCAL_TABLE), (32_766, MAIN_TABLE), (32_767, DEFAULT_TABLE)];
    rules.len() == wanted.len()
        && rules.iter().zip(wanted).all(|(rule, (priority, table))| {
            *rule == RoutingRule { priority, table, action: action::TO_TABLE, ..RoutingRule::default() }
        })
}
