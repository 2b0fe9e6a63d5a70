//! One immutable snapshot: what is intended, and what the nodes answered, with one `now`.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::{Gap, Need, Reading};

pub mod cluster;
pub mod corefile;
mod kind_name;
pub mod meta;
pub mod object;
pub mod parse;
pub mod selector;
mod view;

pub use cluster::{Cluster, Kind};
pub use kind_name::KindName;
pub use meta::{Meta, ObjectRef};
pub use view::{Look, Seen, View};

#[derive(Debug, Clone)]
pub struct Evidence {
    pub now: Timestamp,
    pub cluster: Arc<Cluster>,
    /// Shared: a scan holds one evidence for hundreds of paths.
    readings: Arc<BTreeMap<Need, Reading<Observation>>>,
}

impl Evidence {
    pub fn new(now: Timestamp, cluster: Arc<Cluster>) -> Self {
        Self { now, cluster, readings: Arc::default() }
    }

    /// The next evidence: this one plus what was gathered since.
    pub fn with(mut self, now: Timestamp, readings: impl IntoIterator<Item = (Need, Reading<Observation>)>) -> Self {
        self.now = now;
        Arc::make_mut(&mut self.readings).extend(readings);
        self
    }

    pub fn reading(&self, need: &Need) -> Option<&Reading<Observation>> {
        self.readings.get(need)
    }

    pub fn readings(&self) -> impl Iterator<Item = (&Need, &Reading<Observation>)> {
        self.readings.iter()
    }

    /// Gaps of the API's kinds that are judged, by name.
    pub fn kind_gaps(&self) -> Vec<(KindName, &Gap)> {
        let judged = KindName::ALL.into_iter().filter(|kind| kind.is_judged());
        judged.filter_map(|kind| kind.gap(&self.cluster).map(|gap| (kind, gap))).collect()
    }
}
