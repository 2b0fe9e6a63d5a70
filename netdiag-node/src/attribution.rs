//! Which network namespace belongs to which pod: from the cgroups of the node's processes, confirmed by the veth pair that
//! leads from the node into the namespace.
//!
//! The agent answers for the pods of its own node only. On a machine that runs several nodes (kind, the lab) they share
//! one process tree, so a pod counts when its cgroup is below the same root as the agent's own pod. A bare agent that was
//! told no root takes the pods that its node's namespace leads to.

use std::collections::{BTreeMap, HashSet};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netdiag_common::observation::pod::{AttributionMethod, PodOnNode};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::SockProtocol;

use crate::host::netlink::{Netlink, attribute, attributes, int};
use crate::host::{Host, ReadError, file, network, process};
use crate::netns::{NetnsHandle, own_cookie};

/// A scan of /proc is reused this long: one question asks about several pods within a second or two.
const REUSE_FOR: Duration = Duration::from_secs(3);
/// A pod that is not in the cache may have just started; but a wrong UID must not cause a scan each time.
const RESCAN_AFTER: Duration = Duration::from_millis(200);

const RTM_GETNSID: u16 = 90;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;

/// Finds pods, and remembers them for a few seconds.
pub struct Attribution {
    host: Host,
    latest: Mutex<Option<(Instant, Arc<PodsOnNode>)>>,
}

/// One scan.
#[derive(Debug)]
pub struct PodsOnNode {
    pub pods: Vec<Pod>,
    /// Of the node's own namespace.
    pub host_inode: u64,
    pub host_cookie: Option<u64>,
}

#[derive(Debug, Clone)]
pub struct Pod {
    pub observed: PodOnNode,
    /// Its processes in its network namespace, ascending.
    pub pids: Vec<u32>,
}

impl Attribution {
    pub fn new(host: Host) -> Self {
        Self { host, latest: Mutex::new(None) }
    }

    /// The pods on this node, at most a few seconds old.
    pub fn pods(&self) -> Result<Arc<PodsOnNode>, ReadError> {
        self.newer_than(REUSE_FOR)
    }

    /// The pod with this UID; none when it has no process on this node.
    pub fn find(&self, uid: &str) -> Result<Option<Pod>, ReadError> {
        let found = |pods: &PodsOnNode| pods.pods.iter().find(|pod| pod.observed.uid == uid).cloned();
        if let Some(pod) = found(&*self.pods()?) {
            return Ok(Some(pod));
        }
        Ok(found(&*self.newer_than(RESCAN_AFTER)?))
    }

    /// The pod's namespace, opened. Its processes may have ended since the scan, or the number of the namespace may name
    /// another one by now: both are `Gone`.
    pub fn open(&self, pod: &Pod) -> Result<NetnsHandle, ReadError> {
        if pod.observed.host_network {
            return Ok(self.host.netns.clone());
        }
        let uid = &pod.observed.uid;
        let open = |pod: &Pod| open_netns(&self.host.proc, &pod.pids, pod.observed.netns_inode);
        if let Some(netns) = open(pod) {
            return Ok(netns);
        }
        // The processes that were seen may have been replaced since.
        let again = self.newer_than(RESCAN_AFTER)?;
        let pod = again.pods.iter().find(|pod| pod.observed.uid == *uid);
        pod.and_then(open).ok_or_else(|| ReadError::Gone { what: format!("the network namespace of pod {uid}") })
    }

    fn newer_than(&self, age: Duration) -> Result<Arc<PodsOnNode>, ReadError> {
        // Held during the scan on purpose: readers that come meanwhile want its result, not one more scan.
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((at, pods)) = latest.as_ref()
            && at.elapsed() < age
        {
            return Ok(Arc::clone(pods));
        }
        let pods = Arc::new(self.host.netns.run(|| scan(&self.host))?);
        *latest = Some((Instant::now(), Arc::clone(&pods)));
        Ok(pods)
    }
}

