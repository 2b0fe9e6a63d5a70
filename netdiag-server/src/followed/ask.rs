//! Arming the tag on the nodes, waiting until it is, sending the probe, and asking what the rules say where it was dropped.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::forwarding::conntrack::Direction as PacketDirection;
use netdiag_common::forwarding::path::End as PathEnd;
use netdiag_common::observation::fate::{Fate, FateInterfaceKey, FateOrigin, FateRequest, FateTransport};
use netdiag_common::observation::series::{Probe, ProbeReport, SeriesRequest};
use netdiag_common::observation::tag::{
    MAX_TAG_ALTERNATIVES, MAX_TAG_SECONDS, TagEvent, TagPoint, TagRequest, TagTuple, Tagged,
};
use netdiag_common::observation::{Observation, Owner, Protocol};
use netdiag_common::{Gap, GapReason, Need, Netns, Reading, Topic};

use super::{Dropped, Followed, Pick, Step, What, join};
use crate::ask::Source;
use crate::trace::{Direction, Leg, Place};

/// How often it is asked whether all nodes have armed the tag, and for how long.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const ARMING: Duration = Duration::from_secs(3);
/// What may still be under way when the probe has ended.
const AFTERWARDS: Duration = Duration::from_secs(1);
/// Above what arming, waiting and answering take.
const PATIENCE: Duration = Duration::from_secs(10);

const SYN: u8 = 0x02;
/// RFC 792, RFC 4443.
const ECHO_REQUEST: u8 = 8;
const ECHO_REQUEST_V6: u8 = 128;

/// Which packets are to be followed, and where.
#[derive(Debug, Clone)]
pub struct Asked {
    pub client: Place,
    /// As they are sent.
    pub tuple: TagTuple,
    /// As nodes may see them translated: to each endpoint of a Service, and from anywhere where their source is translated.
    pub alternatives: Vec<TagTuple>,
    /// Nodes on the way: the client's, the endpoints', those in between.
    pub nodes: Vec<String>,
}

/// Sends one attempt of a series, and tells what came of it and its way. Tags end by themselves, whatever happens here.
pub async fn follow<S: Source>(
    source: &S,
    asked: &Asked,
    series: &SeriesRequest,
) -> (Option<Reading<Observation>>, Followed) {
    let seconds = ARMING + Duration::from_millis(series.timeout_ms.into()) + AFTERWARDS;
    let deadline = Instant::now() + seconds + PATIENCE;
    let seconds = u8::try_from(seconds.as_millis().div_ceil(1_000)).unwrap_or(u8::MAX).min(MAX_TAG_SECONDS);
    let request = TagRequest {
        tuple: asked.tuple,
        alternatives: asked.alternatives.iter().copied().take(MAX_TAG_ALTERNATIVES).collect(),
        seconds,
        asked_by: series.asked_by.clone(),
    };
    let needs: Vec<Need> = asked.nodes.iter().map(|node| Need::host(node, Topic::Tagged(request.clone()))).collect();
    let send = async {
        armed(source, asked).await;
        source.gather(vec![asked.client.need(Topic::Series(Box::new(series.clone())))], deadline).await
    };
    let (told, sent) = tokio::join!(source.gather(needs, deadline), send);
    let mut readings: BTreeMap<String, Tagged> = BTreeMap::new();
    let mut gaps = Vec::new();
    for (need, reading) in told {
        match reading {
            Reading::Seen { value: Observation::Tagged(tagged), .. } => {
                readings.insert(need.node, tagged);
            }
            Reading::Unavailable { gap } => gaps.push(gap),
            _ => gaps.push(malformed(&need)),
        }
    }
    let sent = sent.into_iter().next().map(|(_, reading)| reading);
    let pick = pick(&series.probe, sent.as_ref());
    let mut followed = join(&asked.client, &asked.tuple, pick, &readings);
    followed.gaps.extend(gaps);
    if asked.alternatives.len() > MAX_TAG_ALTERNATIVES {
        followed.gaps.push(too_many(asked));
    }
    name_drops(source, (asked.tuple.protocol, pick), &readings, &mut followed, deadline).await;
    (sent, followed)
}

/// Which packet of the probe's the question is about.
fn pick(probe: &Probe, sent: Option<&Reading<Observation>>) -> Pick {
    match (probe, sent) {
        (Probe::Path(_), _) => Pick::Farthest,
        (Probe::PathMtu(_), Some(Reading::Seen { value: Observation::Series(result), .. })) => {
            let fits = result.attempts.iter().find_map(|attempt| match &attempt.report {
                ProbeReport::PathMtu(report) => report.path_mtu,
                _ => None,
            });
            Pick::Above { bytes: fits.unwrap_or(0) }
        }
        _ => Pick::First,
    }
}

/// Waits until every node that answers has armed the tag, or its time is over.
async fn armed<S: Source>(source: &S, asked: &Asked) {
    let until = Instant::now() + ARMING;
    let mut waiting: Vec<&String> = asked.nodes.iter().collect();
    while !waiting.is_empty() && Instant::now() < until {
        tokio::time::sleep(LOOK_EVERY).await;
        let needs = waiting.iter().map(|node| Need::host(*node, Topic::Tags)).collect();
        for (need, reading) in source.gather(needs, until).await {
            let is_armed = match reading {
                Reading::Seen { value: Observation::Tags(tags), .. } => tags.contains(&asked.tuple),
                // Whoever cannot tell cannot be waited for; what it says of the tag itself is the gap.
                _ => true,
            };
            if is_armed {
                waiting.retain(|node| **node != need.node);
            }
        }
    }
}

