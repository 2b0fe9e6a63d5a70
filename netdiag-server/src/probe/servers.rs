//! Each DNS server that a lookup of the client may meet, apart, with what it is: those of its own resolv.conf, the Service and its
//! replicas, the cache on its node, and the upstreams that CoreDNS would ask for the name, from where it would ask them.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::dns::{DnsAsking, DnsTransport};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Gap, Need, Reading, Topic, Window};

use super::corefile::{Led, Upstream, led};
use super::plan::{self, Plan};
use super::rights::Rights;
use super::run::{Sender, Wish};
use super::shots;
use super::words::Transport;
use crate::ask::Source;
use crate::ask::step::need_in_words;
use crate::evidence::object::{TemplateContainer, Workload};
use crate::evidence::{Cluster, corefile};
use crate::path::{self, Backend, Client};

/// Servers that resolvers use of their list (MAXNS of resolv.conf(5)).
const MAX_OWN: usize = 3;
/// What CoreDNS's plugin forward takes at most.
const MAX_UPSTREAMS: usize = 15;
/// Replicas from which each upstream is asked: where one is answered and another is not, it is the way from there.
const MAX_ASKERS: usize = 2;
/// Where NodeLocal DNSCache listens unless it is told otherwise
/// (<https://kubernetes.io/docs/tasks/administer-cluster/nodelocaldns/>).
const NODE_LOCAL: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(169, 254, 20, 10));
/// The name and the label of its DaemonSet (`cluster/addons/dns/nodelocaldns` of Kubernetes).
const NODE_LOCAL_NAME: &str = "node-local-dns";
/// To read a file takes milliseconds; what lasts longer than this is told as a gap.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is to be asked, and what was left out.
pub(super) struct Each {
    /// The lookup of a program first.
    pub wishes: Vec<Wish>,
    /// Servers that are not asked, and why.
    pub left_out: Vec<String>,
    pub gaps: Vec<Gap>,
}

/// Servers with what they are, in the order in which they became known.
#[derive(Default)]
struct Found {
    servers: Vec<Server>,
    left_out: Vec<String>,
}

struct Server {
    /// Who asks it: [`CLIENT`], or a replica by its place behind it.
    from: usize,
    address: SocketAddr,
    by_tls: bool,
    whats: Vec<String>,
}

/// The client's place among those who ask.
const CLIENT: usize = 0;

impl Found {
    fn add(&mut self, from: usize, address: SocketAddr, by_tls: bool, what: String) {
        let is_it = |known: &&mut Server| (known.from, known.address, known.by_tls) == (from, address, by_tls);
        match self.servers.iter_mut().find(is_it) {
            Some(known) if known.whats.contains(&what) => {}
            Some(known) => known.whats.push(what),
            None => self.servers.push(Server { from, address, by_tls, whats: vec![what] }),
        }
    }

    /// Those of a resolv.conf.
    fn add_own(&mut self, from: usize, resolver: &Resolver, whose: &str, cache: Option<&Cache>) {
        for (index, address) in resolver.nameservers.iter().take(MAX_OWN).enumerate() {
            if let Some(zone) = resolver.zone(index) {
                let why = "its interface is known inside the namespace alone, where the lookup asks it";
                self.left_out.push(format!("{address}%{zone} of {whose}: not asked apart: {why}"));
                continue;
            }
            let server = SocketAddr::new(*address, shots::DNS_PORT);
            self.add(from, server, false, whose.to_owned());
            if cache.is_some_and(|cache| cache.may_have(*address)) {
                self.add(from, server, false, cache_words());
            }
        }
    }

    fn add_cache(&mut self, cache: &Cache) {
        for address in &cache.addresses {
            self.add(CLIENT, SocketAddr::new(*address, shots::DNS_PORT), false, cache_words());
        }
        if cache.addresses.is_empty() && !self.servers.iter().any(|server| is_link_local(server.address.ip())) {
            let what = format!("{}, its usual address", cache_words());
            self.add(CLIENT, SocketAddr::new(NODE_LOCAL, shots::DNS_PORT), false, what);
        }
    }
}

