//! Intended against programmed, for whole nodes: every port of every Service with what kube-proxy wrote for it, what is left of
//! Services that are gone, the addresses of node ports, who listens on health check ports, the routes to the other nodes' pods, the
//! links of pods, flows that outlive their rules, rules that stop what Services lead to, ranges that share addresses, what is left of
//! other network plugins, and what became of NetworkPolicies.

mod bridges;
mod flows;
mod foreign;
mod health_ports;
mod intended;
mod masquerade;
mod mtu;
mod node;
mod node_ports;
mod plugins;
mod pods;
mod policies;
mod ranges;
mod routes;
mod services;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use netdiag_common::observation::Observation;
use netdiag_common::observation::service_rules::Proxier;
use netdiag_common::{Gap, GapReason, Need, Reading, Topic};

pub use self::intended::Entrance;

use self::intended::Slices;
use self::pods::Pods;
use crate::ask::{AskError, Source, SourceError};
use crate::evidence::Cluster;

/// Nodes whose rules are asked for and held at the same time. Those of one node may be tens of megabytes, and those of a thousand
/// more than the server has.
const NODES_AT_ONCE: usize = 16;

/// What is compared.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scope {
    /// None for all nodes.
    pub node: Option<String>,
    pub budget: Duration,
}

/// The answer, node by node.
#[derive(Debug, Clone)]
pub struct Drift {
    pub cluster: Arc<Cluster>,
    pub nodes: Vec<NodeDrift>,
}

#[derive(Debug, Clone, Default)]
pub struct NodeDrift {
    pub node: String,
    /// Whose rules were found; none when they could not be read.
    pub proxier: Option<Proxier>,
    /// They were looked for, and there are none: what other nodes have says what that means.
    pub lacks_rules: bool,
    /// Addresses and node ports of Service ports that were compared.
    pub compared: usize,
    /// Those of Services that changed less than 10 s before the rules were read.
    pub settling: usize,
    /// Packets that NetworkPolicies decide about, of which is known what becomes of them.
    pub policed: usize,
    pub differences: Vec<Difference>,
    pub gaps: Vec<Gap>,
    /// Of the cluster, not of this node: the same for all nodes, and told once.
    pub cluster_gaps: Vec<Gap>,
}

/// One thing that is not as intended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    pub kind: Kind,
    /// `namespace/name:port`; empty for what is about the whole node.
    pub service: String,
    pub entrance: Option<Entrance>,
    pub expected: String,
    pub found: String,
    /// Where: a map, a chain, a routing table.
    pub rule: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// Nothing leads to the node's rules for Services.
    NotHooked,
    /// There are no rules of kube-proxy.
    NoRules,
    /// Rules of another mode, or of the other iptables, besides.
    TwoProxiers,
    /// A Service port has no entry.
    Missing,
    /// The entry leads elsewhere.
    Endpoints,
    OtherService,
    Affinity,
    Sources,
    /// Node ports are on other addresses of the node than kube-proxy is told.
    NodePortAddresses,
    /// kube-proxy does not listen where load balancers ask for the node's endpoints.
    HealthPort,
    /// An entry that no Service has.
    Leftover,
    /// To the pods of another node.
    Route,
    /// Pods may send more than the way to other nodes carries.
    Mtu,
    /// A pod's port of a bridge sends nothing back to where it came from.
    Hairpin,
    /// Packets between ports of a bridge bypass the packet filter.
    BridgeHooks,
    /// A flow in use goes where no rule leads.
    Flow,
    /// Packets leave with a pod's address that should leave with the node's.
    Masquerade,
    /// What NetworkPolicies deny gets through, or what they allow is stopped.
    Policy,
    /// A rule that is not the cluster's stops packets to Services.
    ForeignDrop,
    /// Pods, Services and nodes have ranges that share addresses.
    Overlap,
    /// Chains or links of a network plugin that is not there any more.
    PluginLeft,
}

/// What the nodes say, by what was asked.
pub type Readings = BTreeMap<Need, Reading<Observation>>;

/// Reads the rules of the nodes and compares them. What may be on its way when it is read is looked at again.
pub async fn drift<S: Source>(source: &S, scope: &Scope) -> Result<Drift, AskError> {
    let started = Instant::now();
    let first = look(source, scope, scope.budget).await?;
    let wait = Duration::from_secs_f64(services::SETTLE_S);
    // A Service that was deleted leaves no time of its change: what is left of it may be about to go.
    let left = scope.budget.saturating_sub(started.elapsed());
    if !source.is_live() || first.nodes.iter().all(|node| node.differences.is_empty()) || left <= wait {
        return Ok(first.unconfirmed(source.is_live()));
    }
    tokio::time::sleep(wait).await;
    let second = look(source, scope, scope.budget.saturating_sub(started.elapsed())).await?;
    Ok(first.confirmed_by(second))
}

