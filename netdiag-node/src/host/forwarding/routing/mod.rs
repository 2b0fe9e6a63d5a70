//! Routing rules, tables and settings of the calling thread's network namespace, as far as an evaluation asks for them.

mod hop;
mod route;
mod rule;
mod settings;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::ops::ControlFlow;

use netdiag_common::forwarding::packet::Protocol;
use netdiag_common::forwarding::routing::{RouteTable, RoutingRule, RoutingState, TableKey, TableRoute};
use netdiag_common::forwarding::state::{Key, Table};
use nix::sys::socket::SockProtocol;

use super::super::netlink::{DUMP_TRIES, Ended, IPV4, IPV6, Netlink, attribute, short};
use super::super::{ReadError, network};

/// Routes of a table that is kept whole. A node has a few per pod and node; a router's table of all the Internet is a
/// million, of which one question needs a handful.
const MAX_WHOLE: usize = 2_048;

/// Routes that hold one address: one per prefix length, metric and type of service, of which few are used.
const MAX_COVERING: usize = 4_096;

/// Rules of one family.
const MAX_RULES: usize = 65_536;

const RTA_TABLE: u16 = 15;

pub(super) struct Routing {
    netlink: Netlink,
}

impl Routing {
    pub(super) fn open() -> Result<Self, ReadError> {
        Ok(Self { netlink: Netlink::open(SockProtocol::NetlinkRoute)? })
    }

    /// Reads what a key of routing asks for; any other key asks for nothing here.
    pub(super) fn fill(&mut self, state: &mut RoutingState, key: Key) -> Result<(), ReadError> {
        match key {
            Key::RouteRules(protocol) => {
                state.rules.0.insert(protocol, self.rules(protocol)?);
            }
            Key::RouteTable(key) => {
                state.tables.0.insert(key, self.table(key)?);
            }
            Key::RoutesTo { table, address } => {
                let routes = self.routes_to(table, address)?;
                if let Some(RouteTable::Asked(asked)) = state.tables.0.get_mut(&table) {
                    asked.0.insert(address, routes);
                }
            }
            Key::RoutedInterface { index } => {
                state.interfaces.0.insert(index, settings::interface(&mut self.netlink, index)?);
            }
            Key::HostSettings => state.host = Some(settings::host()?),
            Key::Neighbour { interface, address } => {
                state.neighbours.0.insert((interface, address), self.neighbour(interface, address)?);
            }
            _ => {}
        }
        Ok(())
    }

    /// In the order in which the kernel looks at them.
    fn rules(&mut self, protocol: Protocol) -> Result<Vec<RoutingRule>, ReadError> {
        let mut request = [0; 12];
        request[0] = family(protocol);
        let rules = self.netlink.dump(libc::RTM_GETRULE, &request, "list routing rules", |payload| {
            rule::parse(payload).filter(|(of, _)| *of == family(protocol)).map(|(_, rule)| rule)
        })?;
        if rules.len() > MAX_RULES {
            let why = format!("{} rules, more than {MAX_RULES}", rules.len());
            return Err(ReadError::Malformed { what: "the routing rules".into(), why });
        }
        Ok(rules)
    }

    fn table(&mut self, key: TableKey) -> Result<RouteTable, ReadError> {
        Ok(match self.routes(key, MAX_WHOLE, |_| true)? {
            Some(routes) => RouteTable::Whole(routes),
            None => RouteTable::Asked(Table::default()),
        })
    }

    /// The routes of a table that hold an address.
    fn routes_to(&mut self, key: TableKey, address: IpAddr) -> Result<Vec<TableRoute>, ReadError> {
        let found = self.routes(key, MAX_COVERING, |route| route.destination.contains(&address))?;
        found.ok_or_else(|| ReadError::Malformed {
            what: format!("routing table {}", key.table),
            why: format!("more than {MAX_COVERING} routes hold {address}"),
        })
    }

    /// `NUD_*`; 0 where the kernel has no entry.
    fn neighbour(&mut self, interface: u32, address: IpAddr) -> Result<u16, ReadError> {
        let state = network::neighbour(&mut self.netlink, interface, address, |payload| short(payload, 8))?;
        Ok(state.unwrap_or(0))
    }

    /// The wanted routes of a table; none when they are more than `most`.
    ///
    /// The kernel is asked for this table only, which it understands since Linux 4.20 on sockets that say so. An older one sends
    /// all tables, so that each message is looked at again here.
    fn routes(
        &mut self,
        key: TableKey,
        most: usize,
        wanted: impl Fn(&TableRoute) -> bool,
    ) -> Result<Option<Vec<TableRoute>>, ReadError> {
        let mut request = vec![0; 12];
        request[0] = family(key.protocol);
        request.extend(attribute(RTA_TABLE, &key.table.to_ne_bytes()));
        for _ in 0..DUMP_TRIES {
            // A socket whose dump was left unread is of no more use.
            let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
            netlink.check_strictly();
            let mut found = Vec::new();
            let mut each = |payload: &[u8]| {
                let route = route::parse(payload).filter(|(of, _)| *of == key).map(|(_, route)| route);
                found.extend(route.filter(|route| wanted(route)));
                if found.len() > most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            match netlink.walk(libc::RTM_GETROUTE, &request, "list a routing table", &mut each) {
                // The table does not exist.
                Err(ReadError::Call { source, .. }) if source.raw_os_error() == Some(libc::ENOENT) => {
                    return Ok(Some(Vec::new()));
                }
                Err(error) => return Err(error),
                Ok(Ended::Stopped) => return Ok(None),
                Ok(Ended::Interrupted) => {}
                Ok(Ended::Complete) => {
                    for route in &mut found {
                        hop::resolve(&mut self.netlink, route)?;
                    }
                    return Ok(Some(found));
                }
            }
        }
        let why = format!("it changed during each of {DUMP_TRIES} readings");
        Err(ReadError::Malformed { what: format!("routing table {}", key.table), why })
    }
}

fn family(protocol: Protocol) -> u8 {
    if protocol == Protocol::Ipv4 { IPV4 } else { IPV6 }
}
