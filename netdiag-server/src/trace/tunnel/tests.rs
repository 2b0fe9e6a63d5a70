//! Packets for a pod of node n2 that leave node n1 by a tunnel's device, as two agents tell of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use netdiag_common::forwarding::Without;
use netdiag_common::forwarding::conntrack::State;
use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::{Place as RulePlace, Tracked};
use netdiag_common::forwarding::state::{ChainKey, Family, Hook};
use netdiag_common::observation::fate::{Fate, FateNeighbour};
use netdiag_common::observation::network::{Address, FdbEntry, Link, Network, Tunnel};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Reading, Topic};
use serde_json::json;

use super::*;
use crate::evidence::{Cluster, parse};
use crate::trace::{Begins, Followed, Way, WayEnd, example, ways};

const N1: &str = "172.30.0.11";
const N2: &str = "172.30.0.12";
const MAC: &str = "02:0e:00:00:00:02";
const GATEWAY: &str = "10.244.2.0";
const POD: &str = "10.244.2.3";
const ETH0: u32 = 2;
const OVERLAY: u32 = 3;

struct World {
    kind: &'static str,
    /// n1's forwarding database.
    entries: Vec<FdbEntry>,
    /// Of n2's device.
    vni: u32,
    /// What the API says of n2.
    told: &'static str,
    /// By whom n1 reaches n2.
    router: Option<IpAddr>,
    /// What n2 does with the outer packet.
    decisions: Vec<Decision>,
    end: End,
    has_agent: bool,
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn healthy() -> World {
    let entry = FdbEntry {
        link_index: OVERLAY,
        mac: MAC.to_owned(),
        destination: Some(address(N2)),
        is_static: true,
        ..FdbEntry::default()
    };
    World {
        kind: "vxlan",
        entries: vec![entry],
        vni: 1,
        told: N2,
        router: None,
        decisions: Vec::new(),
        end: End::Delivered,
        has_agent: true,
    }
}

/// By rule 2 of chain in of table site, for which the packet begins a connection.
fn blocked() -> World {
    let chain = ChainKey { family: Family::Inet, table: "site".into(), chain: "in".into() };
    let by = RulePlace { hook: Hook::Input, chain: Some(chain), handle: Some(2) };
    let tracked = Decision::Tracked { hook: Hook::Prerouting, tracked: Tracked::State(State::New) };
    World { decisions: vec![tracked], end: End::Dropped { by }, ..healthy() }
}

impl World {
    fn reading(&self, need: &Need) -> Reading<Observation> {
        if need.node == "n2" && !self.has_agent {
            let gap = Gap {
                what: "node n2".to_owned(),
                node: Some(need.node.clone()),
                reason: GapReason::NoAgent,
                why: "no agent runs there".to_owned(),
                remedy: "install one".to_owned(),
            };
            return Reading::Unavailable { gap };
        }
        let value = match &need.topic {
            Topic::Network => Observation::Network(self.network(&need.node)),
            Topic::Fate(request) => Observation::Fate(Arc::new(self.fate(&need.node, request))),
            other => panic!("nobody needs {other:?}"),
        };
        Reading::Seen { value, at: Timestamp::UNIX_EPOCH }
    }

    fn network(&self, node: &str) -> Network {
        let (own, other, vni) = if node == "n1" { (N1, N2, 1) } else { (N2, N1, self.vni) };
        let local = Tunnel { local: Some(address(own)), ..Tunnel::default() };
        let tunnel = match self.kind {
            "vxlan" => Some(Tunnel { id: Some(vni), port: Some(8_472), ..local }),
            "ipip" => Some(Tunnel { remote: Some(address(other)), ..local }),
            _ => None,
        };
        let overlay = Link {
            index: OVERLAY,
            name: "flannel.1".to_owned(),
            kind: self.kind.to_owned(),
            mtu: 1450,
            up: true,
            carrier: true,
            tunnel,
            ..Link::default()
        };
        let addresses = vec![Address { link_index: ETH0, address: address(own), prefix_length: 24 }];
        Network { links: vec![overlay], addresses, forwarding: self.entries.clone(), ..Network::default() }
    }

