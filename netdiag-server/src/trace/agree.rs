//! What was predicted beside what the kernel traced, decision by decision. Pure.

use netdiag_common::forwarding::Path;
use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::path::Decision;
use netdiag_common::forwarding::state::Family;
use netdiag_common::observation::trace::{TraceEvent, TraceKind, TracedPacket};

/// One line of the two columns.
#[derive(Debug, Clone, PartialEq)]
pub enum Side {
    /// The kernel does not trace these: routes, translations, what connection tracking finds.
    Untraced(Decision),
    Both(Decision),
    Predicted(Decision),
    Traced(TraceEvent),
}

/// The two columns of one namespace.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Compared {
    pub sides: Vec<Side>,
}

/// Whether prediction and trace say the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Agreement {
    Same,
    Differs,
    /// Nothing was traced there.
    NotTraced,
}

/// What a traced decision is known by on both sides.
#[derive(PartialEq)]
struct Mark<'a> {
    family: Family,
    table: &'a str,
    chain: &'a str,
    is_policy: bool,
    handle: Option<u64>,
    verdict: &'a Verdict,
}

impl Compared {
    /// None of the two has what the other one has not.
    pub fn is_same(&self) -> bool {
        !self.sides.iter().any(|side| matches!(side, Side::Predicted(_) | Side::Traced(_)))
    }

    /// How many decisions both have.
    pub fn agreed(&self) -> usize {
        self.sides.iter().filter(|side| matches!(side, Side::Both(_))).count()
    }
}

/// Compares a path with the events of one packet, of which none is left out: the longest common sequence is what both have.
pub fn compare(path: &Path, packet: &TracedPacket) -> Compared {
    let events = &packet.events;
    let traced: Vec<(usize, &Decision)> =
        path.decisions.iter().enumerate().filter(|(_, decision)| mark(decision).is_some()).collect();
    let common = common(
        &traced.iter().filter_map(|(_, decision)| mark(decision)).collect::<Vec<_>>(),
        &events.iter().map(event_mark).collect::<Vec<_>>(),
    );
    let mut sides = Vec::new();
    let (mut next_event, mut pairs) = (0, common.into_iter().peekable());
    let mut number = 0;
    for decision in &path.decisions {
        if mark(decision).is_none() {
            sides.push(Side::Untraced(decision.clone()));
            continue;
        }
        match pairs.next_if(|(of_path, _)| *of_path == number) {
            Some((_, event)) => {
                sides.extend(events[next_event..event].iter().cloned().map(Side::Traced));
                next_event = event + 1;
                sides.push(Side::Both(decision.clone()));
            }
            None => sides.push(Side::Predicted(decision.clone())),
        }
        number += 1;
    }
    sides.extend(events[next_event..].iter().cloned().map(Side::Traced));
    Compared { sides }
}

/// Indexes of the longest common sequence. Both have a few dozen elements.
fn common<T: PartialEq>(left: &[T], right: &[T]) -> Vec<(usize, usize)> {
    let mut lengths = vec![vec![0_usize; right.len() + 1]; left.len() + 1];
    for (i, of_left) in left.iter().enumerate().rev() {
        for (j, of_right) in right.iter().enumerate().rev() {
            lengths[i][j] =
                if of_left == of_right { lengths[i + 1][j + 1] + 1 } else { lengths[i + 1][j].max(lengths[i][j + 1]) };
        }
    }
    let (mut i, mut j, mut pairs) = (0, 0, Vec::new());
    while i < left.len() && j < right.len() {
        if left[i] == right[j] {
            pairs.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if lengths[i + 1][j] >= lengths[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    pairs
}

/// None for decisions that the kernel does not trace, or tells its log only, as it does with legacy tables.
fn mark(decision: &Decision) -> Option<Mark<'_>> {
    let (chain, is_policy, handle, verdict) = match decision {
        Decision::Rule { chain, handle, verdict, .. } => (chain, false, Some(*handle), verdict),
        Decision::EndOfChain { chain, .. } => (chain, false, None, &Verdict::Continue),
        Decision::Policy { chain, verdict, .. } => (chain, true, None, verdict),
        Decision::Tracked { .. }
        | Decision::Translated { .. }
        | Decision::Scheduled { .. }
        | Decision::Routed { .. }
        | Decision::Flowtable { .. }
        | Decision::Unheard { .. }
        | Decision::Switched { .. }
        | Decision::Proxied { .. }
        | Decision::Measured { .. } => return None,
    };
    if chain.family.is_legacy() {
        return None;
    }
    Some(Mark { family: chain.family, table: &chain.table, chain: &chain.chain, is_policy, handle, verdict })
}

fn event_mark(event: &TraceEvent) -> Mark<'_> {
    Mark {
        family: event.family,
        table: &event.table,
        chain: &event.chain,
        is_policy: event.kind == TraceKind::Policy,
        handle: event.handle,
        verdict: &event.verdict,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_have_is_the_longest_common_sequence() {
        let pairs = common(&[1, 2, 3, 4], &[9, 1, 3, 8, 4]);
        assert_eq!(pairs, [(0, 1), (2, 2), (3, 4)]);
        assert_eq!(common::<u8>(&[], &[1]), []);
    }
}
