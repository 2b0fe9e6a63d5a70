//! The trail of an answer: what was asked in which order, and what came back.

use std::net::SocketAddr;

use netdiag_common::observation::Observation;
use netdiag_common::observation::probe::ProbeRequest;
use netdiag_common::observation::tcp::TcpAccounts;
use netdiag_common::{Need, Netns, Reading, Tier, Topic};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::evidence::{Cluster, Evidence};

/// One need and its outcome.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Step {
    /// From 1; needs of one round were asked together.
    pub round: usize,
    /// `passive` or `probe`.
    pub tier: String,
    pub node: String,
    /// `listening sockets of pod shop/web-1`.
    pub asked: String,
    /// `3 sockets`, `no answer after 1.2 s`, or the gap's reason.
    pub outcome: String,
    /// Codes that this round excluded; on the round's last step.
    pub excluded: Vec<String>,
}

impl Step {
    pub fn new(round: usize, need: &Need, reading: &Reading<Observation>, evidence: &Evidence) -> Self {
        let tier = match need.tier() {
            Tier::Passive => "passive",
            Tier::Probe => "probe",
            Tier::Trace => "trace",
        };
        Self {
            round,
            tier: tier.to_owned(),
            node: need.node.clone(),
            asked: need_in_words(need, Some(&evidence.cluster)),
            outcome: outcome(reading),
            excluded: Vec::new(),
        }
    }
}

/// `listening sockets of pod shop/web-1`; pods by name when the cluster knows the UID.
pub fn need_in_words(need: &Need, cluster: Option<&Cluster>) -> String {
    let place = match &need.netns {
        Netns::Host => format!("node {}", need.node),
        Netns::Pod(uid) => match cluster.and_then(|c| c.pods.iter().find(|pod| pod.metadata.uid == *uid)) {
            Some(pod) => format!("pod {}/{}", pod.metadata.namespace, pod.metadata.name),
            None => format!("pod with UID {uid}"),
        },
    };
    match &need.topic {
        Topic::Preflight => format!("abilities of the agent on {place}"),
        Topic::Pods => format!("pods found on {place}"),
        Topic::Network => format!("links and routes of {place}"),
        Topic::Sysctls => format!("forwarding sysctls of {place}"),
        Topic::Listeners => format!("listening sockets of {place}"),
        Topic::Conntrack => format!("connection tracking of {place}"),
        Topic::Flows => format!("tracked flows of {place}"),
        Topic::FindFlows(query) => format!("tracked flows {} of {place}", query.words()),
        Topic::Resolver => format!("resolv.conf of {place}"),
        Topic::Rules => format!("packet filter of {place}"),
        Topic::ServiceRules => format!("Service rules of {place}"),
        Topic::KubeProxy => format!("kube-proxy on {place}"),
        Topic::Kubelet => format!("DNS settings of the kubelet of {place}"),
        Topic::Cni => format!("network configurations of {place}"),
        Topic::Networkd => format!("systemd-networkd of {place}"),
        Topic::Drops => format!("dropped packets on {place}"),
        Topic::Dns => format!("DNS queries on {place}"),
        Topic::Rejects => format!("refusals on {place}"),
        Topic::Tcp => format!("TCP connections on {place}"),
        Topic::Udp => format!("full UDP sockets on {place}"),
        Topic::Libraries => format!("lookups and TLS handshakes of programs on {place}"),
        Topic::Devices => format!("network devices of {place}"),
        Topic::Neighbours => format!("neighbours of {place}"),
        Topic::Sockets => format!("sockets and their limits of {place}"),
        Topic::Counters => format!("network counters of {place}"),
        Topic::Probe(ProbeRequest::TcpConnect { address, port, .. }) => {
            format!("tcp connect to {} from {place}", SocketAddr::new(*address, *port))
        }
        Topic::Probe(ProbeRequest::Dns { server, port, name, .. }) => {
            format!("dns query for {name} to {} from {place}", SocketAddr::new(*server, *port))
        }
        Topic::Series(request) => format!("series of {} probes from {place}", request.probe.name()),
        Topic::Mesh(_) => format!("continuous probes from {place}"),
        Topic::Fate(request) => format!("fate of {} in {place}", request.words()),
        Topic::PolicyMap(query) => format!("what policy maps of {place} say about {}", query.words()),
        Topic::Trace(request) => format!("trace of {} in {place}", request.tuple),
        Topic::Tagged(request) => format!("the way of {} on {place}", request.tuple),
        Topic::Tags => format!("armed tags on {place}"),
    }
}

