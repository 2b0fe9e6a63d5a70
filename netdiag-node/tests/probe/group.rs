//! Probes of a pod whose control group has programs that other sockets do not pass.
#![expect(clippy::disallowed_methods, reason = "tests open what they attach to")]

use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use netdiag_common::observation::Observation;
use netdiag_common::observation::series::transport::TcpClose;
use netdiag_common::observation::series::{FailureClass, IcmpProbe, Probe, SeriesRequest, SeriesResult};
use netdiag_common::{Need, Topic};

use crate::ask::{request, tcp};
use crate::attach::{CONNECT4, GROUP_EGRESS, Hook, Link, attach};
use crate::lab::pair::{Lab, NODE_ADDRESS};
use crate::lab::{Agent, LISTENS, NODE, UID, skip};
use crate::support::eventually;

const JOINS: &str = "--probe-join-cgroup";

/// Programs that let nothing pass.
const REFUSES_CONNECT: Hook = Hook { verdict: 0, ..CONNECT4 };
const DROPS_EGRESS: Hook = Hook { verdict: 0, ..GROUP_EGRESS };

/// The pod's group in the cgroup v2 tree, with a program there.
struct Group {
    folder: PathBuf,
    is_made_here: bool,
}

impl Group {
    /// None, said loudly, where there is no such tree.
    fn of(lab: &Lab) -> Option<Self> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let Some(root) = mounts.iter().find(|path| Path::new(path).join("cgroup.controllers").exists()) else {
            skip("no cgroup v2 tree");
            return None;
        };
        let pid = lab.pod.child.id();
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let own = text.lines().find_map(|line| line.strip_prefix("0::/")).unwrap();
        if own.contains(UID) {
            return Some(Self { folder: Path::new(root).join(own), is_made_here: false });
        }
        // The pods of this machine are in groups of cgroup v1.
        let group = Self { folder: Path::new(root).join(&lab.root), is_made_here: true };
        std::fs::create_dir(&group.folder).unwrap();
        group.write("cgroup.procs", &pid.to_string());
        Some(group)
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.folder.join(file), text).unwrap();
    }

    /// None, said loudly, when this kernel or this user cannot attach it.
    fn attach(&self, hook: Hook, name: &str) -> Option<Link> {
        let folder = std::fs::File::open(&self.folder).unwrap();
        let attached = attach(hook, name, folder.as_raw_fd().cast_unsigned());
        attached.map_err(|error| skip(format!("cannot attach {hook:?}: {error}"))).ok()
    }

    fn processes(&self) -> Vec<u32> {
        let text = std::fs::read_to_string(self.folder.join("cgroup.procs")).unwrap();
        text.lines().map(|line| line.parse().unwrap()).collect()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::write(self.folder.join("cgroup.freeze"), "0");
        if self.is_made_here {
            for pid in self.processes() {
                let _ = std::fs::write(self.folder.parent().unwrap().join("cgroup.procs"), pid.to_string());
            }
            let removed = std::fs::remove_dir(&self.folder);
            assert!(removed.is_ok() || std::thread::panicking(), "{removed:?}");
        }
    }
}

/// Another agent of the same node, that joins groups.
fn joining(lab: &Lab) -> Agent {
    let root = format!("/{}", lab.root);
    Agent::start(&["--host-netns", lab.node.path().to_str().unwrap(), "--cgroup-root", &root, JOINS])
}

fn ask(agent: &Agent, request: SeriesRequest) -> SeriesResult {
    match agent.seen(&Need::pod(NODE, UID, Topic::Series(Box::new(request)))) {
        Observation::Series(result) => result,
        other => panic!("{other:?}"),
    }
}

/// To where the pod's own process listens.
fn to_itself() -> SeriesRequest {
    request(tcp(LISTENS, TcpClose::Reset))
}

