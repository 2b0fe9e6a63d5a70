//! Parsers on bytes the kernel wrote, and one reading of this machine's loopback.

use netdiag_common::observation::network::{PortState, RouteKind, Vlan};
use proptest::prelude::*;

use super::*;

fn attribute_bytes(list: &[(u16, &[u8])]) -> Vec<u8> {
    list.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect()
}

/// `struct rtmsg`: family, prefix length, source length, tos, table, protocol, scope, type, flags.
fn route_message(prefix_length: u8, kind: u8, flags: u32, list: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![2, prefix_length, 0, 0, 254, 3, 0, kind];
    bytes.extend(flags.to_ne_bytes());
    bytes.extend(attribute_bytes(list));
    bytes
}

#[test]
fn route_with_gateway() {
    let message = route_message(
        24,
        libc::RTN_UNICAST,
        0,
        &[
            (libc::RTA_DST, &[10, 244, 2, 0]),
            (libc::RTA_GATEWAY, &[172, 30, 0, 12]),
            (libc::RTA_OIF, &2u32.to_ne_bytes()),
        ],
    );
    let routes = route::parse(&message);
    assert_eq!(routes.len(), 1);
    assert_eq!(routes[0].destination.to_string(), "10.244.2.0/24");
    assert_eq!(routes[0].gateway, Some("172.30.0.12".parse().unwrap()));
    assert_eq!((routes[0].link_index, routes[0].protocol.as_str()), (Some(2), "boot"));
}

#[test]
fn route_with_two_hops_is_given_twice() {
    let mut hops = Vec::new();
    for (link, gateway) in [(2u32, [10u8, 0, 0, 1]), (3, [10, 0, 0, 2])] {
        let nested = attribute(libc::RTA_GATEWAY, &gateway);
        hops.extend(u16::try_from(8 + nested.len()).unwrap().to_ne_bytes());
        hops.extend([0, 0]);
        hops.extend(link.to_ne_bytes());
        hops.extend(nested);
    }
    let routes = route::parse(&route_message(0, libc::RTN_UNICAST, 0, &[(libc::RTA_MULTIPATH, &hops)]));
    let found: Vec<_> = routes.iter().map(|r| (r.link_index, r.gateway.map(|g| g.to_string()))).collect();
    assert_eq!(found, [(Some(2), Some("10.0.0.1".to_owned())), (Some(3), Some("10.0.0.2".to_owned()))]);
    assert_eq!(routes[0].destination.to_string(), "0.0.0.0/0");
}

#[test]
fn learned_exception_is_not_a_route() {
    assert!(route::parse(&route_message(32, libc::RTN_UNICAST, 0x200, &[(libc::RTA_DST, &[10, 0, 0, 1])])).is_empty());
}

#[test]
fn blackhole_has_no_link() {
    let routes = route::parse(&route_message(32, libc::RTN_BLACKHOLE, 0, &[(libc::RTA_DST, &[10, 0, 0, 1])]));
    assert_eq!((routes[0].kind, routes[0].link_index), (RouteKind::Blackhole, None));
}

#[test]
fn rule_is_told_in_the_words_of_iproute2() {
    let mut bytes = vec![2, 0, 8, 0, 0, 0, 0, 1];
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend(attribute_bytes(&[
        (6, &100u32.to_ne_bytes()),
        (15, &1000u32.to_ne_bytes()),
        (2, &[10, 0, 0, 0]),
        (10, &1u32.to_ne_bytes()),
        (16, &0xffu32.to_ne_bytes()),
        (14, &u32::MAX.to_ne_bytes()),
    ]));
    let found = rule::parse(&bytes).unwrap();
    assert_eq!((found.priority, found.table, found.family.as_str()), (100, 1000, "ip"));
    assert_eq!(found.selector, "from 10.0.0.0/8 fwmark 0x1/0xff");
}

#[test]
fn neighbour_without_address_resolution_is_left_out() {
    let message = |state: u16| {
        let mut bytes = vec![2, 0, 0, 0];
        bytes.extend(2u32.to_ne_bytes());
        bytes.extend(state.to_ne_bytes());
        bytes.extend([0, 1]);
        bytes.extend(attribute_bytes(&[(libc::NDA_DST, &[10, 0, 0, 1]), (libc::NDA_LLADDR, &[2, 0, 0, 0, 0, 0xa])]));
        bytes
    };
    assert!(neighbour::parse(&message(0x40)).is_none());
    let failed = neighbour::parse(&message(0x20)).unwrap();
    assert_eq!((failed.state.as_str(), failed.mac.as_deref()), ("failed", Some("02:00:00:00:00:0a")));
}

