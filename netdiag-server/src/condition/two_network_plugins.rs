//! A node has several network configurations, and its pods were connected by different ones.

use std::net::IpAddr;
use std::sync::Arc;

use netdiag_common::Netns;
use netdiag_common::observation::cni::{Cni, CniFile, CniNetwork};

use super::between::pairs;
use super::trace::{Met, probe_of};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::{Node, Object, Pod};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Finding, Fix, Impact, Proof};
use crate::path::Path;

pub const CONDITION: Condition = Condition {
    code: "two_network_plugins",
    severity: Severity::High,
    words: Words {
        means: "a node's folder of network configurations holds more than one, and a pod of the path was connected by another one than \
                the pods that the cluster's network knows, so other nodes do not reach it",
        how_we_know: "the pod's address is outside of its node's pod range and inside the networks that one of the node's CNI \
                      configurations gives addresses of, while another configuration is there for the other pods",
        silent_when: "the pods' addresses are of their nodes' pod ranges, one configuration alone gives pods their networks, a plugin \
                      that calls others (Multus) is the first, or a probe of the pod gets through",
        what_to_do: "remove the configuration that is not of the cluster's network plugin from the folder, and delete the pods that it \
                     connected: new ones are connected by what is left",
        sources: &[
            "https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/network-plugins/",
            "https://github.com/containerd/go-cni (loadFromConfDir: the first file by its name is the network that pods get)",
        ],
    },
    faults: &["cni-two-plugins"],
    reads: &[Read::Kind(KindName::Pods), Read::Kind(KindName::Nodes), Read::Topic("cni"), Read::Topic("probe")],
    lookalikes: &["pod_range_overlaps_network", "policy_denies_path", "host_firewall_drops_path"],
    explains: &[
        Explains { code: "pod_network_route_missing", relation: Relation::SamePath },
        Explains { code: "pod_address_duplicated", relation: Relation::SamePath },
        Explains { code: "neighbour_unresolved", relation: Relation::SamePath },
    ],
    judge,
};

/// Plugins that give a pod the networks of other configurations: several are meant to be there.
const CALLERS: &[&str] = &["multus", "multus-shim", "genie", "danm", "cni-genie"];

/// A pod that another configuration connected.
struct Odd {
    pod: Arc<Pod>,
    address: IpAddr,
    claim: String,
    proof: Proof,
    /// The file that connected it.
    folder: String,
    file: String,
    is_taken: bool,
}

enum Found {
    Odd(Box<Odd>),
    Fine(String),
    /// Nothing that its address could be compared with.
    Moot(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    if !path.is_asked() {
        return Verdict::not_applicable("a scan compares the networks of no pods");
    }
    let pods = own_pods(path);
    if pods.is_empty() {
        return Verdict::not_applicable("no pod with an address of its own is on the path");
    }
    let (Look::Seen(_), Look::Seen(_)) = (view.pods(), view.nodes()) else { return Verdict::unknown(view) };
    let (mut odd, mut fine, mut moot, mut dark) = (Vec::new(), None, None, false);
    for pod in &pods {
        match look(pod, view) {
            Found::Odd(found) => odd.push(*found),
            Found::Fine(because) => fine = Some(because),
            Found::Moot(because) => moot = Some(because),
            Found::Dark => dark = true,
        }
    }
    let Some(first) = odd.first() else {
        return match (fine, moot) {
            (Some(because), _) if !dark => Verdict::clear(because),
            (None, Some(because)) if !dark => Verdict::not_applicable(because),
            _ => Verdict::unknown(view),
        };
    };
    let is_odd = |address: IpAddr| odd.iter().any(|odd| odd.address == address);
    let all = pairs(path);
    let (mut through, mut cut) = (false, 0);
    for (client, backend) in &all {
        if !is_odd(backend.address) && !client.addresses.iter().any(|own| is_odd(*own)) {
            continue;
        }
        cut += 1;
        through |= probe_of(path, view, client, backend) == Met::GotThrough;
    }
    if through {
        return Verdict::clear(format!("the probe of {} got through, whatever connected it", first.pod.reference()));
    }
    let impact = if cut == all.len() { Impact::Breaks } else { Impact::Degrades };
    let mut claim = first.claim.clone();
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {cut} of {} ways of this path begin or end at such pods", all.len()));
    }
    let mut subjects: Vec<ObjectRef> = Vec::new();
    let mut proofs = Vec::new();
    for odd in &odd {
        ObjectRef::of_node(&odd.pod.spec.node_name).add_once(&mut subjects);
        odd.pod.reference().add_once(&mut subjects);
        proofs.push(odd.proof.clone());
        let at = view.now();
        proofs.push(Proof::intended(odd.pod.reference(), at, format!("status.podIPs has {}", odd.address)));
        if let Some(node) = view.cluster().nodes.get("", &odd.pod.spec.node_name) {
            proofs.push(Proof::intended(node.reference(), at, format!("its pods have addresses of {}", ranges(node))));
        }
    }
    let fix = fix(path, first);
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: &[], fix })
}

