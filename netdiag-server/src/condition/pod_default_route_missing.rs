//! A pod's own network namespace has no route for what it sends.

use netdiag_common::Netns;
use netdiag_common::forwarding::path::End;
use netdiag_common::observation::network::Network;

use super::connected::{Connected, connected};
use super::way::{Met, Search, search};
use super::{Condition, Read, Severity, Verdict, Words};
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Proof};
use crate::path::Path;
use crate::path::route::words;
use crate::trace::Direction;

pub const CONDITION: Condition = Condition {
    code: "pod_default_route_missing",
    severity: Severity::High,
    words: Words {
        means: "a pod cannot send to what is not its neighbour: its own network namespace has no route there",
        how_we_know: "the packet, and its answer, are followed by what each namespace was programmed with; the pod's own \
                      routes and the probe agree",
        silent_when: "the pod has a route, whatever comes after, or the route is missing on the node",
        what_to_do: "recreate the pod, so that the network plugin makes its network anew; where it comes back so, mend the \
                     plugin's configuration on that node",
        sources: &["https://www.cni.dev/docs/spec/", "net/ipv4/route.c: ip_route_output_key_hash_rcu"],
    },
    faults: &["cni-pod-no-default-route"],
    reads: &[
        Read::Topic("fate"),
        Read::Topic("network"),
        Read::Topic("listeners"),
        Read::Topic("cni"),
        Read::Topic("probe"),
    ],
    lookalikes: &["pod_network_route_missing", "host_firewall_drops_path"],
    explains: &[],
    judge,
};

fn judge(path: &Path, view: &mut View) -> Verdict {
    let met = search(path, view, |_, leg| match (&leg.place.netns, &leg.path().end) {
        (Netns::Pod(_), End::NoRoute { why }) => Some(why.clone()),
        _ => None,
    });
    let Met { found, impact } = match met {
        Search::Met(met) => met,
        Search::Not(verdict) => return verdict,
    };
    let mut subjects: Vec<ObjectRef> = Vec::new();
    let (mut proofs, mut claims) = (Vec::new(), Vec::new());
    for lost in &found {
        let (place, to) = (&lost.leg.place, lost.leg.request.destination);
        let what = if lost.leg.direction == Direction::Reply { "its answers to" } else { "packets to" };
        claims.push(format!("{} has no route for {what} {to}", place.words(view)));
        proofs.push(Proof::programmed("routes", &place.node, lost.leg.at, format!("to {to}: {}", lost.what)));
        if let Look::Seen(network) = view.network(&place.node, &place.netns) {
            let own = network.value.routes.iter().filter(|route| route.table == 254);
            let own: Vec<String> = own.map(|route| words(route, network.value)).take(5).collect();
            let text = if own.is_empty() { "none".to_owned() } else { own.join(", ") };
            let text = format!("the pod's own routes: {text}");
            proofs.push(Proof::programmed("main routing table", &place.node, network.at, text));
            proofs.extend(maker(&place.node, network.value, view));
        }
        subjects.push(place.subject(view));
    }
    // What the pod itself sends ends at once; answers that cannot be sent are missed by whoever asked.
    let asks = found.iter().any(|lost| lost.leg.direction == Direction::Forward);
    let predicts: &[Fate] = if asks { &[Fate::Unreachable] } else { &[Fate::Silence] };
    let pods: Vec<String> = subjects.iter().map(ToString::to_string).collect();
    let commands = subjects.iter().filter(|subject| subject.kind == "Pod");
    let commands = commands.map(|pod| format!("kubectl -n {} delete pod {}", pod.namespace, pod.name)).collect();
    let fix = Fix {
        text: format!(
            "delete {}, so that its controller makes another one with a whole network; if that lacks the route, too, the \
             network plugin's configuration on the node is wrong",
            pods.join(", ")
        ),
        commands,
        verify: path.ask_again(),
    };
    let claim = claims.join("; ");
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts, fix })
}

/// Whose the pod's routes are, where the node's network configurations tell: a pod of several networks has its default route of one
/// of them.
fn maker(node: &str, pod: &Network, view: &mut View) -> Option<Proof> {
    let mut of = pod.addresses.iter().filter_map(|own| connected(node, own.address, view));
    let Connected { file, plugin, net, at, .. } = of.next()?;
    if of.any(|other| other.file != file) {
        return None;
    }
    let kind = &plugin.kind;
    let text = format!("{file}: the plugin {kind} makes the links of pods of {net}, and sets their routes");
    Some(Proof::programmed("network configurations", node, at, text))
}
