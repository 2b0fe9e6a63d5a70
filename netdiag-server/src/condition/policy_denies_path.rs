//! A NetworkPolicy that something enforces denies the path that was asked about.

use std::net::SocketAddr;

use super::enforced::{Enforced, enforced_on};
use super::trace::{Met, Packets, dropped, probe_of};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::object::{NetworkPolicy, Object, Pod};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Finding, Fix, Impact, Proof};
use crate::path::policy::{Decision, Denial, Direction, Enforcer, Flow, Lack, NearMiss, decide, isolating};
use crate::path::{Backend, Client, Path, TargetObject};

pub const CONDITION: Condition = Condition {
    code: "policy_denies_path",
    severity: Severity::High,
    words: Words {
        means: "NetworkPolicies isolate the server or the client pod, and no rule of theirs allows this connection",
        how_we_know: "the policies are evaluated for the client and each endpoint's own address and port, both \
                      directions; the node that has to enforce them shows a policy engine; probes and dropped packets \
                      agree",
        silent_when: "nothing on the node enforces policies, the engine lets our probe through, nobody asked about \
                      exactly this path (a scan), or the client is a node's host, about which engines differ",
        what_to_do: "allow the connection in the policy that is named: client's labels and namespace, the pod's port",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/network-policies/",
            "https://kubernetes.io/docs/reference/kubernetes-api/policy-resources/network-policy-v1/",
        ],
    },
    faults: &["np-default-deny-ingress", "np-and-or", "np-port-service-vs-pod"],
    reads: &[
        Read::Kind(KindName::NetworkPolicies),
        Read::Kind(KindName::Pods),
        Read::Kind(KindName::Namespaces),
        Read::Topic("network"),
        Read::Topic("rules"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["host_firewall_drops_path", "pod_network_route_missing", "kube_proxy_rules_stale"],
    explains: &[
        Explains { code: "topology_hints_leave_no_working_endpoint", relation: Relation::SamePath },
        Explains { code: "session_affinity_keeps_bad_endpoint", relation: Relation::SamePath },
    ],
    judge,
};

/// Where engines drop: programs at the interfaces (Cilium) or the packet filter (all others).
const REASONS: &[&str] = &["TC_INGRESS", "TC_EGRESS", "NETFILTER_DROP"];

/// One connection of the path that is denied by policies which something enforces.
struct Denied<'p> {
    client: &'p Client,
    flow: Flow<'p>,
    denial: Denial<'p>,
    enforcer: Enforcer,
    enforcing: Proof,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    if !path.is_asked() {
        return Verdict::not_applicable("a scan does not ask about paths that are meant to be denied");
    }
    let targets = targets(path);
    let (Look::Seen(_), Look::Seen(_)) = (view.network_policies(), view.pods()) else { return Verdict::unknown(view) };
    let cluster = view.cluster();
    let flows: Vec<(&Client, &Backend, Flow)> = path
        .clients
        .iter()
        .flat_map(|client| targets.iter().map(move |backend| (client, backend)))
        .filter_map(|(client, backend)| Some((client, backend, Flow::of(path, client, backend)?)))
        .collect();
    if flows.is_empty() {
        return Verdict::not_applicable("the path has no endpoint whose policies could be asked");
    }
    let isolated = |pod: Option<&Pod>, direction| pod.is_some_and(|pod| !isolating(cluster, pod, direction).is_empty());
    if !flows
        .iter()
        .any(|(_, _, flow)| isolated(flow.from.pod, Direction::Egress) || isolated(flow.to.pod, Direction::Ingress))
    {
        return Verdict::clear("no NetworkPolicy isolates either end of the path");
    }
    let Look::Seen(_) = view.namespaces() else { return Verdict::unknown(view) };
    let total = flows.len();
    let mut denied: Vec<Denied> = Vec::new();
    let mut why_not = Vec::new();
    let mut undecided = false;
    let mut denied_flows = 0;
    for (client, backend, flow) in flows {
        let denials = match decide(cluster, &flow) {
            Decision::Allowed(because) => {
                why_not.push(because);
                continue;
            }
            Decision::Undefined(because) => {
                if probe_of(path, view, client, backend) == Met::GotThrough {
                    why_not.push(format!("{because}, but the probe of {} got through", backend.words()));
                } else {
                    undecided = true;
                }
                continue;
            }
            Decision::Denied(denials) => denials,
        };
        if probe_of(path, view, client, backend) == Met::GotThrough {
            why_not.push(format!(
                "{} deny {} on paper, but its probe got through",
                policies(&denials),
                backend.words()
            ));
            continue;
        }
        let before = denied.len();
        for denial in denials {
            let node = enforcing_node(&denial, &flow);
            match enforced_on(view, node) {
                Enforced::By(enforcer, enforcing) => {
                    denied.push(Denied { client, flow, denial, enforcer, enforcing });
                }
                Enforced::Nobody => why_not.push(format!(
                    "{} would deny it, but no component that enforces policies was seen on node {node}",
                    names(&denial)
                )),
                Enforced::Dark => undecided = true,
            }
        }
        denied_flows += usize::from(denied.len() > before);
    }
    let Some(first) = denied.first() else {
        why_not.dedup();
        return if undecided { Verdict::unknown(view) } else { Verdict::clear(why_not.swap_remove(0)) };
    };
    let impact = if denied_flows == total { Impact::Breaks } else { Impact::Degrades };
    let claim = claim(first, &denied, denied_flows, total);
    let proofs = proofs(first, &denied, view);
    let newest = denied.iter().flat_map(|d| &d.denial.policies).filter_map(|policy| policy.metadata.changed_at).max();
    Verdict::found(Finding {
        subjects: subjects(&denied),
        since: newest,
        impact,
        claim,
        proofs,
        predicts: first.enforcer.denies,
        fix: fix(path, first),
    })
}

