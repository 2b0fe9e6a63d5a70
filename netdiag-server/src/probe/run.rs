//! Sending: agents are asked for series that they can answer in time, part after part, and the parts are joined.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::observation::Observation;
use netdiag_common::observation::series::dns::{DnsAsking, DnsProbe, DnsReport};
use netdiag_common::observation::series::{Identity, MAX_KEPT_ATTEMPTS, MAX_SERIES_MS, Probe, SeriesRequest};
use netdiag_common::{Gap, GapReason, Need, Reading};

use super::back::{self, Back};
use super::kind::Kind;
use super::ladder::{self, Ladder};
use super::matrix::{self, Matrix};
use super::plan::{self, Aim, Ends, MAX_REQUEST_MS, Plan, PlanError, Schedule, Shot};
use super::rights::{Denied, Rights};
use super::secret::{Compared, SecretName};
use super::shots;
use super::tally::Tally;
use crate::ask::Source;
use crate::ask::step::need_in_words;
use crate::evidence::Cluster;
use crate::followed::Followed;
use crate::path::Client;

/// What a lookup waits for, as resolvers do by themselves.
const LOOKUP_TIMEOUT_MS: u32 = 25_000;
/// Series that one agent runs at one time; it lets others wait, and their time runs on.
const SIDE_BY_SIDE: usize = 4;
/// Above the longest series: asking, entering the namespace, answering.
const PATIENCE: Duration = Duration::from_secs(5);

/// Everything that came of a request.
#[derive(Debug, Clone)]
pub struct Probed {
    pub cluster: Arc<Cluster>,
    pub plan: Plan,
    /// The name's own lookup first, where one was made.
    pub series: Vec<Series>,
    /// One for each family.
    pub ladders: Vec<Ladder>,
    pub matrix: Option<Matrix>,
    pub gaps: Vec<Gap>,
}

/// One series and what came of it.
#[derive(Debug, Clone)]
pub struct Series {
    pub to: String,
    pub tally: Tally,
    /// The way of the last attempt, where it was to be followed.
    pub followed: Option<Followed>,
    /// What is served beside the Secret that was named.
    pub compared: Option<Compared>,
    /// It is the way back of another one.
    pub back: Option<Back>,
}

/// Why nothing was sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    #[error(transparent)]
    Right(#[from] Denied),
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// One series that is wanted.
#[derive(Debug, Clone)]
pub(super) struct Wish {
    pub client: Client,
    pub shot: Shot,
    pub schedule: Schedule,
}

/// Who asks, and what may be sent on their behalf.
pub struct Sender<'s, S, R> {
    pub source: &'s S,
    pub cluster: Arc<Cluster>,
    pub rights: &'s R,
    /// For the agents' logs.
    pub asked_by: Option<String>,
}

/// Sends what was planned, when whoever asks may.
pub async fn run<S: Source, R: Rights>(sender: &Sender<'_, S, R>, plan: Plan) -> Result<Probed, RunError> {
    sender.rights.may_start(plan::namespace_of(&plan.client)).await?;
    let started = Instant::now();
    let cluster = sender.cluster.clone();
    let mut probed = Probed { cluster, plan, series: Vec::new(), ladders: Vec::new(), matrix: None, gaps: Vec::new() };
    let plan = &probed.plan;
    let shots = match &plan.aim {
        Aim::Service if plan.request.kind == Kind::Ladder => {
            let (ladders, gaps, failing) = ladder::climb(sender, plan).await?;
            (probed.ladders, probed.gaps) = (ladders, gaps);
            if let Some(failing) = failing.filter(|_| plan.request.follow) {
                let (series, gaps) = sender.follow_again(plan, &failing, started).await;
                probed.series = series;
                probed.gaps.extend(gaps);
            }
            return Ok(probed);
        }
        Aim::Service => {
            let (matrix, gaps, failing) = matrix::fill(sender, plan).await?;
            (probed.matrix, probed.gaps) = (Some(matrix), gaps);
            if let Some(failing) = failing.filter(|_| plan.request.follow) {
                let (series, gaps) = sender.follow_again(plan, &failing, started).await;
                probed.series = series;
                probed.gaps.extend(gaps);
            }
            return Ok(probed);
        }
        Aim::Shots(shots) => shots.clone(),
        Aim::Servers { name } => {
            let each = sender.each_server(plan, name).await;
            (probed.series, probed.gaps) = sender.send(plan, &each.wishes).await;
            probed.gaps.extend(each.gaps);
            if let Some(first) = probed.series.first_mut() {
                first.tally.unseen.extend(each.left_out);
            }
            return Ok(probed);
        }
        Aim::Lookup { name, port } => {
            let (lookup, gaps) = sender.send(plan, &[wish_of_name(plan, name)]).await;
            let end = |address| Ends { address, port: *port, name: Some(name.clone()) };
            let ends: Vec<Ends> = addresses(&lookup).into_iter().map(end).collect();
            // Without an address the lookup is the answer.
            let shots = plan::shots(&plan.request, &ends).unwrap_or_default();
            (probed.series, probed.gaps) = (lookup, gaps);
            shots
        }
    };
    let plan = &probed.plan;
    let (mut series, mut gaps) = if plan.request.follow {
        let (shots, lookups, gaps) = sender.resolved(plan, shots).await;
        probed.series.extend(lookups);
        probed.gaps.extend(gaps);
        let (mut series, gaps) = sender.follow(plan, &shots, started).await;
        back::tell_one_way(sender, plan, &shots, &mut series);
        (series, gaps)
    } else {
        let schedule = plan::schedule(&plan.request, 1);
        let wish = |shot| Wish { client: plan.client.clone(), shot, schedule };
        let wishes: Vec<Wish> = shots.into_iter().map(wish).collect();
        match plan.request.kind {
            Kind::Mtu => back::send_both(sender, plan, wishes).await,
            _ => sender.send(plan, &wishes).await,
        }
    };
    if let Some(secret) = &plan.request.options.secret {
        let secret = secret.parse::<SecretName>()?;
        for series in &mut series {
            let (compared, gap) = sender.compare(&series.tally, &secret).await;
            series.compared = Some(compared);
            gaps.extend(gap);
        }
    }
    probed.series.extend(series);
    probed.gaps.extend(gaps);
    Ok(probed)
}

