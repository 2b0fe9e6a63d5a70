//! `netdiag mcp` before a server in the cluster, without a cluster: a client's lines on one side, the server's own `/mcp` on the other,
//! and between them something that stands for the port-forward.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use http_body_util::BodyExt as _;
use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::{Need, Reading};
use netdiag_server::ask::{self, Source, SourceError};
use netdiag_server::evidence::{Cluster, parse};
use netdiag_server::kube::forward::ForwardError;
use netdiag_server::mcp::{self, HttpOptions, Remote};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, DuplexStream};
use tokio::task::JoinHandle;
use tower::ServiceExt as _;

/// Far above what any line takes on a busy machine.
const LIMIT: Duration = Duration::from_secs(30);
/// Holds a line of the tool list.
const PIPE_BYTES: usize = 1 << 20;

/// A Service that selects no pods, and a node that does not answer.
struct FakeSource;

impl Source for FakeSource {
    async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        let mut cluster = Cluster::default();
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop", "uid": "u1"},
            "spec": {"clusterIP": "10.96.0.7", "selector": {"app": "web"}, "ports": [{"port": 80}]},
        });
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "uid": "u2"}});
        for object in [service, node] {
            parse::add(&mut cluster, object).expect("an object");
        }
        Ok(Arc::new(cluster))
    }

    async fn gather(&self, needs: Vec<Need>, _: Instant) -> Vec<(Need, Reading<Observation>)> {
        let gap = |need: Need| (need.clone(), Reading::Unavailable { gap: ask::not_recorded(&need) });
        needs.into_iter().map(gap).collect()
    }

    fn now(&self) -> Timestamp {
        "2026-11-21T12:04:31Z".parse().expect("a time")
    }

    fn is_live(&self) -> bool {
        false
    }
}

/// Stands for the port-forward and the server behind it. A call of `scan` never ends there.
struct FakeForward {
    router: axum::Router,
    is_open: AtomicBool,
    /// What was asked for with a proof.
    proven: Mutex<Vec<Value>>,
}

impl Remote for FakeForward {
    async fn ask<T: DeserializeOwned + Send>(&self, message: &Value, is_proven: bool) -> Result<T, ForwardError> {
        if !self.is_open.load(Ordering::Relaxed) {
            return Err(ForwardError::Unreached("pod netdiag-system/netdiag-0: gone".to_owned()));
        }
        let tool = &message["params"]["name"];
        if is_proven {
            self.proven.lock().expect("nobody panicked").push(tool.clone());
        }
        if tool == "scan" {
            return std::future::pending().await;
        }
        let request = http::Request::post("/mcp")
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .body(Body::from(message.to_string()))
            .expect("a request");
        let answer = self.router.clone().oneshot(request).await.expect("a router always answers");
        assert_eq!(answer.status(), http::StatusCode::OK, "{message}");
        let body = answer.into_body().collect().await.expect("a body").to_bytes();
        serde_json::from_slice(&body).map_err(|error| ForwardError::Refused(error.to_string()))
    }
}

/// A client of `netdiag mcp`.
struct Client {
    lines: BufReader<DuplexStream>,
    forward: Arc<FakeForward>,
    relay: JoinHandle<()>,
}

impl Client {
    /// With a session.
    async fn start() -> Self {
        let forward = Arc::new(FakeForward {
            router: mcp::router(mcp::State::new(FakeSource, None), HttpOptions::default()),
            is_open: AtomicBool::new(true),
            proven: Mutex::default(),
        });
        let (near, far) = tokio::io::duplex(PIPE_BYTES);
        let remote = forward.clone();
        let relay = tokio::spawn(async move { mcp::relay(remote, far).await.expect("a session") });
        let mut client = Self { lines: BufReader::new(near), forward, relay };
        let hello = json!({
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "a test", "version": "1"},
        });
        client.send(1, "initialize", hello).await;
        let answer = client.answer().await;
        assert_eq!((&answer["id"], &answer["result"]["serverInfo"]["name"]), (&json!(1), &json!("netdiag")));
        client.line(r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#).await;
        client
    }

    async fn line(&mut self, text: &str) {
        self.lines.write_all(format!("{text}\n").as_bytes()).await.expect("it is read");
    }

    async fn send(&mut self, id: u64, method: &str, params: Value) {
        let message = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        self.line(&message.to_string()).await;
    }

