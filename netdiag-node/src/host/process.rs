//! Processes of the node, from /proc: which pod they belong to, where their network is, which sockets they hold.
//!
//! A process may end between any two reads. That is never an error: it is left out.

use std::collections::{HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};

use netdiag_common::observation::listener::Process;

use super::cgroup::{self, PodCgroup};
use super::{ReadError, file};
use crate::netns::is_gone;

/// The kernel's own ceiling for process ids (`PID_MAX_LIMIT` on 64 bit) is 4 million; a node with more than this many
/// threads of control has other problems first.
const MAX_PROCESSES: usize = 131_072;
/// A dozen cgroup v1 controllers with long paths.
const CGROUP_TEXT_BYTES: u64 = 64 * 1024;
/// `TASK_COMM_LEN`, with room.
const COMM_BYTES: u64 = 64;
/// A Go program has some dozens of threads.
const MAX_THREADS: usize = 1024;
/// File descriptors looked at in one search for sockets' owners. A link costs about a microsecond to read.
const MAX_DESCRIPTORS: usize = 500_000;

/// All process ids, ascending.
pub(crate) fn pids(proc: &Path) -> Result<Vec<u32>, ReadError> {
    let mut pids: Vec<u32> = file::names(proc, MAX_PROCESSES)?.iter().filter_map(|name| name.parse().ok()).collect();
    pids.sort_unstable();
    Ok(pids)
}

/// The pod of a process; none for processes outside pods and for those that ended.
pub(crate) fn pod(proc: &Path, pid: u32) -> Option<PodCgroup> {
    cgroup::parse(&file::text(&proc.join(format!("{pid}/cgroup")), CGROUP_TEXT_BYTES).ok()?)
}

/// A process's group in the cgroup v2 tree, from the root of the calling thread's cgroup namespace: `/kubepods/podUID/ID`.
pub(crate) fn unified_group(proc: &Path, pid: u32) -> Option<String> {
    unified(&file::text(&proc.join(format!("{pid}/cgroup")), CGROUP_TEXT_BYTES).ok()?)
}

/// The same of the calling process.
pub(crate) fn own_unified_group(proc: &Path) -> Option<String> {
    unified(&file::text(&proc.join("self/cgroup"), CGROUP_TEXT_BYTES).ok()?)
}

