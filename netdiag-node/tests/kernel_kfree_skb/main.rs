//! Dropped packets are counted exactly, on the running kernel: against nft's counters, under load, with full tables, with
//! hostile packets, and nothing stays behind. Needs root, BTF and the built programs; says loudly what is missing.

mod frame;
#[path = "../support/mod.rs"]
#[expect(dead_code, reason = "shared with the other kernel tests")]
mod support;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use std::{fs, thread};

use frame::{hostile_frames, tricky_frames};
use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::kfree_skb::{DropGroup, Drops};
use netdiag_node::clock::now;
use netdiag_node::kernel::{Kernel, KernelDrops, Sizes, TableSize};
use support::{Namespace, Stop, eventually, is_reason, load, owner, packets, patient};

const LOCAL4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOCAL6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

fn harvested(drops: &mut KernelDrops, resolve: &dyn Fn(u64) -> Owner) -> Drops {
    drops.harvest(now());
    let seen = drops.observe(now(), Window::FiveMinutes, resolve);
    assert_eq!(seen.accounts.unaccounted(), 0, "{:?}", seen.accounts);
    let keyed = seen.accounts.attributed + seen.accounts.coarse + seen.accounts.foreign_netns;
    let exemplars = seen.accounts.exemplars_sent + seen.accounts.exemplars_suppressed + seen.accounts.exemplars_lost;
    assert_eq!(exemplars, keyed + seen.accounts.reason_only, "each IP packet is an exemplar or a reason why not");
    seen
}

fn is_pod(group: &DropGroup, uid: &str) -> bool {
    matches!(&group.netns, Owner::Pod { uid: pod } if pod == uid)
}

/// Two nodes with a pod each and a wire between the nodes. The pods have addresses of both families.
fn two_nodes() -> [Namespace; 4] {
    let [node1, node2, pod1, pod2] = std::array::from_fn(|_| Namespace::new());
    node1.connect("wire", &node2, "wire");
    for (node, pod, n, other) in [(&node1, &pod1, 1, 2), (&node2, &pod2, 2, 1)] {
        node.connect("veth", pod, "eth0");
        node.sh(&format!(
            "echo 1 >/proc/sys/net/ipv4/ip_forward
             echo 1 >/proc/sys/net/ipv6/conf/all/forwarding
             ip addr add 10.9.0.{n}/24 dev wire
             ip addr add fd09::{n}/64 dev wire nodad
             ip addr add 10.9.{n}.1/24 dev veth
             ip addr add fd09:{n}::1/64 dev veth nodad
             ip route add 10.9.{other}.0/24 via 10.9.0.{other}
             ip route add fd09:{other}::/64 via fd09::{other}"
        ));
        pod.sh(&format!(
            "ip addr add 10.9.{n}.2/24 dev eth0
             ip addr add fd09:{n}::2/64 dev eth0 nodad
             ip route add default via 10.9.{n}.1
             ip -6 route add default via fd09:{n}::1"
        ));
    }
    [node1, node2, pod1, pod2]
}

/// Of IPv4 and IPv6, by the counters of [`two_nodes_count_what_nft_counts_under_load`].
fn counted_by_nft(node: &Namespace) -> [u64; 2] {
    let counters = node.sh("nft list counters table inet guard");
    let counts: Vec<u64> = counters
        .lines()
        .filter_map(|line| line.trim().strip_prefix("packets ")?.split(' ').next()?.parse().ok())
        .collect();
    counts.try_into().unwrap_or_else(|_| panic!("two counters: {counters}"))
}

/// Datagrams of IPv4 and IPv6 to ports where nobody listens, by the pod's own SNMP counters.
fn refused_by(pod: &Namespace) -> [u64; 2] {
    let counted = pod.sh("cat /proc/net/snmp /proc/net/snmp6");
    let udp4 = counted.lines().filter(|line| line.starts_with("Udp: ")).nth(1);
    let udp6 = counted.lines().find(|line| line.starts_with("Udp6NoPorts"));
    let count = |line: Option<&str>, at| line?.split_whitespace().nth(at)?.parse().ok();
    [(udp4, 2), (udp6, 1)].map(|(line, at)| count(line, at).unwrap_or_else(|| panic!("no counters: {counted}")))
}

/// Sends again what a busy CPU's full queue (`netdev_max_backlog`) dropped on the way.
fn send_until(counted: impl Fn() -> u64, count: usize, send: impl Fn(usize)) {
    send(count);
    eventually("all packets being counted", || {
        let missing = count.saturating_sub(usize::try_from(counted()).unwrap_or(count));
        send(missing);
        (missing == 0).then_some(())
    });
}

