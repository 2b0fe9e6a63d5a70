//! From a question and the API's objects to a path.

use std::net::IpAddr;
use std::sync::Arc;

use netdiag_common::Netns;

use super::named::exists;
use super::{Backend, Client, DnsName, Path, TargetObject};
use crate::evidence::Cluster;
use crate::evidence::object::{EndpointPort, EndpointSlice, IntOrString, Node, Object, Pod, Service, ServicePort};
use crate::question::{Origin, PortName, Question, Target};

/// The question names something that is not there. Says what exists nearby.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("there is no {kind} {name}{}", nearby(near))]
    Missing { kind: &'static str, name: String, near: Vec<String> },
    #[error("cannot look up {kind} {name}: {why}")]
    Unreadable { kind: &'static str, name: String, why: String },
    #[error("pod {name} is {phase}, so no connection can start there; choose a running pod")]
    Finished { name: String, phase: String },
    #[error("pod {name} is {phase} and has given up its address, so nothing can reach it; choose a running pod")]
    Gone { name: String, phase: String },
    #[error(
        "pod {name} has no address yet (its phase is {phase}), so nothing can reach it; `kubectl -n {namespace} describe pod` \
         says what it waits for"
    )]
    Unaddressed { namespace: String, name: String, phase: String },
    #[error("{target} has {count} ports ({ports}): add :PORT to say which")]
    WhichPort { target: String, count: usize, ports: String },
    #[error("pod {name} is not scheduled to a node yet, so there is no network namespace to look at")]
    Unscheduled { name: String },
}

fn nearby(near: &[String]) -> String {
    if near.is_empty() { String::new() } else { format!("; there is {}", near.join(", ")) }
}

/// Resolves by intended objects alone. `search` is the client's search list with its ndots, when it is known.
pub fn resolve(question: &Question, cluster: &Cluster, search: Option<(&[String], u8)>) -> Result<Path, ResolveError> {
    let clients = clients(&question.from, cluster)?;
    let mut path = Path {
        question: question.clone(),
        protocol: question.protocol,
        name: None,
        target: TargetObject::Address,
        port: None,
        addresses: Vec::new(),
        backends: Vec::new(),
        clients,
    };
    match &question.to {
        Target::Service { namespace, name, port } => {
            let service = exists(&cluster.services, "Service", namespace, name)?;
            to_service(&mut path, cluster, service.clone(), port.clone())?;
        }
        Target::Pod { namespace, name, port } => {
            let pod = exists(&cluster.pods, "Pod", namespace, name)?.clone();
            reachable(&pod)?;
            to_pod(&mut path, pod, *port);
        }
        Target::Node { name, port } => {
            let node = exists(&cluster.nodes, "Node", "", name)?;
            to_node(&mut path, cluster, node, *port);
            path.addresses = node.internal_ips().collect();
        }
        Target::Address(address) => to_address(&mut path, cluster, address.ip(), address.port())?,
        Target::Name { name, port } => to_name(&mut path, cluster, name, *port, search)?,
    }
    Ok(path)
}

fn clients(from: &Origin, cluster: &Cluster) -> Result<Vec<Client>, ResolveError> {
    match from {
        Origin::Pod { namespace, name } => {
            let pod = exists(&cluster.pods, "Pod", namespace, name)?;
            let shown = format!("{namespace}/{name}");
            if pod.is_finished() {
                return Err(ResolveError::Finished { name: shown, phase: pod.status.phase.clone() });
            }
            if pod.spec.node_name.is_empty() {
                return Err(ResolveError::Unscheduled { name: shown });
            }
            Ok(vec![client_pod(pod)])
        }
        Origin::Node { name } => Ok(vec![client_node(exists(&cluster.nodes, "Node", "", name)?)]),
        Origin::EveryNode => Ok(cluster.nodes.iter().map(client_node).collect()),
    }
}