#[test]
fn tunnels_tell_what_both_ends_agree_on() {
    let link = |kind: &str, settings: &[(u16, &[u8])]| {
        let data = attribute_bytes(settings);
        let info = attribute_bytes(&[(libc::IFLA_INFO_KIND, kind.as_bytes()), (libc::IFLA_INFO_DATA, &data)]);
        tunnel::tunnel(kind, &info)
    };
    // As the kernel lists `ip link add flannel.1 type vxlan id 1 local 10.99.0.11 dev eth0 dstport 8472 nolearning`.
    let vxlan = link(
        "vxlan",
        &[
            (1, &1u32.to_ne_bytes()),
            (3, &2u32.to_ne_bytes()),
            (4, &[10, 99, 0, 11]),
            (7, &[0]),
            (15, &8_472u16.to_be_bytes()),
            (25, &[0]),
        ],
    );
    let vxlan = vxlan.unwrap();
    assert_eq!((vxlan.id, vxlan.port, vxlan.learning, vxlan.external), (Some(1), Some(8_472), Some(false), false));
    assert_eq!((vxlan.local, vxlan.remote), (Some("10.99.0.11".parse().unwrap()), None));
    assert_eq!(vxlan.lower_index, Some(2));

    let ipip = link("ipip", &[(1, &0u32.to_ne_bytes()), (2, &[10, 0, 0, 1]), (3, &[0, 0, 0, 0])]).unwrap();
    assert_eq!((ipip.local, ipip.remote, ipip.lower_index), (Some("10.0.0.1".parse().unwrap()), None, None));
    assert_eq!((ipip.encapsulated, ipip.mark), (false, None));
    let gre = link("gre", &[(5, &7u32.to_be_bytes()), (7, &[10, 0, 0, 2])]).unwrap();
    assert_eq!((gre.id, gre.remote), (Some(7), Some("10.0.0.2".parse().unwrap())));
    let geneve = link("geneve", &[(1, &0u32.to_ne_bytes()), (5, &6_081u16.to_be_bytes()), (6, &[])]).unwrap();
    assert_eq!((geneve.id, geneve.port, geneve.external), (None, Some(6_081), true));
    assert_eq!(link("veth", &[]), None);
}

#[test]
fn tunnels_tell_that_they_pack_once_more_and_by_which_mark_they_route() {
    let tunnel = |kind: &str, settings: &[(u16, &[u8])]| {
        let tunnel = tunnel::tunnel(kind, &link_info(kind.as_bytes(), settings)).unwrap();
        (tunnel.encapsulated, tunnel.mark)
    };
    // As the kernel lists `ip link add tun0 type ipip … encap fou encap-dport 5556 fwmark 7`, and without them.
    assert_eq!(tunnel("ipip", &[(15, &1u16.to_ne_bytes()), (20, &7u32.to_ne_bytes())]), (true, Some(7)));
    assert_eq!(tunnel("ipip", &[(15, &0u16.to_ne_bytes()), (20, &0u32.to_ne_bytes())]), (false, None));
    assert_eq!(tunnel("gre", &[(14, &2u16.to_ne_bytes()), (20, &7u32.to_ne_bytes())]), (true, Some(7)));
    // Flags, which have the number that IPIP has for the type.
    assert_eq!(tunnel("gre", &[(14, &0u16.to_ne_bytes()), (15, &1u16.to_ne_bytes())]), (false, None));
}

