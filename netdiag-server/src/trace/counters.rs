//! The proof that changes nothing: what the rules of the ways count while connections are attempted.
//!
//! A rule's own counter counts everybody's packets, and of a connection every one that passes: a translation sees the first alone,
//! a filter the others too. So it is at least as much as predicted, or the prediction was wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netdiag_common::forwarding::path::Decision;
use netdiag_common::forwarding::state::ChainKey;
use netdiag_common::observation::Observation;
use netdiag_common::observation::probe::{ProbeRequest, ProbeResult};
use netdiag_common::{Gap, Need, Reading, Topic};

use super::{Followed, Leg, Place, Sent, Way};
use crate::ask::Source;
use crate::path::Path;

/// Enough to stand out among what comes by, and to meet each of a few endpoints.
pub const ATTEMPTS: u8 = 12;
const ATTEMPT_TIMEOUT_MS: u32 = 1_000;
/// For one reading of all namespaces.
const READING: Duration = Duration::from_secs(10);
/// Above what attempts take that all wait.
const TRYING: Duration = Duration::from_secs(20);

/// One rule of one namespace.
type RuleKey = (Place, ChainKey, u64);

/// What rules counted meanwhile.
#[derive(Debug, Clone)]
pub struct Counted {
    pub sent: Sent,
    growth: BTreeMap<RuleKey, u64>,
    expected: BTreeMap<RuleKey, Option<f64>>,
    /// Namespaces whose counters could not be read twice.
    pub gaps: Vec<Gap>,
}

/// The counters of all rules on all ways, attempts from the client, and the counters again.
pub(super) async fn run<S: Source>(source: &S, path: &Path, destination: IpAddr, followed: &Followed) -> Counted {
    let attempts = ProbeResult { attempts: Vec::new() };
    let mut counted = Counted {
        sent: Sent::Tried(attempts),
        growth: BTreeMap::new(),
        expected: expected(&followed.ways),
        gaps: Vec::new(),
    };
    let (Some(client), Some(port)) = (path.clients.first(), path.port) else { return counted };
    let legs = followed.ways.iter().flat_map(predicted);
    let needs: BTreeSet<Need> = legs.map(|leg| leg.place.need(Topic::Fate(leg.request.clone()))).collect();
    let before = read(source, &needs, &mut counted.gaps).await;
    let place = Place { node: client.node.clone(), netns: client.netns.clone() };
    let probe = place.need(Topic::Probe(ProbeRequest::TcpConnect {
        address: destination,
        port,
        timeout_ms: ATTEMPT_TIMEOUT_MS,
        attempts: ATTEMPTS,
        source_port: None,
    }));
    match source.gather(vec![probe], Instant::now() + TRYING).await.into_iter().next() {
        Some((_, Reading::Seen { value: Observation::Probe(result), .. })) => counted.sent = Sent::Tried(result),
        Some((_, Reading::Unavailable { gap })) => {
            counted.sent = Sent::Not { gap };
            return counted;
        }
        _ => return counted,
    }
    let after = read(source, &needs, &mut counted.gaps).await;
    counted.growth = growth(&before, &after);
    counted
}

async fn read<S: Source>(source: &S, needs: &BTreeSet<Need>, gaps: &mut Vec<Gap>) -> BTreeMap<RuleKey, u64> {
    let mut counters = BTreeMap::new();
    for (need, reading) in source.gather(needs.iter().cloned().collect(), Instant::now() + READING).await {
        match reading {
            Reading::Seen { value: Observation::Fate(fate), .. } => {
                let place = Place { node: need.node, netns: need.netns };
                for rule in &fate.rules {
                    if let Some(counter) = &rule.counter {
                        // Read for one packet after the other: the first value of a rule is before, or after, all the rest.
                        counters.entry((place.clone(), rule.chain.clone(), rule.handle)).or_insert(counter.packets);
                    }
                }
            }
            Reading::Unavailable { gap } if !gaps.contains(&gap) => gaps.push(gap),
            _ => {}
        }
    }
    counters
}

/// Of rules that were there both times. One that counts less was written anew meanwhile.
fn growth(before: &BTreeMap<RuleKey, u64>, after: &BTreeMap<RuleKey, u64>) -> BTreeMap<RuleKey, u64> {
    let grown = |(key, after): (&RuleKey, &u64)| Some((key.clone(), after.checked_sub(*before.get(key)?)?));
    after.iter().filter_map(grown).collect()
}

