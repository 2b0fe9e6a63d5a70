//! What lies beside the packets: each test makes one thing go wrong in a pod's or node's namespace, and finds exactly it.

#![expect(clippy::unwrap_used, clippy::disallowed_methods, reason = "the helpers of these tests too")]

mod lab;

use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::pair::{Lab, NODE_ADDRESS, POD_ADDRESS};
use lab::{CONTAINER, LISTENS, NODE, UID, ip};
use netdiag_common::observation::Observation;
use netdiag_common::observation::counter::Counters;
use netdiag_common::observation::device::{Device, Devices};
use netdiag_common::observation::neighbour::{FailureKind, Neighbours};
use netdiag_common::observation::socket::{CpuGroup, Sockets};
use netdiag_common::{Need, Netns, Topic, Window};

/// An address of the link that nobody has.
const NOBODY: &str = "10.202.0.99:9";

impl Lab {
    fn read(&self, netns: Netns, topic: Topic) -> Observation {
        let need = Need { node: NODE.to_owned(), netns, topic, window: Window::FiveMinutes };
        self.agent.seen(&need)
    }

    fn pod(&self, topic: Topic) -> Observation {
        self.read(Netns::Pod(UID.to_owned()), topic)
    }

    fn counters(&self) -> Counters {
        let Observation::Counters(found) = self.pod(Topic::Counters) else { panic!() };
        found
    }

    fn devices(&self, netns: Netns) -> Devices {
        let Observation::Devices(found) = self.read(netns, Topic::Devices) else { panic!() };
        found
    }

    fn eth0(&self) -> Device {
        let found = self.devices(Netns::Pod(UID.to_owned()));
        found.devices.into_iter().find(|device| device.name == "eth0").unwrap()
    }

    fn sockets(&self) -> Sockets {
        let Observation::Sockets(found) = self.pod(Topic::Sockets) else { panic!() };
        found
    }

    fn neighbours(&self) -> Neighbours {
        let Observation::Neighbours(found) = self.pod(Topic::Neighbours) else { panic!() };
        found
    }
}

fn wait_until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(started.elapsed() < Duration::from_secs(20), "not seen in 20 s: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn neighbour_that_does_not_answer_is_named_with_its_device() {
    let Some(lab) = Lab::start("neigh") else { return };
    lab.inside.sh("echo 50 > /proc/sys/net/ipv4/neigh/eth0/retrans_time_ms");
    assert_eq!(lab.neighbours().unresolved, []);
    let failed = wait_until("a failed neighbour", || {
        lab.inside.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", NOBODY).unwrap());
        std::thread::sleep(Duration::from_millis(400));
        let found = lab.neighbours();
        let failed = found.unresolved.first().cloned().filter(|neighbour| neighbour.state == "failed");
        failed.map(|failed| (failed, found))
    });
    let (failed, found) = failed;
    assert_eq!((failed.address.to_string().as_str(), failed.device.as_str()), ("10.202.0.99", "eth0"));
    assert!(failed.first_at.is_some() && failed.used_ms.is_some_and(|ms| ms < 20_000), "{failed:?}");
    assert_eq!(found.states["failed"], 1);
    let table = found.tables.iter().find(|table| table.name == "arp_cache").unwrap();
    assert!(table.statistics["res_failed"].grew() && table.entries > 0 && table.gc_thresh3 > 0, "{table:?}");
    // Counted as it happened, in this namespace alone, and with the device's name in it.
    if let Some(gap) = found.unseen.iter().find(|gap| gap.why.contains("built without kernel programs")) {
        return lab::skip(&gap.why);
    }
    let counted = found.failures.as_ref().unwrap();
    let [group] = counted.groups.as_slice() else { panic!("one neighbour fails: {counted:#?}") };
    assert_eq!((group.address, group.device.as_str()), (Some(failed.address), "eth0"));
    assert!(
        group.kind == FailureKind::Failed && group.times >= 1 && counted.accounts.failed >= group.times,
        "{group:?}"
    );
    assert_eq!((counted.accounts.unaccounted(), found.unseen.as_slice()), (0, [].as_slice()));
    let Observation::Neighbours(of_node) = lab.read(Netns::Host, Topic::Neighbours) else { panic!() };
    assert_eq!(of_node.failures.unwrap().groups, [], "the node itself asked for nobody");
    // It keeps its first moment, and is gone when the host answers.
    std::thread::sleep(Duration::from_millis(50));
    let again = lab.neighbours().unresolved[0].first_at.unwrap();
    assert!(again.duration_since(failed.first_at.unwrap()).abs().as_millis() < 10, "{again} {failed:?}");
    ip(&format!("-n {} addr add 10.202.0.99/24 dev toPod", lab.node.name));
    wait_until("an answer", || {
        lab.inside.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", NOBODY).unwrap());
        lab.neighbours().unresolved.is_empty().then_some(())
    });
}