impl<S: Source, R: Rights> Sender<'_, S, R> {
    pub(super) async fn each_server(&self, plan: &Plan, name: &str) -> Each {
        let cluster = &self.cluster;
        let replicas = replicas(cluster);
        let upstreams = upstreams(cluster, name);
        let mut found = Found::default();
        // The client, and behind it the replicas that ask the upstreams.
        let mut askers = vec![plan.client.clone()];
        let mut from_client = false;
        if upstreams.iter().any(Result::is_ok) {
            askers.extend(found.askers(cluster, &replicas));
            if let Some(why) = self.not_from(&askers[1..]).await {
                from_client = true;
                let client = plan::words_of(&plan.client);
                let instead = format!("upstreams of CoreDNS: asked from {client}, and not from its own pods: {why}");
                found.left_out.push(instead);
            }
        }
        // One that is the client itself has the client's place.
        let place = |index: usize| {
            let is_client = askers[index].reference.same_object(&plan.client.reference);
            if from_client || is_client { CLIENT } else { index }
        };
        let asks_file = upstreams.iter().any(|upstream| matches!(upstream, Ok(Upstream::File(_))));
        let readers = if asks_file { askers.as_slice() } else { &askers[..1] };
        let (resolvers, gaps) = self.resolvers(readers).await;
        let cache = cache(cluster);
        if let Some(own) = resolvers.get(&plan::words_of(&plan.client)) {
            let whose = format!("resolv.conf of {}", plan::words_of(&plan.client));
            found.add_own(CLIENT, own, &whose, cache.as_ref());
        }
        if let Some(cache) = &cache {
            found.add_cache(cache);
        }
        found.add_service(cluster, &replicas);
        for upstream in upstreams.into_iter().take(MAX_UPSTREAMS) {
            match upstream {
                Ok(Upstream::Server(server, by_tls)) => {
                    // Without a replica the client asks.
                    for index in (1..askers.len()).chain((askers.len() == 1).then_some(CLIENT)) {
                        found.add(place(index), server, by_tls, "upstream of CoreDNS".to_owned());
                    }
                }
                Ok(Upstream::File(path)) => {
                    if askers.len() == 1 {
                        let why = "the file is that of its pods, and none of them is known";
                        found.left_out.push(format!("upstreams of CoreDNS by {path}: not asked: {why}"));
                    }
                    for (index, asker) in askers.iter().enumerate().skip(1) {
                        let words = plan::words_of(asker);
                        let Some(resolver) = resolvers.get(&words) else { continue };
                        let whose = format!("upstream of CoreDNS, by {path} of {words}");
                        found.add_own(place(index), resolver, &whose, None);
                    }
                }
                Ok(Upstream::Strange(text)) => {
                    found.left_out.push(format!("upstream {text} of CoreDNS: the Corefile names no address there"));
                }
                Err(why) => found.left_out.push(why),
            }
        }
        let wishes = found.wishes(plan, name, &askers);
        Each { wishes, left_out: found.left_out, gaps }
    }

    /// Why nothing is sent from the replicas; none where it is.
    async fn not_from(&self, replicas: &[Client]) -> Option<String> {
        // They are of one namespace.
        match replicas.first() {
            Some(replica) => self.not_allowed(replica).await,
            None => Some("none of its pods is known".to_owned()),
        }
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
    /// The first replicas, of those that get queries before others.
    fn askers(&mut self, cluster: &Cluster, replicas: &[Backend]) -> Vec<Client> {
        let mut replicas: Vec<&Backend> = replicas.iter().collect();
        replicas.sort_by_key(|replica| (!replica.ready, replica.terminating));
        let mut all: Vec<Client> = Vec::new();
        for client in replicas.into_iter().filter_map(|replica| plan::client_of(replica.pod.as_ref()?, cluster)) {
            // With two families a replica is two endpoints.
            if !all.iter().any(|known| known.reference.same_object(&client.reference)) {
                all.push(client);
            }
        }
        if all.len() > MAX_ASKERS {
            let others: Vec<String> = all.drain(MAX_ASKERS..).map(|client| plan::words_of(&client)).collect();
            self.left_out.push(format!("upstreams of CoreDNS: not asked from {}, too", others.join(", ")));
        }
        all
    }

    /// The cluster's own DNS: its Service's addresses, and its replicas.
    fn add_service(&mut self, cluster: &Cluster, replicas: &[Backend]) {
        match cluster.dns_service() {
            Some(service) => {
                let what = format!("Service {}/{}", service.metadata.namespace, service.metadata.name);
                for address in service.cluster_ips() {
                    self.add(CLIENT, SocketAddr::new(address, shots::DNS_PORT), false, what.clone());
                }
            }
            None => self.left_out.push("the cluster has no Service of its DNS (kube-system/kube-dns)".to_owned()),
        }
        for replica in replicas {
            let what = format!("replica {}", replica_words(replica));
            self.add(CLIENT, SocketAddr::new(replica.address, replica.port), false, what);
        }
    }

    /// The lookup of a program, and each server of the wanted family.
    fn wishes(&self, plan: &Plan, name: &str, askers: &[Client]) -> Vec<Wish> {
        let request = &plan.request;
        let own_transport = matches!(request.options.transport, Some(Transport::Tls | Transport::Https));
        let wanted = self.servers.iter().filter(|server| request.family.holds(server.address.ip()));
        let by = wanted.map(|Server { from, address, by_tls, whats }| {
            let (server, transport) = match (own_transport, by_tls) {
                (true, _) => {
                    let port = shots::dns_port(&request.options);
                    (SocketAddr::new(address.ip(), port), shots::transport(&request.options))
                }
                (false, true) => (*address, DnsTransport::Tls { server_name: None }),
                (false, false) => (*address, shots::transport(&request.options)),
            };
            let asker = &askers[*from];
            let place = if *from == CLIENT {
                String::new()
            } else {
                format!(", asked from {} on {}", plan::words_of(asker), asker.node)
            };
            let to = format!("{name} by {server} ({}){place}", whats.join("; "));
            (asker, shots::query(request, name, to, DnsAsking::Server { server, transport }))
        });
        let schedule = plan::schedule(request, 1);
        let all = std::iter::once((&plan.client, shots::lookup(request, name))).chain(by);
        all.map(|(client, shot)| Wish { client: client.clone(), shot, schedule }).collect()
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

/// NodeLocal DNSCache, which runs on each node.
struct Cache {
    /// Where its DaemonSet says that it listens; empty where that is not known.
    addresses: Vec<IpAddr>,
}

impl Cache {
    fn may_have(&self, address: IpAddr) -> bool {
        if self.addresses.is_empty() { is_link_local(address) } else { self.addresses.contains(&address) }
    }
}

/// None where it does not run in the cluster.
fn cache(cluster: &Cluster) -> Option<Cache> {
    let label = |labels: &BTreeMap<String, String>| labels.get("k8s-app").is_some_and(|app| app == NODE_LOCAL_NAME);
    let workloads = cluster.workloads.in_namespace("kube-system").filter(|workload| workload.kind == "DaemonSet");
    let mut sets =
        workloads.filter(|set| set.metadata.name == NODE_LOCAL_NAME || label(&set.metadata.labels)).peekable();
    let is_there = sets.peek().is_some()
        || cluster.pods.in_namespace("kube-system").any(|pod| label(&pod.metadata.labels) && !pod.is_finished());
    let addresses = sets.flat_map(|set| local_ips(set)).collect();
    is_there.then_some(Cache { addresses })
}

/// `-localip 169.254.20.10,10.96.0.10`; placeholders that were not filled in name nothing.
fn local_ips(set: &Workload) -> Vec<IpAddr> {
    let containers = set.spec.template.spec.iter().flat_map(|spec| &spec.containers);
    let listed = containers.filter_map(local_ip).flat_map(|listed| listed.split(','));
    listed.filter_map(|address| address.trim().parse().ok()).collect()
}

/// The value of the flag (`cmd/node-cache/main.go` of kubernetes/dns). Go's package flag takes one hyphen or two, and the value behind
/// `=` or as the next word.
fn local_ip(container: &TemplateContainer) -> Option<&str> {
    let mut words = container.command.iter().chain(&container.args);
    while let Some(word) = words.next() {
        let Some(flag) = word.strip_prefix("--").or_else(|| word.strip_prefix('-')) else { continue };
        match flag.split_once('=') {
            Some(("localip", value)) => return Some(value),
            None if flag == "localip" => return words.next().map(String::as_str),
            _ => {}
        }
    }
    None
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
