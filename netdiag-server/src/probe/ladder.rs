//! The ladder: from the server's own socket outwards, one rung after the other, until one fails. Whoever else stands on the same
//! rung tells whose fault it is.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netdiag_common::Gap;
use netdiag_common::observation::series::{Probe, TcpProbe};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conclude;
use super::plan::{self, Plan, PlanError, Schedule, Shot};
use super::rights::Rights;
use super::run::{self, RunError, Sender, Wish};
use super::shots;
use super::tally::Tally;
use crate::ask::Source;
use crate::evidence::Cluster;
use crate::evidence::object::{Object, Pod};
use crate::path::{Backend, Client, Path};

/// Endpoints and nodes that are tried one by one on a rung.
const MAX_TARGETS: usize = 6;

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
    /// The URL that was given.
    Url,
}

/// One climber's attempts at one target of a rung.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Climbed {
    pub role: Role,
    pub who: String,
    pub to: String,
    /// `pod shop/web-1 on n1`; empty when the target is no endpoint.
    pub object: String,
    /// Without its single attempts.
    pub tally: Tally,
}

/// A rung before it is climbed.
struct Planned {
    rung: RungName,
    wishes: Vec<(Role, Wish)>,
    not_tried: String,
}

impl Rung {
    /// Whether this role's attempts all worked; none where it made none.
    pub fn holds(&self, role: Role) -> Option<bool> {
        let mut made = self.attempts.iter().filter(|climbed| climbed.role == role && climbed.tally.made > 0).peekable();
        made.peek()?;
        Some(made.all(|climbed| climbed.tally.failed == 0))
    }

    /// Who the rung is about.
    pub fn main_role(&self) -> Role {
        if self.rung == RungName::OwnListener { Role::Server } else { Role::Client }
    }
}

/// Climbs once for each family that the Service has.
pub(super) async fn climb<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
) -> Result<(Vec<Ladder>, Vec<Gap>), RunError> {
    let Some(path) = &plan.path else { return Ok((Vec::new(), Vec::new())) };
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
    let (mut ladders, mut gaps) = (Vec::new(), Vec::new());
    for is_v4 in families {
        let (ladder, unseen) = climb_family(sender, plan, path, &climbers, is_v4).await?;
        ladders.push(ladder);
        gaps.extend(unseen);
    }
    Ok((ladders, gaps))
}

async fn climb_family<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
    path: &Path,
    climbers: &[(Climber, Option<Client>)],
    is_v4: bool,
) -> Result<(Ladder, Vec<Gap>), RunError> {
    let mut ladder = Ladder {
        family: if is_v4 { "IPv4" } else { "IPv6" }.to_owned(),
        climbers: climbers.iter().map(|(climber, _)| climber.clone()).collect(),
        rungs: Vec::new(),
        conclusion: String::new(),
    };
    let mut gaps = Vec::new();
    let mut broken: Option<RungName> = None;
    for planned in planned(sender, plan, path, climbers, is_v4).await? {
        let mut rung = Rung { rung: planned.rung, attempts: Vec::new(), not_tried: planned.not_tried };
        if let Some(broken) = broken {
            rung.not_tried = format!("{} failed before", conclude::rung_in_words(broken));
        } else if rung.not_tried.is_empty() {
            let wishes: Vec<Wish> = planned.wishes.iter().map(|(_, wish)| wish.clone()).collect();
            let (series, unseen) = sender.send(plan, &wishes).await;
            gaps.extend(unseen);
            rung.attempts = planned
                .wishes
                .iter()
                .zip(series)
                .map(|((role, wish), series)| climbed(sender, *role, wish, series))
                .collect();
            if rung.holds(rung.main_role()) == Some(false) {
                broken = Some(rung.rung);
            }
        }
        ladder.rungs.push(rung);
    }
    ladder.conclusion = conclude::sentence(&ladder);
    Ok((ladder, gaps))
}

