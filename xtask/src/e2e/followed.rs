//! The case `followed`: ten drops, one after the other, and a probe that is followed must name the node and the place of each; one
//! row each in `drops.yaml`. Some are met once more in IPv6, and by kinds of probes with several packets. Before and after, probes
//! that arrive.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde::Deserialize;
use serde_json::Value;

use super::attach::drop_all;
use super::case::Step;
use super::fault::Fault;
use super::observed::Space;
use super::{Subject, client, probed, world};
use crate::cluster::{Cluster, Options, ProxyMode};
use crate::install::Installed;

pub(super) const SUBJECT: Subject = Subject {
    name: "followed",
    about: "ten drops in IPv4, four of them in IPv6, and four kinds of probes, followed: node, namespace, reason, function",
    // Kernels drop packets alike in either mode.
    home: Some(ProxyMode::Nftables),
    run,
};

/// A fault must show within this: kube-proxy has had its time, and each look takes eight seconds.
const SHOWS_WITHIN: Duration = Duration::from_secs(40);

const KEEP_NEIGHBOURS: &str = "ip -4 neigh show dev eth0 | grep lladdr | while read -r address _ mac _; do
    ip neigh replace $address lladdr $mac dev eth0 nud permanent
done";

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Drop {
    #[serde(rename = "drop")]
    name: String,
    /// It is one of the others, met in another way.
    #[serde(default)]
    #[cfg_attr(not(test), expect(dead_code, reason = "a test counts the others"))]
    also: bool,
    #[serde(default = "ipv4")]
    family: String,
    inject: Vec<Step>,
    /// What no command of the node can do.
    #[serde(default)]
    program: Option<Program>,
    restore: Vec<Step>,
    /// `netdiag probe`'s words without source and target.
    probe: Vec<String>,
    to: String,
    expect: Expect,
}

/// A program that drops all that comes in from a pod.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Program {
    node: String,
    /// `NAMESPACE/NAME`, on that node.
    pod: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Expect {
    #[serde(default = "failed")]
    status: String,
    node: String,
    place: String,
    /// Any of them.
    reasons: Vec<String>,
    /// With one of them the function's name begins.
    functions: Vec<String>,
    /// Empty where netfilter did not drop it.
    #[serde(default)]
    hook: String,
    /// Words of the rule or route.
    #[serde(default)]
    by: String,
    /// Words of the way.
    #[serde(default)]
    way: String,
}

fn ipv4() -> String {
    "ipv4".to_owned()
}

fn failed() -> String {
    "failed".to_owned()
}

fn load() -> Result<Vec<Drop>> {
    serde_saphyr::from_str(include_str!("drops.yaml")).context("in drops.yaml")
}

/// Runs in a cluster of its own.
fn run(prefix: &str, mode: ProxyMode, keep: bool) -> Result<Vec<String>> {
    let name = format!("{prefix}f{}", &mode.name()[..3]);
    let options = Options { name, mode, dual_stack: true, ..Options::default() };
    super::in_own_cluster(&options, keep, |cluster| {
        super::deploy_world(cluster)?;
        let installed = super::install_on_n1(cluster)?;
        in_cluster(cluster, &installed)
    })
}

fn in_cluster(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    client::is_well(cluster)?;
    let mut wrong = arrives(cluster, installed)?;
    for drop in load()? {
        let fault = Fault { name: &drop.name, inject: &drop.inject, restore: &drop.restore };
        let look = || {
            // The program is there as long as its descriptor.
            let _program = drop.program.as_ref().map(|program| attach(cluster, program)).transpose()?;
            shows(cluster, installed, &drop)
        };
        wrong.extend(fault.under(cluster, look)?);
    }
    client::is_well(cluster).context("after the last drop")?;
    wrong.extend(arrives(cluster, installed)?);
    Ok(wrong)
}

fn attach(cluster: &Cluster, program: &Program) -> Result<OwnedFd> {
    let (namespace, name) = program.pod.split_once('/').context("a pod is NAMESPACE/NAME")?;
    let address = client::pod_address(cluster, namespace, name)?;
    let route = cluster.node_exec(&program.node, &["ip", "-o", "route", "get", &address])?;
    let mut words = route.split_whitespace().skip_while(|word| *word != "dev");
    let device = words.nth(1).with_context(|| format!("no device leads to {address}: {route}"))?;
    // The program drops ARP as well: what the pod has found is to stay.
    Space::of_pod(cluster, namespace, name)?.sh(KEEP_NEIGHBOURS)?;
    Space::of_node(cluster, &program.node)?.run(|| {
        let index = nix::net::if_::if_nametoindex(device).with_context(|| format!("no device {device}"))?;
        drop_all("tcx-ingress", index).with_context(|| format!("cannot attach a program to {device}"))
    })
}

