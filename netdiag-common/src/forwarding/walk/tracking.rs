//! What connection tracking and address translation do at their hooks.

use super::chain::filter;
use super::{order, reroute};
use crate::forwarding::conntrack::{Connection, Direction, Newcomer, State, Tuple, newcomer, status};
use crate::forwarding::expression::NatKind;
use crate::forwarding::fact::Fact;
use crate::forwarding::machine::{Result, Run, Stop, TrackedEntry, Tracking, UnknownPorts};
use crate::forwarding::nat::{Request, new_entry};
use crate::forwarding::path::{Decision, End, Tracked};
use crate::forwarding::state::{BaseChain, Hook};

/// `nf_conntrack_in`
pub(super) fn track(run: &mut Run<'_>) -> Result<()> {
    let zone = match &run.tracking {
        // What was invalid is looked at again over lo.
        Tracking::Unseen | Tracking::Invalid => 0,
        Tracking::Template { zone } => *zone,
        // All else comes back with what it left with.
        _ => return Ok(()),
    };
    if !run.state.is_tracked(run.packet.protocol)? {
        return Ok(());
    }
    put_together(run)?;
    run.tracking = match run.packet.connection.clone() {
        Fact::Unknown(why) => Tracking::Unknown(why),
        // Each zone has connections of its own.
        Fact::Known(Connection::Existing(mut entry)) if entry.zone == zone => {
            let state = if newcomer(&run.packet) == Newcomer::Error {
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
            Tracking::Tracked(Box::new(TrackedEntry {
                state,
                entry,
                new: false,
                unknown_ports: UnknownPorts::default(),
            }))
        }
        Fact::Known(_) => match settled(run)? {
            Newcomer::New => match Tuple::of(&run.packet) {
                Some(tuple) => Tracking::Tracked(Box::new(TrackedEntry {
                    state: State::New,
                    entry: new_entry(tuple, zone),
                    new: true,
                    unknown_ports: UnknownPorts::default(),
                })),
                None => Tracking::Invalid,
            },
            Newcomer::Untracked => Tracking::Untracked,
            // An error that quotes no connection is invalid (`nf_conntrack_inet_error`).
            Newcomer::Invalid | Newcomer::Error | Newcomer::MidStream => Tracking::Invalid,
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

/// Tracking brings defragmentation to the hooks (`nf_defrag_ipv4`, `nf_defrag_ipv6`): rules see the packet that fragments make up,
/// which goes on from the last one of them.
fn put_together(run: &mut Run<'_>) -> Result<()> {
    match run.packet.fragment() {
        None => Ok(()),
        Some(0) => {
            run.add_gap(
                "the packet is a fragment: it goes on when all others are here, and rules see the whole, whose length is not known",
            );
            Ok(())
        }
        Some(_) => {
            let why = "a later fragment goes on as part of the whole, which the ports of the first one decide about";
            Err(run.unknown(why))
        }
    }
}

/// What a packet without an entry is, with the settings of this namespace: one in the middle of a connection begins it, or stays
/// as it is and is invalid (`tcp_new`, net/netfilter/nf_conntrack_proto_tcp.c, Linux 6.18).
fn settled(run: &mut Run<'_>) -> Result<Newcomer> {
    let newcomer = newcomer(&run.packet);
    if newcomer != Newcomer::MidStream {
        return Ok(newcomer);
    }
    let picks_up = match run.state.tracking_settings()?.tcp_loose {
        Some(picks_up) => picks_up,
        None => run.decide("net.netfilter.nf_conntrack_tcp_loose is on, and connections are picked up in their middle"),
    };
    Ok(if picks_up { Newcomer::New } else { newcomer })
}

pub(super) fn confirm(run: &mut Run<'_>) {
    if let Tracking::Tracked(tracked) = &mut run.tracking {
        tracked.entry.status |= status::CONFIRMED;
    }
}

/// `nf_nat_inet_fn`, and what its callers for each hook do around it.
pub(super) fn translate<'a>(run: &mut Run<'a>, chains: &[&'a BaseChain]) -> Result<()> {
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
            for chain in order::decided(run, chains)? {
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
