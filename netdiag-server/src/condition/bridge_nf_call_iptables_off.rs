//! Between two pods of one bridge, answers bypass the node's packet filter, and nobody turns their address back into the Service's.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use netdiag_common::observation::flow::{Flow, FlowQuery};
use netdiag_common::{Gap, GapReason, Netns};

use super::bridge::{Interface, Rules, hooks_words, interface, list, passes_hooks, rules, sysctl_of};
use super::trace::{Met, probe_of};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Object, Service};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::forwarding::is_proxied;
use crate::path::{Backend, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "bridge_nf_call_iptables_off",
    severity: Severity::High,
    words: Words {
        means: "bridged packets do not pass the node's packet filter, so the answer of an endpoint on the client's own bridge keeps \
                the endpoint's address, and the client, who asked the Service's, throws it away",
        how_we_know: "client and endpoint are ports of one bridge, the endpoint has the client on its own link, the node's rules lead \
                      the Service to it, and bridge-nf-call-iptables is off or br_netfilter not loaded; connection tracking waits for \
                      answers at the client's own address, or probes of the endpoint get through while those of the Service do not",
        silent_when: "the endpoint is on another node, pods are routed, or kube-proxy masquerades, so that answers go to the node",
        what_to_do: "load br_netfilter and set the sysctl on every node, and make both last over a restart",
        sources: &[
            "https://kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/network-plugins/#network-plugin-requirements",
            "https://docs.kernel.org/networking/ip-sysctl.html#proc-sys-net-bridge-variables",
            "net/bridge/br_netfilter_hooks.c: br_nf_pre_routing",
        ],
    },
    faults: &["kp-bridge-nf-call-off"],
    reads: &[
        Read::Kind(KindName::Services),
        Read::Kind(KindName::EndpointSlices),
        Read::Topic("service_rules"),
        Read::Topic("network"),
        Read::Topic("sysctls"),
        Read::Topic("find_flows"),
        Read::Topic("probe"),
    ],
    lookalikes: &[
        "hairpin_mode_off",
        "kube_proxy_rules_stale",
        "target_port_not_listening",
        "policy_denies_path",
        "host_firewall_drops_path",
    ],
    explains: &[],
    judge,
};

/// One way of the path whose answers go astray.
struct Astray {
    node: String,
    endpoint: SocketAddr,
    bridge: String,
    hooks: String,
    proofs: Vec<Proof>,
}

enum Way {
    Astray(Box<Astray>),
    Fine(String),
    Dark,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some(service) = path.service().filter(|service| is_proxied(service)) else {
        return Verdict::not_applicable("the path does not lead to an address that kube-proxy translates");
    };
    let is_own = |address: IpAddr, client: &Client| client.addresses.contains(&address);
    let pairs = path.clients.iter().flat_map(|client| path.ready_backends().map(move |backend| (client, backend)));
    let near: Vec<(&Client, &Backend)> = pairs
        .filter(|(client, backend)| client.netns != Netns::Host && client.node == backend.node)
        .filter(|(_, backend)| matches!(backend.netns(), Some(Netns::Pod(_))))
        .filter(|(client, backend)| !is_own(backend.address, client))
        .collect();
    if near.is_empty() {
        return Verdict::not_applicable("no endpoint is another pod of the client's node");
    }
    let (Look::Seen(slices), Look::Seen(_)) = (view.endpoint_slices(), view.services()) else {
        return Verdict::unknown(view);
    };
    let (mut astray, mut fine, mut dark) = (Vec::new(), None, false);
    for (client, backend) in &near {
        match way(path, client, backend, view) {
            Way::Astray(found) => astray.push(*found),
            Way::Fine(because) => fine = Some(because),
            Way::Dark => dark = true,
        }
    }
    let Some(first) = astray.first() else {
        return match fine {
            Some(because) if !dark => Verdict::clear(because),
            _ => Verdict::unknown(view),
        };
    };
    let all = path.clients.len() * path.ready_backends().count();
    let impact = if astray.len() == all { Impact::Breaks } else { Impact::Degrades };
    let mut claim = format!(
        "node {} does not pass bridged packets through its packet filter ({}), so answers of {} to clients on the same bridge {} do not \
         get the address of {} back",
        first.node,
        first.hooks,
        first.endpoint,
        first.bridge,
        service.reference()
    );
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {} of {all} ways of this path end so", astray.len()));
    }
    let mut proofs: Vec<Proof> = Vec::new();
    for proof in astray.iter().flat_map(|one| &one.proofs) {
        if !proofs.contains(proof) {
            proofs.push(proof.clone());
        }
    }
    proofs.push(intended(service, &astray, slices.at));
    // A pod that asks is on one node, and so are its bridge and the endpoints there.
    let subjects = vec![ObjectRef::of_node(&first.node)];
    let fix = fix(path, &first.node, first.endpoint.ip());
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: &[Fate::Silence], fix })
}

