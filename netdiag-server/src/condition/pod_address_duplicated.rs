//! Two running pods have one address: packets for one of them reach the other.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;
use netdiag_common::Netns;

use super::connected::{Connected, connected};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Object, Pod};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Finding, Fix, Impact, Proof};
use crate::path::Path;
use crate::path::route::words;

pub const CONDITION: Condition = Condition {
    code: "pod_address_duplicated",
    severity: Severity::High,
    words: Words {
        means: "two running pods have the same address, so packets for one of them reach the other",
        how_we_know: "the pods' status in the API; the routes of their nodes show to which of them the address leads",
        silent_when: "the pods share their node's address (hostNetwork), one of them has ended, is being deleted, was not \
                      running for 10 s yet or is on a node that is not ready, or the path's own pods have addresses of their \
                      own; a scan does not look for it",
        what_to_do: "delete the pod that the address does not lead to, and repair the address management that gave it twice: \
                     its store on the node, or the node's podCIDRs",
        sources: &[
            "https://kubernetes.io/docs/concepts/cluster-administration/networking/",
            "https://www.cni.dev/plugins/current/ipam/host-local/",
        ],
    },
    faults: &["cni-duplicate-pod-ip"],
    reads: &[
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Nodes),
        Read::Kind(KindName::EndpointSlices),
        Read::Topic("network"),
        Read::Topic("cni"),
    ],
    lookalikes: &["target_port_not_listening", "neighbour_unresolved", "pod_network_route_missing"],
    explains: &[],
    judge,
};

/// A pod that starts and one that ends may be told with one address for a moment.
const SETTLE_S: f64 = 10.0;

/// A pod of the path and the others that have its address.
struct Twins {
    address: IpAddr,
    pods: Vec<Arc<Pod>>,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    if !path.is_asked() {
        return Verdict::not_applicable("a scan compares the addresses of no pods");
    }
    let (Look::Seen(pods), Look::Seen(_), Look::Seen(_)) = (view.pods(), view.nodes(), view.endpoint_slices()) else {
        return Verdict::unknown(view);
    };
    let of_clients = path.clients.iter().filter_map(|client| client.pod.as_ref());
    let of_backends = path.ready_backends().filter_map(|backend| backend.pod.as_ref());
    let own: BTreeMap<&str, &Arc<Pod>> =
        of_clients.chain(of_backends).map(|pod| (pod.metadata.uid.as_str(), pod)).collect();
    let own_addresses: BTreeSet<IpAddr> =
        own.values().filter(|pod| has_own(pod, view)).flat_map(|pod| pod.addresses()).collect();
    if own_addresses.is_empty() {
        return Verdict::not_applicable("no pod with an address of its own is on the path");
    }
    let mut by_address: BTreeMap<IpAddr, Vec<Arc<Pod>>> = BTreeMap::new();
    for pod in pods.value.iter().filter(|pod| has_own(pod, view)) {
        for address in pod.addresses().filter(|address| own_addresses.contains(address)) {
            by_address.entry(address).or_default().push(pod.clone());
        }
    }
    let twins: Vec<Twins> = by_address
        .into_iter()
        .filter(|(_, pods)| pods.len() > 1)
        .map(|(address, mut pods)| {
            // The path's own pods first: they are who the question is about.
            pods.sort_by_key(|pod| !own.contains_key(pod.metadata.uid.as_str()));
            Twins { address, pods }
        })
        .collect();
    let Some(first) = twins.first() else {
        return Verdict::clear(format!("no other running pod has an address of the path's {} pods", own.len()));
    };
    let names = first.pods.iter().map(|pod| on_node(pod)).collect::<Vec<_>>().join(" and ");
    let mut claim = format!("{names} have the same address {}, so packets for one reach the other", first.address);
    if twins.len() > 1 {
        claim.push_str(&format!("; so for {} addresses of this path", twins.len()));
    }
    let mut subjects: Vec<ObjectRef> = Vec::new();
    let mut proofs = Vec::new();
    for twins in &twins {
        subjects.extend(twins.pods.iter().map(|pod| pod.reference()));
        let intended = |pod: &Arc<Pod>| {
            Proof::intended(pod.reference(), pods.at, format!("status.podIPs has {}, phase Running", twins.address))
        };
        proofs.extend(twins.pods.iter().map(intended));
        let nodes: BTreeSet<&str> = twins.pods.iter().map(|pod| pod.spec.node_name.as_str()).collect();
        proofs.extend(nodes.into_iter().flat_map(|node| routed(node, twins, view)));
    }
    let since = first.pods.iter().filter_map(|pod| pod.metadata.changed_at).max();
    Verdict::found(Finding {
        subjects,
        since,
        impact: impact(path, &twins),
        claim,
        proofs,
        predicts: &[],
        fix: fix(path),
    })
}

/// A running pod that has kept its own address for a while.
fn has_own(pod: &Pod, view: &View) -> bool {
    let settled = |changed: Timestamp| view.now().duration_since(changed).as_secs_f64() >= SETTLE_S;
    let node = view.cluster().nodes.get("", &pod.spec.node_name);
    !pod.spec.host_network
        && pod.status.phase == "Running"
        && pod.metadata.deleted_at.is_none()
        && pod.metadata.changed_at.is_none_or(settled)
        && node.is_some_and(|node| node.is_ready())
}

fn on_node(pod: &Pod) -> String {
    format!("{} on node {}", pod.reference(), pod.spec.node_name)
}

/// Everything is cut only when all ways start or end at such an address; which of the two pods gets a packet is not known.
fn impact(path: &Path, twins: &[Twins]) -> Impact {
    let is_twin = |address: IpAddr| twins.iter().any(|twins| twins.address == address);
    let mut backends = path.ready_backends().peekable();
    let all_clients = path.clients.iter().all(|client| client.addresses.iter().any(|own| is_twin(*own)));
    let all_backends = backends.peek().is_some() && backends.all(|backend| is_twin(backend.address));
    if all_clients || all_backends { Impact::Breaks } else { Impact::Degrades }
}

/// The one link that a node sends the address to, and who gives such addresses there.
fn routed(node: &str, twins: &Twins, view: &mut View) -> Vec<Proof> {
    let Look::Seen(network) = view.network(node, &Netns::Host) else { return Vec::new() };
    let Some(route) = network.value.route_to(twins.address) else { return Vec::new() };
    let here = twins.pods.iter().filter(|pod| pod.spec.node_name == node).count();
    let text = format!("{here} of these pods here, and one way to {}: {}", twins.address, words(route, network.value));
    let mut proofs = vec![Proof::programmed("routes", node, network.at, text)];
    proofs.extend(giver(node, twins.address, view));
    proofs
}

/// Where the node's network configurations tell.
fn giver(node: &str, address: IpAddr, view: &mut View) -> Option<Proof> {
    let Connected { file, ipam, net, at, .. } = connected(node, address, view)?;
    let text = format!("{file}: {} gives pods addresses of {net}, {address} among them", ipam.kind);
    Some(Proof::programmed("network configurations", node, at, text))
}

fn fix(path: &Path) -> Fix {
    Fix {
        text: "delete the pod whose link the address does not lead to, so that it gets another one; then look why the address \
               was given twice: a lost store of the address plugin (/var/lib/cni/networks), a restored node image, or nodes \
               with the same podCIDR"
            .to_owned(),
        commands: Vec::new(),
        verify: path.ask_again(),
    }
}
