//! A pod cannot reach itself through its Service: its bridge sends no packet back to the port it came from.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::{Gap, GapReason, Netns};

use super::bridge::{Attached, Interface, Rules, hooks_words, interface, list, passes_hooks, rules};
use super::connected::{Connected, connected};
use super::trace::{Packets, dropped};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Object, Pod, Service};
use crate::evidence::{KindName, Look, ObjectRef, Seen, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::forwarding::is_proxied;
use crate::path::{Backend, Client, Path};

pub const CONDITION: Condition = Condition {
    code: "hairpin_mode_off",
    severity: Severity::Medium,
    words: Words {
        means: "a pod asks a Service that it is itself an endpoint of, and its bridge does not send packets back to the port they \
                came from: whenever the Service chooses the pod itself, the connection gets no answer",
        how_we_know: "the client is in the EndpointSlices of the Service and in the rules of its node, its interface is a port of a \
                      bridge whose hairpin mode is off, and bridged packets pass the hooks where the Service's address is translated",
        silent_when: "the client is no endpoint of the Service, pods are routed, hairpin mode is on, or bridged packets do not pass \
                      these hooks: then the node itself sends them back",
        what_to_do: "turn hairpinMode on in the network plugin's configuration, and on the ports of pods that run already",
        sources: &[
            "https://kubernetes.io/docs/tasks/debug/debug-application/debug-service/#a-pod-fails-to-reach-itself-via-the-service-ip",
            "https://www.cni.dev/plugins/current/main/bridge/",
            "net/bridge/br_forward.c: should_deliver",
        ],
    },
    faults: &["kp-hairpin-bridge-off"],
    reads: &[
        Read::Kind(KindName::Services),
        Read::Kind(KindName::EndpointSlices),
        Read::Topic("service_rules"),
        Read::Topic("network"),
        Read::Topic("sysctls"),
        Read::Topic("cni"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &[
        "bridge_nf_call_iptables_off",
        "kube_proxy_rules_stale",
        "target_port_not_listening",
        "policy_denies_path",
    ],
    explains: &[],
    judge,
};

/// What the kernel gives where a bridge finds no port to send to (`br_forward`); it has no reason of its own.
const REASONS: &[&str] = &["NOT_SPECIFIED"];

/// A pod that asks a Service it is an endpoint of.
struct Itself<'p> {
    client: &'p Client,
    pod: &'p Pod,
    backend: &'p Backend,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let Some(service) = path.service().filter(|service| is_proxied(service)) else {
        return Verdict::not_applicable("the path does not lead to an address that kube-proxy translates");
    };
    let (Look::Seen(slices), Look::Seen(_)) = (view.endpoint_slices(), view.services()) else {
        return Verdict::unknown(view);
    };
    let mut clear = None;
    for itself in path.clients.iter().flat_map(|client| itself(path, client)) {
        match on_node(path, service, &itself, slices.at, view) {
            Verdict::Clear(because) => clear = Some(because),
            other => return other,
        }
    }
    clear.map_or_else(|| Verdict::not_applicable("the client is no endpoint of the Service"), Verdict::Clear)
}

/// One for each family of addresses.
fn itself<'p>(path: &'p Path, client: &'p Client) -> impl Iterator<Item = Itself<'p>> {
    let pod = client.pod.as_deref().filter(|_| client.netns != Netns::Host);
    path.ready_backends().filter_map(move |backend| {
        let pod = pod?;
        let is_it = backend.pod.as_ref().is_some_and(|own| own.metadata.uid == pod.metadata.uid);
        is_it.then_some(Itself { client, pod, backend })
    })
}

fn on_node(path: &Path, service: &Service, itself: &Itself, slices_at: jiff::Timestamp, view: &mut View) -> Verdict {
    let Itself { client, pod, backend } = itself;
    let (node, own) = (client.node.as_str(), backend.address);
    let socket = SocketAddr::new(own, backend.port);
    let endpoints = match rules(path, client, own, view) {
        Rules::LeadTo(endpoints) => endpoints,
        Rules::Nothing => {
            return Verdict::not_applicable("no rule of kube-proxy on the client's node leads to endpoints");
        }
        Rules::Dark => return Verdict::unknown(view),
    };
    if !endpoints.value.iter().any(|endpoint| endpoint.address == own && endpoint.port == backend.port) {
        return Verdict::clear(format!("the rules of node {node} do not lead the pod to itself"));
    }
    let Attached { port, bridge, host, .. } = match interface(node, &client.netns, own, view) {
        Interface::Bridged(attached) => attached,
        Interface::Elsewhere => return Verdict::clear(format!("{} is on no bridge of node {node}", client.reference)),
        Interface::Dark => return Verdict::unknown(view),
    };
    if port.bridge_port.is_some_and(|port| port.hairpin) {
        return Verdict::clear(format!("hairpin mode of port {} of bridge {} is on", port.name, bridge.name));
    }
    let Look::Seen(sysctls) = view.sysctls(node, &Netns::Host) else { return Verdict::unknown(view) };
    let hooks = hooks_words(bridge, own, sysctls.value);
    if !passes_hooks(bridge, own, sysctls.value) {
        return Verdict::clear(format!("node {node} itself sends the pod's packets back to it: {hooks}"));
    }
    // Kernels differ in what becomes of a copy that a promiscuous bridge hands up: packets decide.
    if bridge.bridge.is_some_and(|bridge| bridge.promiscuous) && !gets_no_answer(path, client, own, view) {
        view.leave_open(promiscuous(node, &bridge.name));
        return Verdict::unknown(view);
    }
    let only = endpoints.value.len() == 1;
    let share =
        if only { "every connection".to_owned() } else { format!("1 of {} connections", endpoints.value.len()) };
    let claim = format!(
        "on node {node}, hairpin mode of port {} of bridge {} is off, so {} cannot reach itself ({socket}) through {}: {share} gets no \
         answer",
        port.name,
        bridge.name,
        pod.reference(),
        service.reference()
    );
    let mut proofs = vec![
        off(node, &port.name, &bridge.name, host),
        Proof::programmed("kube-proxy's rules", node, endpoints.at, format!("lead to {}", list(endpoints.value))),
        Proof::programmed("sysctls", node, sysctls.at, format!("bridged packets are translated: {hooks}")),
        Proof::intended(
            format!("EndpointSlices of {}", service.reference()),
            slices_at,
            format!("{socket} is an endpoint, and it is {}", pod.reference()),
        ),
    ];
    proofs.extend(maker(node, own, &bridge.name, view));
    let packets = Packets { source: own, destination: socket, protocol: path.protocol };
    proofs.extend(dropped(view, node, &packets, REASONS));
    Verdict::found(Finding {
        subjects: vec![ObjectRef::of_node(node)],
        since: None,
        impact: if only { Impact::Breaks } else { Impact::Degrades },
        claim,
        proofs,
        predicts: &[Fate::Silence],
        fix: fix(path, node, &port.name),
    })
}

fn off<T>(node: &str, port: &str, bridge: &str, host: Seen<T>) -> Proof {
    let text = format!("{port}, the pod's port of bridge {bridge}: hairpin off");
    Proof::programmed("bridge ports", node, host.at, text)
}

/// Whose the port is, where the node's network configurations tell.
fn maker(node: &str, own: IpAddr, bridge: &str, view: &mut View) -> Option<Proof> {
    let Connected { file, plugin, net, at, .. } = connected(node, own, view)?;
    if plugin.kind != "bridge" || plugin.device.as_deref() != Some(bridge) {
        return None;
    }
    let text = format!(
        "{file}: the plugin bridge makes the ports of bridge {bridge} for pods of {net}, and sets their hairpin mode"
    );
    Some(Proof::programmed("network configurations", node, at, text))
}

/// Of the probes to the Service, some got no answer.
fn gets_no_answer(path: &Path, client: &Client, like: IpAddr, view: &mut View) -> bool {
    let request = path.address_like(like).and_then(|address| path.address_probe(address));
    let Some(request) = request else { return false };
    let Look::Seen(seen) = view.probe(&client.node, &client.netns, request) else { return false };
    seen.value.attempts.iter().any(|attempt| Fate::of(&attempt.outcome) == Some(Fate::Silence))
}

fn promiscuous(node: &str, bridge: &str) -> Gap {
    Gap {
        what: format!("what bridge {bridge} of node {node} does with packets for the port they came from"),
        node: Some(node.to_owned()),
        reason: GapReason::Kernel,
        why: format!("{bridge} is promiscuous, and kernels differ in what becomes of packets that it hands up"),
        remedy: "ask with probes, or turn hairpin mode on".to_owned(),
    }
}

fn fix(path: &Path, node: &str, port: &str) -> Fix {
    Fix {
        text: format!(
            "set \"hairpinMode\": true for the bridge plugin in /etc/cni/net.d of node {node} and the others; pods that run already \
             keep their port's mode until it is set by hand or they are made anew"
        ),
        commands: vec![format!("bridge link set dev {port} hairpin on  # on node {node}")],
        verify: path.ask_again(),
    }
}
