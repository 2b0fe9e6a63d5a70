//! Continuous probes of a real agent from namespaces of its own: what answers, what refuses, what is silent, and when it ends.

#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod lab;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpListener, UdpSocket};
use std::time::{Duration, Instant};

use lab::pair::{Lab, NODE_ADDRESS, POD_ADDRESS};
use lab::{NODE, ip, patient};
use netdiag_common::observation::Observation;
use netdiag_common::observation::mesh::{
    Assignment, FailureClass, MeshReport, MeshRequest, Phase, RoundReport, Target, TargetProbe, TargetReport,
};
use netdiag_common::observation::probe::DnsRecord;
use netdiag_common::{GapReason, Need, Reading, Topic};

/// Nothing has this address, and the node has a route to it.
const SILENT: &str = "10.202.0.9";

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn target(name: &str, probe: TargetProbe) -> Target {
    Target::new(name.to_owned(), probe)
}

fn tcp(name: &str, to: &str, port: u16) -> Target {
    target(name, TargetProbe::Tcp { address: address(to), port })
}

fn icmp(name: &str, to: &str) -> Target {
    target(name, TargetProbe::Icmp { address: address(to) })
}

fn assignment(generation: u64, targets: Vec<Target>) -> Assignment {
    let asker = "server".to_owned();
    Assignment { asker, generation, interval_ms: 100, timeout_ms: 300, lease_ms: 60_000, targets }
}

fn need(request: MeshRequest) -> Need {
    Need::host(NODE, Topic::Mesh(request))
}

fn assign(lab: &Lab, assignment: Assignment) -> MeshReport {
    seen(lab, MeshRequest::Assign(assignment))
}

fn look(lab: &Lab) -> MeshReport {
    seen(lab, MeshRequest::Look { asker: "server".to_owned() })
}

fn seen(lab: &Lab, request: MeshRequest) -> MeshReport {
    match lab.agent.seen(&need(request)) {
        Observation::Mesh(report) => report,
        other => panic!("{other:?}"),
    }
}