#[test]
fn full_accept_queue_is_seen_at_the_listener_and_in_the_counters() {
    let Some(lab) = Lab::start("accept") else { return };
    assert_eq!(lab.counters().get("TcpExt.ListenOverflows").unwrap().value, 0);
    let empty = &lab.sockets().listeners[0];
    assert_eq!((empty.queue, empty.limit, empty.drops), (0, 16, 0));
    // Nobody accepts: the queue takes one more than its limit, and the others' handshakes do not end.
    let address: SocketAddr = LISTENS.parse().unwrap();
    let connected: Vec<TcpStream> = lab.inside.run(|| {
        let connect = |_| TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
        (0..20).filter_map(connect).collect()
    });
    assert_eq!(connected.len(), 17);
    let found = lab.sockets();
    let full = &found.listeners[0];
    assert_eq!((full.address, full.queue, full.limit), (address, 17, 16));
    assert!(full.drops > 0, "{full:?}");
    assert_eq!(full.process.as_ref().unwrap().pid, lab.pod.child.id());
    let established = found.states.iter().find(|state| state.state == "established").unwrap();
    assert_eq!(established.count, 34, "both ends of each");
    // The clients' ports: all lead to the one address.
    let busiest = &found.ports.busiest[0];
    assert_eq!(busiest.destination, address);
    assert!(busiest.ports >= 17 && found.ports.in_use >= 17, "{:?}", found.ports);
    let counters = lab.counters();
    for name in ["TcpExt.ListenOverflows", "TcpExt.ListenDrops"] {
        let counter = counters.get(name).unwrap();
        assert!(counter.grew() && counter.first_at.is_some(), "{name}: {counter:?}");
        assert!(counters.rate(name).is_some_and(|rate| rate > 0.0));
    }
    assert_eq!(counters.get("TcpExt.NoSuchCounter"), None);
}

#[test]
fn process_without_free_descriptors_is_named() {
    let Some(lab) = Lab::start("fd") else { return };
    let pid = lab.pod.child.id();
    let found = lab.sockets();
    let own = found.descriptors.iter().find(|used| used.process.pid == pid).unwrap();
    assert!(own.limit.is_some_and(|limit| own.open < limit), "{own:?}");
    // As many as it has open: standard streams and the socket.
    let limit = format!("--nofile={}:{}", own.open, own.open);
    if !Command::new("prlimit").args(["--pid", &pid.to_string(), &limit]).status().is_ok_and(|s| s.success()) {
        return lab::skip("no prlimit command (util-linux)");
    }
    let found = lab.sockets();
    assert_eq!((found.descriptors[0].process.pid, found.descriptors[0].limit), (pid, Some(own.open)));
    assert_eq!(found.descriptors[0].open, own.open);
    assert_eq!(found.descriptors[0].process.container_id.as_deref(), Some(CONTAINER));
    assert_eq!(found.files, None, "files of the machine are told for the node");
}

