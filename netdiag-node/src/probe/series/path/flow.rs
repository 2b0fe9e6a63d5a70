//! By UDP or ICMP echo: packets follow each other before all answers are in, since each answer names its packet.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netdiag_common::observation::series::{PathProbe, ProbeFailure, ProbeStage};
use tokio::time::timeout_at;

use super::super::context::{Context, local, of_errno};
use super::super::flow::{Answer, Flow, Said};
use super::trail::{Heard, Trail, Word};

/// A hop that says nothing for so long does not hold up the next one.
const STALL: Duration = Duration::from_millis(100);
/// How long an answer may take at most.
const WAIT: Duration = Duration::from_secs(1);

/// What is on its way: TTL and time by number.
struct Walk {
    flow: Flow,
    trail: Trail,
    on_the_way: HashMap<u16, (u8, Instant)>,
}

/// To port 0: by ICMP. Round by round, so that a hop which limits its errors has time between ours.
pub(super) async fn walk(
    context: &Context,
    probe: &PathProbe,
    to: SocketAddr,
    within: Duration,
) -> Result<(SocketAddr, Trail), ProbeFailure> {
    let flow = Flow::open(context, to, probe.source_port).await?;
    let (source, smallest) = (flow.source(), flow.smallest());
    let mut walk = Walk { flow, trail: Trail::new(to.ip()), on_the_way: HashMap::new() };
    let over = Instant::now() + within;
    // Half of the time is for silent hops, half for the last answers of each round.
    let rounds = u32::from(probe.tries.max(1));
    let stall = STALL.min(within / (2 * rounds * u32::from(probe.max_hops.max(1))));
    let wait = WAIT.min(within / (2 * rounds));
    let mut number = 0;
    for _ in 0..rounds {
        for ttl in 1..=probe.max_hops {
            if walk.trail.is_beyond(ttl) || Instant::now() >= over {
                break;
            }
            number += 1;
            // Of UDP the length tells datagrams apart; echoes need the same one for their checksum's sake.
            let bytes = if to.port() == 0 { smallest } else { smallest + number };
            context.spend(1, bytes.into()).await;
            let begun = Instant::now();
            walk.flow.send(number, bytes, Some(ttl)).map_err(|error| of_errno(ProbeStage::Send, &error))?;
            walk.trail.sent(ttl);
            walk.on_the_way.insert(number, (ttl, begun));
            walk.listen(over.min(begun + stall), |walk| !walk.on_the_way.contains_key(&number)).await?;
        }
        walk.listen(over.min(Instant::now() + wait), Walk::is_quiet).await?;
    }
    Ok((source, walk.trail))
}

impl Walk {
    /// Until there is enough, or `until`.
    async fn listen(&mut self, until: Instant, enough: impl Fn(&Self) -> bool) -> Result<(), ProbeFailure> {
        while !enough(self) {
            match timeout_at(until.into(), self.flow.next()).await {
                Err(_) => break,
                Ok(answer) => self.take(answer.map_err(|error| local(ProbeStage::Answer, &error))?),
            }
        }
        Ok(())
    }

    /// Nothing is awaited any more that could still tell something.
    fn is_quiet(&self) -> bool {
        self.on_the_way.values().all(|(ttl, _)| self.trail.is_beyond(*ttl))
    }

    fn take(&mut self, answer: Answer) {
        // A server that is no echo: for the packet with the largest TTL, the first that can have come so far.
        let farthest = || self.on_the_way.iter().max_by_key(|(_, (ttl, _))| *ttl).map(|(number, _)| *number);
        let Some(number) = answer.number.or_else(farthest) else { return };
        let Some((ttl, begun)) = self.on_the_way.remove(&number) else { return };
        let said = match answer.said {
            Said::EchoReply => Word::Answer("echo reply"),
            Said::Datagram => Word::Answer("datagram"),
            Said::Error(error) => Word::Error(error),
        };
        let after = answer.at.saturating_duration_since(begun);
        self.trail.heard(ttl, Heard { from: answer.from, ttl: answer.ttl, after, said });
    }
}
