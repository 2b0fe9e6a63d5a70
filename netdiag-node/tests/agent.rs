//! The agent as its server meets it: whom it lets in, what it refuses, and that nothing of it remains.

mod lab;

use std::net::TcpStream;
use std::time::{Duration, Instant};

use lab::{Agent, Authority, NODE};
use netdiag_common::observation::Observation;
use netdiag_common::observation::probe::ProbeRequest;
use netdiag_common::wire::{AGENT_TLS_NAME, MAX_NEEDS, Refusal, Report, SERVER_TLS_NAME};
use netdiag_common::{GapReason, Need, Reading, Topic};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

#[test]
fn server_gets_answers_in_the_order_of_its_needs() {
    let agent = Agent::start(&[]);
    let needs = [Topic::Network, Topic::Sysctls, Topic::Listeners].map(|topic| Need::host(NODE, topic));
    let raw = needs.iter().map(|need| serde_json::to_value(need).unwrap()).collect();
    let report = agent.report(raw);
    assert_eq!((report.node.as_str(), report.sequence), (NODE, 0));
    assert!(!report.boot_id.is_empty() && report.boottime_ns > 0);
    let again = agent.report(Vec::new());
    assert_eq!((again.instance.as_str(), again.sequence), (report.instance.as_str(), 1));
    let other = Agent::start(&[]).report(Vec::new());
    assert!(!other.instance.is_empty() && other.instance != report.instance, "each start has its own instance");
    for (need, answer) in needs.iter().zip(&report.readings) {
        assert_eq!(serde_json::to_value(need).unwrap(), answer.need);
        assert!(matches!(answer.reading, Reading::Seen { .. }), "{answer:?}");
    }
}

#[test]
fn status_tells_memory_and_certificate() {
    let agent = Agent::start(&[]);
    let (status, body) = agent.request("GET /v1/status", "").unwrap();
    assert_eq!(status, 200);
    let report: Report = serde_json::from_str(&body).unwrap();
    let Reading::Seen { value: Observation::Preflight(preflight), .. } = &report.readings[0].reading else {
        panic!("{body}")
    };
    assert!(preflight.certificate_expires.is_some());
    // Of a debug build, whose code alone is 15 MiB more than what users run; that one's 60 MiB are a benchmark's matter.
    assert!((1_000_000..80 * 1024 * 1024).contains(&preflight.resident_bytes), "{}", preflight.resident_bytes);
    assert!(preflight.checks.iter().any(|check| check.name == "capability NET_ADMIN"));
}

#[test]
fn other_names_and_other_authorities_are_kept_out() {
    let agent = Agent::start(&[]);
    for (client, why) in [
        (agent.authority.leaf(AGENT_TLS_NAME), "another agent"),
        (agent.authority.leaf("netdiag-server.evil"), "a longer name"),
        (Authority::new().leaf(SERVER_TLS_NAME), "another CA"),
    ] {
        assert!(agent.request_as(&client, "GET /healthz", "").is_err(), "{why} was let in");
    }
    assert_eq!(agent.request("GET /healthz", "").unwrap(), (200, "ok".to_owned()));
}

#[test]
fn topic_of_a_newer_server_costs_one_gap() {
    let agent = Agent::start(&[]);
    let newer = json!({"node": NODE, "netns": "host", "topic": {"packet_trace": {"flow": 1}}});
    let known = serde_json::to_value(Need::host(NODE, Topic::Sysctls)).unwrap();
    let report = agent.report(vec![newer.clone(), known]);
    assert_eq!(report.readings[0].need, newer);
    let Reading::Unavailable { gap } = &report.readings[0].reading else { panic!("{report:?}") };
    assert_eq!(gap.reason, GapReason::WireVersion);
    assert!(matches!(report.readings[1].reading, Reading::Seen { .. }));
}

#[test]
fn what_is_over_a_limit_is_refused_in_words() {
    let agent = Agent::start(&[]);
    let refused = |body: &str| -> (u16, Refusal) {
        let (status, text) = agent.request("POST /v1/readings", body).unwrap();
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    };
    let needs = vec![json!({}); MAX_NEEDS + 1];
    let (status, refusal) = refused(&json!({"wire": 1, "budget_ms": 10, "needs": needs}).to_string());
    assert_eq!(status, 400);
    assert!(refusal.error.contains("257 needs"), "{}", refusal.error);
    let (status, refusal) = refused(&json!({"wire": 99}).to_string());
    assert_eq!((status, refusal.wire_max), (400, 1));
    assert!(refusal.error.contains("version 99"), "{}", refusal.error);
    let (status, refusal) = refused(&" ".repeat(300 * 1024));
    assert_eq!(status, 413);
    assert!(refusal.error.contains("262144 bytes"), "{}", refusal.error);
}

