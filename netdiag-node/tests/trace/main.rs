//! Traces in real namespaces: that the kernel does with a packet what was predicted, that nothing of a trace stays, that its
//! limits hold, and that nobody else's trace is taken for it.
#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod agent;
#[path = "../lab/mod.rs"]
mod lab;
mod router;

use std::io::{BufRead as _, BufReader};
use std::net::UdpSocket;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use netdiag_common::forwarding::conntrack::{Direction, Entry};
use netdiag_common::forwarding::expression::Verdict;
use netdiag_common::forwarding::path::{Decision, End, Path};
use netdiag_common::forwarding::state::Hook;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::fate::{FateInterfaceKey, FateOrigin, FateRequest, FateTransport};
use netdiag_common::observation::trace::{TraceKind, TraceRecord, TraceRequest, TraceTuple, TracedPacket};
use netdiag_node::host::{ReadError, trace};
use router::{BACKEND, CLIENT, PORT, Router, SERVICE};

/// Where a test of this file runs itself again as a program that arms a trace and is killed.
const CHILD: &str = "NETDIAG_TRACE_CHILD";

fn tuple(destination: &str, source_port: Option<u16>, destination_port: u16) -> TraceTuple {
    TraceTuple {
        protocol: Protocol::Udp,
        source: CLIENT.parse().unwrap(),
        destination: destination.parse().unwrap(),
        source_port,
        destination_port: Some(destination_port),
    }
}

fn request(tuple: TraceTuple, packets: u8) -> TraceRequest {
    TraceRequest { tuple, reply: None, alternatives: Vec::new(), interface: None, seconds: 5, packets, asked_by: None }
}

fn datagram(destination: &str, source_port: u16, destination_port: u16) -> FateRequest {
    let origin = FateOrigin::Received(FateInterfaceKey::Name("r0".into()));
    let transport = FateTransport::Udp { source_port: Some(source_port), destination_port: Some(destination_port) };
    FateRequest::new(origin, Some(CLIENT.parse().unwrap()), destination.parse().unwrap(), transport)
}

/// Traces in the router while `meanwhile` runs; none, said loudly, on a kernel that cannot.
fn traced(name: &str, router: &Router, request: &TraceRequest, meanwhile: impl FnOnce()) -> Option<TraceRecord> {
    let armed = match router.node.run(|| trace::arm(request)) {
        Err(ReadError::Unsupported { feature }) => {
            println!("netdiag-skip: {name}: this kernel has no {feature}");
            return None;
        }
        armed => armed.unwrap(),
    };
    meanwhile();
    let until = Instant::now() + lab::patient(Duration::from_secs(request.seconds.into()));
    Some(router.node.run(|| armed.collect(until, &|| false, &mut |_| None).unwrap()))
}

/// One decision: table, chain, handle, what it does, whether it is a policy.
type Word = (String, String, Option<u64>, Verdict, bool);

fn predicted(path: &Path) -> Vec<Word> {
    let words = path.decisions.iter().filter_map(|decision| {
        let (chain, handle, verdict, is_policy) = match decision {
            Decision::Rule { chain, handle, verdict, .. } => (chain, Some(*handle), verdict.clone(), false),
            Decision::EndOfChain { chain, .. } => (chain, None, Verdict::Continue, false),
            Decision::Policy { chain, verdict, .. } => (chain, None, verdict.clone(), true),
            _ => return None,
        };
        Some((chain.table.to_string(), chain.chain.to_string(), handle, verdict, is_policy))
    });
    words.collect()
}

fn reported(packet: &TracedPacket) -> Vec<Word> {
    let word = |event: &netdiag_common::observation::trace::TraceEvent| {
        let is_policy = event.kind == TraceKind::Policy;
        (event.table.clone(), event.chain.clone(), event.handle, event.verdict.clone(), is_policy)
    };
    packet.events.iter().map(word).collect()
}

