//! The nodes' cgroups. A kubelet wants its root to exist in every controller; all nodes share the machine's hierarchy.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const MOUNT: &str = "/sys/fs/cgroup";

/// Controllers a kubelet asks for; a machine may lack some.
const CONTROLLERS: [&str; 6] = ["cpuset", "cpu", "io", "memory", "hugetlb", "pids"];

/// The node's cgroup below each hierarchy's mount point.
pub(super) fn path(cluster: &str, node: &str) -> String {
    format!("/{cluster}-lab/{node}")
}

pub(super) fn create(cluster: &str, node: &str) -> Result<()> {
    if Path::new(MOUNT).join("cgroup.controllers").exists() {
        create_v2(cluster, node)
    } else {
        create_v1(cluster, node)
    }
}

/// Processes in the cluster's cgroups.
pub(super) fn processes(cluster: &str) -> Vec<i32> {
    let mut pids = Vec::new();
    for folder in tops(cluster).iter().flat_map(|top| folders_below(top)) {
        let text = std::fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
        pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    }
    pids
}

/// Removes the cluster's cgroups. They must be empty of processes.
pub(super) fn remove(cluster: &str) -> Result<()> {
    for top in tops(cluster) {
        for folder in folders_below(&top).iter().rev() {
            std::fs::remove_dir(folder).with_context(|| format!("cannot remove {}", folder.display()))?;
        }
    }
    Ok(())
}

fn create_v1(cluster: &str, node: &str) -> Result<()> {
    for hierarchy in hierarchies() {
        let top = hierarchy.join(format!("{cluster}-lab"));
        let folder = top.join(node);
        // Some hierarchies take no groups of ours, and the kubelet does not ask for them.
        if std::fs::create_dir_all(&folder).is_err() || !hierarchy.ends_with("cpuset") {
            continue;
        }
        // A new cpuset is empty, and no process can enter it until both are set, from the top down.
        for folder in [&top, &folder] {
            for file in ["cpuset.cpus", "cpuset.mems"] {
                let value = std::fs::read_to_string(hierarchy.join(file))
                    .with_context(|| format!("cannot read {}", hierarchy.join(file).display()))?;
                std::fs::write(folder.join(file), value.trim())
                    .with_context(|| format!("cannot write {}", folder.join(file).display()))?;
            }
        }
    }
    Ok(())
}

fn create_v2(cluster: &str, node: &str) -> Result<()> {
    let root = Path::new(MOUNT);
    let top = root.join(format!("{cluster}-lab"));
    let folder = top.join(node);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    for folder in [root, &top, &folder] {
        let file = folder.join("cgroup.subtree_control");
        for controller in CONTROLLERS {
            // One at a time: a controller this machine lacks must not keep the others out.
            let _ = std::fs::write(&file, format!("+{controller}"));
        }
    }
    Ok(())
}

/// Where the cluster's groups start: one per v1 hierarchy, or the one of v2.
fn tops(cluster: &str) -> Vec<PathBuf> {
    let mounts = hierarchies().into_iter().chain([PathBuf::from(MOUNT)]);
    mounts.map(|mount| mount.join(format!("{cluster}-lab"))).filter(|top| top.is_dir()).collect()
}

fn hierarchies() -> Vec<PathBuf> {
    let entries = std::fs::read_dir(MOUNT).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

/// The folder and all below it, parents first.
fn folders_below(top: &Path) -> Vec<PathBuf> {
    let mut folders = vec![top.to_owned()];
    let mut next = 0;
    while let Some(folder) = folders.get(next) {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let below: Vec<_> = entries
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .map(|entry| entry.path())
            .collect();
        folders.extend(below);
        next += 1;
    }
    folders
}
