//! The kernel's entries for the next hops of paths.

use std::io::ErrorKind;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use netdiag_common::forwarding::path::End;

use crate::lab::ip;
use crate::way::{BACKEND, Way};

#[test]
fn the_neighbour_that_is_given_the_packet_is_told_and_ends_no_path() {
    let Some(way) = Way::start("neigh") else { return };
    let node = &way.node.name;
    let mut seen = Vec::new();
    for entry in ["", "lladdr 02:00:00:00:00:99 nud permanent", "lladdr 02:00:00:00:00:98 nud stale", "nud failed"] {
        if !entry.is_empty() {
            ip(&format!("-n {node} neigh replace {BACKEND} dev r1 {entry}"));
        }
        let fate = way.received(BACKEND, 80);
        assert!(matches!(fate.outcome.paths[0].end, End::Sent { .. }), "{entry}: {fate:?}");
        let [neighbour] = &fate.neighbours[..] else { panic!("{entry}: {:?}", fate.neighbours) };
        assert_eq!((neighbour.path, neighbour.address.to_string()), (0, BACKEND.to_owned()));
        seen.push((neighbour.state.clone(), neighbour.mac.clone()));
    }
    let told = |state: &str, mac: Option<&str>| (Some(state.to_owned()), mac.map(str::to_owned));
    assert_eq!(
        seen,
        [
            (None, None),
            told("permanent", Some("02:00:00:00:00:99")),
            told("stale", Some("02:00:00:00:00:98")),
            told("failed", None)
        ]
    );
    // The kernel's own word: it asks the failed one again, and the backend answers.
    let address: SocketAddr = format!("{BACKEND}:80").parse().unwrap();
    let refused = way.client.run(move || TcpStream::connect_timeout(&address, Duration::from_secs(5))).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
}

#[test]
fn a_link_that_asks_nobody_has_no_neighbour() {
    let Some(way) = Way::start("noarp") else { return };
    ip(&format!("-n {} link set r1 arp off", way.node.name));
    let fate = way.received(BACKEND, 80);
    assert!(matches!(fate.outcome.paths[0].end, End::Sent { .. }), "{fate:?}");
    assert_eq!(fate.neighbours, []);
}
