//! What the agents reported, kept for some minutes and added up for ever. Times are added count by count, so nothing is lost by
//! merging.
//!
//! Reports of a round grow until it has ended: a later one takes the place of the one before, and the totals get the
//! difference.

use std::collections::{BTreeMap, VecDeque};

use hdrhistogram::Histogram;
use jiff::{SignedDuration, Timestamp};
use netdiag_common::observation::mesh::{
    Counts, KEPT_ROUNDS, MAX_TARGETS, MeshReport, Phase, RoundReport, TargetReport, empty,
};

use super::recorded::Recorded;
use super::{Kind, Role, Subject};

/// How far back links are judged and shown.
pub const WINDOW: SignedDuration = SignedDuration::from_mins(10);
/// Targets of rounds that are kept, of about 250 bytes each. In clusters of more than some hundred nodes the window is shorter
/// for that, but never shorter than [`LEAST_KEPT`].
const MAX_ENTRIES: usize = 400_000;
/// Agents may still report rounds that began less than this ago.
const LEAST_KEPT: SignedDuration = SignedDuration::from_secs(100);

/// Everything that is known of one cluster's mesh.
#[derive(Debug, Default)]
pub struct Ledger {
    /// The oldest first.
    rounds: BTreeMap<RoundKey, Vec<Entry>>,
    entries: usize,
    /// When each round of a node was first heard of, in that order; also of the last ones that were forgotten, so that they
    /// are not counted again.
    heard: BTreeMap<String, VecDeque<Heard>>,
    zones: BTreeMap<String, String>,
    results: BTreeMap<Series, Counts>,
    times: BTreeMap<Way, Histogram<u64>>,
    parts: BTreeMap<(Way, Phase), Histogram<u64>>,
}

/// By the server's own clock first: the agent's, which names the round, may be wrong.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct RoundKey {
    heard: Timestamp,
    started: Timestamp,
    node: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Heard {
    started: Timestamp,
    at: Timestamp,
}

#[derive(Debug, Clone, PartialEq)]
struct Entry {
    subject: Subject,
    counts: Counts,
    times: Recorded,
    /// Of parts of attempts, where the kind has any.
    parts: Vec<(Phase, Recorded)>,
}

/// What came to an entry since it was reported before.
struct Growth {
    counts: Counts,
    times: Recorded,
    parts: Vec<(Phase, Recorded)>,
}

/// Attempts of one node at one sort of target.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Series {
    pub node: String,
    pub target: String,
    pub kind: Kind,
}

/// Times between zones, or to a target that has none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Way {
    pub target: String,
    pub from_zone: String,
    pub to_zone: String,
    pub kind: Kind,
}

/// One node's attempts at one target in the window.
#[derive(Debug, Clone)]
pub struct Link {
    pub from: String,
    pub subject: Subject,
    pub counts: Counts,
    /// Those of its last two rounds.
    pub lately: Counts,
    pub spell: Spell,
    /// Of the answered ones.
    pub times: Recorded,
    /// Of parts of attempts, also of those that failed later.
    pub parts: BTreeMap<Phase, Recorded>,
}

/// Rounds of a link from the first with a failure to the last one with a failure, and what came after.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spell {
    pub failures: u64,
    /// Attempts that ended in these rounds.
    pub told: u64,
    /// Attempts of later rounds: all of them were answered.
    pub answered_since: u64,
}

impl Link {
    pub fn new(from: &str, subject: Subject) -> Self {
        let (counts, lately, spell) = (Counts::default(), Counts::default(), Spell::default());
        let (times, parts) = (Recorded::default(), BTreeMap::new());
        Self { from: from.to_owned(), subject, counts, lately, spell, times, parts }
    }
}

impl Spell {
    /// Takes the next round.
    fn goes_on(&mut self, round: &Counts) {
        if round.failures() > 0 {
            self.failures += round.failures();
            self.told += self.answered_since + round.told();
            self.answered_since = 0;
        } else if self.failures > 0 {
            self.answered_since += round.told();
        }
    }

    /// Of two links together: over when both are.
    pub fn join(&mut self, other: &Self) {
        self.answered_since = match (self.failures, other.failures) {
            (0, _) => other.answered_since,
            (_, 0) => self.answered_since,
            _ => self.answered_since.min(other.answered_since),
        };
        self.failures += other.failures;
        self.told += other.told;
    }
}

