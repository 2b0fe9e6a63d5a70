//! A Service leads to an address of the pod network that no pod has.

use std::net::{IpAddr, SocketAddr};

use jiff::SignedDuration;

use super::trace::{Met, probe_of};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::{EndpointSlice, Node, Object, Service};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{Backend, Path};

pub const CONDITION: Condition = Condition {
    code: "pod_address_without_pod",
    severity: Severity::High,
    words: Words {
        means: "the EndpointSlices of a Service list an address of the pod network that no running pod has, so connections that go \
                there get no answer",
        how_we_know: "the address is inside the pod range of a node, no running pod has it, and the EndpointSlice was not changed for \
                      10 s; probes of it fail",
        silent_when: "the address is of no node's pods (an endpoint outside the cluster), or a probe of it gets through; old rules of \
                      kube-proxy and old tracked flows lead to such addresses too, but then the EndpointSlices do not list them",
        what_to_do: "correct or delete the EndpointSlice where it was written by hand or by another controller; else see why \
                     kube-controller-manager does not follow the pods",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/service/#services-without-selectors",
            "https://kubernetes.io/docs/concepts/services-networking/endpoint-slices/#management",
        ],
    },
    faults: &["svc-manual-endpoints-stale"],
    reads: &[
        Read::Kind(KindName::EndpointSlices),
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Nodes),
        Read::Topic("probe"),
    ],
    lookalikes: &["kube_proxy_rules_stale", "pod_network_route_missing", "host_firewall_drops_path"],
    explains: &[
        Explains { code: "neighbour_unresolved", relation: Relation::SamePath },
        Explains { code: "topology_hints_leave_no_working_endpoint", relation: Relation::SamePath },
        Explains { code: "session_affinity_keeps_bad_endpoint", relation: Relation::SamePath },
    ],
    judge,
};

/// A pod's address may be listed a moment before the pod is, and a moment after it is gone.
const SETTLE: SignedDuration = SignedDuration::from_secs(10);
/// The controller that follows pods (`endpointslice.kubernetes.io/managed-by`).
const MANAGED_BY: &str = "endpointslice.kubernetes.io/managed-by";
const CONTROLLER: &str = "endpointslice-controller.k8s.io";

/// An endpoint whose pod is gone.
struct Orphan<'p> {
    backend: &'p Backend,
    node: &'p Node,
    slice: &'p EndpointSlice,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some(service) = path.service() else {
        return Verdict::not_applicable("the target is no Service, so no EndpointSlice lists its addresses");
    };
    let (Look::Seen(slices), Look::Seen(_), Look::Seen(_)) = (view.endpoint_slices(), view.pods(), view.nodes()) else {
        return Verdict::unknown(view);
    };
    let ready = path.ready_backends().count();
    if ready == 0 {
        return Verdict::not_applicable("no endpoint gets connections");
    }
    let mut orphans: Vec<Orphan> = path.ready_backends().filter_map(|backend| orphan(service, backend, view)).collect();
    orphans.retain(|orphan| is_silent(path, orphan, view));
    let Some(first) = orphans.first() else {
        return Verdict::clear(format!(
            "{ready} of {ready} endpoints that get connections are running pods or outside the pod network"
        ));
    };
    let impact = if orphans.len() == ready { Impact::Breaks } else { Impact::Degrades };
    let mut claim = format!(
        "{} of {service} lists {}, an address of the pods of node {}, and no running pod has it",
        first.slice.reference(),
        SocketAddr::new(first.backend.address, first.backend.port),
        first.node.metadata.name,
        service = service.reference(),
    );
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {} of {ready} endpoints of the Service are such addresses", orphans.len()));
    }
    let mut subjects: Vec<ObjectRef> = vec![service.reference()];
    let mut proofs = Vec::new();
    for orphan in &orphans {
        let slice = orphan.slice.reference();
        let address = orphan.backend.address;
        proofs.push(Proof::intended(
            &slice,
            slices.at,
            format!("{address} is listed, ready; {}", writer(orphan.slice)),
        ));
        if let Some(net) = range(orphan.node, address) {
            let text = format!("{net} are its pods' addresses, and no running pod has {address}");
            proofs.push(Proof::intended(format!("Node {}", orphan.node.metadata.name), view.now(), text));
        }
        if !subjects.contains(&slice) {
            subjects.push(slice);
        }
    }
    let since = orphans.iter().filter_map(|orphan| orphan.slice.metadata.changed_at).max();
    let fix = fix(path, first);
    Verdict::found(Finding {
        subjects,
        since,
        impact,
        claim,
        proofs,
        predicts: &[Fate::Silence, Fate::Unreachable],
        fix,
    })
}

/// None when a pod or a node has the address, or nobody says that pods should.
fn orphan<'p>(service: &'p Service, backend: &'p Backend, view: &View<'p>) -> Option<Orphan<'p>> {
    let cluster = view.cluster();
    let address = backend.address;
    let is_had = cluster.pods.iter().any(|pod| !pod.is_finished() && pod.addresses().any(|own| own == address));
    if is_had || cluster.node_by_address(address).is_some() {
        return None;
    }
    let node = cluster.nodes.iter().find(|node| range(node, address).is_some())?;
    let lists = |slice: &&std::sync::Arc<EndpointSlice>| {
        let listed = slice.endpoints.iter().flat_map(|endpoint| &endpoint.addresses);
        listed.filter_map(|text| text.parse::<IpAddr>().ok()).any(|listed| listed == address)
    };
    let mut listing = cluster.slices_of(service).filter(lists).peekable();
    let slice = *listing.peek()?;
    let settled = |slice: &EndpointSlice| {
        slice.metadata.changed_at.is_none_or(|changed| view.now().duration_since(changed) >= SETTLE)
    };
    listing.all(|slice| settled(slice)).then_some(Orphan { backend, node, slice })
}

fn range(node: &Node, address: IpAddr) -> Option<ipnet::IpNet> {
    node.spec.pod_cidrs.iter().find(|net| net.contains(&address)).copied()
}

/// Nobody answers there, whoever it might be. What the slices' own controller lists may be about to go: of that a failed probe is asked.
fn is_silent(path: &Path, orphan: &Orphan, view: &mut View) -> bool {
    let met: Vec<Met> = path.clients.iter().map(|client| probe_of(path, view, client, orphan.backend)).collect();
    let failed = met.iter().any(|met| matches!(met, Met::Failed(_)));
    !met.contains(&Met::GotThrough) && (failed || !is_controlled(orphan.slice))
}

fn is_controlled(slice: &EndpointSlice) -> bool {
    slice.metadata.labels.get(MANAGED_BY).is_some_and(|name| name == CONTROLLER)
}

fn writer(slice: &EndpointSlice) -> String {
    match slice.metadata.labels.get(MANAGED_BY).map(String::as_str) {
        None => "nobody keeps this slice up to date: it has no label managed-by".to_owned(),
        Some(name) => format!("{name} writes this slice"),
    }
}

fn fix(path: &Path, orphan: &Orphan) -> Fix {
    let (namespace, name) = (&orphan.slice.metadata.namespace, &orphan.slice.metadata.name);
    let (text, commands) = if is_controlled(orphan.slice) {
        let text =
            "kube-controller-manager writes this slice and does not follow the pods: see its log, and whether it leads";
        (text.to_owned(), Vec::new())
    } else {
        let text =
            "put the address of what should answer into the slice, or give the Service a selector and delete the slice";
        (text.to_owned(), vec![format!("kubectl -n {namespace} edit endpointslice {name}")])
    };
    Fix { text, commands, verify: path.ask_again() }
}