/// What was seen while nothing was counted any more, and that count.
fn settled<T>(counted: impl Fn() -> [u64; 2], mut see: impl FnMut() -> T) -> (T, [u64; 2]) {
    eventually("counters standing still", || {
        let before = counted();
        let seen = see();
        (counted() == before).then_some((seen, before))
    })
}

#[test]
fn two_nodes_count_what_nft_counts_under_load() {
    const TEST: &str = "two_nodes_count_what_nft_counts_under_load";
    const PACKETS: usize = 4_000;
    let (Some(mut agent1), Some(mut agent2)) = (load(TEST, None), load(TEST, None)) else { return };
    let [node1, node2, pod1, pod2] = two_nodes();
    node1.sh("nft 'table inet guard {
           counter c4 { }
           counter c6 { }
           chain f {
             type filter hook forward priority 0;
             ip daddr 10.9.1.2 udp dport 7070 counter name c4 drop
             ip6 daddr fd09:1::2 udp dport 7070 counter name c6 drop
           }
         }'");
    let to_pod1: [IpAddr; 2] = ["10.9.1.2".parse().unwrap(), "fd09:1::2".parse().unwrap()];
    let to_pod2: [IpAddr; 2] = ["10.9.2.2".parse().unwrap(), "fd09:2::2".parse().unwrap()];
    // Neighbours first: before they are known, packets wait in a queue that drops.
    for to in to_pod2 {
        eventually("a path from pod 1 to pod 2", || {
            let refused = |error: std::io::Error| error.kind() == std::io::ErrorKind::ConnectionRefused;
            pod1.run(|| TcpStream::connect_timeout(&(to, 8).into(), patient(Duration::from_secs(1))))
                .is_err_and(refused)
                .then_some(())
        });
    }

    let stranger = Namespace::new();
    let (stop, flooded) = (AtomicBool::new(false), AtomicU64::new(0));
    let (owner1, owner2) = (owner(&[(&node1, "host"), (&pod1, "pod1")]), owner(&[(&node2, "host"), (&pod2, "pod2")]));
    thread::scope(|scope| {
        let enough = Stop(&stop);
        scope.spawn(|| {
            stranger.run(|| {
                let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
                while !stop.load(Ordering::Relaxed) {
                    socket.send_to(b"noise", "127.0.0.1:9").unwrap();
                    flooded.fetch_add(1, Ordering::Relaxed);
                }
            });
        });
        // Harvests in the middle of it must neither lose nor repeat a packet.
        let harvests = scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                harvested(&mut agent1, &owner1);
                harvested(&mut agent2, &owner2);
                thread::sleep(Duration::from_millis(200));
            }
        });
        for (family, (to1, to2)) in to_pod1.into_iter().zip(to_pod2).enumerate() {
            send_until(|| refused_by(&pod2)[family], PACKETS, |count| pod1.send(to2, 9, 1, count));
            send_until(|| counted_by_nft(&node1)[family], PACKETS, |count| pod2.send(to1, 7070, 1, count));
        }
        drop(enough);
        harvests.join().unwrap();
    });

    let (on1, expected) = settled(|| counted_by_nft(&node1), || harvested(&mut agent1, &owner1));
    for (to, expected) in to_pod1.into_iter().zip(expected) {
        let dropped = |group: &DropGroup| {
            group.netns == Owner::Host
                && is_reason(&group.reason, "NETFILTER_DROP")
                && group.tuple.as_ref().is_some_and(|tuple| {
                    tuple.destination == to && tuple.service_port == 7070 && tuple.port_is_destination
                })
        };
        assert_eq!(packets(&on1, dropped), expected, "node 1, to {to}: {:#?}", on1.groups);
        let group = on1.groups.iter().find(|group| dropped(group)).unwrap();
        if agent1.has_symbols() {
            assert!(["nft_do_chain", "nf_hook_slow"].contains(&group.location.as_str()), "{}", group.location);
        }
        // 18 bytes, and the headers of UDP and of IP.
        let each = 18 + 8 + if to.is_ipv4() { 20 } else { 40 };
        assert_eq!(group.bytes, expected * each);
        assert!(group.first_at < group.last_at && group.last_at <= now());
    }
    let (on2, expected) = settled(|| refused_by(&pod2), || harvested(&mut agent2, &owner2));
    for (to, expected) in to_pod2.into_iter().zip(expected) {
        let dropped = |group: &DropGroup| {
            is_pod(group, "pod2")
                && is_reason(&group.reason, "NO_SOCKET")
                && group.tuple.as_ref().is_some_and(|tuple| tuple.destination == to && tuple.service_port == 9)
        };
        assert_eq!(packets(&on2, dropped), expected, "node 2, to {to}: {:#?}", on2.groups);
    }
    // Nobody's node: one number, at least the flood, and no group.
    for seen in [&on1, &on2] {
        assert!(seen.accounts.foreign_netns >= flooded.load(Ordering::Relaxed), "{:?}", seen.accounts);
        assert!(!seen.groups.iter().any(|group| matches!(group.netns, Owner::Unknown { id } if id != 0)));
    }
    let exemplar = on1.exemplars.iter().find(|exemplar| {
        // The newest are kept: on a slow machine IPv6's packets have displaced those of IPv4. A kernel that gives no reasons drops
        // messages of ICMPv6 to the same address for another one.
        to_pod1.contains(&exemplar.destination)
            && (exemplar.destination_port, exemplar.protocol_number) == (7070, 17)
            && is_reason(&exemplar.reason, "NETFILTER_DROP")
    });
    let exemplar = exemplar.expect("thousands of packets leave an exemplar");
    if agent1.has_symbols() {
        assert!(
            exemplar.stack.iter().any(|frame| ["ip_forward", "ip6_forward"].contains(&frame.as_str())),
            "the hook shows: {:?}",
            exemplar.stack
        );
    }
}

