//! Attempts that kernels follow: one after the other, each from a port that is known before it is sent, until one fails. Of
//! a ladder and of a matrix it is what failed first, sent once more.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netdiag_common::observation::series::path::PathBy;
use netdiag_common::observation::series::{MAX_SERIES_MS, Probe};
use netdiag_common::{Gap, GapReason};

use super::kind::Kind;
use super::plan::{self, Aim, MAX_REQUEST_MS, Plan, Shot};
use super::rights::Rights;
use super::run::{Sender, Series, Wish, addresses, over, wish_of_name};
use super::tally::Tally;
use super::words::ProbeRequest;
use crate::ask::Source;
use crate::followed::{self, End, Followed};
use crate::path::Client;

mod tuple;

use tuple::{asked, ends, from_port, name_of};

/// Most attempts of one request that are followed: each keeps a tag armed on every node of its way for some eight seconds.
pub const MAX_FOLLOWED: u32 = 5;
/// Longest timeout of one of them, milliseconds: a tag ends after 30 s.
pub(super) const MAX_FOLLOWED_MS: u64 = 20_000;
/// Where an attempt's port is chosen: above the ports that Linux gives by itself (ip_local_port_range, 32768 to 60999).
const FIRST_PORT: u16 = 61_000;
const PORTS: u16 = 4_000;

const BY_ECHO: &str = "nothing that a kernel program reads tells its echoes apart: use --by udp or --by tcp";
const TOO_MANY: &str = "it sends more packets than an agent tells of: tcp follows the beginning of such a connection";
const BY_RESOLVER: &str =
    "nobody knows before it is sent from which port which server is asked: name one --server, which is asked by UDP";

/// What failed among other ways, and is to be sent once more.
#[derive(Debug, Clone)]
pub(super) struct Failing {
    pub wish: Wish,
    /// Other attempts of it got through.
    pub is_flaky: bool,
}

impl Failing {
    /// None when all of it got through.
    pub(super) fn of(wish: &Wish, tally: &Tally) -> Option<Self> {
        (tally.failed > 0).then(|| Self { wish: wish.clone(), is_flaky: tally.succeeded > 0 })
    }

    /// Whether its way can be followed.
    pub(super) fn has_tuple(&self) -> bool {
        untold(&self.wish.shot.probe).is_none()
    }
}

/// Why what is aimed at cannot be followed: it has no tuple before it is sent.
pub(super) fn why_not(aim: &Aim, request: &ProbeRequest) -> Option<&'static str> {
    match aim {
        Aim::Shots(shots) => shots.iter().find_map(|shot| untold(&shot.probe)),
        Aim::Lookup { port, .. } if request.kind == Kind::Path => {
            let is_by_echo = request.options.by.map_or(port.is_none(), |by| by == PathBy::Icmp);
            is_by_echo.then_some(BY_ECHO)
        }
        Aim::Lookup { .. } => (request.kind == Kind::Throughput).then_some(TOO_MANY),
        Aim::Servers { .. } => Some(BY_RESOLVER),
        Aim::Service => None,
    }
}

fn untold(probe: &Probe) -> Option<&'static str> {
    if ends(probe).is_some() || name_of(probe).is_some() {
        return None;
    }
    Some(match probe {
        Probe::Path(_) => BY_ECHO,
        Probe::Throughput(_) => TOO_MANY,
        _ => BY_RESOLVER,
    })
}

/// For how long a request that began then may still begin something.
fn left(started: Instant) -> Duration {
    Duration::from_millis(MAX_REQUEST_MS - MAX_SERIES_MS).saturating_sub(started.elapsed())
}

