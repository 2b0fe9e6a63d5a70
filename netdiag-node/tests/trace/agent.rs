//! A whole agent: fates and traces over its API, in the node's namespace and in a pod's.

use std::net::UdpSocket;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::forwarding::path::End;
use netdiag_common::forwarding::{RuleKey, Without};
use netdiag_common::observation::fate::{
    Fate, FateInterfaceKey, FateOrigin, FateRequest, FateTransport, LeftOut, LeftOutRole,
};
use netdiag_common::observation::trace::{TraceRecord, TraceRequest, TraceTuple};
use netdiag_common::observation::{Observation, Owner, Protocol};
use netdiag_common::wire::{Ask, WIRE_MAX};
use netdiag_common::{Gap, GapReason, Need, Reading, Topic};
use netdiag_node::host::{ReadError, trace};

use crate::lab::pair::{Lab, NODE_ADDRESS, POD_ADDRESS};
use crate::lab::{Agent, NODE, UID, patient};

/// The agent of the lab may not trace; this one may.
fn allowed(lab: &Lab) -> Agent {
    let root = format!("/{}", lab.root);
    Agent::start(&["--host-netns", lab.node.path().to_str().unwrap(), "--cgroup-root", &root, "--allow-trace"])
}

fn fate(agent: &Agent, need: &Need) -> Fate {
    match agent.seen(need) {
        Observation::Fate(fate) => Arc::unwrap_or_clone(fate),
        other => panic!("{other:?}"),
    }
}

fn syn(origin: FateOrigin, source: Option<&str>, destination: &str, destination_port: u16) -> FateRequest {
    let source = source.map(|source| source.parse().unwrap());
    let transport = FateTransport::Tcp { source_port: None, destination_port: Some(destination_port), flags: 2 };
    FateRequest::new(origin, source, destination.parse().unwrap(), transport)
}

fn to_node(seconds: u8, packets: u8) -> TraceRequest {
    let tuple = TraceTuple {
        protocol: Protocol::Udp,
        source: POD_ADDRESS.parse().unwrap(),
        destination: NODE_ADDRESS.parse().unwrap(),
        source_port: None,
        destination_port: Some(9),
    };
    TraceRequest {
        tuple,
        reply: None,
        alternatives: Vec::new(),
        interface: None,
        seconds,
        packets,
        asked_by: Some("the test".into()),
    }
}

fn refused(agent: &Agent, need: &Need) -> Gap {
    match agent.read(need) {
        Reading::Unavailable { gap } => gap,
        other => panic!("{other:?}"),
    }
}

/// Whether this machine can arm a trace; says why not.
fn can_trace(lab: &Lab) -> bool {
    if Command::new("nft").arg("--version").output().is_err() {
        crate::lab::skip("cannot run nft");
        return false;
    }
    match lab.inside.run(|| trace::arm(&to_node(1, 1)).map(|_| ())) {
        Err(ReadError::Unsupported { feature }) => {
            crate::lab::skip(format!("this kernel has no {feature}"));
            false
        }
        armed => armed.map(|()| true).unwrap(),
    }
}