#[test]
fn forwarding_entry_names_the_tunnel_end() {
    let message = |family: u8, list: &[(u16, &[u8])]| {
        let mut bytes = vec![family, 0, 0, 0];
        bytes.extend(3u32.to_ne_bytes());
        bytes.extend(0x80u16.to_ne_bytes());
        bytes.extend([2, 0]);
        bytes.extend(attribute_bytes(list));
        bytes
    };
    let mac: &[u8] = &[2, 0, 0, 0, 0, 0xb];
    let to_node = fdb::parse(&message(7, &[(libc::NDA_LLADDR, mac), (libc::NDA_DST, &[10, 99, 0, 12])])).unwrap();
    assert_eq!((to_node.mac.as_str(), to_node.is_static), ("02:00:00:00:00:0b", true));
    assert_eq!((to_node.link_index, to_node.destination), (3, Some("10.99.0.12".parse().unwrap())));
    let other_port = message(
        7,
        &[
            (libc::NDA_LLADDR, mac),
            (libc::NDA_DST, &[10, 99, 0, 12]),
            (6, &4_789u16.to_be_bytes()),
            (7, &5u32.to_ne_bytes()),
        ],
    );
    let other_port = fdb::parse(&other_port).unwrap();
    assert_eq!((other_port.port, other_port.id), (Some(4_789), Some(5)));
    let of_bridge = fdb::parse(&message(7, &[(libc::NDA_LLADDR, mac), (9, &2u32.to_ne_bytes())])).unwrap();
    assert_eq!(of_bridge.master_index, Some(2));
    // `ip nexthop add id 7 group 1/2 fdb; bridge fdb add … dev vxlan0 nhid 7`
    let shared = fdb::parse(&message(7, &[(libc::NDA_LLADDR, mac), (13, &7u32.to_ne_bytes())])).unwrap();
    assert_eq!((shared.next_hop_id, shared.destination), (Some(7), None));
    assert_eq!(fdb::parse(&message(7, &[(libc::NDA_LLADDR, mac)])), None, "what a device receives for itself");
    assert_eq!(fdb::parse(&message(2, &[(libc::NDA_LLADDR, mac), (libc::NDA_DST, &[10, 99, 0, 12])])), None);
}

#[test]
fn lists_over_the_limit_say_what_they_left_out() {
    let mut left_out = Vec::new();
    assert_eq!(capped(vec![1, 2, 3], 2, "routes", &mut left_out), [1, 2]);
    assert_eq!(left_out, ["1 of 3 routes"]);
}

#[test]
fn truncated_messages_are_skipped() {
    let message = route_message(24, libc::RTN_UNICAST, 0, &[(libc::RTA_DST, &[10, 244, 2, 0])]);
    for length in 0..message.len() {
        let _ = (route::parse(&message[..length]), rule::parse(&message[..length]), parse_link(&message[..length]));
        let _ = (fdb::parse(&message[..length]), tunnel::tunnel("vxlan", &message[..length]));
    }
}

#[test]
fn this_machine_has_a_loopback() {
    let network = read().unwrap();
    let loopback = network.links.iter().find(|link| link.name == "lo").unwrap();
    assert!(network.addresses.iter().any(|a| a.link_index == loopback.index && a.address.is_loopback()));
    assert!(network.policy_rules.iter().any(|rule| rule.priority == 32766 && rule.table == 254));
    assert!(network.routes.iter().any(|route| route.kind == RouteKind::Local && route.table == 255));
}

/// `struct ifinfomsg` of link 5 and its attributes.
fn link_message(list: &[(u16, &[u8])]) -> Vec<u8> {
    let mut bytes = vec![0, 0, 1, 0];
    bytes.extend(5u32.to_ne_bytes());
    bytes.extend([0; 8]);
    bytes.extend(attribute_bytes(list));
    bytes
}

/// `IFLA_LINKINFO` of a kind with these settings.
fn link_info(kind: &[u8], settings: &[(u16, &[u8])]) -> Vec<u8> {
    attribute_bytes(&[(libc::IFLA_INFO_KIND, kind), (libc::IFLA_INFO_DATA, &attribute_bytes(settings))])
}

#[test]
fn a_vlan_tells_its_tag_and_the_device_below() {
    // As the kernel lists `ip link add link eth0 name v100 type vlan id 100 protocol 802.1ad`.
    let info = link_info(b"vlan", &[(5, &0x88a8u16.to_be_bytes()), (1, &100u16.to_ne_bytes()), (2, &[1, 0, 0, 0])]);
    let lower = 2u32.to_ne_bytes();
    let vlan = |list: &[(u16, &[u8])]| parse_link(&link_message(list)).unwrap().link.vlan;
    let here = vlan(&[(libc::IFLA_LINK, &lower), (libc::IFLA_LINKINFO, &info)]);
    assert_eq!(here, Some(Vlan { id: 100, protocol: 0x88a8, lower_index: Some(2) }));
    // In another namespace its index means nothing here.
    let there = vlan(&[(libc::IFLA_LINKINFO, &info), (libc::IFLA_LINK, &lower), (IFLA_LINK_NETNSID, &[0; 4])]);
    assert_eq!(there.unwrap().lower_index, None);
    assert_eq!(vlan(&[(libc::IFLA_LINKINFO, &link_info(b"macvlan", &[(1, &4u32.to_ne_bytes())]))]), None);
}