fn way(path: &Path, client: &Client, backend: &Backend, view: &mut View) -> Way {
    let (node, address) = (client.node.as_str(), backend.address);
    let endpoint = SocketAddr::new(address, backend.port);
    let own = client.addresses.iter().copied().find(|own| own.is_ipv4() == address.is_ipv4());
    let (Some(own), Some(netns)) = (own, backend.netns()) else {
        return Way::Fine(format!("{} has no address of the family of {address}", client.reference));
    };
    let endpoints = match rules(path, client, address, view) {
        Rules::LeadTo(endpoints) => endpoints,
        Rules::Nothing => return Way::Fine(format!("no rule of kube-proxy on node {node} leads to endpoints")),
        Rules::Dark => return Way::Dark,
    };
    if !endpoints.value.iter().any(|known| known.address == address && known.port == backend.port) {
        return Way::Fine(format!("the rules of node {node} do not lead to {endpoint}"));
    }
    let (from, to) = match (interface(node, &client.netns, own, view), interface(node, &netns, address, view)) {
        (Interface::Bridged(from), Interface::Bridged(to)) => (from, to),
        (Interface::Dark, _) | (_, Interface::Dark) => return Way::Dark,
        _ => return Way::Fine(format!("{} and {endpoint} are not on one bridge of node {node}", client.reference)),
    };
    let bridge = &to.bridge.name;
    if from.bridge.index != to.bridge.index {
        return Way::Fine(format!(
            "{} and {endpoint} are on two bridges: {} and {bridge}",
            client.reference, from.bridge.name
        ));
    }
    let Look::Seen(sysctls) = view.sysctls(node, &Netns::Host) else { return Way::Dark };
    let hooks = hooks_words(to.bridge, address, sysctls.value);
    if passes_hooks(to.bridge, address, sysctls.value) {
        return Way::Fine(format!("packets on bridge {bridge} pass the packet filter of node {node}: {hooks}"));
    }
    if to.pod.route_to(own).is_none_or(|route| route.gateway.is_some()) {
        return Way::Fine(format!("{endpoint} answers by its gateway, not straight over bridge {bridge}"));
    }
    let met = match tracked(path, client, endpoint, own, view) {
        Tracked::Masqueraded => return Way::Fine(format!("node {node} masquerades what goes to {endpoint}")),
        Tracked::Waiting(proof) => Some(proof),
        Tracked::Nothing => None,
    };
    if met.is_none() && !only_the_service_is_silent(path, client, address, view) {
        view.leave_open(masquerade(node, endpoint));
        return Way::Dark;
    }
    let ports = format!(
        "{}, the client's, and {}, that of {endpoint}, are ports of bridge {bridge}",
        from.port.name, to.port.name
    );
    let mut proofs = vec![
        Proof::programmed("sysctls", node, sysctls.at, hooks.clone()),
        Proof::programmed("bridge ports", node, to.host.at, ports),
        Proof::programmed("kube-proxy's rules", node, endpoints.at, format!("lead to {}", list(endpoints.value))),
    ];
    proofs.extend(met);
    let (node, bridge) = (node.to_owned(), bridge.clone());
    Way::Astray(Box::new(Astray { node, endpoint, bridge, hooks, proofs }))
}

