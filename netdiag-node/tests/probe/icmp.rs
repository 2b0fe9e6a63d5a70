//! ICMP echo and crafted packets: who answers, and who says that the packet did not arrive.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use netdiag_common::observation::series::FailureClass::{Silence, TooBig, Unreachable};
use netdiag_common::observation::series::ProbeStage::Answer;
use netdiag_common::observation::series::transport::RawSegment;
use netdiag_common::observation::series::{
    FailureClass, IcmpProbe, Probe, ProbeStage, RawProbe, RawReport, SeriesAttempt, SeriesRequest,
};

use crate::ask::{ask, request};
use crate::forged::{ECHO_HEADER, Wrong, answer, mouth};
use crate::host::failure;
use crate::support::eventually;
use crate::way::{FIRST, SECOND, TARGET, Way, report};

const SHORT_MS: u32 = 500;

fn echo(to: &str) -> IcmpProbe {
    IcmpProbe { to: to.parse().unwrap(), bytes: 56, ttl: None, dont_fragment: false, scope: None, identifier: None }
}

fn one(way: &Way, probe: Probe, timeout_ms: u32) -> SeriesAttempt {
    ask(&way.client, &SeriesRequest { timeout_ms, ..request(probe) }).unwrap().attempts.remove(0)
}

#[test]
fn echo_reply_has_its_ttl_by_either_socket() {
    let Some(way) = Way::new("echo_reply_has_its_ttl_by_either_socket") else { return };
    // A namespace begins without ping sockets (`net.ipv4.ping_group_range` is 1 0).
    for range in ["1 0", "0 2147483647"] {
        way.client.sh(&format!("sysctl -qw net.ipv4.ping_group_range='{range}'"));
        for address in TARGET {
            for bytes in [0, 56, 1_400, 8_000] {
                let attempt = one(&way, Probe::Icmp(IcmpProbe { bytes, ..echo(address) }), 10_000);
                assert_eq!(failure(&attempt), None, "{attempt:?}");
                let found = report!(attempt, Icmp);
                assert_eq!((found.ttl, found.bytes), (Some(62), bytes), "two routers: {attempt:?}");
                assert!(found.rtt_us > 0 && attempt.source.is_some());
            }
            let attempt = one(&way, Probe::Icmp(IcmpProbe { identifier: Some(61_234), ..echo(address) }), 10_000);
            assert_eq!((failure(&attempt), attempt.source.map(|source| source.port())), (None, Some(61_234)));
        }
    }
}

#[test]
fn router_where_the_ttl_ends_is_named() {
    let Some(way) = Way::new("router_where_the_ttl_ends_is_named") else { return };
    for family in [0, 1] {
        for (ttl, router) in [(1, FIRST[family]), (2, SECOND[family])] {
            let attempt = one(&way, Probe::Icmp(IcmpProbe { ttl: Some(ttl), ..echo(TARGET[family]) }), 10_000);
            assert_eq!(failure(&attempt), Some((Unreachable, Answer, Some("EHOSTUNREACH"))), "{attempt:?}");
            let failure = attempt.failure.unwrap();
            assert_eq!(failure.said_by, Some(router.parse().unwrap()));
            assert_eq!(failure.icmp.unwrap().words, "time exceeded");
        }
    }
}

#[test]
fn silence_and_too_big_are_told() {
    let Some(way) = Way::new("silence_and_too_big_are_told") else { return };
    way.narrow(1_300);
    for family in [0, 1] {
        let probe = IcmpProbe { bytes: 1_400, dont_fragment: true, ..echo(TARGET[family]) };
        let attempt = one(&way, Probe::Icmp(probe), 10_000);
        let failure = attempt.failure.unwrap();
        assert_eq!((failure.class, failure.said_by), (TooBig, Some(FIRST[family].parse().unwrap())), "{failure:?}");
        assert_eq!(failure.icmp.unwrap().mtu, Some(1_300));
    }
    way.silence_target();
    for address in TARGET {
        let attempt = one(&way, Probe::Icmp(echo(address)), SHORT_MS);
        assert_eq!(failure(&attempt), Some((Silence, Answer, None)), "{attempt:?}");
    }
}

/// What a true answer is changed to.
const FORGED: [fn(&mut Vec<u8>); 7] = [
    |reply| reply[4] ^= 1,
    |reply| reply[7] ^= 2,
    |reply| *reply.last_mut().unwrap() ^= 1,
    |reply| reply.truncate(reply.len() - 1),
    |reply| reply.truncate(ECHO_HEADER),
    |reply| reply.push(0),
    // The request itself.
    |reply| reply[0] = if reply[0] == 0 { 8 } else { 128 },
];

