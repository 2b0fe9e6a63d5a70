//! An agent over its budget gives up details step by step, says so wherever they are missing, and keeps its totals.

#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

mod lab;

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use lab::{Agent, NODE, Namespace, patient};
use netdiag_common::observation::Observation;
use netdiag_common::observation::kfree_skb::Drops;
use netdiag_common::observation::preflight::Check;
use netdiag_common::wire::Report;
use netdiag_common::{GapReason, Need, Reading, Topic, Window};

const TUPLES: &str = "addresses and ports of dropped packets";
const PACKETS: u64 = 500;
/// The agent looks at itself every 10 s, and takes each of two steps after three looks.
const BOTH_STEPS_WITHIN: Duration = Duration::from_mins(2);

#[test]
fn details_go_before_totals() {
    if !lab::can_run() {
        return;
    }
    let node = Namespace::new("budget");
    // Less than the program itself is large.
    let agent = Agent::start(&["--memory-mib", "16", "--host-netns", node.path().to_str().unwrap()]);
    let drops = match agent.read(&drops_of_node()) {
        Reading::Seen { value: Observation::Drops(drops), .. } => drops,
        Reading::Unavailable { gap } => {
            lab::skip(gap.why);
            return;
        }
        other => panic!("{other:?}"),
    };
    assert!(drops.unseen.iter().all(|gap| gap.what != TUPLES), "nothing is given up yet: {:?}", drops.unseen);
    assert!(budget(&agent).ok, "one look takes no step");

    let started = Instant::now();
    while !budget(&agent).lost.contains(TUPLES) {
        assert!(started.elapsed() < patient(BOTH_STEPS_WITHIN), "{:?}", budget(&agent));
        std::thread::sleep(Duration::from_secs(1));
    }
    let check = budget(&agent);
    assert!(!check.ok && check.lost.contains("whole packets") && check.remedy.contains("--memory-mib"), "{check:?}");

    send_to_closed_ports(&node);
    let drops = seen(&agent);
    let gap = drops.unseen.iter().find(|gap| gap.what == TUPLES).unwrap();
    assert_eq!(gap.reason, GapReason::NotAllowed);
    assert!(gap.why.contains("of 16 MiB"), "{gap:?}");
    assert_eq!(drops.accounts.unaccounted(), 0, "{:?}", drops.accounts);
    let ours: Vec<_> = drops.groups.iter().filter(|group| group.reason == "NO_SOCKET").collect();
    assert!(ours.iter().all(|group| group.tuple.is_none()), "{:?}", ours.first());
    assert_eq!(ours.iter().map(|group| group.packets).sum::<u64>(), PACKETS, "{} groups", ours.len());
    assert!(drops.exemplars.is_empty(), "{:?}", drops.exemplars.first());
}

fn drops_of_node() -> Need {
    Need::host(NODE, Topic::Drops).over(Window::TenSeconds)
}

fn seen(agent: &Agent) -> Drops {
    match agent.read(&drops_of_node()) {
        Reading::Seen { value: Observation::Drops(drops), .. } => drops,
        other => panic!("{other:?}"),
    }
}

/// What the agent says about its own budget.
fn budget(agent: &Agent) -> Check {
    let (_, body) = agent.request("GET /v1/status", "").unwrap();
    let mut report: Report = serde_json::from_str(&body).unwrap();
    match report.readings.remove(0).reading {
        Reading::Seen { value: Observation::Preflight(preflight), .. } => {
            preflight.checks.into_iter().find(|check| check.name == "budget").unwrap()
        }
        other => panic!("{other:?}"),
    }
}

fn send_to_closed_ports(node: &Namespace) {
    node.run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        for n in 0..PACKETS {
            let port = 20_000 + u16::try_from(n % 100).unwrap();
            socket.send_to(b"n", ("127.0.0.1", port)).unwrap();
        }
    });
}
