//! A recorded cluster: `objects/*.yaml` as `kubectl get -o yaml` writes them, `nodes/NODE.json` reports, `readings/*.json`.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::observation::probe::ProbeRequest;
use netdiag_common::{Gap, GapReason, Need, Reading, Topic};

use super::{Source, SourceError, not_recorded};
use crate::evidence::Cluster;

mod read;
mod redact;
mod write;
mod yaml;

pub use write::{Objects, Recorded, record, record_inquiry};

/// Answers from files alone. What was not recorded is unavailable, and looking again shows the same.
pub struct BundleSource {
    cluster: Arc<Cluster>,
    now: Timestamp,
    readings: BTreeMap<Need, Reading<Observation>>,
}

impl BundleSource {
    /// Reads a bundle. Broken files become gaps of the cluster; an error means that nothing is left to judge.
    pub fn open(directory: &Path) -> Result<Self, SourceError> {
        let contents = read::directory(directory)?;
        let mut cluster = contents.cluster;
        cluster.unread = contents.broken.iter().map(read::Broken::gap).collect();
        let mut readings = BTreeMap::new();
        for reading in contents.readings {
            readings.insert(without_limits(reading.need), reading.reading);
        }
        Ok(Self { cluster: Arc::new(cluster), now: contents.now, readings })
    }
}

impl Source for BundleSource {
    async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        Ok(self.cluster.clone())
    }

    async fn gather(&self, needs: Vec<Need>, _deadline: Instant) -> Vec<(Need, Reading<Observation>)> {
        let find = |need: &Need| self.readings.get(&without_limits(need.clone())).cloned();
        let answer = |need: Need| {
            let reading = find(&need).unwrap_or_else(|| Reading::Unavailable { gap: not_recorded(&need) });
            (need, reading)
        };
        needs.into_iter().map(answer).collect()
    }

    fn now(&self) -> Timestamp {
        self.now
    }

    fn is_live(&self) -> bool {
        false
    }
}

/// A recorded probe answers for every probe of the same kind to the same place: how long and how often it was allowed to
/// try is the question's matter.
fn without_limits(mut need: Need) -> Need {
    if let Topic::Probe(request) = &mut need.topic {
        match request {
            ProbeRequest::TcpConnect { timeout_ms, attempts, .. } => (*timeout_ms, *attempts) = (0, 0),
            ProbeRequest::Dns { timeout_ms, .. } => *timeout_ms = 0,
        }
    }
    need
}

/// A kind of which the bundle says nothing, not even that there is none.
fn kind_not_recorded(resource: &str, why: String) -> Gap {
    Gap {
        what: format!("{resource} of the cluster"),
        node: None,
        reason: GapReason::NotRecorded,
        why,
        remedy: format!("add what `kubectl get {resource} -A -o yaml` writes as objects/{resource}.yaml"),
    }
}