#[test]
fn a_vrf_tells_its_table() {
    let table = |kind: &[u8]| {
        let info = link_info(kind, &[(1, &1_000u32.to_ne_bytes())]);
        parse_link(&link_message(&[(libc::IFLA_LINKINFO, &info)])).unwrap().link.vrf_table
    };
    assert_eq!((table(b"vrf\0"), table(b"vlan\0")), (Some(1_000), None));
}

/// What is read in a namespace that this script makes. None, said loudly, when this machine cannot have it.
fn read_behind(test: &str, script: &'static str) -> Option<Network> {
    // It ends with the thread.
    let read = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).map_err(|errno| errno.to_string())?;
        let output =
            std::process::Command::new("sh").args(["-ec", script]).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(read().unwrap())
    });
    read.join().unwrap().map_err(|reason| eprintln!("netdiag-skip: {test}: {reason}")).ok()
}

#[test]
fn a_bridge_and_its_ports_tell_how_they_forward() {
    let script =
        "ip link add br0 type bridge nf_call_iptables 1; ip link set br0 promisc on; ip link add one type veth peer two;
                  ip link set one master br0; ip link set two master br0; ip link set one type bridge_slave hairpin on
                  ip link set two type bridge_slave isolated on guard on learning off flood off neigh_suppress on";
    let Some(network) = read_behind("a_bridge_and_its_ports_tell_how_they_forward", script) else { return };
    let link = |name: &str| network.links.iter().find(|link| link.name == name).unwrap();
    let bridge = link("br0").bridge.unwrap();
    assert_eq!((bridge.nf_call_iptables, bridge.nf_call_ip6tables), (Some(true), Some(false)));
    assert!(bridge.promiscuous && link("br0").bridge_port.is_none());
    let hairpin = |name: &str| link(name).bridge_port.map(|port| port.hairpin);
    assert_eq!((hairpin("one"), hairpin("two"), hairpin("lo")), (Some(true), Some(false), None));
    assert_eq!((link("one").master_index, link("one").bridge), (Some(link("br0").index), None));
    assert!(link("one").mac.as_ref().is_some_and(|mac| mac.len() == "02:00:00:00:00:0b".len()), "{:?}", link("one"));
    let [a, b] = ["one", "two"].map(|name| link(name).bridge_port.unwrap());
    // Nothing is up.
    assert_eq!((a.state, b.state), (Some(PortState::Disabled), Some(PortState::Disabled)));
    assert_eq!((a.isolated, a.guard, a.neigh_suppress), (Some(false), Some(false), Some(false)));
    assert_eq!((b.isolated, b.guard, b.neigh_suppress), (Some(true), Some(true), Some(true)));
    assert_eq!((a.learning, a.unicast_flood), (Some(true), Some(true)));
    assert_eq!((b.learning, b.unicast_flood), (Some(false), Some(false)));
    assert_eq!(b.words(), "disabled, isolated, guard, learning off, flood off, neigh_suppress");
}

#[test]
fn a_vlan_device_is_read_from_the_kernel() {
    let script = "ip link add one type veth peer two; ip link add link one name one.100 type vlan id 100";
    let Some(network) = read_behind("a_vlan_device_is_read_from_the_kernel", script) else { return };
    let link = |name: &str| network.links.iter().find(|link| link.name == name).unwrap();
    assert_eq!(link("one.100").vlan, Some(Vlan { id: 100, protocol: 0x8100, lower_index: Some(link("one").index) }));
    assert_eq!(link("one").vlan, None);
}

#[test]
fn a_vrf_is_read_from_the_kernel() {
    let script =
        "ip link add blue type vrf table 1000; ip link add one type veth peer two; ip link set one master blue";
    let Some(network) = read_behind("a_vrf_is_read_from_the_kernel", script) else { return };
    let link = |name: &str| network.links.iter().find(|link| link.name == name).unwrap();
    assert_eq!((link("blue").vrf_table, link("one").vrf_table), (Some(1_000), None));
    assert_eq!(link("one").master_index, Some(link("blue").index));
}

