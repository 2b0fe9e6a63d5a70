//! Packets that are too long for their way.

use std::net::UdpSocket;
use std::time::Duration;

use netdiag_common::forwarding::path::{Decision, End, Path, Reject, Size};
use netdiag_common::observation::fate::{FateInterfaceKey, FateOrigin, FateRequest, FateTransport};

use crate::lab::{self, fate, ip};
use crate::way::{BACKEND, CLIENT, Way};

const PORT: u16 = 4242;

/// A datagram of the client, as it comes in.
fn long(length: u16, may_be_fragmented: bool) -> FateRequest {
    let origin = FateOrigin::Received(FateInterfaceKey::Name("r0".into()));
    let transport = FateTransport::Udp { source_port: None, destination_port: Some(PORT) };
    FateRequest {
        length: Some(length),
        may_be_fragmented,
        ..FateRequest::new(origin, Some(CLIENT.parse().unwrap()), BACKEND.parse().unwrap(), transport)
    }
}

fn path(way: &Way, request: &FateRequest) -> Path {
    let mut fate = way.node.run(|| fate(request).unwrap());
    assert_eq!(fate.outcome.paths.len(), 1);
    fate.outcome.paths.remove(0)
}

#[test]
fn a_route_with_an_mtu_refuses_or_divides_what_is_longer() {
    let Some(way) = Way::start("mtu") else { return };
    ip(&format!("-n {} route replace 10.2.0.2/32 dev r1 mtu 1300", way.node.name));
    let told = path(&way, &long(1400, false));
    let Decision::Routed { .. } = told.decisions.last().unwrap() else { panic!("{:?}", told.decisions) };
    let with = Some(Reject::Unreachable { kind: 3, code: 4 });
    assert!(matches!(told.end, End::TooBig { mtu: 1300, with: found, .. } if found == with), "{:?}", told.end);
    let divided = path(&way, &long(1400, true));
    assert!(matches!(divided.end, End::Sent { .. }));
    let Some(Decision::Measured { mtu: 1300, by_route: true, length: 1400, size: Size::Fragmented, .. }) =
        divided.decisions.last()
    else {
        panic!("{:?}", divided.decisions)
    };
    let fits = path(&way, &long(1300, false));
    assert!(matches!(fits.decisions.last(), Some(Decision::Measured { size: Size::Fits, .. })), "{:?}", fits.decisions);
}

#[test]
fn what_the_other_end_of_a_cable_does_not_take_is_dropped_silently() {
    let Some(way) = Way::start("peer") else { return };
    ip(&format!("-n {} link set eth0 mtu 1400", way.backend.name));
    let dropped = path(&way, &long(1450, false));
    assert!(matches!(dropped.end, End::TooBig { mtu: 1400, with: None, .. }), "{:?}", dropped.end);
    assert_eq!((arrives(&way, 1450), arrives(&way, 1400)), (false, true), "the kernel's own word");
    assert!(matches!(path(&way, &long(1400, false)).end, End::Sent { .. }));
}

#[test]
fn a_bridge_drops_silently_what_none_of_its_ports_takes() {
    let Some(way) = Way::start("bridge") else { return };
    way.node.sh("ip link add br0 type bridge; ip link set br0 up; ip addr flush dev r1; ip link set r1 mtu 1400
         ip link set r1 master br0; ip link set br0 mtu 1500; ip addr add 10.2.0.1/24 dev br0");
    let dropped = path(&way, &long(1450, false));
    assert!(matches!(dropped.end, End::TooBig { mtu: 1400, with: None, .. }), "{:?}", dropped.end);
    assert_eq!((arrives(&way, 1450), arrives(&way, 1400)), (false, true), "the kernel's own word");
    let fits = path(&way, &long(1404, false));
    assert!(matches!(fits.end, End::Sent { .. }) && fits.gaps.is_empty(), "{fits:?}");
    // Another port takes it: which one it is, the bridge knows.
    way.node.sh("ip link add w0 type veth peer name w1; ip link set w0 master br0 up");
    let open = path(&way, &long(1450, false));
    assert!(matches!(open.end, End::Sent { .. }), "{:?}", open.end);
    assert_eq!(open.gaps, ["the bridge drops a packet of this length where it leaves by r1 (MTU 1400)"]);
}

/// Whether a datagram of this length, with its headers, comes from the client to the backend.
fn arrives(way: &Way, length: usize) -> bool {
    // Another port each time: a child that another test starts just then holds the last one until it executes.
    let receiver = way.backend.run(|| UdpSocket::bind((BACKEND, 0)).unwrap());
    let to = receiver.local_addr().unwrap();
    let sender = way.client.run(|| UdpSocket::bind((CLIENT, 0)).unwrap());
    let mut buffer = [0; 2000];
    // The first packets wait for their neighbour; a short one says when the way is open.
    receiver.set_read_timeout(Some(lab::patient(Duration::from_secs(5)))).unwrap();
    sender.send_to(b"short", to).unwrap();
    assert_eq!(receiver.recv(&mut buffer).unwrap(), 5);
    sender.send_to(&vec![0; length - 28], to).unwrap();
    sender.send_to(b"last", to).unwrap();
    receiver.recv(&mut buffer).unwrap() > 4
}