#[test]
fn questions_for_others_are_told_apart() {
    let agent = Agent::start(&[]);
    let why = |need: &Need| match agent.read(need) {
        Reading::Unavailable { gap } => (gap.reason, gap.why),
        other => panic!("{other:?}"),
    };
    assert_eq!(why(&Need::host("n2", Topic::Pods)).1, "this agent runs on node n1 and was asked about node n2");
    let missing = why(&Need::pod(NODE, "0f6d6c5e-2a5f-4f43-9b0c-1b2f4a1d9e77", Topic::Network));
    // Without root a pod that is not there cannot be told from one that may not be seen, when there are any.
    if nix::unistd::geteuid().is_root() {
        assert_eq!(missing.0, GapReason::Gone);
    }
    assert_eq!(why(&Need::pod(NODE, "u", Topic::Drops)).0, GapReason::NotAllowed);
}

#[test]
fn no_time_is_a_gap_and_not_an_error() {
    let agent = Agent::start(&[]);
    let need = serde_json::to_value(Need::host(NODE, Topic::Listeners)).unwrap();
    let body = json!({"wire": 1, "budget_ms": 0, "needs": [need]}).to_string();
    let (status, text) = agent.request("POST /v1/readings", &body).unwrap();
    assert_eq!(status, 200);
    let report: Report = serde_json::from_str(&text).unwrap();
    let Reading::Unavailable { gap } = &report.readings[0].reading else { panic!("{text}") };
    assert!(gap.why.contains("0 ms"), "{}", gap.why);
}

#[test]
fn request_over_the_limit_is_shed_and_counted() {
    let agent = Agent::start(&[]);
    // A listener whose queue is full: each probe waits for its whole timeout.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    socket.listen(0).unwrap();
    let silent = socket.local_addr().unwrap().as_socket().unwrap();
    let _fills_the_queue = TcpStream::connect(silent).unwrap();
    let address = silent.ip();
    let probe =
        ProbeRequest::TcpConnect { address, port: silent.port(), timeout_ms: 3_000, attempts: 1, source_port: None };
    let need = Need::host(NODE, Topic::Probe(probe));
    let body = json!({"wire": 1, "budget_ms": 5_000, "needs": [need]}).to_string();
    let statuses: Vec<u16> = std::thread::scope(|scope| {
        let requests: Vec<_> =
            (0..12).map(|_| scope.spawn(|| agent.request("POST /v1/readings", &body).unwrap().0)).collect();
        requests.into_iter().map(|request| request.join().unwrap()).collect()
    });
    let shed = statuses.iter().filter(|status| **status == 503).count();
    assert!((1..=4).contains(&shed), "{statuses:?}");
    let (_, body) = agent.request("GET /v1/status", "").unwrap();
    assert!(body.contains(&format!("\"shed_requests\":{shed}")), "{body}");
}

#[test]
fn renewed_certificates_are_used_without_a_restart() {
    let agent = Agent::start(&[]);
    let other = Authority::new();
    let client = other.leaf(SERVER_TLS_NAME);
    assert!(agent.request_as(&client, "GET /healthz", "").is_err());
    // The agent's own leaf stays, so that this client still trusts it; whom the agent trusts changes.
    std::fs::write(agent.folder.path().join("ca.crt"), &other.pem).unwrap();
    let started = Instant::now();
    while agent.request_as(&client, "GET /healthz", "").is_err() {
        assert!(started.elapsed() < lab::patient(Duration::from_secs(20)), "the new CA was never used");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn broken_certificates_name_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    authority.write(folder.path(), &authority.leaf(AGENT_TLS_NAME));
    std::fs::write(folder.path().join("node.key"), "not a key").unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_netdiag-node"))
        .args(["--node-name", NODE, "--listen", "127.0.0.1:0", "--tls-dir"])
        .arg(folder.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(text.contains("node.key holds no usable private key"), "{text}");
}

#[test]
fn sigterm_ends_it_in_order() {
    let mut agent = Agent::start(&[]);
    agent.request("GET /healthz", "").unwrap();
    kill(agent.pid(), Signal::SIGTERM).unwrap();
    let status = agent.child.wait().unwrap();
    assert!(status.success(), "{status}");
    assert!(TcpStream::connect(agent.address).is_err());
}
