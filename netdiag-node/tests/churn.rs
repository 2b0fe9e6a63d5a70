//! Pods that start and end a hundred times a second: the agent ends with the descriptors and threads that it began with, and
//! holds none of their namespaces.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod lab;

use std::collections::VecDeque;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use lab::{Agent, NODE, Namespace};
use netdiag_common::observation::Observation;
use netdiag_common::{Need, Reading, Topic};

const CHURN_FOR: Duration = Duration::from_secs(10);
const PODS_PER_SECOND: u32 = 100;
/// Pods that live at one time: each lives 0.3 s.
const ALIVE: usize = 30;
/// The agent reuses a scan for 3 s.
const SETTLES_WITHIN: Duration = Duration::from_secs(20);

/// A process in a kubelet-like cgroup and a namespace of its own.
struct Pod {
    child: Child,
    group: PathBuf,
}

impl Pod {
    fn start(base: &Path, number: usize) -> Self {
        let mut command = Command::new("sleep");
        command.arg("60");
        // SAFETY: between fork and exec only a system call is made: unshare.
        unsafe {
            command.pre_exec(|| Ok(nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?));
        }
        let group = base.join(uid(number)).join("3f1c0d9e8b7a695847362514039281706f5e4d3c2b1a09f8e7d6c5b4a3928170");
        std::fs::create_dir_all(&group).unwrap();
        let child = command.spawn().unwrap();
        std::fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
        Self { child, group }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for path in self.group.ancestors().take(2) {
            let started = Instant::now();
            while std::fs::remove_dir(path).is_err() && started.elapsed() < Duration::from_millis(50) {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    }
}

fn uid(number: usize) -> String {
    format!("pod0f6d6c5e-2a5f-4f43-9b0c-{number:012x}")
}

/// Descriptors, threads, and namespaces held.
fn held(agent: &Agent) -> (usize, usize, Vec<String>) {
    let entries = |folder: &str| std::fs::read_dir(format!("/proc/{}/{folder}", agent.child.id())).unwrap().flatten();
    let targets = entries("fd").filter_map(|entry| std::fs::read_link(entry.path()).ok());
    let mut namespaces: Vec<String> = targets.map(|target| target.to_string_lossy().into_owned()).collect();
    namespaces.retain(|target| target.starts_with("net:["));
    (entries("fd").count(), entries("task").count(), namespaces)
}

#[test]
fn a_thousand_pods_in_ten_seconds_leave_nothing_in_the_agent() {
    if !lab::can_run() {
        return;
    }
    let node = Namespace::new("churn");
    let root = lab::kubelet_root("churn");
    let hierarchy = ["/sys/fs/cgroup", "/sys/fs/cgroup/pids"].map(Path::new).into_iter();
    let Some(hierarchy) = hierarchy.rev().find(|path| path.join("cgroup.procs").exists()) else {
        return lab::skip("no cgroup hierarchy that pods could be in");
    };
    let base = hierarchy.join(&root).join("kubepods/burstable");
    let agent = Agent::of_node(&node, &root);
    let ask = |need: Need| agent.read(&need);
    ask(Need::host(NODE, Topic::Pods));
    ask(Need::host(NODE, Topic::Drops));
    std::thread::sleep(Duration::from_secs(1));
    let before = held(&agent);

    let (mut pods, started, mut number, mut most) = (VecDeque::new(), Instant::now(), 0_usize, 0);
    while started.elapsed() < CHURN_FOR {
        // A slow machine makes fewer pods, but asks as frequently.
        let due = started.elapsed().as_millis() * u128::from(PODS_PER_SECOND) / 1000;
        while (number as u128) < due && pods.len() <= ALIVE * 2 {
            pods.push_back(Pod::start(&base, number));
            number += 1;
        }
        while pods.len() > ALIVE {
            pods.pop_front();
        }
        if let Reading::Seen { value: Observation::Pods(found), .. } = ask(Need::host(NODE, Topic::Pods)) {
            most = most.max(found.len());
        }
        // Most are gone by now; whatever the answer is, it must leave nothing open.
        ask(Need::pod(NODE, uid(number.saturating_sub(3)).trim_start_matches("pod"), Topic::Network));
        ask(Need::pod(NODE, uid(number / 2).trim_start_matches("pod"), Topic::Listeners));
    }
    ask(Need::host(NODE, Topic::Drops));
    pods.clear();
    println!("{number} pods in {:?}, up to {most} seen at one time", started.elapsed());
    assert!(number > 100 && most > 0, "{number} pods, {most} seen");

    let settled = Instant::now();
    loop {
        let now = held(&agent);
        let is_seen = matches!(ask(Need::host(NODE, Topic::Pods)),
            Reading::Seen { value: Observation::Pods(found), .. } if !found.is_empty());
        // Two threads more may still wait for work of the reactor.
        if !is_seen && now.0 <= before.0 + 2 && now.1 <= before.1 + 4 && now.2 == before.2 {
            break;
        }
        assert!(settled.elapsed() < SETTLES_WITHIN, "before {before:?}, after {now:?}, pods still seen: {is_seen}");
        std::thread::sleep(Duration::from_millis(500));
    }
    for path in [base.clone(), base.parent().unwrap().to_owned(), hierarchy.join(&root)] {
        let _ = std::fs::remove_dir(path);
    }
}
