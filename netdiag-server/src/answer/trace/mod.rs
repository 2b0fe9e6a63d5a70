//! A packet's way through the cluster, predicted and traced, schema `netdiag.trace/v1`.

use jiff::Timestamp;
use netdiag_common::{Gap, Netns};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{NotSeen, not_seen};
use crate::evidence::Cluster;
use crate::path::Path;
use crate::path::filter::{PolicyChains, ServiceChains};
use crate::trace::{Agreement, Carrier, Compared, Counted, Direction, Follow, Leg, Place, Sent, Side, Trace, WayEnd};

mod decision;
#[cfg(test)]
mod example;
mod link;
mod text;
mod what_if;
mod words;

pub use what_if::{EffectName, WhatIf, WithoutEntry, WithoutPlace};
pub(super) use words::stopped;

pub const TRACE_SCHEMA: &str = "netdiag.trace/v1";

/// What `netdiag trace` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TraceAnswer {
    /// Always `netdiag.trace/v1`.
    pub schema: String,
    pub cluster: String,
    /// RFC 3339.
    #[schemars(with = "String")]
    pub at: Timestamp,
    pub from: String,
    pub to: String,
    /// Rules that were taken not to be there; none when the answer is about what is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub what_if: Option<WhatIf>,
    /// One for each address of the target.
    pub families: Vec<FamilyEntry>,
    pub not_seen: Vec<NotSeen>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct FamilyEntry {
    /// `tcp 10.96.0.20:80`
    pub destination: String,
    /// How the connection attempt ended, or how many of several got through; empty when none was made.
    pub sent: String,
    pub agreement: AgreementName,
    /// What the rules counted while connections were attempted; none when that was not asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counters: Option<CountersEntry>,
    /// What the kernel can do with the packet, most likely first.
    pub ways: Vec<WayEntry>,
    /// There are further ways, which were not followed.
    pub cut: bool,
}

/// The rules' counters before and after connection attempts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CountersEntry {
    /// Rules on the ways that have a counter.
    pub rules: usize,
    /// Of those that every attempt passes: how many counted less than predicted.
    pub fewer: usize,
}

/// Whether the kernels' trace is the prediction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum AgreementName {
    /// Each decision was in both, in this order.
    Same,
    Differs,
    /// Nothing was traced.
    NotTraced,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct WayEntry {
    /// How often the kernels take this way, 0 to 1; none when that depends on what is not known.
    pub chance: Option<f64>,
    /// The packet that was sent went this way.
    pub taken: bool,
    pub end: String,
    /// The answer came back.
    pub answered: bool,
    /// The packet or its answer is stopped by something that was seen.
    pub stopped: bool,
    pub legs: Vec<LegEntry>,
}

/// One network namespace on the way.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct LegEntry {
    /// The server's answer, on its way back.
    pub reply: bool,
    pub node: String,
    /// `pod shop/client`, or `node`.
    pub place: String,
    /// `outer packet of flannel.1 (VXLAN, VNI 1, UDP port 8472)`, around the packet of an earlier leg; none for the packet itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tunnel: Option<String>,
    /// `tcp 10.244.1.5:61997 → 10.96.0.20:80`, as it comes in.
    pub packet: String,
    /// The interface it arrives on; empty where a process sends it.
    pub interface: String,
    pub agreement: AgreementName,
    pub decisions: Vec<DecisionEntry>,
    /// What holds on this way where the kernel chooses, or where something is not known.
    pub assumptions: Vec<String>,
    /// What is on the way and was not evaluated.
    pub gaps: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DecisionEntry {
    pub what: String,
    pub predicted: bool,
    /// None for what the kernel does not trace, and where nothing was traced.
    pub traced: Option<bool>,
    /// Who wrote the rule, by the names of its table and chains: `kube-proxy`, `Calico`, `an administrator`; empty for other decisions.
    pub owner: String,
    /// The Service, pod, zone of a firewall, policy or interface that the rule is for; empty when it is for none, or for many.
    pub object: String,
    /// Packets that the rule's own counter had before; none for rules without one.
    pub packets: Option<u64>,
    /// Packets that it counted while connections were attempted; of everybody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<u64>,
    /// Packets that it should have counted at least; none where that depends on what is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<f64>,
}

/// Puts what was followed and traced into words. Pure.
pub fn build(followed: &Follow, at: Timestamp) -> TraceAnswer {
    let Follow { cluster, path, traces, .. } = followed;
    let mut gaps: Vec<&Gap> = Vec::new();
    let mut families = Vec::new();
    let world = World { cluster, chains: Chains::of(cluster) };
    for trace in traces {
        gaps.extend(&trace.followed.gaps);
        if let Some(traced) = &trace.traced {
            gaps.extend(&traced.gaps);
            if let Sent::Not { gap } = &traced.sent {
                gaps.push(gap);
            }
        }
        if let Some(counted) = &trace.counted {
            gaps.extend(&counted.gaps);
            if let Sent::Not { gap } = &counted.sent {
                gaps.push(gap);
            }
        }
        for way in &trace.followed.ways {
            if let WayEnd::Unseen { gap } = &way.end {
                gaps.push(gap);
            }
            gaps.extend(way.legs.iter().flat_map(|leg| &leg.fate.unseen));
        }
        families.push(family(&world, path, trace));
    }
    TraceAnswer {
        schema: TRACE_SCHEMA.to_owned(),
        cluster: cluster.name.clone(),
        at,
        from: path.question.from.to_string(),
        to: path.question.to.to_string(),
        what_if: what_if::of(followed),
        families,
        not_seen: not_seen::grouped(gaps),
    }
}

