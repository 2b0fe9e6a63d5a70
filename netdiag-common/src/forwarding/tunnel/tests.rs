//! Which outer packets are sent, and who takes them, by devices as rtnetlink tells of them.

use super::*;

const DEVICE: u32 = 3;
const NODE: &str = "172.30.0.12";
const MAC: &str = "02:0e:00:00:00:02";
const VXLAN: Encapsulation = Encapsulation::Vxlan { vni: 1, port: 8_472 };

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(index: u32, name: &str, kind: &str, tunnel: Option<Tunnel>) -> Link {
    Link {
        index,
        name: name.to_owned(),
        kind: kind.to_owned(),
        mtu: 1450,
        up: true,
        carrier: true,
        mac: Some(MAC.to_owned()),
        tunnel,
        ..Link::default()
    }
}

fn vxlan(vni: u32) -> Link {
    let tunnel = Tunnel { id: Some(vni), local: Some(address(NODE)), port: Some(8_472), ..Tunnel::default() };
    link(DEVICE, "flannel.1", "vxlan", Some(tunnel))
}

fn entry(mac: &str, destination: Option<&str>) -> FdbEntry {
    FdbEntry {
        link_index: DEVICE,
        mac: mac.to_owned(),
        destination: destination.map(address),
        next_hop_id: destination.is_none().then_some(7),
        is_static: true,
        ..FdbEntry::default()
    }
}

fn sends(link: &Link, forwarding: Vec<FdbEntry>, mac: Option<&str>) -> Packed {
    let network = Network { forwarding, ..Network::default() };
    packed(&network, link, Hop { gateway: Some(address("10.244.2.0")), destination: address("10.244.2.3"), mac })
}

fn why(packed: Packed) -> String {
    match packed {
        Packed::Dropped { why } => format!("dropped: {why}"),
        Packed::Unknown(Untold { why, .. }) => format!("unknown: {why}"),
        Packed::Sent(outer) => panic!("{outer:?}"),
    }
}

#[test]
fn the_forwarding_database_says_where_vxlan_sends_to() {
    let to = |forwarding: Vec<FdbEntry>| match sends(&vxlan(1), forwarding, Some(MAC)) {
        Packed::Sent(outer) => (outer.destination.to_string(), outer.encapsulation),
        other => panic!("{other:?}"),
    };
    let others = || entry(ALL_OTHERS, Some("172.30.0.99"));
    assert_eq!(to(vec![others(), entry(MAC, Some(NODE))]), (NODE.to_owned(), VXLAN));
    assert_eq!(to(vec![others()]), ("172.30.0.99".to_owned(), VXLAN));
    let own = FdbEntry { id: Some(5), port: Some(4_789), ..entry(MAC, Some(NODE)) };
    assert_eq!(to(vec![own]), (NODE.to_owned(), Encapsulation::Vxlan { vni: 5, port: 4_789 }));
}

#[test]
fn without_an_entry_vxlan_drops() {
    let of_bridge = FdbEntry { master_index: Some(9), ..entry(MAC, Some(NODE)) };
    let elsewhere = FdbEntry { link_index: 8, ..entry(MAC, Some(NODE)) };
    for forwarding in [Vec::new(), vec![of_bridge, elsewhere]] {
        let why = why(sends(&vxlan(1), forwarding, Some(MAC)));
        assert!(why.starts_with("dropped: the forwarding database of flannel.1 has no entry for 02:0e:"), "{why}");
    }
}

#[test]
fn what_is_not_known_is_not_dropped() {
    let unknown = |link: &Link, forwarding: Vec<FdbEntry>, mac: Option<&str>, wanted: &str| {
        let why = why(sends(link, forwarding, mac));
        assert!(why.starts_with("unknown: ") && why.contains(wanted), "{wanted:?} is not in {why:?}");
    };
    let node = || entry(MAC, Some(NODE));
    unknown(&vxlan(1), vec![node()], None, "no Ethernet address for 10.244.2.0 on flannel.1");
    unknown(&vxlan(1), vec![entry(MAC, None)], Some(MAC), "by next hops of their own");
    unknown(&vxlan(1), vec![entry(MAC, Some("239.1.1.1"))], Some(MAC), "to a group");
    unknown(&vxlan(1), vec![node(), entry(MAC, Some("172.30.0.13"))], Some(MAC), "to 2 ends");
    let external = Tunnel { external: true, port: Some(8_472), ..Tunnel::default() };
    let external = link(DEVICE, "cilium_vxlan", "vxlan", Some(external));
    unknown(&external, vec![node()], Some(MAC), "a program says");
    unknown(&link(DEVICE, "wg0", "wireguard", None), Vec::new(), None, "devices of type wireguard");
    let cut = Network { left_out: vec!["9 of 10 entries of forwarding databases".to_owned()], ..Network::default() };
    let hop = Hop { gateway: None, destination: address("10.244.2.3"), mac: Some(MAC) };
    assert!(matches!(packed(&cut, &vxlan(1), hop), Packed::Unknown(_)));
}

