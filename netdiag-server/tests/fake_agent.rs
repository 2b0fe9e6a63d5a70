//! Agents that are older, newer, slow, strange or not there: each is one node's gap with its remedy.

mod lab;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use lab::{Bundle, code, json, netdiag, not_seen};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use serde_json::{Value, json};

/// Requests that [`Fake::HangsUp`] hung up on.
static HUNG_UP: AtomicU32 = AtomicU32::new(0);

/// How this agent misbehaves.
#[derive(Clone, Copy)]
enum Fake {
    /// Refuses our version and says its own.
    Newer,
    /// Answers with a version that we no longer understand.
    Older,
    Hangs,
    /// Answers every need with a list of pods, whatever was asked.
    OneTopic,
    /// A report without any reading.
    Silent,
    /// As [`Fake::Silent`], and hangs up on the second request of each connection.
    HangsUp,
    /// 503.
    Busy,
}

/// A world whose node n1 is at this address, with certificates for it and for us.
struct Lab {
    bundle: Bundle,
    tls: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        let bundle = Bundle::new();
        bundle.change("address: 172.30.0.11", "address: 127.0.0.1");
        // Nothing listens there.
        bundle.change("address: 172.30.0.12", "address: 127.0.0.2");
        Self { bundle, tls: certificates() }
    }

    fn gaps(&self, port: u16) -> Vec<String> {
        let (tls, port) = (self.tls.path().to_str().expect("UTF-8"), port.to_string());
        let to = ["--to", "service/shop/web:80", "--from", "node/n1", "-o", "json"];
        let output = self.bundle.diagnose(&[&to[..], &["--tls-dir", tls, "--agent-port", &port]].concat());
        assert_eq!(code(&output), 3, "{output:?}");
        not_seen(&json(&output))
    }
}

fn certificates() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    let output = netdiag(&["certs", "--out", directory.path().to_str().expect("UTF-8")]);
    assert_eq!(code(&output), 0, "{output:?}");
    directory
}

/// As [`certificates`], but the agent's leaf has this name.
fn certificates_of(agent: &str) -> tempfile::TempDir {
    use rcgen::{CertificateParams, IsCa, Issuer, KeyPair};
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: String| std::fs::write(directory.path().join(name), text).expect("a file");
    let mut authority = CertificateParams::new(Vec::new()).expect("parameters");
    authority.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let key = KeyPair::generate().expect("a key");
    write("ca.crt", authority.self_signed(&key).expect("an authority").pem());
    let issuer = Issuer::new(authority, key);
    for (file, name) in [("node", agent), ("server", "netdiag-server")] {
        let leaf = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let key = KeyPair::generate().expect("a key");
        write(&format!("{file}.crt"), leaf.signed_by(&key, &issuer).expect("a leaf").pem());
        write(&format!("{file}.key"), key.serialize_pem());
    }
    directory
}

/// Starts an agent with the leaf of this name; returns its port.
fn fake_agent(tls: &Path, leaf: &str, fake: Fake) -> u16 {
    let pem = |name: String| CertificateDer::from_pem_file(tls.join(name)).expect("a certificate");
    let mut roots = RootCertStore::empty();
    roots.add(pem("ca.crt".to_owned())).expect("an authority");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let clients =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().expect("a verifier");
    let key = PrivateKeyDer::from_pem_file(tls.join(format!("{leaf}.key"))).expect("a key");
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_client_cert_verifier(clients)
        .with_single_cert(vec![pem(format!("{leaf}.crt"))], key)
        .expect("a configuration");
    let (config, listener) = (Arc::new(config), TcpListener::bind(("127.0.0.1", 0)).expect("a port"));
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let config = config.clone();
            std::thread::spawn(move || serve(stream, config, fake));
        }
    });
    port
}

fn serve(stream: TcpStream, config: Arc<ServerConfig>, fake: Fake) {
    let connection = ServerConnection::new(config).expect("a connection");
    let mut reader = BufReader::new(StreamOwned::new(connection, stream));
    for number in 0.. {
        let mut length = 0;
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        while line.trim() != "" {
            if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().expect("a length");
            }
            line.clear();
            if reader.read_line(&mut line).is_err() {
                return;
            }
        }
        let mut body = vec![0; length];
        if reader.read_exact(&mut body).is_err() {
            return;
        }
        if matches!(fake, Fake::Hangs) {
            let _ = reader.read(&mut [0]);
            return;
        }
        if matches!(fake, Fake::HangsUp) && number > 0 {
            HUNG_UP.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let (status, answer) = answer(&serde_json::from_slice(&body).expect("an ask"), fake);
        let text = answer.to_string();
        let head =
            format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
        if reader.get_mut().write_all((head + &text).as_bytes()).is_err() {
            return;
        }
    }
}

