//! A node has the way to another node's pods in a routing table of its network plugin, and no rule leads to that table.

use std::cmp::Reverse;
use std::net::IpAddr;

use ipnet::IpNet;
use netdiag_common::Netns;
use netdiag_common::observation::network::{Network, PolicyRule, Route};

use super::between::{self, Astray, Found, Leg, Routing};
use super::trace::Met;
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::{KindName, Look, View};
use crate::finding::{Fate, Proof};
use crate::path::Path;
use crate::path::route::{Way, aside, is_of_family, is_steered, leads_to, way, words};

pub const CONDITION: Condition = Condition {
    code: "routing_rule_missing",
    severity: Severity::Critical,
    words: Words {
        means: "a node of the path has its route to the other node's pods in a routing table that none of its rules leads to, so that \
                packets or their answers get lost",
        how_we_know: "the table of one node holds the route and no routing rule there names that table, while on another node of the \
                      cluster a rule does",
        silent_when: "a rule leads to the table, the main table has a route of its own, the probe gets through, or no node has such a \
                      rule: then the table may be left over from another network plugin; rules by marks and interfaces, and those \
                      that lead to a virtual routing domain (VRF), are not judged",
        what_to_do: "restart the network plugin's agent on the node, or add the rule again, and keep systemd-networkd from removing it",
        sources: &[
            "ip-rule(8), net/core/fib_rules.c: fib_rules_lookup",
            "networkd.conf(5): ManageForeignRoutingPolicyRules=, ManageForeignRoutes=",
            "https://www.datadoghq.com/blog/engineering/2023-03-08-deep-dive-into-platform-level-impact/",
        ],
    },
    faults: &["cni-networkd-flush"],
    reads: &[Read::Kind(KindName::Nodes), Read::Topic("network"), Read::Topic("drops"), Read::Topic("probe")],
    lookalikes: &["policy_denies_path", "host_firewall_drops_path", "kube_proxy_rules_stale"],
    // By the main table alone the route is missing.
    explains: &[Explains { code: "pod_network_route_missing", relation: Relation::SamePath }],
    judge,
};

/// Other nodes whose rules are read, the pods' own among them: a plugin writes the same on all.
const MAX_PEERS: usize = 4;

const ROUTING: Routing = Routing {
    look,
    verb: "are cut",
    reasons: between::NO_ROUTE,
    fix: |node| {
        format!(
            "write the rule on node {node} again: restart the network plugin's agent there; if systemd-networkd was started anew on \
             that node (systemctl status systemd-networkd), it has removed the rules that it did not write itself: set \
             ManageForeignRoutingPolicyRules=no and ManageForeignRoutes=no in /etc/systemd/networkd.conf on every node"
        )
    },
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    between::judge(path, view, &ROUTING)
}

/// One direction, by the tables and rules of the node that sends.
pub(super) fn look<'p>(leg: Leg<'p>, met: Met, view: &mut View) -> Found<'p> {
    let Look::Seen(network) = view.network(leg.node, &Netns::Host) else { return Found::Dark };
    let (network, at) = (network.value, network.at);
    let way = way(network, leg.to);
    if let Way::Known(route) = &way {
        return Found::Fine(format!("node {} reaches {} by {}", leg.node, leg.to, words(route, network)));
    }
    if let Some(route) = best(network, leg.to, |route| leads_to(network, route.table, leg.to)) {
        let by = words(route, network);
        return Found::Fine(format!("node {} has a rule that leads to table {} with {by}", leg.node, route.table));
    }
    let Some(route) = best(network, leg.to, |route| !leads_to(network, route.table, leg.to)) else {
        if !network.left_out.is_empty() {
            return Found::Dark;
        }
        return Found::Fine(format!("node {} has no routing table aside with a route to {}", leg.node, leg.to));
    };
    if met == Met::GotThrough {
        return Found::Fine(format!("the probe from node {} got through without table {}", leg.node, route.table));
    }
    // Another rule may send these packets by yet another table's default route.
    let lost_as_told = matches!(met, Met::Failed(Fate::Unreachable | Fate::Silence));
    if is_steered(network) && !lost_as_told {
        return Found::Dark;
    }
    let rule = match peer(&leg, route.table, view) {
        Peer::Leads(rule) => rule,
        Peer::None => {
            return Found::Fine(format!("no rule of another node leads to a table {} either", route.table));
        }
        Peer::Dark => return Found::Dark,
    };
    let net = pod_network(view, leg.to_node, leg.to);
    let target = net.map_or_else(|| leg.to.to_string(), |net| net.to_string());
    let own = words(route, network);
    let claim = format!(
        "node {} has no rule that leads to its routing table {}, which holds the route to {target}, the pods of node {} ({own})",
        leg.node, route.table, leg.to_node
    );
    let instead = match &way {
        Way::OnlyDefault(route) | Way::Refused(route) => format!("has only {}", words(route, network)),
        Way::Nothing | Way::Known(_) => "has nothing".to_owned(),
    };
    let of_family = network.policy_rules.iter().filter(|rule| is_of_family(rule, leg.to)).count();
    let found = format!("to {}: table {} has {own}, and the main table {instead}", leg.to, route.table);
    let without = format!("none of its {of_family} rules leads to table {}", route.table);
    let mut proofs = vec![
        Proof::programmed("routes", leg.node, at, found),
        Proof::programmed("routing rules", leg.node, at, without),
        rule.proof,
    ];
    if let Some(net) = net {
        let node = format!("Node {}", leg.to_node);
        proofs.push(Proof::intended(node, view.now(), format!("its pods have addresses of {net}")));
    }
    let predicts: &[Fate] = match way {
        // What the default gateway does with them is anybody's guess.
        Way::OnlyDefault(_) => &[],
        _ => &[Fate::Silence, Fate::Unreachable, Fate::NotPermitted],
    };
    // One that names addresses names those of its own node.
    let command = rule.is_for_all.then(|| {
        let family = if leg.to.is_ipv4() { "-4" } else { "-6" };
        format!("ip {family} rule add priority {} lookup {}  # on node {}", rule.priority, route.table, leg.node)
    });
    Found::Astray(Box::new(Astray { leg, claim, proofs, predicts, command }))
}

