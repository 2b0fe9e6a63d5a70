//! Datagrams to servers that echo well, and to those that lose, reorder, double and lie.

use std::net::{SocketAddr, UdpSocket};

use netdiag_common::observation::series::FailureClass::{Protocol, Refused, Silence, Unreachable};
use netdiag_common::observation::series::ProbeStage::Answer;
use netdiag_common::observation::series::{Probe, SeriesAttempt, SeriesRequest, UdpProbe, UdpReport};

use crate::ask::{ask, request};
use crate::host::{Host, LOCAL, failure};
use crate::support::Namespace;
use crate::way::{FIRST, TARGET, Way, report};

const SHORT_MS: u32 = 500;

fn echo(to: SocketAddr, datagrams: u16) -> UdpProbe {
    UdpProbe { to, source_port: None, bytes: 100, payload: None, datagrams, gap_us: 0 }
}

fn one(namespace: &Namespace, probe: UdpProbe, timeout_ms: u32) -> SeriesAttempt {
    let request = SeriesRequest { timeout_ms, ..request(Probe::Udp(probe)) };
    let attempt = ask(namespace, &request).unwrap().attempts.remove(0);
    let found = report!(attempt, Udp);
    assert_eq!(found.sent, found.answered + found.lost, "{attempt:?}");
    attempt
}

fn counts(report: &UdpReport) -> [u32; 6] {
    [report.sent, report.answered, report.lost, report.reordered, report.doubled, report.strange]
}

#[test]
fn every_echo_is_counted_in_both_families() {
    let Some(host) = Host::new("every_echo_is_counted_in_both_families") else { return };
    for address in LOCAL {
        let to = host.datagrams(SocketAddr::new(address.parse().unwrap(), 0), |socket, bytes, from| {
            socket.send_to(bytes, from).unwrap();
        });
        let attempt = one(&host.namespace, echo(to, 50), 10_000);
        let found = report!(attempt, Udp);
        assert_eq!((failure(&attempt), counts(found)), (None, [50, 50, 0, 0, 0, 0]), "{attempt:?}");
        assert!(found.min_us <= found.max_us && found.jitter_us.is_some());
        assert_eq!(attempt.source.unwrap().ip(), to.ip());
    }
}

/// Keeps the first of each four, doubles the second, swaps the other two.
fn hostile() -> impl FnMut(&UdpSocket, &[u8], SocketAddr) + Send + 'static {
    let (mut number, mut kept) = (0, Vec::new());
    move |socket, bytes, from| {
        match number % 4 {
            0 => {}
            1 => {
                socket.send_to(bytes, from).unwrap();
                socket.send_to(bytes, from).unwrap();
            }
            2 => kept = bytes.to_vec(),
            _ => {
                socket.send_to(bytes, from).unwrap();
                socket.send_to(&kept, from).unwrap();
            }
        }
        number += 1;
    }
}

#[test]
fn loss_order_and_doubles_of_a_hostile_server_are_told() {
    let Some(host) = Host::new("loss_order_and_doubles_of_a_hostile_server_are_told") else { return };
    let to = host.datagrams(SocketAddr::new(LOCAL[0].parse().unwrap(), 0), hostile());
    let attempt = one(&host.namespace, echo(to, 40), 1_500);
    assert_eq!(counts(report!(attempt, Udp)), [40, 30, 10, 10, 10, 0], "{attempt:?}");
    assert_eq!(failure(&attempt), Some((Silence, Answer, None)));
    assert!(attempt.failure.unwrap().why.contains("10 of 40 datagrams"));
}

#[test]
fn answers_that_are_not_ours_are_no_answers() {
    let Some(host) = Host::new("answers_that_are_not_ours_are_no_answers") else { return };
    let changed = host.datagrams(SocketAddr::new(LOCAL[0].parse().unwrap(), 0), |socket, bytes, from| {
        let mut bytes = bytes.to_vec();
        bytes[50] ^= 1;
        socket.send_to(&bytes, from).unwrap();
        socket.send_to(&[], from).unwrap();
        socket.send_to(&[0; 2_000], from).unwrap();
    });
    let attempt = one(&host.namespace, echo(changed, 1), SHORT_MS);
    assert_eq!(counts(report!(attempt, Udp)), [1, 0, 1, 0, 0, 3], "{attempt:?}");

    let beside = host.udp(LOCAL[1]);
    let other = beside.local_addr().unwrap();
    let to = host.datagrams(SocketAddr::new(LOCAL[1].parse().unwrap(), 0), move |_, bytes, from| {
        beside.send_to(bytes, from).unwrap();
    });
    let attempt = one(&host.namespace, echo(to, 1), SHORT_MS);
    assert_eq!(report!(attempt, Udp).answered_by, Some(other), "{attempt:?}");
    assert_eq!(failure(&attempt), Some((Protocol, Answer, None)));
}

#[test]
fn servers_that_are_no_echo_answer_in_their_own_words() {
    let Some(host) = Host::new("servers_that_are_no_echo_answer_in_their_own_words") else { return };
    let to = host.datagrams(SocketAddr::new(LOCAL[0].parse().unwrap(), 0), |socket, bytes, from| {
        assert_eq!(bytes, b"status");
        socket.send_to(b"ok", from).unwrap();
    });
    let probe = UdpProbe { payload: Some(b"status".to_vec()), ..echo(to, 2) };
    let attempt = one(&host.namespace, probe, 10_000);
    assert_eq!((failure(&attempt), counts(report!(attempt, Udp))), (None, [2, 2, 0, 0, 0, 0]), "{attempt:?}");
}

#[test]
fn errors_name_their_sender() {
    let Some(way) = Way::new("errors_name_their_sender") else { return };
    way.first.sh("nft 'add table inet wall; add chain inet wall forward { type filter hook forward priority 0; }; add rule inet wall forward udp dport 82 reject with icmpx admin-prohibited'");
    for (family, address) in TARGET.iter().enumerate() {
        let to = |port| SocketAddr::new(address.parse().unwrap(), port);
        let closed = one(&way.client, echo(to(81), 1), 10_000);
        assert_eq!(failure(&closed), Some((Refused, Answer, Some("ECONNREFUSED"))), "{closed:?}");
        assert_eq!(closed.failure.unwrap().said_by, Some(address.parse().unwrap()));
        let prohibited = one(&way.client, echo(to(82), 1), 10_000);
        assert_eq!(prohibited.failure.as_ref().unwrap().class, Unreachable, "{prohibited:?}");
        assert_eq!(prohibited.failure.unwrap().said_by, Some(FIRST[family].parse().unwrap()));
    }
}

#[test]
fn silence_is_not_refusal() {
    let Some(way) = Way::new("silence_is_not_refusal") else { return };
    way.silence_target();
    for address in TARGET {
        let attempt = one(&way.client, echo(SocketAddr::new(address.parse().unwrap(), 81), 3), SHORT_MS);
        assert_eq!(failure(&attempt), Some((Silence, Answer, None)), "{attempt:?}");
        assert_eq!(counts(report!(attempt, Udp)), [3, 0, 3, 0, 0, 0]);
    }
}
