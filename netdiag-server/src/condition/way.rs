//! The ways of the path's own packet, for conditions that look for one decision on them.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::forwarding::Without;
use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::End;
use netdiag_common::observation::fate::FateInterface;
use netdiag_common::{Netns, Tier};

use super::Verdict;
use super::trace::Packets;
use crate::evidence::object::Object;
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::Impact;
use crate::path::{Client, MAX_CLIENT_PROBES, Path};
use crate::question::Purpose;
use crate::trace::{Begins, Leg, Place, Tunnels, Way, WayEnd, ways};

/// The port that the followed packet comes from: one that the kernel may choose (`net.ipv4.ip_local_port_range`).
pub const SOURCE_PORT: u16 = 50_000;

/// What the ways of one path have of what a condition looks for.
pub enum Search<T> {
    /// At least one has it.
    Met(Met<T>),
    /// None has.
    Not(Verdict),
}

pub struct Met<T> {
    /// Each once for its place, in the order of the way.
    pub found: Vec<Found<T>>,
    pub impact: Impact,
}

/// Something on a way.
pub struct Found<T> {
    pub what: T,
    pub leg: Leg,
}

/// What following from every client has brought so far.
struct Searched<T> {
    found: Vec<Found<T>>,
    /// Packets whose probe got through, and which were not followed.
    got_through: usize,
    ways: usize,
    /// Ways on which it is not.
    without: usize,
    /// Something could not be seen, or was not asked yet.
    dark: bool,
}

/// Follows the packet from each client for which a probe has failed, or that nobody may probe, and picks from the ways on which it
/// does not get there and back.
pub fn search<T>(path: &Path, view: &mut View, pick: impl Fn(&Way, &Leg) -> Option<T>) -> Search<T> {
    if path.question.purpose == Purpose::Scan {
        return Search::Not(Verdict::not_applicable("a scan follows no packets"));
    }
    let Some(port) = path.port else {
        return Search::Not(Verdict::not_applicable("the path names no port"));
    };
    let mut searched = Searched { found: Vec::new(), got_through: 0, ways: 0, without: 0, dark: false };
    for client in path.clients.iter().take(MAX_CLIENT_PROBES) {
        for destination in path.addresses.iter().copied().filter(|address| client.speaks_to(*address)) {
            match gets_through(path, view, client, destination) {
                Some(true) => searched.got_through += 1,
                None => searched.dark = true,
                Some(false) => {
                    let (protocol, source_port, without) = (path.protocol, SOURCE_PORT, Without::new());
                    let (without, tunnels) = (&without, Tunnels::Trusted);
                    let begins = Begins { client, protocol, source_port, destination, port, without, tunnels };
                    searched.follow(begins, view, &pick);
                }
            }
        }
    }
    searched.end(view)
}

impl<T> Searched<T> {
    fn follow(&mut self, begins: Begins<'_>, view: &mut View, pick: impl Fn(&Way, &Leg) -> Option<T>) {
        let (all, needs) = ways(view.cluster(), begins, &mut |need| view.reading(need));
        self.dark |= !needs.is_empty() || all.cut;
        for way in all.ways {
            self.ways += 1;
            let legs = if way.end == WayEnd::Answered { &[] } else { way.legs.as_slice() };
            let Some((what, leg)) = legs.iter().find_map(|leg| Some((pick(&way, leg)?, leg))) else {
                self.without += 1;
                self.dark |= is_unseen(&way);
                continue;
            };
            let known = |known: &Found<T>| known.leg.place == leg.place && known.leg.direction == leg.direction;
            if !self.found.iter().any(known) {
                self.found.push(Found { what, leg: leg.clone() });
            }
        }
    }

    fn end(self, view: &View) -> Search<T> {
        if !self.found.is_empty() {
            let breaks = self.without + self.got_through == 0;
            let impact = if breaks { Impact::Breaks } else { Impact::Degrades };
            return Search::Met(Met { found: self.found, impact });
        }
        Search::Not(match (self.dark, self.ways, self.got_through) {
            (true, ..) => Verdict::unknown(view),
            (_, 0, 0) => Verdict::not_applicable("there is no packet to follow"),
            (_, 0, _) => Verdict::clear("the probes got through"),
            (_, ways, _) => Verdict::clear(format!("none of the {ways} ways that the packet can take has it")),
        })
    }
}

/// Whether the client's probe of what it dials got through; none when that is not known yet.
fn gets_through(path: &Path, view: &mut View, client: &Client, destination: IpAddr) -> Option<bool> {
    if path.question.tier < Tier::Probe {
        return Some(false);
    }
    let Some(request) = path.address_probe(destination) else { return Some(false) };
    let open = view.needs().len();
    match view.probe(&client.node, &client.netns, request) {
        Look::Seen(seen) => Some(seen.value.failed() == 0),
        Look::Dark if view.needs().len() > open => None,
        Look::Dark | Look::Absent(_) => Some(false),
    }
}

fn is_unseen(way: &Way) -> bool {
    let unknown = |leg: &Leg| matches!(leg.path().end, End::Unknown { .. });
    matches!(way.end, WayEnd::Unseen { .. }) || way.legs.last().is_some_and(unknown)
}

impl Place {
    /// `node n1`, or `pod shop/client`.
    pub fn words(&self, view: &View) -> String {
        self.subject(view).to_string().replacen("Node ", "node ", 1).replacen("Pod ", "pod ", 1)
    }

    /// The pod whose namespace it is, or the node.
    pub fn subject(&self, view: &View) -> ObjectRef {
        let pod = match &self.netns {
            Netns::Host => None,
            Netns::Pod(uid) => view.cluster().pods.iter().find(|pod| pod.metadata.uid == *uid),
        };
        pod.map_or_else(|| ObjectRef::of_node(&self.node), |pod| pod.reference().on_node(&self.node))
    }
}

impl Leg {
    /// The interface that the packet arrives on; none where a process sends it.
    pub fn input(&self) -> Option<&FateInterface> {
        let Origin::Received { interface } = self.fate.packet.origin else { return None };
        self.fate.interfaces.iter().find(|own| own.index == interface)
    }
}

/// The packet of this leg, as the accounts of dropped packets name it.
pub fn packets(leg: &Leg, path: &Path) -> Packets {
    let packet = &leg.path().packet;
    let port = packet.ports().map_or(0, |(_, port)| port);
    let destination = SocketAddr::new(packet.destination(), port);
    Packets { source: packet.source(), destination, protocol: path.protocol }
}
