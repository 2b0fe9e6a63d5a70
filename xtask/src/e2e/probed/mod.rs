//! The case `probed`: every kind of probe from a pod's own namespace in a dual-stack cluster, IPv4 and IPv6, and some from a node's;
//! the ladder and the matrix of a healthy Service; a ladder that breaks, a matrix by zone; TLS of the API server, beside a Secret, and
//! of a pod; a pod's control group, other owners and marks; servers that take all bytes or break off; who may probe; scrapes as of
//! blackbox_exporter. Then the symptoms that clients know, each injected and told by its class.

mod agent;
mod certificate;
mod compared;
mod entrance;
mod group;
mod identity;
mod rights;
mod scrape;
mod secure;
mod served;

use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use super::world::CLIENT;
use super::{Subject, symptoms};
use crate::cluster::{Cluster, Options, ProxyMode};
use crate::install::{self, Installed};

pub(super) const SUBJECT: Subject = Subject {
    name: "probed",
    about: "every kind of probe from a pod, IPv4 and IPv6; clients' symptoms by class, errno, stage and time",
    // The engine does not depend on kube-proxy's mode.
    home: Some(ProxyMode::Nftables),
    run,
};

/// kube-proxy programs an address that is new within a second or two.
const READY_WITHIN: Duration = Duration::from_secs(30);

/// A Service of both families with a node port, and addresses that nobody has: kube-proxy translates them on each node.
const BOTH_FAMILIES: &str = r#"{"spec": {"type": "NodePort", "ipFamilyPolicy": "PreferDualStack",
    "externalIPs": ["10.255.0.80", "fd00:10:255::80"]}}"#;
const DNS_OF_BOTH: &str = r#"{"spec": {"ipFamilyPolicy": "PreferDualStack"}}"#;
/// The agents may fill a link for a moment, and make sockets in a pod's control group.
const ALLOWED: [&str; 2] = ["NETDIAG_PROBE_THROUGHPUT=true", "NETDIAG_PROBE_JOIN_CGROUP=true"];
/// What it takes to be another owner.
const SETUID: &str = r#"[{"op": "add", "path": "/spec/template/spec/containers/0/securityContext/capabilities/add/-",
    "value": "SETUID"}]"#;
/// A server that answers datagrams, and one that takes bytes: `agnhost netexec` speaks UDP at this port.
const UDP: &str = "
apiVersion: v1
kind: Service
metadata: {name: udp, namespace: shop}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: udp, port: 8081, protocol: UDP}]
";

/// One kind of probe that is well.
struct Healthy {
    words: &'static [&'static str],
    to: &'static str,
    /// Targets that must be told of: one for each family, or one in all.
    series: usize,
}

const HEALTHY: [Healthy; 18] = [
    Healthy { words: &["tcp", "-c", "12"], to: "service/shop/web:80", series: 2 },
    Healthy { words: &["tcp", "--source-port", "61777", "-c", "1"], to: "pod/shop/web-2:8080", series: 2 },
    Healthy { words: &["http", "--path", "/healthz"], to: "service/shop/web:80", series: 2 },
    Healthy { words: &["http"], to: "http://web.shop.svc.cluster.local/hostname", series: 1 },
    Healthy { words: &["dns"], to: "service/shop/web", series: 1 },
    // As a program asks, by the Service's address, and by its only replica.
    Healthy { words: &["dns", "--server", "each", "--family", "ipv4"], to: "web.shop.svc.cluster.local", series: 3 },
    Healthy { words: &["dns", "--server", "each", "--family", "ipv6"], to: "web.shop.svc.cluster.local", series: 3 },
    Healthy {
        words: &["dns", "--server", "service/kube-system/kube-dns", "--transport", "tcp"],
        to: "web.shop.svc.cluster.local",
        series: 2,
    },
    Healthy { words: &["udp", "--payload", "hostname", "--datagrams", "1"], to: "service/shop/udp:8081", series: 2 },
    Healthy { words: &["icmp", "-c", "5", "--interval", "20ms"], to: "pod/shop/web-2", series: 2 },
    // There and back, in both families.
    Healthy { words: &["mtu"], to: "pod/shop/web-2", series: 4 },
    Healthy { words: &["path", "--by", "tcp"], to: "pod/shop/web-2:8080", series: 2 },
    Healthy { words: &["path", "--by", "icmp"], to: "pod/shop/web-2", series: 2 },
    Healthy { words: &["path", "--by", "udp"], to: "pod/shop/web-2", series: 2 },
    Healthy { words: &["raw", "--flags", "syn"], to: "pod/shop/web-2:8080", series: 2 },
    // Nobody listens there, and the far kernel's word is the answer.
    Healthy { words: &["raw", "--segment", "udp"], to: "pod/shop/web-2:9", series: 2 },
    Healthy { words: &["raw", "--segment", "echo"], to: "pod/shop/web-2", series: 2 },
    Healthy {
        words: &["raw", "--segment", "echo", "--bytes", "3000", "--fragment-bytes", "1400"],
        to: "pod/shop/web-2",
        series: 2,
    },
];
/// The same from a node's own namespace.
const FROM_NODE: [Healthy; 2] = [
    Healthy { words: &["tcp"], to: "pod/shop/web-2:8080", series: 2 },
    Healthy { words: &["icmp"], to: "pod/shop/web-2", series: 2 },
];

