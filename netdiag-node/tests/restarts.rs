//! The agent killed at any moment, fifty times, while packets, connections and names are in the air: nothing of it remains, and
//! each start counts under an instance of its own.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "the helpers of these tests too")]

mod lab;

use std::collections::BTreeSet;
use std::net::{TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lab::{Agent, Authority, NODE, Namespace};
use netdiag_common::wire::AGENT_TLS_NAME;
use netdiag_common::{Need, Topic};

const KILLS: u32 = 50;
/// One of so many starts is waited for.
const ASKED: u32 = 16;
/// Starting takes less on an idle machine: some are killed while they load, some while they answer.
const LONGEST_LIFE: Duration = Duration::from_millis(1_200);
/// The kernel frees programs and tables some milliseconds after their last descriptor.
const FREED_WITHIN: Duration = Duration::from_secs(15);

/// What a process holds in the kernel, by id.
#[derive(Debug, Default, PartialEq, Eq)]
struct InKernel {
    programs: BTreeSet<u32>,
    maps: BTreeSet<u32>,
    links: BTreeSet<u32>,
}

impl InKernel {
    fn held_by(pid: u32, into: &mut Self) {
        let Ok(entries) = std::fs::read_dir(format!("/proc/{pid}/fdinfo")) else { return };
        for text in entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok()) {
            let id = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<u32>().ok());
            // A link's text names its program too.
            match id("link_id:") {
                Some(link) => into.links.extend([link]),
                None => into.programs.extend(id("prog_id:")),
            }
            into.maps.extend(id("map_id:"));
        }
    }

    /// Those that are still there.
    fn left(&self) -> Self {
        let programs: BTreeSet<u32> = aya::programs::loaded_programs().flatten().map(|found| found.id()).collect();
        let maps: BTreeSet<u32> = aya::maps::loaded_maps().flatten().map(|found| found.id()).collect();
        let links: BTreeSet<u32> = aya::programs::loaded_links().flatten().map(|found| found.id()).collect();
        Self {
            programs: self.programs.intersection(&programs).copied().collect(),
            maps: self.maps.intersection(&maps).copied().collect(),
            links: self.links.intersection(&links).copied().collect(),
        }
    }
}

/// Packets to closed ports, refused connections and DNS queries, from inside the node's namespace.
fn make_traffic(namespace: &Namespace, stop: &AtomicBool) {
    let netns = std::fs::File::open(namespace.path()).unwrap();
    nix::sched::setns(netns, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    // A query for the address of `x.`, by RFC 1035.
    let query = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1];
    while !stop.load(Ordering::Relaxed) {
        for _ in 0..20 {
            let _ = socket.send_to(b"dropped", "127.0.0.1:9");
        }
        let _ = socket.send_to(&query, "127.0.0.1:53");
        let _ = TcpStream::connect("127.0.0.1:81");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn start_and_kill(folder: &std::path::Path, netns: &str, life: Duration, seen: &mut InKernel) -> u32 {
    let mut child: Child = Command::new(env!("CARGO_BIN_EXE_netdiag-node"))
        .args(["--node-name", NODE, "--listen", "127.0.0.1:0", "--host-netns", netns, "--tls-dir"])
        .arg(folder)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (started, pid) = (Instant::now(), child.id());
    while started.elapsed() < life {
        InKernel::held_by(pid, seen);
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    pid
}

#[test]
fn fifty_kills_under_load_leave_nothing_and_each_start_is_told_apart() {
    if !lab::can_run() {
        return;
    }
    let node = Namespace::new("kills");
    let netns = node.path().to_str().unwrap().to_owned();
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.write(folder.path(), &authority.leaf(AGENT_TLS_NAME));
    let (stop, mut seen, mut random) = (AtomicBool::new(false), InKernel::default(), u64::from(std::process::id()));
    let (mut pids, mut instances) = (BTreeSet::new(), BTreeSet::new());
    std::thread::scope(|scope| {
        scope.spawn(|| make_traffic(&node, &stop));
        for kill in 0..KILLS {
            // Some are asked first, so that they die with counts and threads of readers.
            if kill % ASKED == ASKED - 1 {
                let mut agent = Agent::start(&["--host-netns", &netns]);
                let needs = [Topic::Drops, Topic::Dns, Topic::Network].map(|topic| Need::host(NODE, topic));
                let report = agent.report(needs.iter().map(|need| serde_json::to_value(need).unwrap()).collect());
                instances.insert(report.instance);
                InKernel::held_by(agent.child.id(), &mut seen);
                pids.insert(agent.child.id());
                agent.child.kill().unwrap();
                agent.child.wait().unwrap();
            } else {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let life = LONGEST_LIFE * u32::try_from(random >> 33 & 0xff).unwrap() / 256;
                pids.insert(start_and_kill(folder.path(), &netns, life, &mut seen));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(instances.len(), (KILLS / ASKED) as usize, "each start has its own instance");
    assert!(pids.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()), "a process remains");
    if seen.programs.is_empty() {
        lab::skip("no kernel programs ran here, so none could remain");
    }
    let started = Instant::now();
    while seen.left() != InKernel::default() {
        assert!(started.elapsed() < FREED_WITHIN, "left in the kernel: {:?}", seen.left());
        std::thread::sleep(Duration::from_millis(100));
    }
    // In the node's namespace nobody but an agent could have written rules or kept sockets.
    for (program, arguments) in [("nft", ["list", "tables"].as_slice()), ("ss", &["--no-header", "-tuanp"])] {
        let netns = format!("--net={netns}");
        let Ok(output) = Command::new("nsenter").arg(netns).arg(program).args(arguments).output() else { continue };
        let text = String::from_utf8_lossy(&output.stdout);
        let left = text.lines().filter(|line| !line.contains("TIME-WAIT")).collect::<Vec<_>>();
        assert!(left.is_empty(), "{program}: {left:?}");
    }
}
