//! The network plugin's agent on a node is not ready, and a pod of the path waits there for its network.

use std::sync::Arc;

use jiff::Timestamp;

use super::unready::{selected, shortened, stopped};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::{Node, Object, Pod, Service, Workload};
use crate::evidence::{Cluster, KindName, Look, ObjectRef, View};
use crate::finding::{Finding, Fix, Impact, Proof};
use crate::path::Path;

pub const CONDITION: Condition = Condition {
    code: "cni_agent_not_ready",
    severity: Severity::High,
    words: Words {
        means: "the network plugin's agent on a node is not ready, so that new pods there get no network, while older ones keep theirs",
        how_we_know: "a pod that the path needs has a node and no address, the agent's pod on that node is not ready or not there, and \
                      the kubelet says that the pod's network cannot be made, or that the node's is not ready",
        silent_when: "the pods of the path have addresses, the agent is ready, the node does not report at all, the pod waits for \
                      something else (a volume, a free address), a pod of the Service has an address and is not ready for reasons of \
                      its own, or the agent is of no network plugin that is known",
        what_to_do: "make the agent ready on that node: its log says what it lacks; pods that wait are connected by themselves then",
        sources: &[
            "https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/network-plugins/",
            "https://kubernetes.io/docs/reference/node/node-status/#condition",
            "https://github.com/projectcalico/calico/issues/4511",
            "https://github.com/kubernetes/kubernetes/blob/v1.34.0/pkg/kubelet/events/event.go (FailedCreatePodSandBox)",
        ],
    },
    faults: &["cni-agent-down"],
    reads: &[
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Workloads),
        Read::Kind(KindName::Nodes),
        Read::Kind(KindName::Events),
    ],
    lookalikes: &["service_has_no_ready_endpoints"],
    explains: &[
        Explains { code: "service_has_no_ready_endpoints", relation: Relation::SameService },
        Explains { code: "cluster_dns_has_no_endpoints", relation: Relation::SameService },
    ],
    judge,
};

/// DaemonSets as the plugins' own manifests call them, and their plugins. Without these agents no pod of the node is connected.
const AGENTS: &[(&str, &str)] = &[
    ("anetd", "GKE Dataplane V2"),
    ("antrea-agent", "Antrea"),
    ("aws-node", "the AWS network plugin"),
    ("calico-node", "Calico"),
    ("canal", "Canal"),
    ("cilium", "Cilium"),
    ("kindnet", "kindnet"),
    ("kube-flannel", "flannel"),
    ("kube-flannel-ds", "flannel"),
    ("kube-ovn-cni", "Kube-OVN"),
    ("kube-router", "kube-router"),
    ("ovnkube-node", "OVN-Kubernetes"),
    ("weave-net", "Weave Net"),
];

/// The pod is a network plugin's agent.
pub(super) fn is_agent(pod: &Pod) -> bool {
    let maker = pod.metadata.controller.as_ref();
    maker.is_some_and(|(kind, name)| kind == "DaemonSet" && AGENTS.iter().any(|(agent, _)| agent == name))
}

/// What plugins say when there is no address left to give: no agent's fault.
const EXHAUSTED: &[&str] = &[
    "no ip addresses available",
    "no more ips",
    "no more free",
    "no available ips",
    "failed to assign an ip address",
    "could not allocate ip",
    "range is full",
];

/// An agent that is not ready on one node.
struct Down<'e> {
    daemon_set: &'e Workload,
    plugin: &'static str,
    /// None: it is not there.
    pod: Option<&'e Pod>,
    why: String,
    since: Option<Timestamp>,
}

/// A pod that the path needs and that has no address, and why that is the agent's fault.
struct Waiting<'e> {
    pod: &'e Pod,
    down: Down<'e>,
    follows: Proof,
}

