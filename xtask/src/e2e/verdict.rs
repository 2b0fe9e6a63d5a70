//! Asking netdiag as its users do, and comparing its answer with the case.

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::asker::{Asker, BLIND_PORT};
use super::case::{Case, Names};
use crate::cluster::Cluster;
use crate::command;

/// How the answer is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Through the server in the cluster, as users do.
    Server,
    /// With one view taken away.
    Without(View),
}

/// What a case is asked without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum View {
    /// No agent answers on any node.
    Agents,
    /// The caller may not list NetworkPolicies.
    Policies,
    /// The agents found no BTF, so no kernel program runs.
    Btf,
}

impl View {
    pub(super) const ALL: [Self; 3] = [Self::Agents, Self::Policies, Self::Btf];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Agents => "no agents",
            Self::Policies => "no rights on policies",
            Self::Btf => "no BTF",
        }
    }
}

/// One answer, as far as it is compared.
pub(super) struct Answer {
    pub(super) status: String,
    pub(super) codes: Vec<String>,
    pub(super) subjects: Vec<String>,
    pub(super) confidence: f64,
    pub(super) seconds: f64,
    pub(super) json: Value,
}

/// Nothing listens on it: every agent is absent.
const CLOSED_PORT: u16 = 1;
/// Where installed agents listen.
const AGENT_PORT: u16 = 9443;

pub(super) fn ask(cluster: &Cluster, asker: &Asker, case: &Case, way: Way) -> Result<Answer> {
    let mut command = Command::new(&asker.program);
    command.args(["diagnose", "--to", &case.ask.to, "-o", "json"]);
    if let Some(from) = &case.ask.from {
        command.args(["--from", from]);
    }
    if let Some(protocol) = &case.ask.protocol {
        command.args(["--protocol", protocol]);
    }
    let mut kubeconfig = cluster.kubeconfig();
    if let Way::Without(view) = way {
        let port = match view {
            View::Agents => CLOSED_PORT,
            View::Policies => {
                kubeconfig.clone_from(&asker.limited);
                AGENT_PORT
            }
            View::Btf => BLIND_PORT,
        };
        command.arg("--direct").arg("--tls-dir").arg(&asker.tls).arg("--agent-port").arg(port.to_string());
    }
    command.arg("--kubeconfig").arg(kubeconfig);
    let started = Instant::now();
    let output = command.output().with_context(|| format!("cannot start {}", asker.program.display()))?;
    let seconds = started.elapsed().as_secs_f64();
    let said = String::from_utf8_lossy(&output.stderr);
    let json: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| format!("netdiag printed no answer ({}): {}", output.status, command::tail(&said, 10)))?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let causes = json["causes"].as_array().cloned().unwrap_or_default();
    let subjects = causes.first().and_then(|cause| cause["subjects"].as_array()).cloned().unwrap_or_default();
    Ok(Answer {
        status: text(&json["status"]),
        codes: causes.iter().map(|cause| text(&cause["code"])).collect(),
        subjects: subjects.iter().map(subject).collect(),
        confidence: json["confidence"].as_f64().unwrap_or_default(),
        seconds,
        json,
    })
}

/// `Service shop/web`, `Node n1`.
fn subject(subject: &Value) -> String {
    let text = |key: &str| subject[key].as_str().unwrap_or_default();
    match text("namespace") {
        "" => format!("{} {}", text("kind"), text("name")),
        namespace => format!("{} {namespace}/{}", text("kind"), text("name")),
    }
}

/// What is wrong with the full answer; empty when nothing is.
pub(super) fn compare(case: &Case, answer: &Answer) -> Vec<String> {
    let mut wrong = Vec::new();
    if !case.expect.status.split(" or ").any(|status| status == answer.status) {
        wrong.push(format!("status {} instead of {}", answer.status, case.expect.status));
    }
    let expected: Vec<String> = case.expect.code.iter().cloned().collect();
    if answer.codes != expected {
        wrong.push(format!("causes {:?} instead of {expected:?}", answer.codes));
    } else if answer.subjects != case.expect.subjects {
        wrong.push(format!("subjects {:?} instead of {:?}", answer.subjects, case.expect.subjects));
    } else if let Some(names) = &case.expect.names {
        wrong.extend(unnamed(names, &answer.json["causes"][0]));
    }
    wrong
}