#[test]
fn a_translated_packet_takes_the_predicted_way() {
    let name = "a_translated_packet_takes_the_predicted_way";
    let Some(router) = Router::start("dnat") else { return };
    let fate = router.node.run(|| lab::fate(&datagram(SERVICE, 4001, 80))).unwrap();
    let [path] = &fate.outcome.paths[..] else { panic!("{:?}", fate.outcome) };
    assert_eq!((path.packet.destination().to_string(), path.packet.ports().unwrap().1), (BACKEND.to_owned(), PORT));
    assert!(matches!(path.end, End::Sent { .. }), "{:?}", path.end);

    let entry = path.connection.clone().unwrap();
    let reply = &entry.reply;
    let origin = FateOrigin::Received(FateInterfaceKey::Name("r1".into()));
    let transport = FateTransport::Udp { source_port: Some(PORT), destination_port: Some(reply.destination_port) };
    let answered = FateRequest {
        connection: Some(Entry { direction: Direction::Reply, ..entry.clone() }),
        ..FateRequest::new(origin, Some(reply.source), reply.destination, transport)
    };
    let reply = TraceTuple {
        protocol: Protocol::Udp,
        source: reply.source,
        destination: reply.destination,
        source_port: Some(reply.source_port),
        destination_port: Some(reply.destination_port),
    };
    let request =
        TraceRequest { reply: Some(reply), alternatives: Vec::new(), ..request(tuple(SERVICE, Some(4001), 80), 2) };
    let Some(record) = traced(name, &router, &request, || router.ask(SERVICE, 4001, 80)) else { return };
    let [packet, answer] = &record.packets[..] else { panic!("{record:?}") };
    assert_eq!((packet.direction, answer.direction), (Direction::Original, Direction::Reply));
    assert_eq!(reported(packet), predicted(path));
    let [back] = &router.node.run(|| lab::fate(&answered)).unwrap().outcome.paths[..] else { panic!("{answered:?}") };
    assert_eq!(reported(answer), predicted(back));
    assert_eq!(back.packet.source().to_string(), SERVICE);
    assert_eq!((record.matched, record.lost, record.left_out), (Some(2), false, 0));
    let headers = packet.events[0].headers.as_ref().unwrap();
    assert_eq!((headers.destination.to_string(), headers.source_port), (SERVICE.to_owned(), 4001));
    assert!(packet.events.iter().any(|event| event.hook.is_some() && event.priority == Some(-300)));
    let names: Vec<_> = record.interfaces.iter().map(|interface| &*interface.name).collect();
    assert_eq!(names, ["r0", "r1"]);
}

#[test]
fn a_dropped_packet_is_dropped_by_the_predicted_rule() {
    let name = "a_dropped_packet_is_dropped_by_the_predicted_rule";
    let Some(router) = Router::start("drop") else { return };
    let predict = || router.node.run(|| lab::fate(&datagram(BACKEND, 4002, 53))).unwrap();
    let before = predict();
    let [path] = &before.outcome.paths[..] else { panic!("{:?}", before.outcome) };
    let End::Dropped { by } = &path.end else { panic!("{:?}", path.end) };
    let rule = before.rules.iter().find(|rule| Some(rule.handle) == by.handle).unwrap();
    assert_eq!(rule.comment.as_deref(), Some("no names"));
    assert!(rule.text.contains("udp dport 53") && rule.text.contains("drop"), "{}", rule.text);

    let request = TraceRequest { interface: Some("r0".into()), ..request(tuple(BACKEND, None, 53), 1) };
    let Some(record) = traced(name, &router, &request, || router.send(BACKEND, 4002, 53, 1)) else { return };
    let [packet] = &record.packets[..] else { panic!("{record:?}") };
    assert_eq!(reported(packet), predicted(path));
    let last = packet.events.last().unwrap();
    assert_eq!((last.handle, &last.verdict), (by.handle, &Verdict::Drop));
    let counted = |fate: &netdiag_common::observation::fate::Fate| {
        fate.rules.iter().find(|found| found.handle == rule.handle).unwrap().counter.unwrap().packets
    };
    assert_eq!(counted(&predict()) - counted(&before), 1);
}

#[test]
fn what_a_process_sends_to_its_own_host_is_one_packet() {
    let name = "what_a_process_sends_to_its_own_host_is_one_packet";
    let Some(router) = Router::start("own") else { return };
    router.nft(
        "table ip6 own { chain out { type filter hook output priority 0; counter; }
                         chain pre { type filter hook prerouting priority -300; counter; }
                         chain in { type filter hook input priority 0; udp dport 9 meta mark set 7; }; }",
    );
    let own = "::1".parse().unwrap();
    let transport = FateTransport::Udp { source_port: Some(4005), destination_port: Some(9) };
    let sent = FateRequest::new(FateOrigin::Sent, None, own, transport);
    let fate = router.node.run(|| lab::fate(&sent)).unwrap();
    let [path] = &fate.outcome.paths[..] else { panic!("{:?}", fate.outcome) };
    assert_eq!((fate.packet.source(), &path.end), (own, &End::Delivered));

    let tuple = TraceTuple {
        protocol: Protocol::Udp,
        source: own,
        destination: own,
        source_port: Some(4005),
        destination_port: Some(9),
    };
    let send = || {
        router.node.run(|| UdpSocket::bind("[::1]:4005").unwrap().send_to(b"x", "[::1]:9").unwrap());
    };
    // The packet is marked when it is sent, and again when it comes back.
    let Some(record) = traced(name, &router, &request(tuple, 2), send) else { return };
    let [packet] = &record.packets[..] else { panic!("{record:?}") };
    assert_eq!(reported(packet), predicted(path));
    assert_eq!(packet.events.last().unwrap().mark, 7);
}

