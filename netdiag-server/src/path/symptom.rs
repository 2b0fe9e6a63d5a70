//! What a client of the path experiences: by probes from its own network namespace, and by its own traffic.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::probe::{DnsRecord, Outcome, ProbeRequest, ProbeResult};

use super::lived::{Lived, lived};
use super::{Backend, Path};
use crate::evidence::{Look, View};
use crate::finding::Fate;
use crate::question::Origin;

/// Connects made to the address the client dials: with three tries a path that loses every second connection shows in 7 of 8
/// questions, and endpoints are probed one by one besides.
const ADDRESS_ATTEMPTS: u8 = 3;
/// One SYN and its first retransmission (1 s after the SYN, RFC 6298) with a margin for slow nodes. Not less: the kernel limits
/// the rate of ICMP errors per destination, so the refusal of the first SYN may be lost and only the second one be answered.
const ADDRESS_TIMEOUT_MS: u32 = 1_500;
const BACKEND_TIMEOUT_MS: u32 = 1_500;
const DNS_TIMEOUT_MS: u32 = 1_500;
/// Endpoints probed one by one; a larger Service is sampled, and the rest is named as not seen.
pub(crate) const MAX_BACKEND_PROBES: usize = 16;
/// Name servers that a resolver uses of its list (MAXNS of resolv.conf(5)).
pub(super) const MAX_NAME_SERVERS: usize = 3;
/// Candidates asked for; kubelet warns about search lists longer than this.
const MAX_CANDIDATES: usize = 8;
/// Hosts probed when the question names no source; the rest is named as not seen.
pub(crate) const MAX_CLIENT_PROBES: usize = 16;

/// Topics that [`symptom`] looks at, by [`Topic::name`](netdiag_common::Topic::name).
pub const SYMPTOM_READS: [&str; 4] = ["dns", "probe", "resolver", "tcp"];

/// What the probes of one path say.
#[derive(Debug, Clone, PartialEq)]
pub struct Symptom {
    /// By probes alone: what traffic met in the window may be over.
    pub state: SymptomState,
    pub probes: Vec<ProbeSeen>,
    /// What the path's own traffic met.
    pub lived: Vec<Lived>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SymptomState {
    /// Every probe got through.
    Works,
    /// Some did.
    Partial,
    /// None did.
    Fails,
    /// Nothing was probed, or no probe came back.
    Unknown,
}

/// One probe that was answered by an agent.
#[derive(Debug, Clone, PartialEq)]
pub struct ProbeSeen {
    /// Index into [`Path::clients`].
    pub client: usize,
    pub to: ProbeTo,
    pub at: Timestamp,
    pub result: ProbeResult,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProbeTo {
    /// What the client dials.
    Address(IpAddr),
    /// Index into [`Path::backends`].
    Backend(usize),
    /// The lookup that comes before any connection: a name server of the client, and an index into the name's candidates.
    Lookup { server: IpAddr, candidate: usize },
}

impl Path {
    /// The probe of what the client dials; none for protocols that have no probe without payload.
    pub fn address_probe(&self, address: IpAddr) -> Option<ProbeRequest> {
        self.request(address, self.port?, ADDRESS_TIMEOUT_MS, ADDRESS_ATTEMPTS)
    }

    /// The probe of one endpoint, past the Service.
    pub fn backend_probe(&self, backend: &Backend) -> Option<ProbeRequest> {
        self.request(backend.address, backend.port, BACKEND_TIMEOUT_MS, 1)
    }

    fn request(&self, address: IpAddr, port: u16, timeout_ms: u32, attempts: u8) -> Option<ProbeRequest> {
        match self.protocol {
            Protocol::Tcp => Some(ProbeRequest::TcpConnect { address, port, timeout_ms, attempts, source_port: None }),
            Protocol::Udp if self.is_dns() => {
                Some(dns_probe(address, port, &format!("kubernetes.default.svc.{}", self.cluster_domain())))
            }
            _ => None,
        }
    }

    /// The path leads to the cluster's DNS servers.
    pub fn is_dns(&self) -> bool {
        self.service().is_some_and(|service| {
            service.metadata.namespace == "kube-system"
                && (service.metadata.name == "kube-dns"
                    || service.metadata.labels.get("k8s-app").is_some_and(|app| app == "kube-dns"))
        })
    }

