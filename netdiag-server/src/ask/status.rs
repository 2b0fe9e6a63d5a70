//! How netdiag itself is doing: every agent asked for its preflight.

use std::time::{Duration, Instant};

use futures::stream::{self, StreamExt};
use netdiag_common::observation::Observation;
use netdiag_common::{Gap, GapReason, Need, Reading, Topic};

use super::{LiveSource, Source, SourceError};
use crate::answer::NotSeen;
use crate::answer::status::{NodeStatus, Status};
use crate::evidence::{Cluster, KindName};
use crate::nodes::failure::Failure;

/// Agents asked at the same time, as for a question.
const IN_FLIGHT: usize = 64;
/// An agent that does not answer costs 1.5 s; a cluster of 1 000 dark nodes still ends.
const LIMIT: Duration = Duration::from_secs(30);

pub async fn status(source: &LiveSource) -> Result<Status, SourceError> {
    let cluster = source.cluster().await?;
    let deadline = Instant::now() + LIMIT;
    let names: Vec<String> = cluster.nodes.iter().map(|node| node.metadata.name.clone()).collect();
    let nodes = stream::iter(names)
        .map(|node| one(source, &cluster, node, deadline))
        .buffer_unordered(IN_FLIGHT)
        .collect()
        .await;
    let dark = KindName::ALL.into_iter().filter_map(|kind| kind.gap(&cluster));
    let not_seen = dark.chain(&cluster.unread).map(entry).collect();
    Ok(Status::new(&cluster.name, source.now(), nodes, not_seen))
}

async fn one(source: &LiveSource, cluster: &Cluster, node: String, deadline: Instant) -> NodeStatus {
    let need = Need::host(&node, Topic::Preflight);
    let Some(agents) = source.agents() else { return NodeStatus::dark(&node, &Failure::NotAsked.gap(&need)) };
    match agents.status(&node, source.dial(cluster, &node), deadline).await {
        Err(failure) => NodeStatus::dark(&node, &failure.gap(&need)),
        Ok((version, Reading::Seen { value: Observation::Preflight(preflight), .. })) => {
            NodeStatus::reachable(&node, &version, &preflight)
        }
        Ok((_, Reading::Unavailable { gap })) => NodeStatus::dark(&node, &gap),
        Ok((_, reading)) => NodeStatus::dark(&node, &strange(&need, &reading)),
    }
}

fn strange(need: &Need, reading: &Reading<Observation>) -> Gap {
    let why = match reading {
        Reading::Absent { .. } | Reading::NotAsked { .. } => "it did not say what it may do",
        Reading::Seen { .. } | Reading::Unavailable { .. } => "it answered with another topic",
    };
    let gap = Failure::Malformed(why.to_owned()).gap(need);
    Gap { reason: GapReason::Malformed, ..gap }
}

fn entry(gap: &Gap) -> NotSeen {
    NotSeen {
        what: gap.what.clone(),
        node: gap.node.clone().unwrap_or_default(),
        why: gap.why.clone(),
        remedy: gap.remedy.clone(),
    }
}
