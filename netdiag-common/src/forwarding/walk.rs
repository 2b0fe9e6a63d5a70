//! The way of a packet through hooks and routing, and through the chains of a hook.
//!
//! ```text
//! received ─ prerouting ─ route ┬─ input
//!                               └─ forward ─┐
//! sent ─ route ─ output ───────── route ────┴─ postrouting ─ out, or over lo to prerouting
//! ```
//!
//! Chains of one hook run by priority; of equal ones the kernel runs the one first that was registered last
//! (`nf_hook_entries_grow`), which is taken to be the one that was made last. Chains of type nat do not run by their own
//! priority: they are called from the one hook of address translation (`nf_nat_register_fn`), one after the other until
//! one of them translates, for packets that begin a connection only.

use super::conntrack::{Connection, Direction, Newcomer, State, Tuple, newcomer, status};
use super::expression::{NatKind, Verdict};
use super::fact::Fact;
use super::machine::{Result, Run, Stop, TrackedEntry, Tracking};
use super::nat::{Request, new_entry};
use super::packet::{Origin, Packet, Protocol};
use super::path::{Decision, End, Tracked};
use super::register::Registers;
use super::state::{BaseChain, ChainKey, ChainKind, Family, Foreign, Hook, Hooks, Route, RouteQuery};

/// `NF_IP_PRI_CONNTRACK`, `NF_IP_PRI_NAT_DST`, `NF_IP_PRI_NAT_SRC`; the same for IPv6.
const CONNTRACK_PRIORITY: i32 = -200;
const DESTINATION_NAT_PRIORITY: i32 = -100;
const SOURCE_NAT_PRIORITY: i32 = 100;

/// `NFT_JUMP_STACK_SIZE`
const MAX_JUMPS: usize = 16;

/// Rules that one run looks at. A ruleset that was read while it changed may lead in a circle.
const MAX_RULES: u32 = 100_000;

/// Interfaces a packet of this host passes before something is wrong: out and in over lo, once.
const MAX_LOOPS: u32 = 2;

/// What runs at each hook, for one network protocol.
pub(super) struct Plan<'a> {
    hooks: [Vec<Call<'a>>; 5],
    gaps: Vec<String>,
}

