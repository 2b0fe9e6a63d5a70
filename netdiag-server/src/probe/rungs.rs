//! Which rungs a ladder has: what is sent on each, or why nothing is. Nothing is sent here but the lookup of a load balancer's name.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netdiag_common::observation::series::{Probe, TcpProbe};

use super::entrance::{self, Entrances, Host};
use super::ladder::{Climber, Role, RungName};
use super::plan::{self, Plan, Schedule, Shot};
use super::rights::Rights;
use super::run::{self, RunError, Sender, Wish};
use super::secret::SecretName;
use super::shots;
use crate::ask::Source;
use crate::evidence::Cluster;
use crate::path::{Backend, Client, Path};

/// Endpoints and nodes that are tried one by one on a rung.
const MAX_TARGETS: usize = 6;

/// A rung before it is climbed.
pub(super) struct Planned {
    pub rung: RungName,
    pub of: String,
    pub wishes: Vec<(Role, Wish)>,
    pub not_tried: String,
    /// What each target belongs to, by its words, where that is no endpoint.
    pub objects: BTreeMap<String, String>,
    /// Where each target's certificate should come from.
    pub secrets: BTreeMap<String, Vec<SecretName>>,
}

/// All rungs of one family, from the inside outwards.
pub(super) async fn planned<S: Source, R: Rights>(
    sender: &Sender<'_, S, R>,
    plan: &Plan,
    path: &Path,
    climbers: &[(Climber, Option<Client>)],
    is_v4: bool,
    hosts: &[Host],
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
        Planned { wishes, ..Planned::new(rung, if targets.is_empty() { none } else { "" }) }
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
    let nothing_to_try = if own.is_empty() { not_own } else { String::new() };
    let own = Planned { wishes: own, ..Planned::new(RungName::OwnListener, &nothing_to_try) };
    let pods: Vec<SocketAddr> = backends.iter().map(|backend| at(backend)).collect();
    let port = path.port.unwrap_or(0);
    let cluster_ips: Vec<SocketAddr> =
        path.addresses.iter().filter(|ip| of_family(**ip)).map(|ip| SocketAddr::new(*ip, port)).collect();
    // So many that each endpoint is met.
    let rounds = u32::try_from(backends.len()).unwrap_or(1).max(1);
    let spread =
        Schedule { count: schedule.count.saturating_mul(rounds * 2).min(MAX_SPREAD.max(schedule.count)), ..schedule };
    let mut rungs = vec![
        own,
        from_all(RungName::PodIp, &pods, schedule, "the Service has no ready endpoint of this family"),
        from_all(RungName::ClusterIp, &cluster_ips, spread, "the Service has no cluster IP of this family"),
    ];
    let name = plan::name_of(path).unwrap_or_default();
    let lookups = climbers.iter().filter(|(climber, _)| climber.role != Role::Node).filter_map(|(climber, client)| {
        let wish = Wish { client: client.clone()?, shot: run::lookup(plan, &name), schedule: run::LOOKUP };
        Some((climber.role, wish))
    });
    rungs.push(Planned { wishes: lookups.collect(), ..Planned::new(RungName::Name, "") });
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
    let outside = sender.outside(plan, path, is_v4).await;
    let external: Vec<SocketAddr> =
        outside.addresses.iter().take(MAX_TARGETS).map(|ip| SocketAddr::new(*ip, port)).collect();
    let named = external.iter().filter(|_| !outside.name.is_empty());
    let objects = named.map(|to| (to.to_string(), format!("load balancer {}", outside.name))).collect();
    rungs.push(Planned { objects, ..from_all(RungName::ExternalIp, &external, schedule, &outside.none) });
    let shots_from_all = |shots: &[Shot]| {
        let mut wishes = Vec::new();
        for (climber, client) in climbers {
            let Some(client) = client else { continue };
            let wish = |shot: &Shot| Wish { client: client.clone(), shot: shot.clone(), schedule };
            wishes.extend(shots.iter().map(|shot| (climber.role, wish(shot))));
        }
        wishes
    };
    rungs.extend(entrance_rungs(hosts, shots_from_all));
    if let Some(url) = &plan.request.options.url {
        let shot = shots::url(&plan.request, url, None)?;
        rungs.push(Planned { wishes: shots_from_all(&[shot]), ..Planned::new(RungName::Url, "") });
    }
    Ok(rungs)
}

impl Planned {
    /// Without anything to send. `not_tried`: why; empty when something is to come.
    fn new(rung: RungName, not_tried: &str) -> Self {
        let not_tried = not_tried.to_owned();
        Self {
            rung,
            of: String::new(),
            wishes: Vec::new(),
            not_tried,
            objects: BTreeMap::new(),
            secrets: BTreeMap::new(),
        }
    }
}

/// What leads to the asked port from outside, as the API tells.
pub(super) fn entrances(cluster: &Cluster, plan: &Plan, path: &Path, is_v4: bool, names_too: bool) -> Entrances {
    let wanted = entrance::Wanted { request: &plan.request, is_v4, names_too };
    let ends = path.service().zip(path.service_port());
    ends.map(|(service, port)| entrance::find(cluster, service, port, wanted)).unwrap_or_default()
}

/// One for each host, and one more for what of it cannot be tried.
fn entrance_rungs(hosts: &[Host], wishes: impl Fn(&[Shot]) -> Vec<(Role, Wish)>) -> Vec<Planned> {
    let mut rungs = Vec::new();
    for (rung, none) in [
        (RungName::Ingress, "no Ingress leads to this port of the Service"),
        (RungName::Gateway, "no route of a Gateway leads to this port of the Service"),
    ] {
        let own: Vec<&Host> = hosts.iter().filter(|host| host.rung == rung).collect();
        if own.is_empty() {
            rungs.push(Planned::new(rung, none));
        }
        for host in own {
            let of = host.name.clone();
            if !host.ways.is_empty() {
                let objects = host.ways.iter().map(|way| (way.shot.to.clone(), way.object.clone())).collect();
                let secrets = host.ways.iter().map(|way| (way.shot.to.clone(), way.secrets.clone())).collect();
                let shots: Vec<Shot> = host.ways.iter().map(|way| way.shot.clone()).collect();
                let wishes = wishes(&shots);
                rungs.push(Planned { of: of.clone(), wishes, objects, secrets, ..Planned::new(rung, "") });
            }
            if !host.untried.is_empty() {
                rungs.push(Planned { of, ..Planned::new(rung, &host.untried.join("; ")) });
            }
        }
    }
    rungs
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
