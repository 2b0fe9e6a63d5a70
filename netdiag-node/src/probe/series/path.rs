//! The hops to a target: packets of one tuple with a TTL that grows, and who says that it ended.

mod flow;
mod tcp;
mod trail;

use std::time::Duration;

use netdiag_common::observation::series::path::PathBy;
use netdiag_common::observation::series::{PathProbe, ProbeReport, ProbeStage};

use super::context::{Context, Ending, silence};
use trail::{Stop, Trail};

pub(super) async fn attempt(context: &Context, probe: &PathProbe, within: Duration) -> Ending {
    if let Err(failure) = context.allow(probe.to.ip()) {
        return Ending::failed(None, Some(probe.to), failure);
    }
    let walked = match probe.by {
        PathBy::Icmp => {
            let mut to = probe.to;
            to.set_port(0);
            flow::walk(context, probe, to, within).await
        }
        PathBy::Udp => flow::walk(context, probe, probe.to, within).await,
        PathBy::Tcp => tcp::walk(context, probe, within).await,
    };
    match walked {
        Err(failure) => Ending::failed(None, Some(probe.to), failure),
        Ok((source, trail)) => Ending { source: Some(source), ..ended(probe, trail) },
    }
}

/// A path is a success when the target itself answered.
fn ended(probe: &PathProbe, trail: Trail) -> Ending {
    let failure = match trail.stopped() {
        Some(Stop::Reached) => None,
        Some(Stop::Refused(failure)) => Some(failure.clone()),
        None => {
            let last = trail.last_hop().map_or_else(
                || "no hop answered".to_owned(),
                |(ttl, hop)| format!("the last hop that answered is {hop} with TTL {ttl}"),
            );
            Some(silence(
                ProbeStage::Answer,
                format!("{} did not answer to TTLs up to {}; {last}", probe.to.ip(), trail.tried()),
            ))
        }
    };
    Ending { to: Some(probe.to), failure, report: ProbeReport::Path(trail.report()), ..Ending::default() }
}