    fn cluster_domain(&self) -> &str {
        self.name.as_ref().map_or("cluster.local", |name| name.cluster_domain.as_str())
    }
}

/// One query for an A record, by the name as it stands.
pub fn dns_probe(server: IpAddr, port: u16, name: &str) -> ProbeRequest {
    let (name, record) = (name.to_owned(), DnsRecord::A);
    ProbeRequest::Dns { server, zone: None, port, name, record, timeout_ms: DNS_TIMEOUT_MS }
}

/// The lookups that the asked name costs the client, at each of its name servers. Nothing for paths without a name, without
/// a stated source, or whose client's resolver is not seen (noted by the view).
pub fn lookups(path: &Path, view: &mut View) -> Vec<ProbeSeen> {
    let (Some(name), [client]) = (&path.name, path.clients.as_slice()) else { return Vec::new() };
    if path.question.from == Origin::EveryNode {
        return Vec::new();
    }
    let Look::Seen(resolver) = view.resolver(&client.node, &client.netns) else { return Vec::new() };
    // A Service of IPv6 alone has no A record.
    let only_v6 = !path.addresses.is_empty() && path.addresses.iter().all(IpAddr::is_ipv6);
    let record = if only_v6 { DnsRecord::Aaaa } else { DnsRecord::A };
    let mut probes = Vec::new();
    for (place, server) in resolver.value.nameservers.iter().copied().take(MAX_NAME_SERVERS).enumerate() {
        for candidate in name.lookups().into_iter().take(MAX_CANDIDATES) {
            let name = name.candidates[candidate].clone();
            let zone = resolver.value.zone(place).map(str::to_owned);
            let request = ProbeRequest::Dns { server, zone, port: 53, name, record, timeout_ms: DNS_TIMEOUT_MS };
            if let Look::Seen(seen) = view.probe(&client.node, &client.netns, request) {
                let to = ProbeTo::Lookup { server, candidate };
                probes.push(ProbeSeen { client: 0, to, at: seen.at, result: seen.value.clone() });
            }
        }
    }
    probes
}

/// Looks at the probes of a path; the view notes those that were not sent yet.
pub fn symptom(path: &Path, view: &mut View) -> Symptom {
    let mut probes = lookups(path, view);
    for (index, client) in path.clients.iter().enumerate().take(MAX_CLIENT_PROBES) {
        probes.extend(address_probes(path, index, view));
        // A pod or node is its own backend: the probe above was that one.
        if path.service().is_none() {
            continue;
        }
        let ready = path.backends.iter().enumerate().filter(|(_, b)| b.ready && !b.terminating);
        for (number, backend) in ready.take(MAX_BACKEND_PROBES) {
            if !client.speaks_to(backend.address) {
                continue;
            }
            let Some(request) = path.backend_probe(backend) else { continue };
            if let Look::Seen(seen) = view.probe(&client.node, &client.netns, request) {
                let to = ProbeTo::Backend(number);
                probes.push(ProbeSeen { client: index, to, at: seen.at, result: seen.value.clone() });
            }
        }
    }
    let state = match (lookup_state(&probes), connect_state(&probes)) {
        (SymptomState::Fails, _) => SymptomState::Fails,
        (SymptomState::Partial, SymptomState::Works) => SymptomState::Partial,
        // A name that is found says nothing about what is behind it.
        (_, connect) => connect,
    };
    Symptom { state, probes, lived: lived(path, view) }
}

/// What a client, by its place in the path, meets at the addresses that it dials.
pub fn address_probes(path: &Path, index: usize, view: &mut View) -> Vec<ProbeSeen> {
    let client = &path.clients[index];
    let mut probes = Vec::new();
    for address in path.addresses.iter().copied().filter(|address| client.speaks_to(*address)) {
        let Some(request) = path.address_probe(address) else { continue };
        if let Look::Seen(seen) = view.probe(&client.node, &client.netns, request) {
            let to = ProbeTo::Address(address);
            probes.push(ProbeSeen { client: index, to, at: seen.at, result: seen.value.clone() });
        }
    }
    probes
}

/// The name is found when any name server gives an address for any candidate; the next server is tried when one does not
/// answer (resolv.conf(5)), which costs seconds.
fn lookup_state(probes: &[ProbeSeen]) -> SymptomState {
    let mut servers: BTreeMap<IpAddr, bool> = BTreeMap::new();
    for probe in probes {
        if let ProbeTo::Lookup { server, .. } = probe.to {
            *servers.entry(server).or_default() |= probe.fate().is_none();
        }
    }
    let good = servers.values().filter(|found| **found).count();
    match (good, servers.len() - good) {
        (0, 0) => SymptomState::Unknown,
        (_, 0) => SymptomState::Works,
        (0, _) => SymptomState::Fails,
        _ => SymptomState::Partial,
    }
}

/// What the client dials decides; endpoints that fail while the Service answers make it partial.
fn connect_state(probes: &[ProbeSeen]) -> SymptomState {
    let sum = |chosen: fn(&ProbeTo) -> bool| {
        let chosen = probes.iter().filter(|p| chosen(&p.to));
        chosen.fold((0, 0), |(good, bad), p| (good + p.result.succeeded(), bad + p.result.failed()))
    };
    let dialled = sum(|to| matches!(to, ProbeTo::Address(_)));
    let endpoints = sum(|to| matches!(to, ProbeTo::Backend(_)));
    match (dialled, endpoints) {
        ((0, 0), (0, 0)) => SymptomState::Unknown,
        ((0, 0), (_, 0)) => SymptomState::Works,
        ((0, 0), (0, _)) | ((0, _), _) => SymptomState::Fails,
        ((_, 0), (_, 0)) => SymptomState::Works,
        _ => SymptomState::Partial,
    }
}

impl Symptom {
    /// The probes of what the client dials.
    pub fn to_address(&self) -> impl Iterator<Item = &ProbeSeen> {
        self.probes.iter().filter(|probe| matches!(probe.to, ProbeTo::Address(_)))
    }