    async fn answer(&mut self) -> Value {
        let mut line = String::new();
        let read = tokio::time::timeout(LIMIT, self.lines.read_line(&mut line));
        read.await.expect("an answer in time").expect("an open pipe");
        serde_json::from_str(&line).expect("a line is a JSON value")
    }

    async fn asked(&mut self, id: u64, method: &str, params: Value) -> Value {
        self.send(id, method, params).await;
        let answer = self.answer().await;
        assert_eq!(answer["id"], json!(id), "{answer}");
        answer
    }

    async fn called(&mut self, id: u64, tool: &str, arguments: Value) -> Value {
        self.asked(id, "tools/call", json!({"name": tool, "arguments": arguments})).await
    }

    /// Closes stdin; the relay ends by that.
    async fn hang_up(mut self) {
        self.lines.shutdown().await.expect("an open pipe");
        tokio::time::timeout(LIMIT, self.relay).await.expect("an end in time").expect("an end without panic");
    }
}

#[tokio::test]
async fn the_servers_tools_answer_in_its_words() {
    let mut client = Client::start().await;
    let listed = client.asked(2, "tools/list", json!({})).await;
    assert_eq!(listed["result"]["tools"], json!(mcp::tools()));
    let answer = client.called(3, "diagnose", json!({"to": "service/shop/web:80", "probe": false})).await;
    let content = &answer["result"]["structuredContent"];
    assert_eq!(content["schema"], "netdiag.answer/v1", "{answer}");
    // The answer is kept by the server for whoever asked, and here that is one and the same.
    let evidence = client.called(4, "get_evidence", json!({"handle": content["handle"]})).await;
    assert_eq!(evidence["result"]["structuredContent"]["handle"], content["handle"], "{evidence}");
    let unknown = client.called(5, "reboot", json!({})).await;
    assert_eq!(unknown["error"]["code"], json!(-32602), "{unknown}");
    assert!(unknown["error"]["message"].as_str().is_some_and(|why| why.contains("there is diagnose")), "{unknown}");
    client.hang_up().await;
}

#[tokio::test]
async fn only_what_takes_a_right_is_proven() {
    let mut client = Client::start().await;
    client.asked(2, "tools/list", json!({})).await;
    client.called(3, "explain_condition", json!({})).await;
    let answer = client.called(4, "probe", json!({"kind": "tcp", "from": "node/n1", "to": "10.0.0.1:80"})).await;
    assert!(answer["result"]["content"].is_array(), "{answer}");
    assert_eq!(*client.forward.proven.lock().expect("nobody panicked"), [json!("probe")]);
    client.hang_up().await;
}

#[tokio::test]
async fn a_long_call_holds_up_nobody_and_can_be_taken_back() {
    let mut client = Client::start().await;
    client.send(2, "tools/call", json!({"name": "scan", "arguments": {}})).await;
    client.line("{this is no JSON").await;
    assert_eq!(client.asked(3, "ping", json!({})).await["result"], json!({}));
    let cancelled = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 2}});
    client.line(&cancelled.to_string()).await;
    // Of what was taken back nothing is heard any more: the next line answers the next call.
    client.called(4, "explain_condition", json!({})).await;
    // Nor is an end held up: rmcp waits some seconds for what is not answered yet.
    client.send(5, "tools/call", json!({"name": "scan", "arguments": {}})).await;
    client.hang_up().await;
}

#[tokio::test]
async fn a_server_that_is_gone_is_told_of_the_call_and_may_come_back() {
    let mut client = Client::start().await;
    client.forward.is_open.store(false, Ordering::Relaxed);
    let listed = client.asked(4, "tools/list", json!({})).await;
    assert_eq!(listed["result"]["tools"], json!(mcp::tools()), "who asks for them once has them when it comes back");
    let answer = client.called(2, "explain_condition", json!({})).await;
    let why = answer["error"]["message"].as_str().expect("an error");
    assert!(why.contains("netdiag-0: gone") && why.contains("kubectl -n netdiag-system get pods"), "{why}");
    client.forward.is_open.store(true, Ordering::Relaxed);
    let answer = client.called(3, "explain_condition", json!({})).await;
    assert!(answer["result"]["structuredContent"]["conditions"].is_array(), "{answer}");
    client.hang_up().await;
}