/// The endpoints that get connections; for hosts and outside addresses, the address itself.
fn targets(path: &Path) -> Vec<Backend> {
    match (&path.target, path.port) {
        (TargetObject::Service { .. } | TargetObject::Pod(_), _) => path.ready_backends().cloned().collect(),
        (TargetObject::Node(_) | TargetObject::Address, Some(port)) => {
            let node = match &path.target {
                TargetObject::Node(node) => node.name.clone(),
                _ => String::new(),
            };
            let backend = |address: &std::net::IpAddr| Backend {
                address: *address,
                port,
                node: node.clone(),
                pod: None,
                ready: true,
                terminating: false,
            };
            path.addresses.iter().map(backend).collect()
        }
        (TargetObject::Node(_) | TargetObject::Address | TargetObject::UnknownName, _) => Vec::new(),
    }
}

/// Ingress is enforced where the server runs, egress where the client does.
fn enforcing_node<'f>(denial: &Denial, flow: &'f Flow) -> &'f str {
    match denial.direction {
        Direction::Ingress => flow.to.node,
        Direction::Egress => flow.from.node,
    }
}

fn claim(first: &Denied, denied: &[Denied], denied_flows: usize, total: usize) -> String {
    let (denial, flow) = (&first.denial, &first.flow);
    let word = denial.direction.word();
    let rules: usize = denial.policies.iter().map(|policy| denial.direction.rules(policy).len()).sum();
    let port = format!("{}/{}", flow.port, flow.protocol.kubernetes());
    let isolates = if denial.policies.len() == 1 { "isolates" } else { "isolate" };
    let why = match &denial.near {
        Some(near) => format!("{word} rule {} of {} {}", near.rule + 1, near.policy.reference(), near.text),
        None if rules == 0 => {
            format!("there is no {word} rule, so {} cannot reach {} at {port}", flow.from.words(), flow.to.words())
        }
        None => format!("none of {rules} {word} rules allows {} to {} at {port}", flow.from.words(), flow.to.words()),
    };
    let mut claim = format!("{} {isolates} {} for {word}, and {why}", names(denial), denial.pod.reference());
    if denied_flows < total {
        claim.push_str(&format!("; {denied_flows} of {total} endpoints of this path are denied"));
    }
    if let Some(other) = denied.iter().find(|other| other.denial.direction != denial.direction) {
        claim.push_str(&format!("; {} is denied as well by {}", other.denial.direction.word(), names(&other.denial)));
    }
    claim
}

/// `NetworkPolicy shop/a and NetworkPolicy shop/b`.
fn names(denial: &Denial) -> String {
    let names: Vec<String> = denial.policies.iter().map(|policy| policy.reference().to_string()).collect();
    names.join(" and ")
}

fn policies(denials: &[Denial]) -> String {
    denials.iter().map(names).collect::<Vec<_>>().join(" and ")
}

/// The policies, the one with the nearest rule first, then the pods that they isolate.
fn subjects(denied: &[Denied]) -> Vec<ObjectRef> {
    let near = denied.iter().filter_map(|d| d.denial.near.as_ref()).map(|near| near.policy.reference());
    let policies = denied.iter().flat_map(|d| &d.denial.policies).map(|policy| policy.reference());
    let mut pods: Vec<ObjectRef> = denied.iter().map(|d| d.denial.pod.reference()).collect();
    pods.sort();
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for subject in near.chain(policies).chain(pods) {
        subject.add_once(&mut subjects);
    }
    subjects
}