fn climbed<S: Source, R: Rights>(sender: &Sender<'_, S, R>, role: Role, wish: &Wish, series: run::Series) -> Climbed {
    let mut tally = series.tally;
    tally.not_kept += tally.attempts.len() as u64;
    tally.attempts.clear();
    let object = match &wish.shot.probe {
        Probe::Tcp(probe) => run::object(&sender.cluster, probe.to),
        _ => String::new(),
    };
    Climbed { role, who: plan::words_of(&wish.client), to: series.to, object, tally }
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

/// All rungs of one family, from the inside outwards.
async fn planned<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
    path: &Path,
    climbers: &[(Climber, Option<Client>)],
    is_v4: bool,
) -> Result<Vec<Planned>, RunError> {
    let schedule = plan::schedule(&plan.request, 1);
    let of_family = |address: IpAddr| address.is_ipv4() == is_v4;
    let backends: Vec<&Backend> =
        path.ready_backends().filter(|backend| of_family(backend.address)).take(MAX_TARGETS).collect();
    let from_all = |rung, targets: &[SocketAddr], schedule: Schedule, none: &str| {
        let mut wishes = Vec::new();
        for (climber, client) in climbers {
            let Some(client) = client else { continue };
            for to in targets {
                wishes.push((climber.role, Wish { client: client.clone(), shot: tcp(*to), schedule }));
            }
        }
        Planned { rung, wishes, not_tried: if targets.is_empty() { none.to_owned() } else { String::new() } }
    };
    let mut own = Vec::new();
    let mut not_own = String::new();
    for backend in &backends {
        let Some(server) = backend.pod.as_ref().and_then(|pod| plan::client_of(pod, &sender.cluster)) else { continue };
        match sender.not_allowed(&server).await {
            None => own.push((Role::Server, Wish { client: server, shot: tcp(at(backend)), schedule })),
            Some(why) => not_own = why,
        }
    }
    if own.is_empty() && not_own.is_empty() {
        "no ready endpoint is a pod".clone_into(&mut not_own);
    }
    let pods: Vec<SocketAddr> = backends.iter().map(|backend| at(backend)).collect();
    let port = path.port.unwrap_or(0);
    let cluster_ips: Vec<SocketAddr> =
        path.addresses.iter().filter(|ip| of_family(**ip)).map(|ip| SocketAddr::new(*ip, port)).collect();
    // So many that each endpoint is met.
    let rounds = u32::try_from(backends.len()).unwrap_or(1).max(1);
    let spread =
        Schedule { count: schedule.count.saturating_mul(rounds * 2).min(MAX_SPREAD.max(schedule.count)), ..schedule };
    let mut rungs = vec![
        Planned {
            rung: RungName::OwnListener,
            not_tried: if own.is_empty() { not_own } else { String::new() },
            wishes: own,
        },
        from_all(RungName::PodIp, &pods, schedule, "the Service has no ready endpoint of this family"),
        from_all(RungName::ClusterIp, &cluster_ips, spread, "the Service has no cluster IP of this family"),
    ];
    let name = plan::name_of(path).unwrap_or_default();
    let lookups = climbers.iter().filter(|(climber, _)| climber.role != Role::Node).filter_map(|(climber, client)| {
        let wish = Wish { client: client.clone()?, shot: run::lookup(plan, &name), schedule: run::LOOKUP };
        Some((climber.role, wish))
    });
    rungs.push(Planned { rung: RungName::Name, wishes: lookups.collect(), not_tried: String::new() });
    let node_port = path.service_port().map_or(0, |port| port.node_port);
    let nodes: Vec<SocketAddr> = if node_port == 0 {
        Vec::new()
    } else {
        relevant_nodes(&sender.cluster, &plan.client, &backends, is_v4)
            .into_iter()
            .map(|ip| SocketAddr::new(ip, node_port))
            .collect()
    };
    rungs.push(from_all(RungName::NodePort, &nodes, schedule, "the Service has no node port"));
    let external = path.service().map(|service| service.external_ips().filter(|ip| of_family(*ip)).take(MAX_TARGETS));
    let external: Vec<SocketAddr> = external.into_iter().flatten().map(|ip| SocketAddr::new(ip, port)).collect();
    rungs.push(from_all(
        RungName::ExternalIp,
        &external,
        schedule,
        "the Service has no external address of this family",
    ));
    if let Some(url) = &plan.request.options.url {
        let shot = shots::url(&plan.request, url, None)?;
        let wishes = climbers.iter().filter_map(|(climber, client)| {
            Some((climber.role, Wish { client: client.clone()?, shot: shot.clone(), schedule }))
        });
        rungs.push(Planned { rung: RungName::Url, wishes: wishes.collect(), not_tried: String::new() });
    }
    Ok(rungs)
}

/// Attempts that are spread over endpoints, at most.
const MAX_SPREAD: u32 = 60;

fn at(backend: &Backend) -> SocketAddr {
    SocketAddr::new(backend.address, backend.port)
}

fn tcp(to: SocketAddr) -> Shot {
    let probe = Probe::Tcp(TcpProbe {
        to,
        source_port: None,
        close: netdiag_common::observation::series::transport::TcpClose::default(),
    });
    Shot { to: to.to_string(), probe }
}

/// The client's node, those of the endpoints, then others.
fn relevant_nodes(cluster: &Cluster, client: &Client, backends: &[&Backend], is_v4: bool) -> Vec<IpAddr> {
    let mut nodes: Vec<_> = cluster.nodes.iter().collect();
    let rank = |name: &str| (name != client.node, !backends.iter().any(|backend| backend.node == name));
    nodes.sort_by_cached_key(|node| (rank(&node.metadata.name), node.metadata.name.clone()));
    let address = |node: &Arc<crate::evidence::object::Node>| node.internal_ips().find(|ip| ip.is_ipv4() == is_v4);
    nodes.into_iter().filter_map(address).take(MAX_TARGETS).collect()
}