/// Looks until the newest round is as wanted.
fn until(lab: &Lab, what: &str, wanted: impl Fn(&RoundReport) -> bool) -> RoundReport {
    let started = Instant::now();
    loop {
        let report = look(lab);
        for round in &report.rounds {
            for target in &round.targets {
                assert!(target.counts.is_balanced(), "{target:?}");
                let (_, whole) = target.whole().unwrap();
                assert_eq!(whole.read().unwrap().len(), target.counts.answered, "{target:?}");
            }
        }
        match report.rounds.last() {
            Some(round) if wanted(round) => return round.clone(),
            _ => assert!(started.elapsed() < patient(Duration::from_secs(20)), "{what}: {report:?}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn of<'r>(round: &'r RoundReport, name: &str) -> &'r TargetReport {
    round.targets.iter().find(|target| target.name == name).unwrap_or_else(|| panic!("no {name} in {round:?}"))
}

fn has_told(round: &RoundReport, targets: usize, each: u64) -> bool {
    round.targets.len() == targets && round.targets.iter().all(|target| target.counts.told() >= each)
}

#[test]
fn every_end_of_an_attempt_has_its_class_and_leaves_from_the_node() {
    let Some(lab) = Lab::start("meshends") else { return };
    // Only a socket of the pod's namespace is reached so: the agent itself runs outside.
    let _listener = lab.inside.run(|| TcpListener::bind((POD_ADDRESS, 9443)).unwrap());
    let query = |name: &str, server: &str| {
        let (name_asked, record) = ("kubernetes.default.svc.cluster.local".to_owned(), DnsRecord::A);
        target(name, TargetProbe::Dns { server: address(server), port: 53, name: name_asked, record })
    };
    let targets = vec![
        tcp("open", POD_ADDRESS, 9443),
        tcp("closed", POD_ADDRESS, 81),
        tcp("nowhere", "192.168.255.1", 80),
        icmp("pod", POD_ADDRESS),
        icmp("silent", SILENT),
        query("no-server", POD_ADDRESS),
    ];
    assign(&lab, assignment(1, targets));
    let round = until(&lab, "three ends of each", |round| has_told(round, 6, 3));
    for (name, failure) in [
        ("open", None),
        ("closed", Some(FailureClass::Refused)),
        ("nowhere", Some(FailureClass::Unreachable)),
        ("pod", None),
    ] {
        let counts = &of(&round, name).counts;
        assert_eq!(counts.failed.keys().copied().collect::<Vec<_>>(), Vec::from_iter(failure), "{name}: {counts:?}");
        assert_eq!(counts.answered == 0, failure.is_some(), "{name}: {counts:?}");
    }
    // The kernel limits how often it says that nothing listens to datagrams (icmp_ratelimit).
    let dns = &of(&round, "no-server").counts;
    assert_eq!(dns.answered, 0);
    assert!(dns.failed.contains_key(&FailureClass::Refused), "{dns:?}");
    // A neighbour that does not answer is silence, until the kernel gives up on it and says so.
    let silent = &of(&round, "silent").counts;
    assert_eq!(silent.answered, 0);
    assert!(
        silent.failed.keys().all(|class| matches!(class, FailureClass::NoAnswer | FailureClass::Unreachable)),
        "{silent:?}"
    );
    let echo = of(&round, "pod").phases[&Phase::Echo].read().unwrap();
    assert!((1..300_000).contains(&echo.max()), "between two namespaces: {} µs", echo.max());
    let made: u64 = round.targets.iter().map(|target| target.counts.told() + target.counts.open).sum();
    assert_eq!(round.delay.read().unwrap().len(), made);
}

/// Answers every question for addresses with this one: IPv4 alone.
fn name_server(lab: &Lab, address: Ipv4Addr) {
    let socket = lab.inside.run(|| UdpSocket::bind((POD_ADDRESS, 53)).unwrap());
    std::thread::spawn(move || {
        let mut query = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut query) {
            // Its name ends with the first empty label; type and class follow (RFC 1035 §4.1.2).
            let end = 12 + query[12..length].iter().position(|byte| *byte == 0).unwrap() + 5;
            let is_a = query[end - 4..end - 2] == [0, 1];
            let mut answer = query[..end].to_vec();
            answer[2..12].copy_from_slice(&[0x85, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            if is_a {
                answer.extend([0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
                answer.extend(address.octets());
            }
            socket.send_to(&answer, from).unwrap();
        }
    });
}

fn http(name: &str, url: &str, expect: &[u16]) -> Target {
    let (url, dns, expect) = (url.to_owned(), Some(address(POD_ADDRESS)), expect.to_vec());
    target(name, TargetProbe::Http { url, dns, expect, authorities: None })
}

#[test]
fn a_url_is_asked_by_its_name_and_each_phase_has_times() {
    let Some(lab) = Lab::start("meshhttp") else { return };
    name_server(&lab, POD_ADDRESS.parse().unwrap());
    let listener = lab.inside.run(|| TcpListener::bind((POD_ADDRESS, 80)).unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let mut head = [0; 1_024];
            if stream.read(&mut head).unwrap_or(0) == 0 {
                continue;
            }
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok");
        }
    });
    let url = "http://web.shop.svc.cluster.local/healthz";
    let seldom = Target { every: 3, ..http("seldom", url, &[]) };
    assign(&lab, assignment(1, vec![http("web", url, &[200]), http("other", url, &[404]), seldom]));
    let round = until(&lab, "answers", |round| has_told(round, 3, 3));
    let web = of(&round, "web");
    assert_eq!(web.counts.failures(), 0, "{web:?}");
    for phase in [Phase::Lookup, Phase::Connect, Phase::FirstByte, Phase::Total] {
        assert!(web.phases[&phase].read().unwrap().len() >= 3, "{phase:?}: {web:?}");
    }
    assert!(!web.phases.contains_key(&Phase::Tls), "{web:?}");
    let other = of(&round, "other");
    assert_eq!(other.counts.failed.keys().copied().collect::<Vec<_>>(), [FailureClass::BadAnswer], "{other:?}");
    assert!(other.phases[&Phase::Connect].read().unwrap().len() >= 3, "what was got through has its times: {other:?}");
    let (often, seldom) = (web.counts.scheduled, of(&round, "seldom").counts.scheduled);
    assert!(seldom <= often.div_ceil(3) + 1, "{seldom} of {often}");
}

#[test]
fn a_name_that_stands_for_what_may_not_be_probed_is_named() {
    let Some(lab) = Lab::start("meshname") else { return };
    name_server(&lab, Ipv4Addr::new(198, 51, 100, 1));
    let far = || vec![http("far", "http://far.shop.svc.cluster.local/", &[])];
    assign(&lab, assignment(1, far()));
    let round = until(&lab, "an attempt", |round| round.targets.first().is_some_and(|far| far.counts.untried > 0));
    assert_eq!(of(&round, "far").counts.told(), 0, "nothing was sent, so nothing is known: {round:?}");
    let report = look(&lab);
    let [refusal] = &report.refused[..] else { panic!("{report:?}") };
    assert!(refusal.remedy.contains("--probe-allow 198.51.100.1/32"), "{refusal:?}");
    let next = assign(&lab, assignment(2, far()));
    assert_eq!(next.refused, report.refused, "also before the next round has tried");
    let without = assign(&lab, assignment(3, vec![icmp("pod", POD_ADDRESS)]));
    assert_eq!(without.refused, [], "it is not asked for any more");
}

#[test]
fn a_link_that_breaks_is_seen_while_it_is_broken() {
    let Some(lab) = Lab::start("meshlink") else { return };
    assign(&lab, assignment(1, vec![icmp("pod", POD_ADDRESS)]));
    until(&lab, "answers", |round| has_told(round, 1, 3));
    ip(&format!("-n {} link set eth0 down", lab.inside.name));
    let broken = until(&lab, "failures", |round| of(round, "pod").counts.failures() >= 3);
    ip(&format!("-n {} link set eth0 up", lab.inside.name));
    let before = of(&broken, "pod").counts.answered;
    until(&lab, "answers again", |round| of(round, "pod").counts.answered >= before + 3);
}

#[test]
fn an_assignment_that_is_not_renewed_ends_and_what_was_open_is_told() {
    let Some(lab) = Lab::start("meshlease") else { return };
    let short = Assignment { lease_ms: 600, ..assignment(1, vec![icmp("pod", POD_ADDRESS), icmp("silent", SILENT)]) };
    assign(&lab, short.clone());
    let ended = until(&lab, "its end", |round| round.ended && round.targets.iter().all(|t| t.counts.open == 0));
    let scheduled = |round: &RoundReport| round.targets.iter().map(|t| t.counts.scheduled).sum::<u64>();
    assert!(scheduled(&ended) <= 2 * 7, "no more than fit into its lease: {ended:?}");
    assert_eq!(look(&lab).rounds, std::slice::from_ref(&ended), "it stays as it was");
    let started = Instant::now();
    while has_thread(&lab, "mesh") {
        assert!(started.elapsed() < patient(Duration::from_secs(5)), "its thread goes on");
        std::thread::sleep(Duration::from_millis(20));
    }
    // The same generation again begins anew: what ended is not forgotten.
    assign(&lab, short);
    let again = until(&lab, "another round", |round| round.started != ended.started && has_told(round, 2, 1));
    assert_eq!(again.generation, 1);
    assert_eq!(look(&lab).rounds[0], ended);
}

fn has_thread(lab: &Lab, name: &str) -> bool {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", lab.agent.child.id())).unwrap().flatten();
    #[expect(clippy::disallowed_methods, reason = "a test looks at the agent from outside")]
    let mut names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.any(|found| found.trim() == name)
}

#[test]
fn renewing_goes_on_and_another_generation_takes_over() {
    let Some(lab) = Lab::start("meshnext") else { return };
    let first = assignment(1, vec![icmp("pod", POD_ADDRESS)]);
    assign(&lab, first.clone());
    let before = until(&lab, "answers", |round| has_told(round, 1, 2));
    let renewed = assign(&lab, first);
    assert_eq!(renewed.rounds.len(), 1);
    assert_eq!(renewed.rounds[0].started, before.started, "the same round goes on");
    assign(&lab, assignment(2, vec![icmp("node", NODE_ADDRESS)]));
    let second = until(&lab, "the second", |round| round.generation == 2 && has_told(round, 1, 2));
    assert_eq!(second.targets[0].name, "node");
    let rounds = look(&lab).rounds;
    assert_eq!((rounds.len(), rounds[0].generation, rounds[0].ended), (2, 1, true));
    for generation in 3..6 {
        assign(&lab, assignment(generation, vec![icmp("node", NODE_ADDRESS)]));
        until(&lab, "the next", |round| round.generation == generation);
    }
    assert_eq!(look(&lab).rounds.iter().map(|round| round.generation).collect::<Vec<_>>(), [3, 4, 5]);
}

#[test]
fn a_target_that_the_agent_may_not_probe_is_named_and_the_others_are_probed() {
    let Some(lab) = Lab::start("meshelse") else { return };
    let elsewhere = assign(&lab, assignment(1, vec![tcp("far", "198.51.100.1", 80), icmp("pod", POD_ADDRESS)]));
    let [refusal] = &elsewhere.refused[..] else { panic!("{elsewhere:?}") };
    assert_eq!(refusal.name, "far");
    assert!(refusal.why.contains("none of the cluster networks"), "{refusal:?}");
    assert!(refusal.remedy.contains("--probe-allow 198.51.100.1/32"), "{refusal:?}");
    let round = until(&lab, "the other target", |round| has_told(round, 1, 1));
    assert_eq!(round.targets[0].name, "pod");
}

#[test]
fn what_is_over_the_limits_is_refused_in_words_and_changes_nothing() {
    let Some(lab) = Lab::start("meshlimits") else { return };
    let Reading::Absent { .. } = lab.agent.read(&need(MeshRequest::Look { asker: "server".to_owned() })) else {
        panic!("nothing was assigned")
    };
    let refused = |assignment: Assignment| match lab.agent.read(&need(MeshRequest::Assign(assignment))) {
        Reading::Unavailable { gap } => {
            assert_eq!(gap.reason, GapReason::NotAllowed, "{gap:?}");
            gap.why
        }
        other => panic!("{other:?}"),
    };
    let many = (0..97).map(|n| tcp(&format!("t{n}"), POD_ADDRESS, 9443)).collect();
    let why = refused(assignment(1, many));
    assert!(why.contains("97 targets in one assignment, 96 are the limit"), "{why}");
    let fast = (0..16).map(|n| tcp(&format!("t{n}"), POD_ADDRESS, 9443)).collect();
    assert!(refused(assignment(1, fast)).contains("160000 attempts in 1000 s"));
    let of = |asker: &str| Assignment {
        asker: asker.to_owned(),
        ..assignment(1, (0..4).map(|n| icmp(&format!("t{n}"), POD_ADDRESS)).collect())
    };
    seen(&lab, MeshRequest::Assign(of("one")));
    seen(&lab, MeshRequest::Assign(of("two")));
    assert!(refused(of("three")).contains("2 others assign to this agent already"));
    let more = (0..12).map(|n| icmp(&format!("t{n}"), POD_ADDRESS)).collect();
    let why = refused(Assignment { asker: "two".to_owned(), ..assignment(2, more) });
    assert!(why.contains("160000 attempts in 1000 s together with what runs already"), "{why}");
    let Observation::Mesh(report) = lab.agent.seen(&need(MeshRequest::Look { asker: "two".to_owned() })) else {
        panic!()
    };
    assert!(report.rounds.iter().all(|round| round.generation == 1 && !round.ended), "{report:?}");
}
