//! Who may probe: the server asks the API about whoever asks it, also on its own loopback. Nobody known, somebody without the right,
//! and somebody with it, by token; the administrator's client certificate is what all other cases ask with.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::super::asker;
use super::super::observed::Space;
use super::super::world::CLIENT;
use super::{READY_WITHIN, agent};
use crate::cluster::Cluster;
use crate::install::Installed;

/// Where `netdiag serve` listens unless it is told otherwise.
const PORT: u16 = 8080;
/// Far above what one attempt takes.
const WITHIN: Duration = Duration::from_secs(30);

const PROBE: &str = r#"{"kind":"tcp","from":"pod/shop/client","to":"service/shop/web:80","count":1}"#;
const ARMED: &str = r#"{"from":"pod/shop/client","to":"service/shop/web:80","armed":true}"#;
const BY_MCP: &str = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"probe","arguments":
    {"kind":"tcp","from":"pod/shop/client","to":"service/shop/web:80","count":1}}}"#;
const NOBODY: &str = "it is not known who asks";
const MAY_NOT: &str = "system:serviceaccount:shop:looker may not probe from pods of namespace shop";

/// Who asks for what, and what is answered: the status, and words of it.
const ASKED: [(Option<&str>, &str, &str, &str, &str); 9] = [
    (None, "/v1/status", "{}", "200", "\"nodes\""),
    (None, "/v1/probe", PROBE, "401", NOBODY),
    (None, "/v1/trace", ARMED, "401", NOBODY),
    (None, "/mcp", BY_MCP, "200", NOBODY),
    (Some("looker"), "/v1/probe", PROBE, "403", MAY_NOT),
    (Some("looker"), "/v1/trace", ARMED, "403", MAY_NOT),
    (Some("looker"), "/mcp", BY_MCP, "200", MAY_NOT),
    (Some("prober"), "/v1/probe", PROBE, "200", "\"well\""),
    (Some("prober"), "/mcp", BY_MCP, "200", "\"well\""),
];

/// Two accounts, of which one may probe, and reach the server as the command line does: by the roles of the manifests.
const ACCOUNTS: &str = "
apiVersion: v1
kind: ServiceAccount
metadata: {name: looker, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: prober, namespace: shop}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: prober, namespace: shop}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: netdiag-prober}
subjects: [{kind: ServiceAccount, name: prober, namespace: shop}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: netdiag-user, namespace: netdiag-system}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: netdiag-user}
subjects: [{kind: ServiceAccount, name: prober, namespace: shop}]
";

pub(super) fn asked(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    cluster.apply(ACCOUNTS)?;
    let server = Loopback::open(cluster)?;
    let prober = token(cluster, "prober")?;
    // RBAC's rules are watched: what was just written holds a moment later.
    cluster.wait_until("answer to who may probe", READY_WITHIN, || {
        server.post("/v1/probe", PROBE, Some(&prober)).is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
    })?;
    let looker = token(cluster, "looker")?;
    let mut wrong = Vec::new();
    for (who, path, body, status, says) in ASKED {
        let token = who.map(|who| if who == "prober" { &prober } else { &looker });
        let answer = server.post(path, body, token.map(String::as_str))?;
        if !answer.starts_with(&format!("HTTP/1.1 {status}")) || !answer.contains(says) {
            wrong.push(format!("{who:?} asks {path} and is not told {status} and {says}: {answer}"));
        }
    }
    let refused = server.post("/v1/status", "{}", Some("no token of anybody"))?;
    if !refused.starts_with("HTTP/1.1 401") || !refused.contains("{\"error\":\"the API server does not accept") {
        wrong.push(format!("a bearer that proves nothing is let in: {refused}"));
    }
    let kubeconfig = asker::kubeconfig_of(cluster, &cluster.scratch("e2e")?, "prober")?;
    wrong.extend(by_command_line(installed, &kubeconfig)?);
    // The administrator has a certificate and no token.
    for kubeconfig in [kubeconfig, cluster.kubeconfig()] {
        wrong.extend(agent::answered(&installed.server, &kubeconfig)?);
    }
    wrong.extend(logged(cluster)?);
    wrong.extend(left(cluster)?);
    Ok(wrong)
}

/// With a kubeconfig that has a token.
fn by_command_line(installed: &Installed, kubeconfig: &Path) -> Result<Option<String>> {
    let mut probe = Command::new(&installed.server);
    probe.args(["probe", "tcp", "-c", "2", "--from", CLIENT, "--to", "service/shop/web:80", "-o", "json"]);
    let output = probe.arg("--kubeconfig").arg(kubeconfig).output().context("cannot start netdiag")?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let said = String::from_utf8_lossy(&output.stderr);
    Ok((answer["status"] != "well").then(|| format!("a kubeconfig with a token is told {answer} {said}")))
}

/// Agents log each probe with who asked: by token, and by what the API server witnessed.
fn logged(cluster: &Cluster) -> Result<Option<String>> {
    let words = ["-n", "netdiag-system", "logs", "--selector", "app.kubernetes.io/name=netdiag-node", "--tail=-1"];
    let log = cluster.kubectl(&words)?;
    let series = || log.lines().filter(|line| line.contains("series of probes"));
    let missing: Vec<&str> = ["system:serviceaccount:shop:prober", "admin"]
        .into_iter()
        .filter(|user| !series().any(|line| line.contains(user)))
        .collect();
    Ok((!missing.is_empty()).then(|| format!("agents log no probe of {missing:?}")))
}

/// What proves who asks is taken back.
fn left(cluster: &Cluster) -> Result<Option<String>> {
    let names = cluster.kubectl(&["get", "certificatesigningrequests", "--output", "name"])?;
    let left: Vec<&str> = names.lines().filter(|name| name.contains("netdiag-asker-")).collect();
    Ok((!left.is_empty()).then(|| format!("proofs were left behind: {left:?}")))
}

/// Of an account in namespace shop.
pub(super) fn token(cluster: &Cluster, account: &str) -> Result<String> {
    Ok(cluster.kubectl(&["-n", "shop", "create", "token", account, "--duration=1h"])?.trim().to_owned())
}

/// The server's own loopback, where `kubectl port-forward` ends.
pub(super) struct Loopback(Space);

impl Loopback {
    pub(super) fn open(cluster: &Cluster) -> Result<Self> {
        let words = ["-n", "netdiag-system", "get", "pods", "--selector", "app.kubernetes.io/name=netdiag"];
        let running = ["--field-selector", "status.phase=Running", "--output", "jsonpath={.items[0].metadata.name}"];
        let pod = cluster.kubectl(&[&words[..], &running[..]].concat())?;
        Ok(Self(Space::of_pod(cluster, "netdiag-system", pod.trim())?))
    }

    fn post(&self, path: &str, body: &str, token: Option<&str>) -> Result<String> {
        let headers = format!(
            "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\nContent-Length: {}\r\n",
            body.len()
        );
        self.exchange(&format!("POST {path}"), &headers, token, body)
    }

    /// The whole answer, from its status line on.
    pub(super) fn exchange(&self, what: &str, headers: &str, token: Option<&str>, body: &str) -> Result<String> {
        let bearer = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
        let request = format!("{what} HTTP/1.1\r\nHost: 127.0.0.1\r\n{bearer}{headers}Connection: close\r\n\r\n{body}");
        self.0.run(|| said(&request)).with_context(|| format!("asking for {what}"))
    }
}

fn said(request: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)).context("cannot connect to the server")?;
    stream.set_read_timeout(Some(WITHIN))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