/// That the lookups of names have found.
pub(super) fn addresses(lookups: &[Series]) -> Vec<IpAddr> {
    lookups.iter().filter_map(|lookup| lookup.tally.report::<DnsReport>()).flat_map(|report| report.addresses).collect()
}

pub(super) fn wish_of_name(plan: &Plan, name: &str) -> Wish {
    Wish { client: plan.client.clone(), shot: lookup(plan, name), schedule: LOOKUP }
}

pub(super) const LOOKUP: Schedule = Schedule { count: 1, interval_us: 0, timeout_ms: LOOKUP_TIMEOUT_MS, parallel: 1 };

/// As a program of the client's pod would look it up.
pub(super) fn lookup(plan: &Plan, name: &str) -> Shot {
    let probe = Probe::Dns(DnsProbe {
        name: name.to_owned(),
        records: shots::records(&plan.request),
        asking: DnsAsking::Lookup { together: true },
        edns_bytes: None,
    });
    Shot { to: name.to_owned(), probe }
}

/// A wish that is being fulfilled.
struct Open {
    tally: Tally,
    left: u32,
    part: u32,
    is_dead: bool,
}

impl<S: Source, R: Rights> Sender<'_, S, R> {
    /// Sends all of them side by side; each in as many requests as it takes.
    pub(super) async fn send(&self, plan: &Plan, wishes: &[Wish]) -> (Vec<Series>, Vec<Gap>) {
        self.send_within(plan, wishes, Duration::from_millis(MAX_REQUEST_MS)).await
    }

    /// The same; nothing begins when `limit` is over.
    pub(super) async fn send_within(&self, plan: &Plan, wishes: &[Wish], limit: Duration) -> (Vec<Series>, Vec<Gap>) {
        let started = Instant::now();
        let mut gaps: Vec<Gap> = Vec::new();
        let open = |wish: &Wish| Open {
            tally: Tally::default(),
            left: wish.schedule.count,
            part: first_part(&wish.schedule),
            is_dead: false,
        };
        let mut all: Vec<Open> = wishes.iter().map(open).collect();
        while all.iter().any(|open| open.left > 0 && !open.is_dead) && started.elapsed() < limit {
            let begun = Instant::now();
            let mut places: BTreeMap<&str, usize> = BTreeMap::new();
            let mut asked: Vec<(usize, Need, u32)> = Vec::new();
            for (index, (wish, open)) in wishes.iter().zip(&all).enumerate() {
                let place = places.entry(&wish.client.node).or_default();
                if open.left > 0 && !open.is_dead && *place < SIDE_BY_SIDE {
                    *place += 1;
                    let count = open.part.min(open.left);
                    asked.push((index, plan::need(&wish.client, self.request(plan, wish, count)), count));
                }
            }
            let mut needs: Vec<Need> = asked.iter().map(|(_, need, _)| need.clone()).collect();
            needs.sort();
            needs.dedup();
            let answers: BTreeMap<Need, Reading<Observation>> = self
                .source
                .gather(needs, begun + Duration::from_millis(MAX_SERIES_MS) + PATIENCE)
                .await
                .into_iter()
                .collect();
            let took = begun.elapsed();
            let mut wait = Duration::ZERO;
            for (index, need, count) in asked {
                let open = &mut all[index];
                let schedule = &wishes[index].schedule;
                let later_us = u64::try_from((begun - started).as_micros()).unwrap_or(u64::MAX);
                let part = match self.read(&need, answers.get(&need), count) {
                    Ok(part) => part,
                    Err(gap) => {
                        open.is_dead = true;
                        let none = Tally::none(count, &gap.why);
                        if !gaps.contains(&gap) {
                            gaps.push(*gap);
                        }
                        none
                    }
                };
                open.tally.join(part, later_us);
                open.left -= count;
                if schedule.interval_us == 0 && took.as_millis() * 4 < u128::from(MAX_SERIES_MS) {
                    open.part = open.part.saturating_mul(2).min(MOST);
                }
                if open.left > 0 && !open.is_dead {
                    let whole = Duration::from_micros(schedule.interval_us.saturating_mul(count.into()));
                    wait = wait.max(whole.saturating_sub(took));
                }
            }
            // The next part begins when its first attempt is due.
            tokio::time::sleep(wait.min(limit)).await;
        }
        let series = wishes.iter().zip(all).map(|(wish, mut open)| {
            if open.left > 0 {
                let why = if open.is_dead { open.tally.untried_because.clone() } else { over() };
                open.tally.join(Tally::none(open.left, &why), 0);
            }
            Series { to: wish.shot.to.clone(), tally: open.tally, followed: None, compared: None, back: None }
        });
        (series.collect(), gaps)
    }

    pub(super) fn request(&self, plan: &Plan, wish: &Wish, count: u32) -> SeriesRequest {
        SeriesRequest {
            probe: wish.shot.probe.clone(),
            count,
            interval_us: wish.schedule.interval_us,
            timeout_ms: wish.schedule.timeout_ms,
            parallel: wish.schedule.parallel,
            identity: Identity { uid: plan.request.uid, mark: plan.request.mark },
            asked_by: self.asked_by.clone(),
        }
    }

    /// What one agent told of `count` attempts.
    pub(super) fn read(
        &self,
        need: &Need,
        reading: Option<&Reading<Observation>>,
        count: u32,
    ) -> Result<Tally, Box<Gap>> {
        let what = || need_in_words(need, Some(&self.cluster));
        let strange = |why: &str| {
            Box::new(Gap {
                what: what(),
                node: Some(need.node.clone()),
                reason: GapReason::Malformed,
                why: why.to_owned(),
                remedy: "run the same version of netdiag-node and netdiag".to_owned(),
            })
        };
        match reading {
            Some(Reading::Seen { value: Observation::Series(result), .. }) if result.asked == count => {
                Ok(Tally::of(result, |address| object(&self.cluster, address)))
            }
            Some(Reading::Seen { value: Observation::Series(result), .. }) => Err(strange(&format!(
                "the agent of node {} tells of {} attempts, and {count} were asked for",
                need.node, result.asked
            ))),
            Some(Reading::Unavailable { gap }) => Err(Box::new(Gap { what: what(), ..gap.clone() })),
            _ => Err(strange(&format!("the agent of node {} answered something else than a series", need.node))),
        }
    }

    /// None when probes may start there; else why not.
    pub(super) async fn not_allowed(&self, client: &Client) -> Option<String> {
        self.rights.may_start(plan::namespace_of(client)).await.err().map(|denied| denied.to_string())
    }
}

