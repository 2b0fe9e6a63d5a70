//! Which start of each agent answered last: counts of different starts never mix.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use netdiag_common::observation::Observation;
use netdiag_common::{Need, Reading};

use super::failure::Failure;

/// One entry per node that ever answered.
#[derive(Debug, Default)]
pub(crate) struct Instances {
    latest: Mutex<BTreeMap<String, String>>,
}

impl Instances {
    /// Agents that do not say leave the instance empty: nothing can be concluded from them.
    pub fn note(&self, node: &str, instance: &str) {
        if instance.is_empty() {
            return;
        }
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        let before = latest.insert(node.to_owned(), instance.to_owned());
        if before.is_some_and(|before| before != instance) {
            tracing::info!(node, instance, "the agent started anew and counts from zero");
        }
    }

    pub fn of(&self, node: &str) -> Option<String> {
        self.latest.lock().unwrap_or_else(PoisonError::into_inner).get(node).cloned()
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
