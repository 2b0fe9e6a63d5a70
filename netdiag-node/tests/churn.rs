//! Pods that start, connect, ask and end a hundred times a second: the agent ends with the descriptors and threads that it began
//! with, holds none of their namespaces, and its tables in the kernel have no entry of their sockets.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod lab;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::mem::{MaybeUninit, offset_of};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use aya::maps::{HashMap as KernelHashMap, Map, MapData, MapInfo, MapType};
use lab::{Agent, CONTAINER, NODE, Namespace};
use netdiag_common::observation::Observation;
use netdiag_common::record::dns::{Group, GroupKey, Open, OpenKey};
use netdiag_common::record::tcp::Attempt;
use netdiag_common::{Need, Reading, Topic};
use socket2::{Domain, Socket, Type};

const CHURN_FOR: Duration = Duration::from_secs(10);
const PODS_PER_SECOND: u32 = 100;
/// Pods that live at one time: each lives 0.3 s.
const ALIVE: usize = 30;
/// The agent reuses a scan for 3 s, waits 6 s for an answer, and empties its tables every 10 s.
const SETTLES_WITHIN: Duration = Duration::from_secs(30);

/// A process in a kubelet-like cgroup and a namespace of its own, with a bit of everything that the agent follows.
struct Pod {
    child: Child,
    group: PathBuf,
}

impl Pod {
    fn start(base: &Path, number: usize) -> Self {
        let mut command = Command::new("sleep");
        command.arg("60");
        let address = address();
        // SAFETY: between fork and exec only system calls are made: unshare, and those of sockets.
        unsafe {
            command.pre_exec(move || {
                nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET)?;
                talk(address)
            });
        }
        let group = base.join(uid(number)).join(CONTAINER);
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

/// Where the pods' servers are, on their loopback. No other test has it: it is this process's number.
fn address() -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 0, 0, 0)) | (std::process::id() & 0xff_ffff))
}

/// What ends with the process and is not over by then: an attempt to connect that nobody accepts, and a query that nobody
/// answers. Before it, a query that is answered.
fn talk(address: Ipv4Addr) -> io::Result<()> {
    // Queries for the address of `x.`, by RFC 1035.
    const ANSWERED: [u8; 19] = [0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1];
    const UNANSWERED: [u8; 19] = [0, 8, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1];
    const ANSWER: [u8; 19] = [0, 7, 0x81, 0x83, 0, 1, 0, 0, 0, 0, 0, 0, 1, b'x', 0, 0, 1, 0, 1];
    let (web, dns) = (SocketAddr::from((address, 80)).into(), SocketAddr::from((address, 53)).into());
    let new = |kind| Socket::new(Domain::IPV4, kind, None);
    let [listener, accepted, waiting] = [new(Type::STREAM)?, new(Type::STREAM)?, new(Type::STREAM)?];
    let [server, client] = [new(Type::DGRAM)?, new(Type::DGRAM)?];
    loopback_up(&server)?;
    listener.bind(&web)?;
    // The queue takes one more than its limit.
    listener.listen(0)?;
    accepted.connect(&web)?;
    waiting.set_nonblocking(true)?;
    // Answers that it is in progress.
    let _ = waiting.connect(&web);
    server.bind(&dns)?;
    client.connect(&dns)?;
    client.send(&ANSWERED)?;
    let mut bytes = [MaybeUninit::uninit(); ANSWERED.len()];
    let (_, asker) = server.recv_from(&mut bytes)?;
    server.send_to(&ANSWER, &asker)?;
    client.recv(&mut bytes)?;
    client.send(&UNANSWERED)?;
    for socket in [listener, accepted, waiting, server, client] {
        // They outlive this function, and the exec.
        socket.set_cloexec(false)?;
        std::mem::forget(socket);
    }
    Ok(())
}

fn loopback_up(socket: &Socket) -> io::Result<()> {
    // SAFETY: integers and a union of them; zero is a value of each.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (into, letter) in request.ifr_name.iter_mut().zip(*b"lo") {
        *into = letter.cast_signed();
    }
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap();
    // SAFETY: the kernel reads the request, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// What the agent holds of others.
#[derive(Debug)]
struct Held {
    descriptors: usize,
    threads: usize,
    namespaces: Vec<String>,
    /// Those of the pods, by table.
    entries: BTreeMap<&'static str, usize>,
}

