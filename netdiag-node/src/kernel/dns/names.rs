//! The names asked most, in bounded memory however many names there are, and those that only a search list made.

use std::collections::{HashMap, VecDeque};

/// Names of all namespaces in one slot of the window, and in one of the hour.
const MAX_NAMES: usize = 512;
const MAX_HOURLY: usize = 256;
/// Of one namespace: a pod that makes names up must not push out those of the others.
const MAX_OF_ONE: usize = 64;
/// Namespaces whose names are summed up.
const MAX_NAMESPACES: usize = 1024;

/// A resolver goes on to the next name of its search list as soon as it has an answer.
const SEARCH_NS: u64 = 5_000_000_000;
/// Names of one namespace that a next name is compared with: A and AAAA of a few resolvers at work together.
const RECENT: usize = 8;

/// Namespace, name and type.
pub(super) type NameKey = (u64, String, u16);

/// How often one name was asked for, and how it ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NameCount {
    pub(super) queries: u64,
    /// Of these, at most so many belong to names that had this place before.
    pub(super) excess: u64,
    pub(super) nxdomain: u64,
    pub(super) failed: u64,
    pub(super) unanswered: u64,
    pub(super) retries: u64,
    pub(super) longest_us: u64,
}

impl NameCount {
    fn add(&mut self, other: &Self) {
        self.queries += other.queries;
        self.excess += other.excess;
        self.nxdomain += other.nxdomain;
        self.failed += other.failed;
        self.unanswered += other.unanswered;
        self.retries += other.retries;
        self.longest_us = self.longest_us.max(other.longest_us);
    }
}

/// The names of one namespace together.
#[derive(Debug, Clone, Default)]
pub(super) struct Together {
    pub(super) read: u64,
    pub(super) search_tries: u64,
    pub(super) doubled_suffix: u64,
    pub(super) example: Option<String>,
}

impl Together {
    fn add(&mut self, other: Self) {
        self.read += other.read;
        self.search_tries += other.search_tries;
        self.doubled_suffix += other.doubled_suffix;
        self.example = other.example.or(self.example.take());
    }
}

/// Space-saving counts (Metwally, Agrawal, El Abbadi 2005): a new name takes the place of the least counted one and inherits its
/// count as its error, so whatever is asked often is in the table.
#[derive(Debug, Clone)]
pub(super) struct Names {
    limit: usize,
    counts: HashMap<NameKey, NameCount>,
    of_one: HashMap<u64, usize>,
    together: HashMap<u64, Together>,
}

impl Names {
    pub(super) fn new() -> Self {
        Self { limit: MAX_NAMES, counts: HashMap::new(), of_one: HashMap::new(), together: HashMap::new() }
    }

    pub(super) fn hourly() -> Self {
        Self { limit: MAX_HOURLY, ..Self::new() }
    }

    pub(super) fn add(&mut self, key: NameKey, mut count: NameCount) {
        if let Some(known) = self.counts.get_mut(&key) {
            known.add(&count);
            return;
        }
        let own = self.of_one.get(&key.0).copied().unwrap_or(0);
        let least = if own >= MAX_OF_ONE {
            self.least(|netns| netns == key.0)
        } else if self.counts.len() >= self.limit {
            self.least(|_| true)
        } else {
            None
        };
        if let Some(least) = least
            && let Some(old) = self.counts.remove(&least)
        {
            self.leave(least.0);
            count.queries += old.queries;
            count.excess += old.queries;
        }
        *self.of_one.entry(key.0).or_default() += 1;
        self.counts.insert(key, count);
    }

    pub(super) fn together(&mut self, netns: u64) -> Option<&mut Together> {
        if self.together.len() >= MAX_NAMESPACES && !self.together.contains_key(&netns) {
            return None;
        }
        Some(self.together.entry(netns).or_default())
    }