#[test]
fn ipip_without_another_end_sends_to_the_next_hop() {
    let to = |remote: Option<&str>| {
        let tunnel = Tunnel { remote: remote.map(address), ..Tunnel::default() };
        match sends(&link(DEVICE, "tunl0", "ipip", Some(tunnel)), Vec::new(), None) {
            Packed::Sent(outer) => outer.destination.to_string(),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!((to(None), to(Some(NODE))), ("10.244.2.0".to_owned(), NODE.to_owned()));
}

#[test]
fn ipip_in_udp_and_by_a_mark_is_not_known_for_ipip() {
    let unknown = |tunnel: Tunnel, wanted: &str| {
        let why = why(sends(&link(DEVICE, "tun-a", "ipip", Some(tunnel)), Vec::new(), None));
        assert!(why.starts_with("unknown: ") && why.contains(wanted), "{wanted:?} is not in {why:?}");
    };
    let to_node = Tunnel { remote: Some(address(NODE)), ..Tunnel::default() };
    unknown(Tunnel { encapsulated: true, ..to_node.clone() }, "what tun-a packs is packed once more (FOU");
    unknown(Tunnel { mark: Some(7), ..to_node }, "by a mark of its own, 0x7");
}

fn takes(links: Vec<Link>, encapsulation: Encapsulation, has_socket: bool) -> String {
    let (source, destination) = (address("172.30.0.11"), address(NODE));
    let mac = (encapsulation != Encapsulation::Ipip).then(|| MAC.to_owned());
    let outer = Outer { encapsulation, source: None, destination, lower_index: None, mac };
    let network = Network { links, ..Network::default() };
    match unpacked(&network, &outer, Arrived { source, destination, has_socket }) {
        Unpacked::By(link) => link.name.clone(),
        Unpacked::Dropped { why } => format!("dropped: {why}"),
        Unpacked::Unknown(Untold { why, .. }) => format!("unknown: {why}"),
    }
}

#[test]
fn vxlan_is_taken_by_port_and_number() {
    assert_eq!(takes(vec![vxlan(2), vxlan(1)], VXLAN, true), "flannel.1");
    let other = takes(vec![vxlan(2)], VXLAN, true);
    assert!(other.starts_with("dropped: ") && other.contains("(flannel.1 has VNI 2)"), "{other}");
    let no_socket = takes(vec![Link { up: false, ..vxlan(1) }], VXLAN, false);
    assert!(no_socket.starts_with("dropped: no device of type vxlan that is up listens"), "{no_socket}");
    let of_program = takes(Vec::new(), VXLAN, true);
    assert!(of_program.starts_with("unknown: ") && of_program.contains("a socket does"), "{of_program}");
    let of_before = takes(vec![Link { tunnel: None, ..vxlan(1) }], VXLAN, true);
    assert!(of_before.starts_with("unknown: not all parameters"), "{of_before}");
    let port = takes(vec![Link { master_index: Some(9), ..vxlan(1) }], VXLAN, true);
    assert!(port.starts_with("unknown: flannel.1 is a port"), "{port}");
}

#[test]
fn a_frame_for_another_address_is_dropped() {
    let other = Link { mac: Some("02:0e:00:00:00:77".to_owned()), ..vxlan(1) };
    let dropped = takes(vec![other], VXLAN, true);
    assert!(dropped.starts_with("dropped: the frame inside is for 02:0e:00:00:00:02"), "{dropped}");
    assert_eq!(takes(vec![Link { mac: None, ..vxlan(1) }], VXLAN, true), "flannel.1");
}

#[test]
fn geneve_is_taken_from_its_other_end_alone() {
    let geneve = |remote: &str| {
        let tunnel = Tunnel { id: Some(4), remote: Some(address(remote)), port: Some(6_081), ..Tunnel::default() };
        link(DEVICE, "gnv0", "geneve", Some(tunnel))
    };
    let encapsulation = Encapsulation::Geneve { vni: 4, port: 6_081 };
    assert_eq!(takes(vec![geneve("172.30.0.11")], encapsulation, true), "gnv0");
    let dropped = takes(vec![geneve("172.30.0.13")], encapsulation, true);
    assert!(dropped.contains("(gnv0 has VNI 4 and 172.30.0.13)"), "{dropped}");
}

#[test]
fn ipip_is_taken_by_the_device_that_says_most() {
    let ipip = |name: &str, local: Option<&str>, remote: Option<&str>| {
        let tunnel = Tunnel { local: local.map(address), remote: remote.map(address), ..Tunnel::default() };
        link(DEVICE, name, "ipip", Some(tunnel))
    };
    let all = vec![
        ipip("tunl0", None, None),
        ipip("own", Some(NODE), None),
        ipip("pair", Some(NODE), Some("172.30.0.11")),
        ipip("other", Some(NODE), Some("172.30.0.13")),
    ];
    assert_eq!(takes(all, Encapsulation::Ipip, false), "pair");
    assert_eq!(takes(vec![ipip("tunl0", None, None)], Encapsulation::Ipip, false), "tunl0");
    let in_udp = Tunnel { remote: Some(address("172.30.0.11")), encapsulated: true, ..Tunnel::default() };
    let in_udp = link(DEVICE, "tun-a", "ipip", Some(in_udp));
    assert_eq!(takes(vec![ipip("tunl0", None, None), in_udp], Encapsulation::Ipip, false), "tun-a");
    let dropped = takes(vec![ipip("other", None, Some("172.30.0.13"))], Encapsulation::Ipip, false);
    assert!(dropped.starts_with("dropped: no device of type ipip"), "{dropped}");
}
