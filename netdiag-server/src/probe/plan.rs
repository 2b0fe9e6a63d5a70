//! From words to what is sent: which namespace it starts in, and which addresses it goes to. Pure; nothing is sent here.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use netdiag_common::observation::Protocol;
use netdiag_common::observation::series::path::PathBy;
use netdiag_common::observation::series::{
    MAX_ATTEMPT_TIMEOUT_MS, MAX_SERIES_ATTEMPTS, MAX_SERIES_PARALLEL, Probe, SeriesRequest,
};
use netdiag_common::{Need, Netns, Tier, Topic, Window};

use super::follow::{self, MAX_FOLLOWED_MS};
use super::kind::Kind;
use super::secret::SecretName;
use super::shots;
use super::words::ProbeRequest;
use crate::evidence::Cluster;
use crate::path::{self, Client, Path, ResolveError, TargetObject};
use crate::question::{DEFAULT_BUDGET, Origin, ParseError, Purpose, Question, Target};

/// The longest one request may take, milliseconds: whoever waits by HTTP has given up after that. Longer series are several requests.
pub const MAX_REQUEST_MS: u64 = 120_000;

/// Who sends what to whom.
#[derive(Debug, Clone)]
pub struct Plan {
    pub request: ProbeRequest,
    pub client: Client,
    pub aim: Aim,
    /// The target's objects, where it is one of the cluster's.
    pub path: Option<Path>,
}

/// What the probes are aimed at.
#[derive(Debug, Clone)]
pub enum Aim {
    Shots(Vec<Shot>),
    /// The client looks the name up first; then each of its addresses is probed.
    Lookup {
        name: String,
        port: Option<u16>,
    },
    /// A name by each DNS server that the client may meet: some are known by its resolv.conf alone, which is read first.
    Servers {
        name: String,
    },
    /// Rungs and cells are chosen as results come in.
    Service,
}

/// One series.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shot {
    /// `10.96.0.80:80`, a URL, or a DNS server.
    pub to: String,
    pub probe: Probe,
}

/// What cannot be sent, and what could.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    #[error(transparent)]
    Words(#[from] ParseError),
    #[error(transparent)]
    Question(#[from] ResolveError),
    #[error("{to:?} names no port, and {kind} needs one: add :PORT")]
    Port { to: String, kind: Kind },
    #[error("{to:?} is not a target: use {wanted}")]
    Target { to: String, wanted: &'static str },
    #[error("{to} has no {family} address")]
    NoAddress { to: String, family: &'static str },
    #[error("{options} means nothing to {kind}; it takes {known}")]
    Options { options: String, kind: Kind, known: String },
    #[error("{what} is {given}: use {least} to {most}")]
    Limit { what: &'static str, given: u64, least: u64, most: u64 },
    #[error("{what} {given:?} is not understood: use {wanted}")]
    Word { what: &'static str, given: String, wanted: &'static str },
    #[error("{kind} to {to} cannot be followed: {why}")]
    NotFollowed { kind: Kind, to: String, why: &'static str },
    #[error("this would take up to {seconds} s, and one request may take {} s: lower the count, the interval or the timeout", MAX_REQUEST_MS / 1_000)]
    TooLong { seconds: u64 },
}

/// A target as it is typed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Goal {
    /// Something of the API.
    Object(Target),
    Address(IpAddr, Option<u16>),
    Name {
        name: String,
        port: Option<u16>,
    },
    Url(String),
}

/// The ends of one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ends {
    pub address: IpAddr,
    pub port: Option<u16>,
    /// Under which clients know it: Host, and the name in its certificate.
    pub name: Option<String>,
}

impl std::str::FromStr for Goal {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        if text.contains("://") {
            return Ok(Self::Url(text.to_owned()));
        }
        if text.contains('%') {
            return Err(PlanError::Target { to: text.to_owned(), wanted: NO_ZONE });
        }
        if text.contains('/') {
            return match text.parse::<Target>()? {
                Target::Address(address) => Self::of_address(text, address.ip(), Some(address.port())),
                Target::Name { name, port } => Ok(Self::Name { name, port }),
                object => Ok(Self::Object(object)),
            };
        }
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Self::of_address(text, address.ip(), Some(address.port()));
        }
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
            return Self::of_address(text, address, None);
        }
        // The rules for names and their lengths are those of questions.
        let Target::Name { name, port } = format!("name/{text}").parse::<Target>()? else {
            return Err(PlanError::Target { to: text.to_owned(), wanted: TARGETS });
        };
        Ok(Self::Name { name, port })
    }
}