/// Runs in a cluster of its own.
fn run(prefix: &str, mode: ProxyMode, keep: bool) -> Result<Vec<String>> {
    let name = format!("{prefix}p{}", &mode.name()[..3]);
    let options = Options { name, mode, dual_stack: true, ..Options::default() };
    super::in_own_cluster(&options, keep, in_cluster)
}

fn in_cluster(cluster: &Cluster) -> Result<Vec<String>> {
    super::deploy_world(cluster)?;
    cluster.kubectl(&["-n", "shop", "patch", "service", "web", "--patch", BOTH_FAMILIES])?;
    cluster.kubectl(&["-n", "kube-system", "patch", "service", "kube-dns", "--patch", DNS_OF_BOTH])?;
    cluster.apply(UDP)?;
    let installed = super::install_on_n1(cluster)?;
    let set = ["-n", "netdiag-system", "set", "env", "daemonset/netdiag-node"];
    cluster.kubectl(&[&set[..], &ALLOWED[..]].concat())?;
    let patch = ["-n", "netdiag-system", "patch", "daemonset/netdiag-node", "--type=json", "--patch", SETUID];
    cluster.kubectl(&patch)?;
    cluster.kubectl(&["-n", "netdiag-system", "rollout", "status", "daemonset/netdiag-node", "--timeout=120s"])?;
    cluster.wait_until("both addresses of Service shop/web", READY_WITHIN, || {
        probe(cluster, &installed, &["tcp"], CLIENT, "service/shop/web:80").is_ok_and(|answer| {
            answer["status"] == "well" && answer["series"].as_array().is_some_and(|all| all.len() == 2)
        })
    })?;
    let mut wrong = Vec::new();
    let from_client = HEALTHY.iter().map(|healthy| (CLIENT, healthy));
    for (from, healthy) in from_client.chain(FROM_NODE.iter().map(|healthy| ("node/n1", healthy))) {
        let answer = probe(cluster, &installed, healthy.words, from, healthy.to)?;
        let why = not_well(&answer, healthy.series);
        wrong.extend(why.map(|why| format!("{} from {from} to {}: {why}", healthy.words.join(" "), healthy.to)));
    }
    wrong.extend(endpoints(cluster, &installed)?);
    wrong.extend(tls(cluster, &installed)?);
    wrong.extend(throughput(cluster, &installed)?);
    wrong.extend(or_why_not("servers in a pod", served::looked_at(cluster, &installed)));
    wrong.extend(or_why_not("TLS of a pod", secure::looked_at(cluster, &installed)));
    wrong.extend(or_why_not("owners and marks", identity::matched(cluster, &installed)));
    wrong.extend(ladder(cluster, &installed)?);
    wrong.extend(entrance::fake_ingress(cluster, &installed)?);
    wrong.extend(entrance::fake_gateway(cluster, &installed)?);
    wrong.extend(certificate::compared(cluster, &installed)?);
    wrong.extend(group::joined(cluster, &installed)?);
    // What comes next asks with the token of an account that is made here.
    wrong.extend(rights::asked(cluster, &installed).context("rights")?);
    wrong.extend(scrape::scraped(cluster)?);
    wrong.extend(matrix(cluster, &installed)?);
    wrong.extend(or_why_not("a matrix by zone and a ladder", compared::looked_at(cluster, &installed)));
    wrong.extend(symptoms::run(cluster, &installed).context("symptoms")?);
    Ok(wrong)
}

/// What could not be looked at is wrong, too; the rest is looked at all the same.
fn or_why_not(what: &str, found: Result<Vec<String>>) -> Vec<String> {
    found.unwrap_or_else(|error| vec![format!("{what}: {error:#}")])
}

/// Asks as people do: by the server in the cluster. What gave no answer is asked once more, and said: a machine that stood still
/// for minutes is no fault of what is tried.
pub(super) fn probe(cluster: &Cluster, installed: &Installed, words: &[&str], from: &str, to: &str) -> Result<Value> {
    let all = [&["probe"], words, &["--from", from, "--to", to]].concat();
    install::ask(&installed.server, cluster, &all).or_else(|error| {
        println!("        asked again: {error:#}");
        install::ask(&installed.server, cluster, &all)
    })
}