/// What the cause should name and does not.
fn unnamed(names: &Names, cause: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let Names { node, rule, owner, object } = names;
    let proofs = cause["proof"].as_array().map_or(&[][..], Vec::as_slice);
    let of_node: Vec<String> =
        proofs.iter().filter(|proof| proof["node"] == *node).map(|proof| text(&proof["text"])).collect();
    let mut wrong = Vec::new();
    if !of_node.iter().any(|proof| rule.iter().all(|words| says(proof, words))) {
        wrong.push(format!("no proof of node {node} says {rule:?}: {of_node:?}"));
    }
    let mut told = vec![text(&cause["claim"])];
    told.extend(proofs.iter().flat_map(|proof| [text(&proof["source"]), text(&proof["text"])]));
    let is_told = |words: &str, more: &[String]| told.iter().chain(more).any(|told| says(told, words));
    // A fix has the same words whatever was found.
    if let Some(owner) = owner
        && !is_told(owner, &[])
    {
        wrong.push(format!("the owner {owner:?} is not named"));
    }
    let subjects = cause["subjects"].as_array().map_or(&[][..], Vec::as_slice);
    if !is_told(object, &subjects.iter().map(subject).collect::<Vec<_>>()) {
        wrong.push(format!("the object {object:?} is not named"));
    }
    wrong
}

/// One of the choices is there.
fn says(text: &str, words: &str) -> bool {
    words.split(" or ").any(|words| text.contains(words))
}

/// With a view taken away: the same cause, not more certain than before, or none.
pub(super) fn compare_without(case: &Case, full: &Answer, answer: &Answer) -> Vec<String> {
    let mut wrong = Vec::new();
    if let Some(other) = answer.codes.iter().find(|code| Some(*code) != case.expect.code.as_ref()) {
        wrong.push(format!("another cause: {other}"));
    }
    if answer.codes.is_empty() && case.expect.code.is_some() && answer.status == "healthy" {
        wrong.push("called healthy".to_owned());
    }
    if !answer.codes.is_empty() && answer.confidence > full.confidence {
        wrong.push(format!(
            "confidence {} is above {} with all views, where undecided was {} and not seen {}",
            answer.confidence, full.confidence, full.json["undecided"], full.json["not_seen"]
        ));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn names(rule: &[&str], owner: &str, object: &str) -> Names {
        let rule = rule.iter().map(|words| (*words).to_owned()).collect();
        Names { node: "n1".to_owned(), rule, owner: Some(owner.to_owned()), object: object.to_owned() }
    }

    #[test]
    fn node_rule_owner_and_object_are_looked_for() {
        let cause = json!({
            "claim": "on node n1, table inet site, chain fw, handle 4 stops the path to Service shop/web: drop (written by ufw)",
            "subjects": [{"kind": "Node", "namespace": "", "name": "n1"}],
            "proof": [
                {"node": "n1", "source": "packet filter", "text": "table inet site, chain fw, handle 4: tcp dport 8080 drop"},
                {"node": "n2", "source": "routes", "text": "default via 172.30.0.1"}
            ],
            "fix": {"text": "ask whoever writes it: ufw or Docker"}
        });
        let wrong = |rule: &[&str], owner, object| unnamed(&names(rule, owner, object), &cause).len();
        assert_eq!(wrong(&["chain fw", "dport 8080"], "ufw", "Service shop/web"), 0);
        assert_eq!(wrong(&["chain fw", "DROP or drop"], "firewalld or ufw", "Node n1"), 0);
        assert_eq!(wrong(&["dport 9090"], "ufw", "Service shop/web"), 1);
        // It was read on another node.
        assert_eq!(wrong(&["default via"], "ufw", "Service shop/web"), 1);
        assert_eq!(wrong(&["chain fw"], "firewalld", "Service shop/web"), 1);
        // Only the fix has the word.
        assert_eq!(wrong(&["chain fw"], "Docker", "Service shop/web"), 1);
        assert_eq!(wrong(&["chain fw"], "ufw", "Service pay/ledger"), 1);
        assert_eq!(unnamed(&names(&["drop"], "ufw", "Service shop/web"), &Value::Null).len(), 3);
    }
}