    /// The lookups of the asked name.
    pub fn lookups(&self) -> impl Iterator<Item = &ProbeSeen> {
        self.probes.iter().filter(|probe| matches!(probe.to, ProbeTo::Lookup { .. }))
    }

    /// Every probe but the lookups.
    pub fn connects(&self) -> impl Iterator<Item = &ProbeSeen> {
        self.probes.iter().filter(|probe| !probe.is_lookup())
    }

    /// How the lookup of the name went, whatever came after.
    pub fn lookup_state(&self) -> SymptomState {
        lookup_state(&self.probes)
    }

    /// How the connections went, whatever the lookup said.
    pub fn connect_state(&self) -> SymptomState {
        connect_state(&self.probes)
    }

    /// The probes of one endpoint.
    pub fn to_backend(&self, index: usize) -> impl Iterator<Item = &ProbeSeen> {
        self.probes.iter().filter(move |probe| probe.to == ProbeTo::Backend(index))
    }
}

impl ProbeSeen {
    pub fn is_lookup(&self) -> bool {
        matches!(self.to, ProbeTo::Lookup { .. })
    }

    pub fn is_to_address(&self) -> bool {
        matches!(self.to, ProbeTo::Address(_))
    }

    /// How the first failed attempt ended; none when all got through.
    pub fn fate(&self) -> Option<Fate> {
        let of = if self.is_lookup() { Fate::of_lookup } else { Fate::of };
        self.result.attempts.iter().find_map(|attempt| of(&attempt.outcome))
    }

    /// `3 of 3 connects to 10.96.0.7:80 from pod shop/client: refused (ECONNREFUSED) after 1.2 ms`.
    pub fn words(&self, path: &Path) -> String {
        let client = path.clients.get(self.client).map(|c| c.reference.to_string()).unwrap_or_default();
        let target = match self.to {
            ProbeTo::Address(address) => std::net::SocketAddr::new(address, path.port.unwrap_or(0)).to_string(),
            ProbeTo::Backend(index) => path.backends.get(index).map(Backend::words).unwrap_or_default(),
            ProbeTo::Lookup { server, candidate } => {
                let asked = path.name.as_ref().and_then(|name| name.candidates.get(candidate));
                format!("name server {server} for {}", asked.map_or("", String::as_str))
            }
        };
        let total = self.result.attempts.len();
        let of = if self.is_lookup() { Fate::of_lookup } else { Fate::of };
        let failed = self.result.attempts.iter().filter(|a| {
            !matches!(a.outcome, Outcome::Connected | Outcome::Answered { .. }) || of(&a.outcome).is_some()
        });
        let Some(worst) = failed.clone().next().or(self.result.attempts.first()) else {
            return format!("probe of {target} from {client} made no attempt");
        };
        let count = if failed.clone().count() == 0 { total } else { failed.count() };
        let milliseconds = f64::from(u32::try_from(worst.elapsed_us).unwrap_or(u32::MAX)) / 1000.0;
        format!(
            "{count} of {total} probes to {target} from {client}: {} after {milliseconds:.1} ms",
            worst.outcome.words()
        )
    }
}
