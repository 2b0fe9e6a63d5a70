//! One connection's packets, followed through namespaces of this kernel: dropped, translated, delivered; nothing runs when
//! nobody follows any. Needs root, BTF and the built programs.
#![expect(clippy::unwrap_used, reason = "a test that cannot be set up fails")]

#[path = "../signatures/attach.rs"]
mod attach;
mod drops;
mod lab;
#[expect(dead_code, reason = "shared with the other kernel tests")]
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeSet;
use std::net::{TcpListener, UdpSocket};

use netdiag_common::forwarding::conntrack::Direction;
use netdiag_common::observation::Protocol;
use netdiag_common::observation::tag::{MAX_TAG_EVENTS, TagEvent, TagPoint, TagTuple, Tagged};
use netdiag_node::kernel::tag::ArmError;

use drops::{connect, ends};
use lab::{CLIENT, CLIENT6, Lab, SERVER, SERVER6, request, tuple, way, whose};
use support::skipped;

const ALL_THE_WAY: [&str; 5] = ["client sent", "router received", "router sent", "server received", "server delivered"];

fn first<'a>(tagged: &'a Tagged, place: &str, wanted: &TagPoint) -> &'a TagEvent {
    let found = tagged
        .events
        .iter()
        .find(|event| whose(event) == place && event.direction == Direction::Original && event.point == *wanted);
    found.unwrap_or_else(|| panic!("{place}: {:#?}", tagged.events))
}

/// Places in their order, each once: later packets of the connection pass them again.
fn places(tagged: &Tagged, direction: Direction) -> Vec<String> {
    let mut seen = BTreeSet::new();
    way(tagged, direction).into_iter().filter(|place| seen.insert(place.clone())).collect()
}

#[test]
fn what_is_delivered_is_known_by_its_first_packet() {
    let Some(mut lab) = Lab::start("what_is_delivered_is_known_by_its_first_packet") else { return };
    for (from, to) in [(ends(CLIENT, 41_010), ends(SERVER, 8080)), (ends(CLIENT6, 41_010), ends(SERVER6, 8080))] {
        let listener = lab.server.run(|| TcpListener::bind(to).unwrap());
        let tagged = lab.follow(&request(Protocol::Tcp, from, to), 14, |lab| {
            let stream = lab.client.run(|| connect(from, to).unwrap());
            listener.accept().unwrap();
            drop(stream);
        });
        assert_eq!(places(&tagged, Direction::Original)[..4], ALL_THE_WAY[..4]);
        let syn = first(&tagged, "client", &TagPoint::Sent);
        assert_eq!((syn.tcp_flags & 0x12, syn.protocol_number, syn.ttl), (2, 6, 64), "{syn:?}");
        let delivered = first(&tagged, "server", &TagPoint::Delivered);
        assert_eq!(delivered.sequence, syn.sequence);
        assert_eq!((delivered.source, delivered.destination_port), (from.ip(), 8080));
        first(&tagged, "client", &TagPoint::Connected);
        let ttl = |place| first(&tagged, place, &TagPoint::Received).ttl;
        assert_eq!((ttl("router"), ttl("server")), (64, 63));
        // What a closed socket had not read yet is dropped with it.
        let is_dropped = |event: &TagEvent| event.tcp_flags & 2 != 0 && matches!(event.point, TagPoint::Dropped { .. });
        assert!(!tagged.events.iter().any(is_dropped), "{tagged:#?}");
    }
}

/// A Service's address, and a source that is translated too: before, the tuple is known; behind, the endpoint and the sequence.
#[test]
fn a_translated_connection_is_followed() {
    let Some(mut lab) = Lab::start("a_translated_connection_is_followed") else { return };
    lab.router.sh(
        "nft 'table ip t { chain d { type nat hook prerouting priority -100; ip daddr 10.96.0.1 tcp dport 80 dnat to 10.79.2.2:8080; }; \
         chain s { type nat hook postrouting priority 100; masquerade; }; }'",
    );
    let (from, service, endpoint) = (ends(CLIENT, 41_020), ends("10.96.0.1", 80), ends(SERVER, 8080));
    let listener = lab.server.run(|| TcpListener::bind(endpoint).unwrap());
    let mut wanted = request(Protocol::Tcp, from, service);
    wanted.alternatives.push(TagTuple { source: None, source_port: None, ..tuple(Protocol::Tcp, from, endpoint) });
    let tagged = lab.follow(&wanted, 9, |lab| {
        let stream = lab.client.run(|| connect(from, service).unwrap());
        listener.accept().unwrap();
        drop(stream);
    });
    let sent = first(&tagged, "router", &TagPoint::Sent);
    let router = "10.79.2.254".parse::<std::net::IpAddr>().unwrap();
    assert_eq!((sent.source, sent.destination, sent.destination_port), (router, endpoint.ip(), 8080));
    let syn = first(&tagged, "client", &TagPoint::Sent);
    let delivered = first(&tagged, "server", &TagPoint::Delivered);
    assert_eq!((delivered.source, delivered.sequence), (router, syn.sequence));
    assert_eq!(first(&tagged, "server", &TagPoint::Received).sequence, syn.sequence);
    // The answer is known to the router by its entry, and behind it by its tuple.
    assert!(way(&tagged, Direction::Reply).contains(&"client received".to_owned()), "{tagged:#?}");
}

