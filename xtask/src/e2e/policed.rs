//! The case `policed`: what policy engines have programmed is what NetworkPolicies say. In nftables mode kube-router enforces them:
//! an address that is missing from one of its ipsets, and an administrator's rule before its own, are named. In iptables mode Cilium
//! does: its agent on one node stops, and what its maps there still allow is named. Each is no more once it is put back. A packet
//! that kube-router's rules stop is followed to them.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::Subject;
use super::case::{Script, Step};
use super::fault::Fault;
use super::{probed, world};
use crate::cluster::{Cluster, Cni, Options, ProxyMode};
use crate::install::{self, Installed};
use crate::netdiag_image::Build;

pub(super) const SUBJECT: Subject = Subject {
    name: "policed",
    about: "policy engines have programmed what NetworkPolicies say; what they have not is named",
    home: None,
    run,
};

/// Engines write within seconds, and drift looks twice, ten seconds apart.
const SETTLES_WITHIN: Duration = Duration::from_mins(1);
/// Where the faults are.
const NODE: &str = "n2";

/// Two of n2's pods let the clients in, and one nobody.
const POLICIES: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress]
  ingress:
  - from: [{podSelector: {matchLabels: {app: client}}}]
    ports: [{port: 8080}]
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: pay}
spec: {podSelector: {}, policyTypes: [Ingress]}
";

/// The clients are let in no more.
const CLOSED: &str = "
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, policyTypes: [Ingress], ingress: []}
";

/// One fault on the node, and what it must be in the answer.
struct Row {
    name: &'static str,
    inject: Vec<Step>,
    restore: Vec<Step>,
    /// How each difference's words begin.
    expected: &'static str,
    found: &'static str,
    /// Words of where it is.
    place: &'static str,
}

fn of_kube_router() -> Vec<Row> {
    vec![
        Row {
            name: "a client's address is missing from kube-router's ipset",
            inject: vec![on_node(
                "ipset save | grep \"^add KUBE-SRC-[^ ]* $client \" > /run/netdiag-policed
                 test -s /run/netdiag-policed
                 sed 's/^add/del/; s/ timeout .*//' /run/netdiag-policed | ipset restore",
            )],
            restore: vec![on_node("ipset restore < /run/netdiag-policed")],
            expected: "Pod shop/client to Pod shop/web-",
            found: "it is stopped",
            place: "(written by kube-router)",
        },
        Row {
            name: "an administrator's rule lets in before kube-router's",
            inject: vec![on_node("iptables -I FORWARD 1 -i eth0 -j ACCEPT")],
            restore: vec![on_node("iptables -D FORWARD -i eth0 -j ACCEPT")],
            expected: "Pod ",
            found: "nothing stops it",
            place: "hook forward",
        },
    ]
}

/// Nodes share one kernel and see each other's processes: only those of the node's network are meant.
fn of_cilium() -> Vec<Row> {
    vec![Row {
        name: "Cilium's agent hangs, and a policy is newer than its maps",
        inject: vec![
            on_node("pkill -STOP --ns $$ --nslist net cilium-agent"),
            Step::Apply { apply: CLOSED.to_owned() },
        ],
        restore: vec![
            on_node("pkill -CONT --ns $$ --nslist net cilium-agent"),
            Step::Apply { apply: POLICIES.to_owned() },
        ],
        expected: "Pod shop/client",
        found: "nothing stops it",
        place: "of Cilium",
    }]
}

fn on_node(script: &str) -> Step {
    Step::Node { node: NODE.to_owned(), run: Script::Same(script.to_owned()) }
}

/// Runs in a cluster of its own.
fn run(prefix: &str, mode: ProxyMode, keep: bool) -> Result<Vec<String>> {
    let name = format!("{prefix}k{}", &mode.name()[..3]);
    let (cni, rows) = match mode {
        ProxyMode::Nftables => (Cni::KubeRouter, of_kube_router()),
        ProxyMode::Iptables => (Cni::Cilium, of_cilium()),
    };
    let options = Options { name, mode, cni, ..Options::default() };
    super::in_own_cluster(&options, keep, |cluster| in_cluster(cluster, &rows))
}

