//! Fates as the nodes of a story would answer them: the packet goes by the routes of the story's readings, and a Service's address
//! is translated by its rules there. What a story wants otherwise it says in `yaml fates`.
//!
//! A stand-in for the agent's evaluator, which knows neither chains nor policy routing.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netdiag_common::forwarding::conntrack::{Direction, Entry, Tuple};
use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::{Assumption, Decision, End, Path, Place};
use netdiag_common::forwarding::state::Hook;
use netdiag_common::forwarding::{Fact, Outcome, Packet};
use netdiag_common::observation::fate::{
    Fate, FateInterface, FateInterfaceKey, FateOrigin, FateRequest, FateRule, FateTransport, Peer,
};
use netdiag_common::observation::network::Network;
use netdiag_common::observation::service_rules::ServiceAction;
use netdiag_common::observation::{Observation, Owner, Protocol};
use netdiag_common::{Need, Netns, Reading, Topic, Window};
use netdiag_server::evidence::Cluster;
use serde::Deserialize;

/// The first interface of every pod, and what a node calls its own to the network.
const ETH0: u32 = 2;

/// What one namespace does otherwise than by its routes.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToldFate {
    node: String,
    netns: Netns,
    /// Only of packets for this address.
    #[serde(default)]
    to: Option<IpAddr>,
    /// What comes before anything else.
    #[serde(default)]
    decisions: Vec<Decision>,
    /// The words of those decisions' rules.
    #[serde(default)]
    rules: Vec<FateRule>,
    /// The packet goes on to this address, whatever the Service's rules say.
    #[serde(default)]
    translated_to: Option<SocketAddr>,
    /// The packet leaves with this source.
    #[serde(default)]
    masqueraded_as: Option<IpAddr>,
    /// A Service's address stays as it is, since the packet is not tracked.
    #[serde(default)]
    untranslated: bool,
    #[serde(default)]
    end: Option<End>,
}

pub struct Story<'s> {
    pub cluster: &'s Cluster,
    pub readings: &'s BTreeMap<Need, Reading<Observation>>,
    pub told: &'s [ToldFate],
}

