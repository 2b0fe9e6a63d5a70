//! Looks at the counters of the node and all its pods now and then, so that an answer can say how they grew since when.
//!
//! The node is looked at every [`ROUND_EVERY`], each pod every `POD_EVERY`, and whatever is asked about at that moment too.
//! A look at one pod's namespace takes about 0.3 ms.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use netdiag_common::Window;
use netdiag_common::observation::counter::{Counter, Counters};
use netdiag_common::observation::device::Devices;
use netdiag_common::observation::neighbour::Neighbours;
use netdiag_common::observation::socket::{ControlGroup, Sockets};

use crate::attribution::{Attribution, Pod, PodsOnNode, enter_cgroup_root};
use crate::clock;
use crate::history::{Baseline, Moment, Names, Seen, Series};
use crate::host::device::{self, Scope};
use crate::host::socket::{self, Limits, Processes, group};
use crate::host::{Host, ReadError, counter, neighbour};
use crate::netns::{NetnsHandle, own_cookie};

/// The shortest window that anybody asks for.
pub const ROUND_EVERY: Duration = Duration::from_secs(10);
/// A hundred pods at 0.3 ms each are 0.05 % of a core.
const POD_EVERY: Duration = Duration::from_mins(1);
/// Pods looked at in one round take at most this long together; the others come first in the next one.
const ROUND_LIMIT: Duration = Duration::from_millis(300);
/// Namespaces remembered. Those of pods that ended are forgotten at the next round.
const MAX_SPACES: usize = 2_048;
/// Where the hierarchies of control groups are mounted.
const HIERARCHIES: &str = "/sys/fs/cgroup";

pub struct Samples {
    host: Host,
    attribution: Arc<Attribution>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    names: Names,
    spaces: HashMap<SpaceId, Space>,
    /// By UID.
    pods: HashMap<String, PodState>,
}

/// A network namespace. The cookie tells apart two that had the same inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct SpaceId {
    inode: u64,
    cookie: Option<u64>,
}

#[derive(Default)]
struct Space {
    counters: Series,
    devices: Series,
    neighbours: Series,
    /// Since when a neighbour does not answer, by device and address, on the clock of [`Moment::boot_ns`].
    unresolved: HashMap<(u32, IpAddr), u64>,
}

#[derive(Default)]
struct PodState {
    groups: Series,
    looked_ns: Option<u64>,
}

/// What one round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Round {
    pub looked: usize,
    /// Pods that were due and must wait for the next round.
    pub late: usize,
    /// Pods that could not be looked at; most have just ended.
    pub failed: usize,
}

impl Samples {
    pub fn new(host: Host, attribution: Arc<Attribution>) -> Self {
        Self { host, attribution, state: Mutex::default() }
    }

    /// To be called every [`ROUND_EVERY`]. Blocks for some milliseconds.
    pub fn round(&self) -> Result<Round, ReadError> {
        let pods = self.attribution.pods();
        // Its thread ends with the round: it has been in many namespaces.
        self.host.netns.run(|| {
            self.look_at(&self.host.netns, Scope::Node)?;
            // Where pods cannot be seen, the node still can.
            let pods = pods?;
            self.forget(&pods);
            Ok(self.look_around(&pods))
        })
    }

    /// How many namespaces are followed.
    pub fn remembered(&self) -> usize {
        self.lock().spaces.len()
    }

    fn look_around(&self, pods: &PodsOnNode) -> Round {
        enter_cgroup_root(&self.host.proc);
        let started = Instant::now();
        let mut round = Round::default();
        let due = self.due(pods);
        for (position, pod) in due.iter().enumerate() {
            if started.elapsed() > ROUND_LIMIT {
                round.late = due.len() - position;
                break;
            }
            match self.look_at_pod(pod) {
                Ok(()) => round.looked += 1,
                Err(error) => {
                    tracing::debug!(pod = pod.observed.uid, %error, "not looked at");
                    round.failed += 1;
                }
            }
        }
        round
    }

