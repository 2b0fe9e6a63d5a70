//! One look at what nodes saw by themselves: each node concerned is asked once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Source, named};
use crate::answer::observe::{Observe, Start, build};
use crate::evidence::{Cluster, Evidence};
use crate::observed::{SelectError, Wanted};

/// An agent that is slower than its own 1.5 s is a gap of this look, and may be back in the next one.
const LIMIT: Duration = Duration::from_secs(3);

/// `cluster` is the source's, as old as the caller likes: names change slower than counters.
pub async fn observe<S: Source>(source: &S, cluster: Arc<Cluster>, wanted: &Wanted) -> Result<Observe, SelectError> {
    let selection = wanted.select(&cluster)?;
    let needs = wanted.needs(&selection);
    let readings = source.gather(needs.needs.into_iter().collect(), Instant::now() + LIMIT).await;
    let readings: Vec<_> = readings.into_iter().map(|(need, reading)| named(need, reading, &cluster)).collect();
    let evidence = Evidence::new(source.now(), cluster).with(source.now(), readings);
    let start = |node: &String| {
        let instance = source.instance(node).unwrap_or_default();
        (node.clone(), Start { instance, restarts: source.restarts(node) })
    };
    let starts = selection.nodes.iter().map(start).collect();
    Ok(build(&evidence, &selection, wanted, &starts, needs.left_out))
}
