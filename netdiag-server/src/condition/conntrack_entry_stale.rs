//! Connection tracking still sends a UDP flow to an endpoint that the Service has lost: the flow's socket loses every packet.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use jiff::{SignedDuration, Timestamp};
use netdiag_common::observation::Protocol;
use netdiag_common::observation::flow::{Flow, FlowMapping, FlowSnapshot, RulesToday};
use netdiag_common::observation::kfree_skb::DropTuple;
use netdiag_common::{Gap, GapReason, Netns};

use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Object, Service};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::forwarding::is_proxied;
use crate::path::{Client, Path};
use crate::question::Origin;

pub const CONDITION: Condition = Condition {
    code: "conntrack_entry_stale",
    severity: Severity::High,
    words: Words {
        means: "a node's connection tracking still sends a UDP flow to an endpoint that is gone; as long as its socket goes on \
                sending from the same port the entry lives, and new sockets work",
        how_we_know: "entries of the Service's address that today's rules of the node would not make, whose endpoint is in no \
                      EndpointSlice and belongs to no pod, and that a packet used a moment ago, after the endpoint had left",
        silent_when: "the endpoint is still listed, for example while it terminates, its pod still lives and may answer, the entry \
                      is not used, or the path is TCP, where a new connection has a new port and so a new entry",
        what_to_do: "delete the entries on that node, and find out why kube-proxy did not",
        sources: &[
            "https://github.com/kubernetes/kubernetes/issues/48370",
            "https://github.com/kubernetes/kubernetes/issues/125467",
            "net/netfilter/nf_nat_core.c: nf_nat_inet_fn (an entry keeps the translation of its first packet)",
        ],
    },
    faults: &["ct-udp-stale-endpoint"],
    reads: &[
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Nodes),
        Read::Topic("flows"),
        Read::Topic("drops"),
    ],
    lookalikes: &["kube_proxy_rules_stale", "policy_denies_path", "host_firewall_drops_path"],
    explains: &[],
    judge,
};

/// An entry without a packet for longer than this may be one that nobody uses any more: it ends by itself
/// (`nf_conntrack_udp_timeout` is 30 s).
const IN_USE_S: u32 = 30;
/// kube-proxy has followed a change of the EndpointSlices and deleted the entries by then, or it does not.
const SETTLE: SignedDuration = SignedDuration::from_secs(10);
/// Entries told one by one.
const MAX_NAMED: usize = 3;

/// Flows of one node to one endpoint that is gone.
struct Stale<'e> {
    node: String,
    endpoint: SocketAddr,
    flows: Vec<&'e Flow>,
    read_at: Timestamp,
    /// Whose the entries are; none where the mapping was not listed.
    owned: Option<Proof>,
    gone: Proof,
}