    /// Takes in a later slot's names, and keeps those asked most.
    pub(super) fn fold(&mut self, later: Self) {
        for (key, count) in later.counts {
            self.counts.entry(key).or_default().add(&count);
        }
        let mut all: Vec<(NameKey, NameCount)> = self.counts.drain().collect();
        all.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(count.queries));
        all.truncate(self.limit);
        self.of_one.clear();
        for ((netns, ..), _) in &all {
            *self.of_one.entry(*netns).or_default() += 1;
        }
        self.counts = all.into_iter().collect();
        for (netns, together) in later.together {
            if let Some(known) = self.together(netns) {
                known.add(together);
            }
        }
    }

    pub(super) fn counts(&self) -> impl Iterator<Item = (&NameKey, &NameCount)> {
        self.counts.iter()
    }

    pub(super) fn namespaces(&self) -> impl Iterator<Item = (u64, &Together)> {
        self.together.iter().map(|(netns, together)| (*netns, together))
    }

    fn least(&self, of: impl Fn(u64) -> bool) -> Option<NameKey> {
        let of_those = self.counts.iter().filter(|((netns, ..), _)| of(*netns));
        of_those.min_by_key(|(_, count)| count.queries).map(|(key, _)| key.clone())
    }

    fn leave(&mut self, netns: u64) {
        if let Some(own) = self.of_one.get_mut(&netns) {
            *own -= 1;
            if *own == 0 {
                self.of_one.remove(&netns);
            }
        }
    }
}

/// Names that do not exist, as long as a search list may go on from them.
#[derive(Debug, Default)]
pub(super) struct Searches {
    recent: HashMap<u64, VecDeque<Tried>>,
}

#[derive(Debug)]
struct Tried {
    name: String,
    kind: u16,
    answered_ns: u64,
}

impl Searches {
    /// The name tried before this one, when this is the next that a search list makes of the same word. Each is found once.
    pub(super) fn next_after(&mut self, netns: u64, name: &str, kind: u16, asked_ns: u64) -> Option<String> {
        let recent = self.recent.get_mut(&netns)?;
        recent.retain(|tried| asked_ns.saturating_sub(tried.answered_ns) < SEARCH_NS);
        let at = recent
            .iter()
            .position(|tried| tried.kind == kind && tried.answered_ns <= asked_ns && is_next(&tried.name, name))?;
        recent.remove(at).map(|tried| tried.name)
    }

    pub(super) fn not_found(&mut self, netns: u64, name: &str, kind: u16, answered_ns: u64) {
        if self.recent.len() >= MAX_NAMESPACES && !self.recent.contains_key(&netns) {
            self.recent.retain(|_, of| {
                of.retain(|tried| answered_ns.saturating_sub(tried.answered_ns) < SEARCH_NS);
                !of.is_empty()
            });
            if self.recent.len() >= MAX_NAMESPACES {
                return;
            }
        }
        let of = self.recent.entry(netns).or_default();
        if of.len() == RECENT {
            of.pop_front();
        }
        of.push_back(Tried { name: name.to_owned(), kind, answered_ns });
    }
}

/// Whether a search list goes from `tried` to `next`: they begin with the same word, and `tried` has another suffix behind it.
/// The kubelet's suffixes are ends of each other: `ns.svc.cluster.local`, `svc.cluster.local`, `cluster.local`, nothing.
fn is_next(tried: &str, next: &str) -> bool {
    if tried == next {
        return false;
    }
    // The word itself, after all suffixes.
    if tried.strip_prefix(next).is_some_and(|suffix| suffix.starts_with('.')) {
        return true;
    }
    let (tried, next): (Vec<&str>, Vec<&str>) = (tried.split('.').collect(), next.split('.').collect());
    let begin = tried.iter().zip(&next).take_while(|(one, other)| one == other).count();
    let end = tried.iter().rev().zip(next.iter().rev()).take_while(|(one, other)| one == other).count();
    // One label less in the middle: the next of the kubelet's. Two equal words in front: a list of unrelated suffixes.
    (begin >= 1 && tried.len() == next.len() + 1 && begin + end >= next.len()) || begin >= 2
}