/// The pods at both ends that have addresses of their own, each once.
fn own_pods(path: &Path) -> Vec<Arc<Pod>> {
    let mut found: Vec<Arc<Pod>> = Vec::new();
    let clients = path.clients.iter().filter_map(|client| client.pod.as_ref());
    let backends = path.ready_backends().filter_map(|backend| backend.pod.as_ref());
    for pod in clients.chain(backends).filter(|pod| !pod.spec.host_network) {
        if !found.iter().any(|known| known.metadata.uid == pod.metadata.uid) {
            found.push(pod.clone());
        }
    }
    found
}

fn look(pod: &Arc<Pod>, view: &mut View) -> Found {
    let name = pod.spec.node_name.as_str();
    let Some(node) = view.cluster().nodes.get("", name) else {
        return Found::Moot(format!("there is no Node {name}"));
    };
    if node.spec.pod_cidrs.is_empty() {
        return Found::Moot(format!("node {name} has no pod range that its pods' addresses could be outside of"));
    }
    let in_range = |address: &IpAddr| node.spec.pod_cidrs.iter().any(|net| net.contains(address));
    let Some(address) = pod.addresses().find(|address| !in_range(address)) else {
        return Found::Fine(format!("{} has an address of the pod range of node {name}", pod.reference()));
    };
    let cni = match view.cni(name, &Netns::Host) {
        Look::Seen(cni) => cni,
        Look::Absent(_) => return Found::Fine(format!("node {name} has no folder of network configurations")),
        Look::Dark => return Found::Dark,
    };
    let networks = networks(cni.value);
    if cni.value.taken().is_some_and(|(_, taken)| calls_others(taken)) {
        return Found::Fine(format!("on node {name} a plugin chooses among the networks"));
    }
    let gives = |network: &CniNetwork| network.subnets().any(|net| net.contains(&address));
    let mut by = networks.iter().filter(|(_, network)| gives(network));
    let (Some((file, network)), None) = (by.next(), by.next()) else {
        return Found::Fine(format!(
            "which of the networks of node {name} {address} is of is not told by their configurations"
        ));
    };
    let Some((other_file, other)) = networks.iter().find(|(other, _)| other.name != file.name) else {
        return Found::Fine(format!("{} is the only network of node {name}", words(file, network)));
    };
    let is_taken = cni.value.taken().is_some_and(|(taken, _)| taken.name == file.name);
    let Cni { folder, runtime, .. } = cni.value;
    let runtime = runtime.as_deref().unwrap_or("the container runtime");
    let now = match cni.value.taken() {
        Some((taken, _)) => format!("{runtime} gives new pods the first, {}", taken.name),
        None => format!("{runtime} cannot use the first file of the folder"),
    };
    let claim = format!(
        "{} on node {name} was connected by {}, not by {}, so it has the address {address} outside of the pod range {}; {now}",
        pod.reference(),
        words(file, network),
        words(other_file, other),
        ranges(node)
    );
    let list = networks.iter().map(|(file, network)| words(file, network)).collect::<Vec<_>>().join(", ");
    let proof = Proof::programmed("network configurations", name, cni.at, format!("{folder} has {list}; {now}"));
    Found::Odd(Box::new(Odd {
        pod: pod.clone(),
        address,
        claim,
        proof,
        folder: folder.clone(),
        file: file.name.clone(),
        is_taken,
    }))
}

/// What connects pods: no loopback, which some runtimes want besides.
fn networks(cni: &Cni) -> Vec<(&CniFile, &CniNetwork)> {
    let is_loopback = |network: &CniNetwork| network.main_plugin().is_some_and(|plugin| plugin.kind == "loopback");
    let usable = cni.files.iter().filter_map(|file| Some((file, file.network()?)));
    usable.filter(|(_, network)| !is_loopback(network)).collect()
}

fn calls_others(network: &CniNetwork) -> bool {
    network.plugins.iter().any(|plugin| CALLERS.contains(&plugin.kind.as_str()))
}

/// `05-other.conflist (bridge, 10.88.0.0/16)`
fn words(file: &CniFile, network: &CniNetwork) -> String {
    let kind = network.main_plugin().map_or("no plugin", |plugin| plugin.kind.as_str()).to_owned();
    let nets = network.subnets().map(|net| net.to_string());
    format!("{} ({})", file.name, std::iter::once(kind).chain(nets).collect::<Vec<_>>().join(", "))
}

fn ranges(node: &Node) -> String {
    node.spec.pod_cidrs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn fix(path: &Path, odd: &Odd) -> Fix {
    let node = &odd.pod.spec.node_name;
    let (namespace, name) = (&odd.pod.metadata.namespace, &odd.pod.metadata.name);
    let again = format!("kubectl -n {namespace} delete pod {name}");
    let remove = format!("rm {}/{}  # on node {node}", odd.folder, odd.file);
    Fix {
        text: format!(
            "{} on node {node} is not of the network that the cluster's pods have: remove it where nobody needs it, then delete the \
             pods that it connected, so that new ones are connected like the others",
            odd.file
        ),
        commands: if odd.is_taken { vec![remove, again] } else { vec![again] },
        verify: path.ask_again(),
    }
}
