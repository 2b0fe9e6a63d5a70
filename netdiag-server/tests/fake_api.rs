//! API servers that refuse, hang, forbid or answer nonsense: each costs what it must, and says so.

mod lab;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Output;
use std::time::{Duration, Instant};

use lab::{code, json, netdiag, not_seen, stderr, world_objects};
use serde_json::{Value, json};

/// How this server misbehaves.
#[derive(Clone, Copy)]
enum Fake {
    Hangs,
    Unauthorized,
    /// 403 for this resource, everything else as it should be.
    Forbids(&'static str),
    /// One Service more, which no API server would hold.
    HoldsNonsense,
    /// Pods on two pages: the first one, and the others.
    Pages,
}

/// Starts a server for the rest of the test and returns a kubeconfig that leads to it.
fn fake_api(fake: Fake) -> tempfile::NamedTempFile {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || serve(stream, fake));
        }
    });
    kubeconfig(port)
}

fn kubeconfig(port: u16) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "fake",
        "clusters": [{"name": "c", "cluster": {"server": format!("http://127.0.0.1:{port}")}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "c", "user": "u"}}],
    });
    file.write_all(text.to_string().as_bytes()).expect("a kubeconfig");
    file
}

fn serve(stream: TcpStream, fake: Fake) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut request = String::new();
        if reader.read_line(&mut request).unwrap_or(0) == 0 {
            return;
        }
        let mut header = String::new();
        while reader.read_line(&mut header).is_ok_and(|length| length > 2) {
            header.clear();
        }
        if matches!(fake, Fake::Hangs) {
            // Until the client gives up and closes.
            let _ = reader.read(&mut [0]);
            return;
        }
        let uri = request.split(' ').nth(1).unwrap_or_default().to_owned();
        let (status, body) = answer(&uri, fake);
        let text = body.to_string();
        let head =
            format!("HTTP/1.1 {status} x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n", text.len());
        if reader.get_mut().write_all((head + &text).as_bytes()).is_err() {
            return;
        }
    }
}

fn answer(uri: &str, fake: Fake) -> (u16, Value) {
    let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
    let resource = path.rsplit('/').next().unwrap_or_default();
    let status = |code: u16, message: String| {
        (
            code,
            json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "message": message, "reason": "x"}),
        )
    };
    match fake {
        Fake::Unauthorized => return status(401, "Unauthorized".to_owned()),
        Fake::Forbids(forbidden) if forbidden == resource => {
            return status(403, format!("{resource} is forbidden: User \"u\" cannot list resource \"{resource}\""));
        }
        _ => {}
    }
    let mut items = world_objects();
    if matches!(fake, Fake::HoldsNonsense) {
        items.push(json!({"kind": "Service", "metadata": {"namespace": "shop", "name": "odd"}, "spec": {"ports": [{"port": -1}]}}));
    }
    let is_of = |item: &Value| {
        let kind = item["kind"].as_str().unwrap_or_default().to_lowercase();
        let plural = if kind.ends_with('y') { format!("{}ies", &kind[..kind.len() - 1]) } else { format!("{kind}s") };
        plural == resource && (!path.contains("/namespaces/") || path.contains("/namespaces/kube-system/"))
    };
    items.retain(is_of);
    let mut token = "";
    if matches!(fake, Fake::Pages) && path == "/api/v1/pods" {
        let second = query.contains("continue=more");
        items = if second { items.split_off(1) } else { items[..1].to_vec() };
        token = if second { "" } else { "more" };
    }
    (200, json!({"kind": "List", "metadata": {"resourceVersion": "7", "continue": token}, "items": items}))
}

fn diagnose(kubeconfig: &tempfile::NamedTempFile) -> Output {
    let path = kubeconfig.path().to_str().expect("UTF-8");
    netdiag(&["diagnose", "--kubeconfig", path, "--to", "service/shop/web:80", "-o", "json"])
}

#[test]
fn an_api_server_that_refuses_is_named_with_its_address() {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port").port();
    let output = diagnose(&kubeconfig(port));
    assert_eq!(code(&output), 2);
    let message = stderr(&output);
    assert!(
        message.contains(&format!("cannot reach the API server http://127.0.0.1:{port} of context \"fake\"")),
        "{message}"
    );
    assert!(message.contains("Connection refused") && message.contains("check that"), "{message}");
}

#[test]
fn an_api_server_that_hangs_costs_seconds_and_is_named() {
    let started = Instant::now();
    let output = diagnose(&fake_api(Fake::Hangs));
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("did not answer within 5 s"), "{}", stderr(&output));
    assert!(started.elapsed() < Duration::from_secs(12), "{:?}", started.elapsed());
}

#[test]
fn credentials_that_are_not_accepted_are_named() {
    let output = diagnose(&fake_api(Fake::Unauthorized));
    assert_eq!(code(&output), 2);
    assert!(stderr(&output).contains("does not accept the credentials of context \"fake\""), "{}", stderr(&output));
}

#[test]
fn a_forbidden_resource_costs_itself_and_names_verb_and_resource() {
    let output = diagnose(&fake_api(Fake::Forbids("networkpolicies")));
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let answer = json(&output);
    assert!(answer["path"].as_array().is_some_and(|hops| hops.len() > 2), "the path is there: {answer}");
    let gaps = not_seen(&answer);
    let gap = gaps.iter().find(|gap| gap.contains("networkpolicies")).expect("a gap");
    assert!(
        gap.contains("cannot list resource") && gap.contains("allow the verbs list and watch on networkpolicies"),
        "{gap}"
    );
}

#[test]
fn without_server_and_agents_every_node_is_a_gap_and_it_is_said() {
    let output = diagnose(&fake_api(Fake::Forbids("nothing")));
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("answering from the Kubernetes API alone"), "{}", stderr(&output));
    let gaps = not_seen(&json(&output));
    assert!(
        gaps.iter().any(|gap| gap.contains("no agent was asked") && gap.contains("--direct --tls-dir")),
        "{gaps:?}"
    );
}

#[test]
fn an_object_that_does_not_decode_costs_itself() {
    let output = diagnose(&fake_api(Fake::HoldsNonsense));
    assert_eq!(code(&output), 3, "{}", stderr(&output));
    let gaps = not_seen(&json(&output));
    assert!(gaps.iter().any(|gap| gap.starts_with("Service shop/odd")), "{gaps:?}");
}

#[test]
fn every_page_of_a_list_is_read() {
    let output = diagnose(&fake_api(Fake::Pages));
    let path = json(&output)["path"].to_string();
    assert!(path.contains("shop/web-1") && path.contains("shop/web-2"), "{path}");
}
