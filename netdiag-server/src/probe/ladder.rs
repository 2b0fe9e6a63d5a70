//! The ladder: from the server's own socket outwards, one rung after the other, until one fails. Whoever else stands on the same
//! rung tells whose fault it is.

use std::sync::Arc;

use netdiag_common::Gap;
use netdiag_common::observation::series::Probe;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conclude;
use super::entrance::{self, Host};
use super::follow::Failing;
use super::plan::{self, Plan, PlanError};
use super::rights::Rights;
use super::run::{self, RunError, Sender, Wish};
use super::rungs::{Planned, entrances, planned};
use super::secret::Compared;
use super::tally::Tally;
use crate::ask::Source;
use crate::evidence::Cluster;
use crate::evidence::object::{Object, Pod};
use crate::path::{Client, Path};

/// One climb, of one family.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Ladder {
    /// `IPv4`, `IPv6`
    pub family: String,
    /// Who climbs: the client, a twin, the client's node.
    pub climbers: Vec<Climber>,
    pub rungs: Vec<Rung>,
    /// What that means, in a sentence.
    pub conclusion: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Climber {
    pub role: Role,
    /// `pod/shop/client`; empty when there is nobody for the role.
    pub who: String,
    pub node: String,
    /// Why it does not climb; empty when it does.
    pub why_not: String,
}

/// For what reason somebody climbs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum Role {
    /// Who was asked about.
    Client,
    /// Another pod like it, on another node where there is one.
    Twin,
    /// The client's node itself.
    Node,
    /// The endpoint, at its own address.
    Server,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Rung {
    pub rung: RungName,
    /// The host, for rungs that are one of several; empty for the others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub of: String,
    pub attempts: Vec<Climbed>,
    /// Why the rung was not tried; empty when it was.
    pub not_tried: String,
}

/// From the inside outwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum RungName {
    /// The endpoint dials its own address.
    OwnListener,
    PodIp,
    ClusterIp,
    Name,
    NodePort,
    /// Load balancer's addresses and `externalIPs`.
    ExternalIp,
    /// One host of Ingresses that leads to the Service.
    Ingress,
    /// One host of HTTPRoutes, GRPCRoutes and TLSRoutes, by a Gateway that they are attached to.
    Gateway,
    /// The URL that was given.
    Url,
}

/// One climber's attempts at one target of a rung.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Climbed {
    pub role: Role,
    pub who: String,
    pub to: String,
    /// `pod shop/web-1 on n1`, `Ingress shop/web`; empty when nothing of the cluster is known behind the target.
    pub object: String,
    /// Without its single attempts.
    pub tally: Tally,
    /// Why failures are not the entrance's own: the endpoint answers so, too, or nobody said whom to trust. Empty where they are.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub excuse: String,
    /// The client's served certificate beside that of the Secret that the host's certificate should come from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Compared>,
}

impl Rung {
    /// Whether this role's attempts all worked; none where it made none.
    pub fn holds(&self, role: Role) -> Option<bool> {
        let mut made = self.attempts.iter().filter(|climbed| climbed.role == role && climbed.tally.made > 0).peekable();
        made.peek()?;
        Some(made.all(|climbed| climbed.tally.failed == 0 || !climbed.excuse.is_empty()))
    }

    /// Who the rung is about.
    pub fn main_role(&self) -> Role {
        if self.rung == RungName::OwnListener { Role::Server } else { Role::Client }
    }
}

impl RungName {
    /// Entrances stand beside each other: one that fails says nothing of the next.
    fn is_entrance(self) -> bool {
        matches!(self, Self::Ingress | Self::Gateway | Self::Url)
    }
}

/// Climbs once for each family that the Service has. What failed on the first rung that breaks, too.
pub(super) async fn climb<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
) -> Result<(Vec<Ladder>, Vec<Gap>, Option<Failing>), RunError> {
    let Some(path) = &plan.path else { return Ok((Vec::new(), Vec::new(), None)) };
    let mut families: Vec<bool> = Vec::new();
    let known = path.addresses.iter().copied().chain(path.backends.iter().map(|backend| backend.address));
    for address in known.filter(|address| plan.request.family.holds(*address)) {
        if !families.contains(&address.is_ipv4()) {
            families.push(address.is_ipv4());
        }
    }
    if families.is_empty() {
        let family = "known";
        return Err(PlanError::NoAddress { to: plan.request.to.clone(), family }.into());
    }
    families.sort_by_key(|is_v4| !is_v4);
    let climbers = climbers(sender, plan).await;
    let (mut ladders, mut gaps, mut failing) = (Vec::new(), Vec::new(), None);
    for (index, is_v4) in families.into_iter().enumerate() {
        let entrances = entrances(&sender.cluster, plan, path, is_v4, index == 0);
        gaps.extend(entrances.gaps.iter().filter(|_| index == 0).cloned());
        let (ladder, unseen, fails) = climb_family(sender, plan, path, &climbers, is_v4, &entrances.hosts).await?;
        ladders.push(ladder);
        gaps.extend(unseen);
        failing = failing.or(fails);
    }
    Ok((ladders, gaps, failing))
}