fn client_pod(pod: &Arc<Pod>) -> Client {
    Client {
        reference: pod.reference(),
        node: pod.spec.node_name.clone(),
        netns: if pod.spec.host_network { Netns::Host } else { Netns::Pod(pod.metadata.uid.clone()) },
        addresses: pod.addresses().collect(),
        pod: Some(pod.clone()),
    }
}

fn client_node(node: &Arc<Node>) -> Client {
    Client {
        reference: node.reference().on_node(&node.metadata.name),
        node: node.metadata.name.clone(),
        netns: Netns::Host,
        addresses: node.internal_ips().collect(),
        pod: None,
    }
}

fn to_service(
    path: &mut Path,
    cluster: &Cluster,
    service: Arc<Service>,
    asked: Option<PortName>,
) -> Result<(), ResolveError> {
    let protocol = path.protocol;
    let of_protocol: Vec<&ServicePort> = service.spec.ports.iter().filter(|p| p.protocol.0 == protocol).collect();
    let port = match &asked {
        Some(PortName::Number(number)) => of_protocol.iter().find(|p| p.port == *number),
        Some(PortName::Name(name)) => of_protocol.iter().find(|p| p.name == *name),
        None if of_protocol.len() > 1 => {
            return Err(ResolveError::WhichPort {
                target: format!("Service {}/{}", service.metadata.namespace, service.metadata.name),
                count: of_protocol.len(),
                ports: service.ports_in_words(),
            });
        }
        None => of_protocol.first(),
    };
    let port = port.map(|p| (*p).clone());
    path.port = match (&port, asked) {
        // A headless Service translates nothing: the client dials the pods' port as asked.
        (Some(port), _) => Some(port.port),
        (None, Some(PortName::Number(number))) => Some(number),
        (None, _) => None,
    };
    path.addresses = service.cluster_ips();
    path.backends = port.as_ref().map(|port| backends(cluster, &service, port)).unwrap_or_default();
    let by_name = matches!(path.question.to, Target::Service { port: Some(PortName::Name(_)), .. });
    if service.is_headless() && path.is_asked() && !by_name {
        // Nothing translates the port of a headless Service: clients meet the pods at the number they dial. Of a Service that
        // nobody asks about it is not known that anybody dials that number.
        path.backends.iter_mut().for_each(|backend| backend.port = path.port.unwrap_or(backend.port));
    }
    path.target = TargetObject::Service { service, port };
    Ok(())
}

/// The endpoints of one port of a Service, by its EndpointSlices.
pub(crate) fn backends(cluster: &Cluster, service: &Service, port: &ServicePort) -> Vec<Backend> {
    let slices: Vec<&Arc<EndpointSlice>> = cluster.slices_of(service).collect();
    let mut found: Vec<Backend> = Vec::new();
    for slice in slices {
        // A slice's port belongs to the Service's port of the same name and protocol (EndpointSlice API).
        let named = |p: &&EndpointPort| p.name == port.name && p.protocol.0 == port.protocol.0;
        let Some(number) = slice.ports.iter().find(named).and_then(|p| p.port) else { continue };
        for endpoint in &slice.endpoints {
            let pod = endpoint
                .target_ref
                .as_ref()
                .filter(|target| target.kind == "Pod")
                .and_then(|target| cluster.pods.get(&target.namespace, &target.name))
                .cloned();
            let ready = endpoint.conditions.ready.unwrap_or(true);
            let node = match (&pod, endpoint.node_name.as_str()) {
                (Some(pod), "") => pod.spec.node_name.clone(),
                (_, node) => node.to_owned(),
            };
            for address in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                if found.iter().any(|b| b.address == address && b.port == number) {
                    continue;
                }
                let terminating = endpoint.conditions.terminating.unwrap_or(false);
                found.push(Backend { address, port: number, node: node.clone(), pod: pod.clone(), ready, terminating });
            }
        }
    }
    // Slices list endpoints in no order; answers name them in one.
    let name = |backend: &Backend| backend.pod.as_ref().map(|pod| pod.metadata.name.clone());
    found.sort_by_cached_key(|backend| (name(backend), backend.address, backend.port));
    found
}

