//! Readings of all nodes become rows.

use std::collections::BTreeSet;

use netdiag_common::observation::{Observation, Owner};
use netdiag_common::{Gap, Need, Netns};

use super::{
    CounterRow, DeviceRow, DnsNameRow, DnsRow, DropRow, FlowRow, FlowTableRow, Loss, Names, NeighbourRow, RejectRow,
    Selection, SocketRow, Subject, TcpRow, UdpRow, counters, devices, dns, drops, flows, neighbours, rejects, sockets,
    tcp, udp,
};

/// One subject's rows over all nodes.
#[derive(Debug, Clone, PartialEq)]
pub struct Gathered<R> {
    /// Nodes that told something, by name.
    pub told_by: BTreeSet<String>,
    pub rows: Vec<R>,
}

/// All subjects' rows, and what is in none of them.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rows {
    pub drops: Gathered<DropRow>,
    pub rejects: Gathered<RejectRow>,
    pub tcp: Gathered<TcpRow>,
    pub udp: Gathered<UdpRow>,
    pub dns: Gathered<DnsRow>,
    pub dns_names: Gathered<DnsNameRow>,
    pub flow_tables: Gathered<FlowTableRow>,
    pub flows: Gathered<FlowRow>,
    pub devices: Gathered<DeviceRow>,
    pub neighbours: Gathered<NeighbourRow>,
    pub sockets: Gathered<SocketRow>,
    pub counters: Gathered<CounterRow>,
    pub losses: Vec<Loss>,
    /// What the nodes' kernels or rights do not let them say.
    pub unseen: Vec<Gap>,
}

impl<R> Default for Gathered<R> {
    fn default() -> Self {
        Self { told_by: BTreeSet::new(), rows: Vec::new() }
    }
}

impl<R> Gathered<R> {
    fn take(&mut self, node: &str, rows: impl IntoIterator<Item = R>) {
        self.told_by.insert(node.to_owned());
        self.rows.extend(rows);
    }
}

impl Rows {
    /// Adds what one reading says. Topics that are no subject are passed over.
    pub fn add(&mut self, need: &Need, value: &Observation, names: &Names, selection: &Selection) {
        let node = need.node.as_str();
        let own = match &need.netns {
            Netns::Host => Owner::Host,
            Netns::Pod(uid) => Owner::Pod { uid: uid.clone() },
        };
        let place = || names.place(node, &own);
        match value {
            Observation::Drops(seen) => {
                self.drops.take(node, drops::rows(node, seen, names, selection));
                self.lose(node, Subject::Drops, &drops::losses(seen));
                self.unseen.extend(seen.unseen.iter().cloned());
            }
            Observation::Rejects(seen) => {
                self.rejects.take(node, rejects::rows(node, seen, names, selection));
                self.lose(node, Subject::Rejects, &rejects::losses(seen));
                self.unseen.extend(seen.unseen.iter().cloned());
            }
            Observation::Tcp(seen) => {
                self.tcp.take(node, tcp::rows(node, seen, names, selection));
                self.lose(node, Subject::Tcp, &tcp::losses(seen));
                self.unseen.extend(seen.unseen.iter().cloned());
            }
            Observation::Udp(seen) => {
                self.udp.take(node, udp::rows(node, seen, names, selection));
                self.lose(node, Subject::Udp, &udp::losses(seen));
                self.unseen.extend(seen.unseen.iter().cloned());
            }
            Observation::Dns(seen) => {
                self.dns.take(node, dns::rows(node, seen, names, selection));
                self.dns_names.take(node, dns::name_rows(node, seen, names, selection));
                self.lose(node, Subject::Dns, &dns::losses(seen));
                self.unseen.extend(seen.unseen.iter().cloned());
            }
            Observation::Flows(seen) => {
                self.flow_tables.take(node, flows::table_rows(node, seen, names, selection));
                self.flows.take(node, flows::rows(node, seen, names, selection));
                self.lose(node, Subject::Flows, &flows::losses(seen));
            }
            Observation::Devices(seen) => self.devices.take(node, devices::rows(&place(), seen, selection)),
            Observation::Neighbours(seen) => {
                self.neighbours.take(node, neighbours::rows(&place(), seen, names, selection));
            }
            Observation::Sockets(seen) => self.sockets.take(node, sockets::rows(&place(), seen, names, selection)),
            Observation::Counters(seen) => self.counters.take(node, counters::rows(&place(), seen, selection)),
            _ => {}
        }
    }

    /// Notes counters of one node, those that are not 0.
    fn lose(&mut self, node: &str, subject: Subject, terms: &[(u64, &str)]) {
        let noted = terms.iter().filter(|(count, _)| *count > 0);
        self.losses.extend(noted.map(|(count, what)| Loss {
            node: node.to_owned(),
            subject,
            what: (*what).to_owned(),
            count: *count,
        }));
    }
}
