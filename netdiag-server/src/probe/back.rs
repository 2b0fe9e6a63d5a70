//! The way back of a path MTU: where the far side is a pod of the cluster, it searches too, and each way has its own value.

use std::net::IpAddr;

use netdiag_common::observation::series::{PathMtuProbe, Probe};

use super::plan::{self, Plan, Schedule, Shot};
use super::rights::Rights;
use super::run::{Sender, Series, Wish};
use crate::ask::Source;
use crate::path::Client;

const ONE_WAY: &str =
    "the path MTU of the way back: a search that is followed goes there alone; without following both ways are";

/// What makes a series the way back of another one.
#[derive(Debug, Clone)]
pub struct Back {
    /// Who sends.
    pub from: Client,
    /// [`Series::to`] of the way there.
    pub of: String,
}

/// What is known of the way back from one target.
pub(super) enum Way {
    Wish(Box<Wish>),
    /// Whoever asks may not send from there; why.
    Denied(String),
    /// One of the ends is no pod of the cluster.
    Elsewhere,
}

impl<S: Source, R: Rights> Sender<'_, S, R> {
    /// From the shot's target to the client's own address of the same family.
    pub(super) async fn way_back(&self, plan: &Plan, shot: &Shot, schedule: Schedule) -> Way {
        let Probe::PathMtu(there) = &shot.probe else { return Way::Elsewhere };
        let Some((own, server)) = self.far_side(plan, there.to.ip()) else { return Way::Elsewhere };
        if let Some(why) = self.not_allowed(&server).await {
            return Way::Denied(why);
        }
        let to = format!("{own}, back from {}", plan::words_of(&server));
        let probe = Probe::PathMtu(PathMtuProbe { to: (own, 0).into(), ..there.clone() });
        Way::Wish(Box::new(Wish { client: server, shot: Shot { to, probe }, schedule }))
    }

    /// The client's own address of the same family, and who would send to it; none where one of the ends is no pod of the cluster.
    fn far_side(&self, plan: &Plan, address: IpAddr) -> Option<(IpAddr, Client)> {
        plan.client.pod.as_ref()?;
        let own = plan.client.addresses.iter().copied().find(|own| own.is_ipv4() == address.is_ipv4())?;
        let server = self.cluster.pod_by_address(address).and_then(|pod| plan::client_of(pod, &self.cluster))?;
        Some((own, server))
    }
}

/// Searches that are followed go there alone: where there is a way back, it is told that nobody searched it.
pub(super) fn tell_one_way<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
    shots: &[Shot],
    series: &mut [Series],
) {
    for (shot, series) in shots.iter().zip(series) {
        if let Probe::PathMtu(there) = &shot.probe
            && sender.far_side(plan, there.to.ip()).is_some()
        {
            series.tally.unseen.push(ONE_WAY.to_owned());
        }
    }
}

/// Sends each search of a path MTU in both directions, as far as that is possible; the way back comes behind the way there.
pub(super) async fn send_both<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
    wishes: Vec<Wish>,
) -> (Vec<Series>, Vec<netdiag_common::Gap>) {
    let mut all = Vec::new();
    let mut remarks = Vec::new();
    for wish in wishes {
        let way = sender.way_back(plan, &wish.shot, wish.schedule).await;
        let of = wish.shot.to.clone();
        all.push(wish);
        match way {
            Way::Wish(back) => {
                remarks.push((None, None));
                remarks.push((Some(Back { from: back.client.clone(), of }), None));
                all.push(*back);
            }
            Way::Denied(why) => remarks.push((None, Some(format!("the path MTU of the way back: {why}")))),
            Way::Elsewhere => remarks.push((None, None)),
        }
    }
    let (mut series, gaps) = sender.send(plan, &all).await;
    for (series, (back, denied)) in series.iter_mut().zip(remarks) {
        series.back = back;
        series.tally.unseen.extend(denied);
    }
    (series, gaps)
}
