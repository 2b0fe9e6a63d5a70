//! Whose a namespace is, by the number that the kernel programs write.
//!
//! A pod that fails is often gone when somebody asks about it: its namespace is remembered longer than the pod lives.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netdiag_common::observation::Owner;

use crate::attribution::{Attribution, PodsOnNode};
use crate::host::ReadError;
use crate::kernel::NetnsId;

/// Longer than the window of the counters, so that no group in it loses its owner.
const REMEMBER_FOR: Duration = Duration::from_mins(70);
/// Namespaces remembered. A node has a few hundred pods; short jobs come and go.
const MAX_REMEMBERED: usize = 4_096;

/// Shared by everything that attributes what the kernel counted.
pub struct Owners {
    attribution: Arc<Attribution>,
    kind: NetnsId,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    by_number: HashMap<u64, (Owner, Instant)>,
}

impl Owners {
    pub fn new(attribution: Arc<Attribution>, kind: NetnsId) -> Self {
        Self { attribution, kind, known: Mutex::default() }
    }

    /// Looks at the pods that run now. When they cannot be seen, what is known stays.
    pub fn refresh(&self) -> Result<(), ReadError> {
        let pods = self.attribution.pods()?;
        self.known.lock().unwrap_or_else(PoisonError::into_inner).learn(&pods, self.kind, Instant::now());
        Ok(())
    }

    pub fn of(&self, id: u64) -> Owner {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).of(id)
    }
}

impl Known {
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
            .map(|pod| (number(pod.netns_cookie, pod.netns_inode), Owner::Pod { uid: pod.uid.clone() }));
        let host = (number(found.host_cookie, found.host_inode), Owner::Host);
        for (number, owner) in pods.chain([host]) {
            if let Some(number) = number {
                self.by_number.insert(number, (owner, now));
            }
        }
        self.by_number.retain(|_, (_, seen)| now.duration_since(*seen) < REMEMBER_FOR);
        if self.by_number.len() > MAX_REMEMBERED {
            let mut ages: Vec<Instant> = self.by_number.values().map(|(_, seen)| *seen).collect();
            ages.sort_unstable();
            let oldest_kept = ages[ages.len() - MAX_REMEMBERED];
            self.by_number.retain(|_, (_, seen)| *seen >= oldest_kept);
        }
    }

    fn of(&self, id: u64) -> Owner {
        self.by_number.get(&id).map_or(Owner::Unknown { id }, |(owner, _)| owner.clone())
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
    fn pod_that_ended_keeps_its_namespace_for_a_while() {
        let start = Instant::now();
        let mut known = Known::default();
        known.learn(&pods(&[("a", 7)]), NetnsId::Cookie, start);
        known.learn(&pods(&[]), NetnsId::Cookie, start + Duration::from_hours(1));
        assert_eq!(known.of(7), Owner::Pod { uid: "a".to_owned() });
        assert_eq!(known.of(1), Owner::Host);
        known.learn(&pods(&[]), NetnsId::Cookie, start + Duration::from_mins(71));
        assert_eq!(known.of(7), Owner::Unknown { id: 7 });
    }

    #[test]
    fn memory_is_bounded_and_forgets_the_oldest() {
        let start = Instant::now();
        let mut known = Known::default();
        for n in 0..MAX_REMEMBERED as u64 + 10 {
            known.learn(&pods(&[("a", n + 100)]), NetnsId::Cookie, start + Duration::from_millis(n));
        }
        assert!(known.by_number.len() <= MAX_REMEMBERED);
        assert_eq!(known.of(100), Owner::Unknown { id: 100 });
    }
}