/// Whether a whole cluster name stands in front of a suffix of the cluster: `a.b.svc.cluster.local.b.svc.cluster.local`.
pub(super) fn has_doubled_suffix(name: &str) -> bool {
    let labels: Vec<&str> = name.split('.').collect();
    // The last two labels are the cluster's domain, `cluster.local` unless the operator chose another.
    let [front @ .., first, second] = labels.as_slice() else { return false };
    front.windows(2).any(|pair| pair == [*first, *second])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn once() -> NameCount {
        NameCount { queries: 1, ..NameCount::default() }
    }

    #[test]
    fn a_name_asked_often_survives_a_million_random_ones() {
        let mut names = Names::new();
        for n in 0..200_000_u32 {
            names.add((7, format!("{n}.example"), 1), once());
            if n % 50 == 0 {
                names.add((7, "wanted.example".to_owned(), 1), once());
            }
            if n % 100 == 0 {
                names.add((8, "other.example".to_owned(), 1), once());
            }
        }
        assert!(names.counts.len() <= MAX_OF_ONE + 1);
        let count = |netns, name: &str| &names.counts[&(netns, name.to_owned(), 1)];
        let wanted = count(7, "wanted.example");
        assert!(wanted.queries >= 4000 && wanted.queries - wanted.excess <= 4000, "{wanted:?}");
        assert_eq!(*count(8, "other.example"), NameCount { queries: 2000, ..NameCount::default() }, "another pod's");
    }

    #[test]
    fn many_namespaces_share_one_bound() {
        let mut names = Names::new();
        for netns in 0..10_000 {
            names.add((netns, "a".to_owned(), 1), once());
            if let Some(together) = names.together(netns) {
                together.read += 1;
            }
        }
        assert_eq!((names.counts.len(), names.of_one.len()), (MAX_NAMES, MAX_NAMES));
        assert_eq!(names.together.len(), MAX_NAMESPACES);
        let mut hour = Names::hourly();
        hour.fold(names);
        assert_eq!(hour.counts.len(), MAX_HOURLY);
        assert_eq!(hour.of_one.values().sum::<usize>(), MAX_HOURLY);
    }

    #[test]
    fn a_search_list_is_followed_from_name_to_name() {
        let chain = [
            "example.com.shop.svc.cluster.local",
            "example.com.svc.cluster.local",
            "example.com.cluster.local",
            "example.com.corp.example",
            "example.com",
        ];
        let mut searches = Searches::default();
        let mut followed = Vec::new();
        for (name, at) in chain.iter().zip(1..) {
            followed.extend(searches.next_after(7, name, 1, at));
            assert_eq!(searches.next_after(8, name, 1, at), None, "another pod's");
            assert_eq!(searches.next_after(7, name, 28, at), None, "another type");
            searches.not_found(7, name, 1, at);
        }
        assert_eq!(followed, chain[..4]);
        assert_eq!(searches.next_after(7, "example", 1, SEARCH_NS + 10), None, "much later");
    }

    #[test]
    fn names_that_merely_look_alike_are_no_search() {
        assert!(!is_next("web.shop.svc.cluster.local", "web.other.svc.cluster.local"), "two Services");
        assert!(!is_next("a.example.com", "b.example.com"));
        assert!(!is_next("a.example.com", "a.example.com"));
        assert!(is_next("web.shop.svc.cluster.local", "web.svc.cluster.local"));
        assert!(is_next("web.example.com", "web"));
    }

    #[test]
    fn doubled_suffixes() {
        assert!(has_doubled_suffix("web.shop.svc.cluster.local.shop.svc.cluster.local"));
        assert!(has_doubled_suffix("a.cluster.local.cluster.local"));
        assert!(!has_doubled_suffix("web.shop.svc.cluster.local"));
        assert!(!has_doubled_suffix("example.com.svc.cluster.local"));
        assert!(!has_doubled_suffix("local"));
    }
}
