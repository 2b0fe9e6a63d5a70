//! Taking one cluster down: its processes, cgroups, namespaces, mounts and files, and nothing of any other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Cluster, cgroup, underlay};
use crate::command;

/// Killed processes end at once, unless they wait for a disk.
const END_LIMIT: Duration = Duration::from_secs(10);

pub(super) fn down(cluster: &Cluster) -> Result<()> {
    let started = Instant::now();
    loop {
        let pids = processes(cluster)?;
        if pids.is_empty() {
            break;
        }
        if started.elapsed() > END_LIMIT {
            bail!("processes of cluster {} do not end: {pids:?}", cluster.options.name);
        }
        for &pid in &pids {
            // It may have ended by itself in the meantime.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    underlay::remove(cluster)?;
    remove_cgroups(cluster)?;
    unmount(cluster)?;
    std::fs::remove_dir_all(&cluster.folder).with_context(|| format!("cannot remove {}", cluster.folder.display()))
}

/// Everything that lives in the cluster's network namespaces (all components and shims) or cgroups (all pods).
fn processes(cluster: &Cluster) -> Result<BTreeSet<i32>> {
    let mut pids: BTreeSet<i32> = cgroup::processes(&cluster.options.name).into_iter().collect();
    for netns in underlay::namespaces(cluster) {
        let text = command::output(&mut command::words(&["ip", "netns", "pids", &netns]))?;
        pids.extend(text.split_whitespace().filter_map(|word| word.parse::<i32>().ok()));
    }
    Ok(pids)
}

/// The kernel empties a group a moment after its last process has ended.
fn remove_cgroups(cluster: &Cluster) -> Result<()> {
    let started = Instant::now();
    loop {
        match cgroup::remove(&cluster.options.name) {
            Err(_) if started.elapsed() < END_LIMIT => std::thread::sleep(Duration::from_millis(50)),
            result => return result,
        }
    }
}

/// Mounts of the nodes' own namespaces ended with them; what is left was made from outside.
fn unmount(cluster: &Cluster) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let ours = format!("{}/", cluster.folder.display());
    let mut points: Vec<&str> =
        mounts.lines().filter_map(|line| line.split(' ').nth(1)).filter(|point| point.starts_with(&ours)).collect();
    points.sort_unstable();
    for point in points.into_iter().rev() {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {point}"))?;
    }
    Ok(())
}