fn followed(cluster: &Cluster, installed: &Installed, words: &[&str], family: &str, to: &str) -> Result<Value> {
    probed::probe(cluster, installed, &[words, &["--family", family, "--follow"]].concat(), world::CLIENT, to)
}

/// The way of what was followed. A name's own lookup comes before it.
fn way_of(answer: &Value) -> &Value {
    let series = answer["series"].as_array().map_or(&[][..], Vec::as_slice);
    series.iter().map(|series| &series["followed"]).find(|way| !way.is_null()).unwrap_or(&Value::Null)
}

/// Times that a look may be spoilt by the other cluster.
const LOOKS_BESIDE_OTHERS: usize = 4;

/// What arrives, and the words of its way: connections are followed to the listener, over each translation.
const ARRIVES: [(&str, &str, &[&str]); 3] = [
    ("tcp", "service/shop/web:80", &["sent from n1", "DNAT to 10.244.", "delivered on n"]),
    ("http", "service/shop/web:80", &["sent from n1", "DNAT to 10.244.", "delivered on n"]),
    ("icmp", "pod/shop/web-2", &["sent from n1", "to n2"]),
];

fn arrives(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (kind, to, words) in ARRIVES {
        let mut answer = followed(cluster, installed, &[kind], "ipv4", to)?;
        // The clusters of both modes share one kernel and have the same addresses: the other one's packets may be too many
        // to tell, which is said, and asked again.
        for _ in 0..LOOKS_BESIDE_OTHERS {
            if answer["status"] != "unknown" {
                break;
            }
            answer = followed(cluster, installed, &[kind], "ipv4", to)?;
        }
        let way = way_of(&answer);
        let text = way["way"].as_str().unwrap_or_default();
        let is_right = answer["status"] == "well"
            && way["end"] == "answered"
            && way["dropped"].is_null()
            && words.iter().all(|words| text.contains(words));
        if !is_right {
            wrong.push(format!("{kind} that is well: {answer}"));
        }
    }
    Ok(wrong)
}

/// Asks until the drop shows as it must; else says what was told last.
fn shows(cluster: &Cluster, installed: &Installed, drop: &Drop) -> Result<Option<String>> {
    let words: Vec<&str> = drop.probe.iter().map(String::as_str).collect();
    let started = Instant::now();
    loop {
        let answer = followed(cluster, installed, &words, &drop.family, &drop.to)?;
        if is_told(&answer, &drop.expect) {
            return Ok(None);
        }
        if started.elapsed() > SHOWS_WITHIN {
            return Ok(Some(format!("instead of {:?}: {}: {answer}", drop.expect, answer["verdict"])));
        }
    }
}

fn is_told(answer: &Value, expect: &Expect) -> bool {
    let followed = way_of(answer);
    let dropped = &followed["dropped"];
    let word = |key: &str| dropped[key].as_str().unwrap_or_default();
    let way = followed["way"].as_str().unwrap_or_default();
    answer["status"] == expect.status.as_str()
        && (word("node"), word("place"), word("hook")) == (&*expect.node, &*expect.place, &*expect.hook)
        && expect.reasons.iter().any(|reason| reason == word("reason"))
        && expect.functions.iter().any(|function| word("function").starts_with(function.as_str()))
        && word("by").contains(&expect.by)
        && way.starts_with("sent from n1")
        && way.contains(&expect.way)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_drops_are_there_and_put_back() {
        let all = load().unwrap();
        assert_eq!(all.iter().filter(|drop| !drop.also).count(), 10);
        assert_eq!(all.iter().filter(|drop| drop.family == "ipv6").count(), 4);
        for drop in &all {
            assert!(drop.inject.is_empty() || !drop.restore.is_empty(), "{}", drop.name);
        }
    }

    #[test]
    fn an_answer_is_compared_in_every_word() {
        let expect: Expect =
            serde_saphyr::from_str("{node: n2, place: node, reasons: [A, B], functions: [f], hook: forward, by: site}")
                .unwrap();
        let answer = |node: &str, reason: &str, by: &str| {
            serde_json::json!({"status": "failed", "series": [{"followed": {"way": "sent from n1 → dropped", "dropped":
                {"node": node, "place": "node", "reason": reason, "function": "f.isra.0", "hook": "forward", "by": by}}}]})
        };
        assert!(is_told(&answer("n2", "B", "rule of inet site"), &expect));
        for other in [answer("n1", "B", "site"), answer("n2", "C", "site"), answer("n2", "A", "")] {
            assert!(!is_told(&other, &expect), "{other}");
        }
    }
}