enum Call<'a> {
    Chain(&'a BaseChain),
    Conntrack,
    Nat(Vec<&'a BaseChain>),
    /// Connections are entered into the table.
    Confirm,
    Foreign(&'a Foreign),
}

const HOOKS: [Hook; 5] = [Hook::Prerouting, Hook::Input, Hook::Forward, Hook::Output, Hook::Postrouting];

impl<'a> Plan<'a> {
    pub(super) fn new(hooks: &'a Hooks, protocol: Protocol) -> Self {
        let mut gaps = Vec::new();
        for chain in &hooks.chains {
            let elsewhere = matches!(chain.key.family, Family::Netdev | Family::Bridge | Family::Arp);
            if elsewhere || matches!(chain.hook, Hook::Ingress | Hook::Egress) {
                gaps.push(format!("chain {} at {} is not evaluated", chain.key, chain.hook));
            }
        }
        Self { hooks: HOOKS.map(|hook| calls(hooks, protocol, hook)), gaps }
    }

    fn at(&self, hook: Hook) -> &[Call<'a>] {
        HOOKS.iter().position(|other| *other == hook).map_or(&[], |at| &self.hooks[at])
    }
}

fn calls(hooks: &Hooks, protocol: Protocol, hook: Hook) -> Vec<Call<'_>> {
    let family = if protocol == Protocol::Ipv4 { Family::Ip } else { Family::Ip6 };
    let here =
        |chain: &&BaseChain| chain.hook == hook && (chain.key.family == family || chain.key.family == Family::Inet);
    let mut chains: Vec<&BaseChain> = hooks.chains.iter().filter(here).collect();
    chains.sort_by(|a, b| a.priority.cmp(&b.priority).then(b.made.cmp(&a.made)));
    let (nat, filter): (Vec<_>, Vec<_>) = chains.into_iter().partition(|chain| chain.kind == ChainKind::Nat);
    let mut calls: Vec<(i32, Call<'_>)> = Vec::new();
    if matches!(hook, Hook::Prerouting | Hook::Output) {
        calls.push((CONNTRACK_PRIORITY, Call::Conntrack));
    }
    // All four hooks of address translation exist as soon as one chain uses any of them.
    let translated = hooks
        .chains
        .iter()
        .any(|chain| chain.kind == ChainKind::Nat && (chain.key.family == family || chain.key.family == Family::Inet));
    if translated {
        match hook {
            Hook::Prerouting | Hook::Output => calls.push((DESTINATION_NAT_PRIORITY, Call::Nat(nat))),
            Hook::Input | Hook::Postrouting => calls.push((SOURCE_NAT_PRIORITY, Call::Nat(nat))),
            _ => {}
        }
    }
    calls.extend(filter.into_iter().map(|chain| (chain.priority, Call::Chain(chain))));
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

/// Runs the packet to its end.
pub(super) fn walk<'a>(run: &mut Run<'a>, plan: &Plan<'a>) -> Result<End> {
    run.gaps.clone_from(&plan.gaps);
    match run.packet.origin {
        Origin::Received { interface } => {
            run.input = run.state.interface(interface)?;
            if run.input.is_none() {
                return Err(run.unknown(format!("interface {interface} is not there")));
            }
            received(run, plan, None)
        }
        Origin::Sent => sent(run, plan),
    }
}

/// From prerouting on. A packet that came back over lo keeps the route it was sent by.
fn received<'a>(run: &mut Run<'a>, plan: &Plan<'a>, kept: Option<&'a Route>) -> Result<End> {
    let before = run.packet.destination();
    run.route = kept;
    run.output = None;
    hook(run, plan, Hook::Prerouting)?;
    let route = match kept {
        Some(route) if run.packet.destination() == before => route,
        _ => route(run, run.input.map(|input| input.index))?,
    };
    run.route = Some(route);
    match route {
        Route::Local { .. } => {
            hook(run, plan, Hook::Input)?;
            Ok(End::Delivered)
        }
        Route::Forward { interface, .. } => {
            if run.packet.hops_left() <= 1 {
                return Ok(End::HopsExhausted);
            }
            forwarded(&mut run.packet);
            run.output = run.state.interface(*interface)?;
            hook(run, plan, Hook::Forward)?;
            leave(run, plan, 0)
        }
        Route::Refused { why } => Ok(End::NoRoute { why: why.clone() }),
        Route::Unfollowed { why } => Err(run.unknown(why.clone())),
    }
}

/// What forwarding changes before its hook: `ip_forward`, `ip6_forward`.
fn forwarded(packet: &mut Packet) {
    /// `ip_tos2prio`, by pairs of values of the type of service.
    const PRIORITY: [u32; 8] = [0, 0, 2, 2, 6, 6, 4, 4];
    let hops = packet.hops_left().saturating_sub(1);
    match packet.protocol {
        Protocol::Ipv4 => {
            packet.write(8, &[hops]);
            packet.priority = Fact::Known(PRIORITY[usize::from(packet.service() & 0x1e) >> 2]);
        }
        Protocol::Ipv6 => packet.write(7, &[hops]),
    }
}

fn sent<'a>(run: &mut Run<'a>, plan: &Plan<'a>) -> Result<End> {
    set_route(run)?;
    if let Some(end) = refusal(run)? {
        return Ok(end);
    }
    hook(run, plan, Hook::Output)?;
    if let Some(end) = refusal(run)? {
        return Ok(end);
    }
    // The hook itself keeps the interface it began with; what follows uses the route of now.
    let output = run.route.and_then(interface_of);
    run.output = output.map(|index| run.state.interface(index)).transpose()?.flatten();
    leave(run, plan, 0)
}

fn leave<'a>(run: &mut Run<'a>, plan: &Plan<'a>, loops: u32) -> Result<End> {
    hook(run, plan, Hook::Postrouting)?;
    match run.route {
        Some(Route::Forward { interface, gateway, .. }) => Ok(End::Sent { interface: *interface, gateway: *gateway }),
        Some(local @ Route::Local { .. }) if loops < MAX_LOOPS => {
            run.input = run.output;
            received(run, plan, Some(local))
        }
        _ => Err(run.unknown("the packet left without a route")),
    }
}