/// A finished pod's object keeps its address, which another pod may have by now.
fn reachable(pod: &Pod) -> Result<(), ResolveError> {
    let name = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
    let phase = pod.status.phase.clone();
    if pod.is_finished() {
        return Err(ResolveError::Gone { name, phase });
    }
    if pod.addresses().next().is_none() {
        return Err(ResolveError::Unaddressed { namespace: pod.metadata.namespace.clone(), name, phase });
    }
    Ok(())
}

fn to_pod(path: &mut Path, pod: Arc<Pod>, asked: Option<u16>) {
    let only = match pod.spec.containers.iter().flat_map(|c| &c.ports).collect::<Vec<_>>().as_slice() {
        [port] if port.protocol.0 == path.protocol => Some(port.container_port),
        _ => None,
    };
    path.port = asked.or(only);
    path.addresses = pod.addresses().collect();
    if let Some(port) = path.port {
        path.backends = path
            .addresses
            .iter()
            .map(|address| Backend {
                address: *address,
                port,
                node: pod.spec.node_name.clone(),
                pod: Some(pod.clone()),
                ready: true,
                terminating: pod.metadata.deleted_at.is_some(),
            })
            .collect();
    }
    path.target = TargetObject::Pod(pod);
}

fn to_address(path: &mut Path, cluster: &Cluster, address: IpAddr, port: u16) -> Result<(), ResolveError> {
    let taken = || cluster.service_by_external_address(address, Some((path.protocol, port)));
    if let Some(service) = cluster.service_by_address(address).or_else(taken) {
        to_service(path, cluster, service.clone(), Some(PortName::Number(port)))?;
    } else if let Some(pod) = cluster.pod_by_address(address) {
        to_pod(path, pod.clone(), Some(port));
    } else if let Some(node) = cluster.node_by_address(address) {
        to_node(path, cluster, node, Some(port));
    } else if let Some(service) = cluster.service_by_external_address(address, None) {
        to_service(path, cluster, service.clone(), Some(PortName::Number(port)))?;
    } else {
        path.target = TargetObject::Address;
        path.port = Some(port);
    }
    path.addresses = vec![address];
    path.backends.retain(|backend| backend.address.is_ipv4() == address.is_ipv4());
    Ok(())
}

/// A node's own address: what listens there, or the Service whose node port that is.
fn to_node(path: &mut Path, cluster: &Cluster, node: &Node, asked: Option<u16>) {
    path.port = asked;
    path.target = TargetObject::Node(node.reference());
    if let Some((service, port)) = asked.and_then(|number| cluster.service_by_node_port(path.protocol, number)) {
        path.backends = backends(cluster, service, port);
        path.target = TargetObject::Service { service: service.clone(), port: Some(port.clone()) };
    }
}

fn to_name(
    path: &mut Path,
    cluster: &Cluster,
    name: &str,
    port: Option<u16>,
    search: Option<(&[String], u8)>,
) -> Result<(), ResolveError> {
    // What kubelet writes for ClusterFirst pods, when the pod's own file could not be read.
    let namespace =
        path.clients.first().and_then(|c| c.pod.as_ref()).map_or("default", |p| p.metadata.namespace.as_str());
    let usual = [format!("{namespace}.svc.cluster.local"), "svc.cluster.local".to_owned(), "cluster.local".to_owned()];
    let (search, ndots) = search.unwrap_or((&usual, 5));
    let mut name = DnsName::new(name, search, ndots);
    let found = name.services().into_iter().find_map(|named| {
        let service = cluster.services.get(&named.namespace, &named.service)?;
        (!named.of_pod || service.is_headless()).then_some((named.candidate, service))
    });
    name.leads = found.map(|(candidate, _)| candidate);
    let service = found.map(|(_, service)| service);
    path.name = Some(name);
    match service {
        Some(service) => to_service(path, cluster, service.clone(), port.map(PortName::Number)),
        None => {
            path.port = port;
            path.target = TargetObject::UnknownName;
            Ok(())
        }
    }
}