impl Goal {
    fn of_address(text: &str, address: IpAddr, port: Option<u16>) -> Result<Self, PlanError> {
        match address {
            IpAddr::V6(local) if local.is_unicast_link_local() => {
                Err(PlanError::Target { to: text.to_owned(), wanted: NO_ZONE })
            }
            _ => Ok(Self::Address(address, port)),
        }
    }
}

const NO_ZONE: &str = "another address of it: a link-local one leads somewhere by an interface alone, and its name counts inside one namespace";
const TARGETS: &str =
    "pod/NAMESPACE/NAME:PORT, service/NAMESPACE/NAME:PORT, node/NAME:PORT, NAME:PORT, ADDRESS:PORT or a URL";

/// What a request means in this cluster.
pub fn plan(request: &ProbeRequest, cluster: &Cluster) -> Result<Plan, PlanError> {
    within_limits(request)?;
    let strange = request.strange_options();
    if !strange.is_empty() {
        let known = match request.kind.options() {
            [] => "none".to_owned(),
            options => options.join(", "),
        };
        return Err(PlanError::Options { options: strange.join(", "), kind: request.kind, known });
    }
    let from = request.from.parse::<Origin>()?;
    let goal = request.to.parse::<Goal>()?;
    let client = client(&from, cluster)?;
    let mut plan = Plan { request: request.clone(), client, aim: Aim::Service, path: None };
    if let Goal::Object(target) = &goal {
        plan.path = Some(resolve(from, target.clone(), request, cluster)?);
    }
    plan.aim = aim(&plan, goal, cluster)?;
    if let Some(secret) = &request.options.secret {
        secret.parse::<SecretName>()?;
    }
    if let Some(why) = follow::why_not(&plan.aim, request).filter(|_| request.follow) {
        return Err(PlanError::NotFollowed { kind: request.kind, to: request.to.clone(), why });
    }
    Ok(plan)
}

fn aim(plan: &Plan, goal: Goal, cluster: &Cluster) -> Result<Aim, PlanError> {
    let request = &plan.request;
    if request.kind.is_of_a_service() {
        let is_service = plan.path.as_ref().is_some_and(|path| path.service().is_some() && path.port.is_some());
        let wanted =
            "service/NAMESPACE/NAME:PORT with a TCP port: both are made of a Service's addresses and endpoints";
        return if is_service { Ok(Aim::Service) } else { Err(PlanError::Target { to: request.to.clone(), wanted }) };
    }
    if request.kind == Kind::Dns {
        let name = match (&goal, &plan.path) {
            (Goal::Name { name, .. }, _) => name.clone(),
            (Goal::Object(_), Some(path)) => name_of(path).ok_or_else(|| not_a_name(&request.to))?,
            _ => return Err(not_a_name(&request.to)),
        };
        let each = request.options.server.as_deref() == Some("each");
        return Ok(if each { Aim::Servers { name } } else { Aim::Shots(shots::dns(request, &name, cluster)?) });
    }
    let ends: Vec<Ends> = match goal {
        Goal::Url(url) if request.kind == Kind::Http => return Ok(Aim::Shots(vec![shots::url(request, &url, None)?])),
        Goal::Url(_) => {
            let wanted = "a name, an address or an object: only http takes URLs";
            return Err(PlanError::Target { to: request.to.clone(), wanted });
        }
        Goal::Name { name, port } if request.kind == Kind::Http => {
            let url = shots::url_of(request, &name, port);
            return Ok(Aim::Shots(vec![shots::url(request, &url, None)?]));
        }
        Goal::Name { name, port } => {
            if needs_port(request) && port.is_none() {
                return Err(PlanError::Port { to: request.to.clone(), kind: request.kind });
            }
            return Ok(Aim::Lookup { name, port });
        }
        Goal::Address(address, port) => vec![Ends { address, port, name: None }],
        Goal::Object(target) => {
            let mut ends = plan.path.as_ref().map(ends_of).unwrap_or_default();
            // The only port of a pod or Service is meant where one is needed, and not where none was asked for.
            if !needs_port(request) && !names_port(&target) {
                for end in &mut ends {
                    end.port = None;
                }
            }
            ends
        }
    };
    Ok(Aim::Shots(shots(request, &ends)?))
}