fn refusal(run: &Run<'_>) -> Result<Option<End>> {
    match run.route {
        Some(Route::Refused { why }) => Ok(Some(End::NoRoute { why: why.clone() })),
        Some(Route::Unfollowed { why }) => Err(run.unknown(why.clone())),
        _ => Ok(None),
    }
}

fn set_route(run: &mut Run<'_>) -> Result<()> {
    let route = route(run, None)?;
    let index = interface_of(route);
    run.route = Some(route);
    run.output = index.map(|index| run.state.interface(index)).transpose()?.flatten();
    Ok(())
}

fn interface_of(route: &Route) -> Option<u32> {
    match route {
        Route::Local { interface } | Route::Forward { interface, .. } => Some(*interface),
        Route::Refused { .. } | Route::Unfollowed { .. } => None,
    }
}

fn route<'a>(run: &mut Run<'a>, input: Option<u32>) -> Result<&'a Route> {
    let mark = match run.packet.mark.clone() {
        Fact::Known(mark) => mark,
        Fact::Unknown(why) => {
            if !run.decide("no routing rule asks for the packet's mark") {
                return Err(run.unknown(format!("the route may depend on the mark, and {why}")));
            }
            0
        }
    };
    let uid = match &run.packet.socket {
        Fact::Known(Some(socket)) if input.is_none() => socket.uid.known().copied(),
        _ => None,
    };
    let query = RouteQuery {
        destination: run.packet.destination(),
        source: Some(run.packet.source()),
        input,
        mark,
        service: if run.packet.protocol == Protocol::Ipv4 { run.packet.service() & 0xfc } else { 0 },
        protocol: run.packet.transport().map_or(0, |transport| transport.protocol),
        ports: run.packet.ports(),
        uid,
    };
    let route = run.state.route(&query)?;
    run.decisions.push(Decision::Routed { hook: run.hook, route: route.clone() });
    Ok(route)
}

fn hook<'a>(run: &mut Run<'a>, plan: &Plan<'a>, hook: Hook) -> Result<()> {
    run.hook = hook;
    // Input and output interface as the hook itself sees them.
    let (input, output) = (run.input, run.output);
    if hook == Hook::Output {
        run.input = None;
    }
    for call in plan.at(hook) {
        match call {
            Call::Conntrack => track(run)?,
            Call::Confirm => confirm(run),
            Call::Nat(chains) => translate(run, chains)?,
            Call::Chain(chain) => filter(run, chain)?,
            Call::Foreign(foreign) => {
                let gap = format!("{} at {hook} is not evaluated", foreign.what);
                if !run.gaps.contains(&gap) {
                    run.gaps.push(gap);
                }
            }
        }
        (run.chain, run.handle) = (None, None);
    }
    (run.input, run.output) = (input, output);
    Ok(())
}

/// `nf_conntrack_in`
fn track(run: &mut Run<'_>) -> Result<()> {
    let zone = match &run.tracking {
        Tracking::Unseen => 0,
        Tracking::Template { zone } => *zone,
        // Over lo it comes with what it left with.
        _ => return Ok(()),
    };
    if !run.state.is_tracked(run.packet.protocol)? {
        return Ok(());
    }
    run.tracking = match run.packet.connection.clone() {
        Fact::Unknown(why) => Tracking::Unknown(why),
        // Each zone has connections of its own.
        Fact::Known(Connection::Existing(mut entry)) if entry.zone == zone => {
            let state = if newcomer(&run.packet, true) == Newcomer::Error {
                State::Related
            } else if entry.direction == Direction::Reply {
                entry.status |= status::SEEN_REPLY;
                State::Established
            } else if entry.status & status::SEEN_REPLY != 0 {
                State::Established
            } else if entry.status & status::EXPECTED != 0 {
                State::Related
            } else {
                State::New
            };
            Tracking::Tracked(Box::new(TrackedEntry { state, entry, new: false, unknown_port: false }))
        }
        Fact::Known(_) => match newcomer(&run.packet, true) {
            Newcomer::New => match Tuple::of(&run.packet) {
                Some(tuple) => Tracking::Tracked(Box::new(TrackedEntry {
                    state: State::New,
                    entry: new_entry(tuple, zone),
                    new: true,
                    unknown_port: false,
                })),
                None => Tracking::Invalid,
            },
            Newcomer::Untracked => Tracking::Untracked,
            // An error that quotes no connection is invalid (`nf_conntrack_inet_error`).
            Newcomer::Invalid | Newcomer::Error => Tracking::Invalid,
        },
    };
    let tracked = match &run.tracking {
        Tracking::Tracked(tracked) => Tracked::State(tracked.state),
        Tracking::Untracked => Tracked::Untracked,
        Tracking::Invalid => Tracked::Invalid,
        _ => return Ok(()),
    };
    run.decisions.push(Decision::Tracked { hook: run.hook, tracked });
    Ok(())
}