#[test]
fn packets_dropped_by_a_full_queue_are_counted_there() {
    let Some(lab) = Lab::start("tbf") else { return };
    assert_eq!(lab.eth0().queues, []);
    lab.inside.sh("tc qdisc add dev eth0 root handle 1: tbf rate 8kbit burst 1600 limit 3000");
    assert_eq!(lab.eth0().queues[0].drops.value, 0);
    let sent = lab.inside.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        (0..40).filter(|_| socket.send_to(&[0; 1_000], (NODE_ADDRESS, 9)).is_ok()).count()
    });
    assert!(sent >= 30, "{sent}");
    let device = lab.eth0();
    let queue = &device.queues[0];
    assert_eq!((queue.kind.as_str(), queue.handle.as_str(), queue.parent.as_str()), ("tbf", "1:", "root"));
    assert!(queue.drops.value >= 30 && queue.drops.delta == Some(queue.drops.value), "{queue:?}");
    assert!(queue.overlimits.grew() && queue.backlog_packets > 0, "{queue:?}");
}

#[test]
fn lost_carrier_is_counted_and_the_small_mtu_shown() {
    let Some(lab) = Lab::start("link") else { return };
    let before = lab.eth0();
    assert!(before.up && before.carrier && before.mtu == 1_500);
    assert_eq!((before.kind.as_str(), before.driver.as_deref()), ("veth", Some("veth")));
    ip(&format!("-n {} link set toPod mtu 1380", lab.node.name));
    ip(&format!("-n {} link set toPod down", lab.node.name));
    let after = wait_until("the lost carrier", || Some(lab.eth0()).filter(|device| device.carrier_down.grew()));
    assert!(after.up && !after.carrier, "{after:?}");
    // The kernel brings this up to date once a second.
    wait_until("the state of RFC 2863", || lab.eth0().operational.ends_with("down").then_some(()));
    assert_eq!(after.carrier_down.delta, Some(1));
    let node = lab.devices(Netns::Host);
    let device = node.devices.iter().find(|device| device.name == "toPod").unwrap();
    assert_eq!((device.mtu, device.up), (1_380, false));
}

#[test]
fn backlogs_of_the_cpus_are_the_nodes() {
    let Some(lab) = Lab::start("softnet") else { return };
    assert_eq!(lab.devices(Netns::Pod(UID.to_owned())).softnet, []);
    let processed = || -> u64 { lab.devices(Netns::Host).softnet.iter().map(|cpu| cpu.processed.value).sum() };
    let before = processed();
    lab.inside.run(|| {
        let receiver = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = receiver.local_addr().unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        (0..500).for_each(|_| drop(sender.send_to(b"x", address)));
    });
    assert!(processed() >= before + 500);
    assert!(lab.devices(Netns::Host).softnet.iter().any(|cpu| cpu.processed.grew() && cpu.backlog.is_some()));
}

#[test]
fn blocking_ipsec_policy_is_counted_by_its_name() {
    let Some(lab) = Lab::start("xfrm") else { return };
    let Some(before) = lab.devices(Netns::Pod(UID.to_owned())).xfrm else {
        return lab::skip("this kernel does not count IPsec errors");
    };
    assert!(before.is_empty(), "{before:?}");
    lab.inside.sh(&format!("ip xfrm policy add src {POD_ADDRESS} dst {NODE_ADDRESS} dir out action block"));
    let refused = lab.inside.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", (NODE_ADDRESS, 9)));
    assert!(refused.is_err());
    let found = lab.devices(Netns::Pod(UID.to_owned())).xfrm.unwrap();
    assert_eq!(found["XfrmOutPolBlock"].delta, Some(1), "{found:?}");
    assert!(lab.devices(Netns::Host).xfrm.unwrap().is_empty(), "the node has none");
}

