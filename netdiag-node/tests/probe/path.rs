//! The hops to a target by each protocol, and where a path ends before it.

use std::net::SocketAddr;

use netdiag_common::observation::series::path::PathBy;
use netdiag_common::observation::series::{FailureClass, PathProbe, PathReport, Probe, SeriesAttempt};

use crate::forged::{Wrong, answer};
use crate::way::{FIRST, SECOND, TARGET, Way, report};

const KINDS: [PathBy; 3] = [PathBy::Udp, PathBy::Tcp, PathBy::Icmp];

fn probe(way: &Way, family: usize, by: PathBy, port: u16, max_hops: u8) -> SeriesAttempt {
    let to = SocketAddr::new(TARGET[family].parse().unwrap(), if by == PathBy::Icmp { 0 } else { port });
    way.attempt(Probe::Path(PathProbe { to, by, max_hops, tries: 2, source_port: None }))
}

#[test]
fn every_packet_leaves_from_the_port_that_was_asked_for() {
    let Some(way) = Way::new("every_packet_leaves_from_the_port_that_was_asked_for") else { return };
    for target in TARGET {
        for by in [PathBy::Udp, PathBy::Tcp] {
            let to = SocketAddr::new(target.parse().unwrap(), 33_434);
            let asked = PathProbe { to, by, max_hops: 8, tries: 2, source_port: Some(61_234) };
            let attempt = way.attempt(Probe::Path(asked));
            assert_eq!(attempt.source.map(|source| source.port()), Some(61_234), "{attempt:?}");
            assert!(report!(attempt, Path).reached, "{attempt:?}");
        }
    }
}

/// Who answered to each TTL, and how.
fn hops(report: &PathReport) -> Vec<(Vec<String>, Option<&str>)> {
    let hop = |hop: &netdiag_common::observation::series::path::Hop| {
        hop.addresses.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    report.hops.iter().map(|found| (hop(found), found.said.as_deref())).collect()
}

fn said<'a>(who: &str, words: &'a str) -> (Vec<String>, Option<&'a str>) {
    (vec![who.to_owned()], Some(words))
}

#[test]
fn hops_are_named_by_each_protocol_in_both_families() {
    let Some(way) = Way::new("hops_are_named_by_each_protocol_in_both_families") else { return };
    for family in 0..2 {
        for by in KINDS {
            let attempt = probe(&way, family, by, 33_434, 8);
            let found = report!(attempt, Path);
            let (last, back_hops) = match by {
                PathBy::Udp => ("port unreachable", Some(3)),
                PathBy::Tcp => ("RST", None),
                PathBy::Icmp => ("echo reply", Some(3)),
            };
            let (first, second) = (said(FIRST[family], "time exceeded"), said(SECOND[family], "time exceeded"));
            assert_eq!(hops(found), [first, second, said(TARGET[family], last)], "{by:?}: {attempt:?}");
            assert!(found.reached && attempt.failure.is_none() && attempt.source.is_some(), "{by:?}: {attempt:?}");
            assert_eq!(found.back_hops, back_hops, "{by:?}");
            assert!(
                found.hops.iter().all(|hop| hop.sent == 2 && hop.answered == 2 && hop.rtt_us.is_some()),
                "{attempt:?}"
            );
        }
    }
}

#[test]
fn listening_target_ends_the_path_with_its_own_answer() {
    let Some(way) = Way::new("listening_target_ends_the_path_with_its_own_answer") else { return };
    let (_listener, echo) = way.target.run(|| {
        (std::net::TcpListener::bind("0.0.0.0:8080").unwrap(), std::net::UdpSocket::bind("0.0.0.0:7").unwrap())
    });
    let attempt = probe(&way, 0, PathBy::Tcp, 8_080, 8);
    assert_eq!(hops(report!(attempt, Path)).last(), Some(&said(TARGET[0], "SYN ACK")), "{attempt:?}");

    let answers = std::thread::spawn(move || {
        let mut bytes = [0; 2_048];
        for _ in 0..2 {
            let (length, from) = echo.recv_from(&mut bytes).unwrap();
            echo.send_to(&bytes[..length], from).unwrap();
        }
    });
    let attempt = probe(&way, 0, PathBy::Udp, 7, 8);
    answers.join().unwrap();
    assert_eq!(hops(report!(attempt, Path)).last(), Some(&said(TARGET[0], "datagram")), "{attempt:?}");
    assert_eq!(report!(attempt, Path).back_hops, Some(3));
}

