//! Series over an agent's API: from a pod's namespace, and from one that ends meanwhile.

use std::net::TcpListener;

use netdiag_common::observation::Observation;
use netdiag_common::observation::series::transport::TcpClose;
use netdiag_common::observation::series::{FailureClass, Probe, SeriesRequest, SeriesResult, TcpProbe};
use netdiag_common::{GapReason, Need, Reading, Topic};

use crate::ask::{request, tcp};
use crate::lab::pair::{Lab, NODE_ADDRESS, POD_ADDRESS};
use crate::lab::{NODE, UID};
use crate::support::eventually;

fn result(observation: Observation) -> SeriesResult {
    match observation {
        Observation::Series(result) => result,
        other => panic!("{other:?}"),
    }
}

fn series(request: SeriesRequest) -> Topic {
    Topic::Series(Box::new(request))
}

/// To a port of the node that nobody has.
fn to_node() -> SeriesRequest {
    SeriesRequest {
        asked_by: Some("the test\n".to_owned()),
        ..request(tcp(&format!("{NODE_ADDRESS}:9"), TcpClose::Orderly))
    }
}

#[test]
fn series_is_sent_from_the_pod() {
    let Some(lab) = Lab::start("series") else { return };
    let found = result(lab.agent.seen(&Need::pod(NODE, UID, series(to_node()))));
    let attempt = &found.attempts[0];
    assert_eq!(attempt.source.unwrap().ip().to_string(), POD_ADDRESS);
    assert_eq!(attempt.failure.as_ref().unwrap().class, FailureClass::Refused, "{attempt:?}");
    // The pod's own loopback, where its process listens.
    let own = request(tcp("127.0.0.1:8080", TcpClose::Reset));
    assert_eq!(result(lab.agent.seen(&Need::pod(NODE, UID, series(own.clone())))).succeeded, 1);
    let of_node = result(lab.agent.seen(&Need::host(NODE, series(own))));
    assert_eq!(of_node.failed, 1, "nobody listens there in the node's namespace: {of_node:?}");
}

#[test]
fn series_is_one_line_of_the_log_with_who_asked() {
    let Some(lab) = Lab::start("log") else { return };
    result(lab.agent.seen(&Need::pod(NODE, UID, series(SeriesRequest { count: 3, ..to_node() }))));
    let lines = eventually("the line", || Some(lab.agent.logged("series of probes")).filter(|lines| !lines.is_empty()));
    assert_eq!(lines.len(), 1, "{lines:?}");
    let to = format!("to=\"{NODE_ADDRESS}:9\"");
    for words in ["kind=\"tcp\"", "count=3", &to, r#"asked_by="the test\n""#] {
        assert!(lines[0].contains(words), "{words}: {lines:?}");
    }
}

/// Of an agent, because this process forks for other tests: the child would hold a connection that is closed here for a moment.
#[test]
fn one_source_port_serves_every_attempt() {
    let Some(lab) = Lab::start("port") else { return };
    let listens = ["127.0.0.1:8081", "[::1]:8081"];
    let _listeners = lab.inside.run(|| listens.map(|address| TcpListener::bind(address).unwrap()));
    for to in listens {
        let to = to.parse().unwrap();
        let probe = Probe::Tcp(TcpProbe { to, source_port: Some(40_404), close: TcpClose::Orderly });
        let asked = SeriesRequest { count: 5, ..request(probe) };
        let found = result(lab.agent.seen(&Need::pod(NODE, UID, series(asked))));
        assert_eq!(found.succeeded, 5, "{found:?}");
        assert!(found.attempts.iter().all(|attempt| attempt.source.unwrap().port() == 40_404));
    }
}

#[test]
fn what_cannot_be_asked_is_a_gap_with_a_remedy() {
    let Some(lab) = Lab::start("refused") else { return };
    let gap = |need: &Need| match lab.agent.read(need) {
        Reading::Unavailable { gap } => gap,
        other => panic!("{other:?}"),
    };
    let gone = gap(&Need::pod(NODE, "another-uid", series(to_node())));
    assert_eq!(gone.reason, GapReason::Gone, "{gone:?}");
    let outside = gap(&Need::pod(NODE, UID, series(request(tcp("203.0.113.1:80", TcpClose::Orderly)))));
    assert_eq!(outside.reason, GapReason::NotAllowed);
    assert!(outside.remedy.contains("NETDIAG_PROBE_ALLOW=203.0.113.1/32"), "{}", outside.remedy);
}

#[test]
fn pod_that_ends_meanwhile_is_told() {
    let Some(mut lab) = Lab::start("ends") else { return };
    lab.node.sh("nft 'add table inet seen; add chain inet seen input { type filter hook input priority 0; }; add rule inet seen input tcp dport 9 counter'");
    let need = Need::pod(NODE, UID, series(SeriesRequest { count: 30, interval_us: 100_000, ..to_node() }));
    let found = std::thread::scope(|scope| {
        let (agent, child, node) = (&lab.agent, &mut lab.pod.child, &lab.node);
        let asked = scope.spawn(move || result(agent.seen(&need)));
        eventually("the first attempt", || {
            let rules = node.run(|| std::process::Command::new("nft").args(["list", "ruleset"]).output().unwrap());
            (!String::from_utf8_lossy(&rules.stdout).contains("packets 0 ")).then_some(())
        });
        child.kill().unwrap();
        child.wait().unwrap();
        asked.join().unwrap()
    });
    assert_eq!(found.asked, found.made + found.untried);
    assert!(found.unseen.iter().any(|unseen| unseen.contains("ended while the series ran")), "{:?}", found.unseen);
}
