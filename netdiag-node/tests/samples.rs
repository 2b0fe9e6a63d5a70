//! What it costs to look at a hundred pods' counters, and that what belongs to pods that ended is forgotten.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod lab;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lab::{CONTAINER, FakePod, LISTENS, Namespace};
use netdiag_node::attribution::Attribution;
use netdiag_node::host::Host;
use netdiag_node::netns::NetnsHandle;
use netdiag_node::samples::Samples;
use nix::time::{ClockId, clock_gettime};

const PODS: usize = 100;
/// CPU time for all of them: with one look a minute, 0.5 % of a core. It is the build without optimisation that is measured.
const LIMIT: Duration = Duration::from_millis(300);

#[test]
fn hundred_pods_cost_little_and_leave_nothing() {
    if !lab::can_run() {
        return;
    }
    let root = lab::kubelet_root("samples");
    let namespaces: Vec<Namespace> = (0..PODS).map(|n| Namespace::new(&format!("s{n}"))).collect();
    let start = |(n, namespace): (usize, &Namespace)| {
        let uid = format!("3f6d6c5e-2a5f-4f43-9b0c-{n:012}");
        FakePod::start(namespace, &root, &uid, CONTAINER, LISTENS.parse().unwrap())
    };
    let mut pods: Vec<FakePod> = namespaces.iter().enumerate().map(start).collect();
    let host = Host {
        proc: PathBuf::from("/proc"),
        netns: NetnsHandle::open("/proc/self/ns/net".as_ref()).unwrap(),
        cgroup_root: Some(format!("/{root}")),
    };
    let attribution = Arc::new(Attribution::new(host.clone()));
    let samples = Samples::new(host, Arc::clone(&attribution));
    assert_eq!(attribution.pods().unwrap().pods.len(), PODS);

    let before = cpu_time();
    let started = Instant::now();
    let mut looked = 0;
    let mut rounds = 0;
    // A round has a limit of its own; on a busy machine it takes several.
    while looked < PODS {
        let round = samples.round().unwrap();
        assert_eq!(round.failed, 0, "{round:?}");
        looked += round.looked;
        rounds += 1;
        assert!(started.elapsed() < Duration::from_mins(1), "{looked} of {PODS} in {rounds} rounds");
    }
    let spent = cpu_time().checked_sub(before).unwrap();
    println!("{PODS} pods: {spent:?} of CPU time, {:?} in {rounds} rounds", started.elapsed());
    assert!(spent < LIMIT, "{spent:?} of CPU time");
    assert_eq!(samples.round().unwrap().looked, 0, "a minute has not gone by");

    pods.truncate(1);
    // Longer than a scan of the processes is used again.
    std::thread::sleep(Duration::from_secs(4));
    samples.round().unwrap();
    assert_eq!(samples.remembered(), 2, "the node and one pod");
}

fn cpu_time() -> Duration {
    clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).unwrap().into()
}
