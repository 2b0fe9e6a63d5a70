//! A node throws packets away because they came by another interface than the one that leads back to their sender.

use netdiag_common::Netns;
use netdiag_common::forwarding::path::End;

use super::trace::dropped;
use super::way::{Met, Search, packets, search};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Proof};
use crate::path::Path;

pub const CONDITION: Condition = Condition {
    code: "reverse_path_filter_drops",
    severity: Severity::High,
    words: Words {
        means: "a node of the path drops the connection's packets, because its reverse path filter (rp_filter) does not \
                expect their sender behind the interface they came by",
        how_we_know: "the packet is followed from namespace to namespace by what each of them was programmed with; the \
                      sysctls, the routes and the packets that the node's kernel dropped agree",
        silent_when: "the filter is off or loose, the way back is by the same interface, or the probes get through",
        what_to_do: "make the way back the way there, or set rp_filter to 2 (loose) on that interface",
        sources: &[
            "https://www.kernel.org/doc/html/latest/networking/ip-sysctl.html (rp_filter)",
            "net/ipv4/fib_frontend.c: __fib_validate_source",
            "RFC 3704, ingress filtering for multihomed networks",
        ],
    },
    faults: &["rp-filter-strict"],
    reads: &[
        Read::Topic("fate"),
        Read::Topic("network"),
        Read::Topic("listeners"),
        Read::Topic("sysctls"),
        Read::Topic("drops"),
        Read::Topic("probe"),
    ],
    lookalikes: &["pod_network_route_missing", "host_firewall_drops_path", "ip_forwarding_off"],
    explains: &[],
    judge,
};

const REASON: &str = "IP_RPFILTER";

/// What it was dropped for, and by which interface it came.
struct Filtered {
    why: String,
    interface: Option<String>,
}

fn judge(path: &Path, view: &mut View) -> Verdict {
    let met = search(path, view, |_, leg| match &leg.path().end {
        End::Discarded(found) if found.reason == REASON => {
            Some(Filtered { why: found.why.clone(), interface: leg.input().map(|input| input.name.clone()) })
        }
        _ => None,
    });
    let Met { found, impact } = match met {
        Search::Met(met) => met,
        Search::Not(verdict) => return verdict,
    };
    let mut subjects: Vec<ObjectRef> = Vec::new();
    let (mut proofs, mut commands, mut claims) = (Vec::new(), Vec::new(), Vec::new());
    for filtered in &found {
        let (place, at) = (&filtered.leg.place, filtered.leg.at);
        let packet = packets(&filtered.leg, path);
        let words = place.words(view);
        let interface = filtered.what.interface.as_deref().unwrap_or("an interface");
        claims.push(format!(
            "{words} drops packets from {} to {} that come by {interface}, because its reverse path filter expects their \
             sender elsewhere; they are of the path to {}",
            packet.source,
            packet.destination,
            path.target_words()
        ));
        proofs.push(Proof::programmed("routes", &place.node, at, filtered.what.why.clone()));
        if let Look::Seen(sysctls) = view.sysctls(&place.node, &place.netns) {
            let own = format!("net.ipv4.conf.{}.rp_filter", interface.replace('.', "/"));
            let values = ["net.ipv4.conf.all.rp_filter", own.as_str()];
            let values = values.iter().filter_map(|key| Some(format!("{key} is {}", sysctls.value.values.get(*key)?)));
            let text = values.collect::<Vec<_>>().join(", ");
            if !text.is_empty() {
                let text = format!("{text}; the higher one counts");
                proofs.push(Proof::programmed("sysctls", &place.node, sysctls.at, text));
            }
        }
        if place.netns == Netns::Host {
            proofs.extend(dropped(view, &place.node, &packet, &[REASON]));
            commands.push(format!(
                "sysctl -w net.ipv4.conf.{}.rp_filter=2  # on node {}",
                interface.replace('.', "/"),
                place.node
            ));
        }
        place.subject(view).add_once(&mut subjects);
    }
    let fix = Fix {
        text:
            "give the node a route back to the sender by the interface that its packets come by, or loosen the filter \
               there"
                .to_owned(),
        commands,
        verify: path.ask_again(),
    };
    let claim = claims.join("; ");
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: &[Fate::Silence], fix })
}