fn not_well(answer: &Value, series: usize) -> Option<String> {
    let told = answer["series"].as_array().map_or(0, Vec::len);
    let is_well = answer["status"] == "well" && told == series && answer["not_seen"] == Value::Array(Vec::new());
    (!is_well)
        .then(|| format!("{told} targets instead of {series}, {}: {}: {answer}", answer["status"], answer["verdict"]))
}

/// Each endpoint behind the address is known by the kernel's own record of the translation.
fn endpoints(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    let answer = probe(cluster, installed, &["tcp", "-c", "60", "--family", "ipv4"], CLIENT, "service/shop/web:80")?;
    let endpoints = answer["series"][0]["tally"]["endpoints"].as_array().cloned().unwrap_or_default();
    let made: u64 = endpoints.iter().filter_map(|endpoint| endpoint["made"].as_u64()).sum();
    // One of three is met by none of 60 once in 10^10 times.
    Ok((endpoints.len() != 3 || made != 60).then(|| format!("endpoints of 60 attempts: {endpoints:?}")))
}

/// The API server's certificate is of the cluster's own authority, which nobody trusts who was not told of it.
fn tls(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    let answer = probe(cluster, installed, &["tls"], CLIENT, "service/default/kubernetes:443")?;
    let text = answer["series"].to_string();
    let is_right = answer["status"] == "failed" && text.contains("\"certificate\"") && text.contains("TLSv1.3");
    Ok((!is_right).then(|| format!("TLS of the API server: {answer}")))
}

/// Any server that takes bytes will do; what it says of them does not matter.
fn throughput(cluster: &Cluster, installed: &Installed) -> Result<Option<String>> {
    let words = ["throughput", "--duration-ms", "300", "--max-bytes", "1000000"];
    let answer = probe(cluster, installed, &words, CLIENT, "pod/shop/web-2:8080")?;
    // An HTTP server may close when it is sent no request: that is told, and nothing else may be.
    let classes: Vec<&str> = answer["series"]
        .as_array()
        .into_iter()
        .flatten()
        .flat_map(|series| series["tally"]["failures"].as_array().into_iter().flatten())
        .filter_map(|failure| failure["class"].as_str())
        .collect();
    let is_right = classes.iter().all(|class| ["closed", "reset"].contains(class))
        && answer["not_seen"] == Value::Array(Vec::new());
    Ok((!is_right).then(|| format!("throughput: {answer}")))
}

fn ladder(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let answer = probe(cluster, installed, &["ladder"], CLIENT, "service/shop/web:80")?;
    let ladders = answer["ladders"].as_array().cloned().unwrap_or_default();
    let mut wrong = Vec::new();
    if ladders.len() != 2 {
        wrong.push(format!("ladders of {} families: {answer}", ladders.len()));
    }
    for ladder in &ladders {
        let holding = |rung: &Value| {
            let attempts = rung["attempts"].as_array().map_or(&[][..], Vec::as_slice);
            let own = attempts.iter().filter(|climbed| climbed["role"] == "client" || climbed["role"] == "server");
            own.filter(|climbed| climbed["tally"]["failed"] == 0).count()
        };
        let rungs = ladder["rungs"].as_array().map_or(&[][..], Vec::as_slice);
        for name in ["own_listener", "pod_ip", "cluster_ip", "name", "node_port", "external_ip"] {
            let rung = rungs.iter().find(|rung| rung["rung"] == name);
            if rung.is_none_or(|rung| holding(rung) == 0) {
                wrong.push(format!("rung {name} of {} does not hold: {ladder}", ladder["family"]));
            }
        }
        if !ladder["conclusion"].as_str().is_some_and(|text| text.starts_with("all ")) {
            wrong.push(format!("the ladder of {} concludes {}", ladder["family"], ladder["conclusion"]));
        }
    }
    Ok(wrong)
}

fn matrix(cluster: &Cluster, installed: &Installed) -> Result<Vec<String>> {
    let answer = probe(cluster, installed, &["matrix", "-c", "30"], CLIENT, "service/shop/web:80")?;
    let mut wrong = Vec::new();
    for family in ["IPv4", "IPv6"] {
        let rows = answer["matrix"]["rows"].as_array().cloned().unwrap_or_default();
        let Some(signature) = rows.iter().find(|row| row["from"] == "signature" && row["family"] == family) else {
            wrong.push(format!("the matrix has no signature of {family}: {answer}"));
            continue;
        };
        for cell in signature["cells"].as_array().into_iter().flatten() {
            if cell["mark"] != "✓" {
                wrong.push(format!("{family} {} is {}: {}", cell["column"], cell["mark"], cell["why"]));
            }
        }
    }
    Ok(wrong)
}