#[test]
fn nothing_stays_when_a_trace_ends_or_is_killed() {
    let name = "nothing_stays_when_a_trace_ends_or_is_killed";
    let Some(router) = Router::start("gone") else { return };
    let request = request(tuple(SERVICE, None, 80), 1);
    let Some(armed) = router.armed(name, &request) else { return };
    assert!(router.has_table());
    let again = router.node.run(|| trace::arm(&request).map(|_| ()));
    let Err(ReadError::Call { source, .. }) = again else { panic!("a second trace was armed") };
    assert_eq!(source.raw_os_error(), Some(libc::EEXIST));
    assert!(router.has_table(), "refusing a second trace ended the first one");
    drop(armed);
    assert!(!router.has_table());

    let this = std::env::current_exe().unwrap();
    let mut child = router.node.run(|| {
        Command::new(this)
            .args(["--exact", "a_program_that_arms_a_trace", "--nocapture"])
            .env(CHILD, "1")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    });
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("it is armed")));
    assert!(router.has_table());
    child.kill().unwrap();
    child.wait().unwrap();
    let started = Instant::now();
    while router.has_table() {
        assert!(started.elapsed() < lab::patient(Duration::from_secs(2)), "the table outlived its process");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Not a test of its own: what the one above kills.
#[test]
fn a_program_that_arms_a_trace() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let _armed = trace::arm(&request(tuple(SERVICE, None, 80), 1)).unwrap();
    println!("\nit is armed");
    std::thread::sleep(Duration::from_mins(1));
}

#[test]
fn a_flood_is_traced_up_to_the_limit() {
    let name = "a_flood_is_traced_up_to_the_limit";
    let Some(router) = Router::start("flood") else { return };
    let request = request(tuple(BACKEND, None, PORT), 8);
    let flood = || router.send(BACKEND, 4003, PORT, 5_000);
    let Some(record) = traced(name, &router, &request, flood) else { return };
    assert_eq!(record.packets.len(), 8);
    assert!(record.matched.unwrap() > 1_000, "{:?}", record.matched);
    for packet in &record.packets {
        let raw = packet.events.iter().filter(|event| event.chain == "raw" && event.handle.is_some());
        assert_eq!(raw.count(), 1, "{packet:#?}");
        let last = packet.events.last().unwrap();
        assert!(last.hook == Some(Hook::Forward) || last.hook == Some(Hook::Postrouting), "{packet:#?}");
    }
    assert!(!record.lost);
}

#[test]
fn other_peoples_traces_are_left_to_them() {
    let name = "other_peoples_traces_are_left_to_them";
    let Some(router) = Router::start("other") else { return };
    let rules = "table ip theirs { chain c { type filter hook prerouting priority -299; \
                 ip saddr 10.1.0.2 meta nftrace set 1; }; }";
    router.nft(rules);
    let request = request(tuple(BACKEND, None, PORT), 1);
    let meanwhile = || {
        for number in 0..20 {
            router.send(BACKEND, 5_000 + number, 9999, 1);
        }
        // The same flow, of which ours marks the first packet only.
        router.send(BACKEND, 4004, PORT, 20);
    };
    let Some(record) = traced(name, &router, &request, meanwhile) else { return };
    let [packet] = &record.packets[..] else { panic!("{} packets", record.packets.len()) };
    let way = reported(packet);
    let passes = way.iter().filter(|(table, chain, ..)| (&**table, &**chain) == ("theirs", "c")).count();
    // Its rule, the end of its chain, and its policy.
    assert!((1..=3).contains(&passes), "{way:#?}");
    assert_eq!(record.matched, Some(20));
    for event in packet.events.iter().filter_map(|event| event.headers.as_ref()) {
        assert_eq!(event.destination_port, PORT);
    }
}
