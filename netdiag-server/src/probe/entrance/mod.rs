//! The last rungs: the hosts of Ingresses and Gateways under which people come to a Service, as the API tells of them. Pure.
//!
//! One rung for each host. What is sent satisfies the match that leads to the Service; what nothing can satisfy is told.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::Gap;

use super::kind::Kind;
use super::ladder::RungName;
use super::plan::{Ends, PlanError, Shot};
use super::secret::SecretName;
use super::shots;
use super::words::ProbeRequest;
use crate::evidence::Cluster;
use crate::evidence::object::{Service, ServicePort};

mod gateway;
mod grant;
mod ingress;
pub(super) mod judge;
mod matches;
#[cfg(test)]
mod tests;

/// Hosts of one kind that are tried; the rest is told.
const MAX_HOSTS: usize = 6;
/// Ways to one host that are tried: paths, addresses, listeners. The rest is told.
const MAX_WAYS: usize = 4;
/// For a host of which only the end is known.
const ANY_LABEL: &str = "netdiag";

/// One host, before its rung is climbed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    pub rung: RungName,
    /// `shop.example`, `*.shop.example`; `*` for every host.
    pub name: String,
    pub ways: Vec<Way>,
    /// Why other ways to it are not tried.
    pub untried: Vec<String>,
}

/// One request to one address that must lead to the Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    /// `Ingress shop/web`
    pub object: String,
    /// Where the certificate of this host should come from; empty without TLS, and where nobody says.
    pub secrets: Vec<SecretName>,
    pub shot: Shot,
}

/// Everything that leads to one port of a Service from outside.
#[derive(Debug, Default)]
pub(super) struct Entrances {
    /// Those of Ingresses first.
    pub hosts: Vec<Host>,
    /// Kinds that could not be listed.
    pub gaps: Vec<Gap>,
}

/// The door that a rule stands at, for one host.
struct Door<'d> {
    rung: RungName,
    object: &'d str,
    /// As the rule has it; empty for every host.
    host: &'d str,
    https: bool,
    port: u16,
    secrets: &'d [SecretName],
    /// As the status has them: addresses and names.
    addresses: &'d [String],
}

/// What must be sent to satisfy a match.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Asking {
    Http {
        /// With the query.
        path: String,
        headers: Vec<(String, String)>,
        method: Option<String>,
    },
    /// How the server as a whole is, by grpc.health.v1.Health.
    Grpc { headers: Vec<(String, String)> },
    /// A handshake.
    Tls,
}

/// The ladder's words, and whose addresses are meant.
#[derive(Clone, Copy)]
pub(super) struct Wanted<'w> {
    pub request: &'w ProbeRequest,
    pub is_v4: bool,
    /// Whether addresses that are names are tried, too: their family is not known before.
    pub names_too: bool,
}

/// The hosts that lead to this port of the Service.
pub(super) fn find(cluster: &Cluster, service: &Service, port: &ServicePort, wanted: Wanted<'_>) -> Entrances {
    let mut found = Entrances::default();
    ingress::find(cluster, service, port, wanted, &mut found);
    gateway::find(cluster, service, port, wanted, &mut found);
    let kinds = [
        cluster.ingresses.gap(),
        cluster.http_routes.gap(),
        cluster.grpc_routes.gap(),
        cluster.tls_routes.gap(),
        cluster.gateways.gap(),
        cluster.reference_grants.gap(),
    ];
    found.gaps.extend(kinds.into_iter().flatten().cloned());
    for rung in [RungName::Ingress, RungName::Gateway] {
        found.bound(rung);
    }
    found
}

impl Entrances {
    fn host(&mut self, rung: RungName, name: &str) -> &mut Host {
        let name = if name.is_empty() { "*" } else { name };
        let known = self.hosts.iter().position(|host| host.rung == rung && host.name == name);
        let index = known.unwrap_or_else(|| {
            self.hosts.push(Host { rung, name: name.to_owned(), ways: Vec::new(), untried: Vec::new() });
            self.hosts.len() - 1
        });
        &mut self.hosts[index]
    }

    fn not_tried(&mut self, rung: RungName, host: &str, why: String) {
        let host = self.host(rung, host);
        if !host.untried.contains(&why) {
            host.untried.push(why);
        }
    }

    /// One way for each address of the door.
    fn add(&mut self, door: &Door<'_>, asking: Result<Asking, String>, wanted: Wanted<'_>) {
        let object = door.object;
        let asking = match asking {
            Ok(asking) => asking,
            Err(why) => return self.not_tried(door.rung, door.host, format!("{object}: {why}")),
        };
        let mut others = 0;
        for address in door.addresses {
            let shot = match address.parse::<IpAddr>() {
                Ok(address) if address.is_ipv4() == wanted.is_v4 => {
                    door.at_address(address, &asking, wanted.request).map_err(|error| error.to_string())
                }
                Err(_) if wanted.names_too && asking == Asking::Tls => Err(door.handshake_by_name(address)),
                Err(_) if wanted.names_too => {
                    door.at_name(address, &asking, wanted.request).map_err(|error| error.to_string())
                }
                _ => {
                    others += 1;
                    continue;
                }
            };
            match shot {
                Ok(shot) => {
                    let host = self.host(door.rung, door.host);
                    if !host.ways.iter().any(|known| known.shot == shot) {
                        host.ways.push(Way { object: object.to_owned(), secrets: door.secrets.to_vec(), shot });
                    }
                }
                Err(why) => self.not_tried(door.rung, door.host, format!("{object}: {why}")),
            }
        }
        if door.addresses.is_empty() {
            let why =
                format!("{object}: its status has no address, so no controller has taken it, or none says where it is");
            self.not_tried(door.rung, door.host, why);
        } else if others == door.addresses.len() {
            let family = if wanted.is_v4 { "IPv4" } else { "IPv6" };
            self.not_tried(door.rung, door.host, format!("{object}: its status has no {family} address"));
        }
    }

