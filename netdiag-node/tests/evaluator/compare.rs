//! One packet predicted and sent: the kernel's trace has to be that of a predicted path, event by event, and what leaves
//! has to be what was predicted, byte by byte.

use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::path::{Decision, End, Path};
use netdiag_common::forwarding::state::Family;
use netdiag_common::forwarding::{Outcome, Packet};
use netdiag_node::host::forwarding::evaluate;

use crate::lab::Lab;
use crate::trace::{Event, Kind, Tracer};
use crate::{traffic, wire};

/// The path that the kernel took, or how it differs from all that were predicted.
pub fn compare(lab: &Lab, tracer: &Tracer, packet: &Packet) -> Result<Path, String> {
    let evaluation = evaluate(packet).map_err(|error| format!("not evaluated: {error}"))?;
    let _ = lab.left();
    lab.send(packet.origin, packet.protocol, &packet.bytes, traffic::mark_of(packet));
    let last = traffic::last(lab);
    lab.send(last.origin, last.protocol, &last.bytes, 0);
    let events = tracer.until_last().map_err(|events| format!("the last packet was not seen after {events:?}"))?;
    let left = lab.left();
    let paths = &evaluation.outcome.paths;
    let found = paths.iter().find(|path| expected(path) == events && fate(path, &left).is_ok());
    found.cloned().ok_or_else(|| complaint(packet, &evaluation.outcome, &events, &left))
}

/// What the kernel's trace says when a packet takes this path.
fn expected(path: &Path) -> Vec<Event> {
    let mut mark = traffic_mark(path);
    let events = path.decisions.iter().filter_map(|decision| {
        let (chain, kind, handle, verdict) = match decision {
            Decision::Rule { chain, handle, verdict, mark: after, .. } => {
                mark = after.unwrap_or(mark);
                (chain, Kind::Rule, Some(*handle), verdict)
            }
            Decision::EndOfChain { chain, mark: after, .. } => {
                mark = after.unwrap_or(mark);
                (chain, Kind::Rule, None, &Verdict::Continue)
            }
            Decision::Policy { chain, verdict, .. } => (chain, Kind::Policy, None, verdict),
            _ => return None,
        };
        let family = match chain.family {
            Family::Inet => 1,
            Family::Ip => 2,
            Family::Ip6 => 10,
            _ => 0,
        };
        let verdict = match verdict {
            Verdict::Drop => (0, None),
            Verdict::Accept => (1, None),
            Verdict::Stolen => (2, None),
            Verdict::Queue { number, .. } => (3 | i32::from(*number) << 16, None),
            Verdict::Continue => (-1, None),
            Verdict::Break => (-2, None),
            Verdict::Jump(to) => (-3, Some(to.to_string())),
            Verdict::Goto(to) => (-4, Some(to.to_string())),
            Verdict::Return => (-5, None),
            Verdict::Other(code) => (*code, None),
        };
        let (table, chain) = (chain.table.to_string(), chain.chain.to_string());
        Some(Event { family, table, chain, kind, handle, verdict, mark })
    });
    events.collect()
}

/// Before its first rule a packet has the mark of its socket.
fn traffic_mark(path: &Path) -> u32 {
    path.decisions
        .iter()
        .find_map(|decision| match decision {
            Decision::Rule { mark, .. } => *mark,
            _ => None,
        })
        .unwrap_or(0)
}

/// Whether what left the router is what the path ends with.
fn fate(path: &Path, left: &[(u32, Vec<u8>)]) -> Result<(), String> {
    match (&path.end, left) {
        (End::Sent { interface, .. }, [(found, bytes)]) if interface == found => {
            let mut wanted = wire::comparable(&path.packet.bytes);
            let mut bytes = wire::comparable(bytes);
            for unknown in &path.packet.unknown {
                wanted[unknown.offset..unknown.offset + unknown.bytes].fill(0);
                bytes[unknown.offset..unknown.offset + unknown.bytes].fill(0);
            }
            // Ethernet frames are filled up to 60 bytes.
            bytes.truncate(wanted.len());
            if wanted == bytes { Ok(()) } else { Err(format!("sent as {bytes:02x?}, not as {wanted:02x?}")) }
        }
        (End::Sent { interface, .. }, left) => Err(format!("not sent out of interface {interface} but {left:02x?}")),
        (_, []) => Ok(()),
        (end, left) => Err(format!("{end:?}, and yet it left: {left:02x?}")),
    }
}

fn complaint(packet: &Packet, outcome: &Outcome, events: &[Event], left: &[(u32, Vec<u8>)]) -> String {
    let mut text = format!("packet {}\nkernel:\n", traffic::words(packet));
    for event in events {
        text += &format!("  {event:?}\n");
    }
    text += &format!("  left: {left:02x?}\n");
    for path in outcome.paths.iter().take(4) {
        text += &format!("predicted ({:?}, {:?}, gaps {:?}):\n", path.end, path.assumptions, path.gaps);
        for event in expected(path) {
            let mark = if events.contains(&event) { " " } else { "*" };
            text += &format!(" {mark}{event:?}\n");
        }
        text += &format!("  fate: {:?}\n", fate(path, left));
        for decision in &path.decisions {
            if !matches!(decision, Decision::Rule { .. } | Decision::EndOfChain { .. } | Decision::Policy { .. }) {
                text += &format!("  . {decision:?}\n");
            }
        }
    }
    text += &format!("{} paths, cut: {}\n", outcome.paths.len(), outcome.cut);
    text
}
