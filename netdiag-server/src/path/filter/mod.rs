//! Where a node's packet filter stops one connection: its base chains are walked for the first packet, as far as the
//! rules can be decided.
//!
//! An accept ends one base chain and never saves from a drop in a later one (nft(8), "a packet may be accepted in one
//! chain and dropped in another of the same hook").

use std::net::{IpAddr, SocketAddr};

use netdiag_common::observation::Protocol;
use netdiag_common::observation::rules::{Chain, Hook, Match, Rule, Ruleset, Table, Verdict};

mod object;
mod owner;
mod part;
mod policies;

pub use object::ServiceChains;
pub use owner::{MetRule, Owner, owner, owner_by_names, owner_of_policy, owner_of_tunnel};
pub use part::part;
pub use policies::PolicyChains;

/// The first packet of a connection, in one hook of one node.
#[derive(Debug, Clone)]
pub struct Packet<'n> {
    /// None where the host chooses it.
    pub source: Option<IpAddr>,
    /// What the client dials; differs from the endpoint until the Service's translation.
    pub dialled: SocketAddr,
    pub endpoint: SocketAddr,
    pub protocol: Protocol,
    /// Names of the interfaces it comes from and goes to, where they are known.
    pub input: Option<&'n str>,
    pub output: Option<&'n str>,
}

/// A rule, or a chain's policy, that stops the packet.
#[derive(Debug, Clone, Copy)]
pub struct Stop<'r> {
    pub table: &'r Table,
    pub chain: &'r Chain,
    /// None when it is the base chain's policy.
    pub rule: Option<&'r Rule>,
    /// Every match on the way here was decided.
    pub sure: bool,
}

/// Destination translation happens at this priority of prerouting and output (`NF_IP_PRI_NAT_DST`).
const TRANSLATES_AT: i32 = -100;
/// Chains jumped into at once (`NFT_JUMP_STACK_SIZE`).
const MAX_DEPTH: usize = 16;
/// Uncertain stops reported before the walk goes on without them.
const MAX_STOPS: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Matches {
    Yes,
    No,
    /// A match that the reader or this walk cannot decide.
    Maybe,
}

/// The stops of these hooks in the order the packet meets them. A sure one is the last.
pub fn stops<'r>(rules: &'r Ruleset, hooks: &[Hook], packet: &Packet, translated: bool) -> Vec<Stop<'r>> {
    let mut walk = Walk { packet, endpoint_seen: true, stops: Vec::new(), done: false };
    for hook in hooks {
        let of_family = rules.tables.iter().filter(|table| sees(table, packet.endpoint.ip()));
        let mut bases: Vec<(&Table, &Chain, i32)> = of_family
            .flat_map(|table| table.chains.iter().map(move |chain| (table, chain)))
            .filter_map(|(table, chain)| {
                let base = chain.base.as_ref().filter(|base| base.hook == *hook)?;
                Some((table, chain, base.priority))
            })
            .collect();
        bases.sort_by_key(|(_, _, priority)| *priority);
        for (table, chain, priority) in bases {
            let before = matches!(hook, Hook::Prerouting | Hook::Output) && priority <= TRANSLATES_AT;
            walk.endpoint_seen = translated || !before;
            walk.base(table, chain);
            if walk.done {
                return walk.stops;
            }
        }
    }
    walk.stops
}

fn sees(table: &Table, address: IpAddr) -> bool {
    match table.family.as_str() {
        "inet" => true,
        "ip" => address.is_ipv4(),
        "ip6" => address.is_ipv6(),
        _ => false,
    }
}

struct Walk<'p, 'r> {
    packet: &'p Packet<'p>,
    /// Whether this hook sees the endpoint or what the client dialled.
    endpoint_seen: bool,
    stops: Vec<Stop<'r>>,
    /// A sure stop was found.
    done: bool,
}

/// How a chain was left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Left {
    /// Its end or a return was reached: the caller goes on.
    End,
    /// The packet is accepted, translated or stopped: the base chain is over.
    Decided,
}