fn outcome(reading: &Reading<Observation>) -> String {
    match reading {
        Reading::Seen { value, .. } => value_in_words(value),
        Reading::Absent { .. } => "nothing there".to_owned(),
        Reading::Unavailable { gap } => format!("not seen: {}", gap.why),
        Reading::NotAsked { .. } => "not asked".to_owned(),
    }
}

fn value_in_words(value: &Observation) -> String {
    match value {
        Observation::Preflight(preflight) => {
            format!("{} of {} checks passed", preflight.checks.iter().filter(|c| c.ok).count(), preflight.checks.len())
        }
        Observation::Pods(pods) => format!("{} pods", pods.len()),
        Observation::Network(network) => format!("{} links, {} routes", network.links.len(), network.routes.len()),
        Observation::Sysctls(sysctls) => format!("{} values", sysctls.values.len()),
        Observation::Listeners(listeners) => format!("{} sockets", listeners.len()),
        Observation::Conntrack(conntrack) => format!("{} of {} entries", conntrack.entries, conntrack.limit),
        Observation::Flows(flows) => {
            format!("{} entries, {} of them outdated", flows.snapshot.entries, flows.snapshot.outdated_flows)
        }
        Observation::FoundFlows(found) => format!("{} entries", found.flows.len() as u64 + found.omitted),
        Observation::Resolver(resolver) => format!("{} name servers", resolver.nameservers.len()),
        Observation::Rules(rules) => format!("{} tables", rules.tables.len()),
        Observation::ServiceRules(rules) => format!("{} Service addresses", rules.entries.len()),
        Observation::KubeProxy(proxy) if proxy.running => "running".to_owned(),
        Observation::KubeProxy(_) => "not running".to_owned(),
        Observation::Kubelet(kubelet) => format!("{} name servers for pods", kubelet.cluster_dns.value.len()),
        Observation::Cni(cni) => format!("{} files in {}", cni.files.len(), cni.folder),
        Observation::Networkd(found) => format!("runs since {}", found.started),
        Observation::Drops(drops) => format!("{} packets in {:.0} s", drops.accounts.total, drops.window_s),
        Observation::Dns(dns) => format!("{} queries in {:.0} s", dns.accounts.queries, dns.window_s),
        Observation::Rejects(rejects) => format!("{} refusals in {:.0} s", rejects.accounts.total, rejects.window_s),
        Observation::Tcp(tcp) => {
            let TcpAccounts { connects, established, .. } = tcp.accounts;
            format!("{established} of {connects} connects established in {:.0} s", tcp.window_s)
        }
        Observation::Udp(udp) => format!("{} datagrams without room in {:.0} s", udp.accounts.total, udp.window_s),
        Observation::Libraries(found) => format!("{} calls in {:.0} s", found.accounts.total, found.window_s),
        Observation::Devices(found) => format!("{} devices", found.devices.len()),
        Observation::Neighbours(found) => format!("{} neighbours without an answer", found.unresolved.len()),
        Observation::Sockets(found) => {
            format!("{} sockets", found.states.iter().map(|state| state.count).sum::<u64>())
        }
        Observation::Counters(found) => {
            let grew = found.counters.values().filter(|counter| counter.grew()).count();
            format!("{grew} counters grew in {:.0} s", found.window_s)
        }
        Observation::Probe(result) => {
            let words = result.attempts.first().map_or_else(|| "no attempt".to_owned(), |a| a.outcome.words());
            format!("{} of {} got through ({words})", result.succeeded(), result.attempts.len())
        }
        Observation::Series(result) => format!("{} of {} got through", result.succeeded, result.made),
        Observation::Mesh(report) => format!("{} rounds of probes", report.rounds.len()),
        Observation::Fate(fate) => format!("{} possible ways", fate.outcome.paths.len()),
        Observation::PolicyMap(verdict) => format!("{} by {}", verdict.entry.word(), verdict.map),
        Observation::Trace(record) => format!("{} packets traced", record.packets.len()),
        Observation::Tagged(tagged) => format!("seen at {} points", tagged.accounts.kept),
        Observation::Tags(tags) => format!("{} tags", tags.len()),
    }
}