/// The number a Service's target port means in this pod.
pub fn target_port_of(port: &ServicePort, pod: &Pod) -> Option<u16> {
    match &port.target_port {
        None => Some(port.port),
        Some(IntOrString::Number(number)) => Some(*number),
        Some(IntOrString::Name(name)) => pod.named_port(name, port.protocol.0),
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::Tier;
    use netdiag_common::observation::Protocol;
    use serde_json::{Value, json};

    use super::*;
    use crate::evidence::parse;
    use crate::question::{DEFAULT_BUDGET, Purpose};

    fn to_pod_with(status: &Value) -> Result<Path, ResolveError> {
        let mut cluster = Cluster::default();
        let metadata = json!({"name": "job-1", "namespace": "shop"});
        let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {}, "status": status});
        parse::add(&mut cluster, pod).expect("a pod");
        let question = Question {
            from: Origin::EveryNode,
            to: "pod/shop/job-1:80".parse().expect("a target"),
            protocol: Protocol::Tcp,
            purpose: Purpose::Diagnose,
            tier: Tier::Probe,
            budget: DEFAULT_BUDGET,
        };
        resolve(&question, &cluster, None)
    }

    #[test]
    fn the_address_of_a_finished_pod_is_not_asked_for() {
        let error = to_pod_with(&json!({"phase": "Succeeded", "podIP": "10.244.1.9"})).expect_err("a finished pod");
        assert!(error.to_string().contains("shop/job-1 is Succeeded"), "{error}");
    }

    fn asked(to: &str) -> Path {
        let mut cluster = Cluster::default();
        let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"},
            "status": {"addresses": [{"type": "InternalIP", "address": "172.30.0.11"}]}});
        let port = json!({"name": "http", "port": 80, "nodePort": 30080, "protocol": "TCP"});
        let ingress = json!([{"ip": "192.0.2.10"}, {"ip": "172.30.0.11"}, {"ip": "192.0.2.11", "ipMode": "Proxy"}]);
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [port], "externalIPs": ["192.0.2.12"]},
            "status": {"loadBalancer": {"ingress": ingress}}});
        for object in [node, service] {
            parse::add(&mut cluster, object).expect("an object");
        }
        let question = Question {
            from: Origin::EveryNode,
            to: to.parse().expect("a target"),
            protocol: Protocol::Tcp,
            purpose: Purpose::Diagnose,
            tier: Tier::Probe,
            budget: DEFAULT_BUDGET,
        };
        resolve(&question, &cluster, None).expect("a path")
    }

    #[test]
    fn addresses_from_outside_and_node_ports_lead_to_their_service() {
        // What is asked, whether a Service's port is behind it, and the port that is dialled.
        for (to, port) in [
            ("ip/10.96.0.7:80", 80),
            ("ip/192.0.2.10:80", 80),
            ("ip/192.0.2.12:80", 80),
            ("ip/172.30.0.11:80", 80),
            ("ip/172.30.0.11:30080", 30080),
            ("node/n1:30080", 30080),
        ] {
            let path = asked(to);
            assert_eq!(path.service_port().map(|port| port.port), Some(80), "{to}");
            assert_eq!(path.port, Some(port), "{to}");
        }
        assert!(matches!(asked("ip/172.30.0.11:22").target, TargetObject::Node(_)), "sshd of a node is no Service");
        assert!(matches!(asked("ip/192.0.2.11:80").target, TargetObject::Address), "nodes do not translate it");
        let wrong_port = asked("ip/192.0.2.10:81");
        assert!(wrong_port.service().is_some() && wrong_port.service_port().is_none());
    }

    #[test]
    fn a_pod_without_address_is_no_healthy_path() {
        let error = to_pod_with(&json!({"phase": "Pending"})).expect_err("a pending pod");
        assert!(error.to_string().contains("no address yet"), "{error}");
        assert!(to_pod_with(&json!({"phase": "Running", "podIP": "10.244.1.9"})).is_ok());
    }
}
