//! Client, Service, pods and processes do not all have the address family of a connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use jiff::Timestamp;
use netdiag_common::observation::listener::Listener;
use netdiag_common::observation::network::{Route, RouteKind};

use super::sockets::{self, Behind, Heard};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words, proof, unready};
use crate::evidence::object::{Object, Pod, Service};
use crate::evidence::{Kind, KindName, Look, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::listing::named;
use crate::path::route::words;
use crate::path::{Client, Path};
use crate::question::Origin;

pub const CONDITION: Condition = Condition {
    code: "address_families_differ",
    severity: Severity::High,
    words: Words {
        means: "the Service is dialled by IPv4 or IPv6, and the client, the Service's pods or the processes in them have the \
                other family alone",
        how_we_know: "the Service's addresses against those of the client and the pods; the client's routes, kube-proxy's rules \
                      for that address, and the pods' sockets",
        silent_when: "both ends have the family, a pod that has it is not ready, the client has a route to the address \
                      although it has no address of that family, or no single client is asked about",
        what_to_do: "make the process listen on ::, give the pods addresses of both families, or let the Service have the \
                     family that clients and pods share (ipFamilies, ipFamilyPolicy)",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/dual-stack/",
            "https://github.com/kubernetes/enhancements/tree/master/keps/sig-network/563-dual-stack",
            "ipv6(7)",
        ],
    },
    faults: &["svc-ipfamily-mismatch"],
    reads: &[
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Pods),
        Read::Topic("network"),
        Read::Topic("service_rules"),
        Read::Topic("listeners"),
        Read::Topic("drops"),
        Read::Topic("rejects"),
    ],
    lookalikes: &["listener_bound_to_loopback", "kube_proxy_rules_stale", "policy_denies_path"],
    explains: &[
        // Pods without the family are no endpoints of it.
        Explains { code: "service_has_no_ready_endpoints", relation: Relation::SameService },
        // Nobody has the port in that family.
        Explains { code: "target_port_not_listening", relation: Relation::SameService },
    ],
    judge,
};

/// Pods described one by one; the rest is counted.
const MAX_NAMED: usize = 3;

fn judge(path: &Path, view: &mut View) -> Verdict {
    let (Some(service), Some(_)) = (path.service(), path.service_port()) else {
        return Verdict::not_applicable("the path does not lead to a Service's port");
    };
    let (Look::Seen(slices), Look::Seen(pods)) = (view.endpoint_slices(), view.pods()) else {
        return Verdict::unknown(view);
    };
    if let Some(verdict) = client_lacks(path, service, view) {
        return verdict;
    }
    if let Some(verdict) = pods_lack(path, service, pods.value, slices.at, view) {
        return verdict;
    }
    processes_lack(path, service, view)
}

fn family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv4" } else { "IPv6" }
}

fn other_family(address: IpAddr) -> &'static str {
    if address.is_ipv4() { "IPv6" } else { "IPv4" }
}

fn list(addresses: impl Iterator<Item = IpAddr>) -> String {
    addresses.map(|address| address.to_string()).collect::<Vec<_>>().join(", ")
}

fn addresses_of(service: &Service, at: Timestamp) -> Proof {
    let policy = match service.spec.ip_family_policy.as_str() {
        "" => String::new(),
        policy => format!("; spec.ipFamilyPolicy is {policy}"),
    };
    let addresses = match list(service.cluster_ips().into_iter()) {
        none if none.is_empty() => "it has no address of its own".to_owned(),
        some => format!("its addresses: {some}"),
    };
    Proof::intended(service.reference(), at, format!("{addresses}{policy}"))
}

