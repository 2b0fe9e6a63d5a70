//! Filters of bridges, and ports that reach each other or do not.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use netdiag_common::forwarding::path::End;
use netdiag_common::observation::fate::{Fate, FateInterface, FateInterfaceKey, FateOrigin, FateRequest};
use netdiag_common::observation::network::PortState;

use crate::lab::{Namespace, fate, ip};
use crate::way::{BACKEND, NODE, Way, request, unseen};

#[test]
fn filters_of_a_bridge_are_named_where_its_port_is_on_the_way() {
    let Some(way) = Way::start("ebtables") else { return };
    way.node.sh("nft 'table bridge guard { chain pass { type filter hook forward priority 0; drop; }; }'
         ip link add br0 type bridge; ip link set br0 up; ip addr flush dev r0; ip link set r0 master br0
         ip addr add 10.1.0.1/24 dev br0");
    let received = |device: &str| {
        let request = request(FateOrigin::Received(FateInterfaceKey::Name(device.into())), BACKEND, 80);
        way.node.run(|| fate(&request).unwrap())
    };
    for device in ["r0", "br0"] {
        let found = received(device);
        assert!(unseen(&found).contains(&"chain bridge guard pass at forward".to_owned()), "{device}: {found:?}");
        let gaps = &found.outcome.paths[0].gaps;
        let named = gaps.iter().filter(|gap| *gap == "chain bridge guard pass at forward is not evaluated");
        assert_eq!(named.count(), 1, "{gaps:?}");
    }
    assert_eq!(unseen(&received("r1")), [""; 0]);
}

/// The backend's address on the client's link.
const BESIDE: &str = "10.1.0.3";

/// Both on one bridge of the node, which has the node's address on it.
fn bridged(role: &str) -> Option<Way> {
    let way = Way::start(role)?;
    way.node.sh("for all in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $all; done
         ip link add br0 type bridge; echo 0 > /proc/sys/net/ipv4/conf/br0/rp_filter; ip link set br0 up
         for port in r0 r1; do ip addr flush dev $port; ip link set $port master br0; done
         ip addr add 10.1.0.1/24 dev br0");
    ip(&format!("-n {} addr add {BESIDE}/24 dev eth0", way.backend.name));
    Some(way)
}

/// Nobody listens: a reset is as good as an answer.
fn connects(from: &Namespace, to: &str) -> bool {
    let address: SocketAddr = format!("{to}:80").parse().unwrap();
    let refused = from.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(2))).unwrap_err();
    refused.kind() == ErrorKind::ConnectionRefused
}

fn interface<'f>(fate: &'f Fate, name: &str) -> &'f FateInterface {
    fate.interfaces.iter().find(|own| own.name == name).unwrap()
}

#[test]
fn isolated_ports_do_not_reach_each_other() {
    let Some(way) = bridged("isolated") else { return };
    let isolate = |port: &str| ip(&format!("-n {} link set {port} type bridge_slave isolated on", way.node.name));
    isolate("r0");
    assert!(connects(&way.client, BESIDE), "an isolated port reaches others");
    assert!(matches!(way.received(BESIDE, 80).outcome.paths[0].end, End::Sent { .. }));
    isolate("r1");
    ip(&format!("-n {} neigh flush dev eth0", way.client.name));
    assert!(!connects(&way.client, BESIDE), "the kernel's own word");
    let told = || {
        let fate = way.received(BESIDE, 80);
        let End::Unknown { because, .. } = &fate.outcome.paths[0].end else { panic!("{fate:?}") };
        assert!(because.contains("isolated port r0 of bridge br0 reaches no other isolated port (r1)"), "{because}");
        fate
    };
    let port = interface(&told(), "r0").port.unwrap();
    assert_eq!((port.isolated, port.state), (Some(true), Some(PortState::Forwarding)));
    // Now by the port that the neighbour is known to be behind.
    assert!(connects(&way.backend, NODE));
    assert!(told().interfaces.iter().any(|own| own.name == "r1"));
}

#[test]
fn the_port_that_a_neighbour_is_behind_is_named() {
    let Some(way) = bridged("behind") else { return };
    // The node learns whose address that is, and where it came from.
    assert!(connects(&way.backend, NODE));
    let told = way.received(BESIDE, 80);
    // Handed on by the bridge, or routed: the request does not say to whom its sender gave it.
    assert_eq!((told.outcome.paths.len(), told.neighbours.len()), (2, 2), "{told:?}");
    for neighbour in &told.neighbours {
        assert!(neighbour.mac.is_some(), "{neighbour:?}");
        assert_eq!(neighbour.interface, interface(&told, "br0").index);
        assert_eq!(neighbour.port, Some(interface(&told, "r1").index));
    }
    let given_to = |next_hop: &str| {
        let origin = FateOrigin::Received(FateInterfaceKey::Name("r0".into()));
        let next_hop = Some(next_hop.parse().unwrap());
        let request = FateRequest { next_hop, ..request(origin, BESIDE, 80) };
        let mut fate = way.node.run(|| fate(&request).unwrap());
        assert_eq!(fate.outcome.paths.len(), 1, "{fate:?}");
        fate.outcome.paths.remove(0).packet.hops_left()
    };
    // What is handed on spends no hop.
    assert_eq!((given_to(BESIDE), given_to(NODE)), (64, 63));
}

#[test]
fn what_is_at_a_bridge_itself_is_named_where_the_packet_passes_it() {
    let Some(way) = bridged("devices") else { return };
    assert!(connects(&way.backend, NODE));
    way.node.sh("for device in br0 r1; do tc qdisc add dev $device clsact; done
         for place in 'br0 ingress' 'br0 egress' 'r1 egress'; do
             tc filter add dev $place protocol ip prio 7 u32 match ip dst 10.2.0.9/32 action mirred egress mirror dev lo
         done");
    let filters = |next_hop: &str| -> Vec<String> {
        let origin = FateOrigin::Received(FateInterfaceKey::Name("r0".into()));
        let request = FateRequest { next_hop: Some(next_hop.parse().unwrap()), ..request(origin, BESIDE, 80) };
        let told = unseen(&way.node.run(|| fate(&request).unwrap()));
        told.iter().filter_map(|what| Some(what.rsplit_once(" at tc ")?.1.to_owned())).collect()
    };
    assert_eq!(filters(BESIDE), ["egress of r1"]);
    assert_eq!(filters(NODE), ["ingress of br0", "egress of br0"]);
}
