//! An agent that started anew between two rounds of one question counts from zero: what it had counted in an earlier round
//! is withdrawn, so that nothing is compared across the two.

use std::collections::{BTreeMap, BTreeSet};

use netdiag_common::observation::Observation;
use netdiag_common::{Need, Reading};

use super::Source;
use crate::evidence::Evidence;
use crate::nodes::instance::withdraw;

/// The agents' instances, as this question met them.
#[derive(Debug, Default)]
pub(super) struct Restarts {
    met: BTreeMap<String, String>,
}

impl Restarts {
    /// After a round's `fresh` readings: what is no longer true of the rounds before.
    pub(super) fn withdrawn<S: Source>(
        &mut self,
        source: &S,
        fresh: &[(Need, Reading<Observation>)],
        before: &Evidence,
    ) -> Vec<(Need, Reading<Observation>)> {
        let nodes: BTreeSet<&str> = fresh.iter().map(|(need, _)| need.node.as_str()).collect();
        let mut withdrawn = Vec::new();
        for node in nodes {
            let Some(instance) = source.instance(node) else { continue };
            let is_new = self.met.insert(node.to_owned(), instance.clone()).is_some_and(|met| met != instance);
            if is_new {
                let counted = |(need, _): &(&Need, _)| need.node == node && need.topic.is_counted();
                let mut earlier: Vec<(Need, Reading<Observation>)> =
                    before.readings().filter(counted).map(|(need, reading)| (need.clone(), reading.clone())).collect();
                withdraw(earlier.iter_mut().map(|(need, reading)| (&*need, reading)), node);
                withdrawn.append(&mut earlier);
            }
        }
        withdrawn
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use jiff::Timestamp;
    use netdiag_common::{Gap, GapReason, Topic};

    use super::*;
    use crate::ask::SourceError;
    use crate::evidence::Cluster;

    /// An agent on n1 that may have started anew; n2 never does.
    struct Agents {
        restarted: AtomicBool,
    }

    impl Source for Agents {
        async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
            Ok(Arc::default())
        }

        async fn gather(&self, _: Vec<Need>, _: Instant) -> Vec<(Need, Reading<Observation>)> {
            Vec::new()
        }

        fn now(&self) -> Timestamp {
            Timestamp::UNIX_EPOCH
        }

        fn is_live(&self) -> bool {
            true
        }

        fn instance(&self, node: &str) -> Option<String> {
            let restarted = node == "n1" && self.restarted.load(Ordering::Relaxed);
            Some(if restarted { "2" } else { "1" }.to_owned())
        }
    }

    fn absent(node: &str, topic: Topic) -> (Need, Reading<Observation>) {
        (Need::host(node, topic), Reading::Absent { at: Timestamp::UNIX_EPOCH })
    }

    #[test]
    fn counts_of_an_agent_that_started_anew_are_withdrawn_and_nothing_else() {
        let (source, mut restarts) = (Agents { restarted: AtomicBool::new(false) }, Restarts::default());
        let round = |node| [absent(node, Topic::Drops), absent(node, Topic::Network)];
        let none = Evidence::new(source.now(), Arc::default());
        let first = [round("n1"), round("n2")].concat();
        assert!(restarts.withdrawn(&source, &first, &none).is_empty());
        let evidence = none.with(source.now(), first);

        let second = [absent("n1", Topic::Sysctls), absent("n2", Topic::Sysctls)];
        assert!(restarts.withdrawn(&source, &second, &evidence).is_empty());
        source.restarted.store(true, Ordering::Relaxed);
        let withdrawn = restarts.withdrawn(&source, &second, &evidence);
        let [(need, Reading::Unavailable { gap })] = withdrawn.as_slice() else { panic!("{withdrawn:?}") };
        assert_eq!(*need, Need::host("n1", Topic::Drops));
        let Gap { reason, why, .. } = gap;
        assert_eq!(*reason, GapReason::Gone);
        assert!(why.contains("node n1 started anew"), "{why}");
        assert!(restarts.withdrawn(&source, &second, &evidence).is_empty(), "once is enough");
    }
}
