//! One round of a cluster's mesh: the targets of each node, from what the API says. Pure.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use netdiag_common::observation::Protocol;
use netdiag_common::observation::mesh::{Target, TargetProbe};
use netdiag_common::observation::probe::DnsRecord;
use netdiag_common::{Gap, GapReason};

use super::assign::Layout;
use super::target::{Aim, Host, UserTarget};
use super::{Kind, Role, Settings, Subject};
use crate::evidence::{Cluster, corefile};

/// Replicas of the cluster's DNS that one node asks in one round; the next ones in the next.
pub const DNS_REPLICAS: usize = 4;
const DNS_PORT: u16 = 53;
/// What kubeadm and most installers use, when the Corefile does not say.
const USUAL_DOMAIN: &str = "cluster.local";

/// Who probes what in one round.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// By node.
    pub targets: BTreeMap<String, Vec<Target>>,
    /// Zone of every node of the cluster; empty where none is said.
    pub zones: BTreeMap<String, String>,
    /// What cannot be probed, and why.
    pub gaps: Vec<Gap>,
}

/// The round with this number.
pub fn plan(cluster: &Cluster, settings: &Settings, round: u64) -> Plan {
    let mut gaps: Vec<Gap> = cluster.nodes.gap().cloned().into_iter().collect();
    let mut members: Vec<Member<'_>> = Vec::new();
    let mut zones = BTreeMap::new();
    for node in cluster.nodes.iter() {
        let name = node.metadata.name.as_str();
        let zone = node.zone();
        zones.insert(name.to_owned(), zone.to_owned());
        match Member::of(name, zone, node.internal_ips()) {
            Some(member) => members.push(member),
            None => gaps.push(without_address(name)),
        }
    }
    let named: Vec<(&str, &str)> = members.iter().map(|member| (member.name, member.zone)).collect();
    let layout = Layout::new(&named);
    let servers = dns_replicas(cluster, &mut gaps);
    let api = api(cluster, &mut gaps);
    let planned = settings.targets.iter().map(|target| of_user(target, cluster));
    let of_users: Vec<Target> = planned.filter_map(|planned| planned.map_err(|gap| gaps.push(gap)).ok()).collect();
    let name = format!("kubernetes.default.svc.{}", cluster_domain(cluster));
    let targets_of = |(number, member): (usize, &Member<'_>)| {
        let mut targets = Vec::new();
        let mut add = |role: Role, kind: Kind, probe: TargetProbe| {
            targets.push(Target::new(Subject::new(role, kind).to_string(), probe));
        };
        for peer in layout.peers(number, round) {
            let peer = &members[peer];
            let (role, address) = (Role::Peer(peer.name.to_owned()), peer.first);
            let second = peer.second.filter(|address| member.has_family_of(*address));
            // A node without the first one's family has no way there, which is no fault of the network.
            if second.is_none() || member.has_family_of(address) {
                add(role.clone(), Kind::Tcp, TargetProbe::Tcp { address, port: settings.agent_port });
                add(role.clone(), Kind::Icmp, TargetProbe::Icmp { address });
            }
            // Agents listen at one address: what answers at the other one is the kernel.
            if let Some(address) = second {
                let kind = if address.is_ipv4() { Kind::Icmp4 } else { Kind::Icmp6 };
                add(role, kind, TargetProbe::Icmp { address });
            }
        }
        for server in turn(&servers, number, round) {
            let (name, record) = (name.clone(), DnsRecord::A);
            let probe = TargetProbe::Dns { server: server.ip(), port: server.port(), name, record };
            add(Role::Dns(server), Kind::Dns, probe);
        }
        if let Some(api) = api {
            add(Role::Api, Kind::Tcp, TargetProbe::Tcp { address: api.ip(), port: api.port() });
        }
        targets.extend(of_users.iter().cloned());
        (member.name.to_owned(), targets)
    };
    let targets = members.iter().enumerate().map(targets_of).collect();
    Plan { targets, zones, gaps }
}

/// A node that takes part.
struct Member<'c> {
    name: &'c str,
    zone: &'c str,
    first: IpAddr,
    /// Of the other family.
    second: Option<IpAddr>,
}

impl<'c> Member<'c> {
    /// None without an address.
    fn of(name: &'c str, zone: &'c str, mut addresses: impl Iterator<Item = IpAddr>) -> Option<Self> {
        let first = addresses.next()?;
        let second = addresses.find(|address| address.is_ipv4() != first.is_ipv4());
        Some(Self { name, zone, first, second })
    }