impl Ledger {
    /// The cluster's nodes and where they are: for what is recorded from now on. Counts of nodes that are gone go with them, and
    /// their links are shown no more; while nobody knows the nodes, all stays.
    pub fn place(&mut self, zones: &BTreeMap<String, String>) {
        self.zones.clone_from(zones);
        if !zones.is_empty() {
            self.results.retain(|series, _| zones.contains_key(&series.node));
        }
    }

    pub fn zones(&self) -> &BTreeMap<String, String> {
        &self.zones
    }

    /// Adds what is new in an agent's report of this moment. The error says why a part of it cannot be true; the rest is added.
    pub fn record(&mut self, node: &str, report: &MeshReport, now: Timestamp) -> Result<(), String> {
        if report.rounds.len() > KEPT_ROUNDS {
            return Err(format!("it reports {} rounds, {KEPT_ROUNDS} are kept", report.rounds.len()));
        }
        let mut told = Ok(());
        for round in &report.rounds {
            told = told.and(self.record_round(node, round, now));
        }
        told
    }

    fn record_round(&mut self, node: &str, round: &RoundReport, now: Timestamp) -> Result<(), String> {
        if round.targets.len() > MAX_TARGETS {
            return Err(format!("a round of {} targets, {MAX_TARGETS} are the limit", round.targets.len()));
        }
        let heard =
            self.heard.get(node).and_then(|all| all.iter().find(|heard| heard.started == round.started)).copied();
        let at = heard.map_or(now, |heard| heard.at);
        let key = RoundKey { heard: at, started: round.started, node: node.to_owned() };
        let is_forgotten = heard.is_some() && !self.rounds.contains_key(&key);
        if is_forgotten {
            return Ok(());
        }
        let before = self.rounds.get(&key).map_or(&[][..], Vec::as_slice);
        let mut entries = Vec::with_capacity(round.targets.len());
        let mut growth = Vec::new();
        for target in &round.targets {
            let entry = entry(target)?;
            if entries.iter().any(|other: &Entry| other.subject == entry.subject) {
                return Err(format!("{} is in its report twice", entry.subject));
            }
            let known = before.iter().find(|known| known.subject == entry.subject);
            if known != Some(&entry) {
                growth.push((entry.subject.clone(), grown(known, &entry)?));
            }
            entries.push(entry);
        }
        if let Some(lost) = before.iter().find(|known| !entries.iter().any(|entry| entry.subject == known.subject)) {
            return Err(format!("{} is in its last report and not in this one", lost.subject));
        }
        self.entries += entries.len() - before.len();
        if heard.is_none() {
            self.heard.entry(node.to_owned()).or_default().push_back(Heard { started: round.started, at });
        }
        self.rounds.insert(key, entries);
        for (subject, growth) in growth {
            self.total(node, &subject, &growth);
        }
        Ok(())
    }

    fn total(&mut self, node: &str, subject: &Subject, growth: &Growth) {
        let zone = |node: &str| self.zones.get(node).cloned().unwrap_or_default();
        let (from_zone, target) = (zone(node), sort(&subject.role));
        let to_zone = if let Role::Peer(peer) = &subject.role { zone(peer) } else { String::new() };
        let (target, kind) = (target.to_owned(), subject.kind);
        let series = Series { node: node.to_owned(), target: target.clone(), kind };
        self.results.entry(series).or_default().add(&growth.counts);
        let way = Way { target, from_zone, to_zone, kind };
        for (phase, times) in &growth.parts {
            add(self.parts.entry((way.clone(), *phase)).or_insert_with(empty), times);
        }
        add(self.times.entry(way).or_insert_with(empty), &growth.times);
    }

    /// Forgets what is older than the window, and what is too much.
    pub fn forget(&mut self, now: Timestamp) {
        while let Some((key, _)) = self.rounds.first_key_value() {
            let age = now.duration_since(key.heard);
            if age <= LEAST_KEPT || (age <= WINDOW && self.entries <= MAX_ENTRIES) {
                break;
            }
            let (key, entries) = self.rounds.pop_first().expect("it was just looked at");
            self.entries -= entries.len();
            // An agent reports its last rounds again and again.
            if let Some(heard) = self.heard.get_mut(&key.node)
                && heard.len() > KEPT_ROUNDS
            {
                heard.retain(|heard| heard.started != key.started);
            }
        }
        // A node that is gone reports no more.
        let is_recent = |heard: &Heard| now.duration_since(heard.at) <= WINDOW * 2;
        self.heard.retain(|node, heard| self.zones.contains_key(node) || heard.iter().any(is_recent));
    }

    /// When the oldest round that is kept was first heard of.
    pub fn since(&self) -> Option<Timestamp> {
        self.rounds.first_key_value().map(|(key, _)| key.heard)
    }

