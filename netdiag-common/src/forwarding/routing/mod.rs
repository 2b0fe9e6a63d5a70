//! Where a packet is routed, and why: an exact evaluation of routing rules and tables (Linux 6.18).
//!
//! [`answers`] is a pure function of what has been read and a [`RouteQuery`]: which rules were looked at, which one
//! decided, which route of which table it led to, which next hop, and for received packets of IPv4 whether the way back
//! to their source allows them in (`fib_validate_source`). It gives several answers where the kernel's hash chooses
//! among next hops, whose seed nobody can read, and where something is not known.
//!
//! Rules are read whole, since all of them may be looked at, and are few. A table is kept whole up to a size; of a larger
//! one (a router with a full table) only the routes that hold the addresses asked for, at most one per prefix length
//! and metric, so that neither a report nor the memory grows with the table. Asking the kernel to look a destination up
//! in one table is not possible: `RTM_GETROUTE` goes through the rules.
//!
//! The kernel's own answer ([`Key::Route`]) is the second opinion wherever the kernel can be asked
//! ([`RoutingState::live`]). It settles which of several answers holds, because it hashes with the kernel's seed; and where
//! none of them is the kernel's, the path goes on with the kernel's and names both in a gap. It is not asked about what it
//! cannot be asked about: a source that is no address of this host, and protocols that `rtm_getroute_parse_ip_proto`
//! refuses.
//!
//! Not evaluated, and said so: VRFs, tunnel keys and flow labels in rules, encapsulations, multicast. Not modelled, and not said:
//! redirects that were learned for single destinations, which the second opinion shows. Path MTUs that were, are named where the
//! length of a packet depends on one.

mod choose;
mod ipv4;
mod ipv6;
mod received;
mod rule;
mod source;
pub mod table;
mod words;

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

pub use self::choose::Assumed;
pub use self::table::{
    HostSettings, Ipv4Settings, Ipv6Settings, NextHop, Ports, RouteTable, RoutedInterface, RoutingRule, RoutingState,
    Settings, TableKey, TableRoute,
};

use self::choose::Chooser;
use super::choice::Choices;
use super::packet::Protocol;
use super::state::{Key, Route, RouteQuery, RuleState};

/// `LOOPBACK_IFINDEX`: the interface lo has this index in every namespace.
const LOOPBACK: u32 = 1;

/// Answers to one question. A route has at most 256 next hops in practice, and few things are unknown at once.
const MAX_ANSWERS: usize = 256;

/// Rules that are named one by one in an answer.
const MAX_NAMED_RULES: usize = 32;

/// One way in which a packet may be routed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Answer {
    /// Refused where IPv4 discards the packet.
    pub route: Route,
    /// The packet is not let in or on, whatever the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub discarded: Option<Discard>,
    pub why: Why,
    /// What has to hold for this answer.
    pub assumptions: Vec<Assumed>,
}

/// The rules and the route that decided.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Why {
    /// Rules whose selectors matched, in order, up to the one that decided.
    pub rules: Vec<Considered>,
    /// Further rules on the way that matched, and are not named.
    #[serde(default)]
    pub unnamed: u32,
    /// Rules on the way that did not match.
    pub passed: u32,
    /// The table of the route.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub table: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<TableRoute>,
    /// `fib_multipath_hash_policy`, where a hash chose among several next hops: 0 by addresses, 1 by ports too, 2 by
    /// inner addresses, 3 by the fields that are set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_policy: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Considered {
    pub priority: u32,
    /// As ip-rule(8) writes it: `from 10.0.0.0/8 fwmark 0x1 lookup 100`.
    pub rule: String,
    pub result: RuleResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RuleResult {
    Decided,
    /// Its table has no route for the packet, or one that throws it back.
    NoRoute,
    /// It does not want the route that its table has.
    Suppressed,
    /// On with another rule, or the next one.
    GoesOn,
}

/// Why the kernel drops a packet before or instead of routing it, as its drop reason says it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Discard {
    /// `IP_RPFILTER`: of `enum skb_drop_reason`, as of Linux 6.14.
    pub reason: String,
    /// The function that drops it.
    pub function: String,
    pub why: String,
}

/// Every way in which the packet may be routed.
pub fn answers(state: &RuleState, query: &RouteQuery) -> Result<Vec<Answer>, Key> {
    let mut answers: Vec<Answer> = Vec::new();
    let mut script = Some(Choices::default());
    while let Some(choices) = script.take() {
        let mut router = Router { state, chooser: Chooser::new(choices), why: Why::default(), avoided_group: None };
        let (route, discarded) = router.answer(query)?;
        let Router { chooser, why, .. } = router;
        let (choices, assumptions) = chooser.end();
        answers.push(Answer { route, discarded, why, assumptions });
        script = choices.following().filter(|_| answers.len() < MAX_ANSWERS);
    }
    Ok(answers)
}