#[test]
fn full_sets_count_coarsely_and_then_by_reason() {
    const TEST: &str = "full_sets_count_coarsely_and_then_by_reason";
    const PACKETS: usize = 600;
    let Some(mut drops) = load(TEST, Some(TableSize { ipv4: 1, ipv6: 1, coarse: 1 })) else { return };
    // More namespaces than a coarse set has slots, more ports than a full set has.
    let pods: Vec<Namespace> = (0..12).map(|_| Namespace::new()).collect();
    for pod in &pods {
        pod.send(LOCAL4, 100, 50, PACKETS);
        pod.send(LOCAL6, 100, 50, PACKETS);
    }
    let named: Vec<(&Namespace, &str)> = pods.iter().map(|pod| (pod, "pod")).collect();
    let seen = harvested(&mut drops, &owner(&named));
    let accounts = seen.accounts;
    assert!(accounts.coarse > 0 && accounts.reason_only > 0 && accounts.attributed > 0, "{accounts:?}");
    let sent = (pods.len() * 2 * PACKETS) as u64;
    let counted = packets(&seen, |group| is_pod(group, "pod")) + accounts.reason_only;
    assert!(counted >= sent, "{counted} of {sent}");
    assert!(seen.groups.iter().any(|group| group.tuple.is_none()), "a coarse group has no tuple");
    let no_socket: u64 =
        seen.reasons.iter().filter(|total| is_reason(&total.reason, "NO_SOCKET")).map(|total| total.packets).sum();
    assert!(no_socket >= sent, "totals by reason are exact: {no_socket} of {sent}");
}

