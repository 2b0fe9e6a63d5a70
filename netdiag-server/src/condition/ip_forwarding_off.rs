//! A node on the path does not forward packets: its forwarding sysctl is off.

use netdiag_common::Netns;
use netdiag_common::forwarding::path::End;

use super::trace::dropped;
use super::way::{Met, Search, packets, search};
use super::{Condition, Explains, Read, Relation, Severity, Verdict, Words};
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Proof};
use crate::path::Path;

pub const CONDITION: Condition = Condition {
    code: "ip_forwarding_off",
    severity: Severity::Critical,
    words: Words {
        means: "a node of the path throws away what it should forward between pods and other nodes, because a sysctl \
                turns forwarding off there",
        how_we_know: "the packet is followed from namespace to namespace by what each of them was programmed with; the \
                      node's sysctls and the packets that its kernel dropped agree",
        silent_when: "the packet is stopped elsewhere, or the probes get through",
        what_to_do: "turn forwarding on again, for good, and find what turned it off",
        sources: &[
            "https://kubernetes.io/docs/setup/production-environment/container-runtimes/#prerequisite-ipv4-forwarding-optional",
            "net/ipv4/route.c: ip_error, ip_route_input_slow",
            "net/ipv6/ip6_output.c: ip6_forward",
        ],
    },
    faults: &["host-ip-forward-off"],
    reads: &[
        Read::Topic("fate"),
        Read::Topic("network"),
        Read::Topic("listeners"),
        Read::Topic("sysctls"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["pod_network_route_missing", "host_firewall_drops_path", "reverse_path_filter_drops"],
    explains: &[Explains { code: "neighbour_unresolved", relation: Relation::SameNode }],
    judge,
};

/// What IPv4 and IPv6 call it (Linux 6.18).
const DROPS: [(&str, &str); 2] = [("IP_INADDRERRORS", "ip_error"), ("NOT_SPECIFIED", "ip6_forward")];

/// What turns it off: for all interfaces, or for the one that packets come in by.
fn keys(is_ipv4: bool, interface: Option<&str>) -> Vec<String> {
    let (all, family) =
        if is_ipv4 { ("net.ipv4.ip_forward", "ipv4") } else { ("net.ipv6.conf.all.forwarding", "ipv6") };
    let own = interface.map(|interface| format!("net.{family}.conf.{interface}.forwarding"));
    std::iter::once(all.to_owned()).chain(own).collect()
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let is_off = |end: &End| match end {
        End::Discarded(found) if DROPS.contains(&(found.reason.as_str(), found.function.as_str())) => {
            Some(found.clone())
        }
        _ => None,
    };
    let Met { found, impact } = match search(path, view, |_, leg| is_off(&leg.path().end)) {
        Search::Met(met) => met,
        Search::Not(verdict) => return verdict,
    };
    let mut subjects: Vec<ObjectRef> = Vec::new();
    let mut proofs = Vec::new();
    let mut commands = Vec::new();
    let mut claims = Vec::new();
    for off in &found {
        let (place, at) = (&off.leg.place, off.leg.at);
        let subject = place.subject(view);
        if subjects.iter().any(|known| known.same_object(&subject)) {
            continue;
        }
        let packet = packets(&off.leg, path);
        let words = place.words(view);
        claims.push(format!(
            "{words} does not forward packets from {} to {}, which are of the path to {}",
            packet.source,
            packet.destination,
            path.target_words()
        ));
        let text = format!("{}: the packet from {} to {} ends there", off.what.why, packet.source, packet.destination);
        proofs.push(Proof::programmed("forwarding", &place.node, at, text));
        let own = off.leg.input().map(|input| input.name.replace('.', "/"));
        let keys = keys(packet.source.is_ipv4(), own.as_deref());
        let sysctls = view.sysctls(&place.node, &place.netns);
        let is_zero = |key: &&String| matches!(&sysctls, Look::Seen(seen) if seen.value.values.get(*key).is_some_and(|v| v == "0"));
        let key = keys.iter().find(is_zero);
        if let (Look::Seen(sysctls), Some(key)) = (&sysctls, key) {
            proofs.push(Proof::programmed("sysctls", &place.node, sysctls.at, format!("{key} is 0")));
        }
        if place.netns == Netns::Host {
            proofs.extend(dropped(view, &place.node, &packet, &[off.what.reason.as_str()]));
            commands.extend(key.map(|key| format!("sysctl -w {key}=1  # on node {}", place.node)));
        }
        subjects.push(subject);
    }
    let fix = Fix {
        text: format!(
            "set the sysctl on {}, and write it where it lasts (/etc/sysctl.d); kubelet, the network plugin and whoever \
             manages the node's sysctls may set it, too: find which one turned it off",
            subjects.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
        ),
        commands,
        verify: path.ask_again(),
    };
    let claim = claims.join("; ");
    Verdict::found(Finding {
        subjects,
        since: None,
        impact,
        claim,
        proofs,
        predicts: &[Fate::Silence, Fate::Unreachable],
        fix,
    })
}
