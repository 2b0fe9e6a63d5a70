//! Parsers on bytes as the kernel writes them, and on any others.

use netdiag_common::forwarding::packet::Protocol;
use netdiag_common::forwarding::routing::TableKey;
use proptest::prelude::*;

use super::*;
use crate::host::netlink::attribute;

fn attribute_bytes(list: &[(u16, &[u8])]) -> Vec<u8> {
    list.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect()
}

#[test]
fn next_hops_have_weights_and_states() {
    let mut hops = Vec::new();
    for (flags, weight, link, gateway) in [(0_u8, 2_u8, 2_u32, [10_u8, 0, 0, 1]), (17, 0, 3, [10, 0, 0, 2])] {
        let nested = attribute(libc::RTA_GATEWAY, &gateway);
        hops.extend(u16::try_from(8 + nested.len()).unwrap().to_ne_bytes());
        hops.extend([flags, weight]);
        hops.extend(link.to_ne_bytes());
        hops.extend(nested);
    }
    let mut message = vec![2, 24, 0, 8, 254, 3, 0, 1, 0, 0, 0, 0];
    message.extend(attribute_bytes(&[
        (libc::RTA_TABLE, &1000_u32.to_ne_bytes()),
        (libc::RTA_DST, &[10, 244, 2, 0]),
        (libc::RTA_MULTIPATH, &hops),
    ]));
    let (key, route) = route::parse(&message).unwrap();
    assert_eq!(key, TableKey { protocol: Protocol::Ipv4, table: 1000 });
    assert_eq!((route.destination.to_string().as_str(), route.service), ("10.244.2.0/24", 8));
    let hops: Vec<_> = route.hops.iter().map(|hop| (hop.weight, hop.dead, hop.no_carrier)).collect();
    assert_eq!(hops, [(3, false, false), (1, true, true)]);
}

#[test]
fn rule_reads_as_ip_rule_writes_it() {
    let mut message = vec![2, 0, 8, 0, 0, 0, 0, 1, 2, 0, 0, 0];
    message.extend(attribute_bytes(&[
        (6, &100_u32.to_ne_bytes()),
        (15, &1000_u32.to_ne_bytes()),
        (2, &[10, 0, 0, 0]),
        (10, &1_u32.to_ne_bytes()),
        (16, &0xff_u32.to_ne_bytes()),
        (14, &0_u32.to_ne_bytes()),
        (13, &u32::MAX.to_ne_bytes()),
        (24, &[80_u16.to_ne_bytes(), 90_u16.to_ne_bytes()].concat()),
        (99, &[1]),
    ]));
    let (_, rule) = rule::parse(&message).unwrap();
    let words = "not from 10.0.0.0/8 fwmark 0x1/0xff dport 80-90 attribute 99 lookup 1000 suppress_prefixlength 0";
    assert_eq!((rule.priority, rule.to_string().as_str()), (100, words));
}

#[test]
fn members_of_a_group_have_weights() {
    let mut message = vec![0; 8];
    message.extend(attribute(2, &[7, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 0, 1, 0, 0]));
    assert_eq!(hop::parse(&message).unwrap().members, [(7, 2), (8, 257)]);
}

#[test]
fn this_namespace_has_the_rules_and_tables_it_began_with() {
    let mut routing = Routing::open().unwrap();
    let rules = routing.rules(Protocol::Ipv4).unwrap();
    assert!(rules.iter().any(|rule| rule.to_string() == "from all lookup main"), "{rules:?}");
    let local = TableKey { protocol: Protocol::Ipv4, table: 255 };
    let routes = routing.routes_to(local, "127.0.0.1".parse().unwrap()).unwrap();
    assert!(routes.iter().all(|route| route.kind == 2) && !routes.is_empty(), "{routes:?}");
    let nowhere = TableKey { protocol: Protocol::Ipv4, table: 4_000_000 };
    assert_eq!(routing.table(nowhere).unwrap(), RouteTable::Whole(Vec::new()));
    assert!(settings::interface(&mut routing.netlink, 1).unwrap().is_some_and(|lo| lo.up && lo.vrf.is_none()));
}

/// A message of a family that is known, so that its attributes are looked at.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let list = proptest::collection::vec((0_u16..32, proptest::collection::vec(any::<u8>(), 0..40)), 0..12);
    (any::<[u8; 12]>(), any::<bool>(), list, 0_usize..8).prop_map(|(mut header, ipv4, list, cut)| {
        header[0] = if ipv4 { 2 } else { 10 };
        let mut bytes = header.to_vec();
        bytes.extend(list.iter().flat_map(|(kind, value)| attribute(*kind, value)));
        bytes.truncate(bytes.len().saturating_sub(cut));
        bytes
    })
}

proptest! {
    #[test]
    fn any_message_is_a_route_a_rule_an_object_or_none(bytes in message()) {
        let _ = (route::parse(&bytes), rule::parse(&bytes).map(|(_, rule)| rule.to_string()), hop::parse(&bytes));
    }

    #[test]
    fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = (route::parse(&bytes), rule::parse(&bytes), hop::parse(&bytes));
    }
}