fn confirm(run: &mut Run<'_>) {
    if let Tracking::Tracked(tracked) = &mut run.tracking {
        tracked.entry.status |= status::CONFIRMED;
    }
}

/// `nf_nat_inet_fn`, and what its callers for each hook do around it.
fn translate<'a>(run: &mut Run<'a>, chains: &[&'a BaseChain]) -> Result<()> {
    let kind = if matches!(run.hook, Hook::Input | Hook::Postrouting) { NatKind::Source } else { NatKind::Destination };
    let done = if kind == NatKind::Source { status::SOURCE_NAT_DONE } else { status::DESTINATION_NAT_DONE };
    let is_done = |run: &Run<'_>| match &run.tracking {
        Tracking::Tracked(tracked) => tracked.entry.status & done != 0,
        _ => true,
    };
    match &run.tracking {
        Tracking::Tracked(tracked) if tracked.state == State::Established || is_done(run) => {
            if run.leaves_elsewhere() {
                return Err(Stop::End(End::Dropped { by: run.place() }));
            }
        }
        Tracking::Tracked(_) => {
            for chain in chains {
                if is_done(run) {
                    break;
                }
                filter(run, chain)?;
                (run.chain, run.handle) = (None, None);
            }
            if !is_done(run) {
                // The connection keeps its addresses, and that is settled too.
                let request = Request { kind, addresses: None, ports: None, base_port: 0, flags: 0 };
                run.translate(request)?;
            }
        }
        Tracking::Unknown(why) => {
            let why = why.clone();
            return Err(run.unknown(format!("addresses may be translated, and {why}")));
        }
        Tracking::Template { .. } => {
            return Err(run.unknown("a zone was set after connections are looked up, and addresses may be translated"));
        }
        _ => return Ok(()),
    }
    run.apply_translation(kind);
    // `nf_nat_ipv4_local_fn`: a packet of this host gets a route to where it now goes.
    if run.hook == Hook::Output
        && let Tracking::Tracked(tracked) = &run.tracking
    {
        let entry = &tracked.entry;
        let (own, other) = match entry.direction {
            Direction::Original => (&entry.original, &entry.reply),
            Direction::Reply => (&entry.reply, &entry.original),
        };
        if own.destination != other.source {
            reroute(run)?;
        }
    }
    Ok(())
}

/// `ip_route_me_harder`
fn reroute(run: &mut Run<'_>) -> Result<()> {
    let route = route(run, None)?;
    run.route = Some(route);
    match route {
        Route::Refused { .. } => Err(Stop::End(End::Dropped { by: run.place() })),
        _ => Ok(()),
    }
}