/// The client has no address of the family that it would have to dial. None when it has one.
fn client_lacks(path: &Path, service: &Service, view: &mut View) -> Option<Verdict> {
    let [client] = path.clients.as_slice() else { return None };
    if path.question.from == Origin::EveryNode {
        return None;
    }
    let dialled: Vec<IpAddr> = if path.addresses.is_empty() {
        path.ready_backends().map(|backend| backend.address).collect()
    } else {
        path.addresses.clone()
    };
    let first = *dialled.first()?;
    if dialled.iter().any(|address| client.speaks_to(*address)) {
        return None;
    }
    let Look::Seen(network) = view.network(&client.node, &client.netns) else { return Some(Verdict::unknown(view)) };
    // A translator for the other family (464XLAT, or a network plugin's own way out) shows as a route.
    let leads = |route: &&Route| {
        route.kind == RouteKind::Unicast && dialled.iter().any(|address| route.destination.contains(address))
    };
    if let Some(route) = network.value.routes.iter().find(leads) {
        let route = words(route, network.value);
        return Some(Verdict::clear(format!("{} has a route to {first}: {route}", client.reference)));
    }
    if !network.value.left_out.is_empty() {
        return Some(Verdict::not_applicable("the client's routes were not all listed"));
    }
    Some(Verdict::found(client_finding(path, service, client, first, network.at, view)))
}

fn client_finding(
    path: &Path,
    service: &Service,
    client: &Client,
    first: IpAddr,
    at: Timestamp,
    view: &View,
) -> Finding {
    let (has, lacks) = (other_family(first), family(first));
    let own = list(client.addresses.iter().copied());
    Finding {
        subjects: vec![service.reference(), client.reference.clone()],
        since: service.metadata.changed_at,
        impact: Impact::Breaks,
        claim: format!(
            "{} is reached by {lacks} alone ({first}), and {} has {has} alone ({own})",
            service.reference(),
            client.reference
        ),
        proofs: vec![
            addresses_of(service, view.now()),
            Proof::intended(&client.reference, view.now(), format!("its addresses: {own}")),
            Proof::programmed("routes", &client.node, at, format!("{} has no route to {first}", client.reference)),
        ],
        predicts: &[Fate::Unreachable],
        fix: Fix {
            text: format!(
                "give the Service an address of {has} as well (spec.ipFamilyPolicy: PreferDualStack), or make the client's \
                 pod anew where it gets {lacks}"
            ),
            commands: Vec::new(),
            verify: path.ask_again(),
        },
    }
}

/// An address of the Service has no endpoints because its pods have no address of that family. None when that is not so.
fn pods_lack(
    path: &Path,
    service: &Service,
    pods: &Kind<Pod>,
    slices_at: Timestamp,
    view: &mut View,
) -> Option<Verdict> {
    // Without a selector endpoints are written by hand, for whatever family.
    if service.spec.selector.is_empty() {
        return None;
    }
    let own = service.cluster_ips();
    let is_spoken = |address: &IpAddr| path.clients.iter().any(|client| client.speaks_to(*address));
    let spoken: Vec<IpAddr> =
        path.addresses.iter().copied().filter(|address| own.contains(address) && is_spoken(address)).collect();
    let ready = |pod: &&Arc<Pod>| pod.is_ready() && pod.metadata.deleted_at.is_none();
    let pods: Vec<&Arc<Pod>> = unready::selected(pods, service).filter(ready).collect();
    // A pod whose addresses are not told may have any.
    if pods.is_empty() || pods.iter().any(|pod| pod.addresses().next().is_none()) {
        return None;
    }
    let lacks = |address: &IpAddr| {
        let like = |other: IpAddr| other.is_ipv4() == address.is_ipv4();
        !path.backends.iter().any(|backend| like(backend.address)) && !pods.iter().any(|pod| pod.addresses().any(like))
    };
    let lacking = spoken.iter().copied().find(lacks)?;
    let (family, other) = (family(lacking), other_family(lacking));
    let reference = service.reference();
    let mut proofs = vec![
        addresses_of(service, view.now()),
        Proof::intended(
            format!("EndpointSlices of {reference}"),
            slices_at,
            format!("0 endpoints of {family}, {} of {other}", path.backends.len()),
        ),
    ];
    for pod in pods.iter().take(MAX_NAMED) {
        let text = format!("its addresses: {}", list(pod.addresses()));
        proofs.push(Proof::intended(pod.reference(), view.now(), text));
    }
    if let (Some(client), Some(port)) = (path.clients.iter().find(|client| client.speaks_to(lacking)), path.port) {
        proofs.extend(proof::refused_by_rules(client, lacking, port, path.protocol, view));
    }
    let only = spoken.len() == 1;
    let text = if only {
        format!("make the Service anew with {other} (spec.ipFamilies), or give its pods addresses of {family}")
    } else {
        format!("give the Service's pods addresses of {family}, or take that family from its spec.ipFamilies")
    };
    Some(Verdict::found(Finding {
        subjects: vec![reference.clone()],
        since: service.metadata.changed_at,
        impact: if only { Impact::Breaks } else { Impact::Degrades },
        claim: format!(
            "{reference} has the {family} address {lacking}, and its {} ready pods have {other} alone",
            pods.len()
        ),
        proofs,
        // As any Service without endpoints: most proxies refuse, some drop.
        predicts: &[Fate::Refused, Fate::Unreachable, Fate::Silence],
        fix: Fix { text, commands: Vec::new(), verify: path.ask_again() },
    }))
}

