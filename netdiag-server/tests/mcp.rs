//! The MCP server as clients meet it: the tool list, an independent client over both transports, hosts and sizes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::{Need, Reading};
use netdiag_server::ask::{self, Source, SourceError};
use netdiag_server::evidence::{Cluster, parse};
use netdiag_server::mcp::{self, Caller, Denied, Gate, HttpOptions};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// A run of the Python client: both eras, some ten calls each. Far above what it needs on a busy machine.
const CLIENT_LIMIT: Duration = Duration::from_mins(2);

fn files() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/mcp")
}

/// The bundle's objects, without any node that answers.
struct Recorded(Arc<Cluster>);

impl Source for Recorded {
    async fn cluster(&self) -> Result<Arc<Cluster>, SourceError> {
        Ok(self.0.clone())
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

fn recorded() -> Recorded {
    let path = files().join("bundle/objects/all.yaml");
    #[expect(clippy::disallowed_methods, reason = "a test reads its bundle")]
    let text = std::fs::read_to_string(path).expect("the bundle can be read");
    let mut cluster = Cluster { name: "recorded".to_owned(), ..Cluster::default() };
    for object in serde_saphyr::from_multiple::<Value>(&text).expect("the bundle is YAML") {
        parse::add(&mut cluster, object).expect("the bundle holds objects");
    }
    Recorded(Arc::new(cluster))
}

/// Serves the bundle on a port of the loopback.
async fn serve(gate: Option<Arc<dyn Gate>>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let router = mcp::router(mcp::State::new(recorded(), gate), HttpOptions::default());
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// The status line of one plain HTTP request.
async fn status(server: SocketAddr, host: &str, headers: &str, body: &str) -> String {
    let mut stream = tokio::net::TcpStream::connect(server).await.expect("a connection");
    let request = format!(
        "POST /mcp HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n{body}",
        body.len()
    );
    stream.write_all(request.as_bytes()).await.expect("a request");
    let mut answer = Vec::new();
    let mut chunk = [0; 4096];
    while !answer.contains(&b'\n') {
        match stream.read(&mut chunk).await {
            Ok(0) | Err(_) => break,
            Ok(read) => answer.extend_from_slice(&chunk[..read]),
        }
    }
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

fn list_tools() -> String {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {}}).to_string()
}

#[test]
fn the_tool_list_is_what_clients_were_promised() {
    insta::assert_json_snapshot!("tools", mcp::tools());
}

#[test]
fn inputs_are_plain_enough_for_every_client() {
    fn walk(schema: &Value, path: &str) {
        match schema {
            Value::Object(map) => {
                for forbidden in ["$ref", "anyOf", "oneOf", "allOf", "$defs"] {
                    assert!(!map.contains_key(forbidden), "{path} uses {forbidden}");
                }
                assert!(!map.get("type").is_some_and(Value::is_array), "{path} has several types");
                map.iter().for_each(|(key, value)| walk(value, &format!("{path}/{key}")));
            }
            Value::Array(list) => list.iter().for_each(|value| walk(value, path)),
            _ => {}
        }
    }
    for tool in mcp::tools() {
        walk(&Value::Object((*tool.input_schema).clone()), &tool.name);
        jsonschema::meta::validate(&Value::Object((*tool.input_schema).clone())).expect("a valid schema");
        let output = tool.output_schema.expect("an output schema");
        assert_eq!(output.get("type"), Some(&json!("object")), "{} returns no object", tool.name);
        assert!(!Value::Object((*output).clone()).to_string().contains("$ref"), "{} has references", tool.name);
    }
}

#[tokio::test]
async fn a_foreign_host_name_is_refused() {
    let server = serve(None).await;
    assert!(status(server, "127.0.0.1", "", &list_tools()).await.contains("200"));
    assert!(status(server, "evil.example", "", &list_tools()).await.contains("403"));
    let origin = "Origin: https://evil.example\r\n";
    assert!(status(server, "127.0.0.1", origin, &list_tools()).await.contains("403"));
}

#[tokio::test]
async fn an_endless_request_is_refused() {
    let server = serve(None).await;
    let body = format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{}\"}}", "x".repeat(100_000));
    assert!(status(server, "127.0.0.1", "", &body).await.contains("413"));
}

/// A gate that knows one token, and lets who sends none look or not.
struct OneToken {
    lets_nameless_look: bool,
}

impl Gate for OneToken {
    fn lets_nameless_look(&self) -> bool {
        self.lets_nameless_look
    }