#[test]
fn probe_meets_the_program_of_the_pods_group() {
    let Some(lab) = Lab::start("joins") else { return };
    let Some(group) = Group::of(&lab) else { return };
    let agent = joining(&lab);
    let Some(program) = group.attach(REFUSES_CONNECT, "refuses") else { return };

    let outside = ask(&lab.agent, to_itself());
    assert_eq!(outside.succeeded, 1, "sockets of another group do not pass it: {outside:?}");
    let told = |word: &str| outside.unseen.iter().any(|unseen| unseen.contains(word));
    assert!(told("refuses") && told(JOINS), "{:?}", outside.unseen);

    let inside = ask(&agent, to_itself());
    let failure = inside.attempts[0].failure.as_ref().expect("the program refuses");
    assert_eq!((failure.errno.as_deref(), failure.class), (Some("EPERM"), FailureClass::Unreachable), "{inside:?}");
    assert_eq!(inside.unseen, [""; 0]);
    let many = ask(&agent, SeriesRequest { count: 500, parallel: 100, ..to_itself() });
    assert_eq!((many.failed, many.unseen.len()), (500, 0), "{many:?}");
    assert_eq!(group.processes(), [lab.pod.child.id()], "nobody stays in the group");

    drop(program);
    let without = ask(&agent, to_itself());
    assert_eq!((without.succeeded, without.unseen.len()), (1, 0), "{without:?}");
}

#[test]
fn what_leaves_the_pod_meets_the_program_of_its_group() {
    let Some(lab) = Lab::start("leaves") else { return };
    let Some(group) = Group::of(&lab) else { return };
    let agent = joining(&lab);
    let to = NODE_ADDRESS.parse().unwrap();
    let echo = Probe::Icmp(IcmpProbe { to, bytes: 56, ttl: None, dont_fragment: false, scope: None, identifier: None });
    let Some(_program) = group.attach(DROPS_EGRESS, "drops") else { return };
    assert_eq!(ask(&lab.agent, request(echo.clone())).succeeded, 1);
    let dropped = ask(&agent, SeriesRequest { timeout_ms: 1_000, ..request(echo) });
    assert_eq!((dropped.failed, dropped.unseen.len()), (1, 0), "{dropped:?}");
}

#[test]
fn group_that_is_frozen_is_a_gap() {
    let Some(lab) = Lab::start("frozen") else { return };
    let Some(group) = Group::of(&lab) else { return };
    let agent = joining(&lab);
    let Some(_program) = group.attach(REFUSES_CONNECT, "refuses") else { return };
    group.write("cgroup.freeze", "1");
    let outside = ask(&agent, to_itself());
    assert_eq!(outside.succeeded, 1, "the kernel still answers for the pod: {outside:?}");
    let told = |word: &str| outside.unseen.iter().any(|unseen| unseen.contains(word));
    assert!(told("refuses") && told("could not be joined") && told("cgroup.freeze"), "{:?}", outside.unseen);
    assert_eq!(group.processes(), [lab.pod.child.id()], "nobody stays in the group");
}

#[test]
fn agent_that_is_killed_leaves_nobody_in_the_group() {
    let Some(lab) = Lab::start("killed") else { return };
    let Some(group) = Group::of(&lab) else { return };
    let mut agent = joining(&lab);
    let Some(_program) = group.attach(REFUSES_CONNECT, "refuses") else { return };
    let need = Need::pod(NODE, UID, Topic::Series(Box::new(long())));
    let body = format!(
        "{{\"wire\":{},\"needs\":[{}],\"budget_ms\":20000}}",
        netdiag_common::wire::WIRE_MAX,
        serde_json::to_string(&need).unwrap()
    );
    let pod = lab.pod.child.id();
    agent.hang_up_after("POST /v1/readings", &body, || {
        eventually("a process in the group", || (group.processes().len() > 1).then_some(()));
    });
    eventually("its end with the request", || (group.processes() == [pod]).then_some(()));
    std::thread::scope(|scope| {
        let (agent, group) = (&mut agent, &group);
        let pid = agent.pid();
        let killer = scope.spawn(move || {
            let joined =
                eventually("a process in the group", || (group.processes().len() > 1).then(|| group.processes()));
            nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
            joined
        });
        assert!(agent.request("POST /v1/readings", &body).is_err(), "it cannot answer any more");
        assert_eq!(killer.join().unwrap().len(), 2);
    });
    eventually("the end of the process", || (group.processes() == [pod]).then_some(()));
}

fn long() -> SeriesRequest {
    SeriesRequest { count: 150, interval_us: 100_000, timeout_ms: 1_000, ..to_itself() }
}