/// The best route aside that is wanted.
fn best(network: &Network, to: IpAddr, is_wanted: impl Fn(&Route) -> bool) -> Option<&Route> {
    let routes = aside(network, to).filter(|route| is_wanted(route));
    routes.max_by_key(|route| (route.destination.prefix_len(), Reverse(route.metric)))
}

/// What other nodes have for a table of that number.
enum Peer {
    Leads(Rule),
    /// None has a rule for it.
    None,
    Dark,
}

/// A rule that another node has and this one lacks.
struct Rule {
    proof: Proof,
    priority: u32,
    /// It names no addresses.
    is_for_all: bool,
}

fn peer(leg: &Leg, table: u32, view: &mut View) -> Peer {
    let nodes = view.cluster().nodes.iter().map(|node| node.metadata.name.clone());
    let others = nodes.filter(|name| name != leg.node && name != leg.to_node);
    let others: Vec<String> = std::iter::once(leg.to_node.to_owned()).chain(others).take(MAX_PEERS).collect();
    let mut dark = false;
    for other in others {
        let Look::Seen(network) = view.network(&other, &Netns::Host) else {
            dark = true;
            continue;
        };
        let leads = |rule: &&PolicyRule| {
            rule.table == table && is_of_family(rule, leg.to) && names_only_addresses(&rule.selector)
        };
        let Some(rule) = network.value.policy_rules.iter().find(leads) else { continue };
        let is_for_all = rule.selector.is_empty();
        let selector = if is_for_all { "from all" } else { rule.selector.as_str() };
        let text = format!("it has the rule {}: {selector} lookup {table}", rule.priority);
        let proof = Proof::programmed("routing rules", &other, network.at, text);
        return Peer::Leads(Rule { proof, priority: rule.priority, is_for_all });
    }
    if dark { Peer::Dark } else { Peer::None }
}

/// `from 10.244.1.0/24`, and nothing that the path's packets may lack: a mark, an interface, a user.
fn names_only_addresses(selector: &str) -> bool {
    let words: Vec<&str> = selector.split_whitespace().collect();
    words.chunks(2).all(|pair| matches!(pair, ["from" | "to", _]))
}

fn pod_network(view: &View, node: &str, address: IpAddr) -> Option<IpNet> {
    let node = view.cluster().nodes.get("", node)?;
    node.spec.pod_cidrs.iter().find(|net| net.contains(&address)).copied()
}

#[cfg(test)]
mod tests {
    use super::names_only_addresses;

    #[test]
    fn rules_by_marks_and_interfaces_are_for_other_packets() {
        assert!(names_only_addresses("") && names_only_addresses("from 10.244.1.0/24 to 10.244.0.0/16"));
        for selector in ["fwmark 0x200/0xf00", "not from 10.0.0.0/8", "iif lo", "from 10.0.0.0/8 blackhole"] {
            assert!(!names_only_addresses(selector), "{selector}");
        }
    }
}
