//! One packet followed through every network namespace on its way and back: what each of them will do with it, by its own rules
//! and routes, and what their kernels say they did with one that was sent.
//!
//! The prediction is made of [`Fate`]s: each node evaluates the packet in one namespace, and what leaves there is asked for in
//! the next. Of what leaves by a tunnel, the outer packet is followed to the other node first. The proof is the kernels' own trace of
//! one connection, in the same namespaces; or, where agents change nothing, what the rules count while connections are attempted.

mod agree;
mod armed;
mod counters;
#[cfg(test)]
pub(crate) mod example;
mod follow;
mod next;
mod request;
mod returned;
mod tunnel;

use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use netdiag_common::forwarding::conntrack::Entry;
use netdiag_common::forwarding::path::End;
use netdiag_common::forwarding::{Path, Without};
use netdiag_common::observation::fate::{Fate, FateRequest};
use netdiag_common::{Gap, Netns, Tier};

pub use agree::{Agreement, Compared, Side, compare};
pub use armed::{Sent, Traced};
pub use counters::{Counted, is_certain};
pub use follow::{Begins, Followed, ways};
pub(crate) use tunnel::TUNNELS;
pub use tunnel::{Carrier, Tunnels};

use crate::ask::{AskError, Source};
use crate::evidence::Cluster;
use crate::path;
use crate::question::Question;

/// One network namespace of one node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub node: String,
    pub netns: Netns,
}

/// There, or back again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Direction {
    Forward,
    Reply,
}

/// One namespace's part of a way.
#[derive(Debug, Clone)]
pub struct Leg {
    pub direction: Direction,
    pub place: Place,
    pub request: FateRequest,
    /// What that namespace makes of it, and which of its paths this way takes.
    pub fate: Arc<Fate>,
    /// When the namespace was read.
    pub at: Timestamp,
    pub path: usize,
    /// None where the packet is the one that was asked about.
    pub carrier: Option<Carrier>,
}

/// One way that a packet and its answer can take.
#[derive(Debug, Clone)]
pub struct Way {
    pub legs: Vec<Leg>,
    pub end: WayEnd,
}

/// Where a way ends.
#[derive(Debug, Clone, PartialEq)]
pub enum WayEnd {
    /// The answer is back at who asked.
    Answered,
    /// In this namespace, by a rule, a route, or what else the last leg's path ends with.
    Stopped,
    /// In this namespace, by a tunnel's device that has nobody to send to, or by none that takes what the tunnel carries.
    TunnelDrops { why: String },
    /// No socket takes what is delivered; TCP is answered with a reset.
    NobodyListens { address: IpAddr, port: u16 },
    /// To an address that belongs to no node and no pod.
    LeftCluster { to: IpAddr },
    /// The answer is delivered where nobody asked.
    Astray,
    /// The answer is back, and comes from this address instead of the one that the packet was sent to: it did not meet the rules that
    /// would have translated it.
    Untranslated { from: IpAddr, why: String },
    /// It could not be followed further.
    Unseen { gap: Box<Gap> },
    /// More namespaces than any packet needs: it goes in a circle.
    Circle,
}

/// The answer to a question, and the objects that it is about.
#[derive(Debug, Clone)]
pub struct Follow {
    pub cluster: Arc<Cluster>,
    pub path: path::Path,
    /// One for each address of the target.
    pub traces: Vec<Trace>,
    /// Rules that were taken not to be there.
    pub without: Without,
}

/// Everything that is said about one address family.
#[derive(Debug, Clone)]
pub struct Trace {
    pub destination: IpAddr,
    pub followed: Followed,
    /// None when nothing was sent that kernels traced.
    pub traced: Option<Traced>,
    /// None when nothing was sent that rules counted.
    pub counted: Option<Counted>,
}

impl Leg {
    pub fn path(&self) -> &Path {
        &self.fate.outcome.paths[self.path]
    }

    /// The entry of connection tracking as the namespace has it now.
    fn connection(&self) -> Option<&Entry> {
        self.path().connection.as_ref()
    }
}

impl Way {
    /// Something that was seen keeps the packet, or its answer, from arriving.
    pub fn is_stopped(&self) -> bool {
        match self.end {
            WayEnd::Answered | WayEnd::Unseen { .. } | WayEnd::LeftCluster { .. } => false,
            WayEnd::Stopped => self.legs.last().is_some_and(|leg| !matches!(leg.path().end, End::Unknown { .. })),
            WayEnd::NobodyListens { .. }
            | WayEnd::TunnelDrops { .. }
            | WayEnd::Astray
            | WayEnd::Untranslated { .. }
            | WayEnd::Circle => true,
        }
    }

    /// How often the kernels take it; none when that depends on what is not known.
    pub fn chance(&self) -> Option<f64> {
        self.legs.iter().try_fold(1.0, |product, leg| Some(product * leg.path().chance()?))
    }
}

/// Follows the packet for each family that the target has, and sends one when the question allows it. What is sent meets the rules
/// that are left out: whoever leaves out any asks passively. Agents log who asked when they arm a trace.
pub async fn trace<S: Source>(
    source: &S,
    question: &Question,
    without: Without,
    asked_by: Option<&str>,
) -> Result<Follow, AskError> {
    let cluster = source.cluster().await?;
    let path = path::resolve(question, &cluster, None)?;
    let mut traces = Vec::new();
    let source_port = source_port(source.now());
    for destination in path.addresses.clone() {
        let ends = (source_port, destination);
        let followed = follow::follow(source, &cluster, &path, ends, &without, question.budget).await;
        let traced = match question.tier {
            Tier::Trace => Some(armed::run(source, &path, ends, &followed, asked_by).await),
            Tier::Passive | Tier::Probe => None,
        };
        let counted = match question.tier {
            Tier::Probe => Some(counters::run(source, &path, destination, &followed).await),
            Tier::Passive | Tier::Trace => None,
        };
        traces.push(Trace { destination, followed, traced, counted });
    }
    Ok(Follow { cluster, path, traces, without })
}

/// Beyond what kernels choose by themselves (`ip_local_port_range` ends at 60999). Another one each time: a connection that has
/// ended keeps its port for a minute.
fn source_port(now: Timestamp) -> u16 {
    const FIRST: u16 = 61_001;
    const PORTS: i64 = 4_500;
    FIRST + u16::try_from(now.as_millisecond().rem_euclid(PORTS)).unwrap_or_default()
}