    fn has_family_of(&self, address: IpAddr) -> bool {
        self.second.is_some() || self.first.is_ipv4() == address.is_ipv4()
    }
}

/// The replicas whose turn it is at this node.
fn turn(servers: &[SocketAddr], node: usize, round: u64) -> impl Iterator<Item = SocketAddr> {
    let count = servers.len();
    let first = if count == 0 { 0 } else { usize::try_from(round % count as u64).unwrap_or(0) * DNS_REPLICAS + node };
    (0..DNS_REPLICAS.min(count)).map(move |step| servers[(first + step) % count])
}

/// Ready endpoints of the DNS Service that take UDP.
fn dns_replicas(cluster: &Cluster, gaps: &mut Vec<Gap>) -> Vec<SocketAddr> {
    let unread = [cluster.services.gap(), cluster.endpoint_slices.gap()];
    if unread.iter().any(Option::is_some) {
        gaps.extend(unread.into_iter().flatten().cloned());
        return Vec::new();
    }
    let Some(service) = cluster.dns_service() else {
        gaps.push(nothing("replicas of the cluster's DNS", "the API has no Service kube-system/kube-dns"));
        return Vec::new();
    };
    let mut servers = Vec::new();
    for slice in cluster.slices_of(service) {
        let ports = slice.ports.iter().filter(|port| port.protocol.0 == Protocol::Udp).filter_map(|port| port.port);
        for port in ports {
            let ready = slice.endpoints.iter().filter(|endpoint| endpoint.conditions.ready.unwrap_or(true));
            let addresses = ready.flat_map(|endpoint| &endpoint.addresses).filter_map(|text| text.parse().ok());
            servers.extend(addresses.map(|address: IpAddr| SocketAddr::new(address, port)));
        }
    }
    servers.sort_unstable();
    servers.dedup();
    if servers.is_empty() {
        let why = format!("no endpoint of Service kube-system/{} is ready", service.metadata.name);
        gaps.push(nothing("replicas of the cluster's DNS", &why));
    }
    servers
}

fn api(cluster: &Cluster, gaps: &mut Vec<Gap>) -> Option<SocketAddr> {
    // Said once, with the DNS Service.
    if cluster.services.gap().is_some() {
        return None;
    }
    let service = cluster.services.get("default", "kubernetes");
    let found = service.and_then(|service| {
        let port = service.spec.ports.iter().find(|port| port.protocol.0 == Protocol::Tcp)?;
        Some(SocketAddr::new(*service.cluster_ips().first()?, port.port))
    });
    if found.is_none() {
        gaps.push(nothing("Service default/kubernetes", "the API has none with a cluster IP"));
    }
    found
}

/// A user's target as the cluster stands now: a Service's address may change.
fn of_user(target: &UserTarget, cluster: &Cluster) -> Result<Target, Gap> {
    let lost = |why: String| Gap {
        what: format!("continuous probes of target {}", target.name),
        node: None,
        reason: GapReason::Gone,
        why,
        remedy: "correct the target, or name an address in it".to_owned(),
    };
    let unread = || cluster.services.gap().map(|gap| Gap { what: lost(String::new()).what, ..gap.clone() });
    let address = |host: &Host| match host {
        Host::Address(address) => Ok(*address),
        Host::Service { namespace, name } => {
            let service = cluster.services.get(namespace, name);
            let address = service.and_then(|service| service.cluster_ips().first().copied());
            let missing = || lost(format!("the API has no Service {namespace}/{name} with a cluster IP"));
            address.ok_or_else(|| unread().unwrap_or_else(missing))
        }
    };
    // As the pods' own resolv.conf has it.
    let dns = || {
        let address = cluster.dns_service().and_then(|service| service.cluster_ips().first().copied());
        let missing = || lost("the API has no Service kube-system/kube-dns with a cluster IP to ask".to_owned());
        address.ok_or_else(|| unread().unwrap_or_else(missing))
    };
    let probe = match &target.aim {
        Aim::Tcp { host, port } => TargetProbe::Tcp { address: address(host)?, port: *port },
        Aim::Icmp { host } => TargetProbe::Icmp { address: address(host)? },
        Aim::Tls { host, port, server_name, authorities } => TargetProbe::Tls {
            address: address(host)?,
            port: *port,
            server_name: server_name.clone(),
            authorities: authorities.clone(),
        },
        Aim::Http { url, is_of_service, expect, authorities } => TargetProbe::Http {
            url: url.clone(),
            dns: if *is_of_service { Some(dns()?) } else { None },
            expect: expect.clone(),
            authorities: authorities.clone(),
        },
        Aim::Dns { name, record, server } => {
            let server = server.map_or_else(|| dns().map(|address| SocketAddr::new(address, DNS_PORT)), Ok)?;
            TargetProbe::Dns { server: server.ip(), port: server.port(), name: name.clone(), record: *record }
        }
    };
    let name = Subject::new(Role::User(target.name.clone()), target.kind()).to_string();
    Ok(Target { every: target.every, timeout_ms: target.timeout_ms, ..Target::new(name, probe) })
}

