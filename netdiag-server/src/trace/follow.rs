//! Following a packet from namespace to namespace: all ways at once, as far as the readings lead. Pure; what the next step of any
//! of them needs is asked for together.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::forwarding::Without;
use netdiag_common::forwarding::path::{Decision, End};
use netdiag_common::observation::fate::{Fate, FateInterfaceKey, FateOrigin, FateRequest};
use netdiag_common::observation::{Observation, Protocol};
use netdiag_common::{Gap, GapReason, Need, Netns, Reading, Topic};

use super::next::{Next, at_address, next};
use super::request::{answer, request, transport};
use super::returned::returned;
use super::tunnel::{self, Carrier, Entered, Left, Sends, Tunnels};
use super::{Direction, Leg, Place, Way, WayEnd};
use crate::ask::{Source, step};
use crate::evidence::{Cluster, Evidence};
use crate::path::{Client, Path};

/// Ways that are followed. A Service of many endpoints has more, and they differ in nothing but the last hop.
const MAX_WAYS: usize = 16;
/// Namespaces on one way, there and back.
const MAX_LEGS: usize = 24;

/// All ways of one packet.
#[derive(Debug, Clone, Default)]
pub struct Followed {
    pub ways: Vec<Way>,
    /// There are further ways, which were not followed.
    pub cut: bool,
    /// What could not be seen and does not end a way.
    pub gaps: Vec<Gap>,
}

/// A packet that begins a connection.
#[derive(Debug, Clone, Copy)]
pub struct Begins<'p> {
    pub client: &'p Client,
    pub protocol: Protocol,
    pub source_port: u16,
    pub destination: IpAddr,
    pub port: u16,
    /// Rules that are taken not to be there, in any namespace.
    pub without: &'p Without,
    pub tunnels: Tunnels,
}

/// A way that has not ended.
struct Open {
    legs: Vec<Leg>,
    /// Where it is asked for next; none when its last leg has not been left yet.
    asks: Option<Asks>,
}

struct Asks {
    direction: Direction,
    place: Place,
    request: FateRequest,
    carrier: Option<Carrier>,
}

enum Advance {
    Waits(Box<Need>),
    Goes(Vec<Open>),
    Ends(Way),
}

/// What is known of the nodes: none for what nobody has asked yet.
pub type Readings<'e, 'l> = &'l mut dyn FnMut(&Need) -> Option<&'e Reading<Observation>>;

struct Walk<'e, 'l> {
    cluster: &'e Cluster,
    readings: Readings<'e, 'l>,
    protocol: Protocol,
    tunnels: Tunnels,
    gaps: Vec<Gap>,
}

/// Asks the nodes, round by round, until every way has ended.
pub(super) async fn follow<S: Source>(
    source: &S,
    cluster: &Arc<Cluster>,
    path: &Path,
    (source_port, destination): (u16, IpAddr),
    without: &Without,
    budget: Duration,
) -> Followed {
    let deadline = Instant::now() + budget;
    let (Some(client), Some(port)) = (path.clients.first(), path.port) else { return Followed::default() };
    let (protocol, tunnels) = (path.protocol, Tunnels::Followed);
    let begins = Begins { client, protocol, source_port, destination, port, without, tunnels };
    let mut evidence = Evidence::new(source.now(), cluster.clone());
    loop {
        let (followed, needs) = ways(cluster, begins, &mut |need| evidence.reading(need));
        if needs.is_empty() {
            return followed;
        }
        // Whoever is asked answers, with a gap if with nothing else: the next round needs something else.
        let readings = source.gather(needs.into_iter().collect(), deadline).await;
        evidence = evidence.with(source.now(), readings);
    }
}

/// The ways as far as they are known, and what has to be read to know more.
pub fn ways<'e>(cluster: &'e Cluster, begins: Begins<'_>, readings: Readings<'e, '_>) -> (Followed, BTreeSet<Need>) {
    let Begins { client, protocol, source_port, destination, port, without, tunnels } = begins;
    let place = Place { node: client.node.clone(), netns: client.netns.clone() };
    let transport = transport(protocol, Some(source_port), Some(port), Direction::Forward);
    let request =
        FateRequest { without: without.clone(), ..FateRequest::new(FateOrigin::Sent, None, destination, transport) };
    let mut walk = Walk { cluster, readings, protocol, tunnels, gaps: Vec::new() };
    let mut followed = Followed::default();
    let mut needs = BTreeSet::new();
    let mut waiting = 0;
    let first = Asks { direction: Direction::Forward, place, request, carrier: None };
    let mut open = vec![Open { legs: Vec::new(), asks: Some(first) }];
    while let Some(way) = open.pop() {
        match walk.advance(&way) {
            Advance::Waits(need) => {
                needs.insert(*need);
                waiting += 1;
            }
            Advance::Goes(ways) => open.extend(ways),
            Advance::Ends(way) => followed.ways.push(way),
        }
        let ways = followed.ways.len() + waiting;
        if ways + open.len() > MAX_WAYS {
            followed.cut = true;
            open.truncate(MAX_WAYS.saturating_sub(ways));
        }
    }
    followed.gaps = walk.gaps;
    followed.ways.sort_by(|a, b| b.chance().unwrap_or(0.0).total_cmp(&a.chance().unwrap_or(0.0)));
    (followed, needs)
}

