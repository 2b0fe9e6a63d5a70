//! Evidence through the eyes of one condition: what it looked at, what it could not see, what it needs next.

use std::collections::BTreeSet;

use jiff::Timestamp;
use netdiag_common::observation::cni::Cni;
use netdiag_common::observation::conntrack::Conntrack;
use netdiag_common::observation::counter::Counters;
use netdiag_common::observation::device::Devices;
use netdiag_common::observation::dns::Dns;
use netdiag_common::observation::flow::{FlowQuery, Flows, FoundFlows};
use netdiag_common::observation::kfree_skb::Drops;
use netdiag_common::observation::kube_proxy::KubeProxy;
use netdiag_common::observation::kubelet::Kubelet;
use netdiag_common::observation::listener::Listener;
use netdiag_common::observation::neighbour::Neighbours;
use netdiag_common::observation::network::Network;
use netdiag_common::observation::networkd::Networkd;
use netdiag_common::observation::pod::PodOnNode;
use netdiag_common::observation::policy_map::{PolicyQuery, PolicyVerdict};
use netdiag_common::observation::probe::{ProbeRequest, ProbeResult};
use netdiag_common::observation::reject::Rejects;
use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::rules::Ruleset;
use netdiag_common::observation::series::{SeriesRequest, SeriesResult};
use netdiag_common::observation::service_rules::ServiceRules;
use netdiag_common::observation::socket::Sockets;
use netdiag_common::observation::sysctl::Sysctls;
use netdiag_common::observation::tcp::Tcp;
use netdiag_common::observation::{Observation, preflight};
use netdiag_common::{Gap, GapReason, Need, Netns, Reading, Topic, Window};

use super::Evidence;
use super::cluster::{Cluster, Kind};
use super::kind_name::KindName;
use super::object::{
    ConfigMap, EndpointSlice, Event, Namespace, NetworkPolicy, Node, Pod, Service, ServiceCidr, Workload,
};

/// What looking at something brought.
#[derive(Debug, Clone, Copy)]
pub enum Look<'e, T> {
    Seen(Seen<'e, T>),
    /// We looked, and there is nothing.
    Absent(Timestamp),
    /// Not seen: the view has noted the gap, or the need.
    Dark,
}

/// A value and when it was read.
#[derive(Debug)]
pub struct Seen<'e, T> {
    pub value: &'e T,
    pub at: Timestamp,
}

impl<T> Clone for Seen<'_, T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Seen<'_, T> {}

impl<'e, T> Look<'e, T> {
    /// For conditions that treat absent like not seen.
    pub fn seen(self) -> Option<Seen<'e, T>> {
        match self {
            Self::Seen(seen) => Some(seen),
            Self::Absent(_) | Self::Dark => None,
        }
    }
}

/// Records every look, so that declared reads can be compared with actual ones and the user gets a trail for nothing.
pub struct View<'e> {
    evidence: &'e Evidence,
    kinds: Vec<KindName>,
    topics: BTreeSet<Need>,
    needs: BTreeSet<Need>,
    gaps: Vec<Gap>,
}

macro_rules! kinds {
    ($($method:ident: $kind:ident -> $type:ty),* $(,)?) => {$(
        /// Dark when the API did not let us list this kind.
        pub fn $method(&mut self) -> Look<'e, Kind<$type>> {
            self.kind(KindName::$kind, &self.evidence.cluster.$method)
        }
    )*};
}

macro_rules! topics {
    ($($method:ident: $topic:ident -> $type:ty),* $(,)?) => {$(
        pub fn $method(&mut self, node: &str, netns: &Netns) -> Look<'e, $type> {
            let need = Need { node: node.to_owned(), netns: netns.clone(), topic: Topic::$topic, window: Window::default() };
            self.look(need, |observation| match observation {
                Observation::$topic(value) => Some(value),
                _ => None,
            })
        }
    )*};
}

impl<'e> View<'e> {
    pub fn new(evidence: &'e Evidence) -> Self {
        Self { evidence, kinds: Vec::new(), topics: BTreeSet::new(), needs: BTreeSet::new(), gaps: Vec::new() }
    }

    pub fn now(&self) -> Timestamp {
        self.evidence.now
    }

