//! A leg of a trace to be told in tests.

use std::sync::Arc;

use netdiag_common::Netns;
use netdiag_common::forwarding::packet::Origin;
use netdiag_common::forwarding::path::{Decision, End};
use netdiag_common::observation::fate::{FateInterfaceKey, FateOrigin, FateRequest, FateTransport};

use crate::trace::example::fate;
use crate::trace::{Direction, Leg, Place};

/// Of a datagram's one path through a namespace: in by an interface, or sent there, and out by another one.
pub(super) fn leg(input: Option<u32>, decisions: Vec<Decision>, output: u32) -> Leg {
    let source = "10.244.1.2".parse().unwrap();
    let origin = input.map_or(FateOrigin::Sent, |index| FateOrigin::Received(FateInterfaceKey::Index(index)));
    let transport = FateTransport::Udp { source_port: Some(1), destination_port: Some(2) };
    let request = FateRequest::new(origin, Some(source), "10.244.2.3".parse().unwrap(), transport);
    let origin = input.map_or(Origin::Sent, |interface| Origin::Received { interface });
    let packet = request.packet(origin, source).unwrap();
    let fate = fate(packet, decisions, End::Sent { interface: output, gateway: None });
    Leg {
        direction: Direction::Forward,
        place: Place { node: "n1".to_owned(), netns: Netns::Host },
        request,
        fate: Arc::new(fate),
        at: "2026-11-23T12:00:00Z".parse().unwrap(),
        path: 0,
        carrier: None,
    }
}