impl Story<'_> {
    pub fn fate(&self, need: &Need, request: &FateRequest) -> Option<Fate> {
        let told = self.told.iter().find(|told| {
            told.node == need.node && told.netns == need.netns && told.to.is_none_or(|to| to == request.destination)
        });
        let (packet, mut interfaces) = self.enters(need, request)?;
        let targets = match told.and_then(|told| told.translated_to) {
            Some(target) => vec![target],
            None if told.is_some_and(|told| told.untranslated) => Vec::new(),
            None => self.endpoints(need, request),
        };
        let mut paths = Vec::new();
        if let Some(entry) = &request.connection {
            paths.push(self.leaves(need, &back(request, entry)?, None, told, &mut interfaces)?);
        } else if let Some(source) = told.and_then(|told| told.masqueraded_as) {
            let changed = again(request, source, packet.destination(), request.transport.ports())?;
            paths.push(self.leaves(need, &changed, Some(&packet), told, &mut interfaces)?);
        } else if targets.is_empty() {
            paths.push(self.leaves(need, &packet, None, told, &mut interfaces)?);
        }
        for (index, target) in targets.iter().enumerate() {
            let chance = (targets.len() > 1).then(|| Assumption::Chance {
                at: Place { hook: Hook::Prerouting, chain: None, handle: None },
                what: "numgen".to_owned(),
                values: vec![u32::try_from(index).expect("few endpoints")],
                chance: 1.0 / f64::from(u32::try_from(targets.len()).expect("few endpoints")),
            });
            let changed = aimed(request, &packet, *target)?;
            let mut path = self.leaves(need, &changed, Some(&packet), told, &mut interfaces)?;
            path.assumptions.extend(chance);
            paths.push(path);
        }
        let rules = told.map(|told| told.rules.clone()).unwrap_or_default();
        let outcome = Outcome { paths, cut: false };
        let (deliveries, neighbours, unseen, left_out) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Some(Fate { generation: None, packet, outcome, rules, interfaces, deliveries, neighbours, unseen, left_out })
    }

    fn enters(&self, need: &Need, request: &FateRequest) -> Option<(Packet, Vec<FateInterface>)> {
        let origin = match &request.origin {
            FateOrigin::Sent => Origin::Sent,
            FateOrigin::Received(FateInterfaceKey::Index(index)) => Origin::Received { interface: *index },
            FateOrigin::Received(FateInterfaceKey::Name(_)) => Origin::Received { interface: ETH0 },
        };
        let own = self.own_addresses(need).into_iter().find(|own| own.is_ipv4() == request.destination.is_ipv4())?;
        let interfaces = match origin {
            Origin::Received { interface } => vec![self.interface(need, interface)],
            Origin::Sent => Vec::new(),
        };
        Some((request.packet(origin, own)?, interfaces))
    }

    /// By the routes of the namespace, unless the story says how it ends.
    fn leaves(
        &self,
        need: &Need,
        packet: &Packet,
        translated: Option<&Packet>,
        told: Option<&ToldFate>,
        interfaces: &mut Vec<FateInterface>,
    ) -> Option<Path> {
        let mut decisions = told.map(|told| told.decisions.clone()).unwrap_or_default();
        let now = Tuple::of(packet)?;
        let first = translated.map_or(Some(now.clone()), Tuple::of)?;
        if translated.is_some() {
            decisions.push(Decision::Translated { hook: Hook::Prerouting, from: first.clone(), to: now.clone() });
        }
        let end = match told.and_then(|told| told.end.clone()) {
            Some(end) => end,
            None if self.own_addresses(need).contains(&packet.destination()) => End::Delivered,
            None => self.sent(need, packet.destination()),
        };
        if let End::Sent { interface, .. } = end {
            interfaces.push(self.interface(need, interface));
        }
        let entry = Entry {
            direction: Direction::Original,
            status: 0,
            mark: 0,
            zone: 0,
            original: first,
            reply: now.inverted(),
            masqueraded: Fact::Known(None),
        };
        let connection = told.is_none_or(|told| !told.untranslated).then_some(entry);
        let packet = packet.clone();
        Some(Path { assumptions: Vec::new(), decisions, gaps: Vec::new(), end, packet, connection })
    }

    fn sent(&self, need: &Need, destination: IpAddr) -> End {
        if matches!(need.netns, Netns::Pod(_)) {
            return End::Sent { interface: ETH0, gateway: None };
        }
        match self.network(&need.node).and_then(|network| network.route_to(destination)) {
            Some(route) => match route.link_index {
                Some(interface) => End::Sent { interface, gateway: route.gateway },
                None => End::NoRoute { why: format!("{} is {:?}", route.destination, route.kind) },
            },
            None => End::NoRoute { why: format!("no route to {destination}") },
        }
    }

    fn interface(&self, need: &Need, index: u32) -> FateInterface {
        let link = |network: &Network| network.link(index).map(|link| (link.name.clone(), link.kind.clone()));
        let peer = match &need.netns {
            Netns::Pod(uid) => self.link_of(&need.node, uid).map(|index| (index, Owner::Host)),
            Netns::Host => {
                self.pods_of(&need.node).find(|(_, link)| *link == index).map(|(uid, _)| (ETH0, Owner::Pod { uid }))
            }
        };
        let (name, kind) = match &need.netns {
            Netns::Host => self.network(&need.node).and_then(link).unwrap_or_default(),
            Netns::Pod(_) => ("eth0".to_owned(), "veth".to_owned()),
        };
        let peer = peer.map(|(index, owner)| Peer { index, netns_id: Some(0), owner: Some(owner) });
        FateInterface { index, name, kind, master_index: None, port: None, vlan: None, peer }
    }

    fn link_of(&self, node: &str, uid: &str) -> Option<u32> {
        self.pods_of(node).find(|(own, _)| own == uid).map(|(_, link)| link)
    }

    /// UIDs of a node's pods, and the links that lead to them.
    fn pods_of(&self, node: &str) -> impl Iterator<Item = (String, u32)> {
        let network = self.network(node);
        let here = self.cluster.pods.iter().filter(move |pod| pod.spec.node_name == node && !pod.spec.host_network);
        here.filter_map(move |pod| {
            let route = network?.route_to(pod.addresses().next()?)?;
            Some((pod.metadata.uid.clone(), route.link_index?))
        })
    }

    fn network(&self, node: &str) -> Option<&Network> {
        let need = Need { node: node.to_owned(), netns: Netns::Host, topic: Topic::Network, window: Window::default() };
        match self.readings.get(&need) {
            Some(Reading::Seen { value: Observation::Network(network), .. }) => Some(network),
            _ => None,
        }
    }

    fn own_addresses(&self, need: &Need) -> Vec<IpAddr> {
        match &need.netns {
            Netns::Pod(uid) => {
                let pod = self.cluster.pods.iter().find(|pod| pod.metadata.uid == *uid);
                pod.map(|pod| pod.addresses().collect()).unwrap_or_default()
            }
            Netns::Host => {
                let node = self.cluster.nodes.iter().find(|node| node.metadata.name == need.node);
                node.map(|node| node.internal_ips().collect()).unwrap_or_default()
            }
        }
    }

    /// Where the node's rules lead packets for a Service's address.
    fn endpoints(&self, need: &Need, request: &FateRequest) -> Vec<SocketAddr> {
        let (protocol, port) = match request.transport {
            FateTransport::Tcp { destination_port, .. } => (Protocol::Tcp, destination_port),
            FateTransport::Udp { destination_port, .. } => (Protocol::Udp, destination_port),
            FateTransport::Icmp { .. } | FateTransport::Ipip => return Vec::new(),
        };
        let rules = Need { topic: Topic::ServiceRules, ..need.clone() };
        let Some(Reading::Seen { value: Observation::ServiceRules(rules), .. }) = self.readings.get(&rules) else {
            return Vec::new();
        };
        match rules.find(request.destination, protocol, port.unwrap_or(0)).map(|rule| &rule.action) {
            Some(ServiceAction::Endpoints(found)) => {
                found.iter().map(|endpoint| SocketAddr::new(endpoint.address, endpoint.port)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The packet, for another address and port.
fn aimed(request: &FateRequest, packet: &Packet, target: SocketAddr) -> Option<Packet> {
    let (source_port, _) = request.transport.ports();
    again(request, packet.source(), target.ip(), (source_port, Some(target.port())))
}

/// An answer, with the addresses that its connection began with.
fn back(request: &FateRequest, entry: &Entry) -> Option<Packet> {
    let Tuple { source, destination, source_port, destination_port, .. } = &entry.original;
    again(request, *destination, *source, (Some(*destination_port), Some(*source_port)))
}

fn again(
    request: &FateRequest,
    source: IpAddr,
    destination: IpAddr,
    (source_port, destination_port): (Option<u16>, Option<u16>),
) -> Option<Packet> {
    let transport = match request.transport {
        FateTransport::Tcp { flags, .. } => FateTransport::Tcp { source_port, destination_port, flags },
        FateTransport::Udp { .. } => FateTransport::Udp { source_port, destination_port },
        without_ports @ (FateTransport::Icmp { .. } | FateTransport::Ipip) => without_ports,
    };
    let changed = FateRequest { source: Some(source), destination, transport, connection: None, ..request.clone() };
    changed.packet(Origin::Sent, source)
}

/// As an agent would send it.
pub fn observation(fate: Fate) -> Observation {
    Observation::Fate(Arc::new(fate))
}