/// Whether the kernel's answer to the same question is one that this is. `RTM_GETROUTE` refuses what IPv4 discards, and
/// knows nothing of what IPv6 discards.
pub fn agrees(answer: &Answer, kernel: &Route) -> bool {
    match (&answer.route, kernel) {
        (Route::Refused { .. }, Route::Refused { .. }) => true,
        (Route::Local { interface }, Route::Local { interface: other }) => interface == other,
        (
            Route::Forward { interface, gateway, .. },
            Route::Forward { interface: other_interface, gateway: other_gateway, .. },
        ) => (interface, gateway) == (other_interface, other_gateway),
        _ => false,
    }
}

/// Whether `RTM_GETROUTE` can be asked this.
pub(super) fn is_askable(state: &RuleState, query: &RouteQuery) -> Result<bool, Key> {
    // `rtm_getroute_parse_ip_proto`
    let protocol = matches!(query.protocol, 0 | 1 | 6 | 17 | 58);
    let own = match query.source {
        Some(source) if query.input.is_none() => ipv4::is_own(state, source)?,
        _ => true,
    };
    Ok(protocol && own)
}

/// What the kernel looks a route up by (`struct flowi4`, `struct flowi6`).
#[derive(Debug, Clone)]
struct Flow {
    protocol: Protocol,
    destination: IpAddr,
    source: Option<IpAddr>,
    /// lo for packets of this host.
    input: u32,
    /// 0 for none.
    output: u32,
    mark: u32,
    service: u8,
    transport: u8,
    ports: (u16, u16),
    /// None when it is not known.
    user: Option<u32>,
}

impl Flow {
    fn new(query: &RouteQuery) -> Self {
        Self {
            protocol: if query.destination.is_ipv4() { Protocol::Ipv4 } else { Protocol::Ipv6 },
            destination: query.destination,
            source: query.source.filter(|source| !source.is_unspecified()),
            input: query.input.unwrap_or(LOOPBACK),
            output: query.output.unwrap_or(0),
            mark: query.mark,
            service: query.service & 0xfc,
            transport: query.protocol,
            ports: query.ports.unwrap_or((0, 0)),
            // Received packets are nobody's: `sock_net_uid` without a socket is the namespace's root.
            user: if query.input.is_some() { Some(0) } else { query.uid },
        }
    }
}

/// One evaluation.
struct Router<'a> {
    state: &'a RuleState,
    chooser: Chooser,
    why: Why,
    /// Of this interface group no next hop was chosen: a rule would not have it.
    avoided_group: Option<u32>,
}

type Result<T, E = Key> = std::result::Result<T, E>;

/// What a lookup through the rules found.
enum Lookup<'a> {
    Route(u32, &'a TableRoute),
    Refused(Refusal),
}

/// Errors of lookups, as sockets see them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// `ENETUNREACH`
    Network,
    /// `EHOSTUNREACH`
    Host,
    /// `EACCES`
    Prohibited,
    /// `EINVAL`
    Blackhole,
}

impl Refusal {
    fn route(self) -> Route {
        let why = match self {
            Self::Network => "no route: network is unreachable",
            Self::Host => "unreachable: no route to host",
            Self::Prohibited => "prohibited: permission denied",
            Self::Blackhole => "blackhole",
        };
        Route::Refused { why: why.into() }
    }
}

impl Router<'_> {
    fn answer(&mut self, query: &RouteQuery) -> Result<(Route, Option<Discard>)> {
        let flow = Flow::new(query);
        for index in [query.input, query.output].into_iter().flatten() {
            let interface = self.state.routed_interface(index)?;
            if let Some(vrf) = interface.and_then(|interface| interface.vrf.as_ref()) {
                let why = format!("interface {index} belongs to VRF {vrf}, whose routing is not evaluated");
                return Ok((Route::Unfollowed { why }, None));
            }
        }
        if query.destination.is_multicast() {
            let why = format!("{} is a multicast address", query.destination);
            return Ok((Route::Unfollowed { why }, None));
        }
        match (flow.protocol, query.input) {
            (Protocol::Ipv4, Some(input)) => self.receive(&flow, input),
            (Protocol::Ipv4, None) => Ok((self.send4(&flow)?, None)),
            (Protocol::Ipv6, input) => self.route6(&flow, input),
        }
    }
}

#[cfg(test)]
mod tests;