#[test]
fn echo_replies_that_are_not_ours_are_no_answers() {
    let Some(way) = Way::new("echo_replies_that_are_not_ours_are_no_answers") else { return };
    let (is_honest, heard) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    for family in [0, 1] {
        let (is_honest, heard) = (Arc::clone(&is_honest), Arc::clone(&heard));
        answer(&way, family, move |request| {
            for forge in FORGED {
                let mut reply = request.reply();
                forge(&mut reply);
                request.send(&reply);
            }
            if is_honest.load(Ordering::Relaxed) {
                request.send(&request.reply());
            }
            heard.fetch_add(1, Ordering::Relaxed);
        });
    }
    // By a raw socket and by a ping socket.
    for range in ["1 0", "0 2147483647"] {
        way.client.sh(&format!("sysctl -qw net.ipv4.ping_group_range='{range}'"));
        for address in TARGET {
            is_honest.store(false, Ordering::Relaxed);
            let before = heard.load(Ordering::Relaxed);
            let attempt = one(&way, Probe::Icmp(echo(address)), SHORT_MS);
            assert_eq!(failure(&attempt), Some((Silence, Answer, None)), "{range}: {attempt:?}");
            eventually("the forged answers", || (heard.load(Ordering::Relaxed) > before).then_some(()));
            is_honest.store(true, Ordering::Relaxed);
            let attempt = one(&way, Probe::Icmp(echo(address)), 10_000);
            assert_eq!(failure(&attempt), None, "{range}: {attempt:?}");
            assert_eq!(report!(attempt, Icmp).bytes, 56, "the true one, behind the forged ones");
        }
    }
}

/// By a raw socket and by a ping socket, in both families.
fn answered_by_either_socket(way: &Way, expected: Option<(FailureClass, ProbeStage, Option<&str>)>) {
    for range in ["1 0", "0 2147483647"] {
        way.client.sh(&format!("sysctl -qw net.ipv4.ping_group_range='{range}'"));
        for address in TARGET {
            let attempt = one(way, Probe::Icmp(echo(address)), 2_000);
            assert_eq!(failure(&attempt), expected, "{range}: {attempt:?}");
        }
    }
}

/// A ping socket that is connected hears replies of every address with its id (`ping_lookup`, net/ipv4/ping.c, 6.18).
#[test]
fn echo_reply_of_another_address_is_no_answer() {
    let Some(way) = Way::new("echo_reply_of_another_address_is_no_answer") else { return };
    way.target.sh("ip addr add 10.77.3.3/24 dev left\nip addr add fd77:3::3/64 dev left nodad");
    for (family, address) in ["10.77.3.3", "fd77:3::3"].into_iter().enumerate() {
        let other = mouth(&way, address);
        answer(&way, family, move |request| request.send_by(&other, &request.reply()));
    }
    answered_by_either_socket(&way, Some((Silence, Answer, None)));
}

/// A raw socket that is connected hears errors about every echo to its target (`raw_icmp_error`, net/ipv4/raw.c, 6.18).
#[test]
fn error_about_an_echo_of_others_is_not_ours() {
    let Some(way) = Way::new("error_about_an_echo_of_others_is_not_ours") else { return };
    for family in [0, 1] {
        answer(&way, family, |request| {
            for message in request.errors_about_others(Wrong::TimeExceeded) {
                request.send(&message);
            }
            request.send(&request.reply());
        });
    }
    answered_by_either_socket(&way, None);
}

fn raw(to: SocketAddr, segment: RawSegment) -> RawProbe {
    RawProbe { to, source_port: None, segment, ttl: None, bytes: 0, fragment_bytes: None }
}

fn told(report: &RawReport) -> (u32, Option<&str>, Option<IpAddr>) {
    (report.sent, report.answer.as_deref(), report.answered_by)
}

#[test]
fn crafted_packets_are_answered_as_real_ones() {
    let Some(way) = Way::new("crafted_packets_are_answered_as_real_ones") else { return };
    let _listens = way.target.run(|| (TcpListener::bind("0.0.0.0:80").unwrap(), TcpListener::bind("[::]:81").unwrap()));
    for (family, address) in TARGET.iter().enumerate() {
        let ip: IpAddr = address.parse().unwrap();
        let to = |port| SocketAddr::new(ip, port);
        let open = if family == 0 { 80 } else { 81 };
        let router = FIRST[family].parse().unwrap();
        let syn = RawSegment::Tcp { flags: 2 };
        let cases = [
            (raw(to(open), syn), (1, Some("SYN ACK"), Some(ip))),
            (raw(to(82), syn), (1, Some("RST"), Some(ip))),
            (raw(to(open), RawSegment::Tcp { flags: 16 }), (1, Some("RST"), Some(ip))),
            (raw(to(83), RawSegment::Udp), (1, Some("port unreachable"), Some(ip))),
            (raw(to(0), RawSegment::Echo), (1, Some("echo reply"), Some(ip))),
            (RawProbe { ttl: Some(1), ..raw(to(open), syn) }, (1, Some("time exceeded"), Some(router))),
            (
                RawProbe { bytes: 1_000, fragment_bytes: Some(256), ..raw(to(0), RawSegment::Echo) },
                (4, Some("echo reply"), Some(ip)),
            ),
        ];
        for (probe, expected) in cases {
            let attempt = one(&way, Probe::Raw(probe.clone()), 10_000);
            assert_eq!(failure(&attempt), None, "{probe:?}: {attempt:?}");
            assert_eq!(told(report!(attempt, Raw)), expected, "{probe:?}");
        }
        // A segment without SYN, ACK and RST to a listener is dropped (RFC 9293, 3.10.7.2).
        let attempt = one(&way, Probe::Raw(raw(to(open), RawSegment::Tcp { flags: 1 })), SHORT_MS);
        assert_eq!(failure(&attempt), Some((Silence, Answer, None)), "{attempt:?}");
    }
}
