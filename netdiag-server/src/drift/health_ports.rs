//! The ports where load balancers ask kube-proxy whether a node has an endpoint, against who listens there. Pure.

use std::collections::BTreeSet;
use std::net::IpAddr;

use jiff::Timestamp;
use netdiag_common::observation::listener::{Listener, Process};
use netdiag_common::observation::service_rules::Proxier;
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Gap, Need, Reading, Topic};

use super::services::is_settling;
use super::{Difference, Kind, NodeDrift, Readings, gap, node, node_ports};
use crate::evidence::Cluster;
use crate::evidence::object::Service;
use crate::path::forwarding::is_proxied;

const WHAT: &str = "health check ports of Services";
/// kube-proxy's own ports (`pkg/cluster/ports`): who listens there is kube-proxy where it is a part of another process.
const OWN_PORTS: [u16; 2] = [10_249, 10_256];

/// Those that need such a port (`newBaseServiceInfo` of `pkg/proxy/serviceport.go`).
fn services(cluster: &Cluster) -> impl Iterator<Item = &Service> {
    cluster.services.iter().map(|service| &**service).filter(|service| {
        let spec = &service.spec;
        let asks = spec.kind == "LoadBalancer" && spec.external_traffic_policy == "Local";
        asks && spec.health_check_node_port != 0 && !spec.ports.is_empty() && is_proxied(service)
    })
}

/// Who listens, where some Service needs it.
pub(super) fn needs(cluster: &Cluster, asked: &[String]) -> Vec<Need> {
    if services(cluster).next().is_none() {
        return Vec::new();
    }
    asked.iter().map(|node| Need::host(node, Topic::Listeners)).collect()
}

/// kube-proxy opens them at the end of each sync, whether the node has endpoints or not (`SyncServices` of
/// `pkg/proxy/healthcheck/service_health.go`), on the addresses that node ports are told to be on: where the node has none of
/// them, on none, without a word (`newServiceHealthServer`).
pub(super) fn compare(cluster: &Cluster, proxier: Proxier, readings: &Readings, now: Timestamp, drift: &mut NodeDrift) {
    let mut services = services(cluster).peekable();
    if services.peek().is_none() {
        return;
    }
    let (listeners, at) = match readings.get(&Need::host(&drift.node, Topic::Listeners)) {
        Some(Reading::Seen { value: Observation::Listeners(listeners), at }) => (listeners.as_slice(), *at),
        Some(Reading::Absent { at }) => (&[] as &[Listener], *at),
        Some(Reading::Unavailable { gap }) => return drift.gaps.push(gap.clone()),
        _ => return drift.gaps.push(node::unasked(&drift.node, WHAT)),
    };
    let nowhere = node_ports::nowhere(cluster, proxier, readings, &drift.node);
    let (mut unclear, mut untold) = (0, 0);
    for service in services {
        if service.metadata.changed_at.is_some_and(|changed| is_settling(changed, at, now)) {
            drift.settling += 1;
            continue;
        }
        let port = service.spec.health_check_node_port;
        let found = match holder(port, listeners) {
            Holder::KubeProxy => continue,
            Holder::Unclear => {
                unclear += 1;
                continue;
            }
            Holder::Nobody => match &nowhere {
                Ok(nowhere) if families(service).is_subset(nowhere) => continue,
                Ok(_) => "nobody listens there".to_owned(),
                Err(_) => {
                    untold += 1;
                    continue;
                }
            },
            Holder::Other(process) => format!("{} (pid {}) listens there", process.name, process.pid),
        };
        drift.differences.push(Difference {
            kind: Kind::HealthPort,
            service: format!("{}/{}", service.metadata.namespace, service.metadata.name),
            entrance: None,
            expected: format!("kube-proxy listens on {port}/tcp, where load balancers ask for this node's endpoints"),
            found,
            rule: "listening sockets of the node".to_owned(),
        });
    }
    if unclear > 0 {
        let why = format!("of {unclear} Services: somebody listens there, and whether it is kube-proxy is not known");
        let remedy = "let the agent look at other processes (SYS_PTRACE), or ask the port for /healthz";
        drift.gaps.push(gap(&drift.node, WHAT, why, remedy));
    }
    if untold > 0
        && let Err(cause) = nowhere
    {
        let why = format!(
            "of {untold} Services: nobody listens there, and it is not known if kube-proxy should: {}",
            cause.why
        );
        drift.gaps.push(Gap { what: WHAT.to_owned(), why, ..cause });
    }
}

/// Of a Service's cluster IPs, whether IPv6: the proxier of each has listeners of its own.
fn families(service: &Service) -> BTreeSet<bool> {
    service.cluster_ips().iter().map(IpAddr::is_ipv6).collect()
}

enum Holder<'l> {
    KubeProxy,
    Other(&'l Process),
    Nobody,
    /// A socket without a process, or no socket that tells which process is kube-proxy.
    Unclear,
}

fn holder(port: u16, listeners: &[Listener]) -> Holder<'_> {
    let of = move |port: u16| listeners.iter().filter(move |one| one.protocol == Protocol::Tcp && one.port == port);
    let is_kube_proxy = |process: &Process| {
        let mut own = OWN_PORTS.into_iter().flat_map(of).filter_map(|one| one.process.as_ref());
        process.name == "kube-proxy" || own.any(|own| own.pid == process.pid)
    };
    let holders: Vec<Option<&Process>> = of(port).map(|one| one.process.as_ref()).collect();
    let [first, ..] = holders[..] else { return Holder::Nobody };
    if holders.iter().flatten().copied().any(is_kube_proxy) {
        return Holder::KubeProxy;
    }
    let is_known = listeners.iter().filter_map(|one| one.process.as_ref()).any(is_kube_proxy);
    match first {
        Some(process) if is_known && holders.iter().all(Option::is_some) => Holder::Other(process),
        _ => Holder::Unclear,
    }
}
