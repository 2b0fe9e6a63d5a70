//! The proof: traces armed in every namespace of the ways, one connection attempt through them, and what the kernels tell.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netdiag_common::forwarding::conntrack::Direction as Seen;
use netdiag_common::observation::Observation;
use netdiag_common::observation::probe::{ProbeRequest, ProbeResult};
use netdiag_common::observation::trace::{
    MAX_TRACE_ALTERNATIVES, TraceAlternative, TraceRecord, TraceRequest, TraceTuple, TracedPacket,
};
use netdiag_common::{Gap, Reading, Topic};

use super::Followed;
use super::{Compared, Direction, Leg, Place, Way, compare};
use crate::ask::Source;
use crate::path::Path;

/// How long traces stay armed when nothing comes: a lost packet is sent again after one second.
const SECONDS: u8 = 3;
/// There and back. What is sent again shows nothing new.
const PACKETS: u8 = 2;
/// What the agents may take for arming before the packet is sent. They all are asked at once.
const ARMING: Duration = Duration::from_millis(700);
const PROBE_TIMEOUT_MS: u32 = 1_500;
/// Above what arming, waiting and answering take.
const PATIENCE: Duration = Duration::from_secs(15);

/// What was sent.
#[derive(Debug, Clone, PartialEq)]
pub enum Sent {
    Tried(ProbeResult),
    Not { gap: Gap },
}

/// What the kernels told.
#[derive(Debug, Clone)]
pub struct Traced {
    pub sent: Sent,
    records: BTreeMap<Place, TraceRecord>,
    /// Namespaces in which nothing could be armed.
    pub gaps: Vec<Gap>,
}

/// Arms, sends, and waits for the traces to end. They end by themselves, whatever happens here.
pub(super) async fn run<S: Source>(
    source: &S,
    path: &Path,
    (source_port, destination): (u16, IpAddr),
    followed: &Followed,
    asked_by: Option<&str>,
) -> Traced {
    let deadline = Instant::now() + PATIENCE;
    let traces = requests(path, followed, asked_by);
    let mut traced =
        Traced { sent: Sent::Tried(ProbeResult { attempts: Vec::new() }), records: BTreeMap::new(), gaps: Vec::new() };
    let (Some(client), Some(port)) = (path.clients.first(), path.port) else { return traced };
    let place = Place { node: client.node.clone(), netns: client.netns.clone() };
    let probe = place.need(Topic::Probe(ProbeRequest::TcpConnect {
        address: destination,
        port,
        timeout_ms: PROBE_TIMEOUT_MS,
        attempts: 1,
        source_port: Some(source_port),
    }));
    let needs = traces.iter().map(|(place, request)| place.need(Topic::Trace(request.clone()))).collect();
    let send = async {
        tokio::time::sleep(ARMING).await;
        source.gather(vec![probe], deadline).await
    };
    let (told, sent) = tokio::join!(source.gather(needs, deadline), send);
    for (need, reading) in told {
        let place = Place { node: need.node.clone(), netns: need.netns.clone() };
        match reading {
            Reading::Seen { value: Observation::Trace(record), .. } => {
                traced.records.insert(place, record);
            }
            Reading::Unavailable { gap } => traced.gaps.push(gap),
            _ => {}
        }
    }
    if let Some((_, reading)) = sent.into_iter().next() {
        match reading {
            Reading::Seen { value: Observation::Probe(result), .. } => traced.sent = Sent::Tried(result),
            Reading::Unavailable { gap } => traced.sent = Sent::Not { gap },
            _ => {}
        }
    }
    traced
}

/// One trace for each namespace, of all tuples that some way enters it with, there or back. Outer packets are not traced: their
/// source ports are not known.
fn requests(path: &Path, followed: &Followed, asked_by: Option<&str>) -> Vec<(Place, TraceRequest)> {
    let mut places: BTreeMap<Place, BTreeSet<TraceAlternative>> = BTreeMap::new();
    for way in &followed.ways {
        let legs = || way.legs.iter().filter(|leg| leg.carrier.is_none());
        for leg in legs().filter(|leg| leg.direction == Direction::Forward) {
            let reply = legs().find(|other| other.direction == Direction::Reply && other.place == leg.place);
            let tuples = TraceAlternative { tuple: tuple(path, leg), reply: reply.map(|leg| tuple(path, leg)) };
            places.entry(leg.place.clone()).or_default().insert(tuples);
        }
    }
    let request = |tuples: BTreeSet<TraceAlternative>| {
        let mut tuples = tuples.into_iter();
        let TraceAlternative { tuple, reply } = tuples.next()?;
        Some(TraceRequest {
            tuple,
            reply,
            alternatives: tuples.take(MAX_TRACE_ALTERNATIVES).collect(),
            interface: None,
            seconds: SECONDS,
            packets: PACKETS,
            asked_by: asked_by.map(str::to_owned),
        })
    };
    places.into_iter().filter_map(|(place, tuples)| Some((place, request(tuples)?))).collect()
}

/// As the packet enters the namespace.
fn tuple(path: &Path, leg: &Leg) -> TraceTuple {
    let packet = &leg.fate.packet;
    let (source_port, destination_port) = leg.request.transport.ports();
    TraceTuple {
        protocol: path.protocol,
        source: packet.source(),
        destination: packet.destination(),
        source_port,
        destination_port,
    }
}

impl Traced {
    /// The first packet that the kernel traced for a leg.
    fn packet(&self, leg: &Leg) -> Option<&TracedPacket> {
        if leg.carrier.is_some() {
            return None;
        }
        let wanted = match leg.direction {
            Direction::Forward => Seen::Original,
            Direction::Reply => Seen::Reply,
        };
        self.records.get(&leg.place)?.packets.iter().find(|packet| packet.direction == wanted)
    }

    /// The two columns of a leg; none when nothing was traced for it.
    pub fn compare(&self, leg: &Leg) -> Option<Compared> {
        self.packet(leg).map(|packet| compare(leg.path(), packet))
    }

    /// The way that the packet took: the one whose namespaces agree most with what was traced, and differ least.
    pub fn taken<'w>(&self, ways: &'w [Way]) -> Option<&'w Way> {
        let score = |way: &Way| {
            let compared: Vec<Compared> = way.legs.iter().filter_map(|leg| self.compare(leg)).collect();
            let differing = compared.iter().filter(|compared| !compared.is_same()).count();
            let agreed: usize = compared.iter().map(Compared::agreed).sum();
            (compared.len(), std::cmp::Reverse(differing), agreed)
        };
        ways.iter().filter(|way| score(way).0 > 0).max_by_key(|way| {
            let (traced, differing, agreed) = score(way);
            (differing, agreed, traced)
        })
    }
}
