//! The Service's load-balancer address takes clients of some ranges alone, and the client's address is in none of them.

use std::net::{IpAddr, SocketAddr};

use ipnet::IpNet;
use netdiag_common::Netns;
use netdiag_common::observation::rules::{Match, Rule, Ruleset};

use super::trace::{Packets, dropped};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::object::{Object, Service};
use crate::evidence::{KindName, Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{Client, Path, TargetObject};

pub const CONDITION: Condition = Condition {
    code: "load_balancer_source_ranges_exclude_client",
    severity: Severity::Medium,
    words: Words {
        means: "the client dials a load balancer's address of the Service, whose loadBalancerSourceRanges do not hold the \
                client's address",
        how_we_know: "the Service's ranges against the client's address; the firewall rule that kube-proxy makes of them \
                      on the client's node, and the packets it dropped",
        silent_when: "a range holds the client, no range is of the address's family (then kube-proxy filters nothing), the \
                      cluster IP is dialled, or the load balancer is one that nodes do not stand in for (ipMode: Proxy)",
        what_to_do: "add the client's network to the ranges, or dial the Service's cluster IP from inside of the cluster",
        sources: &[
            "https://kubernetes.io/docs/concepts/services-networking/service/#aws-nlb-support",
            "kube-proxy pkg/proxy/iptables/proxier.go: KUBE-FW-, KUBE-PROXY-FIREWALL",
            "kube-proxy pkg/proxy/nftables/proxier.go: firewall-ips",
        ],
    },
    faults: &["svc-lb-source-ranges"],
    reads: &[Read::Kind(KindName::Services), Read::Topic("rules"), Read::Topic("drops")],
    lookalikes: &["service_has_no_ready_endpoints", "kube_proxy_rules_stale", "policy_denies_path"],
    explains: &[],
    judge,
};

const REASONS: &[&str] = &["NETFILTER_DROP"];
/// Ranges named in a claim; more are counted.
const NAMED: usize = 4;

fn judge(path: &Path, view: &mut View) -> Verdict {
    let (Some(service), Some(port)) = (path.service(), path.service_port()) else {
        // An address of nobody may be a Service's that we may not list.
        return match view.services() {
            Look::Dark if matches!(path.target, TargetObject::Address) => Verdict::unknown(view),
            _ => Verdict::not_applicable("the path does not lead to a Service's port"),
        };
    };
    if service.spec.load_balancer_source_ranges.is_empty() {
        return Verdict::not_applicable("the Service has no loadBalancerSourceRanges");
    }
    let Look::Seen(services) = view.services() else { return Verdict::unknown(view) };
    let Some(address) = service.load_balancer_ips().find(|own| path.addresses.contains(own)) else {
        return Verdict::clear("the asked address is not the load balancer's, and the ranges are about that one alone");
    };
    let of_family = |net: &IpNet| net.addr().is_ipv4() == address.is_ipv4();
    let ranges: Vec<IpNet> = service.load_balancer_source_ranges().filter(of_family).collect();
    if ranges.is_empty() {
        return Verdict::clear(format!("no range is of the family of {address}, so kube-proxy filters nothing there"));
    }
    let own = |client: &Client| {
        let own: Vec<IpAddr> =
            client.addresses.iter().copied().filter(|own| own.is_ipv4() == address.is_ipv4()).collect();
        own
    };
    let is_out = |client: &&Client| {
        let own = own(client);
        !own.is_empty() && !own.iter().any(|own| ranges.iter().any(|range| range.contains(own)))
    };
    let out: Vec<&Client> = path.clients.iter().filter(is_out).collect();
    let Some(first) = out.first().copied() else {
        return Verdict::clear(format!("the ranges hold the client: {}", words(&ranges)));
    };
    let Some(source) = own(first).first().copied() else {
        return Verdict::not_applicable("the client has no address of that family");
    };
    let reference = service.reference();
    let socket = SocketAddr::new(address, port.port);
    let mut claim = format!(
        "{reference} takes clients of {} alone at {socket}, and {} has the address {source}",
        words(&ranges),
        first.reference
    );
    if path.clients.len() > 1 {
        claim.push_str(&format!("; so for {} of {} clients", out.len(), path.clients.len()));
    }
    let mut proofs = vec![
        Proof::intended(&reference, services.at, format!("spec.loadBalancerSourceRanges is {}", words(&ranges))),
        Proof::intended(&first.reference, services.at, format!("its address is {source}")),
    ];
    proofs.extend(rule(service, socket, first, view));
    proofs.extend(dropped(
        view,
        &first.node,
        &Packets { source, destination: socket, protocol: path.protocol },
        REASONS,
    ));
    let mut subjects = vec![reference.clone()];
    subjects.extend(out.iter().map(|client| client.reference.clone()).filter(|client| client.kind != "Node"));
    subjects.extend(out.iter().filter(|client| client.pod.is_none()).map(|client| ObjectRef::of_node(&client.node)));
    Verdict::found(Finding {
        subjects,
        since: None,
        impact: if out.len() == path.clients.len() { Impact::Breaks } else { Impact::Degrades },
        claim,
        proofs,
        // What the node's own sockets send is refused to them; what passes through is dropped in silence.
        predicts: &[Fate::Silence, Fate::NotPermitted],
        fix: Fix {
            text: format!(
                "add the client's network to spec.loadBalancerSourceRanges of {reference}; from inside of the cluster dial \
                 its cluster IP or name instead"
            ),
            commands: Vec::new(),
            verify: path.ask_again(),
        },
    })
}

fn words(ranges: &[IpNet]) -> String {
    let shown = ranges.iter().take(NAMED).map(ToString::to_string).collect::<Vec<_>>().join(", ");
    match ranges.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} other ranges"),
    }
}

/// kube-proxy's firewall rule for this address. Nothing when there is none or rules cannot be seen: the claim then stands on
/// its other proofs.
fn rule(service: &Service, socket: SocketAddr, client: &Client, view: &mut View) -> Option<Proof> {
    let Look::Seen(rules) = view.rules(&client.node, &Netns::Host) else { return None };
    let (chain, rule) = firewall_rule(rules.value, service, socket)?;
    let counted = rule.counter.filter(|counter| counter.packets > 0);
    let counted = counted.map(|counter| format!("; it has counted {} packets", counter.packets)).unwrap_or_default();
    let text = format!("chain {chain}: {}{counted}", rule.text);
    Some(Proof::programmed("kube-proxy's rules", &client.node, rules.at, text))
}

/// In nftables mode a chain per Service port, in iptables mode a rule per address in one chain.
fn firewall_rule<'r>(ruleset: &'r Ruleset, service: &Service, socket: SocketAddr) -> Option<(&'r str, &'r Rule)> {
    let own = format!("-{}/{}/", service.metadata.namespace, service.metadata.name);
    let is_for = |rule: &Rule| {
        rule.matches.iter().any(|found| match found {
            Match::Destination { nets, negated: false } => nets.iter().any(|net| *net == IpNet::from(socket.ip())),
            _ => false,
        })
    };
    let mut chains = ruleset.tables.iter().flat_map(|table| &table.chains);
    let named = |name: &str| name.starts_with("firewall-") && name.contains(&own);
    chains.find_map(|chain| {
        let rule = match chain.name.as_str() {
            "KUBE-PROXY-FIREWALL" => chain.rules.iter().find(|rule| is_for(rule)),
            name if named(name) => chain.rules.first(),
            _ => None,
        };
        Some((chain.name.as_str(), rule?))
    })
}