async fn look<S: Source>(source: &S, scope: &Scope, budget: Duration) -> Result<Drift, AskError> {
    let cluster = source.cluster().await?;
    let asked = asked(&cluster, scope)?;
    let networks = routes::nodes(&cluster, &asked);
    let pods = Pods::of(&cluster);
    let of_host = [Topic::KubeProxy, Topic::Sysctls];
    let needs = asked.iter().flat_map(|node| of_host.clone().map(|topic| Need::host(node, topic)));
    let needs = needs.chain(networks.iter().map(|node| Need::host(node, Topic::Network)));
    let needs = needs.chain(health_ports::needs(&cluster, &asked));
    let needs = needs.chain(asked.iter().flat_map(|node| pods.needs(node))).collect();
    let deadline = Instant::now() + budget;
    let mut readings: Readings = source.gather(needs, deadline).await.into_iter().collect();
    let mut packets: Vec<Need> =
        asked.iter().flat_map(|node| policies::needs(&cluster, &pods, node, &readings)).collect();
    // One node alone has no other to be compared with.
    if asked.len() > 1 {
        packets.extend(masquerade::needs(&pods, &asked, &readings));
    }
    if !packets.is_empty() {
        readings.extend(source.gather(packets, deadline).await);
    }
    let slices = Slices::of(&cluster);
    let mut nodes = Vec::with_capacity(asked.len());
    let mut answers = stream::iter(asked)
        .map(|node| {
            let needs = of_one(&node);
            async move { (source.gather(needs, deadline).await, node) }
        })
        .buffer_unordered(NODES_AT_ONCE);
    while let Some((of_node, node)) = answers.next().await {
        readings.extend(of_node);
        nodes.push(node::compare(&cluster, (&slices, &pods), &node, &readings, source.now()));
        for need in of_one(&node) {
            readings.remove(&need);
        }
    }
    nodes.sort_by(|one, other| one.node.cmp(&other.node));
    node::complete(&mut nodes, &readings);
    Ok(Drift { cluster: Arc::clone(&cluster), nodes })
}

/// What only the node's own comparison needs, and what may be large.
fn of_one(node: &str) -> Vec<Need> {
    let topics = [Topic::ServiceRules, Topic::Flows, Topic::Rules, Topic::Cni];
    topics.into_iter().map(|topic| Need::host(node, topic)).collect()
}

/// Pure.
pub fn compare(cluster: Arc<Cluster>, asked: &[String], readings: &Readings, now: Timestamp) -> Drift {
    let slices = Slices::of(&cluster);
    let pods = Pods::of(&cluster);
    let compared = asked.iter().map(|name| node::compare(&cluster, (&slices, &pods), name, readings, now));
    let mut nodes: Vec<NodeDrift> = compared.collect();
    node::complete(&mut nodes, readings);
    Drift { cluster, nodes }
}

fn asked(cluster: &Cluster, scope: &Scope) -> Result<Vec<String>, SourceError> {
    let kinds = [cluster.nodes.gap(), cluster.services.gap(), cluster.endpoint_slices.gap()];
    if let Some(gap) = kinds.into_iter().flatten().next() {
        return Err(SourceError { message: format!("cannot compare: {}; {}", gap.why, gap.remedy) });
    }
    let all: Vec<String> = cluster.nodes.iter().map(|node| node.metadata.name.clone()).collect();
    match &scope.node {
        None => Ok(all),
        Some(node) if all.contains(node) => Ok(vec![node.clone()]),
        Some(node) => Err(SourceError { message: format!("there is no node {node}; there is {}", all.join(", ")) }),
    }
}

impl Drift {
    /// Of both looks, what is still so in the second one: all that the second shows, but only leftovers that both show.
    fn confirmed_by(self, mut second: Self) -> Self {
        for node in &mut second.nodes {
            let before = self.nodes.iter().find(|before| before.node == node.node);
            let was_there = |difference: &Difference| {
                before.is_some_and(|before| {
                    before.differences.iter().any(|old| {
                        (old.kind, old.entrance, &old.service)
                            == (difference.kind, difference.entrance, &difference.service)
                    })
                })
            };
            let before_count = node.differences.len();
            node.differences.retain(was_there);
            node.settling += before_count - node.differences.len();
        }
        second
    }

    /// Leftovers that nobody looked at twice are no differences yet.
    fn unconfirmed(mut self, is_live: bool) -> Self {
        for node in self.nodes.iter_mut().filter(|_| is_live) {
            let before = node.differences.len();
            node.differences.retain(|difference| difference.kind != Kind::Leftover);
            let doubtful = before - node.differences.len();
            if doubtful > 0 {
                let why =
                    format!("{doubtful} entries belong to no Service, and there was no time to look again after 10 s");
                node.gaps.push(gap(&node.node, "leftovers of Services", why, "ask with a longer --timeout"));
            }
        }
        self
    }
}

fn gap(node: &str, what: &str, why: String, remedy: &str) -> Gap {
    Gap {
        what: what.to_owned(),
        node: Some(node.to_owned()),
        reason: GapReason::Failed,
        why,
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_of_health_ports;
#[cfg(test)]
mod tests_of_hints;
#[cfg(test)]
mod tests_of_node_ports;
#[cfg(test)]
mod tests_of_pods;
#[cfg(test)]
mod tests_of_policies;
#[cfg(test)]
mod tests_of_ranges;
