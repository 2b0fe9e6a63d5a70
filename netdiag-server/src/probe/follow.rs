//! Attempts that kernels follow: one after the other, each from a port that is known before it is sent, until one fails.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use netdiag_common::observation::series::MAX_SERIES_MS;
use netdiag_common::{Gap, GapReason};

use super::kind::Kind;
use super::plan::{self, Aim, MAX_REQUEST_MS, Plan, Shot};
use super::rights::Rights;
use super::run::{Sender, Series, Wish, over};
use super::tally::Tally;
use super::words::ProbeRequest;
use crate::ask::Source;
use crate::followed::{self, End, Followed};

mod tuple;

use tuple::{asked, ends, from_port};

/// Most attempts of one request that are followed: each keeps a tag armed on every node of its way for some eight seconds.
pub const MAX_FOLLOWED: u32 = 5;
/// Longest timeout of one of them, milliseconds: a tag ends after 30 s.
pub(super) const MAX_FOLLOWED_MS: u64 = 20_000;
/// Where an attempt's port is chosen: above the ports that Linux gives by itself (ip_local_port_range, 32768 to 60999).
const FIRST_PORT: u16 = 61_000;
const PORTS: u16 = 4_000;

/// Whether all that is aimed at has a tuple before it is sent.
pub(super) fn is_possible(aim: &Aim, request: &ProbeRequest) -> bool {
    match aim {
        Aim::Shots(shots) => shots.iter().all(|shot| ends(&shot.probe).is_some()),
        Aim::Lookup { .. } => matches!(request.kind, Kind::Tcp | Kind::Tls | Kind::Udp | Kind::Icmp | Kind::Raw),
        Aim::Servers { .. } | Aim::Service => false,
    }
}

impl<S: Source, R: Rights> Sender<'_, S, R> {
    /// Sends to each target until an attempt fails; tells the way of the last one.
    pub(super) async fn follow(&self, plan: &Plan, shots: &[Shot]) -> (Vec<Series>, Vec<Gap>) {
        let started = Instant::now();
        let mut gaps: Vec<Gap> = Vec::new();
        let mut all = Vec::new();
        for shot in shots {
            let (to, tally) = (shot.to.clone(), Tally::default());
            let mut series = Series { to, tally, followed: None, compared: None, back: None };
            for attempt in 0..plan.request.count() {
                let left = plan.request.count() - attempt;
                if started.elapsed() > Duration::from_millis(MAX_REQUEST_MS - MAX_SERIES_MS) {
                    series.tally.join(Tally::none(left, &over()), 0);
                    break;
                }
                let later_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
                let (tally, followed) = self.follow_one(plan, shot).await;
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
            all.push(series);
        }
        (all, gaps)
    }

    async fn follow_one(&self, plan: &Plan, shot: &Shot) -> (Tally, Followed) {
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
        let wish = Wish { client: plan.client.clone(), shot, schedule };
        let request = self.request(plan, &wish, 1);
        let need = plan::need(&plan.client, request.clone());
        let asked = asked(&self.cluster, &plan.client, (protocol, to), port);
        let (reading, mut followed) = followed::follow(self.source, &asked, &request).await;
        let tally = match self.read(&need, reading.as_ref(), 1) {
            Ok(tally) => tally,
            Err(gap) => {
                let none = Tally::none(1, &gap.why);
                followed.gaps.push(*gap);
                none
            }
        };
        if tally.succeeded > 0 && !followed.steps.is_empty() {
            // Answers to a query from a port that nobody knew before have no tag.
            followed.end = End::Answered;
        }
        if followed.end == End::Lost && !self.cluster.has_address(to.ip()) {
            followed.gaps.push(beyond(&followed, to));
        }
        (tally, followed)
    }
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