/// One shot for each end of the wanted family.
pub(super) fn shots(request: &ProbeRequest, ends: &[Ends]) -> Result<Vec<Shot>, PlanError> {
    let wanted: Vec<&Ends> = ends.iter().filter(|ends| request.family.holds(ends.address)).collect();
    if wanted.is_empty() {
        let family = match request.family {
            super::Family::Any => "known",
            super::Family::Ipv4 => "IPv4",
            super::Family::Ipv6 => "IPv6",
        };
        return Err(PlanError::NoAddress { to: request.to.clone(), family });
    }
    wanted.into_iter().map(|ends| shots::at(request, ends)).collect()
}

/// Where a Service without a virtual address has its pods, clients dial those.
fn ends_of(path: &Path) -> Vec<Ends> {
    let name = name_of(path);
    let end = |address: IpAddr, port: Option<u16>| Ends { address, port, name: name.clone() };
    if path.addresses.is_empty() {
        return path.ready_backends().map(|backend| end(backend.address, Some(backend.port))).collect();
    }
    path.addresses.iter().map(|address| end(*address, path.port)).collect()
}

/// A Service's name as every client of the cluster can look it up: `web.shop.svc`, by whatever domain the cluster has.
pub(super) fn name_of(path: &Path) -> Option<String> {
    let TargetObject::Service { service, .. } = &path.target else { return None };
    Some(format!("{}.{}.svc", service.metadata.name, service.metadata.namespace))
}

fn not_a_name(to: &str) -> PlanError {
    PlanError::Target {
        to: to.to_owned(),
        wanted: "the name to look up, or service/NAMESPACE/NAME for a Service's name",
    }
}

fn names_port(target: &Target) -> bool {
    match target {
        Target::Service { port, .. } => port.is_some(),
        Target::Pod { port, .. } | Target::Node { port, .. } | Target::Name { port, .. } => port.is_some(),
        Target::Address(_) => true,
    }
}

/// Whether packets of this kind have ports.
pub(super) fn needs_port(request: &ProbeRequest) -> bool {
    match request.kind {
        Kind::Icmp | Kind::Mtu | Kind::Dns => false,
        Kind::Path => request.options.by == Some(PathBy::Tcp),
        Kind::Raw => request.options.segment != Some(super::Segment::Echo),
        _ => true,
    }
}

pub(super) fn client(from: &Origin, cluster: &Cluster) -> Result<Client, PlanError> {
    let question = question(from.clone(), Target::Address(SocketAddr::from(([0, 0, 0, 0], 0))), Protocol::Tcp);
    let path = path::resolve(&question, cluster, None)?;
    path.clients.into_iter().next().ok_or_else(|| PlanError::Words(ParseError::Origin { text: from.to_string() }))
}

fn resolve(from: Origin, to: Target, request: &ProbeRequest, cluster: &Cluster) -> Result<Path, PlanError> {
    let protocol = if request.kind == Kind::Udp { Protocol::Udp } else { Protocol::Tcp };
    let path = path::resolve(&question(from, to, protocol), cluster, None)?;
    Ok(path)
}

