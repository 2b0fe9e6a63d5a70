//! What holds for every kind: exact counts, the schedule, who sends, what is allowed, and which endpoint was met.

use std::net::{TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use netdiag_common::observation::series::transport::TcpClose;
use netdiag_common::observation::series::{FailureClass, Identity, Probe, SeriesRequest, SeriesResult, UdpProbe};
use netdiag_node::gap::Failure;
use netdiag_node::probe::series::{AllowList, Engine};

use crate::ask::{ask, ask_behind, ask_of, request, tcp};
use crate::host::Host;
use crate::support::{Namespace, patient, skipped};

fn discard(count: u32, interval_us: u64, timeout_ms: u32) -> SeriesRequest {
    let to = "127.0.0.1:9".parse().unwrap();
    let probe = UdpProbe { to, source_port: None, bytes: 8, payload: None, datagrams: 1, gap_us: 0 };
    SeriesRequest { count, interval_us, timeout_ms, ..request(Probe::Udp(probe)) }
}

#[test]
fn thousands_of_attempts_on_two_threads_are_counted_exactly() {
    let Some(host) = Host::new("thousands_of_attempts_on_two_threads_are_counted_exactly") else { return };
    let listener = host.namespace.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let to = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let accepted = SeriesRequest { count: 3_000, parallel: 100, ..request(tcp(&to, TcpClose::Reset)) };
    let result = ask(&host.namespace, &accepted).unwrap();
    assert_eq!(
        (result.asked, result.succeeded, result.failed, result.untried),
        (3_000, 3_000, 0, 0),
        "{:?}",
        result.untried_because
    );
    assert_eq!((result.attempts.len(), result.not_kept), (1_000, 2_000));
    let total = result.times.iter().find(|times| times.phase == "total").unwrap();
    assert_eq!(total.count, 3_000);
    assert!(total.min_us <= total.p50_us && total.p50_us <= total.p99_us && total.p99_us <= total.max_us);
    assert!(result.entered_us.is_some());

    let refused = SeriesRequest { count: 2_000, parallel: 64, ..request(tcp("127.0.0.1:9", TcpClose::Reset)) };
    let result = ask(&host.namespace, &refused).unwrap();
    assert_eq!((result.failed, result.attempts.len(), result.not_kept), (2_000, 1_000, 1_000));
    assert!(result.times.is_empty(), "times are of what succeeded");
}

#[test]
fn attempts_begin_by_the_schedule() {
    let Some(host) = Host::new("attempts_begin_by_the_schedule") else { return };
    let result = ask(&host.namespace, &discard(20, 10_000, 1_000)).unwrap();
    assert_eq!(result.made, 20);
    for attempt in &result.attempts {
        assert!(attempt.at_us >= u64::from(attempt.number) * 10_000, "never before its time: {attempt:?}");
    }
}

#[test]
fn what_the_time_does_not_reach_is_untried() {
    let Some(host) = Host::new("what_the_time_does_not_reach_is_untried") else { return };
    let engine = Engine::new(AllowList::default(), false);
    let within = Duration::from_secs(1);
    let result = ask_of(&engine, &host.namespace, &host.namespace, &discard(100, 100_000, 100), within).unwrap();
    assert!(result.made < 20 && result.untried > 80, "{result:?}");
    assert!(result.untried_because.unwrap().contains("were over"));
}

#[test]
fn mark_and_owner_are_seen_by_the_packet_filter() {
    let Some(host) = Host::new("mark_and_owner_are_seen_by_the_packet_filter") else { return };
    host.namespace.sh("nft -f - <<'END'
table inet seen {
    chain output {
        type filter hook output priority 0;
        tcp dport 9 tcp flags syn meta mark 0x1234 meta skuid 1337 counter
        tcp dport 9 tcp flags syn meta mark 0 meta skuid 0 counter
    }
}
END");
    let plain = request(tcp("127.0.0.1:9", TcpClose::Orderly));
    let identity = Identity { uid: Some(1_337), mark: Some(0x1234) };
    ask(&host.namespace, &SeriesRequest { count: 3, identity, ..plain.clone() }).unwrap();
    ask(&host.namespace, &SeriesRequest { count: 2, ..plain }).unwrap();
    let rules = host.namespace.sh("nft list table inet seen");
    let counted: Vec<&str> = rules.lines().filter(|line| line.contains("counter")).collect();
    assert!(counted[0].contains("packets 3 ") && counted[1].contains("packets 2 "), "{rules}");
}

#[test]
fn address_that_is_not_allowed_is_not_sent_to() {
    let Some(host) = Host::new("address_that_is_not_allowed_is_not_sent_to") else { return };
    for to in ["203.0.113.1:80", "169.254.169.254:80", "[2001:db8::1]:80"] {
        let Failure::Other(refused) = ask(&host.namespace, &request(tcp(to, TcpClose::Orderly))).unwrap_err() else {
            panic!()
        };
        assert!(refused.remedy.contains("--probe-allow"), "{}", refused.remedy);
    }
    let engine = Engine::new(AllowList::parse("203.0.113.0/24").unwrap(), false);
    let asked = request(tcp("203.0.113.1:80", TcpClose::Orderly));
    let within = patient(Duration::from_secs(20));
    let result = ask_of(&engine, &host.namespace, &host.namespace, &asked, within).unwrap();
    assert_eq!(result.attempts[0].failure.as_ref().unwrap().class, FailureClass::Unreachable, "allowed, and no route");
}

#[test]
fn more_series_than_the_node_makes_are_refused_with_the_way_out() {
    let Some(host) = Host::new("more_series_than_the_node_makes_are_refused_with_the_way_out") else { return };
    let engine = Engine::new(AllowList::default(), false);
    host.namespace.sh("nft 'add table inet quiet; add chain inet quiet input { type filter hook input priority 0; }; add rule inet quiet input tcp dport 7 drop'");
    let long = SeriesRequest { timeout_ms: 5_000, ..request(tcp("127.0.0.1:7", TcpClose::Orderly)) };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..4)
            .map(|_| {
                let (engine, host, long) = (&engine, &host, &long);
                scope.spawn(move || {
                    ask_of(engine, &host.namespace, &host.namespace, long, patient(Duration::from_secs(20)))
                })
            })
            .collect();
        // They have begun when their SYNs are on their way.
        crate::support::eventually("four connects", || {
            let sent = host.namespace.sh("ss -Htn state syn-sent | wc -l");
            (sent.trim() == "4").then_some(())
        });
        let asked = Instant::now();
        let fifth = ask_of(&engine, &host.namespace, &host.namespace, &discard(1, 0, 100), Duration::from_secs(1));
        let Err(Failure::Other(refused)) = fifth else { panic!("{fifth:?}") };
        assert!(refused.why.contains("4 series") && refused.remedy.contains("ask again"), "{refused:?}");
        assert!(asked.elapsed() >= Duration::from_millis(500), "a while is waited");
        for series in running {
            assert_eq!(series.join().unwrap().unwrap().made, 1);
        }
    });
    assert_eq!(
        ask_of(&engine, &host.namespace, &host.namespace, &discard(1, 0, 100), Duration::from_secs(5)).unwrap().made,
        1
    );
}