#[test]
fn datagrams_beyond_the_receive_buffer_are_counted_and_the_socket_named() {
    let Some(lab) = Lab::start("rcvbuf") else { return };
    assert_eq!(lab.counters().get("Udp.RcvbufErrors").unwrap().value, 0);
    let receiver = lab.inside.run(|| {
        let receiver = UdpSocket::bind("127.0.0.1:5353").unwrap();
        let sender = UdpSocket::bind("127.0.0.1:0").unwrap();
        (0..2_000).for_each(|_| drop(sender.send_to(&[0; 1_000], "127.0.0.1:5353")));
        receiver
    });
    let counters = lab.counters();
    let errors = counters.get("Udp.RcvbufErrors").unwrap();
    assert!(errors.value > 100 && errors.delta == Some(errors.value), "{errors:?}");
    assert_eq!(counters.get("Udp.InErrors").unwrap().value, errors.value);
    let found = lab.sockets();
    let queue = &found.queues[0];
    assert_eq!(queue.local, receiver.local_addr().unwrap());
    assert_eq!((queue.drops, queue.state.as_str(), queue.remote), (errors.value, "unconnected", None));
    assert!(queue.receive_memory_bytes + 2_048 > queue.receive_buffer_bytes, "{queue:?}");
}

#[test]
fn throttled_container_is_told_apart_from_its_pod() {
    let Some(lab) = Lab::start("throttle") else { return };
    let Some(burner) = Burner::start(&lab) else { return };
    let throttled = |lab: &Lab| -> Option<CpuGroup> {
        let found = lab.sockets();
        let of_container = found.groups.into_iter().find(|group| group.container_id.as_deref() == Some(CONTAINER))?;
        of_container.cpu.filter(|cpu| cpu.throttled_periods.grew())
    };
    let cpu = wait_until("throttled periods", || throttled(&lab));
    assert_eq!((cpu.quota_us, cpu.period_us), (Some(5_000), Some(100_000)));
    assert!(cpu.throttled_us.value > 10_000 && cpu.periods.grew(), "{cpu:?}");
    let found = lab.sockets();
    assert!(found.since.is_some());
    let of_pod = found.groups.iter().find(|group| group.container_id.is_none()).unwrap();
    assert_eq!(of_pod.cpu.as_ref().map(|cpu| cpu.throttled_periods.value), Some(0), "{of_pod:?}");
    drop(burner);
}

/// A busy process of the pod, in a group with a twentieth of a CPU.
struct Burner {
    child: Child,
    group: PathBuf,
}

impl Burner {
    fn start(lab: &Lab) -> Option<Self> {
        let base = PathBuf::from("/sys/fs/cgroup/cpu").join(&lab.root);
        let group = base.join(format!("kubepods/burstable/pod{UID}/{CONTAINER}"));
        if std::fs::create_dir_all(&group).is_err() {
            lab::skip("no writable hierarchy of control groups for cpu at /sys/fs/cgroup/cpu");
            return None;
        }
        let limited = std::fs::write(group.join("cpu.cfs_quota_us"), "5000");
        let netns = std::fs::File::open(lab.inside.path()).unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "while :; do :; done"]).stdout(Stdio::null());
        // SAFETY: one system call between fork and exec.
        unsafe {
            command.pre_exec(move || Ok(nix::sched::setns(&netns, nix::sched::CloneFlags::CLONE_NEWNET)?));
        }
        let burner = Self { child: command.spawn().unwrap(), group };
        let entered = std::fs::write(burner.group.join("cgroup.procs"), burner.child.id().to_string());
        if limited.is_err() || entered.is_err() {
            lab::skip("the quota of a control group cannot be set here");
            return None;
        }
        Some(burner)
    }
}

impl Drop for Burner {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        for path in self.group.ancestors().take(5) {
            let started = Instant::now();
            while std::fs::remove_dir(path).is_err() && started.elapsed() < Duration::from_secs(1) {
                std::thread::sleep(Duration::from_millis(10));
            }
        }
    }
}