    /// Pods not looked at for as long as a pod's turn takes, those that waited longest first.
    fn due<'p>(&self, pods: &'p PodsOnNode) -> Vec<&'p Pod> {
        // Half a round too early is no reason to wait for the next.
        let waited = POD_EVERY.saturating_sub(ROUND_EVERY / 2);
        let now_ns = clock::boottime_ns();
        let state = self.lock();
        let looked_ns = |pod: &Pod| state.pods.get(&pod.observed.uid).and_then(|pod| pod.looked_ns);
        let is_due = |pod: &&Pod| {
            looked_ns(pod).is_none_or(|at_ns| Duration::from_nanos(now_ns.saturating_sub(at_ns)) >= waited)
        };
        let mut due: Vec<&Pod> = pods.pods.iter().filter(is_due).collect();
        due.sort_by_key(|pod| looked_ns(pod));
        due
    }

    fn look_at_pod(&self, pod: &Pod) -> Result<(), ReadError> {
        // Also when it fails: a pod that cannot be entered must not be tried before all others in every round.
        self.lock().pods.entry(pod.observed.uid.clone()).or_default().looked_ns = Some(clock::boottime_ns());
        self.groups(pod, Window::default())?;
        if pod.observed.host_network {
            return Ok(());
        }
        let netns = self.attribution.open(pod)?;
        netns.enter()?;
        self.look_at(&netns, Scope::Pod)
    }

    fn look_at(&self, netns: &NetnsHandle, scope: Scope) -> Result<(), ReadError> {
        self.counters(netns, Window::default())?;
        self.devices(netns, scope, Window::default())?;
        self.neighbours(netns, Window::default())?;
        Ok(())
    }

    /// Of the calling thread's namespace, which is `netns`; so are the next three.
    pub(crate) fn counters(&self, netns: &NetnsHandle, window: Window) -> Result<Counters, ReadError> {
        let found = counter::read()?;
        let mut counters: BTreeMap<String, Counter> =
            found.counters.into_iter().map(|(name, value)| (name, Counter { value, ..Counter::default() })).collect();
        let seen = counter::seen(&mut counters);
        let baseline = self.look(netns, |space| &mut space.counters, seen, window);
        let is_told = |counter: &Counter| counter.value > 0 || counter.was_reset;
        let zeros = counters.iter().filter(|(_, counter)| !is_told(counter)).map(|(name, _)| name.clone()).collect();
        counters.retain(|_, counter| is_told(counter));
        let (since, window_s) = told(baseline);
        Ok(Counters { since, window_s, counters, zeros, left_out: found.left_out })
    }

    pub(crate) fn devices(&self, netns: &NetnsHandle, scope: Scope, window: Window) -> Result<Devices, ReadError> {
        let mut found = device::read(scope)?;
        let seen = device::counters(&mut found);
        let baseline = self.look(netns, |space| &mut space.devices, seen, window);
        device::strip_zeros(&mut found);
        let (since, window_s) = told(baseline);
        Ok(Devices { since, window_s, ..found })
    }

    pub(crate) fn neighbours(&self, netns: &NetnsHandle, window: Window) -> Result<Neighbours, ReadError> {
        let mut found = neighbour::read()?;
        let seen = neighbour::counters(&mut found);
        let baseline = self.look(netns, |space| &mut space.neighbours, seen, window);
        self.remember_unresolved(netns, &mut found);
        let (since, window_s) = told(baseline);
        Ok(Neighbours { since, window_s, ..found })
    }

    /// `limits` are those that the thread read before it entered the namespace. `pod` is none for the node.
    pub(crate) fn sockets(
        &self,
        netns: &NetnsHandle,
        pod: Option<&Pod>,
        limits: &Limits,
        window: Window,
    ) -> Result<Sockets, ReadError> {
        let processes = pod.map_or(Processes::In(netns.inode), |pod| Processes::Of(&pod.pids));
        let mut found = socket::read(&self.host.proc, netns.inode, &processes, limits)?;
        if let Some(pod) = pod {
            enter_cgroup_root(&self.host.proc);
            let (groups, baseline) = self.groups(pod, window)?;
            found.groups = groups;
            (found.since, found.window_s) = told(baseline);
            if found.groups.iter().all(|group| group.cpu.is_none() && group.memory.is_none()) {
                let why = format!("control groups of the pod: nothing below {HIERARCHIES} could be read");
                found.left_out.push(why);
            }
        }
        Ok(found)
    }

    fn groups(&self, pod: &Pod, window: Window) -> Result<(Vec<ControlGroup>, Option<Baseline>), ReadError> {
        let mut groups = group::read(&self.host.proc, Path::new(HIERARCHIES), &pod.pids)?;
        let mut state = self.lock();
        let State { names, pods, .. } = &mut *state;
        let series = &mut pods.entry(pod.observed.uid.clone()).or_default().groups;
        let baseline = series.look(names, group::counters(&mut groups), moment(), length(window));
        Ok((groups, baseline))
    }

    fn look(
        &self,
        netns: &NetnsHandle,
        series: impl FnOnce(&mut Space) -> &mut Series,
        seen: Vec<Seen<'_>>,
        window: Window,
    ) -> Option<Baseline> {
        let id = SpaceId { inode: netns.inode, cookie: own_cookie() };
        let mut state = self.lock();
        let State { names, spaces, .. } = &mut *state;
        if spaces.len() >= MAX_SPACES && !spaces.contains_key(&id) {
            return None;
        }
        series(spaces.entry(id).or_default()).look(names, seen, moment(), length(window))
    }

    /// Notes who does not answer, forgets who does again, and tells since when.
    fn remember_unresolved(&self, netns: &NetnsHandle, found: &mut Neighbours) {
        let id = SpaceId { inode: netns.inode, cookie: own_cookie() };
        let now = moment();
        let mut state = self.lock();
        let Some(space) = state.spaces.get_mut(&id) else { return };
        let before = std::mem::take(&mut space.unresolved);
        for unresolved in &mut found.unresolved {
            let key = (unresolved.link_index, unresolved.address);
            let first_ns = before.get(&key).copied().unwrap_or(now.boot_ns);
            space.unresolved.insert(key, first_ns);
            unresolved.first_at = Some(now.wall_of(first_ns));
        }
    }

    fn forget(&self, pods: &PodsOnNode) {
        let observed = || pods.pods.iter().map(|pod| &pod.observed);
        let mut ids: HashSet<SpaceId> =
            observed().map(|pod| SpaceId { inode: pod.netns_inode, cookie: pod.netns_cookie }).collect();
        ids.insert(SpaceId { inode: pods.host_inode, cookie: pods.host_cookie });
        let uids: HashSet<&str> = observed().map(|pod| pod.uid.as_str()).collect();
        let mut state = self.lock();
        state.spaces.retain(|id, _| ids.contains(id));
        state.pods.retain(|uid, _| uids.contains(uid.as_str()));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn moment() -> Moment {
    Moment { boot_ns: clock::boottime_ns(), wall: clock::now() }
}

fn length(window: Window) -> Duration {
    Duration::from_secs(window.seconds())
}

fn told(baseline: Option<Baseline>) -> (Option<jiff::Timestamp>, f64) {
    baseline.map_or((None, 0.0), |baseline| (Some(baseline.since), baseline.window_s))
}