fn cluster_domain(cluster: &Cluster) -> String {
    let named = corefile::of(cluster).and_then(|text| corefile::served(text).into_iter().next());
    named.unwrap_or_else(|| USUAL_DOMAIN.to_owned())
}

fn without_address(node: &str) -> Gap {
    Gap {
        what: format!("the mesh from and to node {node}"),
        node: Some(node.to_owned()),
        reason: GapReason::Failed,
        why: format!("Node {node} has no address of type InternalIP"),
        remedy: "check the node's kubelet: kubectl get node -o wide".to_owned(),
    }
}

fn nothing(what: &str, why: &str) -> Gap {
    Gap {
        what: format!("continuous probes of {what}"),
        node: None,
        reason: GapReason::Gone,
        why: why.to_owned(),
        remedy: "name the address as a target: --mesh-target NAME=ADDRESS:PORT".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::evidence::parse;
    use crate::mesh::Slo;

    fn cluster(objects: &[serde_json::Value]) -> Cluster {
        let mut cluster = Cluster::default();
        for object in objects {
            parse::add(&mut cluster, object.clone()).unwrap();
        }
        cluster
    }

    fn node(name: &str, zone: &str, address: &str) -> serde_json::Value {
        json!({"kind": "Node", "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
            "status": {"addresses": [{"type": "InternalIP", "address": address}]}})
    }

    fn settings() -> Settings {
        Settings { targets: vec!["registry=10.0.0.9:5000".parse().unwrap()], agent_port: 9443, slo: Slo::default() }
    }

    #[test]
    fn every_node_gets_its_peers_dns_api_and_targets() {
        let cluster = cluster(&[
            node("n1", "a", "10.0.0.1"),
            node("n2", "b", "fd00::2"),
            json!({"kind": "Service", "metadata": {"namespace": "kube-system", "name": "kube-dns"},
                "spec": {"clusterIP": "10.96.0.10", "ports": [{"port": 53, "protocol": "UDP"}]}}),
            json!({"kind": "EndpointSlice", "metadata": {"namespace": "kube-system", "name": "kube-dns-x",
                "labels": {"kubernetes.io/service-name": "kube-dns"}}, "addressType": "IPv4",
                "endpoints": [{"addresses": ["10.244.0.3"]}, {"addresses": ["10.244.0.4"], "conditions": {"ready": false}}],
                "ports": [{"name": "dns", "port": 53, "protocol": "UDP"}, {"name": "dns-tcp", "port": 53, "protocol": "TCP"}]}),
            json!({"kind": "Service", "metadata": {"namespace": "default", "name": "kubernetes"},
                "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 443, "protocol": "TCP"}]}}),
            json!({"kind": "ConfigMap", "metadata": {"namespace": "kube-system", "name": "coredns"},
                "data": {"Corefile": ".:53 {\n    kubernetes lab.example. in-addr.arpa {\n    }\n}\n"}}),
        ]);
        let plan = plan(&cluster, &settings(), 0);
        assert_eq!(plan.gaps, []);
        let names: Vec<&str> = plan.targets["n1"].iter().map(|target| target.name.as_str()).collect();
        let wanted =
            ["peer/n2/tcp", "peer/n2/icmp", "dns/10.244.0.3:53/dns", "api/kubernetes/tcp", "user/registry/tcp"];
        assert_eq!(names, wanted);
        assert_eq!(plan.targets["n1"][0].probe.destination().unwrap().to_string(), "[fd00::2]:9443");
        let TargetProbe::Dns { name, .. } = &plan.targets["n1"][2].probe else { panic!("{plan:?}") };
        assert_eq!(name, "kubernetes.default.svc.lab.example");
        assert_eq!(plan.zones["n2"], "b");
    }

    #[test]
    fn what_is_not_there_is_said() {
        let mut node = node("n1", "", "10.0.0.1");
        node["status"] = json!({});
        let plan = plan(&cluster(&[node]), &settings(), 0);
        assert!(plan.targets.is_empty());
        let said: Vec<&str> = plan.gaps.iter().map(|gap| gap.what.as_str()).collect();
        let wanted = [
            "the mesh from and to node n1",
            "continuous probes of replicas of the cluster's DNS",
            "continuous probes of Service default/kubernetes",
        ];
        assert_eq!(said, wanted);
    }

    #[test]
    fn peers_of_two_families_are_probed_by_both() {
        let node = |name: &str, addresses: &[&str]| {
            let addresses: Vec<_> =
                addresses.iter().map(|address| json!({"type": "InternalIP", "address": address})).collect();
            json!({"kind": "Node", "metadata": {"name": name}, "status": {"addresses": addresses}})
        };
        let cluster = cluster(&[
            node("both", &["10.0.0.1", "10.9.0.1", "fd00::1"]),
            node("too", &["fd00::2", "10.0.0.2"]),
            node("old", &["10.0.0.3"]),
        ]);
        let plan = plan(&cluster, &Settings { targets: Vec::new(), ..settings() }, 0);
        let probed = |from: &str| -> Vec<String> {
            let echoes = plan.targets[from].iter().filter(|target| target.name.contains("icmp"));
            echoes.map(|echo| format!("{} {}", echo.name, echo.probe.destination().unwrap().ip())).collect()
        };
        let both = ["peer/old/icmp 10.0.0.3", "peer/too/icmp fd00::2", "peer/too/icmp4 10.0.0.2"];
        assert_eq!(probed("both"), both);
        let too = ["peer/both/icmp 10.0.0.1", "peer/both/icmp6 fd00::1", "peer/old/icmp 10.0.0.3"];
        assert_eq!(probed("too"), too);
        // It has no IPv6 to send from.
        assert_eq!(probed("old"), ["peer/both/icmp 10.0.0.1", "peer/too/icmp4 10.0.0.2"]);
    }

    #[test]
    fn targets_of_users_are_planned_as_the_cluster_stands() {
        let service = |namespace: &str, name: &str, ip: &str| {
            json!({"kind": "Service", "metadata": {"namespace": namespace, "name": name},
                "spec": {"clusterIP": ip, "ports": [{"port": 53, "protocol": "UDP"}]}})
        };
        let cluster = cluster(&[
            node("n1", "a", "10.0.0.1"),
            service("kube-system", "kube-dns", "10.96.0.10"),
            service("shop", "web", "10.96.0.80"),
        ]);
        let file = "
targets:
- {name: web, kind: http, to: 'http://web.shop.svc.cluster.local/', status: [200], interval: 10s}
- {name: far, kind: http, to: 'http://far.example/'}
- {name: door, kind: tcp, to: 'web.shop.svc.cluster.local:443', timeout: 3s}
- {name: names, kind: dns, to: example.com}
- {name: gone, kind: icmp, to: gone.shop.svc.cluster.local}
";
        let targets = crate::mesh::target::parse(file).unwrap().iter().map(|target| target.check().unwrap()).collect();
        let plan = plan(&cluster, &Settings { targets, ..settings() }, 0);
        let target = |name: &str| plan.targets["n1"].iter().find(|target| target.name == name).unwrap();
        let dns = Some("10.96.0.10".parse().unwrap());
        let web = target("user/web/http");
        assert!(matches!(&web.probe, TargetProbe::Http { dns: asked, .. } if *asked == dns), "{web:?}");
        assert_eq!(web.every, 5);
        assert!(matches!(target("user/far/http").probe, TargetProbe::Http { dns: None, .. }));
        let door = target("user/door/tcp");
        assert_eq!((door.probe.destination(), door.timeout_ms), ("10.96.0.80:443".parse().ok(), Some(3_000)));
        assert_eq!(target("user/names/dns").probe.destination(), "10.96.0.10:53".parse().ok());
        let gap = plan.gaps.iter().find(|gap| gap.what == "continuous probes of target gone").unwrap();
        assert!(gap.why.contains("no Service shop/gone"), "{gap:?}");
    }

    #[test]
    fn replicas_take_turns() {
        let servers: Vec<SocketAddr> = (1..=9).map(|n| SocketAddr::from(([10, 0, 0, n], 53))).collect();
        let mut seen = std::collections::BTreeSet::new();
        for round in 0..9 {
            let now: Vec<SocketAddr> = turn(&servers, 5, round).collect();
            assert_eq!(now.len(), DNS_REPLICAS);
            seen.extend(now);
        }
        assert_eq!(seen.len(), servers.len());
        assert_eq!(turn(&[], 5, 1).count(), 0);
    }
}