impl<'r> Walk<'_, 'r> {
    fn base(&mut self, table: &'r Table, chain: &'r Chain) {
        let mut sure = true;
        let left = self.chain(table, chain, &mut sure, 0);
        let policy_drops = chain.base.as_ref().is_some_and(|base| base.policy == Verdict::Drop);
        if left == Left::End && policy_drops {
            self.stop(Stop { table, chain, rule: None, sure });
        }
    }

    /// `sure` becomes false once an undecided rule may have taken the packet away.
    fn chain(&mut self, table: &'r Table, chain: &'r Chain, sure: &mut bool, depth: usize) -> Left {
        for rule in &chain.rules {
            let matches = self.rule_matches(rule);
            if matches == Matches::No {
                continue;
            }
            let certain = matches == Matches::Yes;
            match &rule.verdict {
                Verdict::Continue => {}
                Verdict::Accept | Verdict::Dnat { .. } | Verdict::Snat { .. } | Verdict::Masquerade => {
                    if certain {
                        return Left::Decided;
                    }
                    *sure = false;
                }
                Verdict::Drop | Verdict::Reject { .. } => {
                    self.stop(Stop { table, chain, rule: Some(rule), sure: *sure && certain });
                    if certain || self.done {
                        return Left::Decided;
                    }
                    *sure = false;
                }
                Verdict::Return => {
                    if certain {
                        return Left::End;
                    }
                    *sure = false;
                }
                Verdict::Jump { chain: name } | Verdict::Goto { chain: name } => {
                    let target = table.chains.iter().find(|chain| chain.name == *name);
                    let (Some(target), true) = (target, depth < MAX_DEPTH) else {
                        *sure = false;
                        continue;
                    };
                    *sure &= certain;
                    let left = self.chain(table, target, sure, depth + 1);
                    let leaves = matches!(rule.verdict, Verdict::Goto { .. });
                    match left {
                        Left::Decided if certain || self.done => return Left::Decided,
                        Left::Decided => *sure = false,
                        Left::End if leaves && certain => return Left::End,
                        Left::End => {}
                    }
                }
                // A map, a queue or something unknown decides about the packet.
                Verdict::Map { .. } | Verdict::Queue | Verdict::Other { .. } => *sure = false,
            }
        }
        Left::End
    }

    fn stop(&mut self, stop: Stop<'r>) {
        if stop.sure || self.stops.len() < MAX_STOPS {
            self.stops.push(stop);
        }
        self.done = stop.sure;
    }

    fn rule_matches(&self, rule: &Rule) -> Matches {
        let mut all = Matches::Yes;
        for one in &rule.matches {
            match self.matches(one) {
                Matches::No => return Matches::No,
                Matches::Maybe => all = Matches::Maybe,
                Matches::Yes => {}
            }
        }
        all
    }

    fn matches(&self, one: &Match) -> Matches {
        let packet = self.packet;
        let destination = if self.endpoint_seen { packet.endpoint } else { packet.dialled };
        match one {
            Match::Source { nets, negated } => match packet.source {
                Some(source) => decided(nets.iter().any(|net| net.contains(&source)), *negated),
                None => Matches::Maybe,
            },
            Match::Destination { nets, negated } => {
                decided(nets.iter().any(|net| net.contains(&destination.ip())), *negated)
            }
            Match::Protocol { protocols, negated } => decided(protocols.contains(&packet.protocol), *negated),
            Match::DestinationPort { ranges, negated } => {
                let port = destination.port();
                decided(ranges.iter().any(|range| (range.first..=range.last).contains(&port)), *negated)
            }
            // The client's own port is any of the ephemeral ones.
            Match::SourcePort { .. } => Matches::Maybe,
            Match::InputInterface { names, negated } => interface(packet.input, names, *negated),
            Match::OutputInterface { names, negated } => interface(packet.output, names, *negated),
            Match::ConntrackState { states, negated } => decided(states.iter().any(|state| state == "new"), *negated),
            Match::Family { family } => decided((family == "ip" || family == "ipv4") == destination.is_ipv4(), false),
            Match::Other { .. } => Matches::Maybe,
        }
    }
}

fn decided(holds: bool, negated: bool) -> Matches {
    if holds == negated { Matches::No } else { Matches::Yes }
}

fn interface(own: Option<&str>, names: &[String], negated: bool) -> Matches {
    let Some(own) = own else { return Matches::Maybe };
    let is = |name: &String| match name.strip_suffix('*') {
        Some(prefix) => own.starts_with(prefix),
        None => own == name,
    };
    decided(names.iter().any(is), negated)
}

#[cfg(test)]
mod tests;