fn answer(ask: &Value, fake: Fake) -> (u16, Value) {
    let refusal = |min: u32, max: u32| json!({"error": "no", "wire_min": min, "wire_max": max});
    let report = |wire: u32, readings: Value| {
        json!({"wire": wire, "agent": "0.0.1", "node": "n1", "boot_id": "b", "at": "2026-01-01T00:00:00Z", "boottime_ns": 1,
               "sequence": 1, "readings": readings})
    };
    match fake {
        Fake::Newer => (400, refusal(7, 9)),
        Fake::Older => (200, report(0, json!([]))),
        Fake::Busy => (503, refusal(1, 1)),
        Fake::Silent | Fake::HangsUp => (200, report(1, json!([]))),
        Fake::OneTopic | Fake::Hangs => {
            let seen = json!({"state": "seen", "at": "2026-01-01T00:00:00Z", "value": {"topic": "pods", "value": []}});
            let needs = ask["needs"].as_array().cloned().unwrap_or_default();
            let readings = needs.into_iter().map(|need| json!({"need": need, "reading": seen})).collect();
            (200, report(1, Value::Array(readings)))
        }
    }
}

/// One gap has all these words.
fn check(gaps: &[String], words: &[&str]) {
    assert!(gaps.iter().any(|gap| words.iter().all(|word| gap.contains(word))), "{words:?} in {gaps:#?}");
}

#[test]
fn an_agent_of_a_newer_wire_version_says_both_ranges() {
    let lab = Lab::new();
    let port = fake_agent(lab.tls.path(), "node", Fake::Newer);
    check(&lab.gaps(port), &["node n1 speaks wire versions 7 to 9, this netdiag 1 to 1", "upgrade netdiag"]);
}

#[test]
fn an_agent_of_an_older_wire_version_is_to_be_upgraded() {
    let lab = Lab::new();
    let port = fake_agent(lab.tls.path(), "node", Fake::Older);
    check(&lab.gaps(port), &["node n1 speaks wire versions 0 to 0", "upgrade netdiag-node on that node"]);
}

#[test]
fn an_agent_that_hangs_costs_seconds() {
    let lab = Lab::new();
    let port = fake_agent(lab.tls.path(), "node", Fake::Hangs);
    let started = Instant::now();
    check(&lab.gaps(port), &["the agent of node n1", "did not answer within"]);
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
}

#[test]
fn an_agent_with_another_name_in_its_certificate_is_not_believed() {
    let lab = Lab { tls: certificates_of("somebody-else"), ..Lab::new() };
    let port = fake_agent(lab.tls.path(), "node", Fake::Silent);
    check(&lab.gaps(port), &["TLS with the agent of node n1", "not valid for name", "netdiag certs"]);
    let lab = Lab { tls: certificates_of("netdiag-node"), ..Lab::new() };
    let port = fake_agent(lab.tls.path(), "node", Fake::Silent);
    check(&lab.gaps(port), &["its report leaves this need out"]);
}

#[test]
fn an_agent_of_another_authority_is_not_believed() {
    let lab = Lab::new();
    let others = certificates();
    let port = fake_agent(others.path(), "node", Fake::OneTopic);
    check(&lab.gaps(port), &["TLS with the agent of node n1", "certificates of one authority"]);
}

#[test]
fn a_node_without_agent_says_how_to_get_one() {
    let lab = Lab::new();
    let free = TcpListener::bind(SocketAddr::new(IpAddr::from([127, 0, 0, 1]), 0)).and_then(|l| l.local_addr());
    check(&lab.gaps(free.expect("a port").port()), &["node n1: connection refused", "install netdiag-node"]);
}

#[test]
fn an_agent_that_leaves_needs_out_or_confuses_topics_costs_those_needs() {
    let lab = Lab::new();
    let port = fake_agent(lab.tls.path(), "node", Fake::Silent);
    check(&lab.gaps(port), &["its report leaves this need out", "same version"]);
    let port = fake_agent(lab.tls.path(), "node", Fake::OneTopic);
    check(&lab.gaps(port), &["the reading holds the value of another topic"]);
}

#[test]
fn a_connection_that_ended_is_replaced() {
    let lab = Lab::new();
    let port = fake_agent(lab.tls.path(), "node", Fake::HangsUp);
    let gaps = lab.gaps(port);
    assert!(HUNG_UP.load(Ordering::Relaxed) > 0, "only one question was asked");
    check(&gaps, &["its report leaves this need out"]);
    assert!(!gaps.iter().any(|gap| gap.contains("cannot reach the agent of node n1")), "{gaps:#?}");
}

#[test]
fn a_busy_agent_asks_for_patience() {
    let lab = Lab::new();
    let port = fake_agent(lab.tls.path(), "node", Fake::Busy);
    check(&lab.gaps(port), &["the agent of node n1 is at its limit", "ask again in a few seconds"]);
}
