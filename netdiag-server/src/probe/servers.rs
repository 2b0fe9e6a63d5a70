//! Each DNS server that a lookup of the client may meet, apart, with what it is: those of its own resolv.conf, the Service and its
//! replicas, the cache on its node, and the upstreams that CoreDNS would ask for the name.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::dns::{DnsAsking, DnsTransport};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Gap, Need, Reading, Topic, Window};

use super::corefile::{Led, Upstream, led};
use super::plan::{self, Plan, Shot};
use super::rights::Rights;
use super::run::Sender;
use super::shots;
use super::words::Transport;
use crate::ask::Source;
use crate::ask::step::need_in_words;
use crate::evidence::{Cluster, corefile};
use crate::path::{self, Backend, Client};

/// Servers that resolvers use of their list (MAXNS of resolv.conf(5)).
const MAX_OWN: usize = 3;
/// What CoreDNS's plugin forward takes at most.
const MAX_UPSTREAMS: usize = 15;
/// Where NodeLocal DNSCache listens unless it was told otherwise
/// (<https://kubernetes.io/docs/tasks/administer-cluster/nodelocaldns/>).
const NODE_LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 20, 10));
/// The name and the label of its DaemonSet (`cluster/addons/dns/nodelocaldns` of Kubernetes).
const NODE_LOCAL_NAME: &str = "node-local-dns";
/// To read a file takes milliseconds; what lasts longer than this is told as a gap.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to be asked, and what was left out.
pub(super) struct Each {
    /// The lookup of a program first.
    pub shots: Vec<Shot>,
    /// Servers that are not asked, and why.
    pub left_out: Vec<String>,
    pub gaps: Vec<Gap>,
}

/// Servers with what they are, in the order in which they became known.
#[derive(Default)]
struct Found {
    servers: Vec<(SocketAddr, bool, Vec<String>)>,
    left_out: Vec<String>,
}

impl Found {
    fn add(&mut self, server: SocketAddr, by_tls: bool, what: String) {
        match self.servers.iter_mut().find(|(known, tls, _)| (*known, *tls) == (server, by_tls)) {
            Some((_, _, whats)) if whats.contains(&what) => {}
            Some((_, _, whats)) => whats.push(what),
            None => self.servers.push((server, by_tls, vec![what])),
        }
    }

    /// Those of a resolv.conf.
    fn add_own(&mut self, resolver: &Resolver, whose: &str, has_cache: bool) {
        for (index, address) in resolver.nameservers.iter().take(MAX_OWN).enumerate() {
            if let Some(zone) = resolver.zone(index) {
                let why = "its interface is known inside the namespace alone, where the lookup asks it";
                self.left_out.push(format!("{address}%{zone} of {whose}: not asked apart: {why}"));
                continue;
            }
            let server = SocketAddr::new(*address, shots::DNS_PORT);
            self.add(server, false, whose.to_owned());
            if has_cache && is_link_local(*address) {
                self.add(server, false, cache_words());
            }
        }
    }
}

impl<S: Source, R: Rights> Sender<'_, S, R> {
    pub(super) async fn each_server(&self, plan: &Plan, name: &str) -> Each {
        let cluster = &self.cluster;
        let replicas = replicas(cluster);
        let upstreams = upstreams(cluster, name);
        let asks_file = upstreams.iter().any(|upstream| matches!(upstream, Ok(Upstream::File(_))));
        let mut readers = vec![plan.client.clone()];
        if asks_file {
            let pods = replicas.iter().filter_map(|replica| plan::client_of(replica.pod.as_ref()?, cluster));
            readers.extend(pods);
        }
        let (resolvers, gaps) = self.resolvers(&readers).await;
        let mut found = Found::default();
        let has_cache = has_cache(cluster);
        if let Some(own) = resolvers.get(&plan::words_of(&plan.client)) {
            found.add_own(own, &format!("resolv.conf of {}", plan::words_of(&plan.client)), has_cache);
        }
        if has_cache && !found.servers.iter().any(|(server, ..)| is_link_local(server.ip())) {
            found.add(
                SocketAddr::new(NODE_LOCAL, shots::DNS_PORT),
                false,
                format!("{}, its usual address", cache_words()),
            );
        }
        match cluster.dns_service() {
            Some(service) => {
                let what = format!("Service {}/{}", service.metadata.namespace, service.metadata.name);
                for address in service.cluster_ips() {
                    found.add(SocketAddr::new(address, shots::DNS_PORT), false, what.clone());
                }
            }
            None => found.left_out.push("the cluster has no Service of its DNS (kube-system/kube-dns)".to_owned()),
        }
        for replica in &replicas {
            found.add(
                SocketAddr::new(replica.address, replica.port),
                false,
                format!("replica {}", replica_words(replica)),
            );
        }
        for upstream in upstreams.into_iter().take(MAX_UPSTREAMS) {
            match upstream {
                Ok(Upstream::Server(server, by_tls)) => found.add(server, by_tls, "upstream of CoreDNS".to_owned()),
                Ok(Upstream::File(path)) => {
                    for replica in &readers[1..] {
                        let words = plan::words_of(replica);
                        let Some(resolver) = resolvers.get(&words) else { continue };
                        found.add_own(resolver, &format!("upstream of CoreDNS, by {path} of {words}"), false);
                    }
                }
                Ok(Upstream::Strange(text)) => {
                    found.left_out.push(format!("upstream {text} of CoreDNS: the Corefile names no address there"));
                }
                Err(why) => found.left_out.push(why),
            }
        }
        let shots = found.shots(plan, name);
        Each { shots, left_out: found.left_out, gaps }
    }

    /// Each one's resolv.conf, by the words for who has it.
    async fn resolvers(&self, clients: &[Client]) -> (BTreeMap<String, Resolver>, Vec<Gap>) {
        let need = |client: &Client| Need {
            node: client.node.clone(),
            netns: client.netns.clone(),
            topic: Topic::Resolver,
            window: Window::default(),
        };
        let needs: Vec<Need> = clients.iter().map(need).collect();
        let mut readings = self.source.gather(needs, Instant::now() + PATIENCE).await;
        let (mut resolvers, mut gaps) = (BTreeMap::new(), Vec::new());
        for client in clients {
            let wanted = need(client);
            let Some(at) = readings.iter().position(|(need, _)| *need == wanted) else { continue };
            match readings.swap_remove(at).1 {
                Reading::Seen { value: Observation::Resolver(resolver), .. } => {
                    resolvers.insert(plan::words_of(client), resolver);
                }
                Reading::Unavailable { gap } => {
                    gaps.push(Gap { what: need_in_words(&wanted, Some(&self.cluster)), ..gap });
                }
                // A pod without the file is asked to look the name up all the same: there is nothing of its own to list.
                _ => {}
            }
        }
        (resolvers, gaps)
    }
}

