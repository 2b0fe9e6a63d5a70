//! Following a packet from namespace to namespace: all ways at once, each round asks the nodes for what the next step of any of
//! them needs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::forwarding::Packet;
use netdiag_common::forwarding::conntrack::{Direction as Seen, Entry};
use netdiag_common::forwarding::path::End;
use netdiag_common::observation::fate::{Fate, FateOrigin, FateRequest, FateTransport};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Gap, GapReason, Need, Netns, Reading, Topic};

use super::next::{Known, Next, next};
use super::{Direction, Leg, Place, Way, WayEnd};
use crate::ask::{Source, step};
use crate::evidence::Cluster;
use crate::path::Path;

/// Ways that are followed. A Service of many endpoints has more, and they differ in nothing but the last hop.
const MAX_WAYS: usize = 16;
/// Namespaces on one way, there and back.
const MAX_LEGS: usize = 24;

const SYN: u8 = 0x02;
const SYN_ACK: u8 = 0x12;

/// All ways of one packet.
#[derive(Debug, Clone, Default)]
pub struct Followed {
    pub ways: Vec<Way>,
    /// There are further ways, which were not followed.
    pub cut: bool,
    /// What could not be seen and does not end a way.
    pub gaps: Vec<Gap>,
}

/// A way that has not ended.
struct Open {
    legs: Vec<Leg>,
    /// Where it is asked for next; none when its last leg has not been left yet.
    asks: Option<(Direction, Place, FateRequest)>,
}

enum Advance {
    Waits(Need),
    Goes(Vec<Open>),
    Ends(Way),
}

/// What the nodes have told.
#[derive(Default)]
struct Told {
    fates: BTreeMap<Need, Result<Arc<Fate>, Gap>>,
    known: Known,
}

pub(super) async fn follow<S: Source>(
    source: &S,
    cluster: &Cluster,
    path: &Path,
    (source_port, destination): (u16, IpAddr),
    budget: Duration,
) -> Followed {
    let deadline = Instant::now() + budget;
    let mut followed = Followed::default();
    let mut told = Told::default();
    let (Some(client), Some(port)) = (path.clients.first(), path.port) else { return followed };
    let place = Place { node: client.node.clone(), netns: client.netns.clone() };
    let request = FateRequest {
        origin: FateOrigin::Sent,
        source: None,
        destination,
        transport: transport(path.protocol, Some(source_port), Some(port), Direction::Forward),
        mark: 0,
        connection: None,
    };
    let mut open = vec![Open { legs: Vec::new(), asks: Some((Direction::Forward, place, request)) }];
    while !open.is_empty() {
        let mut needs = BTreeSet::new();
        let mut waiting = Vec::new();
        while let Some(way) = open.pop() {
            match told.advance(cluster, &way, path.protocol) {
                Advance::Waits(need) => {
                    needs.insert(need);
                    waiting.push(way);
                }
                Advance::Goes(ways) => open.extend(ways),
                Advance::Ends(way) => followed.ways.push(way),
            }
            let ways = followed.ways.len() + waiting.len();
            if ways + open.len() > MAX_WAYS {
                followed.cut = true;
                open.truncate(MAX_WAYS.saturating_sub(ways));
            }
        }
        if !needs.is_empty() {
            told.keep(source.gather(needs.into_iter().collect(), deadline).await, cluster);
        }
        open = waiting;
    }
    followed.gaps = told.gaps();
    followed.ways.sort_by(|a, b| b.chance().unwrap_or(0.0).total_cmp(&a.chance().unwrap_or(0.0)));
    followed
}

impl Told {
    fn keep(&mut self, readings: Vec<(Need, Reading<Observation>)>, cluster: &Cluster) {
        for (need, reading) in readings {
            if !matches!(need.topic, Topic::Fate(_)) {
                self.known.insert(need, reading);
                continue;
            }
            let fate = match reading {
                Reading::Seen { value: Observation::Fate(fate), .. } => Ok(Arc::from(fate)),
                Reading::Unavailable { gap } => Err(Gap { what: step::need_in_words(&need, Some(cluster)), ..gap }),
                _ => Err(malformed(&need, cluster)),
            };
            self.fates.insert(need, fate);
        }
    }

    /// Listeners that could not be read: whether a socket takes what is delivered is then not known.
    fn gaps(&self) -> Vec<Gap> {
        let unavailable = |(need, reading): (&Need, &Reading<Observation>)| match reading {
            Reading::Unavailable { gap } if need.topic == Topic::Listeners => Some(gap.clone()),
            _ => None,
        };
        self.known.iter().filter_map(unavailable).collect()
    }

    fn advance(&self, cluster: &Cluster, way: &Open, protocol: Protocol) -> Advance {
        match &way.asks {
            Some((direction, place, request)) => self.ask(way, *direction, place, request),
            None => self.leave(cluster, way, protocol),
        }
    }

    /// Into the namespace: one way for each of its paths.
    fn ask(&self, way: &Open, direction: Direction, place: &Place, request: &FateRequest) -> Advance {
        if way.legs.len() >= MAX_LEGS {
            return Advance::Ends(Way { legs: way.legs.clone(), end: WayEnd::Circle });
        }
        let need = place.need(Topic::Fate(request.clone()));
        let fate = match self.fates.get(&need) {
            None => return Advance::Waits(need),
            Some(Err(gap)) => {
                return Advance::Ends(Way {
                    legs: way.legs.clone(),
                    end: WayEnd::Unseen { gap: Box::new(gap.clone()) },
                });
            }
            Some(Ok(fate)) => fate,
        };
        let leg = |path| Leg { direction, place: place.clone(), request: request.clone(), fate: fate.clone(), path };
        let taken = |path| Open { legs: way.legs.iter().cloned().chain([leg(path)]).collect(), asks: None };
        Advance::Goes((0..fate.outcome.paths.len()).map(taken).collect())
    }