fn question(from: Origin, to: Target, protocol: Protocol) -> Question {
    Question { from, to, protocol, purpose: Purpose::Diagnose, tier: Tier::Probe, budget: DEFAULT_BUDGET }
}

fn within_limits(request: &ProbeRequest) -> Result<(), PlanError> {
    let limit = |what, given: u64, most: u64| {
        let is_within = (1..=most).contains(&given);
        if is_within { Ok(()) } else { Err(PlanError::Limit { what, given, least: 1, most }) }
    };
    limit("the count of attempts", request.count().into(), MAX_SERIES_ATTEMPTS.into())?;
    limit("the timeout in milliseconds", request.timeout_ms().into(), MAX_ATTEMPT_TIMEOUT_MS.into())?;
    limit("the number of attempts at one time", request.parallel.into(), MAX_SERIES_PARALLEL.into())?;
    if request.follow {
        limit("the timeout of an attempt that is followed", request.timeout_ms().into(), MAX_FOLLOWED_MS)?;
        if !request.kind.is_of_a_service() {
            limit("the number of attempts that are followed at one time", request.parallel.into(), 1)?;
        }
    }
    // What an attempt takes nobody knows before; intervals are kept.
    let milliseconds = request.interval_us.saturating_mul(request.count().into()) / 1_000;
    if milliseconds > MAX_REQUEST_MS {
        return Err(PlanError::TooLong { seconds: milliseconds.div_ceil(1_000) });
    }
    Ok(())
}

/// What a request says of time, without what is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Schedule {
    pub count: u32,
    pub interval_us: u64,
    pub timeout_ms: u32,
    pub parallel: u16,
}

pub(super) fn schedule(request: &ProbeRequest, rounds: u32) -> Schedule {
    Schedule {
        count: request.count().saturating_mul(rounds),
        interval_us: request.interval_us,
        timeout_ms: request.timeout_ms(),
        parallel: request.parallel,
    }
}

/// When the last attempt has ended at the latest, milliseconds after the first began: where intervals are kept, and where every
/// attempt takes its whole timeout.
pub(super) fn longest_ms(schedule: &Schedule) -> u64 {
    let timeout = u64::from(schedule.timeout_ms);
    let in_turn = u64::from(schedule.count).div_ceil(u64::from(schedule.parallel.max(1))) * timeout;
    let by_interval =
        u64::from(schedule.count.saturating_sub(1)).saturating_mul(schedule.interval_us) / 1_000 + timeout;
    in_turn.max(by_interval)
}

/// The same of a request on the wire.
pub(crate) fn longest_of_ms(request: &SeriesRequest) -> u64 {
    let SeriesRequest { count, interval_us, timeout_ms, parallel, .. } = *request;
    longest_ms(&Schedule { count, interval_us, timeout_ms, parallel })
}

/// As the agent of the client's node is asked.
pub(super) fn need(client: &Client, request: SeriesRequest) -> Need {
    Need {
        node: client.node.clone(),
        netns: client.netns.clone(),
        topic: Topic::Series(Box::new(request)),
        window: Window::default(),
    }
}

/// Whose right it takes to start there: the pod's namespace; empty for a node, whose namespace pods with hostNetwork share.
pub fn namespace_of(client: &Client) -> &str {
    match (&client.pod, &client.netns) {
        (Some(pod), Netns::Pod(_)) => &pod.metadata.namespace,
        _ => "",
    }
}

/// `pod/shop/client` or `node/n1`, as people type it.
pub fn words_of(client: &Client) -> String {
    match &client.pod {
        Some(pod) => format!("pod/{}/{}", pod.metadata.namespace, pod.metadata.name),
        None => format!("node/{}", client.node),
    }
}

/// For a running pod of the cluster.
pub(super) fn client_of(pod: &Arc<crate::evidence::object::Pod>, cluster: &Cluster) -> Option<Client> {
    let from = Origin::Pod { namespace: pod.metadata.namespace.clone(), name: pod.metadata.name.clone() };
    client(&from, cluster).ok()
}

#[cfg(test)]
mod tests;
