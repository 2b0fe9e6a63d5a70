//! Who asks, and what agents tell of packets, for tests.

use netdiag_common::Netns;
use netdiag_common::forwarding::path::{Decision, End};
use netdiag_common::forwarding::{Outcome, Packet, Path};
use netdiag_common::observation::fate::Fate;

use crate::evidence::ObjectRef;
use crate::path::Client;

/// The host of node n1.
pub(super) fn client() -> Client {
    let (reference, node) = (ObjectRef::of_node("n1"), "n1".to_owned());
    Client { reference, node, netns: Netns::Host, pod: None, addresses: Vec::new() }
}

/// The packet takes one path, unchanged, and nothing is told beside it.
pub(crate) fn fate(packet: Packet, decisions: Vec<Decision>, end: End) -> Fate {
    let (assumptions, gaps) = (Vec::new(), Vec::new());
    let path = Path { assumptions, decisions, gaps, end, packet: packet.clone(), connection: None };
    Fate {
        generation: None,
        packet,
        outcome: Outcome { paths: vec![path], cut: false },
        rules: Vec::new(),
        interfaces: Vec::new(),
        deliveries: Vec::new(),
        neighbours: Vec::new(),
        unseen: Vec::new(),
        left_out: Vec::new(),
    }
}
