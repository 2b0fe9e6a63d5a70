//! The case `traced`: connections in a dual-stack cluster, to Services of several kinds, are predicted namespace by namespace, there and
//! back, on one node and across two, and the kernels' own trace of one that is sent says the same. A rule that drops them is left out of
//! a prediction, and stays. Then nothing of it is left on any node. In a second cluster, whose pods talk through VXLAN, what stops the
//! outer packets is predicted to stop the connection.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::{Subject, client};
use crate::cluster::{Cluster, Cni, Options, ProxyMode};
use crate::install::{self, Installed};
use crate::netdiag_image::Build;

pub(super) const SUBJECT: Subject = Subject {
    name: "traced",
    about: "what is predicted of a packet's way is what the kernels trace, across two nodes, to Services of all kinds, IPv4 and IPv6",
    home: None,
    run,
};

/// kube-proxy programs an address that is new within a second or two.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// A trace to each kind of target.
struct Question {
    from: &'static str,
    to: &'static str,
    /// Whether the answer comes back.
    answered: bool,
}

const QUESTIONS: [Question; 9] = [
    Question { from: "pod/shop/client", to: "service/shop/web:80", answered: true },
    Question { from: "pod/shop/client-2", to: "service/shop/web:80", answered: true },
    Question { from: "node/n1", to: "service/shop/web:80", answered: true },
    Question { from: "pod/shop/client", to: "pod/shop/local-1:9", answered: false },
    Question { from: "pod/shop/client-2", to: "service/shop/sticky:80", answered: true },
    Question { from: "pod/shop/client", to: "service/shop/nobody:80", answered: false },
    Question { from: "pod/shop/client", to: "node/n2:30090", answered: true },
    Question { from: "node/n1", to: "node/n2:30091", answered: true },
    Question { from: "node/n2", to: "node/n1:30091", answered: false },
];