    /// The objects without any record of the look: for names and joins whose kinds the caller has looked at already.
    pub fn cluster(&self) -> &'e Cluster {
        &self.evidence.cluster
    }

    kinds! {
        namespaces: Namespaces -> Namespace,
        nodes: Nodes -> Node,
        pods: Pods -> Pod,
        services: Services -> Service,
        endpoint_slices: EndpointSlices -> EndpointSlice,
        network_policies: NetworkPolicies -> NetworkPolicy,
        workloads: Workloads -> Workload,
        events: Events -> Event,
        config_maps: ConfigMaps -> ConfigMap,
        service_cidrs: ServiceCidrs -> ServiceCidr,
    }

    topics! {
        preflight: Preflight -> preflight::Preflight,
        pods_on_node: Pods -> Vec<PodOnNode>,
        network: Network -> Network,
        sysctls: Sysctls -> Sysctls,
        listeners: Listeners -> Vec<Listener>,
        conntrack: Conntrack -> Conntrack,
        flows: Flows -> Flows,
        resolver: Resolver -> Resolver,
        rules: Rules -> Ruleset,
        service_rules: ServiceRules -> ServiceRules,
        kube_proxy: KubeProxy -> KubeProxy,
        kubelet: Kubelet -> Kubelet,
        cni: Cni -> Cni,
        networkd: Networkd -> Networkd,
        drops: Drops -> Drops,
        rejects: Rejects -> Rejects,
        tcp: Tcp -> Tcp,
        dns: Dns -> Dns,
        devices: Devices -> Devices,
        neighbours: Neighbours -> Neighbours,
        sockets: Sockets -> Sockets,
        counters: Counters -> Counters,
    }

    /// A probe that the condition wants; sent only when the question's tier allows it.
    pub fn probe(&mut self, node: &str, netns: &Netns, request: ProbeRequest) -> Look<'e, ProbeResult> {
        let need = Need {
            node: node.to_owned(),
            netns: netns.clone(),
            topic: Topic::Probe(request),
            window: Window::default(),
        };
        self.look(need, |observation| match observation {
            Observation::Probe(value) => Some(value),
            _ => None,
        })
    }

    /// A series of probes that the condition wants, as [`Self::probe`].
    pub fn series(&mut self, node: &str, netns: &Netns, request: SeriesRequest) -> Look<'e, SeriesResult> {
        let need = Need {
            node: node.to_owned(),
            netns: netns.clone(),
            topic: Topic::Series(Box::new(request)),
            window: Window::default(),
        };
        self.look(need, |observation| match observation {
            Observation::Series(value) => Some(value),
            _ => None,
        })
    }

    /// Single entries of connection tracking.
    pub fn find_flows(&mut self, node: &str, netns: &Netns, query: FlowQuery) -> Look<'e, FoundFlows> {
        let need = Need {
            node: node.to_owned(),
            netns: netns.clone(),
            topic: Topic::FindFlows(query),
            window: Window::default(),
        };
        self.look(need, |observation| match observation {
            Observation::FoundFlows(value) => Some(value),
            _ => None,
        })
    }

    /// What a policy engine's maps say about one packet.
    pub fn policy_map(&mut self, node: &str, query: PolicyQuery) -> Look<'e, PolicyVerdict> {
        let need = Need::host(node, Topic::PolicyMap(query));
        self.look(need, |observation| match observation {
            Observation::PolicyMap(value) => Some(value),
            _ => None,
        })
    }

    /// A reading as it is, for those that follow packets from one to the next; none when nobody has asked for it yet.
    pub fn reading(&mut self, need: &Need) -> Option<&'e Reading<Observation>> {
        self.topics.insert(need.clone());
        match self.evidence.reading(need) {
            None | Some(Reading::NotAsked { .. }) => {
                self.needs.insert(need.clone());
                None
            }
            Some(Reading::Unavailable { gap }) => {
                self.note_gap(gap);
                self.evidence.reading(need)
            }
            seen => seen,
        }
    }

    /// A question that the readings leave open, although they are all there.
    pub fn leave_open(&mut self, gap: Gap) {
        self.note_gap(&gap);
    }

    /// Whether something looked at so far was dark.
    pub fn is_dark(&self) -> bool {
        !self.gaps.is_empty() || !self.needs.is_empty()
    }

    /// What was asked for and nobody has looked at yet.
    pub fn needs(&self) -> &BTreeSet<Need> {
        &self.needs
    }

    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    pub fn kinds_read(&self) -> &[KindName] {
        &self.kinds
    }

    pub fn topics_read(&self) -> &BTreeSet<Need> {
        &self.topics
    }

    fn kind<T>(&mut self, name: KindName, kind: &'e Kind<T>) -> Look<'e, Kind<T>> {
        if !self.kinds.contains(&name) {
            self.kinds.push(name);
        }
        match kind.gap() {
            Some(gap) => {
                self.note_gap(gap);
                Look::Dark
            }
            None => Look::Seen(Seen { value: kind, at: self.evidence.now }),
        }
    }

    fn look<T>(&mut self, need: Need, pick: impl FnOnce(&'e Observation) -> Option<&'e T>) -> Look<'e, T> {
        match self.reading(&need) {
            None | Some(Reading::NotAsked { .. } | Reading::Unavailable { .. }) => Look::Dark,
            Some(Reading::Absent { at }) => Look::Absent(*at),
            Some(Reading::Seen { value, at }) => match pick(value) {
                Some(value) => Look::Seen(Seen { value, at: *at }),
                None => {
                    self.note_gap(&wrong_observation(&need));
                    Look::Dark
                }
            },
        }
    }

    fn note_gap(&mut self, gap: &Gap) {
        if !self.gaps.contains(gap) {
            self.gaps.push(gap.clone());
        }
    }
}

/// The agent answered a need with the value of another topic: a broken agent or bundle.
fn wrong_observation(need: &Need) -> Gap {
    Gap {
        what: format!("{} of node {}", need.topic.name(), need.node),
        node: Some(need.node.clone()),
        reason: GapReason::Malformed,
        why: "the reading holds the value of another topic".to_owned(),
        remedy: "run the same version of netdiag-node and netdiag, or record the bundle again".to_owned(),
    }
}