enum Node<'e> {
    Stale(Vec<Stale<'e>>),
    Fine,
    /// There are no rules of kube-proxy that entries could be compared with.
    Silent,
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some(service) = path.service().filter(|service| is_proxied(service)) else {
        return Verdict::not_applicable("the path does not lead to an address that kube-proxy translates");
    };
    if path.protocol != Protocol::Udp {
        return Verdict::not_applicable("a new connection has a new port, which no old entry belongs to");
    }
    if path.ready_backends().next().is_none() {
        return Verdict::not_applicable("there is no endpoint that flows could go to instead");
    }
    let (Look::Seen(slices), Look::Seen(_), Look::Seen(_)) = (view.endpoint_slices(), view.pods(), view.nodes()) else {
        return Verdict::unknown(view);
    };
    let (mut stale, mut fine, mut dark) = (Vec::new(), 0, false);
    for client in &path.clients {
        match on_node(path, service, client, view) {
            Node::Stale(found) => stale.extend(found),
            Node::Fine => fine += 1,
            Node::Silent => {}
            Node::Dark => dark = true,
        }
    }
    let Some(first) = stale.first() else {
        return match (fine, dark) {
            (_, true) => Verdict::unknown(view),
            (0, false) => Verdict::not_applicable("no node has rules of kube-proxy to compare flows with"),
            (_, false) => Verdict::clear("no flow in use is sent to an endpoint that is gone"),
        };
    };
    let to = first.flows.first().map(|flow| SocketAddr::new(flow.original.destination, flow.original.destination_port));
    let count: usize = stale.iter().map(|one| one.flows.len()).sum();
    let flows = if count == 1 { "a flow that is".to_owned() } else { format!("{count} flows that are") };
    let claim = format!(
        "connection tracking on node {} sends {flows} in use from {} to {}/udp of {} to {}, which is no endpoint any more; \
         sockets that keep their port lose every packet, new ones do not",
        first.node,
        first.flows.first().map_or_else(String::new, |flow| flow.original.source.to_string()),
        to.map_or_else(String::new, |to| to.to_string()),
        service.reference(),
        first.endpoint,
    );
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for node in stale.iter().map(|one| ObjectRef::of_node(&one.node)) {
        if !subjects.contains(&node) {
            subjects.push(node);
        }
    }
    subjects.push(service.reference());
    let mut proofs: Vec<Proof> = stale.iter().flat_map(entries).collect();
    proofs.extend(stale.iter().take(MAX_NAMED).filter_map(|one| one.owned.clone()));
    let endpoints: Vec<String> =
        path.ready_backends().map(|backend| SocketAddr::new(backend.address, backend.port).to_string()).collect();
    let text = format!("endpoints are {}", endpoints.join(", "));
    proofs.push(Proof::intended(format!("EndpointSlices of {}", service.reference()), slices.at, text));
    proofs.extend(stale.iter().take(MAX_NAMED).map(|one| one.gone.clone()));
    proofs.extend(stale.iter().take(MAX_NAMED).filter_map(|one| lost(&one.node, one.endpoint, view)));
    let fix = fix(path, &stale);
    Verdict::found(Finding {
        subjects,
        since: None,
        impact: Impact::Degrades,
        claim,
        proofs,
        predicts: &[Fate::Silence],
        fix,
    })
}

fn on_node<'e>(path: &Path, service: &Service, client: &Client, view: &mut View<'e>) -> Node<'e> {
    let flows = match view.flows(&client.node, &Netns::Host) {
        Look::Seen(flows) => flows,
        Look::Absent(_) => return Node::Fine,
        Look::Dark => return Node::Dark,
    };
    let snapshot = &flows.value.snapshot;
    let is_to_service = |mapping: &&FlowMapping| {
        path.addresses.contains(&mapping.address)
            && Some(mapping.port) == path.port
            && mapping.protocol == path.protocol
    };
    let mut own = snapshot.mappings.iter().filter(is_to_service).peekable();
    if own.peek().is_some() && own.all(|mapping| mapping.rules == RulesToday::NotKnown) {
        return if snapshot.limits.is_empty() { Node::Silent } else { incomplete(client, snapshot, view) };
    }
    let is_used = |flow: &&Flow| is_meant(path, client, flow) && is_in_use(service, flow, snapshot, view);
    let used: Vec<&Flow> = snapshot.outdated.iter().filter(is_used).collect();
    let mut stale: Vec<Stale> = Vec::new();
    for flow in used {
        let endpoint = SocketAddr::new(flow.reply.source, flow.reply.source_port);
        if is_backend(path, endpoint) {
            continue;
        }
        match stale.iter_mut().find(|known| known.endpoint == endpoint) {
            Some(known) => known.flows.push(flow),
            None => {
                let Some(gone) = gone(&client.node, endpoint, view) else { continue };
                let node = client.node.clone();
                let owned = owned(&node, flow, endpoint, snapshot);
                stale.push(Stale { node, endpoint, flows: vec![flow], read_at: snapshot.at, owned, gone });
            }
        }
    }
    let listed = snapshot.outdated.len() as u64;
    match stale.is_empty() {
        false => Node::Stale(stale),
        true if snapshot.outdated_flows > listed || !snapshot.limits.is_empty() => incomplete(client, snapshot, view),
        true => undated(path, client, snapshot, view),
    }
}