/// A Service that keeps clients at an endpoint, one without endpoints, and node ports: one for all nodes, one that only n2, with the
/// endpoint, answers at. Only one endpoint is behind these, and on the node that is dialled: of two packets in each namespace a trace
/// tells, and what is sent on to another node meets its own twice.
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: sticky, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  sessionAffinity: ClientIP
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: nobody}
  ports: [{port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: everywhere, namespace: pay}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  selector: {app: ledger}
  ports: [{port: 80, targetPort: 8080, nodePort: 30090}]
---
apiVersion: v1
kind: Service
metadata: {name: local, namespace: pay}
spec:
  type: NodePort
  externalTrafficPolicy: Local
  ipFamilyPolicy: PreferDualStack
  selector: {app: ledger}
  ports: [{port: 80, targetPort: 8080, nodePort: 30091}]
";

/// A Service of both families, and agents that may trace.
const BOTH_FAMILIES: &str = r#"{"spec": {"ipFamilyPolicy": "PreferDualStack"}}"#;

/// On the client's node, before anything is translated.
const SITE: &str = "table inet site { chain fw { type filter hook prerouting priority -300; tcp dport 80 drop; }; }";
const SITE_RULE: &str = "inet site fw rule ";

/// From node to node through the overlay.
const THROUGH: Question = Question { from: "pod/shop/client", to: "pod/shop/web-2:8080", answered: true };

/// What stops its outer packets: the command, the node that it is for, and words of the end that is then predicted. The second one
/// stops them before the first one can.
const STOPS: [(&str, &[&str], [&str; 2]); 2] = [
    (
        "n2",
        &["nft", "table inet site { chain in { type filter hook input priority 0; udp dport 8472 drop; }; }"],
        ["inet site in rule ", "on node n2, as the outer packet of flannel.1 (VXLAN, VNI 1, UDP port 8472)"],
    ),
    (
        "n1",
        // A node's first `bridge` is the network plugin of that name.
        &["/sbin/bridge", "fdb", "del", "02:0e:00:00:00:02", "dev", "flannel.1"],
        ["dropped on node n1: ", "the forwarding database of flannel.1 has no entry for 02:0e:00:00:00:02"],
    ),
];

/// Runs in clusters of its own.
fn run(prefix: &str, mode: ProxyMode, keep: bool) -> Result<Vec<String>> {
    let name = |letter: &str| format!("{prefix}{letter}{}", &mode.name()[..3]);
    let options = Options { name: name("t"), mode, dual_stack: true, ..Options::default() };
    let mut wrong = super::in_own_cluster(&options, keep, in_cluster)?;
    let options = Options { name: name("v"), mode, cni: Cni::Vxlan, ..Options::default() };
    wrong.extend(super::in_own_cluster(&options, keep, through_a_tunnel)?);
    Ok(wrong)
}

fn through_a_tunnel(cluster: &Cluster) -> Result<Vec<String>> {
    super::deploy_world(cluster)?;
    let installed = super::install_on_n1(cluster)?;
    client::is_well(cluster)?;
    let mut wrong = Vec::new();
    let well = trace(cluster, &installed, &THROUGH, false)?;
    let way = &well["families"][0]["ways"][0];
    let legs = way["legs"].as_array().map_or(&[][..], Vec::as_slice);
    let outer = legs.iter().filter(|leg| leg["tunnel"].is_string());
    let outer: Vec<&str> = outer.filter_map(|leg| leg["node"].as_str()).collect();
    // There, and back.
    if outer != ["n1", "n2", "n2", "n1"] || way["answered"] != true || well["not_seen"] != Value::Array(Vec::new()) {
        wrong.push(format!("the tunnel's packets are not followed there and back: {well}"));
    }
    for (node, command, words) in STOPS {
        cluster.node_exec(node, command)?;
        let stopped = trace(cluster, &installed, &THROUGH, false)?;
        let way = &stopped["families"][0]["ways"][0];
        let end = way["end"].as_str().unwrap_or_default();
        if way["stopped"] != true || words.iter().any(|words| !end.contains(words)) {
            wrong.push(format!("after {command:?} on {node} it is not predicted what stops the packet: {stopped}"));
        }
    }
    Ok(wrong)
}

fn in_cluster(cluster: &Cluster) -> Result<Vec<String>> {
    super::deploy_world(cluster)?;
    cluster.kubectl(&["-n", "shop", "patch", "service", "web", "--patch", BOTH_FAMILIES])?;
    // Long before they are asked about: kube-proxy has its time.
    cluster.apply(SERVICES)?;
    let installed = install::install(cluster, Build::Tests)?;
    let mut wrong = Vec::new();
    let mut refused = Value::Null;
    // On a busy machine the first connection to an agent may take longer than the server waits.
    let is_refused = cluster.wait_until("a refusal", READY_WITHIN, || {
        refused =
            trace(cluster, &installed, &QUESTIONS[0], true).map_or(Value::Null, |mut answer| answer["not_seen"].take());
        refused.to_string().contains("--allow-trace")
    });
    if is_refused.is_err() {
        wrong.push(format!("agents that may not trace do not say so: {refused}"));
    }
    cluster.kubectl(&["-n", "netdiag-system", "set", "env", "daemonset/netdiag-node", "NETDIAG_ALLOW_TRACE=true"])?;
    cluster.kubectl(&["-n", "netdiag-system", "rollout", "status", "daemonset/netdiag-node", "--timeout=120s"])?;
    client::is_well(cluster)?;
    cluster.wait_until("two addresses of Service shop/web with rules", READY_WITHIN, || {
        trace(cluster, &installed, &QUESTIONS[0], false).is_ok_and(|answer| {
            answer["families"]
                .as_array()
                .is_some_and(|families| families.len() == 2 && families.iter().all(all_answered))
        })
    })?;
    let answer = ask(cluster, &installed, &QUESTIONS[0], &["--counters"])?;
    wrong.extend(miscounted(&answer).map(|line| format!("{line}: {answer}")));
    cluster.node_exec("n1", &["nft", SITE])?;
    let judged = without_a_rule(cluster, &installed);
    cluster.node_exec("n1", &["nft", "delete", "table", "inet", "site"])?;
    wrong.extend(judged?);
    for question in &QUESTIONS {
        let answer = trace(cluster, &installed, question, true)?;
        let said = missed(question, &answer);
        if !said.is_empty() {
            wrong.extend(said.into_iter().map(|line| format!("{} to {}: {line}", question.from, question.to)));
            wrong.push(format!("answer: {answer}"));
        }
    }
    for node in cluster.node_names() {
        let left = cluster.node_exec(&node, &["sh", "-c", "nft list tables | grep netdiag || true"])?;
        if !left.trim().is_empty() {
            wrong.push(format!("left on {node}: {left}"));
        }
    }
    Ok(wrong)
}

/// What is wrong with an answer.
fn missed(question: &Question, answer: &Value) -> Vec<String> {
    let mut wrong = Vec::new();
    if answer["not_seen"] != Value::Array(Vec::new()) {
        wrong.push(format!("not seen: {}", answer["not_seen"]));
    }
    let families = answer["families"].as_array().map_or(&[][..], Vec::as_slice);
    // Pods of the laboratory have one address of each family.
    if families.len() != 2 {
        wrong.push(format!("{} families", families.len()));
    }
    for family in families {
        let name = family["destination"].as_str().unwrap_or_default();
        let is_answered = all_answered(family);
        // The laboratory's nodes have no IPv6 route to Services: there, no answer is what must be predicted.
        if !name.contains('[') && is_answered != question.answered {
            wrong.push(format!("{name}: not every way ends as it does"));
        }
        let sent = family["sent"].as_str().unwrap_or_default();
        if (sent == "connected") != is_answered {
            wrong.push(format!("{name}: the attempt ended with {sent:?}, which was not predicted"));
        }
        if family["agreement"] == "differs" || (is_answered && family["agreement"] != "same") {
            wrong.push(format!("{name}: the trace is {}", family["agreement"]));
        }
        let taken = family["ways"].as_array().into_iter().flatten().filter(|way| way["taken"] == true);
        let untraced = taken.flat_map(|way| way["legs"].as_array().cloned().unwrap_or_default()).filter(|leg| {
            // A namespace without rules has nothing to trace.
            leg["place"] == "node" && leg["agreement"] == "not_traced"
        });
        wrong.extend(untraced.map(|leg| format!("{name}: nothing was traced on {}", leg["node"])));
    }
    wrong
}

fn all_answered(family: &Value) -> bool {
    family["ways"].as_array().is_some_and(|ways| !ways.is_empty() && ways.iter().all(|way| way["answered"] == true))
}

/// What is wrong with the counters of attempts that all get through.
fn miscounted(answer: &Value) -> Option<String> {
    let families = answer["families"].as_array().map_or(&[][..], Vec::as_slice);
    let is_right = |family: &&Value| {
        let sent = family["sent"].as_str().unwrap_or_default();
        sent.starts_with("12 of 12 ") && family["counters"]["fewer"] == 0
    };
    let wrong = families.iter().find(|family| !is_right(family));
    match wrong {
        Some(family) => Some(format!("{}: rules did not count what was predicted", family["destination"])),
        None if families.is_empty() => Some("no attempts were counted".to_owned()),
        None => None,
    }
}

/// What is wrong with predictions while a rule drops the packets: with it nothing is answered, without it everything, and both times
/// it is there.
fn without_a_rule(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let families = |answer: &Value| answer["families"].as_array().cloned().unwrap_or_default();
    let dropped = trace(cluster, installed, &QUESTIONS[0], false)?;
    let first = &dropped["families"][0]["ways"][0];
    let end = first["end"].as_str().unwrap_or_default();
    let behind = end.split_once(SITE_RULE).map(|(_, rest)| rest).unwrap_or_default();
    let handle: String = behind.chars().take_while(char::is_ascii_digit).collect();
    if handle.is_empty() || families(&dropped).iter().any(all_answered) {
        return Ok(vec![format!("the rule {SITE:?} is not said to drop the packets: {dropped}")]);
    }
    let rule = format!("{SITE_RULE}{handle}");
    let free = ask(cluster, installed, &QUESTIONS[0], &["--without", &rule])?;
    let mut wrong = Vec::new();
    let free_families = families(&free);
    if free_families.is_empty() || !free_families.iter().all(all_answered) {
        wrong.push(format!("without {rule:?} not every way is answered: {free}"));
    }
    if free["what_if"]["without"][0]["effect"] != "changes" {
        wrong.push(format!("it is not said that {rule:?} changes the way: {}", free["what_if"]));
    }
    let left = cluster.node_exec("n1", &["nft", "list", "table", "inet", "site"])?;
    if !left.contains("tcp dport 80 drop") {
        wrong.push(format!("the rule was left out of the node too: {left}"));
    }
    Ok(wrong)
}

fn trace(cluster: &Cluster, installed: &Installed, question: &Question, armed: bool) -> Result<Value> {
    let proof: &[&str] = if armed { &["--armed"] } else { &[] };
    ask(cluster, installed, question, proof)
}

fn ask(cluster: &Cluster, installed: &Installed, question: &Question, more: &[&str]) -> Result<Value> {
    let mut words = vec!["trace", "--from", question.from, "--to", question.to];
    words.extend(more);
    install::ask(&installed.server, cluster, &words)
}