    /// Out of the namespace that the last leg is in.
    fn leave(&self, cluster: &Cluster, way: &Open, protocol: Protocol) -> Advance {
        let ends = |end| Advance::Ends(Way { legs: way.legs.clone(), end });
        let Some(leg) = way.legs.last() else { return ends(WayEnd::Circle) };
        let packet = &leg.path().packet;
        match &leg.path().end {
            End::Sent { interface, gateway } => {
                let leaves = (*interface, *gateway, packet.destination());
                match next(cluster, &self.known, &leg.place, &leg.fate, leaves) {
                    Next::Ask(need) => Advance::Waits(need),
                    Next::End(end) => ends(end),
                    Next::Arrives(place, origin) => {
                        let request = request(way, &place, origin, leg.direction, packet, protocol);
                        goes(way, leg.direction, place, request)
                    }
                }
            }
            End::Delivered if leg.direction == Direction::Reply => {
                let asked = way.legs.first().map(|first| &first.place);
                ends(if asked == Some(&leg.place) { WayEnd::Answered } else { WayEnd::Astray })
            }
            End::Delivered => {
                let (address, port) = (packet.destination(), packet.ports().map_or(0, |(_, port)| port));
                let need = leg.place.need(Topic::Listeners);
                match self.takes(&need, protocol, address, port) {
                    None => Advance::Waits(need),
                    Some(false) => ends(WayEnd::NobodyListens { address, port }),
                    Some(true) => {
                        let answer = answer(way, &leg.place, packet, protocol);
                        goes(way, Direction::Reply, leg.place.clone(), answer)
                    }
                }
            }
            _ => ends(WayEnd::Stopped),
        }
    }

    /// Whether a socket takes it; yes when that could not be read, which is a gap. None when nobody has asked yet.
    fn takes(&self, listeners: &Need, protocol: Protocol, address: IpAddr, port: u16) -> Option<bool> {
        if !matches!(protocol, Protocol::Tcp | Protocol::Udp) {
            return Some(true);
        }
        Some(match self.known.get(listeners)? {
            Reading::Seen { value: Observation::Listeners(found), .. } => {
                found.iter().any(|socket| socket.protocol == protocol && socket.port == port && socket.accepts(address))
            }
            _ => true,
        })
    }
}

fn goes(way: &Open, direction: Direction, place: Place, request: FateRequest) -> Advance {
    Advance::Goes(vec![Open { legs: way.legs.clone(), asks: Some((direction, place, request)) }])
}

/// The packet as it comes into the next namespace. Marks stay behind (`skb_scrub_packet`, and no wire carries them).
fn request(
    way: &Open,
    place: &Place,
    origin: FateOrigin,
    direction: Direction,
    packet: &Packet,
    protocol: Protocol,
) -> FateRequest {
    let (from, to) = packet.known_ports();
    FateRequest {
        origin,
        source: Some(packet.source()),
        destination: packet.destination(),
        transport: transport(protocol, from, to, direction),
        mark: 0,
        connection: (direction == Direction::Reply).then(|| entry(way, place)).flatten(),
    }
}

/// What a server answers to a packet that was delivered.
fn answer(way: &Open, place: &Place, packet: &Packet, protocol: Protocol) -> FateRequest {
    let (from, to) = packet.known_ports();
    FateRequest {
        origin: FateOrigin::Sent,
        source: Some(packet.destination()),
        destination: packet.source(),
        transport: transport(protocol, to, from, Direction::Reply),
        mark: 0,
        connection: entry(way, place),
    }
}

/// What a namespace's connection tracking kept of the packet when it came by, as its answer meets it.
fn entry(way: &Open, place: &Place) -> Option<Entry> {
    let there = way.legs.iter().find(|leg| leg.direction == Direction::Forward && leg.place == *place)?;
    there.connection().map(|entry| Entry { direction: Seen::Reply, ..entry.clone() })
}

fn transport(
    protocol: Protocol,
    source_port: Option<u16>,
    destination_port: Option<u16>,
    direction: Direction,
) -> FateTransport {
    match protocol {
        Protocol::Udp => FateTransport::Udp { source_port, destination_port },
        _ => {
            let flags = if direction == Direction::Forward { SYN } else { SYN_ACK };
            FateTransport::Tcp { source_port, destination_port, flags }
        }
    }
}

impl Place {
    pub(super) fn need(&self, topic: Topic) -> Need {
        match &self.netns {
            Netns::Host => Need::host(&self.node, topic),
            Netns::Pod(uid) => Need::pod(&self.node, uid, topic),
        }
    }
}

fn malformed(need: &Need, cluster: &Cluster) -> Gap {
    Gap {
        what: step::need_in_words(need, Some(cluster)),
        node: Some(need.node.clone()),
        reason: GapReason::Malformed,
        why: "the agent answered something else".to_owned(),
        remedy: "upgrade netdiag-node to the server's version".to_owned(),
    }
}
