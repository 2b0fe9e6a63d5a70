//! The case `meshed`: nodes that probe each other. A healthy mesh keeps its targets; one broken link between two nodes is that
//! link in the answer, in the heat map as text and as SVG, and in the metrics, and nothing else is; healed, it is well again. A URL of
//! the configuration is probed by its name, with times of each phase.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::Subject;
use crate::cluster::{Cluster, Options, ProxyMode};
use crate::command;
use crate::install::{self, Installed};

pub(super) const SUBJECT: Subject = Subject {
    name: "meshed",
    about: "nodes that probe each other: a healthy mesh, one broken link in the heat map, and healed",
    // Only the Service that is a target passes kube-proxy's rules; iptables mode has fewer cases of its own.
    home: Some(ProxyMode::Iptables),
    run,
};

/// A link breaks between two of three, so that a third one can be well.
const NODES: u8 = 3;
/// TCP and ICMP from each node to each other one.
const PEER_LINKS: usize = 12;
const BROKEN: [&str; 2] = ["n2", "n3"];
/// A round is 20 s, and what was probed before the last change is judged with it.
const CHANGE_WITHIN: Duration = Duration::from_mins(3);
/// Beside other work on two cores, answers may take longer than clusters usually allow; what is broken never answers.
const MESH: [&str; 4] = ["probe", "mesh", "--p99-target", "900ms"];
const METRICS_PORT: u16 = 9445;
/// The cluster address of Service shop/web, as a user's own target.
const USER_TARGET: &str = "web=10.96.0.80:80";
/// A Service of the world by its name, as the server's configuration lists it.
const LISTED: &str = "targets: [{name: page, kind: http, to: 'http://web.shop.svc.cluster.local/hostname', status: [200], interval: 4s}]";
/// What an attempt at it goes through; plain HTTP has no TLS.
const PHASES: [&str; 3] = ["lookup", "connect", "first_byte"];
/// On one end of the link, against the other end's address.
const BREAK: &str = "nft add table inet cut && nft add chain inet cut in '{ type filter hook input priority -10; }' && \
                     nft add rule inet cut in ip saddr OTHER counter drop";
const HEAL: &str = "nft delete table inet cut";

/// Runs in a cluster of its own.
fn run(prefix: &str, mode: ProxyMode, keep: bool) -> Result<Vec<String>> {
    let name = format!("{prefix}h{}", &mode.name()[..3]);
    let options = Options { name, nodes: NODES, mode, ..Options::default() };
    super::in_own_cluster(&options, keep, in_cluster)
}

fn in_cluster(cluster: &Cluster) -> Result<Vec<String>> {
    super::deploy_world(cluster)?;
    let installed = super::install_on_n1(cluster)?;
    let mut wrong = Vec::new();
    // Without a mesh that is kept, one short round is made for the question. On a busy machine the first connection to an agent may
    // take longer than the server waits.
    if let Err(error) = until(cluster, &installed, "one round by itself", |answer| not_well(answer).is_none()) {
        wrong.push(format!("one round by itself: {error:#}: {}", mesh(cluster, &installed)?));
    }
    super::on_n1(cluster, || keep_a_mesh(cluster))?;
    if let Err(error) = until(cluster, &installed, "mesh that is well", is_kept_and_well) {
        wrong.push(format!("a healthy mesh: {error:#}: {}", mesh(cluster, &installed)?));
        return Ok(wrong);
    }
    let [one, other] = BROKEN;
    cluster.node_exec(one, &["sh", "-c", &BREAK.replace("OTHER", &cluster.node_address(other))])?;
    let seen = until(cluster, &installed, "broken link", |answer| is_broken(answer).is_none());
    match seen {
        Err(error) => {
            let answer = mesh(cluster, &installed)?;
            let why = is_broken(&answer).unwrap_or_default();
            wrong.push(format!("a broken link: {error:#}: {why}: {answer}"));
        }
        Ok(()) => wrong.extend(pictures(cluster, &installed)?),
    }
    cluster.node_exec(one, &["sh", "-c", HEAL])?;
    if let Err(error) = until(cluster, &installed, "healed link", is_kept_and_well) {
        wrong.push(format!("after the link is healed: {error:#}: {}", mesh(cluster, &installed)?));
    }
    Ok(wrong)
}