/// One base chain, to its verdict.
fn filter<'a>(run: &mut Run<'a>, base: &'a BaseChain) -> Result<()> {
    let fields = |packet: &Packet| {
        let addresses = (packet.source(), packet.destination(), packet.mark.clone(), packet.service());
        // IPv6 looks at the whole first word and at the hop limit.
        let rest = if packet.protocol == Protocol::Ipv6 { packet.bytes.get(..8).map(<[u8]>::to_vec) } else { None };
        (addresses, rest)
    };
    let before = (base.kind == ChainKind::Route && run.hook == Hook::Output).then(|| fields(&run.packet));
    let verdict = chain(run, base)?;
    match verdict {
        Verdict::Accept => {
            // `nf_route_table_hook4`, `nf_route_table_hook6`
            if before.is_some_and(|before| before != fields(&run.packet)) {
                reroute(run)?;
            }
            Ok(())
        }
        Verdict::Drop => Err(Stop::End(match run.rejected {
            Some(with) => End::Rejected { by: run.place(), with },
            None => End::Dropped { by: run.place() },
        })),
        Verdict::Queue { number, .. } => Err(Stop::End(End::Queued { by: run.place(), number })),
        Verdict::Stolen => Err(Stop::End(End::Taken { by: run.place(), what: "a target of iptables".into() })),
        other => Err(run.unknown(format!("verdict {other:?} of a base chain"))),
    }
}

/// `nft_do_chain`
fn chain<'a>(run: &mut Run<'a>, base: &'a BaseChain) -> Result<Verdict> {
    let mut key = base.key.clone();
    let mut rules = rules(run, &key)?;
    let mut returns: Vec<(ChainKey, std::slice::Iter<'a, super::state::Rule>)> = Vec::new();
    let mut seen = 0_u32;
    loop {
        run.chain = Some(key.clone());
        let mut verdict = Verdict::Continue;
        for rule in rules.by_ref() {
            seen += 1;
            if seen > MAX_RULES {
                return Err(run.unknown(format!("more than {MAX_RULES} rules of one base chain")));
            }
            verdict = execute(run, &key, rule)?;
            if verdict != Verdict::Continue {
                break;
            }
        }
        match verdict {
            Verdict::Jump(to) | Verdict::Goto(to) if returns.len() > MAX_JUMPS => {
                return Err(run.unknown(format!("more than {MAX_JUMPS} jumps lead to chain {to}")));
            }
            Verdict::Jump(to) => {
                let next = ChainKey { chain: to, ..key.clone() };
                let next_rules = self::rules(run, &next)?;
                returns.push((std::mem::replace(&mut key, next), std::mem::replace(&mut rules, next_rules)));
            }
            Verdict::Goto(to) => {
                key = ChainKey { chain: to, ..key };
                rules = self::rules(run, &key)?;
            }
            Verdict::Continue | Verdict::Return => {
                run.handle = None;
                if verdict == Verdict::Continue {
                    let mark = run.packet.mark.known().copied();
                    run.decisions.push(Decision::EndOfChain { hook: run.hook, chain: key.clone(), mark });
                }
                match returns.pop() {
                    Some((back, rest)) => (key, rules) = (back, rest),
                    None => {
                        run.chain = Some(base.key.clone());
                        let (hook, chain, verdict) = (run.hook, base.key.clone(), base.policy.clone());
                        run.decisions.push(Decision::Policy { hook, chain, verdict });
                        return Ok(base.policy.clone());
                    }
                }
            }
            other => return Ok(other),
        }
    }
}

fn rules<'a>(run: &Run<'a>, key: &ChainKey) -> Result<std::slice::Iter<'a, super::state::Rule>> {
    let state = run.state;
    match state.chain(key)? {
        Some(chain) => Ok(chain.rules.iter()),
        None => Err(run.unknown(format!("chain {key} is not there"))),
    }
}

/// One rule; its verdict, [`Verdict::Continue`] also when it does not match.
fn execute<'a>(run: &mut Run<'a>, chain: &ChainKey, rule: &'a super::state::Rule) -> Result<Verdict> {
    run.handle = Some(rule.handle);
    run.registers = Registers::default();
    run.found.clear();
    let mut verdict = Verdict::Continue;
    for expression in &rule.expressions {
        verdict = run.execute(expression)?;
        if verdict != Verdict::Continue {
            break;
        }
    }
    if verdict == Verdict::Break {
        return Ok(Verdict::Continue);
    }
    run.decisions.push(Decision::Rule {
        hook: run.hook,
        chain: chain.clone(),
        handle: rule.handle,
        verdict: verdict.clone(),
        elements: std::mem::take(&mut run.found),
        comment: rule.comment.clone(),
        mark: run.packet.mark.known().copied(),
    });
    Ok(verdict)
}