    fn fate(&self, node: &str, request: &FateRequest) -> Fate {
        let is_outer = request.destination != address(POD);
        let end = match (node, is_outer) {
            ("n1", false) => End::Sent { interface: OVERLAY, gateway: Some(address(GATEWAY)) },
            ("n1", true) => End::Sent { interface: ETH0, gateway: self.router },
            (_, true) => self.end.clone(),
            // What becomes of it behind the tunnel is another story.
            (_, false) => End::HopsExhausted,
        };
        let origin = match &request.origin {
            FateOrigin::Sent => Origin::Sent,
            FateOrigin::Received(_) => Origin::Received { interface: ETH0 },
        };
        let packet = request.packet(origin, address("10.244.1.0")).unwrap();
        let decisions = if node == "n2" && is_outer { self.decisions.clone() } else { Vec::new() };
        let (state, mac) = (Some("permanent".to_owned()), Some(MAC.to_owned()));
        let gateway = FateNeighbour { path: 0, interface: OVERLAY, address: address(GATEWAY), state, mac, port: None };
        Fate {
            interfaces: vec![device(ETH0, "eth0", ""), device(OVERLAY, "flannel.1", self.kind)],
            neighbours: vec![gateway],
            ..example::fate(packet, decisions, end)
        }
    }

    fn followed(&self, tunnels: Tunnels) -> Followed {
        let mut cluster = Cluster::default();
        for (name, own, range) in [("n1", N1, "10.244.1.0/24"), ("n2", self.told, "10.244.2.0/24")] {
            let addresses = json!([{"type": "InternalIP", "address": own}]);
            let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": name},
                "spec": {"podCIDRs": [range]}, "status": {"addresses": addresses}});
            parse::add(&mut cluster, node).unwrap();
        }
        let (client, protocol, without) = (example::client(), Protocol::Tcp, Without::new());
        let (client, destination, without) = (&client, address(POD), &without);
        let begins = Begins { client, protocol, source_port: 61_001, destination, port: 80, without, tunnels };
        let mut readings: BTreeMap<Need, Reading<Observation>> = BTreeMap::new();
        loop {
            let (followed, needs) = ways(&cluster, begins, &mut |need| readings.get(need));
            if needs.is_empty() {
                return followed;
            }
            for need in needs {
                let reading = self.reading(&need);
                assert!(readings.insert(need, reading).is_none(), "it was read already");
            }
        }
    }

    /// The only way, of which nothing is unseen.
    fn way(&self) -> Way {
        let Followed { mut ways, gaps, .. } = self.followed(Tunnels::Followed);
        assert!(gaps.is_empty() && ways.len() == 1, "{gaps:?}");
        ways.remove(0)
    }
}

fn device(index: u32, name: &str, kind: &str) -> FateInterface {
    FateInterface {
        index,
        name: name.to_owned(),
        kind: kind.to_owned(),
        master_index: None,
        port: None,
        vlan: None,
        peer: None,
    }
}

/// Nodes, and whether it is the tunnel's packet that is there.
fn legs(way: &Way) -> Vec<(&str, bool)> {
    way.legs.iter().map(|leg| (leg.place.node.as_str(), leg.carrier.is_some())).collect()
}

#[test]
fn the_outer_packet_goes_from_node_to_node_and_what_is_inside_goes_on() {
    let way = healthy().way();
    assert_eq!(legs(&way), [("n1", false), ("n1", true), ("n2", true), ("n2", false)]);
    assert_eq!(way.end, WayEnd::Stopped);
    let [inside, sent, received, behind] = &way.legs[..] else { panic!("{way:?}") };
    let transport = FateTransport::Udp { source_port: None, destination_port: Some(8_472) };
    assert_eq!((sent.request.transport, received.request.transport), (transport, transport));
    assert_eq!((sent.request.source, sent.request.destination), (Some(address(N1)), address(N2)));
    assert_eq!(received.request.origin, FateOrigin::Received(FateInterfaceKey::Index(ETH0)));
    let by_kernel: Vec<bool> = way.legs.iter().map(|leg| leg.request.by_kernel).collect();
    assert_eq!(by_kernel, [false, true, true, false]);
    let lengths = [sent, received].map(|leg| leg.fate.packet.length);
    assert_eq!(lengths, [inside.fate.packet.length + 50; 2]);
    assert_eq!(behind.request.origin, FateOrigin::Received(FateInterfaceKey::Index(OVERLAY)));
    assert_eq!((behind.request.destination, behind.request.transport), (address(POD), inside.request.transport));
}

#[test]
fn a_rule_of_the_receiver_that_drops_the_port_stops_the_way_there() {
    let way = blocked().way();
    assert_eq!(legs(&way), [("n1", false), ("n1", true), ("n2", true)]);
    assert!(way.end == WayEnd::Stopped && way.is_stopped(), "{:?}", way.end);
}