/// The server's own mesh goes on, with a target of ours and metrics for everybody who reaches its pod.
fn keep_a_mesh(cluster: &Cluster) -> Result<()> {
    let listed = serde_json::json!({"data": {"targets.yaml": LISTED}}).to_string();
    let patch = ["-n", "netdiag-system", "patch", "configmap", "netdiag-config", "--type=merge", "--patch", &listed];
    cluster.kubectl(&patch)?;
    let metrics = format!("--metrics-listen=0.0.0.0:{METRICS_PORT}");
    let words = ["--mesh", &format!("--mesh-target={USER_TARGET}"), &metrics];
    let add = |word| serde_json::json!({"op": "add", "path": "/spec/template/spec/containers/0/args/-", "value": word});
    let patch = Value::from(words.map(add).to_vec()).to_string();
    cluster.kubectl(&["-n", "netdiag-system", "patch", "deployment", "netdiag", "--type=json", "--patch", &patch])?;
    cluster.kubectl(&["-n", "netdiag-system", "rollout", "status", "deployment/netdiag", "--timeout=120s"])?;
    Ok(())
}

/// Asks as people do: by the server in the cluster.
fn mesh(cluster: &Cluster, installed: &Installed) -> Result<Value> {
    install::ask(&installed.server, cluster, &MESH)
}

fn until(cluster: &Cluster, installed: &Installed, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
    cluster.wait_until(what, CHANGE_WITHIN, || mesh(cluster, installed).is_ok_and(|answer| is_so(&answer)))
}

fn links(answer: &Value) -> &[Value] {
    answer["links"].as_array().map_or(&[], Vec::as_slice)
}

fn is_peer(link: &Value) -> bool {
    link["target"] == "peer"
}

/// What is wrong with the answer about a healthy mesh.
fn not_well(answer: &Value) -> Option<String> {
    let peers = links(answer).iter().filter(|link| is_peer(link)).count();
    if peers != PEER_LINKS {
        return Some(format!("{peers} links between nodes, and not {PEER_LINKS}"));
    }
    if let Some(link) = links(answer).iter().find(|link| link["state"] != "good") {
        return Some(format!("{link} is not good"));
    }
    for target in ["dns", "api"] {
        if !links(answer).iter().any(|link| link["target"] == target) {
            return Some(format!("no target {target} is probed"));
        }
    }
    (answer["status"] != "good").then(|| format!("the mesh is {}", answer["status"]))
}

/// The mesh that the server keeps has more than one round, and our own target.
fn is_kept_and_well(answer: &Value) -> bool {
    let has_ours = links(answer).iter().any(|link| link["target"] == "user" && link["to"] == "web");
    let pages = links(answer).iter().filter(|link| link["to"] == "page" && link["kind"] == "http").count();
    let has_phases = |link: &Value| {
        let phases = link["phases"].as_array().map_or(&[][..], Vec::as_slice);
        PHASES.iter().all(|wanted| phases.iter().any(|phase| phase["phase"] == *wanted))
    };
    let is_phased = links(answer).iter().filter(|link| link["to"] == "page").all(has_phases);
    let has_listed = pages == usize::from(NODES) && is_phased;
    not_well(answer).is_none() && has_ours && has_listed && answer["rounds"].as_u64().is_some_and(|rounds| rounds > 1)
}

/// What is wrong with the answer about the one broken link: both directions lose by TCP and by ICMP, and nothing else does.
fn is_broken(answer: &Value) -> Option<String> {
    let name = |link: &Value, key: &str| link[key].as_str().unwrap_or_default().to_owned();
    let losing: BTreeSet<[String; 3]> = links(answer)
        .iter()
        .filter(|link| link["state"] != "good")
        .map(|link| ["from", "to", "kind"].map(|key| name(link, key)))
        .collect();
    let [one, other] = BROKEN;
    let ways = [(one, other), (other, one)];
    let wanted = ways.iter().flat_map(|(from, to)| ["tcp", "icmp"].map(|kind| [*from, *to, kind].map(str::to_owned)));
    if losing != wanted.collect() {
        return Some(format!("these are not good: {losing:?}"));
    }
    let findings = answer["findings"].as_array().map_or(&[][..], Vec::as_slice);
    let [finding] = findings else { return Some(format!("{} findings, and not 1", findings.len())) };
    let is_right = finding["code"] == "mesh_link_loses" && finding["about"] == serde_json::json!(BROKEN);
    (!is_right).then(|| format!("the finding is {finding}"))
}

