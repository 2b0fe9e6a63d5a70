//! Running commands in a pod's container without the API: `kubectl exec` would hide a node's faults behind the API's.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::Value;

use super::{Cluster, node};
use crate::command;

/// Where containerd keeps each running container's pid and annotations, below the node's /run.
const TASKS: &str = "run/containerd/io.containerd.runtime.v2.task/k8s.io";

impl Cluster {
    /// A command that will run in all namespaces of the pod's first container.
    pub(crate) fn pod_command(&self, namespace: &str, pod: &str) -> Result<Command> {
        let pid = self.pod_pid(namespace, pod)?;
        let mut entry = command::words(&["nsenter", "--mount", "--net", "--uts", "--ipc", "--pid", "--target", &pid]);
        // Not the caller's environment: a container has the image's.
        entry.arg("--").env_clear().env("PATH", "/bin:/usr/bin");
        Ok(entry)
    }

    /// The first process of the pod's first container.
    pub(crate) fn pod_pid(&self, namespace: &str, pod: &str) -> Result<String> {
        let tasks = |node: &str| node::node_folder(self, node).join(TASKS);
        let pid = self.node_names().find_map(|node| container_pid(&tasks(&node), namespace, pod));
        pid.with_context(|| {
            format!("no node of cluster {} runs a container of pod {namespace}/{pod}", self.options.name)
        })
    }

    /// Runs a command in the pod's first container and returns what it printed.
    pub(crate) fn pod_exec(&self, namespace: &str, pod: &str, words: &[&str]) -> Result<String> {
        command::output(self.pod_command(namespace, pod)?.args(words))
            .with_context(|| format!("in pod {namespace}/{pod}"))
    }
}

/// The first process of the newest container (not the sandbox) of this pod.
fn container_pid(tasks: &Path, namespace: &str, pod: &str) -> Option<String> {
    let entries = std::fs::read_dir(tasks).into_iter().flatten().flatten();
    let mut found: Vec<(std::time::SystemTime, PathBuf)> = entries
        .filter(|entry| is_container_of(&entry.path().join("config.json"), namespace, pod))
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    let pids = found.iter().rev().filter_map(|(_, task)| std::fs::read_to_string(task.join("init.pid")).ok());
    pids.map(|pid| pid.trim().to_owned()).find(|pid| Path::new("/proc").join(pid).join("ns").exists())
}

fn is_container_of(config: &Path, namespace: &str, pod: &str) -> bool {
    let Ok(text) = std::fs::read_to_string(config) else { return false };
    let Ok(config) = serde_json::from_str::<Value>(&text) else { return false };
    let is = |key: &str, value: &str| config["annotations"][format!("io.kubernetes.cri.{key}")] == value;
    is("container-type", "container") && is("sandbox-namespace", namespace) && is("sandbox-name", pod)
}