/// How many packets each rule sees at least: the first of each attempt, there and back, as often as the kernels choose such a way.
/// None where that depends on what is not known.
fn expected(ways: &[Way]) -> BTreeMap<RuleKey, Option<f64>> {
    let mut expected: BTreeMap<RuleKey, Option<f64>> = BTreeMap::new();
    for way in ways {
        let share = way.chance().map(|chance| chance * f64::from(ATTEMPTS));
        for leg in predicted(way) {
            for key in leg.path().decisions.iter().filter_map(|decision| key(leg, decision)) {
                let sum = expected.entry(key).or_insert(Some(0.0));
                *sum = sum.zip(share).map(|(sum, share)| sum + share);
            }
        }
    }
    expected
}

/// Legs of which it is known how many packets their rules see. Of outer packets, attempts may share a connection.
fn predicted(way: &Way) -> impl Iterator<Item = &Leg> {
    way.legs.iter().filter(|leg| leg.carrier.is_none())
}

fn key(leg: &Leg, decision: &Decision) -> Option<RuleKey> {
    let Decision::Rule { chain, handle, .. } = decision else { return None };
    Some((leg.place.clone(), chain.clone(), *handle))
}

impl Counted {
    /// What the rule counted meanwhile, and what it should have counted at least.
    pub fn of(&self, leg: &Leg, decision: &Decision) -> Option<(u64, Option<f64>)> {
        let key = key(leg, decision)?;
        Some((*self.growth.get(&key)?, self.expected.get(&key).copied().flatten()))
    }

    /// Rules that have a counter, and of those that every attempt passes, how many counted less than predicted.
    pub fn rules(&self) -> (usize, usize) {
        let on_ways = self.growth.iter().filter_map(|(key, grown)| Some((grown, self.expected.get(key)?)));
        let (mut rules, mut fewer) = (0, 0);
        for (grown, expected) in on_ways {
            rules += 1;
            fewer += usize::from(expected.is_some_and(|expected| is_less(*grown, expected)));
        }
        (rules, fewer)
    }
}

/// Of what the kernels choose at random, a dozen attempts may bring any number.
pub fn is_certain(expected: f64) -> bool {
    expected > f64::from(ATTEMPTS) - 0.5
}

fn is_less(grown: u64, expected: f64) -> bool {
    // Of chances that add up, some ten-thousandths may be missing.
    #[expect(clippy::cast_precision_loss, reason = "packets of a dozen attempts")]
    let grown = grown as f64;
    is_certain(expected) && grown < expected - 0.5
}

#[cfg(test)]
mod tests {
    use netdiag_common::Netns;
    use netdiag_common::forwarding::state::Family;

    use super::*;

    fn rule(handle: u64) -> RuleKey {
        let place = Place { node: "n1".to_owned(), netns: Netns::Host };
        (place, ChainKey { family: Family::Ip, table: "nat".into(), chain: "services".into() }, handle)
    }

    #[test]
    fn a_rule_that_was_written_anew_counts_for_nothing() {
        let before = BTreeMap::from([(rule(1), 100), (rule(2), 100), (rule(3), 100)]);
        let after = BTreeMap::from([(rule(1), 112), (rule(2), 7), (rule(4), 12)]);
        assert_eq!(growth(&before, &after), BTreeMap::from([(rule(1), 12)]));
    }

    #[test]
    fn only_what_every_attempt_passes_can_count_too_little() {
        let counted = |pairs: &[(u64, u64, Option<f64>)]| Counted {
            sent: Sent::Tried(ProbeResult { attempts: Vec::new() }),
            growth: pairs.iter().map(|(handle, grown, _)| (rule(*handle), *grown)).collect(),
            expected: pairs.iter().map(|(handle, _, expected)| (rule(*handle), *expected)).collect(),
            gaps: Vec::new(),
        };
        assert_eq!(
            counted(&[(1, 12, Some(11.9999)), (2, 40, Some(24.0)), (3, 0, Some(4.0)), (4, 0, None)]).rules(),
            (4, 0)
        );
        assert_eq!(counted(&[(1, 11, Some(12.0)), (2, 12, Some(24.0))]).rules(), (2, 2));
    }
}