#[test]
fn path_ends_where_a_hop_says_that_it_is_prohibited() {
    let Some(way) = Way::new("path_ends_where_a_hop_says_that_it_is_prohibited") else { return };
    way.second.sh("ip route add prohibit 10.77.3.2/32\nip route add prohibit fd77:3::2/128");
    for family in 0..2 {
        for by in KINDS {
            let attempt = probe(&way, family, by, 33_434, 8);
            let found = report!(attempt, Path);
            let second = said(SECOND[family], "administratively prohibited");
            assert_eq!(hops(found), [said(FIRST[family], "time exceeded"), second], "{by:?}: {attempt:?}");
            let failure = attempt.failure.clone().unwrap();
            assert_eq!(failure.class, FailureClass::Unreachable);
            assert_eq!(failure.said_by.map(|address| address.to_string()).as_deref(), Some(SECOND[family]));
            assert!(!found.reached);
        }
    }
}

#[test]
fn silent_hop_does_not_hide_those_behind_it() {
    let Some(way) = Way::new("silent_hop_does_not_hide_those_behind_it") else { return };
    way.first.sh("nft 'add table inet quiet; add chain inet quiet out { type filter hook output priority 0; }; add rule inet quiet out icmp type time-exceeded drop'");
    for by in KINDS {
        let attempt = probe(&way, 0, by, 33_434, 6);
        let found = report!(attempt, Path);
        assert_eq!(found.hops.iter().map(|hop| hop.answered).collect::<Vec<_>>(), [0, 2, 2], "{by:?}: {attempt:?}");
        assert!(found.reached);
    }
}

#[test]
fn target_that_never_answers_leaves_the_hops_before_it() {
    let Some(way) = Way::new("target_that_never_answers_leaves_the_hops_before_it") else { return };
    way.silence_target();
    for by in KINDS {
        let attempt = probe(&way, 0, by, 33_434, 4);
        let found = report!(attempt, Path);
        assert_eq!(found.hops.iter().map(|hop| hop.answered).collect::<Vec<_>>(), [2, 2, 0, 0], "{by:?}: {attempt:?}");
        let failure = attempt.failure.clone().unwrap();
        assert_eq!(failure.class, FailureClass::Silence);
        assert!(failure.why.contains(SECOND[0]), "{}", failure.why);
    }
}

#[test]
fn errors_about_packets_of_others_are_no_hops() {
    let Some(way) = Way::new("errors_about_packets_of_others_are_no_hops") else { return };
    for family in 0..2 {
        answer(&way, family, |request| {
            for wrong in [Wrong::TimeExceeded, Wrong::TooBig { mtu: 1_280 }] {
                for message in request.errors_about_others(wrong) {
                    request.send(&message);
                }
            }
            request.send(&request.reply());
        });
        let attempt = probe(&way, family, PathBy::Icmp, 0, 8);
        let found = report!(attempt, Path);
        let (first, second) = (said(FIRST[family], "time exceeded"), said(SECOND[family], "time exceeded"));
        assert_eq!(hops(found), [first, second, said(TARGET[family], "echo reply")], "{attempt:?}");
        assert!(found.hops.iter().all(|hop| (hop.sent, hop.answered) == (2, 2)), "{attempt:?}");
        assert_eq!(attempt.failure, None);
    }
}