/// A pod's socket at the right port, which takes the other family alone.
struct Deaf<'d, 'p> {
    behind: &'d Behind<'p>,
    socket: &'d Listener,
}

/// Endpoints of a family that the processes behind them do not listen in.
fn processes_lack(path: &Path, service: &Service, view: &mut View) -> Verdict {
    if let Some(silent) = sockets::nothing_to_look_at(path) {
        return silent;
    }
    let sockets = sockets::behind(path, view);
    let closed = sockets.closed(|heard| matches!(heard, Heard::Nobody(_)));
    let mut deaf: Vec<Deaf> = Vec::new();
    for behind in closed {
        let Some(netns) = behind.backend.netns() else { continue };
        // The node's namespace is shared: a socket there may be anybody's.
        if behind.pod.spec.host_network {
            continue;
        }
        let Look::Seen(listeners) = view.listeners(&behind.backend.node, &netns) else { continue };
        let of_port = |socket: &&Listener| {
            socket.protocol == path.protocol && socket.port == behind.backend.port && socket.address.is_unspecified()
        };
        deaf.extend(listeners.value.iter().find(of_port).map(|socket| Deaf { behind, socket }));
    }
    let Some(first) = deaf.first() else {
        return match (sockets.behind.len(), sockets.dark) {
            (_, 1..) => Verdict::unknown(view),
            (0, 0) => {
                Verdict::not_applicable("no endpoint is a pod of this cluster that the client has an address for")
            }
            _ => Verdict::clear(
                "client, Service and endpoints have a family in common, and no socket takes the other alone",
            ),
        };
    };
    let address = first.behind.backend.address;
    let (family, other) = (family(address), other_family(address));
    let mut proofs = vec![addresses_of(service, view.now())];
    for deaf in deaf.iter().take(MAX_NAMED) {
        let backend = deaf.behind.backend;
        let at = SocketAddr::new(deaf.socket.address, deaf.socket.port);
        let endpoint = SocketAddr::new(backend.address, backend.port);
        let process = sockets::process_in_words(deaf.socket);
        let text = format!("{process} listens on {at}, which takes {other} alone; nothing takes {endpoint}");
        let source = format!("sockets of {}", deaf.behind.pod.reference());
        proofs.push(Proof::programmed(source, &backend.node, deaf.behind.at, text));
        proofs.extend(sockets::refused_packets(deaf.behind, path.protocol, view));
    }
    let behind: Vec<&Behind> = deaf.iter().map(|deaf| deaf.behind).collect();
    let pods = sockets::pods(&behind);
    let place = named(pods.iter(), MAX_NAMED);
    let reference = service.reference();
    let port = first.behind.backend.port;
    let mut subjects = vec![reference.clone()];
    subjects.extend(pods);
    Verdict::found(Finding {
        subjects,
        since: None,
        impact: if sockets.all_closed() { Impact::Breaks } else { Impact::Degrades },
        claim: format!(
            "{reference} sends {family} to {place}, where port {port}/{} is listened on for {other} alone",
            path.protocol
        ),
        proofs,
        predicts: &[Fate::Refused],
        fix: Fix {
            text: format!(
                "make the process listen on :: (both families), or take {family} from the Service's spec.ipFamilies"
            ),
            commands: Vec::new(),
            verify: path.ask_again(),
        },
    })
}