/// Whether an entry is in use shows in its age alone.
fn undated<'e>(path: &Path, client: &Client, snapshot: &FlowSnapshot, view: &mut View<'e>) -> Node<'e> {
    let mut count = 0;
    for flow in snapshot.outdated.iter().filter(|flow| is_meant(path, client, flow)) {
        let endpoint = SocketAddr::new(flow.reply.source, flow.reply.source_port);
        let is_undated = flow.latest_packet_s.is_none() && !flow.is_offloaded();
        if is_undated && !is_backend(path, endpoint) && gone(&client.node, endpoint, view).is_some() {
            count += 1;
        }
    }
    if count == 0 {
        return Node::Fine;
    }
    let why = format!(
        "{count} entries lead to endpoints that are gone, and whether they are in use is not known: no timeout that was read \
         tells when they had their latest packet"
    );
    leave_open(client, why, view)
}

fn is_backend(path: &Path, endpoint: SocketAddr) -> bool {
    path.backends.iter().any(|known| known.address == endpoint.ip() && known.port == endpoint.port())
}

/// Asked from everywhere, every client of the node speaks for it.
fn is_meant(path: &Path, client: &Client, flow: &Flow) -> bool {
    let original = &flow.original;
    flow.protocol() == Some(path.protocol)
        && path.addresses.contains(&original.destination)
        && Some(original.destination_port) == path.port
        && (path.question.from == Origin::EveryNode || client.addresses.contains(&original.source))
}

/// Its latest packet came after the endpoints last changed: whoever sent it does not know.
fn is_in_use(service: &Service, flow: &Flow, snapshot: &FlowSnapshot, view: &View) -> bool {
    let Some(age_s) = flow.latest_packet_s.filter(|age_s| *age_s <= IN_USE_S && !flow.is_offloaded()) else {
        return false;
    };
    let changed = view.cluster().slices_of(service).filter_map(|slice| slice.metadata.changed_at).max();
    // Nodes have clocks of their own: one that is ahead must not make a change look old.
    let read_at = snapshot.at.min(view.now());
    let latest = read_at.checked_sub(SignedDuration::from_secs(i64::from(age_s))).unwrap_or(read_at);
    changed.is_none_or(|changed| latest.duration_since(changed) >= SETTLE)
}

/// Rules of kube-proxy translate what the entry translates, and another way; kube-proxy is also who deletes such entries
/// (`CleanStaleEntries`, pkg/proxy/conntrack/cleanup.go, Kubernetes 1.34). With other rules nothing is compared.
fn owned(node: &str, flow: &Flow, endpoint: SocketAddr, snapshot: &FlowSnapshot) -> Option<Proof> {
    let (address, port) = (flow.original.destination, flow.original.destination_port);
    let is_its = |mapping: &&FlowMapping| {
        (mapping.address, mapping.port) == (address, port)
            && Some(mapping.protocol) == flow.protocol()
            && (mapping.endpoint.address, mapping.endpoint.port) == (endpoint.ip(), endpoint.port())
    };
    snapshot.mappings.iter().find(is_its).filter(|mapping| mapping.rules.is_outdated())?;
    let text = format!(
        "kube-proxy's rules translate {}/udp, and not to {endpoint}; entries of endpoints that left are kube-proxy's to delete",
        SocketAddr::new(address, port)
    );
    Some(Proof::programmed("kube-proxy's rules", node, snapshot.at, text))
}

/// Nobody can answer at that address: it is of the pod network and no pod has it, or packets to it are lost. An endpoint outside
/// the cluster, or a pod that the Service selects no more, may answer as before.
fn gone(client_node: &str, endpoint: SocketAddr, view: &mut View) -> Option<Proof> {
    let cluster = view.cluster();
    let address = endpoint.ip();
    if cluster.pod_by_address(address).is_some() || cluster.node_by_address(address).is_some() {
        return None;
    }
    match pod_network(address, view) {
        Some((node, net)) => {
            let text = format!("no pod has {address}, an address of {net}, the pods of node {node}");
            Some(Proof::intended("pods", view.now(), text))
        }
        None => lost(client_node, endpoint, view),
    }
}