#[test]
fn a_missing_entry_ends_the_way_before_the_tunnel() {
    let way = World { entries: Vec::new(), ..healthy() }.way();
    assert_eq!(legs(&way), [("n1", false)]);
    let WayEnd::TunnelDrops { why } = &way.end else { panic!("{:?}", way.end) };
    assert!(why.contains("flannel.1 has no entry for 02:0e:00:00:00:02") && way.is_stopped(), "{why}");
}

#[test]
fn another_number_ends_the_way_where_the_outer_packet_is_delivered() {
    let way = World { vni: 2, ..healthy() }.way();
    assert_eq!(legs(&way), [("n1", false), ("n1", true), ("n2", true)]);
    let WayEnd::TunnelDrops { why } = &way.end else { panic!("{:?}", way.end) };
    assert!(why.contains("(flannel.1 has VNI 2)") && way.is_stopped(), "{why}");
}

#[test]
fn a_receiver_without_an_agent_is_a_gap() {
    let way = World { has_agent: false, ..healthy() }.way();
    assert_eq!(legs(&way), [("n1", false), ("n1", true)]);
    let WayEnd::Unseen { gap } = &way.end else { panic!("{:?}", way.end) };
    assert!(gap.reason == GapReason::NoAgent && !way.is_stopped(), "{gap:?}");
}

#[test]
fn an_entry_that_leads_to_no_node_is_a_gap() {
    let mut world = healthy();
    world.entries[0].destination = Some(address("172.30.0.99"));
    let way = world.way();
    let WayEnd::Unseen { gap } = &way.end else { panic!("{:?}", way.end) };
    assert!(gap.why.contains("172.30.0.99, which is no address of a node"), "{gap:?}");
}

#[test]
fn a_tunnel_may_end_at_an_address_of_the_node_that_the_api_does_not_tell() {
    let way = World { told: "192.0.2.12", ..healthy() }.way();
    assert_eq!(legs(&way), [("n1", false), ("n1", true), ("n2", true), ("n2", false)]);
}

#[test]
fn what_a_tunnel_does_that_is_not_told_is_a_gap_and_the_way_goes_on() {
    let followed = World { kind: "wireguard", ..healthy() }.followed(Tunnels::Followed);
    assert_eq!(legs(&followed.ways[0]), [("n1", false), ("n2", false)]);
    let [gap] = &followed.gaps[..] else { panic!("{:?}", followed.gaps) };
    assert!(gap.why.contains("devices of type wireguard") && !gap.remedy.is_empty(), "{gap:?}");
}

#[test]
fn what_a_router_between_the_nodes_does_is_a_gap() {
    let followed = World { router: Some(address("172.30.0.1")), ..healthy() }.followed(Tunnels::Followed);
    assert_eq!(legs(&followed.ways[0]), [("n1", false), ("n1", true), ("n2", true), ("n2", false)]);
    let [gap] = &followed.gaps[..] else { panic!("{:?}", followed.gaps) };
    assert!(gap.why.contains("by 172.30.0.1, which is no node"), "{gap:?}");
}

#[test]
fn ipip_that_a_rule_stops_may_be_known_there_already() {
    let way = World { kind: "ipip", ..healthy() }.way();
    assert_eq!(legs(&way), [("n1", false), ("n1", true), ("n2", true), ("n2", false)]);
    assert_eq!(way.legs[1].request.transport, FateTransport::Ipip);
    let way = World { kind: "ipip", ..blocked() }.way();
    let WayEnd::Unseen { gap } = &way.end else { panic!("{:?}", way.end) };
    assert!(gap.why.starts_with("inet site in rule 2 stops the outer packet of flannel.1 (IPIP)"), "{gap:?}");
    // Rules before connection tracking do not ask what it knows.
    let way = World { kind: "ipip", decisions: Vec::new(), ..blocked() }.way();
    assert_eq!(way.end, WayEnd::Stopped);
}

#[test]
fn a_tunnel_that_is_trusted_is_not_looked_into() {
    let followed = World { entries: Vec::new(), ..blocked() }.followed(Tunnels::Trusted);
    assert_eq!(legs(&followed.ways[0]), [("n1", false), ("n2", false)]);
    assert!(followed.gaps.is_empty(), "{:?}", followed.gaps);
}