fn proofs(first: &Denied, denied: &[Denied], view: &mut View) -> Vec<Proof> {
    let denial = &first.denial;
    let mut proofs: Vec<Proof> = denial.policies.iter().map(|policy| intended(denial, policy, view)).collect();
    proofs.push(first.enforcing.clone());
    for one in denied {
        let packets = Packets {
            source: one.flow.from.address,
            destination: SocketAddr::new(one.flow.to.address, one.flow.port),
            protocol: one.flow.protocol,
        };
        let node = enforcing_node(&one.denial, &one.flow);
        let stopped =
            dropped(view, node, &packets, REASONS).or_else(|| dropped(view, &one.client.node, &packets, REASONS));
        if let Some(proof) = stopped {
            proofs.push(proof);
            break;
        }
    }
    proofs
}

fn intended(denial: &Denial, policy: &NetworkPolicy, view: &View) -> Proof {
    let word = denial.direction.word();
    let rules = denial.direction.rules(policy).len();
    let near = denial.near.as_ref().filter(|near| near.policy.metadata.name == policy.metadata.name);
    let what = match near {
        Some(near) => format!("its {word} rule {} {}", near.rule + 1, near.text),
        None if rules == 0 => format!("it has no {word} rule"),
        None => format!("none of its {rules} {word} rules allows the connection"),
    };
    let text = format!("selects {} ({}) for {word}; {what}", denial.pod.reference(), policy.spec.pod_selector);
    Proof::intended(policy.reference(), view.now(), text)
}

fn fix(path: &Path, first: &Denied) -> Fix {
    let denial = &first.denial;
    let verify = path.ask_again();
    if let Some(near) = &denial.near
        && let Some((text, commands)) = small_change(near, &first.flow)
    {
        return Fix { text, commands, verify };
    }
    let policy = denial.policies[0].reference();
    let word = denial.direction.word();
    let rule = rule_to_add(denial.direction, &first.flow);
    let text = format!("if the connection is meant to be allowed, add to spec.{word} of {policy}: {rule}");
    Fix { text, commands: Vec::new(), verify }
}

/// Where one value of the nearest rule is wrong: what to write instead.
fn small_change(near: &NearMiss, flow: &Flow) -> Option<(String, Vec<String>)> {
    let (word, rule, policy) = (near.direction.word(), near.rule, near.policy.reference());
    let peers = if near.direction == Direction::Ingress { "from" } else { "to" };
    let patch = |path: String, value: serde_json::Value| {
        let patch = serde_json::json!([{"op": "add", "path": path, "value": value}]);
        format!("kubectl -n {} patch networkpolicy {} --type=json -p '{patch}'", policy.namespace, policy.name)
    };
    match &near.lack {
        Lack::ServicePort { port } => Some((
            format!("policies see the pod's port: write {} in {word} rule {} of {policy}", flow.port, rule + 1),
            vec![patch(format!("/spec/{word}/{rule}/ports/{port}/port"), flow.port.into())],
        )),
        Lack::Protocol { .. } => {
            let value = serde_json::json!({"protocol": flow.protocol.kubernetes(), "port": flow.port});
            let text =
                format!("allow {} {} in {word} rule {} of {policy}", flow.protocol.kubernetes(), flow.port, rule + 1);
            Some((text, vec![patch(format!("/spec/{word}/{rule}/ports/-"), value)]))
        }
        Lack::BothSelectors { peer } => Some((
            format!(
                "if either selector is meant to suffice, make two items of item {} of `{peers}` in {word} rule {} of \
                 {policy}: one with the namespaceSelector, one with the podSelector",
                peer + 1,
                rule + 1
            ),
            Vec::new(),
        )),
        Lack::PortName | Lack::Port | Lack::Namespace | Lack::Label | Lack::Except => None,
    }
}

/// The rule that would allow the connection, as JSON (which YAML accepts).
fn rule_to_add(direction: Direction, flow: &Flow) -> serde_json::Value {
    let (side, key) = match direction {
        Direction::Ingress => (&flow.from, "from"),
        Direction::Egress => (&flow.to, "to"),
    };
    let peer = match side.pod {
        Some(pod) => serde_json::json!({
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": pod.metadata.namespace}},
            "podSelector": {"matchLabels": pod.metadata.labels},
        }),
        None => {
            let bits = if side.address.is_ipv4() { 32 } else { 128 };
            serde_json::json!({"ipBlock": {"cidr": format!("{}/{bits}", side.address)}})
        }
    };
    serde_json::json!({key: [peer], "ports": [{"protocol": flow.protocol.kubernetes(), "port": flow.port}]})
}