impl<'e> Walk<'e, '_> {
    fn reading(&mut self, need: &Need) -> Option<&'e Reading<Observation>> {
        (self.readings)(need)
    }

    fn advance(&mut self, way: &Open) -> Advance {
        match &way.asks {
            Some(asks) => self.ask(way, asks),
            None => self.leave(way),
        }
    }

    /// Into the namespace: one way for each of its paths.
    fn ask(&mut self, way: &Open, asks: &Asks) -> Advance {
        let Asks { direction, place, request, carrier } = asks;
        let ends = |end| Advance::Ends(Way { legs: way.legs.clone(), end });
        if way.legs.len() >= MAX_LEGS {
            return ends(WayEnd::Circle);
        }
        let need = place.need(Topic::Fate(request.clone()));
        let unseen = |gap| ends(WayEnd::Unseen { gap: Box::new(gap) });
        let (fate, at) = match self.reading(&need) {
            None => return Advance::Waits(Box::new(need)),
            Some(Reading::Seen { value: Observation::Fate(fate), at }) => (fate, *at),
            Some(Reading::Unavailable { gap }) => {
                let what = step::need_in_words(&need, Some(self.cluster));
                return unseen(Gap { what, ..gap.clone() });
            }
            Some(_) => return unseen(malformed(&need, self.cluster)),
        };
        if !leaves_out(fate, &request.without) {
            return unseen(too_old(&need, self.cluster));
        }
        let leg = |path| Leg {
            direction: *direction,
            place: place.clone(),
            request: request.clone(),
            fate: fate.clone(),
            at,
            path,
            carrier: carrier.clone(),
        };
        let taken = |path| Open { legs: way.legs.iter().cloned().chain([leg(path)]).collect(), asks: None };
        Advance::Goes((0..fate.outcome.paths.len()).map(taken).collect())
    }

    /// Out of the namespace that the last leg is in.
    fn leave(&mut self, way: &Open) -> Advance {
        let protocol = self.protocol;
        let ends = |end| Advance::Ends(Way { legs: way.legs.clone(), end });
        let Some(leg) = way.legs.last() else { return ends(WayEnd::Circle) };
        let packet = &leg.path().packet;
        match &leg.path().end {
            End::Sent { interface, gateway } => self.send(way, leg, (*interface, *gateway)),
            End::Delivered => {
                if let Some(carrier) = &leg.carrier {
                    return self.unpack(way, leg, carrier);
                }
                if leg.direction == Direction::Reply {
                    return ends(returned(&way.legs, leg));
                }
                let (address, port) = (packet.destination(), packet.ports().map_or(0, |(_, port)| port));
                let need = leg.place.need(Topic::Listeners);
                // The agent found the proxy's socket, which listens elsewhere.
                let is_proxied = |decision: &Decision| matches!(decision, Decision::Proxied { .. });
                let is_proxied = leg.path().decisions.iter().any(is_proxied);
                let is_taken = if is_proxied { Some(true) } else { self.takes(&need, address, port) };
                match is_taken {
                    None => Advance::Waits(Box::new(need)),
                    Some(false) => ends(WayEnd::NobodyListens { address, port }),
                    Some(true) => {
                        let request = answer(&way.legs, &leg.place, packet, protocol);
                        let (direction, place) = (Direction::Reply, leg.place.clone());
                        goes(way, Asks { direction, place, request, carrier: None })
                    }
                }
            }
            _ => ends(match tunnel::may_be_known(leg) {
                Some(gap) => WayEnd::Unseen { gap: Box::new(gap) },
                None => WayEnd::Stopped,
            }),
        }
    }

    /// Into a tunnel, or to the next namespace.
    fn send(&mut self, way: &Open, leg: &Leg, (interface, gateway): (u32, Option<IpAddr>)) -> Advance {
        let ends = |end| Advance::Ends(Way { legs: way.legs.clone(), end });
        if let Some(gap) = tunnel::off_its_device(leg) {
            return ends(WayEnd::Unseen { gap: Box::new(gap) });
        }
        if self.tunnels == Tunnels::Followed {
            match tunnel::enter(self.readings, &way.legs) {
                None => {}
                Some(Entered::Asks(need)) => return Advance::Waits(need),
                Some(Entered::Sends(sends)) => {
                    let Sends { carrier, request, gap } = *sends;
                    self.note(gap);
                    let (direction, place) = (leg.direction, leg.place.clone());
                    return goes(way, Asks { direction, place, request, carrier: Some(carrier) });
                }
                Some(Entered::Drops { why }) => return ends(WayEnd::TunnelDrops { why }),
                Some(Entered::Untold(gap)) => self.note(Some(*gap)),
            }
        }
        let (cluster, destination) = (self.cluster, leg.path().packet.destination());
        let mut found = next(cluster, self.readings, &leg.place, &leg.fate, (interface, gateway, destination));
        let outside = match (&found, &leg.carrier) {
            (Next::End(WayEnd::LeftCluster { to }), Some(carrier)) => Some((*to, carrier)),
            _ => None,
        };
        if let Some((hop, carrier)) = outside {
            let place = match tunnel::far_end(cluster, self.readings, &way.legs, carrier) {
                Ok(Some(place)) => place,
                Ok(None) => return ends(WayEnd::Unseen { gap: Box::new(tunnel::nobodys(leg, carrier)) }),
                Err(need) => return Advance::Waits(need),
            };
            self.note((hop != destination).then(|| tunnel::by_a_router(leg, carrier, hop)));
            found = at_address(self.readings, place, destination);
        }
        match found {
            Next::Ask(need) => Advance::Waits(need),
            Next::End(end) => ends(end),
            Next::Arrives(place, origin) => {
                let request = request(&way.legs, &place, origin, leg, self.protocol);
                goes(way, Asks { direction: leg.direction, place, request, carrier: leg.carrier.clone() })
            }
        }
    }

    /// Out of a tunnel, where its outer packet is delivered. What is inside has the outer packet's mark (`__iptunnel_pull_header`
    /// within one namespace, Linux 6.18).
    fn unpack(&mut self, way: &Open, leg: &Leg, carrier: &Carrier) -> Advance {
        let ends = |end| Advance::Ends(Way { legs: way.legs.clone(), end });
        let origin = match tunnel::leave(self.readings, leg, carrier) {
            Left::Asks(need) => return Advance::Waits(need),
            Left::Drops { why } => return ends(WayEnd::TunnelDrops { why }),
            Left::Comes(origin) => origin,
            Left::Untold(gap) => {
                self.note(Some(*gap));
                FateOrigin::Received(FateInterfaceKey::Name(carrier.device.clone()))
            }
        };
        let Some(inside) = way.legs.get(carrier.inside) else { return ends(WayEnd::Circle) };
        self.note(tunnel::unmarked(leg, &carrier.device));
        let place = leg.place.clone();
        let request = FateRequest {
            mark: leg.path().packet.mark.known().copied().unwrap_or_default(),
            ..request(&way.legs, &place, origin, inside, self.protocol)
        };
        goes(way, Asks { direction: leg.direction, place, request, carrier: inside.carrier.clone() })
    }

    /// What is not seen, and ends no way.
    fn note(&mut self, gap: Option<Gap>) {
        self.gaps.extend(gap.filter(|gap| !self.gaps.contains(gap)));
    }

    /// Whether a socket takes it; yes when that could not be read, which is a gap. None when nobody has asked yet.
    fn takes(&mut self, listeners: &Need, address: IpAddr, port: u16) -> Option<bool> {
        let protocol = self.protocol;
        if !matches!(protocol, Protocol::Tcp | Protocol::Udp) {
            return Some(true);
        }
        Some(match self.reading(listeners)? {
            Reading::Seen { value: Observation::Listeners(found), .. } => {
                found.iter().any(|socket| socket.protocol == protocol && socket.port == port && socket.accepts(address))
            }
            Reading::Unavailable { gap } => {
                self.note(Some(gap.clone()));
                true
            }
            _ => true,
        })
    }
}

fn goes(way: &Open, asks: Asks) -> Advance {
    Advance::Goes(vec![Open { legs: way.legs.clone(), asks: Some(asks) }])
}

/// Whether the agent knew that these rules are to be left out.
fn leaves_out(fate: &Fate, without: &Without) -> bool {
    without.iter().all(|rule| fate.left_out.iter().any(|left_out| left_out.rule == *rule))
}

impl Place {
    pub(crate) fn need(&self, topic: Topic) -> Need {
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

fn too_old(need: &Need, cluster: &Cluster) -> Gap {
    Gap {
        what: step::need_in_words(need, Some(cluster)),
        node: Some(need.node.clone()),
        reason: GapReason::WireVersion,
        why: "the agent does not know how to leave out rules, and predicted with them".to_owned(),
        remedy: "upgrade netdiag-node to the server's version".to_owned(),
    }
}

#[cfg(test)]
mod tests;