fn in_cluster(cluster: &Cluster, rows: &[Row]) -> Result<Vec<String>> {
    super::deploy_world(cluster)?;
    let installed = install::install(cluster, Build::Tests)?;
    cluster.apply(POLICIES)?;
    if let Err(error) = cluster.wait_until("rules as policies say", SETTLES_WITHIN, || is_same(cluster, &installed)) {
        return Ok(vec![format!("a healthy cluster: {error:#}: {}", drift(cluster, &installed)?)]);
    }
    let mut wrong = Vec::new();
    if cluster.options.cni == Cni::KubeRouter {
        wrong.extend(followed(cluster, &installed));
    }
    for row in rows {
        wrong.extend(under(cluster, &installed, row)?);
        if let Err(error) = cluster.wait_until("no drift again", SETTLES_WITHIN, || is_same(cluster, &installed)) {
            wrong.push(format!("after {:?}: {error:#}: {}", row.name, drift(cluster, &installed)?));
        }
    }
    Ok(wrong)
}

/// Makes the fault and asks until it is told.
fn under(cluster: &Cluster, installed: &Installed, row: &Row) -> Result<Option<String>> {
    Fault { name: row.name, inject: &row.inject, restore: &row.restore }.under(cluster, || {
        let answer = drift(cluster, installed)?;
        Ok(missed(&answer, row).map(|line| format!("{line}: {answer}")))
    })
}

/// A client that a policy shuts out: the kernel's drop is that of the engine's own rule.
fn followed(cluster: &Cluster, installed: &Installed) -> Option<String> {
    let words = ["tcp", "-c", "1", "--family", "ipv4", "--follow"];
    let mut answer = Value::Null;
    let told = cluster.wait_until("drop by kube-router's rules", SETTLES_WITHIN, || {
        answer = probed::probe(cluster, installed, &words, world::CLIENT, "pod/pay/ledger-1:8080").unwrap_or_default();
        let dropped = &answer["series"][0]["followed"]["dropped"];
        answer["status"] == "failed"
            && dropped["node"] == NODE
            && dropped["place"] == "node"
            && dropped["reason"] == "NETFILTER_DROP"
            && dropped["hook"] == "forward"
            && dropped["by"].as_str().is_some_and(|rule| rule.contains("KUBE-POD-FW-"))
    });
    told.err().map(|error| format!("{error:#}: {answer}"))
}

/// Nothing differs, and packets of both nodes were followed.
fn is_same(cluster: &Cluster, installed: &Installed) -> bool {
    let is_policed = |node: &Value| node["policed"].as_u64() > Some(0);
    drift(cluster, installed).is_ok_and(|answer| answer["status"] == "same" && nodes(&answer).iter().all(is_policed))
}

/// What is wrong with the answer about this fault.
fn missed(answer: &Value, row: &Row) -> Option<String> {
    let (here, others): (Vec<&Value>, Vec<&Value>) = nodes(answer).iter().partition(|node| node["node"] == NODE);
    if let Some(node) = others.iter().find(|node| node["status"] != "same") {
        return Some(format!("node {} is {}", node["node"], node["status"]));
    }
    let differences: Vec<&Value> =
        here.iter().flat_map(|node| node["differences"].as_array().into_iter().flatten()).collect();
    let word = |difference: &Value, key: &str| difference[key].as_str().unwrap_or_default().to_owned();
    let is_it = |difference: &&&Value| {
        difference["kind"] == "policy"
            && word(difference, "expected").starts_with(row.expected)
            && word(difference, "found") == row.found
            && word(difference, "rule").contains(row.place)
    };
    let other = differences.iter().find(|difference| !is_it(difference));
    match other {
        None if differences.is_empty() => Some(format!("nothing differs on {NODE}")),
        None => None,
        Some(other) => Some(format!("a difference is {other}")),
    }
}

fn nodes(answer: &Value) -> &[Value] {
    answer["nodes"].as_array().map_or(&[][..], Vec::as_slice)
}

fn drift(cluster: &Cluster, installed: &Installed) -> Result<Value> {
    install::ask(&installed.server, cluster, &["drift"])
}
