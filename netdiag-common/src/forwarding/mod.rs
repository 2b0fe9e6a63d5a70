//! What the packet filter of one network namespace does with one packet: an exact evaluator of nf_tables and of legacy
//! iptables.
//!
//! nf_tables is a register machine, and so is this: it executes the kernel's expressions ([`Expression`]) on the packet's
//! bytes and registers, and does not match on rules in words. What a rule means is then never a question of decoding;
//! what is not evaluated is an expression with a name. Entries of legacy tables are rules of the same kind, made of the
//! kernel's own structures ([`Expression::XtEntry`], [`Expression::XtMatch`], [`Expression::XtTarget`]).
//!
//! [`step`] is a pure function of what has been read ([`RuleState`]) and a [`Packet`]. It answers with every path the
//! packet can take, or with the keys of what has to be read first. So whoever holds the kernel reads only the chains,
//! elements and routes on the packet's way, and whoever holds a report asks the same questions of it later.
//!
//! Where the kernel chooses at random, or where something is not known (how much of a limit is left, a mark nobody
//! recorded), the packet is run once for each possibility; see [`Path::assumptions`]. Runs that differ only in the
//! number drawn are one path with the sum of their chances.
//!
//! Not evaluated, and said so in [`Path::gaps`] where it is there: chains at devices (netdev, ingress, egress), tables of the families
//! arp and, where a bridge is on the way, bridge; connections of IPVS that conntrack does not have, and its tunnels; and what the
//! agent looks for when it answers: BPF programs at devices and control groups, tc filters, policies of IPsec. Where the path depends
//! on it: whether a segment of TCP lies in the window of its connection, that a fragment waits for the others, what rules elsewhere see
//! of a packet that leaves in pieces, the path MTU that was learned for a destination, whether one of a few ports is left for a
//! source, whether a small set, or one that is nearly full, has room for what a rule adds, whether a flowtable takes a connection of
//! IPv6 whose sender is not reached where its packets come in, the copies of a frame to a group that a bridge makes. Multicast, and
//! broadcasts that are sent or forwarded, are not followed, and end as not known; so does a later fragment where connections are
//! tracked.
//!
//! Taken both ways where a rule asks for it: eBPF programs of the match bpf, what limits have left, which port a bridge hands a packet
//! to. Not modelled, and not said: whether TCP segments fit the state of their connection, since an entry does not have it; that a
//! source keeps its port or finds another one among many; paths of pieces, and learned path MTUs for packets of others
//! (`net.ipv4.ip_forward_use_pmtu`); sets of legacy iptables that are full, and large ones of nf_tables of which the kernel
//! tells no count. Where packets are routed, and why: [`routing`]. What carries them through tunnels: [`tunnel`].

mod bpf;
pub mod bridge;
mod checksum;
mod choice;
pub mod conntrack;
pub mod expression;
mod fact;
mod fib;
pub mod flowtable;
mod guard;
mod hash;
pub mod ipset;
mod machine;
mod nat;
pub mod packet;
pub mod path;
pub mod recent;
mod register;
pub mod routing;
pub mod set;
pub mod socket;
pub mod state;
mod told;
pub mod tunnel;
pub mod virtual_server;
mod walk;
mod without;
mod xt;

pub use self::expression::Expression;
pub use self::fact::Fact;
pub use self::packet::Packet;
pub use self::path::{Outcome, Path, Step};
pub use self::state::{Key, RuleState};
pub use self::without::{RuleKey, RuleKeyError, Without};

use self::choice::Choices;
use self::machine::{Run, Stop, Tracking};
use self::packet::Origin;
use self::path::Assumption;
use self::state::Hook;
use self::walk::{Plan, walk};

/// Paths that an answer keeps. A Service of a hundred endpoints has a hundred of them, and nobody reads that many.
const MAX_PATHS: usize = 64;

/// Runs of one question. More than paths, since runs that draw different numbers may end up as one path.
const MAX_RUNS: usize = 1024;

/// Evaluates as far as `state` reaches.
pub fn step(state: &RuleState, packet: &Packet) -> Step {
    step_without(state, packet, &Without::new())
}

/// The same as if these rules were not there: all others keep their handles, and policies hold as ever.
pub fn step_without(state: &RuleState, packet: &Packet, without: &Without) -> Step {
    let hooks = match state.hooks() {
        Ok(hooks) => hooks,
        Err(key) => return Step::Missing { keys: vec![key] },
    };
    let plan = Plan::new(hooks, packet.protocol);
    let mut keys: Vec<Key> = Vec::new();
    let mut paths: Vec<Path> = Vec::new();
    let mut cut = false;
    let mut script = Some(Choices::default());
    let mut runs = 0;
    while let Some(choices) = script.take() {
        runs += 1;
        let hook = if packet.origin == Origin::Sent { Hook::Output } else { Hook::Prerouting };
        let mut run = Run::new(state, without, packet.clone(), hook, choices);
        let end = match walk(&mut run, &plan) {
            Ok(end) | Err(Stop::End(end)) => Some(end),
            Err(Stop::Missing(key)) => {
                if !keys.contains(&key) {
                    keys.push(key);
                }
                None
            }
        };
        script = run.choices.clone().following();
        if let Some(end) = end {
            let connection = match run.tracking {
                Tracking::Tracked(tracked) => Some(tracked.entry),
                _ => None,
            };
            let Run { assumptions, decisions, gaps, packet, .. } = run;
            add(&mut paths, Path { assumptions, decisions, gaps, end, packet, connection });
        }
        if script.is_some() && (runs >= MAX_RUNS || paths.len() >= MAX_PATHS || keys.len() >= MAX_PATHS) {
            cut = true;
            break;
        }
    }
    if keys.is_empty() { Step::Done(Outcome { paths, cut }) } else { Step::Missing { keys } }
}

/// Adds a path, or its chance to that of a path which is the same but for the numbers drawn.
fn add(paths: &mut Vec<Path>, path: Path) {
    for known in paths.iter_mut() {
        if known.end == path.end
            && known.decisions == path.decisions
            && known.packet == path.packet
            && known.connection == path.connection
            && merge(&mut known.assumptions, &path.assumptions)
        {
            return;
        }
    }
    paths.push(path);
}

/// Joins two lists that differ in the values of one draw only.
fn merge(known: &mut [Assumption], new: &[Assumption]) -> bool {
    if known.len() != new.len() {
        return false;
    }
    let mut differing = (0..known.len()).filter(|at| known[*at] != new[*at]);
    let (Some(at), None) = (differing.next(), differing.next()) else { return false };
    match (&mut known[at], &new[at]) {
        (
            Assumption::Chance { at, what, values, chance },
            Assumption::Chance { at: new_at, what: new_what, values: new_values, chance: new_chance },
        ) if at == new_at && what == new_what => {
            values.extend(new_values);
            *chance += new_chance;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_virtual_servers;