/// What is wrong with the heat map and the metrics while the link is broken.
fn pictures(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let text = said(cluster, installed, &[])?;
    for (node, broken) in [("n1", 0), ("n2", 1), ("n3", 1)] {
        // `  2 n2  · 0 0.21  X 100% -`: number, name, cells.
        let row = text.lines().find(|line| line.split_whitespace().nth(1) == Some(node) && line.contains('\\'));
        let marks = row.map(|row| row.chars().filter(|mark| "X#!".contains(*mark)).count());
        if marks != Some(broken) {
            wrong.push(format!("row {node} of the heat map has {marks:?} broken cells, and not {broken}:\n{text}"));
        }
    }
    let svg = said(cluster, installed, &["-o", "svg"])?;
    let [one, other] = BROKEN;
    for (from, to, is_broken) in [(one, other, true), (other, one, true), ("n1", one, false), (other, "n1", false)] {
        let cell = svg.lines().find(|line| line.contains(&format!("<title>{from} to {to}: lost ")));
        let is_lossless = cell.is_some_and(|cell| cell.contains(": lost 0,"));
        if cell.is_none() || is_lossless == is_broken {
            wrong.push(format!("cell {from} to {to} of the SVG: {cell:?}"));
        }
    }
    let page = metrics(cluster)?;
    let has = |start: &str, words: &[&str]| {
        let mut lines = page.lines().filter(|line| line.starts_with(start));
        lines.any(|line| {
            words.iter().all(|word| line.contains(word)) && !line.ends_with(" 0") && !line.ends_with(" 0.0")
        })
    };
    for phase in PHASES {
        let word = format!("phase=\"{phase}\"");
        if !has("netdiag_mesh_phase_seconds_count{", &["target=\"page\"", "kind=\"http\"", word.as_str()]) {
            wrong.push(format!("the metrics have no times of phase {phase} of target page:\n{page}"));
        }
    }
    let (from, to) = (format!("from=\"{one}\""), format!("to=\"{other}\""));
    for (start, words) in [
        ("netdiag_mesh_time_seconds_bucket{", &["target=\"peer\"", "kind=\"tcp\"", "le=\"+Inf\""][..]),
        ("netdiag_mesh_time_seconds_count{", &["target=\"web\""]),
        ("netdiag_mesh_link_loss_ratio{", &[from.as_str(), to.as_str(), "kind=\"icmp\""]),
        ("netdiag_mesh_links{", &["state=\"loses\""]),
    ] {
        if !has(start, words) {
            wrong.push(format!("the metrics have no {start} with {words:?} above 0:\n{page}"));
        }
    }
    Ok(wrong)
}

/// The words of `netdiag probe mesh`. A broken link has exit code 1.
fn said(cluster: &Cluster, installed: &Installed, words: &[&str]) -> Result<String> {
    let mut asking = Command::new(&installed.server);
    asking.args(MESH).args(words).arg("--kubeconfig").arg(cluster.kubeconfig());
    let output = asking.output().with_context(|| format!("cannot start {}", installed.server.display()))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    anyhow::ensure!(
        output.status.code() == Some(1),
        "probe mesh {}: {}: {}",
        words.join(" "),
        output.status,
        command::tail(&stderr, 5)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// As a Prometheus of the cluster reads them.
fn metrics(cluster: &Cluster) -> Result<String> {
    let words = ["-n", "netdiag-system", "get", "pods", "--selector", "app.kubernetes.io/name=netdiag"];
    let running = ["--field-selector", "status.phase=Running", "--output", "jsonpath={.items[0].status.podIP}"];
    let address = cluster.kubectl(&[&words[..], &running[..]].concat())?;
    let url = format!("http://{}:{METRICS_PORT}/metrics", address.trim());
    cluster.node_exec("n1", &["busybox", "wget", "-q", "-O", "-", &url])
}
