//! A kubelet's group of pods in the cgroup v2 tree, as the agent attaches programs to it: who is measured as a pod joins it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::world::remove;

pub(super) struct Pods {
    /// The kubelet's cgroupRoot, as the agent is told it.
    pub(super) root: String,
    tree: &'static Path,
    joined: bool,
}

impl Pods {
    /// Without a process in it.
    pub(super) fn new() -> Result<Self> {
        let trees = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
        let tree = trees.into_iter().find(|tree| tree.join("cgroup.controllers").exists());
        let tree = tree.context("no cgroup v2 tree is mounted")?;
        let root = format!("netdiag-bench-pods-{}", std::process::id());
        let pods = Self { root, tree, joined: false };
        let group = pods.group();
        std::fs::create_dir_all(&group).with_context(|| format!("cannot create {}", group.display()))?;
        Ok(pods)
    }

    /// With this process in it: the sockets that it opens from now on are a pod's.
    pub(super) fn joined() -> Result<Self> {
        let mut pods = Self::new()?;
        enter(&pods.group())?;
        pods.joined = true;
        Ok(pods)
    }

    pub(super) fn group(&self) -> PathBuf {
        self.tree.join(&self.root).join("kubepods")
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        if self.joined {
            // Left in the group, this process would only keep the group from being removed.
            let _ = enter(self.tree);
        }
        remove(&self.group());
        remove(&self.tree.join(&self.root));
    }
}

fn enter(group: &Path) -> Result<()> {
    let procs = group.join("cgroup.procs");
    std::fs::write(&procs, std::process::id().to_string()).with_context(|| format!("cannot write {}", procs.display()))
}