impl PodsOnNode {
    /// The owner of a namespace. The cookie decides when both sides have one: inodes are used again.
    pub fn owner(&self, cookie: Option<u64>, inode: Option<u64>) -> Option<&Pod> {
        self.pods.iter().filter(|pod| !pod.observed.host_network).find(|pod| {
            match (cookie, pod.observed.netns_cookie) {
                (Some(wanted), Some(own)) => wanted == own,
                _ => inode == Some(pod.observed.netns_inode),
            }
        })
    }
}

/// How a pod is known to be of this node.
enum Scope {
    /// Its cgroup is below this root.
    Root(String),
    /// It lives in the node's namespace, or a veth of the node leads to it.
    Reachable,
}

/// Runs on a thread of its own, inside the node's network namespace.
fn scan(host: &Host) -> Result<PodsOnNode, ReadError> {
    process::sees_whole_node(&host.proc)?;
    enter_cgroup_root(&host.proc);
    let scope = match KubeletRoot::of(host) {
        KubeletRoot::Given(root) => Scope::Root(root.trim_end_matches('/').to_owned()),
        KubeletRoot::Own(root) => Scope::Root(root),
        KubeletRoot::Unknown => Scope::Reachable,
    };
    let candidates = candidates(&host.proc, &scope)?;

    let host_cookie = own_cookie();
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let linked: HashSet<u32> =
        network::links(&mut netlink)?.into_iter().filter_map(|found| found.peer_netns_id).collect();
    let mut pods = Vec::with_capacity(candidates.len());
    for (uid, candidate) in candidates {
        let (netns_inode, processes) = candidate.main_netns();
        let host_network = netns_inode == host.netns.inode;
        let (netns_cookie, has_veth) = if host_network {
            (host_cookie, false)
        } else {
            // The netlink socket stays in the node's namespace when this thread goes on to the pod's.
            let Some(netns) = open_netns(&host.proc, &processes, netns_inode) else { continue };
            let has_veth = netns_id(&mut netlink, &netns).is_some_and(|id| linked.contains(&id));
            (netns.enter().ok().and_then(|()| own_cookie()), has_veth)
        };
        if matches!(scope, Scope::Reachable) && !host_network && !has_veth {
            continue;
        }
        let method = if has_veth { AttributionMethod::CgroupAndVeth } else { AttributionMethod::Cgroup };
        let container_ids = candidate.container_ids.into_iter().collect();
        let observed = PodOnNode { uid, container_ids, netns_inode, netns_cookie, host_network, method };
        pods.push(Pod { observed, pids: processes });
    }
    Ok(PodsOnNode { pods, host_inode: host.netns.inode, host_cookie })
}

/// A pod as its processes show it.
#[derive(Default)]
struct Candidate {
    container_ids: std::collections::BTreeSet<String>,
    /// Network namespace inode → processes in it.
    namespaces: BTreeMap<u64, Vec<u32>>,
}

impl Candidate {
    /// The namespace that most of the pod's processes are in: a process may make more of its own. The oldest process (the
    /// sandbox's) decides between equals.
    fn main_netns(&self) -> (u64, Vec<u32>) {
        let main = self.namespaces.iter().max_by_key(|(_, pids)| (pids.len(), std::cmp::Reverse(pids.first())));
        main.map_or((0, Vec::new()), |(inode, pids)| (*inode, pids.clone()))
    }
}