impl Found {
    /// The lookup of a program, and each server of the wanted family.
    fn shots(&self, plan: &Plan, name: &str) -> Vec<Shot> {
        let request = &plan.request;
        let own_transport = matches!(request.options.transport, Some(Transport::Tls | Transport::Https));
        let wanted = self.servers.iter().filter(|(server, ..)| request.family.holds(server.ip()));
        let by = wanted.map(|(server, by_tls, what)| {
            let (server, transport) = match (own_transport, by_tls) {
                (true, _) => {
                    let port = shots::dns_port(&request.options);
                    (SocketAddr::new(server.ip(), port), shots::transport(&request.options))
                }
                (false, true) => (*server, DnsTransport::Tls { server_name: None }),
                (false, false) => (*server, shots::transport(&request.options)),
            };
            let to = format!("{name} by {server} ({})", what.join("; "));
            shots::query(request, name, to, DnsAsking::Server { server, transport })
        });
        std::iter::once(shots::lookup(request, name)).chain(by).collect()
    }
}

/// Endpoints of the Service that take UDP.
fn replicas(cluster: &Cluster) -> Vec<Backend> {
    let Some(service) = cluster.dns_service() else { return Vec::new() };
    let udp = service.spec.ports.iter().find(|port| port.protocol.0 == Protocol::Udp);
    udp.map(|port| path::backends(cluster, service, port)).unwrap_or_default()
}

fn replica_words(replica: &Backend) -> String {
    match &replica.pod {
        Some(pod) => format!("pod/{}/{} on {}", pod.metadata.namespace, pod.metadata.name, replica.node),
        None => format!("on {}", replica.node),
    }
}

/// Whom CoreDNS would ask for the name, or why that is not known or nobody.
fn upstreams(cluster: &Cluster, name: &str) -> Vec<Result<Upstream, String>> {
    if let Some(gap) = cluster.config_maps.gap() {
        return vec![Err(format!("upstreams of CoreDNS: not asked: the Corefile was not read: {}", gap.why))];
    }
    let Some(corefile) = corefile::of(cluster) else {
        return vec![Err(
            "upstreams of the cluster's DNS: not asked: there is no ConfigMap kube-system/coredns".to_owned()
        )];
    };
    match led(corefile, name) {
        Led::Itself(zone) => {
            vec![Err(format!("upstreams of CoreDNS: not asked: it answers names of {zone} itself"))]
        }
        Led::To(upstreams) => upstreams.into_iter().map(Ok).collect(),
    }
}

/// NodeLocal DNSCache runs in the cluster.
fn has_cache(cluster: &Cluster) -> bool {
    let label = |labels: &BTreeMap<String, String>| labels.get("k8s-app").is_some_and(|app| app == NODE_LOCAL_NAME);
    let mut workloads = cluster.workloads.in_namespace("kube-system").filter(|workload| workload.kind == "DaemonSet");
    workloads.any(|set| set.metadata.name == NODE_LOCAL_NAME || label(&set.metadata.labels))
        || cluster.pods.in_namespace("kube-system").any(|pod| label(&pod.metadata.labels) && !pod.is_finished())
}

fn cache_words() -> String {
    format!("NodeLocal DNSCache, DaemonSet kube-system/{NODE_LOCAL_NAME}")
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}