/// The identifier tells a DNS query from others to the same server.
#[test]
fn a_query_is_known_by_its_identifier() {
    let Some(mut lab) = Lab::start("a_query_is_known_by_its_identifier") else { return };
    let socket = lab.client.run(|| UdpSocket::bind((CLIENT, 0)).unwrap());
    let to = ends(SERVER, 53);
    let mut wanted = request(Protocol::Udp, ends(CLIENT, 1), to);
    wanted.tuple = TagTuple { source: None, source_port: None, ..wanted.tuple };
    let server = lab.server.run(|| UdpSocket::bind(to).unwrap());
    let tagged = lab.follow(&wanted, 4, |lab| {
        lab.client.run(|| socket.send_to(&[0xca, 0xfe, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0], to).unwrap());
    });
    drop(server);
    assert_eq!(way(&tagged, Direction::Original), ALL_THE_WAY[..4]);
    assert!(tagged.events.iter().all(|event| event.sequence == 0xcafe), "{tagged:#?}");
}

#[test]
fn an_error_about_the_packet_belongs_to_it() {
    let Some(mut lab) = Lab::start("an_error_about_the_packet_belongs_to_it") else { return };
    lab.router.sh("nft 'table ip t { chain c { type filter hook forward priority 0; ct state new counter; }; }'");
    let tagged = lab.datagram(SERVER, 9, 4, |socket| socket.set_ttl(1).unwrap());
    let error = tagged.events.iter().find(|event| event.protocol_number == 1);
    let error = error.unwrap_or_else(|| panic!("{tagged:#?}"));
    assert_eq!((whose(error), error.direction, &error.point), ("router", Direction::Reply, &TagPoint::Sent));
}

#[test]
fn a_flood_keeps_the_identity_and_the_limit() {
    let Some(mut lab) = Lab::start("a_flood_keeps_the_identity_and_the_limit") else { return };
    lab.router.sh("nft 'table ip t { chain c { type filter hook forward priority 0; udp dport 9 drop; }; }'");
    let socket = lab.client.run(|| UdpSocket::bind((CLIENT, 0)).unwrap());
    let to = ends(SERVER, 9);
    let wanted = request(Protocol::Udp, socket.local_addr().unwrap(), to);
    let tagged = lab.follow(&wanted, MAX_TAG_EVENTS, |lab| {
        lab.client.run(|| (0..2000).for_each(|_| drop(socket.send_to(b"n", to))));
    });
    let accounts = tagged.accounts;
    assert_eq!((accounts.kept, tagged.events.len()), (MAX_TAG_EVENTS as u64, MAX_TAG_EVENTS));
    assert!(accounts.seen >= 2000 && accounts.lost() > 0, "{accounts:?}");
}

#[test]
fn what_happens_in_others_namespaces_is_a_number() {
    let Some(mut lab) = Lab::start("what_happens_in_others_namespaces_is_a_number") else { return };
    // Its end of the cable stays, and belongs to nobody whom we know.
    let _other = std::mem::replace(&mut lab.server, support::Namespace::new());
    let tagged = lab.datagram(SERVER, 9, 4, |_| ());
    assert!(tagged.accounts.foreign_netns > 0, "{:?}", tagged.accounts);
    assert!(tagged.events.iter().all(|event| whose(event) != "unknown"), "{tagged:#?}");
}

/// Ids of the links that this process holds.
fn links() -> BTreeSet<String> {
    let entries = std::fs::read_dir("/proc/self/fdinfo").unwrap();
    #[expect(clippy::disallowed_methods, reason = "the kernel's own word on what is attached")]
    let texts = entries.flatten().filter_map(|entry| std::fs::read_to_string(entry.path()).ok());
    texts.filter_map(|text| text.lines().find(|line| line.starts_with("link_id:")).map(str::to_owned)).collect()
}

#[test]
fn nothing_runs_unless_somebody_follows() {
    const TEST: &str = "nothing_runs_unless_somebody_follows";
    let Some(mut lab) = Lab::start(TEST) else { return };
    assert!(!lab.kernel().is_attached());
    let before = links();
    let of = |port| request(Protocol::Udp, ends(CLIENT, port), ends(SERVER, 9));
    let numbers: Vec<usize> = (0..16).map(|n| lab.kernel().arm(&of(42_000 + n)).unwrap()).collect();
    assert!(matches!(lab.kernel().arm(&of(42_100)), Err(ArmError::Full)));
    let armed: Vec<_> = links().difference(&before).cloned().collect();
    if armed.is_empty() {
        skipped(TEST, "this kernel does not say which links a process holds (Linux 5.8 does)");
    } else {
        assert_eq!(armed.len(), 4, "one for each tracepoint, however many tags there are");
    }
    for number in &numbers[1..] {
        lab.kernel().disarm(*number).unwrap();
    }
    let again = lab.kernel().arm(&of(42_000));
    assert!(matches!(again, Err(ArmError::Taken(_))), "its first owner is still there");
    assert!(lab.kernel().is_attached());
    lab.kernel().disarm(numbers[0]).unwrap();
    assert!(lab.kernel().disarm(numbers[0]).is_none(), "it is over");
    assert!(!lab.kernel().is_attached());
    assert_eq!(links(), before);
}