#[test]
fn endpoint_behind_a_service_is_told_also_when_it_refuses() {
    let name = "endpoint_behind_a_service_is_told_also_when_it_refuses";
    if Host::new(name).is_none() {
        return;
    }
    let (node, pod, backend) = (Namespace::new(), Namespace::new(), Namespace::new());
    node.connect("pod", &pod, "eth0");
    node.connect("backend", &backend, "eth0");
    node.sh("sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1\nip addr add 10.88.1.1/24 dev pod\nip addr add 10.88.2.1/24 dev backend\nip addr add fd88:1::1/64 dev pod nodad\nip addr add fd88:2::1/64 dev backend nodad");
    pod.sh("ip addr add 10.88.1.2/24 dev eth0\nip addr add fd88:1::2/64 dev eth0 nodad\nip route add default via 10.88.1.1\nip route add default via fd88:1::1");
    backend.sh("ip addr add 10.88.2.2/24 dev eth0\nip addr add fd88:2::2/64 dev eth0 nodad\nip route add default via 10.88.2.1\nip route add default via fd88:2::1");
    let _listens =
        backend.run(|| (TcpListener::bind("10.88.2.2:8080").unwrap(), TcpListener::bind("[fd88:2::2]:8080").unwrap()));
    node.sh("nft -f - <<'END'
table inet service {
    chain prerouting {
        type nat hook prerouting priority dstnat;
        ip daddr 10.96.0.1 tcp dport 80 dnat ip to 10.88.2.2:8080
        ip daddr 10.96.0.1 tcp dport 81 dnat ip to 10.88.2.2:8081
        ip6 daddr fd96::1 tcp dport 80 dnat ip6 to [fd88:2::2]:8080
        ip6 daddr fd96::1 tcp dport 81 dnat ip6 to [fd88:2::2]:8081
    }
}
END");
    for (service, backend) in [("10.96.0.1", "10.88.2.2"), ("[fd96::1]", "[fd88:2::2]")] {
        for (port, is_open) in [(80, true), (81, false)] {
            let asked = SeriesRequest { count: 3, ..request(tcp(&format!("{service}:{port}"), TcpClose::Reset)) };
            let result = ask_behind(&node, &pod, &asked).unwrap();
            if result.unseen.iter().any(|unseen| unseen.contains("tracked")) {
                return skipped(name, format!("{:?}", result.unseen));
            }
            assert_eq!(result.succeeded, if is_open { 3 } else { 0 }, "{result:?}");
            let endpoint = format!("{backend}:{}", if is_open { 8_080 } else { 8_081 }).parse().unwrap();
            assert!(result.attempts.iter().all(|attempt| attempt.endpoint == Some(endpoint)), "{result:?}");
        }
        let direct = SeriesRequest { count: 2, ..request(tcp(&format!("{backend}:8080"), TcpClose::Reset)) };
        let result = ask_behind(&node, &pod, &direct).unwrap();
        assert!(result.attempts.iter().all(|attempt| attempt.endpoint.is_none() && attempt.succeeded()), "{result:?}");
    }
}

#[test]
fn one_port_meets_the_stale_entry_that_a_fresh_port_hides() {
    let name = "one_port_meets_the_stale_entry_that_a_fresh_port_hides";
    if Host::new(name).is_none() {
        return;
    }
    let (node, pod, backend) = (Namespace::new(), Namespace::new(), Namespace::new());
    node.connect("pod", &pod, "eth0");
    node.connect("backend", &backend, "eth0");
    node.sh("sysctl -qw net.ipv4.ip_forward=1\nip addr add 10.88.1.1/24 dev pod\nip addr add 10.88.2.1/24 dev backend");
    pod.sh("ip addr add 10.88.1.2/24 dev eth0\nip route add default via 10.88.1.1");
    backend.sh("ip addr add 10.88.2.2/24 dev eth0\nip route add default via 10.88.2.1");
    for port in [7_001, 7_002] {
        let socket = backend.run(|| UdpSocket::bind(("10.88.2.2", port)).unwrap());
        std::thread::spawn(move || {
            let mut bytes = [0; 64];
            while let Ok((length, from)) = socket.recv_from(&mut bytes) {
                let _ = socket.send_to(&bytes[..length], from);
            }
        });
    }
    let translate = |port: u16| {
        node.sh(&format!(
            "nft -f - <<'END'
add table ip service
add chain ip service prerouting {{ type nat hook prerouting priority dstnat; }}
flush chain ip service prerouting
add rule ip service prerouting ip daddr 10.96.0.1 udp dport 53 dnat to 10.88.2.2:{port}
END"
        ));
    };
    let met = |source_port: Option<u16>| {
        let to = "10.96.0.1:53".parse().unwrap();
        let probe = UdpProbe { to, source_port, bytes: 8, payload: None, datagrams: 1, gap_us: 0 };
        ask_behind(&node, &pod, &request(Probe::Udp(probe))).unwrap()
    };
    let endpoint = |result: &SeriesResult| result.attempts[0].endpoint.map(|endpoint| endpoint.port());
    // Above the ports that the kernel gives by itself.
    let kept = Some(61_404);
    translate(7_001);
    node.sh("sysctl -qw net.netfilter.nf_conntrack_udp_timeout=600 net.netfilter.nf_conntrack_udp_timeout_stream=600");
    let before = met(kept);
    if before.unseen.iter().any(|unseen| unseen.contains("tracked")) {
        return skipped(name, format!("{:?}", before.unseen));
    }
    assert_eq!((before.succeeded, endpoint(&before)), (1, Some(7_001)), "{before:?}");
    translate(7_002);
    for (source_port, port) in [(kept, 7_001), (None, 7_002)] {
        let result = met(source_port);
        assert_eq!((result.succeeded, endpoint(&result)), (1, Some(port)), "{result:?}");
    }
}

#[test]
fn thread_that_was_in_one_namespace_serves_another() {
    let Some(host) = Host::new("thread_that_was_in_one_namespace_serves_another") else { return };
    let engine = Engine::new(AllowList::default(), false);
    let other = Namespace::new();
    let listener = host.namespace.run(|| TcpListener::bind("127.0.0.1:0").unwrap());
    let to = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let asked = SeriesRequest { count: 4, ..request(tcp(&to, TcpClose::Reset)) };
    let within = patient(Duration::from_secs(20));
    // Each series finds the thread of the one before it; an owner is nobody else's.
    for round in 0..4 {
        let identity = Identity { uid: (round == 2).then_some(1_337), mark: None };
        let asked = SeriesRequest { identity, ..asked.clone() };
        for (namespace, succeeded) in [(&host.namespace, 4), (&other, 0)] {
            let result = ask_of(&engine, namespace, namespace, &asked, within).unwrap();
            assert_eq!((result.made, result.succeeded), (4, succeeded), "{result:?}");
        }
    }
    let inside = other.run(|| std::fs::read_link("/proc/thread-self/ns/net").unwrap());
    crate::support::eventually("threads to go home", || threads_in(&inside).is_empty().then_some(()));
}

/// Threads of this process in a network namespace.
fn threads_in(namespace: &std::path::Path) -> Vec<std::path::PathBuf> {
    let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|thread| thread.path());
    threads.filter(|thread| std::fs::read_link(thread.join("ns/net")).is_ok_and(|own| own == namespace)).collect()
}
