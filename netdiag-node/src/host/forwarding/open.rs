//! For tests of what reads packet filters: a host that forwards everything out of one interface.

use std::sync::Arc;

use netdiag_common::forwarding::conntrack::TrackingSettings;
use netdiag_common::forwarding::packet::Protocol;
use netdiag_common::forwarding::routing::{
    HostSettings, Ipv4Settings, NextHop, RouteTable, RoutedInterface, RoutingRule, TableRoute,
};
use netdiag_common::forwarding::state::Interface;
use netdiag_common::forwarding::{Fact, Key, RuleState};

/// Answers what is not about the packet filter itself, and gives back what is.
pub(crate) fn answer(state: &mut RuleState, key: Key) -> Option<Key> {
    match key {
        Key::RouteRules(protocol) => {
            let rule = RoutingRule { priority: 32_766, action: 1, table: 254, ..RoutingRule::default() };
            state.routing.rules.0.insert(protocol, vec![rule]);
        }
        Key::RouteTable(key) => {
            let routes = vec![everything(key.protocol)];
            state.routing.tables.0.insert(key, RouteTable::Whole(routes));
        }
        Key::RoutedInterface { index } => {
            let mut interface = RoutedInterface { up: true, ..RoutedInterface::default() };
            interface.settings.ipv4 = Ipv4Settings { forwarding: true, accept_local: true, ..Ipv4Settings::default() };
            state.routing.interfaces.0.insert(index, Some(interface));
        }
        Key::HostSettings => state.routing.host = Some(HostSettings::default()),
        Key::Interface { index } => {
            let name = Arc::from("eth0");
            let interface = Interface { index, name, kind: None, hardware: 1, group: 0, addresses: Vec::new() };
            state.interfaces.0.insert(index, Some(interface));
        }
        Key::Tracking(protocol) => {
            state.tracking.0.insert(protocol, true);
        }
        Key::TrackingSettings => {
            let settings = TrackingSettings { tcp_loose: Some(true), tcp_be_liberal: Some(false) };
            state.tracking_settings = Some(settings);
        }
        // Unicast.
        Key::AddressType(query) => {
            state.address_types.0.insert(query, 1);
        }
        Key::Fib(query) => {
            state.fib.0.insert(query, None);
        }
        Key::Sockets(query) => {
            state.sockets.0.insert(query, Fact::Known(Vec::new()));
        }
        Key::Recent { list } => {
            state.recent.0.insert(list, Fact::Known(Vec::new()));
        }
        Key::Queues => state.queues = Some(Vec::new()),
        Key::Flowtables => state.flowtables = Some(Vec::new()),
        Key::Addresses => state.addresses = Some(Vec::new()),
        key => return Some(key),
    }
    None
}

/// A route for all destinations.
fn everything(protocol: Protocol) -> TableRoute {
    let hop = NextHop { interface: Some(2), gateway: None, weight: 1, dead: false, no_carrier: false };
    let destination = if protocol == Protocol::Ipv4 { "0.0.0.0/0" } else { "::/0" };
    TableRoute {
        destination: destination.parse().expect("a network"),
        source: None,
        kind: 1,
        scope: 253,
        service: 0,
        metric: 0,
        protocol: 3,
        preference: 0,
        own: None,
        object: None,
        encapsulation: None,
        mtu: None,
        mtu_locked: false,
        hops: vec![hop],
    }
}
