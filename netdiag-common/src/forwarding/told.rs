//! A path as an agent tells it that may be newer: what this build has no word for becomes a gap of the path, and the rest is kept.

use serde::Deserialize;

use super::conntrack::Entry;
use super::packet::Packet;
use super::path::{Assumption, Decision, End, Path, Place};
use super::state::Hook;

/// As [`Path`].
#[derive(Deserialize)]
pub(super) struct Told {
    assumptions: Vec<Word<Assumption, OtherAssumption>>,
    decisions: Vec<Word<Decision, OtherDecision>>,
    gaps: Vec<String>,
    end: Word<End, OtherEnd>,
    packet: Packet,
    connection: Option<Entry>,
}

/// Also one that is known, of which something inside is not.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word<T, U> {
    Known(T),
    Other(U),
}

#[derive(Deserialize)]
struct OtherAssumption {
    assumption: String,
    at: Place,
}

#[derive(Deserialize)]
struct OtherDecision {
    decision: String,
}

#[derive(Deserialize)]
struct OtherEnd {
    end: String,
    by: Option<Place>,
}

impl TryFrom<Told> for Path {
    type Error = String;

    /// Fails where not even the place is known at which the path ends.
    fn try_from(told: Told) -> Result<Self, String> {
        let mut gaps = told.gaps;
        let mut decisions = Vec::with_capacity(told.decisions.len());
        for decision in told.decisions {
            match decision {
                Word::Known(decision) => decisions.push(decision),
                Word::Other(OtherDecision { decision }) => {
                    let gap = unknown("a step", &decision);
                    if !gaps.contains(&gap) {
                        gaps.push(gap);
                    }
                }
            }
        }
        let assumptions = told.assumptions.into_iter().map(|assumption| match assumption {
            Word::Known(assumption) => assumption,
            Word::Other(OtherAssumption { assumption, at }) => {
                let what = format!("what the agent assumes as {assumption}, which this netdiag does not know, holds");
                Assumption::Unknown { at, what, holds: true }
            }
        });
        let assumptions = assumptions.collect();
        let end = match told.end {
            Word::Known(end) => end,
            Word::Other(OtherEnd { end, by }) => {
                let because = unknown("an end", &end);
                let last = || decisions.last().map(|last| Place { hook: hook(last), chain: None, handle: None });
                let Some(by) = by.or_else(last) else { return Err(because) };
                End::Unknown { by, because }
            }
        };
        Ok(Self { assumptions, decisions, gaps, end, packet: told.packet, connection: told.connection })
    }
}

fn unknown(what: &str, word: &str) -> String {
    format!(
        "the agent tells of {what} that this netdiag does not know ({word}): upgrade netdiag to the agents' version"
    )
}

fn hook(decision: &Decision) -> Hook {
    match decision {
        Decision::Tracked { hook, .. }
        | Decision::Rule { hook, .. }
        | Decision::EndOfChain { hook, .. }
        | Decision::Policy { hook, .. }
        | Decision::Translated { hook, .. }
        | Decision::Scheduled { hook, .. }
        | Decision::Routed { hook, .. }
        | Decision::Flowtable { hook, .. }
        | Decision::Unheard { hook, .. }
        | Decision::Switched { hook, .. }
        | Decision::Proxied { hook, .. }
        | Decision::Measured { hook, .. } => *hook,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::packet::{Origin, TCP, tcp};
    use super::super::path::Size;
    use super::*;

    /// A path with one of each, of which `change` makes what a newer agent would tell.
    fn told(change: impl FnOnce(&mut Value)) -> Result<Path, String> {
        let (source, destination) = ("10.0.0.1".parse().unwrap(), "10.0.0.2".parse().unwrap());
        let origin = Origin::Received { interface: 2 };
        let packet = Packet::between(origin, source, destination, TCP, &tcp(4242, 80, 2)).unwrap();
        let measured = |size| Decision::Measured {
            hook: Hook::Forward,
            interface: 3,
            mtu: 1_500,
            by_route: false,
            length: 60,
            size,
        };
        let at = Place { hook: Hook::Prerouting, chain: None, handle: None };
        let path = Path {
            assumptions: vec![Assumption::Unknown { at, what: "it rains".to_owned(), holds: true }],
            decisions: vec![measured(Size::Fits), measured(Size::Fragmented)],
            gaps: Vec::new(),
            end: End::Sent { interface: 3, gateway: None },
            packet,
            connection: None,
        };
        let mut value = serde_json::to_value(&path).unwrap();
        assert_eq!(serde_json::from_value::<Path>(value.clone()).unwrap(), path);
        change(&mut value);
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[test]
    fn a_step_of_a_newer_agent_is_a_gap_and_the_rest_is_kept() {
        let shaped = json!({"decision": "shaped", "hook": "egress", "end": 5});
        let path = told(|path| path["decisions"][0] = shaped).unwrap();
        assert_eq!((path.decisions.len(), path.assumptions.len()), (1, 1));
        assert!(matches!(path.end, End::Sent { interface: 3, .. }));
        let [gap] = &path.gaps[..] else { panic!("{:?}", path.gaps) };
        assert!(gap.contains("a step that this netdiag does not know (shaped)"), "{gap}");
        let inside = told(|path| path["decisions"][1]["size"] = json!("compressed")).unwrap();
        assert!(inside.gaps[0].contains("(measured)"), "{:?}", inside.gaps);
        assert!(matches!(inside.decisions[..], [Decision::Measured { size: Size::Fits, .. }]));
    }

    #[test]
    fn an_end_of_a_newer_agent_is_not_known() {
        let path = told(|path| path["end"] = json!({"end": "mirrored", "interface": 7})).unwrap();
        let End::Unknown { by, because } = &path.end else { panic!("{:?}", path.end) };
        assert_eq!((by.hook, because.contains("(mirrored)")), (Hook::Forward, true), "{because}");
        let by = told(|path| path["end"] = json!({"end": "mirrored", "by": {"hook": "egress"}})).unwrap();
        assert!(matches!(by.end, End::Unknown { by: Place { hook: Hook::Egress, .. }, .. }), "{:?}", by.end);
        let nowhere = told(|path| {
            path["end"] = json!({"end": "mirrored"});
            path["decisions"] = json!([]);
        });
        assert!(nowhere.is_err_and(|why| why.contains("(mirrored)")));
    }

    #[test]
    fn an_assumption_of_a_newer_agent_leaves_no_chance_that_is_known() {
        let other = json!({"assumption": "weather", "at": {"hook": "forward"}, "chance": 0.5});
        let path = told(|path| path["assumptions"][0] = other).unwrap();
        assert_eq!(path.chance(), None);
        let [Assumption::Unknown { what, .. }] = &path.assumptions[..] else { panic!("{:?}", path.assumptions) };
        assert!(what.contains("weather"), "{what}");
    }
}