/// Asks the namespaces where it was dropped what their rules and routes do with such a packet.
async fn name_drops<S: Source>(
    source: &S,
    (protocol, pick): (Protocol, Pick),
    readings: &BTreeMap<String, Tagged>,
    followed: &mut Followed,
    deadline: Instant,
) {
    let mut wanted = Vec::new();
    for (index, step) in followed.steps.iter().enumerate() {
        let What::Dropped(drop) = &step.what else { continue };
        let Some(events) = readings.get(&step.node).map(|tagged| &tagged.events) else { continue };
        if let Some((place, request)) = fate_of(step, drop, (protocol, pick), events) {
            wanted.push((index, place, request));
        }
    }
    let needs: Vec<Need> = wanted.iter().map(|(_, place, request)| place.need(Topic::Fate(request.clone()))).collect();
    if needs.is_empty() {
        return;
    }
    for (need, reading) in source.gather(needs, deadline).await {
        let Reading::Seen { value: Observation::Fate(fate), at } = reading else { continue };
        let asked = wanted.iter().find(|(_, place, request)| place.need(Topic::Fate(request.clone())) == need);
        let Some((index, place, request)) = asked else { continue };
        let Some(path) = stops(&fate) else { continue };
        let leg = Leg {
            direction: Direction::Forward,
            place: place.clone(),
            request: request.clone(),
            fate: Arc::clone(&fate),
            at,
            path,
            carrier: None,
        };
        if let Some(What::Dropped(drop)) = followed.steps.get_mut(*index).map(|step| &mut step.what) {
            drop.by = Some(Box::new(leg));
        }
    }
}

/// The path of a fate that stops the packet.
fn stops(fate: &Fate) -> Option<usize> {
    let goes_on = |end: &PathEnd| matches!(end, PathEnd::Delivered | PathEnd::Sent { .. } | PathEnd::Unknown { .. });
    fate.outcome.paths.iter().position(|path| !goes_on(&path.end))
}

/// The question that a drop raises: none for what neither rules nor routes do.
fn fate_of(
    step: &Step,
    drop: &Dropped,
    (protocol, pick): (Protocol, Pick),
    events: &[TagEvent],
) -> Option<(Place, FateRequest)> {
    let by_ip = ["ip_", "ip6_", "ipv6_", "nf_", "nft_"].iter().any(|prefix| drop.function.starts_with(prefix));
    if drop.hook.is_none() && !by_ip {
        return None;
    }
    let netns = match &step.netns {
        Owner::Host => Netns::Host,
        Owner::Pod { uid } => Netns::Pod(uid.clone()),
        Owner::Unknown { .. } => return None,
    };
    // As it came in: the rules translate it again.
    let lost = events.iter().find(|event| is_this_drop(event, step))?;
    let at = lost.at_ns;
    // Only where it is the size that is looked into: what is asked about otherwise begins a connection.
    let length = u16::try_from(lost.length).ok().filter(|_| matches!(pick, Pick::Above { .. }));
    let entered = events
        .iter()
        .rev()
        .find(|event| event.at_ns <= at && event.netns == step.netns && event.point == TagPoint::Received);
    let (origin, ends) = match entered {
        Some(event) => {
            let ends = (event.source, event.source_port, event.destination, event.destination_port);
            (FateOrigin::Received(FateInterfaceKey::Index(event.ifindex)), ends)
        }
        None => {
            let (source, destination) = (step.ends.source, step.ends.destination);
            (FateOrigin::Sent, (source.ip(), source.port(), destination.ip(), destination.port()))
        }
    };
    let (source, source_port, destination, destination_port) = ends;
    let ports = (Some(source_port), Some(destination_port));
    let transport = match protocol {
        Protocol::Tcp => FateTransport::Tcp { source_port: ports.0, destination_port: ports.1, flags: SYN },
        Protocol::Udp => FateTransport::Udp { source_port: ports.0, destination_port: ports.1 },
        Protocol::Icmp => FateTransport::Icmp { kind: ECHO_REQUEST, code: 0, identifier: source_port },
        Protocol::Icmpv6 => FateTransport::Icmp { kind: ECHO_REQUEST_V6, code: 0, identifier: source_port },
        Protocol::Sctp | Protocol::Ipip => return None,
    };
    let request = FateRequest { length, ..FateRequest::new(origin, Some(source), destination, transport) };
    Some((Place { node: step.node.clone(), netns }, request))
}

fn is_this_drop(event: &TagEvent, step: &Step) -> bool {
    // Rules are asked about first packets: what they do with an answer depends on the connection as it was then.
    event.direction == PacketDirection::Original
        && matches!(event.point, TagPoint::Dropped { .. })
        && event.netns == step.netns
        && (event.source, event.source_port) == (step.ends.source.ip(), step.ends.source.port())
        && (event.destination, event.destination_port) == (step.ends.destination.ip(), step.ends.destination.port())
}

fn malformed(need: &Need) -> Gap {
    Gap {
        what: format!("{} of node {}", need.topic.name(), need.node),
        node: Some(need.node.clone()),
        reason: GapReason::Malformed,
        why: "the agent answered something else".to_owned(),
        remedy: "upgrade netdiag-node to the server's version".to_owned(),
    }
}

fn too_many(asked: &Asked) -> Gap {
    Gap {
        what: "the packet's way to each endpoint".to_owned(),
        node: None,
        reason: GapReason::NotAllowed,
        why: format!(
            "it may be translated to {} tuples, an agent follows {MAX_TAG_ALTERNATIVES}",
            asked.alternatives.len()
        ),
        remedy: "probe single endpoints".to_owned(),
    }
}