enum Judged<'e> {
    Waits(Box<Waiting<'e>>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Look::Seen(_) = view.pods() else { return Verdict::unknown(view) };
    let cluster = view.cluster();
    let clients = path.clients.iter().filter_map(|client| listed(cluster, client.pod.as_deref()?));
    let clients = clients.filter(|pod| lacks_address(pod));
    let servers = path.service().filter(|_| path.ready_backends().next().is_none());
    let servers = servers.map(|service| (service, endpoints(cluster, service))).filter(|(_, pods)| {
        // One that has an address and takes no connections all the same would leave the Service without endpoints by itself.
        !pods.is_empty() && pods.iter().all(|pod| lacks_address(pod))
    });
    let groups: Vec<(Option<&Arc<Service>>, Vec<&Pod>)> =
        clients.map(|pod| (None, vec![pod])).chain(servers.map(|(service, pods)| (Some(service), pods))).collect();
    if groups.is_empty() {
        return Verdict::not_applicable("no pod of the path waits for an address");
    }
    let (mut waiting, mut services, mut fine, mut dark) = (Vec::new(), Vec::new(), Vec::new(), false);
    for (service, pods) in groups {
        let judged: Vec<Judged> = pods.into_iter().map(|pod| waits(pod, view)).collect();
        if judged.iter().all(|one| matches!(one, Judged::Waits(_))) {
            services.extend(service.map(|service| service.reference()));
        }
        // Of a Service all are explained, or none: the others would not be found out.
        let whole = service.is_none() || !services.is_empty();
        for one in judged {
            match one {
                Judged::Waits(found) if whole => waiting.push(*found),
                Judged::Waits(_) => {}
                Judged::Fine(because) => fine.push(because),
                Judged::Dark => dark = true,
            }
        }
    }
    if waiting.is_empty() {
        return if dark { Verdict::unknown(view) } else { Verdict::clear(fine.join("; ")) };
    }
    Verdict::found(finding(path, &waiting, services, view))
}

fn finding(path: &Path, waiting: &[Waiting<'_>], services: Vec<ObjectRef>, view: &View) -> Finding {
    let mut subjects: Vec<ObjectRef> = Vec::new();
    let (mut nodes, mut claims, mut proofs, mut commands) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for one in waiting {
        let Waiting { pod, down, follows } = one;
        let (node, set) = (&pod.spec.node_name, down.daemon_set.reference());
        if !nodes.contains(node) {
            nodes.push(node.clone());
            set.clone().add_once(&mut subjects);
            claims.push(format!("the agent of {} on node {node} is not ready: {}", down.plugin, down.why));
            let read = down.pod.map_or_else(|| set.clone(), Pod::reference);
            proofs.push(Proof::intended(read, view.now(), down.why.clone()));
            commands.push(look_at(down));
        }
        claims.push(format!("{} has no address there", pod.reference()));
        proofs.push(follows.clone());
    }
    for node in nodes {
        ObjectRef::of_node(&node).add_once(&mut subjects);
    }
    subjects.extend(services);
    let fix = Fix {
        text: "make the agent ready on that node: its log, or the DaemonSet's events where it is not there, say what it lacks; the pods \
               that wait get their network then without being made anew"
            .to_owned(),
        commands,
        verify: path.ask_again(),
    };
    let since = waiting.iter().filter_map(|one| one.down.since).max();
    let claim = claims.join("; ");
    Finding { subjects, since, impact: Impact::Breaks, claim, proofs, predicts: &[], fix }
}

fn look_at(down: &Down<'_>) -> String {
    match down.pod {
        Some(pod) => {
            format!("kubectl -n {} logs {} --all-containers --tail=50", pod.metadata.namespace, pod.metadata.name)
        }
        None => {
            let set = &down.daemon_set.metadata;
            format!("kubectl -n {} describe daemonset {}", set.namespace, set.name)
        }
    }
}

/// The same pod, as long as the evidence lasts.
fn listed<'e>(cluster: &'e Cluster, pod: &Pod) -> Option<&'e Pod> {
    cluster.pods.get(&pod.metadata.namespace, &pod.metadata.name).map(Arc::as_ref)
}

/// It has a node, which should have connected it.
fn lacks_address(pod: &Pod) -> bool {
    !pod.spec.node_name.is_empty()
        && !pod.spec.host_network
        && !pod.is_finished()
        && pod.metadata.deleted_at.is_none()
        && pod.addresses().next().is_none()
}

/// The pods that the Service would lead to.
fn endpoints<'e>(cluster: &'e Cluster, service: &Service) -> Vec<&'e Pod> {
    if service.spec.selector.is_empty() {
        return Vec::new();
    }
    selected(&cluster.pods, service).map(Arc::as_ref).collect()
}