    /// Every node's attempts at every target, of the rounds that are kept. A node that is gone is no broken link.
    pub fn links(&self) -> Vec<Link> {
        let mut links: BTreeMap<(&str, &Subject), (Link, Option<&Counts>)> = BTreeMap::new();
        let is_there = |node: &String| self.zones.is_empty() || self.zones.contains_key(node);
        for (RoundKey { node, .. }, entries) in self.rounds.iter().filter(|(key, _)| is_there(&key.node)) {
            for entry in entries {
                if matches!(&entry.subject.role, Role::Peer(peer) if !is_there(peer)) {
                    continue;
                }
                let new = || (Link::new(node, entry.subject.clone()), None);
                let (link, before) = links.entry((node, &entry.subject)).or_insert_with(new);
                link.counts.add(&entry.counts);
                link.lately = entry.counts.clone();
                if let Some(before) = before.replace(&entry.counts) {
                    link.lately.add(before);
                }
                link.spell.goes_on(&entry.counts);
                link.times.add(&entry.times);
                for (phase, times) in &entry.parts {
                    link.parts.entry(*phase).or_default().add(times);
                }
            }
        }
        links.into_values().map(|(link, _)| link).collect()
    }

    /// Attempts since the beginning.
    pub fn results(&self) -> &BTreeMap<Series, Counts> {
        &self.results
    }

    /// Times since the beginning.
    pub fn times(&self) -> &BTreeMap<Way, Histogram<u64>> {
        &self.times
    }

    /// Times of parts of attempts since the beginning.
    pub fn parts(&self) -> &BTreeMap<(Way, Phase), Histogram<u64>> {
        &self.parts
    }
}

fn add(total: &mut Histogram<u64>, times: &Recorded) {
    for (us, count) in times.iter() {
        total.record_n(us, count).expect("it grows up to the longest time that a report may have");
    }
}

/// What a target is called where many of its sort are one: `peer`, `dns`, `api`, or the user's name for it.
fn sort(role: &Role) -> &str {
    match role {
        Role::Peer(_) => "peer",
        Role::Dns(_) => "dns",
        Role::Api => "api",
        Role::User(name) => name,
    }
}

fn entry(target: &TargetReport) -> Result<Entry, String> {
    let TargetReport { name, counts, phases } = target;
    let subject: Subject = name.parse()?;
    if !counts.is_balanced() {
        return Err(format!("the counts of {name} do not add up: {counts:?}"));
    }
    let whole = target.whole().map(|(phase, _)| phase);
    let (mut times, mut parts) = (Recorded::default(), Vec::new());
    for (phase, sent) in phases {
        let read = Recorded::of(&sent.read().map_err(|error| format!("{name}: {error}"))?);
        if whole == Some(*phase) {
            times = read;
        } else {
            parts.push((*phase, read));
        }
    }
    let timed = times.len();
    if timed != counts.answered {
        return Err(format!("{name} has {} answers and {timed} times", counts.answered));
    }
    Ok(Entry { subject, counts: counts.clone(), times, parts })
}

fn grown(known: Option<&Entry>, entry: &Entry) -> Result<Growth, String> {
    let fell = || format!("the counts of {} fell", entry.subject);
    let Some(known) = known else {
        // What is open is no total: it ends as something else.
        let counts = Counts { open: 0, ..entry.counts.clone() };
        return Ok(Growth { counts, times: entry.times.clone(), parts: entry.parts.clone() });
    };
    let mut parts = Vec::with_capacity(entry.parts.len());
    for (phase, new) in &entry.parts {
        let old = known.parts.iter().find(|(known, _)| known == phase);
        parts.push((*phase, old.map_or_else(|| Some(new.clone()), |(_, old)| new.since(old)).ok_or_else(fell)?));
    }
    let times = entry.times.since(&known.times).ok_or_else(fell)?;
    let (new, old) = (&entry.counts, &known.counts);
    let less = |new: u64, old: u64| new.checked_sub(old).ok_or_else(fell);
    let mut failed = new.failed.clone();
    for (class, count) in &old.failed {
        let now = failed.entry(*class).or_default();
        *now = less(*now, *count)?;
    }
    let counts = Counts {
        scheduled: less(new.scheduled, old.scheduled)?,
        answered: less(new.answered, old.answered)?,
        failed,
        untried: less(new.untried, old.untried)?,
        open: 0,
        late: less(new.late, old.late)?,
    };
    Ok(Growth { counts, times, parts })
}

#[cfg(test)]
mod tests;
