//! One packet predicted and sent: the kernel's trace has to be that of a predicted path, event by event, and what leaves
//! has to be what was predicted, byte by byte.

use netdiag_common::forwarding::conntrack::{Connection, Tuple, status};
use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::path::{Decision, End, Path};
use netdiag_common::forwarding::{Fact, Packet};
use netdiag_node::host::forwarding::{Evaluation, evaluate};

use crate::lab::Lab;
use crate::nflog::Log;
use crate::trace::{Event, Kind, Tracer};
use crate::{nflog, traffic, wire};

/// The two ways in which the kernel tells what it does.
pub struct Traces {
    pub tracer: Tracer,
    /// Of legacy tables; none when the test has none.
    pub log: Option<Log>,
}

pub enum Compared {
    /// The path that the kernel took.
    Same(Box<Path>),
    Differs(String),
    /// Nothing can be said about it.
    SetAside,
}

/// What the connections of a ruleset so far look like from their other end, as long as they live.
#[derive(Default)]
pub struct Connections(Vec<Tuple>);

pub fn compare(lab: &Lab, traces: &Traces, packet: &Packet, connections: &mut Connections) -> Compared {
    let evaluation = match evaluate(packet) {
        Ok(evaluation) => evaluation,
        Err(error) => return Compared::Differs(format!("{} was not evaluated: {error}", traffic::words(packet))),
    };
    let _ = lab.left();
    let _ = traces.log.as_ref().map(Log::lines);
    lab.send(packet, traffic::mark_of(packet));
    let last = traffic::last(lab);
    lab.send(&last, 0);
    let events = match traces.tracer.until_last() {
        Ok(events) => events,
        Err(events) => return Compared::Differs(format!("the last packet was not seen after {events:?}")),
    };
    let lines = traces.log.as_ref().map(Log::lines);
    let left = lab.left();
    assert!(evaluation.outcome.paths.iter().all(|path| nflog::is_worded(path, &evaluation.legacy_rules)));
    let logged =
        |path: &Path| lines.as_ref().is_none_or(|lines| nflog::is_expected(path, packet, &evaluation.state, lines));
    let paths = &evaluation.outcome.paths;
    match paths.iter().find(|path| expected(path) == events && logged(path) && fate(path, &left).is_ok()) {
        Some(path) => {
            let entry = path.connection.as_ref().filter(|entry| entry.status & status::CONFIRMED != 0);
            connections.0.extend(entry.map(|entry| entry.reply.clone()));
            Compared::Same(Box::new(path.clone()))
        }
        None if evaluation.outcome.cut || takes_a_used_port(paths, packet, connections) => Compared::SetAside,
        None => Compared::Differs(complaint(packet, &evaluation, (&events, lines.as_deref()), &left)),
    }
}

/// Whether a new connection would be translated to what another one has already: the kernel finds another port, or none
/// and drops the packet.
fn takes_a_used_port(paths: &[Path], packet: &Packet, connections: &Connections) -> bool {
    let new = packet.connection == Fact::Known(Connection::New);
    let used = |path: &Path| path.connection.as_ref().is_some_and(|entry| connections.0.contains(&entry.reply));
    new && paths.iter().any(used)
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
        if chain.family.is_legacy() {
            return None;
        }
        let (family, verdict) = (chain.family, verdict.clone());
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

fn complaint(
    packet: &Packet,
    Evaluation { outcome, state, .. }: &Evaluation,
    (events, lines): (&[Event], Option<&[nflog::Line]>),
    left: &[(u32, Vec<u8>)],
) -> String {
    let mut text = format!("packet {}\nkernel:\n", traffic::words(packet));
    for event in events {
        text += &format!("  {event:?}\n");
    }
    for line in lines.unwrap_or_default() {
        text += &format!("  {line:?}\n");
    }
    text += &format!("  left: {left:02x?}\n");
    for path in outcome.paths.iter().take(4) {
        text += &format!("predicted ({:?}, {:?}, gaps {:?}):\n", path.end, path.assumptions, path.gaps);
        for event in expected(path) {
            let mark = if events.contains(&event) { " " } else { "*" };
            text += &format!(" {mark}{event:?}\n");
        }
        for line in lines.iter().flat_map(|_| nflog::expected(path, packet, state)) {
            let mark = if lines.is_some_and(|lines| lines.contains(&line)) { " " } else { "*" };
            text += &format!(" {mark}{line:?}\n");
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