fn waits<'e>(pod: &'e Pod, view: &mut View<'e>) -> Judged<'e> {
    let (Look::Seen(_), Look::Seen(nodes), Look::Seen(events)) = (view.workloads(), view.nodes(), view.events()) else {
        return Judged::Dark;
    };
    let node = pod.spec.node_name.as_str();
    let Some(object) = nodes.value.get("", node) else { return Judged::Fine(format!("there is no Node {node}")) };
    if object.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "Unknown") {
        return Judged::Fine(format!("node {node} itself has stopped reporting"));
    }
    let down = match agent(node, view.cluster()) {
        Ok(down) => down,
        Err(because) => return Judged::Fine(because),
    };
    let about = events
        .value
        .in_namespace(&pod.metadata.namespace)
        .filter(|event| event.involved_object.kind == "Pod" && event.is_of(&pod.metadata));
    let latest = about.filter(|event| event.reason == "FailedCreatePodSandBox").max_by_key(|event| event.last_at());
    let follows = match latest {
        Some(event) if is_exhausted(&event.message) => {
            return Judged::Fine(format!(
                "{} waits for a free address: {}",
                pod.reference(),
                shortened(&event.message)
            ));
        }
        Some(event) if is_network(&event.message) => {
            let at = event.last_at().unwrap_or(events.at);
            Proof::observed(format!("events of {}", pod.reference()), node, at, shortened(&event.message))
        }
        _ => match network_not_ready(object) {
            Some(words) => Proof::intended(object.reference(), nodes.at, words),
            None => {
                return Judged::Fine(format!("nobody says that {} waits for its network", pod.reference()));
            }
        },
    };
    Judged::Waits(Box::new(Waiting { pod, down, follows }))
}

/// The agent of this node that is not ready; why there is none to speak of, otherwise.
fn agent<'e>(node: &str, cluster: &'e Cluster) -> Result<Down<'e>, String> {
    let known = |set: &Workload| AGENTS.iter().find(|(name, _)| *name == set.metadata.name).map(|(_, plugin)| *plugin);
    let sets = cluster.workloads.iter().map(Arc::as_ref).filter(|set: &&Workload| set.kind == "DaemonSet");
    let mut ready = Vec::new();
    for (set, plugin) in sets.filter_map(|set| Some((set, known(set)?))) {
        let is_of_it = |pod: &&Pod| {
            let made_by = pod.metadata.controller.as_ref();
            made_by.is_some_and(|(kind, name)| kind == "DaemonSet" && *name == set.metadata.name) && !pod.is_finished()
        };
        let all: Vec<&Pod> =
            cluster.pods.in_namespace(&set.metadata.namespace).map(Arc::as_ref).filter(is_of_it).collect();
        let here: Vec<&Pod> = all.iter().copied().filter(|pod| pod.spec.node_name == node).collect();
        if here.iter().any(|pod| pod.is_ready()) {
            ready.push(set.reference().to_string());
            continue;
        }
        if let Some(&pod) = here.first() {
            let since = pod.condition("Ready").and_then(|condition| condition.last_transition_time);
            let why = format!("{} {}", pod.reference(), why_not_ready(pod));
            return Ok(Down { daemon_set: set, plugin, pod: Some(pod), why, since });
        }
        let (wanted, there) = (set.status.desired_number_scheduled, all.len());
        if usize::try_from(wanted).is_ok_and(|wanted| wanted > there) {
            let why = format!("{} wants {wanted} pods and has {there}, none of them there", set.reference());
            return Ok(Down { daemon_set: set, plugin, pod: None, why, since: None });
        }
    }
    match ready.as_slice() {
        [] => Err(format!("no DaemonSet of a network plugin that is known is meant for node {node}")),
        ready => Err(format!("the pod of {} on node {node} is ready", ready.join(" and of "))),
    }
}

/// The rest of a sentence about an agent's pod.
fn why_not_ready(pod: &Pod) -> String {
    if pod.metadata.deleted_at.is_some() {
        return "is being deleted".to_owned();
    }
    if let Some(why) = pod.status.container_statuses.iter().filter(|status| !status.ready).find_map(stopped) {
        return why;
    }
    match pod.condition("Ready").map(|condition| condition.message.as_str()) {
        None | Some("") => "is not ready".to_owned(),
        Some(message) => format!("is not ready: {}", shortened(message)),
    }
}

/// As container runtimes begin what a plugin said: `failed to setup network for sandbox …`.
fn is_network(message: &str) -> bool {
    let message = message.to_lowercase();
    message.contains("network") || message.contains("cni")
}

fn is_exhausted(message: &str) -> bool {
    let message = message.to_lowercase();
    EXHAUSTED.iter().any(|words| message.contains(words))
}

/// The kubelet's or the plugin's own word for it.
fn network_not_ready(node: &Node) -> Option<String> {
    node.status.conditions.iter().find_map(|condition| match (condition.kind.as_str(), condition.status.as_str()) {
        ("NetworkUnavailable", "True") => Some(format!("NetworkUnavailable: {}", shortened(&condition.message))),
        ("Ready", "False") if is_network(&condition.message) => {
            Some(format!("not ready: {}", shortened(&condition.message)))
        }
        _ => None,
    })
}
