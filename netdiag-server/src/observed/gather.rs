//! Readings of all nodes become rows.

use std::collections::BTreeSet;

use jiff::Timestamp;
use netdiag_common::observation::{Observation, Owner};
use netdiag_common::{Gap, GapReason, Need, Netns};

use super::{
    Account, CounterRow, DeviceRow, DnsNameRow, DnsRow, DnsSearchRow, DropRow, FlowRow, FlowTableRow, LimitRow, Loss,
    Names, NeighbourRow, Place, RejectRow, Selection, SocketRow, Subject, TcpRow, UdpRow, counters, devices, dns,
    dns_search, drops, flows, limits, neighbours, rejects, sockets, tcp, udp,
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
    pub dns_search: Gathered<DnsSearchRow>,
    pub flow_tables: Gathered<FlowTableRow>,
    pub flows: Gathered<FlowRow>,
    pub devices: Gathered<DeviceRow>,
    pub neighbours: Gathered<NeighbourRow>,
    pub sockets: Gathered<SocketRow>,
    pub counters: Gathered<CounterRow>,
    /// Of sockets and neighbours.
    pub limits: Gathered<LimitRow>,
    pub losses: Vec<Loss>,
    /// One per node and subject that kernel programs count.
    pub accounts: Vec<Account>,
    /// What the nodes' kernels or rights do not let them say.
    pub unseen: Vec<(Subject, Gap)>,
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
                self.accounts.push(Account::of_drops(node, seen));
                self.miss(Subject::Drops, seen.unseen.iter().map(|gap| of_node(gap, node)));
            }
            Observation::Rejects(seen) => {
                self.rejects.take(node, rejects::rows(node, seen, names, selection));
                self.lose(node, Subject::Rejects, &rejects::losses(seen));
                self.accounts.push(Account::of_rejects(node, seen));
                self.miss(Subject::Rejects, seen.unseen.iter().map(|gap| of_node(gap, node)));
            }
            Observation::Tcp(seen) => {
                self.tcp.take(node, tcp::rows(node, seen, names, selection));
                self.lose(node, Subject::Tcp, &tcp::losses(seen));
                self.accounts.push(Account::of_tcp(node, seen));
                self.miss(Subject::Tcp, seen.unseen.iter().map(|gap| of_node(gap, node)));
            }
            Observation::Udp(seen) => {
                self.udp.take(node, udp::rows(node, seen, names, selection));
                self.lose(node, Subject::Udp, &udp::losses(seen));
                self.accounts.push(Account::of_udp(node, seen));
                self.miss(Subject::Udp, seen.unseen.iter().map(|gap| of_node(gap, node)));
            }
            Observation::Dns(seen) => {
                self.dns.take(node, dns::rows(node, seen, names, selection));
                self.dns_names.take(node, dns::name_rows(node, seen, names, selection));
                self.dns_search.take(node, dns_search::rows(node, seen, names, selection));
                self.lose(node, Subject::Dns, &dns::losses(seen));
                self.accounts.push(Account::of_dns(node, seen));
                self.miss(Subject::Dns, seen.unseen.iter().map(|gap| of_node(gap, node)));
            }
            Observation::Flows(seen) => {
                self.flow_tables.take(node, flows::table_rows(node, seen, names, selection));
                self.flows.take(node, flows::rows(node, seen, names, selection));
                self.lose(node, Subject::Flows, &flows::losses(seen));
            }
            Observation::Devices(seen) => {
                self.devices.take(node, devices::rows(&place(), seen, selection));
                self.miss(Subject::Devices, first_look("devices", &place(), seen.since));
                self.miss(Subject::Devices, left_out(&place(), &seen.left_out));
            }
            Observation::Neighbours(seen) => {
                self.neighbours.take(node, neighbours::rows(&place(), seen, names, selection));
                self.limits.take(node, limits::of_neighbours(&place(), seen, selection));
                self.miss(Subject::Neighbours, left_out(&place(), &seen.left_out));
                self.miss(Subject::Neighbours, seen.unseen.iter().map(|gap| of_node(gap, node)));
                if let Some(failures) = &seen.failures {
                    self.lose(node, Subject::Neighbours, &neighbours::losses(&place(), failures));
                    if own == Owner::Host {
                        self.accounts.push(Account::of_neighbours(node, failures));
                    }
                }
            }
            Observation::Sockets(seen) => {
                self.sockets.take(node, sockets::rows(&place(), seen, names, selection));
                self.limits.take(node, limits::of_sockets(&place(), seen, selection));
                self.miss(Subject::Sockets, left_out(&place(), &seen.left_out));
            }
            Observation::Counters(seen) => {
                self.counters.take(node, counters::rows(&place(), seen, selection));
                self.miss(Subject::Counters, first_look("counters", &place(), seen.since));
                self.miss(Subject::Counters, left_out(&place(), &seen.left_out));
            }
            _ => {}
        }
    }

    /// Once all is added: which refusals answered which drops. With nftables, a rule that drops and one that rejects leave the
    /// same drop behind.
    pub fn pair(&mut self, selection: &Selection) {
        for drop in &mut self.drops.rows {
            let answer = self.rejects.rows.iter().find(|reject| reject.answers(drop));
            drop.answers = answer.map_or(0, |reject| reject.packets);
            drop.answered = answer.map(RejectRow::refusal).unwrap_or_default();
        }
        self.rejects.rows.retain(|reject| selection.has_reason(&[&reject.kind, &reject.detail]));
    }

    fn miss(&mut self, subject: Subject, gaps: impl IntoIterator<Item = Gap>) {
        self.unseen.extend(gaps.into_iter().map(|gap| (subject, gap)));
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

/// A node's observation does not say whose it is.
fn of_node(gap: &Gap, node: &str) -> Gap {
    Gap { node: Some(node.to_owned()), ..gap.clone() }
}

/// What grows cannot be told by a single look.
fn first_look(what: &str, place: &Place, since: Option<Timestamp>) -> Option<Gap> {
    since.is_none().then(|| Gap {
        what: format!("growth of {what} of {}", place.name),
        node: Some(place.node.clone()),
        reason: GapReason::Failed,
        why: "the agent looked there for the first time".to_owned(),
        remedy: "look again".to_owned(),
    })
}

/// What one reading says that it lacks.
fn left_out(place: &Place, lines: &[String]) -> Vec<Gap> {
    let gap = |line: &String| Gap {
        what: format!("{line} ({})", place.name),
        node: Some(place.node.clone()),
        reason: GapReason::Failed,
        why: "the agent's answer has limits".to_owned(),
        remedy: "look at the node itself".to_owned(),
    };
    lines.iter().map(gap).collect()
}