fn family(world: &World<'_>, path: &Path, trace: &Trace) -> FamilyEntry {
    let port = path.port.unwrap_or_default();
    let ways = &trace.followed.ways;
    let taken = trace.traced.as_ref().and_then(|traced| traced.taken(ways));
    let entries: Vec<WayEntry> = ways
        .iter()
        .map(|way| {
            let is_taken = taken.is_some_and(|taken| std::ptr::eq(taken, way));
            let traced = trace.traced.as_ref().filter(|_| is_taken);
            let counted = trace.counted.as_ref();
            let leg = |leg: &Leg| self::leg(world, leg, traced.and_then(|traced| traced.compare(leg)), counted);
            WayEntry {
                chance: way.chance(),
                taken: is_taken,
                end: words::end(way),
                answered: way.end == WayEnd::Answered,
                stopped: way.is_stopped(),
                legs: way.legs.iter().map(leg).collect(),
            }
        })
        .collect();
    let seen = |wanted| {
        let legs = || entries.iter().filter(|way| way.taken).flat_map(|way| &way.legs);
        legs().any(|leg| leg.agreement == wanted)
    };
    let agreement = match () {
        () if seen(AgreementName::Differs) => AgreementName::Differs,
        () if seen(AgreementName::Same) => AgreementName::Same,
        () => AgreementName::NotTraced,
    };
    let sent = match (&trace.traced, &trace.counted) {
        (Some(traced), _) => words::sent(&traced.sent),
        (None, Some(counted)) => words::sent(&counted.sent),
        (None, None) => String::new(),
    };
    let counters = trace.counted.as_ref().filter(|counted| matches!(counted.sent, Sent::Tried(_))).map(|counted| {
        let (rules, fewer) = counted.rules();
        CountersEntry { rules, fewer }
    });
    let address = std::net::SocketAddr::new(trace.destination, port);
    FamilyEntry {
        destination: format!("{} {address}", path.protocol),
        sent,
        agreement,
        counters,
        ways: entries,
        cut: trace.followed.cut,
    }
}

/// What names are taken from.
struct World<'c> {
    cluster: &'c Cluster,
    chains: Chains<'c>,
}

/// What rules are for, by the names of their chains.
struct Chains<'c> {
    services: ServiceChains<'c>,
    policies: PolicyChains<'c>,
}

impl<'c> Chains<'c> {
    fn of(cluster: &'c Cluster) -> Self {
        Self { services: ServiceChains::of(cluster), policies: PolicyChains::of(cluster) }
    }
}

fn leg(world: &World<'_>, leg: &Leg, compared: Option<Compared>, counted: Option<&Counted>) -> LegEntry {
    let agreement = match &compared {
        None => Agreement::NotTraced,
        Some(compared) if compared.is_same() => Agreement::Same,
        Some(_) => Agreement::Differs,
    };
    let sides = match compared {
        Some(compared) => compared.sides,
        None => leg.path().decisions.iter().cloned().map(Side::Untraced).collect(),
    };
    LegEntry {
        reply: leg.direction == Direction::Reply,
        node: leg.place.node.clone(),
        place: place(world.cluster, &leg.place),
        tunnel: leg.carrier.as_ref().map(Carrier::words),
        packet: words::packet(&leg.fate.packet),
        interface: words::arrival(leg),
        agreement: match agreement {
            Agreement::Same => AgreementName::Same,
            Agreement::Differs => AgreementName::Differs,
            Agreement::NotTraced => AgreementName::NotTraced,
        },
        decisions: link::arrival(leg)
            .into_iter()
            .chain(sides.iter().map(|side| decision::side(&world.chains, leg, side, counted)))
            .chain(link::departure(leg))
            .chain(decision::delivery(leg))
            .collect(),
        assumptions: leg.path().assumptions.iter().map(|assumption| words::assumption(leg, assumption)).collect(),
        gaps: leg.path().gaps.clone(),
    }
}

fn place(cluster: &Cluster, place: &Place) -> String {
    match &place.netns {
        Netns::Host => "node".to_owned(),
        Netns::Pod(uid) => match cluster.pods.iter().find(|pod| pod.metadata.uid == *uid) {
            Some(pod) => format!("pod {}/{}", pod.metadata.namespace, pod.metadata.name),
            None => format!("pod {uid}"),
        },
    }
}

impl TraceAnswer {
    /// On every way of every family the answer comes back, everything was seen, and what was traced or counted is what was predicted.
    pub fn is_healthy(&self) -> bool {
        let well = |family: &FamilyEntry| {
            family.agreement != AgreementName::Differs
                && family.counters.is_none_or(|counters| counters.fewer == 0)
                && !family.ways.is_empty()
                && family.ways.iter().all(|way| way.answered)
        };
        self.not_seen.is_empty() && !self.families.is_empty() && self.families.iter().all(well)
    }

    /// On some way the packet, or its answer, is stopped by something that was seen.
    pub fn is_stopped(&self) -> bool {
        self.families.iter().flat_map(|family| &family.ways).any(|way| way.stopped)
    }
}
