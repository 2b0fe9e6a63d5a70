//! Neighbours that do not answer are counted once for each time that the kernel gives up, by address, device and namespace;
//! those that answer leave nothing. Needs root, BTF and the built programs.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

#[expect(dead_code, reason = "shared with the other kernel tests")]
mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::neighbour::{Failure, FailureKind, Failures};
use netdiag_node::clock::now;
use netdiag_node::kernel::{EventSize, KernelNeighbours, Sizes};
use support::{Namespace, Stop, eventually, lacks, load_part, owner, skipped};

const SERVER4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 79, 0, 2));
const SERVER6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd79, 0, 0, 0, 0, 0, 0, 2));
/// Addresses of the link that nobody has.
const NOBODY4: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 79, 0, 99));
const NOBODY6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd79, 0, 0, 0, 0, 0, 0, 0x99));

/// Two ends of a cable. The client gives up after three questions, 30 ms apart.
fn pair() -> (Namespace, Namespace) {
    let (client, server) = (Namespace::new(), Namespace::new());
    client.connect("eth0", &server, "eth0");
    for (space, n) in [(&client, 1), (&server, 2)] {
        space.sh(&format!("ip addr add 10.79.0.{n}/16 dev eth0; ip addr add fd79::{n}/64 dev eth0 nodad"));
    }
    for family in ["ipv4", "ipv6"] {
        client.sh(&format!("echo 30 >/proc/sys/net/{family}/neigh/eth0/retrans_time_ms"));
    }
    (client, server)
}

/// A harvest's failures in the client's namespace.
fn harvested(neighbours: &mut KernelNeighbours, client: &Namespace) -> Failures {
    neighbours.harvest(now());
    let all = neighbours.observe(now(), Window::FiveMinutes, &owner(&[(client, "client")]));
    let pod = Owner::Pod { uid: "client".to_owned() };
    let seen = all.of(&pod, &BTreeMap::from([(index(client), "eth0".to_owned())]));
    let accounts = seen.accounts;
    assert_eq!((accounts.unaccounted(), accounts.failed + accounts.refused), (0, accounts.total), "{accounts:?}");
    seen
}

fn index(space: &Namespace) -> u32 {
    space.run(|| nix::net::if_::if_nametoindex("eth0").unwrap())
}

fn failed(seen: &Failures, address: IpAddr) -> Option<&Failure> {
    let mut of = seen.groups.iter().filter(|group| group.address == Some(address));
    let found = of.next();
    assert!(of.next().is_none(), "one group for each address: {:#?}", seen.groups);
    found
}

/// Who does not answer, as the kernel lists it.
fn listed(space: &Namespace, address: IpAddr) -> bool {
    space.sh(&format!("ip neigh show {address} nud failed")).contains("FAILED")
}

/// A counter of the whole kernel's table.
fn statistic(table: &str, name: &str) -> u64 {
    #[expect(clippy::disallowed_methods, reason = "the kernel's own count, to compare with")]
    let text = std::fs::read_to_string(format!("/proc/net/stat/{table}")).unwrap();
    let mut lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let column = lines.next().unwrap().iter().position(|column| *column == name).unwrap();
    lines.map(|cpu| u64::from_str_radix(cpu[column], 16).unwrap()).sum()
}

#[test]
fn a_host_that_is_not_there_failed_once_for_each_try() {
    const TEST: &str = "a_host_that_is_not_there_failed_once_for_each_try";
    let Some(mut neighbours) = load_part(TEST, Sizes::for_this_machine(), KernelNeighbours::load) else { return };
    if lacks(TEST, &neighbours.checks(), "neigh_timer_handler") {
        return;
    }
    let (client, server) = pair();
    for address in [SERVER4, SERVER6] {
        client.send(address, 9, 1, 1);
    }
    for tries in 1..=3 {
        let before = now();
        for address in [NOBODY4, NOBODY6] {
            client.send(address, 9, 1, 1);
            eventually("an end of the questions", || listed(&client, address).then_some(()));
        }
        let seen = eventually("all failures, counted or missed", || {
            let seen = harvested(&mut neighbours, &client);
            let times = [NOBODY4, NOBODY6].map(|address| failed(&seen, address).map_or(0, |failure| failure.times));
            assert!(times.iter().all(|times| *times <= tries), "{:#?}", seen.groups);
            (times.iter().sum::<u64>() + seen.accounts.missed >= 2 * tries).then_some(seen)
        });
        for failure in &seen.groups {
            assert!([Some(NOBODY4), Some(NOBODY6)].contains(&failure.address), "{failure:?}");
            assert_eq!((failure.kind, failure.device.as_str()), (FailureKind::Failed, "eth0"), "{failure:?}");
            assert_eq!(failure.link_index, index(&client));
            assert!(failure.first_at <= failure.last_at && failure.last_at <= now(), "{failure:?}");
            assert!(failure.times < tries || failure.last_at >= before, "{failure:?}");
        }
        assert!(tries < 3 || seen.groups.len() == 2, "both are seen in three tries: {:?}", seen.accounts);
    }
    assert_eq!(harvested(&mut neighbours, &server).groups, [], "the far end has not asked for anybody");
}

