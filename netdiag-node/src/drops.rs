//! Dropped packets over time: harvests the kernel's counters now and then, and remembers whose namespaces they name.
//!
//! A pod that fails is often gone when somebody asks about it: its namespace is remembered longer than the pod lives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netdiag_common::observation::kfree_skb::{DropNetns, Drops};
use netdiag_common::observation::preflight::Check;

use crate::attribution::{Attribution, PodsOnNode};
use crate::clock;
use crate::gap::{Failure, OtherFailure};
use crate::kernel::kfree_skb::NetnsId;
use crate::kernel::{self, KernelDrops, LoadError};

/// The kernel's tables are sized for this long between two harvests.
pub const HARVEST_EVERY: Duration = Duration::from_secs(10);
/// Longer than the window of the counters, so that no group in it loses its owner.
const REMEMBER_FOR: Duration = Duration::from_mins(10);
/// Namespaces remembered. A node has a few hundred pods; short jobs come and go.
const MAX_REMEMBERED: usize = 4_096;

/// The loaded program, or why there is none.
pub struct DropWatch {
    attribution: Arc<Attribution>,
    /// The preflight's line about the program.
    pub check: Check,
    state: Mutex<Result<Watched, LoadError>>,
}

struct Watched {
    drops: KernelDrops,
    owners: Owners,
}

impl DropWatch {
    /// Loads and attaches the program; takes about half a second.
    pub fn load(attribution: Arc<Attribution>) -> Self {
        let loaded = KernelDrops::load();
        match &loaded {
            Ok(drops) => {
                tracing::info!(attach = drops.attach(), symbols = drops.has_symbols(), "counting dropped packets");
            }
            Err(error) => tracing::warn!(%error, "dropped packets are not counted"),
        }
        let check = kernel::check(&loaded);
        let state = loaded.map(|drops| Watched { drops, owners: Owners::default() });
        Self { attribution, check, state: Mutex::new(state) }
    }

    /// To be called every [`HARVEST_EVERY`]. Blocks for some 20 ms.
    pub fn harvest(&self) {
        let pods = self.attribution.pods();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(watched) = state.as_mut() {
            watched.harvest(pods.ok().as_deref());
        }
    }

    /// What was dropped in the window, up to now.
    pub fn observe(&self) -> Result<Drops, Failure> {
        let pods = self.attribution.pods()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match state.as_mut() {
            Ok(watched) => {
                watched.harvest(Some(&pods));
                let owners = &watched.owners;
                Ok(watched.drops.observe(clock::now(), &|id| owners.of(id)))
            }
            Err(error) => Err(Failure::Other(OtherFailure {
                reason: error.gap_reason(),
                why: error.to_string(),
                remedy: error.remedy().to_owned(),
            })),
        }
    }
}

impl Watched {
    fn harvest(&mut self, pods: Option<&PodsOnNode>) {
        if let Some(pods) = pods {
            self.owners.learn(pods, self.drops.netns_id(), Instant::now());
        }
        self.drops.harvest(clock::now());
    }
}

/// Whose a namespace is or was, by the number that the program writes.
#[derive(Default)]
struct Owners {
    known: HashMap<u64, (DropNetns, Instant)>,
}

impl Owners {
    fn learn(&mut self, found: &PodsOnNode, kind: NetnsId, now: Instant) {
        let number = |cookie: Option<u64>, inode: u64| match kind {
            NetnsId::Cookie => cookie,
            NetnsId::Inode => Some(inode),
        };
        let pods = found
            .pods
            .iter()
            .map(|pod| &pod.observed)
            .filter(|pod| !pod.host_network)
            .map(|pod| (number(pod.netns_cookie, pod.netns_inode), DropNetns::Pod { uid: pod.uid.clone() }));
        let host = (number(found.host_cookie, found.host_inode), DropNetns::Host);
        for (number, owner) in pods.chain([host]) {
            if let Some(number) = number {
                self.known.insert(number, (owner, now));
            }
        }
        self.known.retain(|_, (_, seen)| now.duration_since(*seen) < REMEMBER_FOR);
        if self.known.len() > MAX_REMEMBERED {
            let mut ages: Vec<Instant> = self.known.values().map(|(_, seen)| *seen).collect();
            ages.sort_unstable();
            let oldest_kept = ages[ages.len() - MAX_REMEMBERED];
            self.known.retain(|_, (_, seen)| *seen >= oldest_kept);
        }
    }

    fn of(&self, id: u64) -> DropNetns {
        self.known.get(&id).map_or(DropNetns::Unknown { id }, |(owner, _)| owner.clone())
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::pod::{AttributionMethod, PodOnNode};

    use super::*;
    use crate::attribution::Pod;

    fn pods(list: &[(&str, u64)]) -> PodsOnNode {
        let pod = |(uid, cookie): &(&str, u64)| Pod {
            observed: PodOnNode {
                uid: (*uid).to_owned(),
                container_ids: Vec::new(),
                netns_inode: 0,
                netns_cookie: Some(*cookie),
                host_network: false,
                method: AttributionMethod::Cgroup,
            },
            pids: Vec::new(),
        };
        PodsOnNode { pods: list.iter().map(pod).collect(), host_inode: 1, host_cookie: Some(1) }
    }

    #[test]
    fn pod_that_ended_keeps_its_drops_for_a_while() {
        let start = Instant::now();
        let mut owners = Owners::default();
        owners.learn(&pods(&[("a", 7)]), NetnsId::Cookie, start);
        owners.learn(&pods(&[]), NetnsId::Cookie, start + Duration::from_mins(5));
        assert_eq!(owners.of(7), DropNetns::Pod { uid: "a".to_owned() });
        assert_eq!(owners.of(1), DropNetns::Host);
        owners.learn(&pods(&[]), NetnsId::Cookie, start + Duration::from_mins(11));
        assert_eq!(owners.of(7), DropNetns::Unknown { id: 7 });
    }

    #[test]
    fn memory_is_bounded_and_forgets_the_oldest() {
        let start = Instant::now();
        let mut owners = Owners::default();
        for n in 0..MAX_REMEMBERED as u64 + 10 {
            owners.learn(&pods(&[("a", n + 100)]), NetnsId::Cookie, start + Duration::from_millis(n));
        }
        assert!(owners.known.len() <= MAX_REMEMBERED);
        assert_eq!(owners.of(100), DropNetns::Unknown { id: 100 });
    }
}