    fn identify<'g>(
        &'g self,
        bearer: &'g str,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<Caller, Denied>> + Send + 'g>> {
        Box::pin(async move {
            match bearer {
                "good" => Ok(Caller { user: "alice".to_owned(), ..Caller::default() }),
                _ => Err(Denied::Unauthenticated("this token is not known".to_owned())),
            }
        })
    }

    fn may_probe<'g>(
        &'g self,
        _caller: &'g Caller,
        namespace: &'g str,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Denied>> + Send + 'g>> {
        Box::pin(async move { Err(Denied::Forbidden(format!("no right to probe from {namespace:?}"))) })
    }

    fn may_get_secret<'g>(
        &'g self,
        _caller: &'g Caller,
        namespace: &'g str,
        name: &'g str,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Denied>> + Send + 'g>> {
        Box::pin(async move { Err(Denied::Forbidden(format!("no right to get {namespace}/{name}"))) })
    }

    fn may_choose_probes<'g>(
        &'g self,
        _caller: &'g Caller,
        namespace: &'g str,
    ) -> std::pin::Pin<Box<dyn Future<Output = Result<(), Denied>> + Send + 'g>> {
        Box::pin(async move { Err(Denied::Forbidden(format!("no right to probe from {namespace:?}"))) })
    }
}

#[tokio::test]
async fn without_a_valid_token_nothing_is_answered() {
    let server = serve(Some(Arc::new(OneToken { lets_nameless_look: false }))).await;
    assert!(status(server, "127.0.0.1", "", &list_tools()).await.contains("401"));
    let wrong = "Authorization: Bearer wrong\r\n";
    assert!(status(server, "127.0.0.1", wrong, &list_tools()).await.contains("401"));
    let good = "Authorization: Bearer good\r\n";
    assert!(status(server, "127.0.0.1", good, &list_tools()).await.contains("200"));
}

#[tokio::test]
async fn where_nobody_has_to_say_who_asks_a_wrong_token_is_still_wrong() {
    let server = serve(Some(Arc::new(OneToken { lets_nameless_look: true }))).await;
    assert!(status(server, "127.0.0.1", "", &list_tools()).await.contains("200"));
    for wrong in ["Bearer wrong", "Basic Z29vZA=="] {
        let header = format!("Authorization: {wrong}\r\n");
        assert!(status(server, "127.0.0.1", &header, &list_tools()).await.contains("401"), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_independent_client_gets_answers_over_http() {
    let server = serve(None).await;
    client(&["http", &format!("http://{server}/mcp")]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_independent_client_gets_answers_over_stdio() {
    let bundle = files().join("bundle");
    let netdiag = env!("CARGO_BIN_EXE_netdiag");
    client(&["stdio", netdiag, "mcp", "--bundle", path(&bundle)]).await;
}

async fn client(arguments: &[&str]) {
    let Ok(python) = std::env::var("NETDIAG_PYTHON") else {
        println!(
            "netdiag-skip: mcp {}: NETDIAG_PYTHON names no Python with mcp; cargo xtask test sets it",
            arguments[0]
        );
        return;
    };
    let mut command = tokio::process::Command::new(python);
    command.arg(files().join("client.py")).args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let run = tokio::time::timeout(CLIENT_LIMIT, command.output()).await;
    let output = run.expect("the client ends in time").expect("the client can be started");
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{text}");
    assert_eq!(text.matches("protocol 20").count(), 2, "both eras were spoken: {text}");
}

fn path(path: &Path) -> &str {
    path.to_str().expect("the repository's path is text")
}