fn pod_network(address: IpAddr, view: &View) -> Option<(String, IpNet)> {
    view.cluster().nodes.iter().find_map(|node| {
        let net = node.spec.pod_cidrs.iter().find(|net| net.contains(&address))?;
        Some((node.metadata.name.clone(), *net))
    })
}

/// Packets to the old endpoint that died on the client's node or on the one whose pods had such addresses.
fn lost(client_node: &str, endpoint: SocketAddr, view: &mut View) -> Option<Proof> {
    let is_to_it = |tuple: &DropTuple| {
        tuple.destination == endpoint.ip()
            && tuple.protocol == Some(Protocol::Udp)
            && (!tuple.port_is_destination || tuple.service_port == endpoint.port())
    };
    let other = pod_network(endpoint.ip(), view).map(|(node, _)| node).filter(|node| node != client_node);
    for node in [Some(client_node.to_owned()), other].into_iter().flatten() {
        let Look::Seen(drops) = view.drops(&node, &Netns::Host) else { continue };
        let group = drops.value.groups.iter().find(|group| group.tuple.as_ref().is_some_and(is_to_it));
        if let Some(group) = group {
            let text = format!(
                "{} packets to {endpoint}/udp dropped in {:.0} s: {} at {}",
                group.packets, drops.value.window_s, group.reason, group.location
            );
            return Some(Proof::observed("dropped packets", &node, drops.at, text));
        }
    }
    None
}

fn entries<'s>(stale: &'s Stale) -> impl Iterator<Item = Proof> + 's {
    stale.flows.iter().take(MAX_NAMED).map(|flow| {
        let original = &flow.original;
        let answered = if flow.is_replied() { "was answered once" } else { "was never answered" };
        let text = format!(
            "udp from {} to {} goes to {}, where the node's Service rules do not lead; latest packet {} s ago; it {answered}",
            SocketAddr::new(original.source, original.source_port),
            SocketAddr::new(original.destination, original.destination_port),
            stale.endpoint,
            flow.latest_packet_s.unwrap_or_default()
        );
        Proof::programmed("connection tracking", &stale.node, stale.read_at, text)
    })
}

fn incomplete<'e>(client: &Client, snapshot: &FlowSnapshot, view: &mut View<'e>) -> Node<'e> {
    let why = if snapshot.limits.is_empty() {
        format!(
            "{} entries lead to endpoints that are gone, and {} are listed",
            snapshot.outdated_flows,
            snapshot.outdated.len()
        )
    } else {
        snapshot.limits.join("; ")
    };
    leave_open(client, why, view)
}

fn leave_open<'e>(client: &Client, why: String, view: &mut View<'e>) -> Node<'e> {
    view.leave_open(Gap {
        what: format!("tracked flows of node {} that lead to endpoints that are gone", client.node),
        node: Some(client.node.clone()),
        reason: GapReason::Failed,
        why,
        remedy: "ask again; `conntrack -L -p udp` on the node lists all".to_owned(),
    });
    Node::Dark
}

fn fix(path: &Path, stale: &[Stale]) -> Fix {
    let command = |one: &Stale| {
        let original = one.flows.first()?.original;
        let family = if original.destination.is_ipv6() { "-f ipv6 " } else { "" };
        let Stale { node, endpoint, .. } = one;
        Some(format!(
            "conntrack -D {family}-p udp --orig-dst {} --orig-port-dst {} --reply-src {}  # on node {node}",
            original.destination,
            original.destination_port,
            endpoint.ip()
        ))
    };
    Fix {
        text: "delete these entries: the next packet makes a new one to a living endpoint; kube-proxy deletes them when an \
               endpoint leaves, so see its log on that node, and its version, for why it did not"
            .to_owned(),
        commands: stale.iter().filter_map(command).collect(),
        verify: path.ask_again(),
    }
}