/// Whoever sends on while the kernel gives up has begun the next try before the tracepoint is reached.
#[test]
fn a_host_that_everybody_keeps_sending_to_fails_as_often_as_the_kernel_says() {
    const TEST: &str = "a_host_that_everybody_keeps_sending_to_fails_as_often_as_the_kernel_says";
    let Some(mut neighbours) = load_part(TEST, Sizes::for_this_machine(), KernelNeighbours::load) else { return };
    if lacks(TEST, &neighbours.checks(), "neigh_timer_handler") {
        return;
    }
    let (client, _server) = pair();
    // The counts are the whole kernel's, and somebody else's may come between the two looks at them.
    let (counted, said) = eventually("as many failures as the kernel counted", || {
        harvested(&mut neighbours, &client);
        let before = (statistic("arp_cache", "res_failed"), harvested(&mut neighbours, &client));
        let is_over = AtomicBool::new(false);
        thread::scope(|scope| {
            let _stop = Stop(&is_over);
            for _ in 0..2 {
                scope.spawn(|| {
                    client.run(|| {
                        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                        while !is_over.load(Ordering::Relaxed) {
                            // Only how often the kernel gives up counts, not what becomes of a packet.
                            let _ = socket.send_to(b"anybody?", (NOBODY4, 9));
                        }
                    });
                });
            }
            thread::sleep(Duration::from_secs(2));
        });
        eventually("an end of the questions", || listed(&client, NOBODY4).then_some(()));
        let after = harvested(&mut neighbours, &client);
        let said = statistic("arp_cache", "res_failed") - before.0;
        let counted = after.accounts.failed - before.1.accounts.failed;
        let missed = after.accounts.missed - before.1.accounts.missed;
        println!("{counted} failures counted, {missed} missed, {said} in the kernel's own count");
        (counted + missed == said).then_some((counted, said))
    });
    assert!(counted >= 10 && said >= 10, "a try takes 90 ms: {counted} in 2 s");
    assert!(failed(&harvested(&mut neighbours, &client), NOBODY4).unwrap().times >= 10);
}

#[test]
fn many_hosts_that_are_not_there_lose_detail_and_none_of_them() {
    const TEST: &str = "many_hosts_that_are_not_there_lose_detail_and_none_of_them";
    const HOSTS: u8 = 200;
    let mut sizes = Sizes::for_this_machine();
    sizes.neighbours = EventSize { ipv4: 4, ipv6: 4 };
    let Some(mut neighbours) = load_part(TEST, sizes, KernelNeighbours::load) else { return };
    if lacks(TEST, &neighbours.checks(), "neigh_timer_handler") {
        return;
    }
    let (client, _server) = pair();
    for host in 0..HOSTS {
        client.send(Ipv4Addr::new(10, 79, 1, host).into(), 9, 1, 1);
    }
    let seen = eventually("all failures, counted or missed", || {
        let seen = harvested(&mut neighbours, &client);
        let times: u64 = seen.groups.iter().map(|group| group.times).sum();
        assert!(times <= u64::from(HOSTS), "{:#?}", seen.groups);
        (times + seen.accounts.missed >= u64::from(HOSTS)).then_some(seen)
    });
    assert!(seen.accounts.missed < u64::from(HOSTS) / 2, "{:?}", seen.accounts);
    assert!(seen.accounts.coarse > 0 && seen.accounts.total_only == 0, "{:?}", seen.accounts);
    assert!(seen.groups.iter().any(|group| group.address.is_none() && group.device == "eth0"));
}

/// Puts a limit of the whole kernel back.
struct Limit {
    path: &'static str,
    before: String,
}

#[expect(clippy::disallowed_methods, reason = "the limit is a file")]
impl Limit {
    fn set(path: &'static str, value: &str) -> Self {
        let before = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, value).unwrap();
        Self { path, before }
    }
}

impl Drop for Limit {
    fn drop(&mut self) {
        std::fs::write(self.path, &self.before).unwrap();
    }
}

#[test]
fn a_host_without_room_in_the_table_is_refused() {
    const TEST: &str = "a_host_without_room_in_the_table_is_refused";
    if std::env::var_os("NETDIAG_ALONE").is_none() {
        return skipped(TEST, "it lowers a limit of the whole kernel: set NETDIAG_ALONE=1 where nobody else needs it");
    }
    let Some(mut neighbours) = load_part(TEST, Sizes::for_this_machine(), KernelNeighbours::load) else { return };
    if lacks(TEST, &neighbours.checks(), "neigh_create") {
        return;
    }
    let (client, _server) = pair();
    let before = statistic("arp_cache", "table_fulls");
    let limit = Limit::set("/proc/sys/net/ipv4/neigh/default/gc_thresh3", "0");
    // Each time the kernel first throws out what nobody needs, and takes one more if it found something: what other tests left.
    client.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
        let hosts = (2..6).flat_map(|net| (1..=255).map(move |host| Ipv4Addr::new(10, 79, net, host)));
        for host in hosts {
            // Before Linux 6.1 the sender is told.
            _ = socket.send_to(b"anybody?", (host, 9));
            if statistic("arp_cache", "table_fulls") >= before + 20 {
                return;
            }
        }
        panic!("the kernel had room for a thousand hosts");
    });
    drop(limit);
    let said = statistic("arp_cache", "table_fulls") - before;
    let seen = harvested(&mut neighbours, &client);
    let refused = seen.groups.iter().filter(|group| group.kind == FailureKind::Refused);
    let ours: u64 = refused.clone().map(|group| group.times).sum();
    assert!(ours >= 1 && (ours..=said).contains(&seen.accounts.refused), "{said} in the kernel's own count: {seen:#?}");
    assert!(refused.clone().all(|group| group.device == "eth0" && group.address.is_some()), "{:#?}", seen.groups);
    client.send(SERVER4, 9, 1, 1);
    assert!(failed(&harvested(&mut neighbours, &client), SERVER4).is_none(), "there is room again");
}
