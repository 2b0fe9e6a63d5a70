//! What runs at each hook, and in which order.
//!
//! Chains of one hook run by priority; of equal ones the kernel runs the one first that was registered last
//! (`nf_hook_entries_grow`), which is taken to be the one that was made last. Chains of type nat do not run by their own
//! priority: they are called from the one hook of address translation (`nf_nat_register_fn`), one after the other until
//! one of them translates, for packets that begin a connection only. The nat tables of legacy iptables are called from
//! there as well (`ipt_nat_register_lookups`).

use std::cmp::Reverse;

use crate::forwarding::packet::Protocol;
use crate::forwarding::state::{BaseChain, ChainKind, Family, Foreign, Hook, Hooks};

/// `NF_IP_PRI_CONNTRACK`, `NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`; the same for IPv6.
const CONNTRACK_PRIORITY: i32 = -200;
const DESTINATION_NAT_PRIORITY: i32 = -100;
const SOURCE_NAT_PRIORITY: i32 = 100;

/// IPVS looks at answers first, and then at requests: `ip_vs_ops4` and `ip_vs_ops6`, the same in Linux 5.10 and 6.18. What it
/// has at forward with priority 99 is about ICMP errors alone.
const VIRTUAL_AT_INPUT: i32 = SOURCE_NAT_PRIORITY - 2;
const VIRTUAL_AT_OUTPUT: i32 = DESTINATION_NAT_PRIORITY + 1;
const VIRTUAL_AT_FORWARD: i32 = 100;

/// What runs at each hook, for one network protocol.
pub(in crate::forwarding) struct Plan<'a> {
    hooks: [Vec<Call<'a>>; 5],
    pub(super) gaps: Vec<String>,
    /// Those of packets that pass a bridge.
    pub(super) of_bridges: Vec<String>,
}

pub(super) enum Call<'a> {
    /// Of one priority.
    Chains(Vec<&'a BaseChain>),
    Conntrack,
    Nat(Vec<&'a BaseChain>),
    /// Answers of IPVS's real servers.
    VirtualReply,
    /// Packets for IPVS's virtual servers.
    VirtualRequest,
    /// Connections are entered into the table.
    Confirm,
    Foreign(&'a Foreign),
}

const HOOKS: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

impl<'a> Plan<'a> {
    pub(in crate::forwarding) fn new(hooks: &'a Hooks, protocol: Protocol) -> Self {
        let (mut gaps, mut of_bridges) = (Vec::new(), Vec::new());
        for chain in &hooks.chains {
            let elsewhere = matches!(chain.key.family, Family::Netdev | Family::Bridge | Family::Arp);
            if elsewhere || matches!(chain.hook, Hook::Ingress | Hook::Egress) {
                let gaps = if chain.key.family == Family::Bridge { &mut of_bridges } else { &mut gaps };
                gaps.push(format!("chain {} at {} is not evaluated", chain.key, chain.hook));
            }
        }
        Self { hooks: HOOKS.map(|hook| calls(hooks, protocol, hook)), gaps, of_bridges }
    }

    pub(super) fn at(&self, hook: Hook) -> &[Call<'a>] {
        HOOKS.iter().position(|other| *other == hook).map_or(&[], |at| &self.hooks[at])
    }
}

fn calls(hooks: &Hooks, protocol: Protocol, hook: Hook) -> Vec<Call<'_>> {
    let here = |chain: &&BaseChain| chain.hook == hook && chain.key.family.sees(protocol);
    let mut chains: Vec<&BaseChain> = hooks.chains.iter().filter(here).collect();
    // Legacy tables in front of their equals, which is where `order::decided` expects them.
    let rank = |chain: &BaseChain| (chain.priority, !chain.key.family.is_legacy(), Reverse(chain.made));
    chains.sort_by_key(|chain| rank(chain));
    let (nat, filter): (Vec<_>, Vec<_>) = chains.into_iter().partition(|chain| chain.kind == ChainKind::Nat);
    let mut calls: Vec<(i32, Call<'_>)> = Vec::new();
    if matches!(hook, Hook::Prerouting | Hook::Output) {
        calls.push((CONNTRACK_PRIORITY, Call::Conntrack));
    }
    // All four hooks of address translation exist as soon as one chain uses any of them.
    let translated = hooks.chains.iter().any(|chain| chain.kind == ChainKind::Nat && chain.key.family.sees(protocol));
    if translated {
        match hook {
            Hook::Prerouting | Hook::Output => calls.push((DESTINATION_NAT_PRIORITY, Call::Nat(nat))),
            Hook::Input | Hook::Postrouting => calls.push((SOURCE_NAT_PRIORITY, Call::Nat(nat))),
            _ => {}
        }
    }
    let equal = filter.chunk_by(|a, b| a.priority == b.priority);
    calls.extend(equal.map(|chains| (chains[0].priority, Call::Chains(chains.to_vec()))));
    if hooks.balanced {
        match hook {
            Hook::Input => {
                calls.extend([(VIRTUAL_AT_INPUT, Call::VirtualReply), (VIRTUAL_AT_INPUT + 1, Call::VirtualRequest)]);
            }
            Hook::Output => {
                calls.extend([(VIRTUAL_AT_OUTPUT, Call::VirtualReply), (VIRTUAL_AT_OUTPUT + 1, Call::VirtualRequest)]);
            }
            Hook::Forward => calls.push((VIRTUAL_AT_FORWARD, Call::VirtualReply)),
            _ => {}
        }
    }
    if matches!(hook, Hook::Input | Hook::Postrouting) {
        calls.push((i32::MAX, Call::Confirm));
    }
    let foreign = hooks
        .foreign
        .iter()
        .filter(|foreign| foreign.protocol.is_none_or(|of| of == protocol) && foreign.hook.is_none_or(|of| of == hook));
    calls.extend(foreign.map(|foreign| (0, Call::Foreign(foreign))));
    // Stable: what was pushed first stays first among equals.
    calls.sort_by_key(|(priority, _)| *priority);
    calls.into_iter().map(|(_, call)| call).collect()
}
