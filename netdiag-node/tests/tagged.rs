//! A whole agent: tags over its API, in the node's namespace and in its pod's, and what is left of them.
#![expect(clippy::unwrap_used, reason = "the helpers of these tests too")]

mod lab;

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use netdiag_common::observation::tag::{TagPoint, TagRequest, TagTuple, Tagged};
use netdiag_common::observation::{Observation, Owner, Protocol};
use netdiag_common::wire::{Ask, WIRE_MAX};
use netdiag_common::{Gap, GapReason, Need, Reading, Topic};

use lab::pair::{Lab, NODE_ADDRESS, POD_ADDRESS};
use lab::{Agent, NODE, UID, ids_in_kernel, patient, skip};

const FROM: u16 = 43_000;

fn to_node(seconds: u8) -> TagRequest {
    let tuple = TagTuple {
        protocol: Protocol::Udp,
        source: Some(POD_ADDRESS.parse().unwrap()),
        source_port: Some(FROM),
        destination: NODE_ADDRESS.parse().unwrap(),
        destination_port: Some(9),
    };
    TagRequest { tuple, alternatives: Vec::new(), seconds, asked_by: Some("the test".into()) }
}

fn need(request: TagRequest) -> Need {
    Need::host(NODE, Topic::Tagged(request))
}

fn refused(agent: &Agent, need: &Need) -> Gap {
    match agent.read(need) {
        Reading::Unavailable { gap } => gap,
        other => panic!("{other:?}"),
    }
}

fn armed(agent: &Agent) -> Vec<TagTuple> {
    match agent.seen(&Need::host(NODE, Topic::Tags)) {
        Observation::Tags(tags) => tags,
        other => panic!("{other:?}"),
    }
}

fn until(what: &str, holds: impl Fn() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < patient(Duration::from_secs(20)), "{what} did not happen");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What the agent has attached.
fn links(agent: &Agent) -> BTreeSet<u32> {
    ids_in_kernel(agent.child.id(), "link_id:")
}

/// Whether this machine can follow packets; says why not.
fn can_follow(lab: &Lab) -> bool {
    let Observation::Preflight(preflight) = lab.agent.seen(&Need::host(NODE, Topic::Preflight)) else { panic!() };
    let check = preflight.checks.iter().find(|check| check.name == "program tag").unwrap();
    if !check.ok {
        skip(&check.detail);
    }
    check.ok
}

#[test]
fn a_packet_of_a_pod_is_followed_to_its_drop_on_the_node() {
    let Some(lab) = Lab::start("follow") else { return };
    if !can_follow(&lab) {
        return;
    }
    lab.node.sh("nft 'table inet t { chain c { type filter hook input priority 0; udp dport 9 drop; }; }'");
    let before = links(&lab.agent);
    let need = need(to_node(2));
    let tagged: Tagged = std::thread::scope(|scope| {
        let answer = scope.spawn(|| lab.agent.read(&need));
        until("arming", || armed(&lab.agent) == [to_node(2).tuple]);
        if !before.is_empty() {
            assert!(links(&lab.agent).len() > before.len());
        }
        let second = refused(&lab.agent, &need);
        assert!(second.why.contains("another tag follows"), "{}", second.why);
        lab.inside.run(|| UdpSocket::bind((POD_ADDRESS, FROM)).unwrap().send_to(b"x", (NODE_ADDRESS, 9)).unwrap());
        match answer.join().unwrap() {
            Reading::Seen { value: Observation::Tagged(tagged), .. } => tagged,
            other => panic!("{other:?}"),
        }
    });
    let pod = Owner::Pod { uid: UID.to_owned() };
    let seen: Vec<_> = tagged.events.iter().map(|event| (&event.netns, event.interface.as_deref())).collect();
    assert_eq!(seen, [(&pod, Some("eth0")), (&Owner::Host, Some("toPod")), (&Owner::Host, Some("toPod"))]);
    assert!(matches!(tagged.events[2].point, TagPoint::Dropped { .. }), "{tagged:#?}");
    assert_eq!((tagged.accounts.kept, tagged.accounts.unaccounted()), (3, 0), "{:?}", tagged.accounts);
    assert_eq!(armed(&lab.agent), []);
    assert_eq!(links(&lab.agent), before, "nothing runs when nobody follows any packet");
}

#[test]
fn limits_are_the_agents() {
    let Some(lab) = Lab::start("limits") else { return };
    let gap = refused(&lab.agent, &need(to_node(31)));
    assert_eq!((gap.reason, gap.why.contains("31 seconds")), (GapReason::NotAllowed, true), "{gap:?}");
    let of_pod = refused(&lab.agent, &Need::pod(NODE, UID, Topic::Tagged(to_node(1))));
    assert!(of_pod.why.contains("for the node only"), "{}", of_pod.why);
}

#[test]
fn a_tag_ends_with_its_request() {
    let Some(lab) = Lab::start("hangs-up") else { return };
    if !can_follow(&lab) {
        return;
    }
    let before = links(&lab.agent);
    let ask = Ask { wire: WIRE_MAX, needs: vec![serde_json::to_value(need(to_node(30))).unwrap()], budget_ms: 35_000 };
    let body = serde_json::to_string(&ask).unwrap();
    lab.agent.hang_up_after("POST /v1/readings", &body, || until("arming", || !armed(&lab.agent).is_empty()));
    until("disarming by a lost client", || armed(&lab.agent).is_empty() && links(&lab.agent) == before);
}