    /// No more than is worth a climb; what is left out is told.
    fn bound(&mut self, rung: RungName) {
        for host in self.hosts.iter_mut().filter(|host| host.rung == rung && host.ways.len() > MAX_WAYS) {
            let more = host.ways.len() - MAX_WAYS;
            host.ways.truncate(MAX_WAYS);
            host.untried.push(format!("{more} more ways: {MAX_WAYS} to one host are tried"));
        }
        let mut rest: Vec<String> = Vec::new();
        let mut kept = 0;
        self.hosts.retain(|host| {
            kept += usize::from(host.rung == rung);
            let stays = host.rung != rung || kept <= MAX_HOSTS;
            if !stays {
                rest.push(host.name.clone());
            }
            stays
        });
        if !rest.is_empty() {
            let name = format!("{} and {} more", rest[0], rest.len() - 1);
            let name = if rest.len() == 1 { rest.remove(0) } else { name };
            self.not_tried(rung, &name, format!("{MAX_HOSTS} hosts are tried"));
        }
    }
}

impl Door<'_> {
    /// What a client would look up: some host that the rule takes.
    fn some_host(&self) -> String {
        match self.host.strip_prefix("*.") {
            Some(rest) => format!("{ANY_LABEL}.{rest}"),
            None => self.host.to_owned(),
        }
    }

    fn at_address(&self, address: IpAddr, asking: &Asking, request: &ProbeRequest) -> Result<Shot, PlanError> {
        if *asking == Asking::Tls {
            return self.handshake(address, request);
        }
        let host = match self.host {
            "" => shots::host_of(address),
            _ => self.some_host(),
        };
        let to = SocketAddr::new(address, self.port);
        shots::url(&asked(asking, request, Vec::new(), None), &self.url(&host, asking), Some(to))
    }

    /// By the name of the load balancer, under the name of the rule.
    fn at_name(&self, name: &str, asking: &Asking, request: &ProbeRequest) -> Result<Shot, PlanError> {
        let host = Some(self.some_host()).filter(|host| !host.is_empty());
        let headers = host.iter().map(|host| format!("Host: {host}{}", self.port_in_url())).collect();
        let shot = shots::url(&asked(asking, request, headers, host.clone()), &self.url(name, asking), None)?;
        let to = host.map_or_else(|| shot.to.clone(), |host| format!("{} at {name}", self.url(&host, asking)));
        Ok(Shot { to, ..shot })
    }

    /// By the name of the rule; without one where the rule has none.
    fn handshake(&self, address: IpAddr, request: &ProbeRequest) -> Result<Shot, PlanError> {
        let request = ProbeRequest { kind: Kind::Tls, ..request.clone() };
        let name = Some(self.some_host()).filter(|host| !host.is_empty());
        let shot = shots::at(&request, &Ends { address, port: Some(self.port), name: name.clone() })?;
        let to = name.map_or_else(|| format!("TLS at {}", shot.to), |name| format!("TLS for {name} at {}", shot.to));
        Ok(Shot { to, ..shot })
    }

    /// Why that is not tried: such a probe goes to an address.
    fn handshake_by_name(&self, name: &str) -> String {
        let host = self.some_host();
        let server_name = if host.is_empty() { String::new() } else { format!(" --server-name {host}") };
        format!("the address in its status is a name: try `netdiag probe tls --to {name}:{}{server_name}`", self.port)
    }

    fn url(&self, host: &str, asking: &Asking) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{host}{}{}", self.port_in_url(), asking.path())
    }

    fn port_in_url(&self) -> String {
        let usual = if self.https { HTTPS } else { HTTP };
        if self.port == usual { String::new() } else { format!(":{}", self.port) }
    }
}

impl Asking {
    fn get(path: String) -> Self {
        Self::Http { path, headers: Vec::new(), method: None }
    }

    fn path(&self) -> &str {
        match self {
            Self::Http { path, .. } => path,
            Self::Grpc { .. } => matches::HEALTH_PATH,
            Self::Tls => "",
        }
    }

    fn headers(&self) -> &[(String, String)] {
        match self {
            Self::Http { headers, .. } | Self::Grpc { headers } => headers,
            Self::Tls => &[],
        }
    }

    fn method(&self) -> Option<&String> {
        match self {
            Self::Http { method, .. } => method.as_ref(),
            Self::Grpc { .. } | Self::Tls => None,
        }
    }
}

const HTTP: u16 = 80;
const HTTPS: u16 = 443;

/// The ladder's request as one of HTTP.
fn asked(
    asking: &Asking,
    request: &ProbeRequest,
    mut headers: Vec<String>,
    server_name: Option<String>,
) -> ProbeRequest {
    let mut request = request.clone();
    headers.extend(asking.headers().iter().map(|(name, value)| format!("{name}: {value}")));
    request.options.headers = headers;
    request.options.method = asking.method().cloned();
    request.options.grpc_health = matches!(asking, Asking::Grpc { .. }).then(String::new);
    request.options.server_name = server_name;
    request
}

/// What nobody but the controller can read is no path that could be asked for.
fn plain(path: &str) -> bool {
    path.starts_with('/') && path.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"/-._~%".contains(&byte))
}

/// A path below the prefix that no exact match takes before it.
fn below(prefix: &str, taken: impl Fn(&str) -> bool) -> String {
    let prefix = if prefix.is_empty() { "/" } else { prefix };
    if taken(prefix) { format!("{}/{ANY_LABEL}", prefix.trim_end_matches('/')) } else { prefix.to_owned() }
}
