//! Paths from node to node, direction by direction: what conditions about the nodes' routes share.

use std::net::{IpAddr, SocketAddr};

use netdiag_common::Netns;

use super::Verdict;
use super::trace::{Met, Packets, dropped, probe_of};
use crate::evidence::object::Object;
use crate::evidence::{Look, ObjectRef, View};
use crate::finding::{Fate, Finding, Fix, Impact, Proof};
use crate::path::{Backend, Client, Path};

/// Why kernels drop what no route leads on (`net/ipv4/ip_input.c`, `net/ipv4/route.c`): no way, or a way that is an error.
pub const NO_ROUTE: &[&str] = &["IP_INNOROUTES", "IP_OUTNOROUTES"];

/// One direction between two nodes.
#[derive(Clone, Copy)]
pub struct Leg<'p> {
    /// The node whose table is asked.
    pub node: &'p str,
    pub to: IpAddr,
    pub to_node: &'p str,
}

impl Leg<'_> {
    fn is_like(&self, other: &Self) -> bool {
        (self.node, self.to_node) == (other.node, other.to_node)
    }
}

/// Every client with every endpoint that gets connections.
pub fn pairs(path: &Path) -> Vec<(&Client, &Backend)> {
    path.clients.iter().flat_map(|client| path.ready_backends().map(move |backend| (client, backend))).collect()
}

/// The endpoint is a pod of the pod network on another node.
pub fn crosses((client, backend): (&Client, &Backend)) -> bool {
    let in_pod_network = backend.pod.as_ref().is_some_and(|pod| !pod.spec.host_network);
    in_pod_network && !backend.node.is_empty() && backend.node != client.node
}

/// There and, for clients in the pod network, back.
pub fn legs<'p>(client: &'p Client, backend: &'p Backend) -> Vec<Leg<'p>> {
    let mut legs = vec![Leg { node: &client.node, to: backend.address, to_node: &backend.node }];
    let own = client.addresses.iter().copied().find(|own| own.is_ipv4() == backend.address.is_ipv4());
    if let (Netns::Pod(_), Some(own)) = (&client.netns, own) {
        legs.push(Leg { node: &backend.node, to: own, to_node: &client.node });
    }
    legs
}

/// A leg whose packets do not get to the other node's pods.
pub struct Astray<'p> {
    pub leg: Leg<'p>,
    pub claim: String,
    pub proofs: Vec<Proof>,
    pub predicts: &'static [Fate],
    /// What would mend it, where a person can do so.
    pub command: Option<String>,
}

/// What one leg came to.
pub enum Found<'p> {
    Astray(Box<Astray<'p>>),
    Fine(String),
    Dark,
}

/// What conditions about the routes between nodes differ in.
pub struct Routing {
    /// Judges one leg, by what the probe of its client and endpoint met.
    pub look: for<'p> fn(Leg<'p>, Met, &mut View) -> Found<'p>,
    /// What ways that go astray do: "are cut".
    pub verb: &'static str,
    /// Why the kernel drops such packets.
    pub reasons: &'static [&'static str],
    /// What to do on the node that is named.
    pub fix: fn(node: &str) -> String,
}

/// Looks at every leg that crosses nodes, and joins what was found.
pub fn judge(path: &Path, view: &mut View, routing: &Routing) -> Verdict {
    let pairs = pairs(path);
    if !pairs.iter().any(|pair| crosses(*pair)) {
        return Verdict::not_applicable("no endpoint of the path is a pod of another node");
    }
    let Look::Seen(_) = view.nodes() else { return Verdict::unknown(view) };
    let (mut found, mut fine): (Vec<Astray>, Option<String>) = (Vec::new(), None);
    let (mut dark, mut broken) = (false, 0);
    for (client, backend) in pairs.iter().filter(|pair| crosses(**pair)) {
        let met = probe_of(path, view, client, backend);
        let mut here = false;
        for leg in legs(client, backend) {
            match (routing.look)(leg, met, view) {
                Found::Astray(astray) => {
                    here = true;
                    if !found.iter().any(|known| known.leg.is_like(&astray.leg)) {
                        found.push(*astray);
                    }
                }
                Found::Fine(because) => fine = Some(because),
                Found::Dark => dark = true,
            }
        }
        broken += usize::from(here);
    }
    let Some(first) = found.first() else {
        return match fine {
            Some(because) if !dark => Verdict::clear(because),
            _ => Verdict::unknown(view),
        };
    };
    let impact = if broken == pairs.len() { Impact::Breaks } else { Impact::Degrades };
    let mut claim = first.claim.clone();
    if impact == Impact::Degrades {
        claim.push_str(&format!("; {broken} of {} ways of this path {}", pairs.len(), routing.verb));
    }
    let mut subjects: Vec<ObjectRef> = Vec::new();
    for name in found.iter().flat_map(|astray| [astray.leg.node, astray.leg.to_node]) {
        if let Some(node) = view.cluster().nodes.get("", name) {
            node.reference().on_node(name).add_once(&mut subjects);
        }
    }
    let mut proofs: Vec<Proof> = found.iter().flat_map(|astray| astray.proofs.clone()).collect();
    let mut crossing = pairs.iter().filter(|pair| crosses(**pair));
    proofs.extend(crossing.find_map(|(client, backend)| lost(path, view, client, backend, routing.reasons)));
    let fix = Fix {
        text: (routing.fix)(first.leg.node),
        commands: found.iter().filter_map(|astray| astray.command.clone()).collect(),
        verify: path.ask_again(),
    };
    Verdict::found(Finding { subjects, since: None, impact, claim, proofs, predicts: first.predicts, fix })
}

/// Packets of this connection that the client's node dropped.
fn lost(path: &Path, view: &mut View, client: &Client, backend: &Backend, reasons: &[&str]) -> Option<Proof> {
    let source = client.addresses.iter().copied().find(|own| own.is_ipv4() == backend.address.is_ipv4())?;
    let destination = SocketAddr::new(backend.address, backend.port);
    dropped(view, &client.node, &Packets { source, destination, protocol: path.protocol }, reasons)
}