impl<S: Source, R: Rights> Sender<'_, S, R> {
    /// Sends to each target until an attempt fails; tells the way of the last one that was followed. What is more than
    /// [`MAX_FOLLOWED`] is sent without.
    pub(super) async fn follow(&self, plan: &Plan, shots: &[Shot], started: Instant) -> (Vec<Series>, Vec<Gap>) {
        let mut gaps: Vec<Gap> = Vec::new();
        let mut all = Vec::new();
        for shot in shots {
            let followed = plan.request.count().min(MAX_FOLLOWED);
            let mut series = self.follow_until(plan, (&plan.client, shot), followed, started, &mut gaps).await;
            let rest = plan.request.count() - followed;
            if rest > 0 && series.tally.succeeded == u64::from(followed) {
                let (tally, unseen) = self.send_rest(plan, shot, rest, started).await;
                series.tally.join(tally, micros(started.elapsed()));
                gaps.extend(unseen);
            }
            all.push(series);
        }
        (all, gaps)
    }

    /// Sends what failed once more, several times where it fails sometimes; tells the way of the one that fails again.
    pub(super) async fn follow_again(
        &self,
        plan: &Plan,
        failing: &Failing,
        started: Instant,
    ) -> (Vec<Series>, Vec<Gap>) {
        let Wish { client, shot, .. } = &failing.wish;
        if let Some(why) = untold(&shot.probe) {
            let gap = Gap {
                what: format!("the way of the packets to {}", shot.to),
                node: Some(client.node.clone()),
                reason: GapReason::NotAllowed,
                why: why.to_owned(),
                remedy: "follow a probe of its own".to_owned(),
            };
            return (Vec::new(), vec![gap]);
        }
        let (shots, mut all, mut gaps) = self.resolved(plan, vec![shot.clone()]).await;
        let count = if failing.is_flaky { MAX_FOLLOWED } else { 1 };
        for shot in shots {
            let mut series = self.follow_until(plan, (client, &shot), count, started, &mut gaps).await;
            series.to = format!("{} once more, from {}", shot.to, plan::words_of(client));
            all.push(series);
        }
        (all, gaps)
    }

    /// The shots with addresses: names are looked up first, as the client's programs do. The lookups, too.
    pub(super) async fn resolved(&self, plan: &Plan, shots: Vec<Shot>) -> (Vec<Shot>, Vec<Series>, Vec<Gap>) {
        let (mut known, mut lookups, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
        for shot in shots {
            let Some((name, port)) = name_of(&shot.probe) else {
                known.push(shot);
                continue;
            };
            let (lookup, unseen) = self.send(plan, &[wish_of_name(plan, &name)]).await;
            for address in addresses(&lookup).into_iter().filter(|address| plan.request.family.holds(*address)) {
                let to = SocketAddr::new(address, port);
                let mut shot = Shot { to: format!("{} at {to}", shot.to), ..shot.clone() };
                if let Probe::Http(probe) = &mut shot.probe {
                    probe.to = Some(to);
                }
                known.push(shot);
            }
            lookups.extend(lookup);
            gaps.extend(unseen);
        }
        (known, lookups, gaps)
    }

    /// At most so many attempts, until one fails.
    async fn follow_until(
        &self,
        plan: &Plan,
        (client, shot): (&Client, &Shot),
        count: u32,
        started: Instant,
        gaps: &mut Vec<Gap>,
    ) -> Series {
        let (to, tally) = (shot.to.clone(), Tally::default());
        let mut series = Series { to, tally, followed: None, compared: None, back: None };
        for attempt in 0..count {
            if left(started).is_zero() {
                series.tally.join(Tally::none(count - attempt, &over()), 0);
                break;
            }
            let later_us = micros(started.elapsed());
            let (tally, followed) = self.follow_one(plan, client, shot).await;
            let is_last = tally.failed > 0 || tally.made == 0;
            series.tally.join(tally, later_us);
            for gap in &followed.gaps {
                if !gaps.contains(gap) {
                    gaps.push(gap.clone());
                }
            }
            series.followed = Some(followed);
            if is_last {
                break;
            }
        }
        series
    }

    /// Attempts beyond those that are followed.
    async fn send_rest(&self, plan: &Plan, shot: &Shot, rest: u32, started: Instant) -> (Tally, Vec<Gap>) {
        let schedule = plan::Schedule { count: rest, ..plan::schedule(&plan.request, 1) };
        let wish = Wish { client: plan.client.clone(), shot: shot.clone(), schedule };
        let (series, gaps) = self.send_within(plan, &[wish], left(started)).await;
        let mut tally = series.into_iter().next().map(|series| series.tally).unwrap_or_default();
        if tally.made > 0 {
            tally.unseen.push(format!(
                "the ways of {} attempts, of which {} failed: {MAX_FOLLOWED} are followed at most, since each keeps a tag \
                 armed on every node of its way for some eight seconds",
                tally.made, tally.failed
            ));
        }
        (tally, gaps)
    }

    async fn follow_one(&self, plan: &Plan, client: &Client, shot: &Shot) -> (Tally, Followed) {
        let mut shot = shot.clone();
        // The clock chooses: a connection of the same ports may have been there a moment before.
        let chosen = u16::try_from(self.source.now().as_microsecond().rem_euclid(PORTS.into())).unwrap_or_default();
        let port = from_port(&mut shot.probe, FIRST_PORT + chosen);
        let Some((protocol, to)) = ends(&shot.probe) else {
            let why = "nobody knows before it is sent where it goes, so it could not be followed";
            let followed = Followed { steps: Vec::new(), end: End::NotSeen, gaps: Vec::new() };
            return (Tally::none(1, why), followed);
        };
        let schedule = plan::Schedule { count: 1, ..plan::schedule(&plan.request, 1) };
        let wish = Wish { client: client.clone(), shot, schedule };
        let request = self.request(plan, &wish, 1);
        let need = plan::need(client, request.clone());
        let asked = asked(&self.cluster, client, (protocol, to), port);
        let (reading, mut followed) = followed::follow(self.source, &asked, &request).await;
        let tally = match self.read(&need, reading.as_ref(), 1) {
            Ok(tally) => tally,
            Err(gap) => {
                let none = Tally::none(1, &gap.why);
                followed.gaps.push(*gap);
                none
            }
        };
        // Of a search the packet is followed that is too big, whatever else was answered.
        let is_search = matches!(wish.shot.probe, Probe::PathMtu(_));
        if tally.succeeded > 0 && !followed.steps.is_empty() && !is_search {
            // Answers to a query from a port that nobody knew before have no tag.
            followed.end = End::Answered;
        }
        if followed.end == End::Lost && !self.cluster.has_address(to.ip()) {
            followed.gaps.push(beyond(&followed, to));
        }
        (tally, followed)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn beyond(followed: &Followed, to: SocketAddr) -> Gap {
    let last = followed.steps.last().map(|step| step.node.clone());
    Gap {
        what: "the packet's way beyond the cluster".to_owned(),
        why: format!("{} belongs to no pod, node or Service, so no agent is there", to.ip()),
        node: last,
        reason: GapReason::NoAgent,
        remedy: "netdiag probe path to the same address shows the hops on the way".to_owned(),
    }
}