fn any_attributes() -> impl Strategy<Value = Vec<u8>> {
    let bytes = |count: std::ops::Range<usize>| prop::collection::vec(any::<u8>(), count);
    // Numbers, addresses, and what is neither.
    let value = prop_oneof![bytes(4..5), bytes(16..17), bytes(0..40)];
    prop::collection::vec((0_u16..48, value), 0..12)
        .prop_map(|list| list.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect::<Vec<u8>>())
}

/// A header of a family that is known, so that the attributes behind it are looked at; cut off somewhere.
fn any_message() -> impl Strategy<Value = Vec<u8>> {
    // IPv4, IPv6, bridges.
    let family = prop::sample::select(vec![IPV4, IPV6, 7]);
    (family, any::<[u8; 11]>(), any_attributes(), 0_usize..8).prop_map(|(family, header, attributes, cut)| {
        let mut bytes = [vec![family], header.to_vec(), attributes].concat();
        bytes.truncate(bytes.len() - cut);
        bytes
    })
}

/// `IFLA_LINKINFO` of a kind that is known, as itself and as a port, with any settings.
fn any_link_info() -> impl Strategy<Value = Vec<u8>> {
    let kind = prop::sample::select(vec!["bridge", "vlan", "vrf", "vxlan", "geneve", "ipip", "gre", "veth"]);
    (kind, any_attributes(), any_attributes()).prop_map(|(kind, own, of_port)| {
        attribute_bytes(&[
            (libc::IFLA_INFO_KIND, kind.as_bytes()),
            (libc::IFLA_INFO_DATA, &own),
            (libc::IFLA_INFO_SLAVE_KIND, kind.as_bytes()),
            (libc::IFLA_INFO_SLAVE_DATA, &of_port),
        ])
    })
}

proptest! {
    #[test]
    fn any_message_is_read_or_none_and_stays_small(bytes in any_message()) {
        // A next hop has eight bytes at least.
        assert!(route::parse(&bytes).len() <= bytes.len() / 8 + 1);
        let selector = rule::parse(&bytes).map(|rule| rule.selector).unwrap_or_default();
        assert!(selector.len() <= 8 * bytes.len() + 64, "{selector}");
        let macs = [neighbour::parse(&bytes).and_then(|found| found.mac), fdb::parse(&bytes).map(|entry| entry.mac)];
        assert!(macs.iter().flatten().all(|mac| mac.len() <= 3 * bytes.len()), "{macs:?}");
        let _ = (parse_address(&bytes), neighbour::state(&bytes));
    }

    #[test]
    fn any_link_is_what_its_kind_says(
        name in prop::collection::vec(any::<u8>(), 0..40),
        info in any_link_info(),
        others in any_attributes(),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = link_message(&[(libc::IFLA_IFNAME, &name), (libc::IFLA_LINKINFO, &info)]);
        bytes.extend(others);
        bytes.truncate(cut.index(bytes.len()) + 1);
        if let Some(FoundLink { link, .. }) = parse_link(&bytes) {
            // A byte that is no text is shown by a character of three.
            assert!(link.name.len() + link.kind.len() <= 3 * bytes.len(), "{link:?}");
            assert!(link.bridge.is_none() || link.kind == "bridge", "{link:?}");
            assert!(link.vlan.is_none() || link.kind == "vlan", "{link:?}");
            assert!(link.vrf_table.is_none() || link.kind == "vrf", "{link:?}");
            assert!(link.tunnel.is_none() || !matches!(&*link.kind, "bridge" | "vlan" | "vrf" | "veth"), "{link:?}");
        }
    }

    #[test]
    fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = (parse_link(&bytes), parse_address(&bytes), route::parse(&bytes), rule::parse(&bytes));
        let _ = (neighbour::parse(&bytes), neighbour::state(&bytes), fdb::parse(&bytes));
        let _ = (bridge::bridge(&bytes), bridge::port(&bytes));
        let _ = (upper::vlan("vlan", &bytes), upper::vrf_table("vrf", &bytes));
        for kind in ["vxlan", "geneve", "ipip", "gre"] {
            let _ = tunnel::tunnel(kind, &bytes);
        }
    }
}