fn candidates(proc: &Path, scope: &Scope) -> Result<BTreeMap<String, Candidate>, ReadError> {
    let mut found: BTreeMap<String, Candidate> = BTreeMap::new();
    let mut denied = None;
    for pid in process::pids(proc)? {
        let Some(pod) = process::pod(proc, pid) else { continue };
        if let Scope::Root(root) = scope
            && pod.root.as_ref().is_some_and(|other| other != root)
        {
            continue;
        }
        match process::netns_inode(proc, pid) {
            Ok(None) => {}
            Ok(Some(inode)) => {
                let candidate = found.entry(pod.pod_uid).or_default();
                candidate.container_ids.extend(pod.container_id);
                candidate.namespaces.entry(inode).or_default().push(pid);
            }
            Err(error) => denied = Some(error),
        }
    }
    // Without the right to look, every pod would seem to have gone.
    match denied {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

/// The cgroup root of this node's kubelet, and how it is known.
pub(crate) enum KubeletRoot {
    /// The agent was told.
    Given(String),
    /// It is above the agent's own pod.
    Own(String),
    Unknown,
}

impl KubeletRoot {
    /// As far as the calling thread's cgroup namespace shows it.
    pub(crate) fn of(host: &Host) -> Self {
        match (&host.cgroup_root, process::own_pod(&host.proc).and_then(|pod| pod.root)) {
            (Some(root), _) => Self::Given(root.clone()),
            (None, Some(root)) => Self::Own(root),
            (None, None) => Self::Unknown,
        }
    }
}

/// The cgroup root of this node's kubelet; empty when it is not known.
pub(crate) fn kubelet_root(host: &Host) -> String {
    let look = || {
        enter_cgroup_root(&host.proc);
        KubeletRoot::of(host)
    };
    // On a thread of its own: a thread stays in the cgroup namespace it entered.
    match std::thread::scope(|scope| scope.spawn(look).join()) {
        Ok(KubeletRoot::Given(root) | KubeletRoot::Own(root)) => root,
        Ok(KubeletRoot::Unknown) | Err(_) => String::new(),
    }
}

/// /proc/PID/cgroup is written relative to the reader's cgroup namespace. From the node's own, paths are whole. It is a
/// help, not a must: without the right the paths start with `/..` and still name pod and container.
pub(crate) fn enter_cgroup_root(proc: &Path) {
    if let Ok(namespace) = file::open(&proc.join("1/ns/cgroup")) {
        let _ = setns(OwnedFd::from(namespace), CloneFlags::CLONE_NEWCGROUP);
    }
}

fn open_netns(proc: &Path, pids: &[u32], inode: u64) -> Option<NetnsHandle> {
    pids.iter().find_map(|pid| {
        let netns = NetnsHandle::open(&process::netns_path(proc, *pid)).ok()?;
        (netns.inode == inode).then_some(netns)
    })
}

/// The number that the namespace of the socket gave to another one; none when no link leads there.
pub(crate) fn netns_id(netlink: &mut Netlink, netns: &NetnsHandle) -> Option<u32> {
    let mut request = vec![0; 4];
    request.extend(attribute(NETNSA_FD, &netns.raw().to_ne_bytes()));
    let decode = |payload: &[u8]| {
        let (_, value) = attributes(payload.get(4..)?).find(|(kind, _)| *kind == NETNSA_NSID)?;
        int(value, 0)
    };
    let id = netlink.get(RTM_GETNSID, &request, "number a network namespace", decode).ok()??;
    // NETNSA_NSID_NOT_ASSIGNED
    (id != u32::MAX).then_some(id)
}

impl From<&PodsOnNode> for Vec<PodOnNode> {
    fn from(found: &PodsOnNode) -> Self {
        found.pods.iter().map(|pod| pod.observed.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_processes_decide_and_then_the_oldest() {
        let mut candidate = Candidate::default();
        candidate.namespaces.insert(7, vec![50, 60]);
        candidate.namespaces.insert(8, vec![55]);
        assert_eq!(candidate.main_netns(), (7, vec![50, 60]));
        candidate.namespaces.insert(8, vec![40, 70]);
        assert_eq!(candidate.main_netns(), (8, vec![40, 70]));
    }

    #[test]
    fn cookie_decides_over_a_reused_inode() {
        let pod = |uid: &str, inode, cookie| Pod {
            observed: PodOnNode {
                uid: uid.to_owned(),
                container_ids: Vec::new(),
                netns_inode: inode,
                netns_cookie: cookie,
                host_network: false,
                method: AttributionMethod::Cgroup,
            },
            pids: Vec::new(),
        };
        let found =
            PodsOnNode { pods: vec![pod("a", 10, Some(1)), pod("b", 11, None)], host_inode: 1, host_cookie: None };
        assert!(found.owner(Some(2), Some(10)).is_none());
        assert_eq!(found.owner(Some(1), None).unwrap().observed.uid, "a");
        assert_eq!(found.owner(Some(9), Some(11)).unwrap().observed.uid, "b");
    }
}