/// What connection tracking knows of the client's connections to the endpoint through the Service.
enum Tracked {
    /// Answers are expected at another address than the client's: they go through the node.
    Masqueraded,
    /// They are expected at the client's, and the node has seen none.
    Waiting(Proof),
    Nothing,
}

fn tracked(path: &Path, client: &Client, endpoint: SocketAddr, own: IpAddr, view: &mut View) -> Tracked {
    let query = FlowQuery {
        client: Some(own),
        server: Some(endpoint.ip()),
        protocol: Some(path.protocol),
        port: Some(endpoint.port()),
    };
    let Look::Seen(found) = view.find_flows(&client.node, &Netns::Host, query) else { return Tracked::Nothing };
    let dialled = path.address_like(own);
    let by_service =
        |flow: &&Flow| Some(flow.original.destination) == dialled && Some(flow.original.destination_port) == path.port;
    let flows: Vec<&Flow> = found.value.flows.iter().filter(by_service).collect();
    if flows.iter().any(|flow| flow.reply.destination != own) {
        return Tracked::Masqueraded;
    }
    let waiting = flows.iter().filter(|flow| !flow.is_replied()).count();
    if waiting == 0 {
        return Tracked::Nothing;
    }
    let text = format!(
        "{waiting} of {} flows of {own} that go to {endpoint} instead of the Service's address wait for an answer at {own} itself, \
         and the node has seen none",
        flows.len()
    );
    Tracked::Waiting(Proof::observed("connection tracking", &client.node, found.at, text))
}

/// Endpoints answer one by one, and the Service does not always: what is lost is lost between the two.
fn only_the_service_is_silent(path: &Path, client: &Client, like: IpAddr, view: &mut View) -> bool {
    let request = path.address_like(like).and_then(|address| path.address_probe(address));
    let Some(request) = request else { return false };
    let silent = match view.probe(&client.node, &client.netns, request) {
        Look::Seen(seen) => seen.value.attempts.iter().any(|one| Fate::of(&one.outcome) == Some(Fate::Silence)),
        _ => false,
    };
    let mut same_family = path.ready_backends().filter(|backend| backend.address.is_ipv4() == like.is_ipv4());
    same_family.all(|backend| probe_of(path, view, client, backend) == Met::GotThrough) && silent
}

fn masquerade(node: &str, endpoint: SocketAddr) -> Gap {
    Gap {
        what: format!("whether node {node} masquerades connections to {endpoint}"),
        node: Some(node.to_owned()),
        reason: GapReason::Failed,
        why: "bridged answers bypass the packet filter, which hurts only connections that are not masqueraded, and no flow or probe \
              tells whether they are"
            .to_owned(),
        remedy: "ask with probes, or while the client connects".to_owned(),
    }
}

fn intended(service: &Service, astray: &[Astray], at: Timestamp) -> Proof {
    let endpoints: Vec<String> = astray.iter().map(|one| one.endpoint.to_string()).collect();
    let text = format!("endpoints on the client's own node: {}", endpoints.join(", "));
    Proof::intended(format!("EndpointSlices of {}", service.reference()), at, text)
}

fn fix(path: &Path, node: &str, like: IpAddr) -> Fix {
    let name = sysctl_of(like);
    Fix {
        text: format!(
            "load br_netfilter and set {name} on node {node}, and write both to /etc/modules-load.d and /etc/sysctl.d, so that they last"
        ),
        commands: vec![
            format!("modprobe br_netfilter  # on node {node}"),
            format!("sysctl -w {name}=1  # on node {node}"),
        ],
        verify: path.ask_again(),
    }
}
