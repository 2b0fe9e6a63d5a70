//! The case `drifted`: what a healthy cluster has programmed is what it intends, for every kind of Service and in two zones; five
//! faults on one node are named, each with what it is about and nothing besides, and are no more once all is back.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::Subject;
use crate::cluster::{Cluster, Options, ProxyMode};
use crate::install::{self, Installed};
use crate::netdiag_image::Build;

pub(super) const SUBJECT: Subject = Subject {
    name: "drifted",
    about: "a healthy cluster has no drift; five faults on one node are named",
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

/// Where the faults are.
const NODE: &str = "n2";
/// The Service whose rule it is, by the address that the laboratory's world gives it.
const SERVICE: &str = "shop/web";
const ADDRESS: &str = "10.96.0.80";
/// Of no Service: by itself the API server gives out the lowest 256 addresses last (KEP-3070).
const OLD_ADDRESS: &str = "10.96.0.99";
/// Pods of the other node.
const OTHER_PODS: &str = "10.244.1.0/24";
/// Where the node's rules are kept meanwhile: its own, since both modes run side by side and nodes share /tmp.
const KEPT: &str = "/run/netdiag-drifted";

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
    // From the other node the server would lose this one's agent together with its route to the pods there: it is a pod, and its
    // questions come from a pod's address.
    let installed = super::on_node(cluster, NODE, || install::install(cluster, Build::Tests))?;
    let mut wrong = Vec::new();
    if let Err(error) = cluster.wait_until("no drift", READY_WITHIN, || is_same(cluster, &installed)) {
        wrong.push(format!("a healthy cluster: {error:#}: {}", drift(cluster, &installed)?));
        return Ok(wrong);
    }
    let faults = faults(mode);
    for fault in &faults {
        cluster.node_exec(NODE, &["sh", "-ec", &fault.inject])?;
    }
    // At once, since what differs is looked at twice, ten seconds apart.
    let answer = drift(cluster, &installed)?;
    wrong.extend(missed(&answer, &faults).into_iter().map(|line| format!("{line}: {answer}")));
    for fault in faults.iter().rev() {
        cluster.node_exec(NODE, &["sh", "-ec", &fault.restore])?;
    }
    if let Err(error) = cluster.wait_until("no drift again", READY_WITHIN, || is_same(cluster, &installed)) {
        wrong.push(format!("after all is back: {error:#}: {}", drift(cluster, &installed)?));
    }
    Ok(wrong)
}

/// One thing that is otherwise on the node than it should be, and the one difference that it must be in the answer.
struct Fault {
    inject: String,
    restore: String,
    kind: &'static str,
    service: &'static str,
    entrance: String,
    /// A word of what is expected or found, or of where it is.
    says: &'static str,
}

fn faults(mode: ProxyMode) -> Vec<Fault> {
    vec![
        missing(mode),
        leftover(mode),
        unmasqueraded(mode),
        Fault {
            inject: format!(
                "ip route show {OTHER_PODS} > {KEPT}-route; test -s {KEPT}-route; ip route del {OTHER_PODS}"
            ),
            restore: format!("ip route add $(cat {KEPT}-route)"),
            kind: "route",
            service: "",
            entrance: String::new(),
            says: OTHER_PODS,
        },
        Fault {
            inject: format!(
                "nft add table inet site
                 nft add chain inet site fw '{{ type filter hook prerouting priority -300; policy accept; }}'
                 nft add rule inet site fw ip daddr {ADDRESS} tcp dport 80 drop"
            ),
            restore: "nft delete table inet site".to_owned(),
            kind: "foreign_drop",
            service: SERVICE,
            entrance: format!("{ADDRESS}:80/tcp"),
            says: "table inet site, chain fw",
        },
    ]
}

/// The address's rule is gone. It is kept for [`leftover`], too.
fn missing(mode: ProxyMode) -> Fault {
    let (inject, restore) = match mode {
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
    };
    let entrance = format!("{ADDRESS}:80/tcp");
    Fault { inject, restore, kind: "missing", service: SERVICE, entrance, says: "no entry" }
}

/// An address that no Service has leads to the Service's endpoints.
fn leftover(mode: ProxyMode) -> Fault {
    let (inject, restore) = match mode {
        ProxyMode::Nftables => (
            format!("nft add element ip kube-proxy service-ips \"{{ $(sed 's/^{ADDRESS}/{OLD_ADDRESS}/' {KEPT}) }}\""),
            format!("nft delete element ip kube-proxy service-ips '{{ {OLD_ADDRESS} . tcp . 80 }}'"),
        ),
        ProxyMode::Iptables => {
            let with = |command: &str| {
                format!(
                    "{{ echo '*nat'; sed 's|^-A KUBE-SERVICES -d {ADDRESS}/|{command} -d {OLD_ADDRESS}/|' {KEPT}; echo COMMIT; }} | \
                     iptables-restore --noflush"
                )
            };
            (with("-I KUBE-SERVICES 1"), with("-D KUBE-SERVICES"))
        }
    };
    let entrance = format!("{OLD_ADDRESS}:80/tcp");
    Fault { inject, restore, kind: "leftover", service: SERVICE, entrance, says: "no Service has it" }
}

/// Nothing masquerades what kube-proxy marks.
fn unmasqueraded(mode: ProxyMode) -> Fault {
    let kept = format!("{KEPT}-masquerading");
    let (inject, restore) = match mode {
        ProxyMode::Nftables => (
            format!(
                "nft -s list chain ip kube-proxy masquerading > {kept}; nft flush chain ip kube-proxy masquerading"
            ),
            format!("nft -f {kept}"),
        ),
        ProxyMode::Iptables => (
            format!(
                "iptables-save -t nat | grep -e '^-A KUBE-POSTROUTING ' > {kept}; test -s {kept}; iptables -t nat -F KUBE-POSTROUTING"
            ),
            format!("{{ echo '*nat'; cat {kept}; echo COMMIT; }} | iptables-restore --noflush"),
        ),
    };
    let says = "packets that kube-proxy marks leave with the node's address";
    Fault { inject, restore, kind: "masquerade", service: "", entrance: String::new(), says }
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

/// What is wrong with the answer about these faults: each is one difference, and there is no other.
fn missed(answer: &Value, faults: &[Fault]) -> Vec<String> {
    let nodes = answer["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    let others = nodes.iter().filter(|node| node["node"] != NODE && node["status"] != "same");
    let mut wrong: Vec<String> = others.map(|node| format!("node {} is {}", node["node"], node["status"])).collect();
    let own = nodes.iter().filter(|node| node["node"] == NODE);
    let mut left: Vec<&Value> = own.flat_map(|node| node["differences"].as_array().into_iter().flatten()).collect();
    for fault in faults {
        match left.iter().position(|difference| fault.is(difference)) {
            Some(index) => {
                left.remove(index);
            }
            None => wrong.push(format!("{} {}{} is not told", fault.kind, fault.service, fault.entrance)),
        }
    }
    wrong.extend(left.into_iter().map(|difference| format!("nobody made this: {difference}")));
    wrong
}

impl Fault {
    fn is(&self, difference: &Value) -> bool {
        let text = |field: &str| difference[field].as_str().unwrap_or_default();
        let service = text("service");
        text("kind") == self.kind
            && (service == self.service || service.starts_with(&format!("{}:", self.service)))
            && text("entrance") == self.entrance
            && ["expected", "found", "rule"].into_iter().any(|field| text(field).contains(self.says))
    }
}

fn drift(cluster: &Cluster, installed: &Installed) -> Result<Value> {
    install::ask(&installed.server, cluster, &["drift"])
}