#[test]
fn more_flows_than_slots_lose_detail_and_no_packet() {
    const TEST: &str = "more_flows_than_slots_lose_detail_and_no_packet";
    const PORTS: u16 = 40_000;
    let Some(mut drops) = load(TEST, None) else { return };
    let pod = Namespace::new();
    // The service side is the lower port: with a source port above all others each packet has a key of its own.
    pod.sh("echo 60000 60999 >/proc/sys/net/ipv4/ip_local_port_range
            echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6");
    pod.send(LOCAL4, 1000, PORTS, usize::from(PORTS));
    let owner = owner(&[(&pod, "pod")]);
    let seen = harvested(&mut drops, &owner);
    let accounts = seen.accounts;
    let ours = accounts.attributed + accounts.coarse;
    assert_eq!(ours, u64::from(PORTS), "{accounts:?}");
    assert!(accounts.coarse > 0, "16 384 slots cannot hold 40 000 keys");
    assert!(accounts.forgotten > 0, "user space keeps 2048 groups of a slot");
    assert_eq!(seen.groups.len(), 500);
    assert!(seen.omitted_groups > 0);
}

#[test]
fn hostile_packets_are_counted_and_never_break_the_identity() {
    const TEST: &str = "hostile_packets_are_counted_and_never_break_the_identity";
    let Some(mut drops) = load(TEST, None) else { return };
    let (sender, target) = (Namespace::new(), Namespace::new());
    sender.connect("out", &target, "in");
    // netdev ingress is before the IP layer's own checks: what it drops is what arrived.
    target.sh("nft 'table netdev guard {
           chain i { type filter hook ingress device \"in\" priority 0; counter drop; }
         }'");
    let owner = owner(&[(&target, "target")]);
    harvested(&mut drops, &owner);
    let tricky = tricky_frames();
    for _ in 0..10 {
        assert_eq!(sender.send_frames("out", &tricky), tricky.len());
    }
    let seen = eventually("all tricky frames arriving", || {
        let seen = harvested(&mut drops, &owner);
        (packets(&seen, |group| is_reason(&group.reason, "NETFILTER_DROP")) >= 40).then_some(seen)
    });
    let with_port = |port: u16| {
        packets(&seen, |group| {
            group
                .tuple
                .as_ref()
                .is_some_and(|tuple| tuple.service_port == port && tuple.source == IpAddr::from([10, 8, 0, 1]))
        })
    };
    assert_eq!(with_port(53), 20, "plain and behind options: {:#?}", seen.groups);
    assert_eq!(with_port(0), 20, "later fragment, cut ports: {:#?}", seen.groups);
    assert!(seen.accounts.unparsed >= 30, "three impossible headers, ten times: {:?}", seen.accounts);

    let frames = hostile_frames();
    let sent = sender.send_frames("out", &frames);
    assert!(sent > frames.len() / 2, "the kernel sent {sent} of {}", frames.len());
    target.sh("nft delete table netdev guard");
    sender.send_frames("out", &frames);
    sender.send_frames("lo", &frames);
    thread::sleep(patient(Duration::from_millis(200)));
    let seen = harvested(&mut drops, &owner);
    assert!(seen.accounts.unparsed > 30 + 100, "{:?}", seen.accounts);
    assert!(seen.exemplars.iter().all(|exemplar| !exemplar.reason.is_empty() && !exemplar.location.is_empty()));
}

#[test]
fn nothing_remains_after_sigkill() {
    const TEST: &str = "nothing_remains_after_sigkill";
    if load(TEST, None).is_none() {
        return;
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_the_programs_when_asked"])
        .env(HOLD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let process = PathBuf::from(format!("/proc/{}", child.id()));
    let held = eventually("the child holding its programs", || {
        let (programs, maps) = (bpf_ids(&process, "prog_id:"), bpf_ids(&process, "map_id:"));
        // Six tables, the ring and the constants.
        (!programs.is_empty() && maps.len() >= 8).then_some((programs, maps))
    });
    let pinned = || fs::read_dir("/sys/fs/bpf").map_or(0, Iterator::count);
    let pinned_before = pinned();
    child.kill().unwrap();
    child.wait().unwrap();
    // The kernel frees them after a grace period.
    for (kind, ids, next) in [("program", &held.0, BPF_PROG_GET_NEXT_ID), ("map", &held.1, BPF_MAP_GET_NEXT_ID)] {
        for id in ids {
            eventually(&format!("{kind} {id} going away"), || (!all_ids(next).contains(id)).then_some(()));
        }
    }
    assert_eq!(pinned(), pinned_before);
}

/// Set for the process that `nothing_remains_after_sigkill` starts and kills.
const HOLD: &str = "NETDIAG_TEST_HOLD_PROGRAMS";

/// Empty in an ordinary run.
#[test]
fn holds_the_programs_when_asked() {
    if std::env::var_os(HOLD).is_some() {
        let _kernel = Kernel::load(Sizes::for_this_machine(), "");
        thread::sleep(patient(Duration::from_secs(30)));
    }
}

/// Numbers behind `field` in a process's descriptors.
fn bpf_ids(process: &std::path::Path, field: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(process.join("fdinfo")) else { return Vec::new() };
    let mut ids: Vec<u32> = entries
        .filter_map(|entry| {
            #[expect(clippy::disallowed_methods, reason = "a test looks at another process")]
            let text = fs::read_to_string(entry.ok()?.path()).ok()?;
            let line = text.lines().find(|line| line.starts_with(field))?;
            line.split_whitespace().nth(1)?.parse().ok()
        })
        .collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

const BPF_PROG_GET_NEXT_ID: libc::c_int = 11;
const BPF_MAP_GET_NEXT_ID: libc::c_int = 12;

/// Every program or map in the kernel.
fn all_ids(next: libc::c_int) -> Vec<u32> {
    let mut ids = Vec::new();
    // `union bpf_attr`: start_id, next_id, open_flags.
    let mut request = [0_u32; 3];
    // SAFETY: the kernel reads and writes the 12 bytes of `request`.
    while unsafe { libc::syscall(libc::SYS_bpf, next, request.as_mut_ptr(), size_of_val(&request)) } == 0 {
        ids.push(request[1]);
        request[0] = request[1];
    }
    assert_eq!(std::io::Error::last_os_error().raw_os_error(), Some(libc::ENOENT), "the list ends");
    ids
}