fn unified(text: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// The pod the agent itself runs in.
pub(crate) fn own_pod(proc: &Path) -> Option<PodCgroup> {
    cgroup::parse(&file::text(&proc.join("self/cgroup"), CGROUP_TEXT_BYTES).ok()?)
}

/// Inode of a process's network namespace; none when the process ended. Needs `CAP_SYS_PTRACE` for processes of other users.
pub(crate) fn netns_inode(proc: &Path, pid: u32) -> Result<Option<u64>, ReadError> {
    let path = netns_path(proc, pid);
    match std::fs::read_link(&path) {
        Ok(target) => Ok(target.to_str().and_then(|text| bracketed(text, "net:["))),
        Err(source) if is_gone(&source) => Ok(None),
        Err(source) => Err(ReadError::File { path, source }),
    }
}

/// Whether a process is at home in the network namespace with this inode; false when it ended. Its first thread may be elsewhere for a
/// moment: a runtime written in Go makes a pod's namespace with `unshare()` in whichever of its threads runs.
pub(crate) fn is_in_netns(proc: &Path, pid: u32, netns: u64) -> Result<bool, ReadError> {
    if netns_inode(proc, pid)? == Some(netns) {
        return Ok(true);
    }
    let threads = proc.join(format!("{pid}/task"));
    let names = match file::names(&threads, MAX_THREADS) {
        Err(ReadError::File { source, .. }) if is_gone(&source) => return Ok(false),
        names => names?,
    };
    let is_there = |thread: u32| matches!(netns_inode(&threads, thread), Ok(Some(inode)) if inode == netns);
    Ok(names.iter().filter_map(|name| name.parse().ok()).any(is_there))
}

pub(crate) fn netns_path(proc: &Path, pid: u32) -> PathBuf {
    proc.join(format!("{pid}/ns/net"))
}

/// `/proc/PID/comm`.
pub(crate) fn name(proc: &Path, pid: u32) -> Option<String> {
    let text = file::text(&proc.join(format!("{pid}/comm")), COMM_BYTES).ok()?;
    Some(text.trim_end().to_owned())
}

/// Processes in the network namespace with this inode, ascending; those that may not be looked at are left out.
pub(crate) fn in_netns(proc: &Path, netns: u64) -> Result<Vec<u32>, ReadError> {
    let is_inside = |pid: &u32| matches!(netns_inode(proc, *pid), Ok(Some(inode)) if inode == netns);
    Ok(pids(proc)?.into_iter().filter(is_inside).collect())
}

/// Who holds the sockets with these inodes, looked for among the processes in one network namespace. The lowest process
/// id wins when several share a socket: that is the parent of a pool of workers.
pub(crate) fn socket_owners(proc: &Path, netns: u64, sockets: &HashSet<u64>) -> HashMap<u64, Process> {
    let mut owners = HashMap::new();
    let mut descriptors_left = MAX_DESCRIPTORS;
    for pid in pids(proc).unwrap_or_default() {
        if owners.len() == sockets.len() || descriptors_left == 0 {
            break;
        }
        if !matches!(netns_inode(proc, pid), Ok(Some(inode)) if inode == netns) {
            continue;
        }
        let Ok(entries) = std::fs::read_dir(proc.join(format!("{pid}/fd"))) else { continue };
        for entry in entries.flatten().take(descriptors_left) {
            descriptors_left -= 1;
            let Some(inode) = socket_inode(&entry.path()) else { continue };
            if sockets.contains(&inode) && !owners.contains_key(&inode) {
                let container_id = pod(proc, pid).and_then(|pod| pod.container_id);
                let Some(name) = name(proc, pid) else { break };
                owners.insert(inode, Process { pid, name, container_id });
            }
        }
    }
    owners
}

fn socket_inode(link: &Path) -> Option<u64> {
    bracketed(std::fs::read_link(link).ok()?.to_str()?, "socket:[")
}

/// The number in `net:[4026531840]`.
fn bracketed(text: &str, before: &str) -> Option<u64> {
    text.strip_prefix(before)?.strip_suffix(']')?.parse().ok()
}

/// Whether other pods' processes can be seen at all: without hostPID, process 1 is the agent's own container.
pub(crate) fn sees_whole_node(proc: &Path) -> Result<(), ReadError> {
    let own = own_pod(proc);
    let is_first = std::process::id() == 1 || (own.is_some() && own == pod(proc, 1));
    if is_first {
        return Err(ReadError::Call {
            step: "see the processes of other pods".to_owned(),
            source: io::Error::new(io::ErrorKind::PermissionDenied, "the agent's pod runs without hostPID"),
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::os::fd::AsRawFd as _;

    use super::*;

    #[test]
    fn this_process_holds_its_own_socket() {
        let proc = Path::new("/proc");
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let link = format!("/proc/self/fd/{}", listener.as_raw_fd());
        let inode = socket_inode(Path::new(&link)).unwrap();
        let netns = netns_inode(proc, std::process::id()).unwrap().unwrap();
        let owners = socket_owners(proc, netns, &HashSet::from([inode]));
        assert_eq!(owners[&inode].pid, std::process::id());
        assert!(socket_owners(proc, netns + 1, &HashSet::from([inode])).is_empty());
    }

    #[test]
    fn a_process_is_at_home_where_one_of_its_threads_is() {
        let proc = tempfile::tempdir().unwrap();
        let link = |thread: &str, inode: u64| {
            let folder = proc.path().join(thread).join("ns");
            std::fs::create_dir_all(&folder).unwrap();
            std::os::unix::fs::symlink(format!("net:[{inode}]"), folder.join("net")).unwrap();
        };
        link("7", 100);
        for (thread, inode) in [("7/task/7", 100), ("7/task/8", 4)] {
            link(thread, inode);
        }
        let is_in = |netns| is_in_netns(proc.path(), 7, netns).unwrap();
        assert_eq!((is_in(100), is_in(4), is_in(5)), (true, true, false));
    }

    #[test]
    fn ended_process_is_not_an_error() {
        let proc = Path::new("/proc");
        let gone = u32::MAX;
        assert!(!is_in_netns(proc, gone, 1).unwrap());
        assert_eq!(netns_inode(proc, gone).unwrap(), None);
        assert_eq!((pod(proc, gone), name(proc, gone)), (None, None));
    }
}
