//! Which start of each agent answered last: counts of different starts never mix.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use netdiag_common::observation::Observation;
use netdiag_common::{Need, Reading};

use super::failure::Failure;

/// One entry per node that ever answered.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    latest: Mutex<BTreeMap<String, Known>>,
}

#[derive(Debug)]
struct Known {
    instance: String,
    /// How often it was another one than before.
    restarts: u64,
}

impl Instances {
    /// Agents that do not say leave the instance empty: nothing can be concluded from them.
    pub fn note(&self, node: &str, instance: &str) {
        if instance.is_empty() {
            return;
        }
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let known =
            latest.entry(node.to_owned()).or_insert_with(|| Known { instance: instance.to_owned(), restarts: 0 });
        if known.instance != instance {
            tracing::info!(node, instance, "the agent started anew and counts from zero");
            instance.clone_into(&mut known.instance);
            known.restarts += 1;
        }
    }

    pub fn of(&self, node: &str) -> Option<String> {
        let latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        latest.get(node).map(|known| known.instance.clone())
    }

    /// Starts of this node's agent that were seen after the first one.
    pub fn restarts(&self, node: &str) -> u64 {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).get(node).map_or(0, |known| known.restarts)
    }
}

/// Makes gaps of what an earlier start of the node's agent had counted.
pub(crate) fn withdraw<'a>(earlier: impl Iterator<Item = (&'a Need, &'a mut Reading<Observation>)>, node: &str) {
    for (need, reading) in earlier {
        if need.node == node && need.topic.is_counted() {
            *reading = Reading::Unavailable { gap: Failure::Restarted.gap(need) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_new_start_counts_once() {
        let instances = Instances::default();
        for instance in ["a", "a", "", "b", "b", "c"] {
            instances.note("n1", instance);
        }
        assert_eq!((instances.restarts("n1"), instances.of("n1").as_deref()), (2, Some("c")));
        assert_eq!((instances.restarts("n2"), instances.of("n2")), (0, None));
    }
}