async fn climb_family<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
    path: &Path,
    climbers: &[(Climber, Option<Client>)],
    is_v4: bool,
    hosts: &[Host],
) -> Result<(Ladder, Vec<Gap>, Option<Failing>), RunError> {
    let mut ladder = Ladder {
        family: if is_v4 { "IPv4" } else { "IPv6" }.to_owned(),
        climbers: climbers.iter().map(|(climber, _)| climber.clone()).collect(),
        rungs: Vec::new(),
        conclusion: String::new(),
    };
    let mut gaps = Vec::new();
    let mut broken: Option<RungName> = None;
    let mut failing = None;
    for planned in planned(sender, plan, path, climbers, is_v4, hosts).await? {
        let (of, not_tried) = (planned.of.clone(), planned.not_tried.clone());
        let mut rung = Rung { rung: planned.rung, of, attempts: Vec::new(), not_tried };
        if let Some(broken) = broken.filter(|broken| !(broken.is_entrance() && rung.rung.is_entrance())) {
            rung.not_tried = format!("{} failed before", conclude::rung_in_words(broken));
        } else if rung.not_tried.is_empty() {
            let wishes: Vec<Wish> = planned.wishes.iter().map(|(_, wish)| wish.clone()).collect();
            let (series, unseen) = sender.send(plan, &wishes).await;
            gaps.extend(unseen);
            let excuses = if rung.rung.is_entrance() {
                let backend = path.ready_backends().find(|backend| backend.address.is_ipv4() == is_v4);
                entrance::judge::excuses(sender, plan, backend, &planned.wishes, &series).await
            } else {
                vec![String::new(); series.len()]
            };
            let mut shown = Vec::new();
            for ((role, wish), series) in planned.wishes.iter().zip(&series) {
                let secrets = planned.secrets.get(&wish.shot.to).filter(|_| *role == Role::Client);
                shown.push(sender.compare_any(&series.tally, secrets.map_or(&[][..], Vec::as_slice)).await);
            }
            let attempts = planned.wishes.iter().zip(series).zip(excuses.into_iter().zip(shown));
            rung.attempts = attempts
                .map(|(((role, wish), series), (excuse, secret))| Climbed {
                    excuse,
                    secret,
                    ..climbed(sender, &planned, *role, wish, series)
                })
                .collect();
            if rung.holds(rung.main_role()) == Some(false) {
                broken = broken.or(Some(rung.rung));
                failing = failing.or_else(|| failing_of(&planned.wishes, &rung));
            }
        }
        ladder.rungs.push(rung);
    }
    ladder.conclusion = conclude::sentence(&ladder);
    Ok((ladder, gaps, failing))
}

/// The first that fails of who the rung is about.
fn failing_of(wishes: &[(Role, Wish)], rung: &Rung) -> Option<Failing> {
    let mut climbed = wishes.iter().zip(&rung.attempts);
    climbed.find_map(|((role, wish), climbed)| {
        let is_own = *role == rung.main_role() && climbed.excuse.is_empty();
        Failing::of(wish, &climbed.tally).filter(|_| is_own)
    })
}

fn climbed<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    planned: &Planned,
    role: Role,
    wish: &Wish,
    series: run::Series,
) -> Climbed {
    let mut tally = series.tally;
    tally.not_kept += tally.attempts.len() as u64;
    tally.attempts.clear();
    let object = match (planned.objects.get(&series.to), &wish.shot.probe) {
        (Some(object), _) => object.clone(),
        (None, Probe::Tcp(probe)) => run::object(&sender.cluster, probe.to),
        (None, _) => String::new(),
    };
    Climbed {
        role,
        who: plan::words_of(&wish.client),
        to: series.to,
        object,
        tally,
        excuse: String::new(),
        secret: None,
    }
}

/// The client, a twin, and the client's node.
async fn climbers<S: Source, R: Rights>(sender: &Sender<'_, S, R>, plan: &Plan) -> Vec<(Climber, Option<Client>)> {
    let of = |role, client: &Client| Climber {
        role,
        who: plan::words_of(client),
        node: client.node.clone(),
        why_not: String::new(),
    };
    let mut all = vec![(of(Role::Client, &plan.client), Some(plan.client.clone()))];
    let Some(pod) = &plan.client.pod else { return all };
    let nobody = |role, why: &str| Climber { role, who: String::new(), node: String::new(), why_not: why.to_owned() };
    match twin(pod, &sender.cluster) {
        Some(twin) => all.push((of(Role::Twin, &twin), Some(twin))),
        None => all.push((nobody(Role::Twin, "there is no other ready pod of the same owner or namespace"), None)),
    }
    let node = crate::question::Origin::Node { name: plan.client.node.clone() };
    if let Ok(node) = plan::client(&node, &sender.cluster) {
        all.push((of(Role::Node, &node), Some(node)));
    }
    for (climber, client) in &mut all {
        if let Some(who) = client.as_ref()
            && let Some(why) = sender.not_allowed(who).await
        {
            climber.why_not = why;
            *client = None;
        }
    }
    all
}

/// Another pod like this one: ready, of the same owner before one of the same namespace, on another node before the same one.
pub(super) fn twin(pod: &Arc<Pod>, cluster: &Cluster) -> Option<Client> {
    let owner = |pod: &Pod| pod.meta().controller.clone();
    let is_like = |other: &&Arc<Pod>| {
        other.metadata.name != pod.metadata.name && other.is_ready() && !other.is_finished() && !other.spec.host_network
    };
    let app = |pod: &Pod| {
        pod.metadata.labels.get("app").or_else(|| pod.metadata.labels.get("app.kubernetes.io/name")).cloned()
    };
    let rank = |other: &Arc<Pod>| {
        let same_owner = owner(pod).is_some() && owner(other) == owner(pod);
        let same_app = app(pod).is_some() && app(other) == app(pod);
        (!same_owner, !same_app, other.spec.node_name == pod.spec.node_name, other.metadata.name.clone())
    };
    let best = cluster.pods.in_namespace(&pod.metadata.namespace).filter(is_like).min_by_key(|other| rank(other))?;
    plan::client_of(best, cluster)
}