/// Tables inside the pod.
fn tables(lab: &Lab) -> String {
    let output = lab.inside.run(|| Command::new("nft").args(["list", "tables"]).output().unwrap());
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn until(what: &str, lab: &Lab, armed: bool) {
    let started = Instant::now();
    while tables(lab).contains("netdiag-trace") != armed {
        assert!(started.elapsed() < patient(Duration::from_secs(8)), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn the_way_goes_on_in_the_next_namespace() {
    let Some(lab) = Lab::start("fate") else { return };
    if Command::new("nft").arg("--version").output().is_err() {
        return crate::lab::skip("cannot run nft");
    }
    lab.node.sh(
        "nft 'table inet t { chain in { type filter hook input priority 0; tcp dport 443 counter reject comment \"closed\"; }; }'",
    );
    let need = Need::pod(NODE, UID, Topic::Fate(syn(FateOrigin::Sent, None, NODE_ADDRESS, 443)));
    let inside = fate(&lab.agent, &need);
    assert_eq!(inside.packet.source().to_string(), POD_ADDRESS);
    let [path] = &inside.outcome.paths[..] else { panic!("{inside:?}") };
    let End::Sent { interface, .. } = path.end else { panic!("{:?}", path.end) };
    let eth0 = inside.interfaces.iter().find(|found| found.index == interface).unwrap();
    let peer = eth0.peer.as_ref().unwrap();
    assert_eq!((&*eth0.name, &*eth0.kind, &peer.owner), ("eth0", "veth", &Some(Owner::Host)));

    let origin = FateOrigin::Received(FateInterfaceKey::Index(peer.index));
    let need = Need::host(NODE, Topic::Fate(syn(origin, Some(POD_ADDRESS), NODE_ADDRESS, 443)));
    let outside = fate(&lab.agent, &need);
    assert!(outside.outcome.paths.iter().all(|path| matches!(path.end, End::Rejected { .. })), "{outside:?}");
    let rule = outside.rules.iter().find(|rule| rule.comment.as_deref() == Some("closed")).unwrap();
    assert!(rule.text.contains("tcp dport 443") && rule.counter.is_some(), "{}", rule.text);
    let cable = outside.interfaces.iter().find(|found| found.name == "toPod").unwrap();
    assert_eq!(cable.peer.as_ref().unwrap().owner, Some(Owner::Pod { uid: UID.to_owned() }));

    let origin = FateOrigin::Received(FateInterfaceKey::Name("eth9".into()));
    let need = Need::host(NODE, Topic::Fate(syn(origin, Some(POD_ADDRESS), NODE_ADDRESS, 443)));
    assert_eq!(refused(&lab.agent, &need).why, "interface eth9 is gone");
}

#[test]
fn without_the_rule_that_drops_it_a_packet_is_delivered_and_the_rule_stays() {
    let Some(lab) = Lab::start("whatif") else { return };
    if Command::new("nft").arg("--version").output().is_err() {
        return crate::lab::skip("cannot run nft");
    }
    lab.node.sh("nft 'table inet t { chain in { type filter hook input priority 0; \
         tcp dport 443 counter comment \"counted\"; \
         tcp dport 443 counter drop comment \"closed\"; tcp dport 444 drop; }; }'");
    let ask = |port: u16, without: Without| {
        let origin = FateOrigin::Received(FateInterfaceKey::Name("toPod".into()));
        let request = FateRequest { without, ..syn(origin, Some(POD_ADDRESS), NODE_ADDRESS, port) };
        fate(&lab.agent, &Need::host(NODE, Topic::Fate(request)))
    };
    let dropping = |port: u16| {
        let fate = ask(port, Without::new());
        let End::Dropped { by } = &fate.outcome.paths[0].end else { panic!("{:?}", fate.outcome) };
        RuleKey { chain: by.chain.clone().unwrap(), handle: by.handle.unwrap() }
    };
    let (closed, other) = (dropping(443), dropping(444));
    let absent = RuleKey { handle: 9_999, ..closed.clone() };
    let rules = ask(443, Without::new()).rules;
    let counted = rules.iter().find(|rule| rule.comment.as_deref() == Some("counted")).unwrap();
    let counted = RuleKey { handle: counted.handle, ..closed.clone() };
    let without = Without::from([counted.clone(), closed.clone(), other.clone(), absent.clone()]);
    let free = ask(443, without);
    assert!(free.outcome.paths.iter().all(|path| path.end == End::Delivered), "{:?}", free.outcome);
    let role = |rule, role| LeftOut { rule, role };
    let roles = [
        role(counted, LeftOutRole::MetInVain),
        role(closed.clone(), LeftOutRole::Met),
        role(other, LeftOutRole::NotMet),
        role(absent, LeftOutRole::Absent),
    ];
    assert_eq!(free.left_out, roles);
    let words = free.rules.iter().find(|rule| rule.handle == closed.handle).unwrap();
    assert!(words.text.contains("tcp dport 443") && words.text.contains("drop"), "{}", words.text);
    assert_eq!(words.counter.unwrap().packets, 0);
    assert_eq!(dropping(443), closed);

    let many = (1..=17).map(|handle| RuleKey { handle, ..closed.clone() }).collect();
    let origin = FateOrigin::Received(FateInterfaceKey::Name("toPod".into()));
    let request = FateRequest { without: many, ..syn(origin, Some(POD_ADDRESS), NODE_ADDRESS, 443) };
    let gap = refused(&lab.agent, &Need::host(NODE, Topic::Fate(request)));
    assert!(gap.why.contains("17 of them"), "{}", gap.why);
}

#[test]
fn a_trace_needs_the_operators_word_and_keeps_limits() {
    let Some(lab) = Lab::start("refuse") else { return };
    let gap = refused(&lab.agent, &Need::pod(NODE, UID, Topic::Trace(to_node(1, 1))));
    assert_eq!(gap.reason, GapReason::NotAllowed);
    assert!(gap.remedy.contains("--allow-trace"), "{}", gap.remedy);
    let gap = refused(&allowed(&lab), &Need::pod(NODE, UID, Topic::Trace(to_node(31, 1))));
    assert!(gap.why.contains("31 seconds"), "{}", gap.why);
}

#[test]
fn a_trace_is_answered_from_the_pods_namespace() {
    let Some(lab) = Lab::start("answer") else { return };
    if !can_trace(&lab) {
        return;
    }
    let agent = allowed(&lab);
    lab.inside.sh("nft 'table ip t { chain out { type filter hook output priority 0; udp dport 9 counter; }; }'");
    let need = Need::pod(NODE, UID, Topic::Trace(to_node(8, 1)));
    let record: TraceRecord = std::thread::scope(|scope| {
        let answer = scope.spawn(|| agent.read(&need));
        until("arming", &lab, true);
        // One for each namespace.
        let second = refused(&agent, &need);
        assert!(second.why.contains("another trace"), "{}", second.why);
        lab.inside.run(|| UdpSocket::bind("0.0.0.0:0").unwrap().send_to(b"x", (NODE_ADDRESS, 9)).unwrap());
        match answer.join().unwrap() {
            Reading::Seen { value: Observation::Trace(record), .. } => record,
            other => panic!("{other:?}"),
        }
    });
    let [packet] = &record.packets[..] else { panic!("{record:?}") };
    assert_eq!((&*packet.events[0].table, &*packet.events[0].chain), ("t", "out"));
    let took = record.disarmed.duration_since(record.armed).as_secs();
    assert!(took < 8, "it went on for {took} s after its last packet");
    until("disarming", &lab, false);
}

#[test]
fn a_trace_ends_with_its_request_and_with_its_agent() {
    let Some(lab) = Lab::start("hangup") else { return };
    if !can_trace(&lab) {
        return;
    }
    let mut agent = allowed(&lab);
    let need = serde_json::to_value(Need::pod(NODE, UID, Topic::Trace(to_node(30, 1)))).unwrap();
    let ask = Ask { wire: WIRE_MAX, needs: vec![need], budget_ms: 35_000 };
    let body = serde_json::to_string(&ask).unwrap();
    agent.hang_up_after("POST /v1/readings", &body, || until("arming", &lab, true));
    until("disarming by a lost client", &lab, false);

    std::thread::scope(|scope| {
        let agent = &mut agent;
        let pid = agent.pid();
        let asked = scope.spawn(|| agent.request("POST /v1/readings", &body).is_err());
        until("arming again", &lab, true);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        until("disarming by the kernel", &lab, false);
        assert!(asked.join().unwrap());
    });
}