pub(super) fn over() -> String {
    format!("the {} s of one request were over", MAX_REQUEST_MS / 1_000)
}

/// Attempts that an agent tells one by one: so that each one's endpoint is known.
const MOST: u32 = {
    assert!(MAX_KEPT_ATTEMPTS <= u32::MAX as usize, "a count of attempts is 32 bits");
    #[expect(clippy::cast_possible_truncation, reason = "asserted above")]
    {
        MAX_KEPT_ATTEMPTS as u32
    }
};

/// So many that an agent is in time even when each takes its whole timeout, or, with an interval, as the interval says.
fn first_part(schedule: &Schedule) -> u32 {
    let timeout = u64::from(schedule.timeout_ms.max(1));
    let in_turn = (MAX_SERIES_MS / timeout).max(1) * u64::from(schedule.parallel);
    let by_interval = match schedule.interval_us {
        0 => u64::MAX,
        interval => MAX_SERIES_MS.saturating_sub(timeout) * 1_000 / interval + 1,
    };
    u32::try_from(if schedule.interval_us == 0 { in_turn } else { by_interval }).unwrap_or(MOST).clamp(1, MOST)
}

/// `pod shop/web-1 on n1`, `node n2`; empty when nobody of the cluster has the address.
pub(super) fn object(cluster: &Cluster, address: SocketAddr) -> String {
    if let Some(pod) = cluster.pod_by_address(address.ip()) {
        return format!("pod {}/{} on {}", pod.metadata.namespace, pod.metadata.name, pod.spec.node_name);
    }
    cluster.node_by_address(address.ip()).map(|node| format!("node {}", node.metadata.name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_large_as_an_agent_answers_in_time() {
        let of = |count, interval_us, timeout_ms, parallel| {
            first_part(&Schedule { count, interval_us, timeout_ms, parallel })
        };
        assert_eq!(of(100, 0, 5_000, 1), 6);
        assert_eq!(of(100, 0, 5_000, 10), 60);
        assert_eq!(of(100, 0, 25_000, 1), 1);
        assert_eq!(of(100_000, 0, 10, 1_000), MOST);
        assert_eq!(of(100, 1_000_000, 5_000, 5), 26);
        assert_eq!(of(100_000, 10, 5_000, 1_000), MOST);
    }
}
