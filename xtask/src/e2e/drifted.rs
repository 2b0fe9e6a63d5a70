//! The case `drifted`: what a healthy cluster has programmed is what it intends, for every kind of Service and in two zones; one rule
//! less on one node is named, with the node and the Service, and is no more once it is back.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::Subject;
use crate::cluster::{Cluster, Options, ProxyMode};
use crate::install::{self, Installed};
use crate::netdiag_image::Build;

pub(super) const SUBJECT: Subject = Subject {
    name: "drifted",
    about: "a healthy cluster has no drift; one rule less on one node is named",
    home: None,
    run,
};

/// What changed less than 10 s before is not compared yet, and kube-proxy takes a second or two.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// The zones of both nodes, which one Service's clients stay in.
const ZONES: [(&str, &str); 2] = [("n1", "topology.kubernetes.io/zone=a"), ("n2", "topology.kubernetes.io/zone=b")];

/// Entrances of every kind, of both families. Load balancers ask for the health of `near`.
const SERVICES: &str = "
apiVersion: v1
kind: Service
metadata: {name: all, namespace: shop}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  sessionAffinity: ClientIP
  externalIPs: [203.0.113.9]
  loadBalancerSourceRanges: [198.51.100.0/24, 192.0.2.128/25]
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: shop}
spec:
  type: LoadBalancer
  externalTrafficPolicy: Local
  internalTrafficPolicy: Local
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: nobody, namespace: shop}
spec:
  type: NodePort
  selector: {app: nobody}
  ports: [{port: 80}]
---
apiVersion: v1
kind: Service
metadata: {name: zoned, namespace: shop}
spec:
  type: NodePort
  ipFamilyPolicy: PreferDualStack
  trafficDistribution: PreferClose
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
";

const BALANCER: &str = r#"{"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.10"}]}}}"#;

/// Where one rule is removed.
const NODE: &str = "n2";
/// The Service whose rule it is, by the address that the laboratory's world gives it.
const SERVICE: &str = "shop/web";
const ADDRESS: &str = "10.96.0.80";

/// Runs in a cluster of its own.
fn run(prefix: &str, mode: ProxyMode, keep: bool) -> Result<Vec<String>> {
    let name = format!("{prefix}d{}", &mode.name()[..3]);
    let options = Options { name, mode, dual_stack: true, ..Options::default() };
    super::in_own_cluster(&options, keep, |cluster| in_cluster(cluster, mode))
}

fn in_cluster(cluster: &Cluster, mode: ProxyMode) -> Result<Vec<String>> {
    super::deploy_world(cluster)?;
    for (node, zone) in ZONES {
        cluster.kubectl(&["label", "node", node, zone])?;
    }
    cluster.apply(SERVICES)?;
    cluster.wait_until("hints for both zones", READY_WITHIN, || is_hinted(cluster))?;
    cluster.kubectl(&["-n", "shop", "patch", "service", "all", "--subresource=status", "--patch", BALANCER])?;
    let installed = install::install(cluster, Build::Tests)?;
    let mut wrong = Vec::new();
    if let Err(error) = cluster.wait_until("no drift", READY_WITHIN, || is_same(cluster, &installed)) {
        wrong.push(format!("a healthy cluster: {error:#}: {}", drift(cluster, &installed)?));
        return Ok(wrong);
    }
    let (remove, restore) = commands(mode);
    cluster.node_exec(NODE, &["sh", "-c", &remove])?;
    let answer = drift(cluster, &installed)?;
    wrong.extend(missed(&answer).map(|line| format!("{line}: {answer}")));
    cluster.node_exec(NODE, &["sh", "-c", &restore])?;
    if let Err(error) = cluster.wait_until("no drift again", READY_WITHIN, || is_same(cluster, &installed)) {
        wrong.push(format!("after the rule is back: {error:#}: {}", drift(cluster, &installed)?));
    }
    Ok(wrong)
}

/// Takes the address's rule away, and puts it back.
fn commands(mode: ProxyMode) -> (String, String) {
    const KEPT: &str = "/tmp/netdiag-drifted";
    match mode {
        ProxyMode::Nftables => {
            let key = format!("{ADDRESS} . tcp . 80");
            (
                format!(
                    "nft list map ip kube-proxy service-ips | grep -o '{key}[^,}}]*goto [^ ,}}]*' > {KEPT} && test -s {KEPT} \
                     && nft delete element ip kube-proxy service-ips '{{ {key} }}'"
                ),
                format!("nft add element ip kube-proxy service-ips \"{{ $(cat {KEPT}) }}\""),
            )
        }
        ProxyMode::Iptables => (
            format!(
                "iptables-save -t nat | grep -e '-A KUBE-SERVICES -d {ADDRESS}/32 .*--dport 80 ' > {KEPT} && test -s {KEPT} && \
                 sed 's/^-A/-D/; 1i *nat' {KEPT} | {{ cat; echo COMMIT; }} | iptables-restore --noflush"
            ),
            format!(
                "{{ echo '*nat'; sed 's/^-A KUBE-SERVICES/-I KUBE-SERVICES 1/' {KEPT}; echo COMMIT; }} | iptables-restore --noflush"
            ),
        ),
    }
}

/// In each of both families, every endpoint is meant for a zone.
fn is_hinted(cluster: &Cluster) -> bool {
    let hints = "jsonpath={range .items[*]}{.endpoints[*].hints.forZones[*].name}{\"\\n\"}{end}";
    let of_zoned = "kubernetes.io/service-name=zoned";
    let slices = cluster.kubectl(&["-n", "shop", "get", "endpointslices", "-l", of_zoned, "-o", hints]);
    let is_whole = |zones: &str| zones.split_whitespace().count() == 3;
    slices.is_ok_and(|slices| slices.lines().count() == 2 && slices.lines().all(is_whole))
}

/// Nothing differs, and nothing is too young to be compared.
fn is_same(cluster: &Cluster, installed: &Installed) -> bool {
    let is_settled =
        |answer: &Value| answer["nodes"].as_array().is_some_and(|nodes| nodes.iter().all(|node| node["settling"] == 0));
    drift(cluster, installed).is_ok_and(|answer| answer["status"] == "same" && is_settled(&answer))
}

/// What is wrong with the answer about one rule less.
fn missed(answer: &Value) -> Option<String> {
    let nodes = answer["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    for node in nodes.iter().filter(|node| node["node"] != NODE) {
        if node["status"] != "same" {
            return Some(format!("node {} is {}", node["node"], node["status"]));
        }
    }
    let differences: Vec<&Value> = nodes
        .iter()
        .filter(|node| node["node"] == NODE)
        .flat_map(|node| node["differences"].as_array().into_iter().flatten())
        .collect();
    let [one] = differences[..] else { return Some(format!("{} differences on {NODE}, and not 1", differences.len())) };
    let service = one["service"].as_str().unwrap_or_default();
    let is_named = one["kind"] == "missing"
        && (service == SERVICE || service.starts_with(&format!("{SERVICE}:")))
        && one["entrance"].as_str().is_some_and(|entrance| entrance == format!("{ADDRESS}:80/tcp"));
    (!is_named).then(|| format!("the difference is {one}"))
}

fn drift(cluster: &Cluster, installed: &Installed) -> Result<Value> {
    install::ask(&installed.server, cluster, &["drift"])
}