impl Held {
    fn by(agent: &Agent) -> Self {
        let pid = agent.child.id();
        let entries = |folder: &str| std::fs::read_dir(format!("/proc/{pid}/{folder}")).unwrap().flatten();
        let targets = entries("fd").filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let mut namespaces: Vec<String> = targets.map(|target| target.to_string_lossy().into_owned()).collect();
        namespaces.retain(|target| target.starts_with("net:["));
        let (descriptors, threads) = (entries("fd").count(), entries("task").count());
        Self { descriptors, threads, namespaces, entries: entries_of_pods(pid) }
    }
}

/// Entries about the pods' servers in each of the agent's tables that can grow; none where no kernel programs run.
fn entries_of_pods(agent: u32) -> BTreeMap<&'static str, usize> {
    let mut found = BTreeMap::new();
    for id in lab::ids_in_kernel(agent, "map_id:") {
        let info = MapInfo::from_id(id).unwrap();
        let (name, kind) = (info.name_as_str().unwrap(), info.map_type().unwrap());
        // Those of programs that are off have room for one entry.
        if matches!(kind, MapType::Array | MapType::RingBuf) || info.max_entries() == 1 {
            continue;
        }
        let (name, count) = match name {
            "DNS_OPEN" => {
                const KEY: usize = size_of::<OpenKey>();
                ("DNS_OPEN", count::<KEY, { size_of::<Open>() }>(id, KEY + offset_of!(Open, server)))
            }
            // Its second word.
            "DNS_GROUPS" => ("DNS_GROUPS", count::<{ size_of::<GroupKey>() }, { size_of::<Group>() }>(id, 8)),
            "TCP_ATTEMPTS" => {
                ("TCP_ATTEMPTS", count::<8, { size_of::<Attempt>() }>(id, 8 + offset_of!(Attempt, address)))
            }
            _ => panic!("table {name} ({kind:?}) can grow, and this test does not know it"),
        };
        found.insert(name, count);
    }
    found
}

/// Entries of a kernel's hash map that have the pods' address at this byte of key and value.
fn count<const KEY: usize, const VALUE: usize>(id: u32, at: usize) -> usize {
    let map = Map::from_map_data(MapData::from_id(id).unwrap()).unwrap();
    let map = KernelHashMap::<_, [u8; KEY], [u8; VALUE]>::try_from(map).unwrap();
    let address = address().octets();
    // What is removed meanwhile makes the walk begin again: it has an end nevertheless.
    let entries = map.iter().take(100_000).flatten();
    entries.filter(|(key, value)| [&key[..], value].concat()[at..].starts_with(&address)).count()
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
    let before = Held::by(&agent);
    let mut entries = before.entries.clone();

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
        for (name, count) in Held::by(&agent).entries {
            entries.entry(name).and_modify(|most| *most = count.max(*most)).or_insert(count);
        }
    }
    ask(Need::host(NODE, Topic::Drops));
    pods.clear();
    println!("{number} pods in {:?}, up to {most} seen at one time, entries {entries:?}", started.elapsed());
    assert!(number > 100 && most > 0, "{number} pods, {most} seen");
    if entries.is_empty() {
        lab::skip("no kernel programs ran here, so no entry could remain");
    }
    assert!(entries.values().all(|most| *most > 0), "each table followed the pods: {entries:?}");

    let settled = Instant::now();
    loop {
        let now = Held::by(&agent);
        let is_seen = matches!(ask(Need::host(NODE, Topic::Pods)),
            Reading::Seen { value: Observation::Pods(found), .. } if !found.is_empty());
        // Two threads more may still wait for work of the reactor.
        let as_before = now.descriptors <= before.descriptors + 2
            && now.threads <= before.threads + 4
            && now.namespaces == before.namespaces
            && now.entries == before.entries;
        if as_before && !is_seen {
            break;
        }
        assert!(settled.elapsed() < SETTLES_WITHIN, "before {before:?}, after {now:?}, pods still seen: {is_seen}");
        std::thread::sleep(Duration::from_millis(500));
    }
    for path in [base.clone(), base.parent().unwrap().to_owned(), hierarchy.join(&root)] {
        let _ = std::fs::remove_dir(path);
    }
}
