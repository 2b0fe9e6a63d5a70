//! The path MTU to the byte, who says so, and black holes told from plain loss.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use netdiag_common::observation::series::path::PathMtuReport;
use netdiag_common::observation::series::{FailureClass, PathMtuProbe, Probe, SeriesAttempt};

use crate::forged::{Wrong, answer};
use crate::way::{FIRST, TARGET, Way, report};

/// ICMP and a UDP port that nobody has, in both families.
fn targets() -> Vec<SocketAddr> {
    TARGET.iter().flat_map(|target| [0, 33_434].map(|port| SocketAddr::new(target.parse().unwrap(), port))).collect()
}

fn probe(way: &Way, to: SocketAddr, tries: u8) -> SeriesAttempt {
    way.attempt(Probe::PathMtu(PathMtuProbe { to, from_bytes: None, tries, source_port: None }))
}

fn facts(report: &PathMtuReport) -> (Option<u32>, bool, Option<String>) {
    (report.path_mtu, report.black_hole, report.said_by.map(|address| address.to_string()))
}

#[test]
fn path_that_takes_what_the_device_takes() {
    let Some(way) = Way::new("path_that_takes_what_the_device_takes") else { return };
    for to in targets() {
        let attempt = probe(&way, to, 3);
        let report = report!(attempt, PathMtu);
        assert_eq!((attempt.failure.as_ref(), facts(report)), (None, (Some(1_500), false, None)), "{to}: {attempt:?}");
        assert_eq!(report.device_mtu, Some(1_500));
    }
}

#[test]
fn router_that_says_too_big_is_named_with_its_limit() {
    let Some(way) = Way::new("router_that_says_too_big_is_named_with_its_limit") else { return };
    way.narrow(1_337);
    for to in targets() {
        let attempt = probe(&way, to, 3);
        let report = report!(attempt, PathMtu);
        let router = FIRST[usize::from(to.is_ipv6())].to_owned();
        assert_eq!(
            (attempt.failure.as_ref(), facts(report)),
            (None, (Some(1_337), false, Some(router))),
            "{to}: {attempt:?}"
        );
        assert_eq!(report.said.as_ref().and_then(|said| said.mtu), Some(1_337));
    }
}

#[test]
fn black_hole_is_proven_with_the_last_hop_before_it() {
    let Some(way) = Way::new("black_hole_is_proven_with_the_last_hop_before_it") else { return };
    way.narrow(1_413);
    way.silence_too_big();
    for target in TARGET {
        let attempt = probe(&way, SocketAddr::new(target.parse().unwrap(), 0), 2);
        let report = report!(attempt, PathMtu);
        assert_eq!(facts(report), (Some(1_413), true, None), "{attempt:?}");
        let router = FIRST[usize::from(target.contains(':'))];
        assert_eq!(report.last_hop.map(|hop| hop.to_string()).as_deref(), Some(router), "{attempt:?}");
        let failure = attempt.failure.unwrap();
        assert_eq!(failure.class, FailureClass::TooBig);
        assert!(failure.why.contains("1413"), "{}", failure.why);
    }
}

#[test]
fn plain_loss_is_no_black_hole() {
    let Some(way) = Way::new("plain_loss_is_no_black_hole") else { return };
    // Every third packet of the client, whatever its size.
    way.first.sh("nft 'add table inet lossy; add chain inet lossy in { type filter hook prerouting priority 0; }; add rule inet lossy in iifname left icmp type echo-request numgen inc mod 3 0 drop'");
    let attempt = probe(&way, SocketAddr::new(TARGET[0].parse().unwrap(), 0), 3);
    let report = report!(attempt, PathMtu);
    assert_eq!((attempt.failure.as_ref(), facts(report)), (None, (Some(1_500), false, None)), "{attempt:?}");
}

#[test]
fn loss_on_a_narrow_path_does_not_move_the_limit() {
    let Some(way) = Way::new("loss_on_a_narrow_path_does_not_move_the_limit") else { return };
    way.narrow(1_380);
    way.first.sh("nft 'add table inet lossy; add chain inet lossy in { type filter hook prerouting priority 0; }; add rule inet lossy in iifname left icmp type echo-request numgen inc mod 5 0 drop'");
    let attempt = probe(&way, SocketAddr::new(TARGET[0].parse().unwrap(), 0), 3);
    let report = report!(attempt, PathMtu);
    assert_eq!(facts(report), (Some(1_380), false, Some(FIRST[0].to_owned())), "{attempt:?}");
}

#[test]
fn device_is_the_limit_of_what_is_sent() {
    let Some(way) = Way::new("device_is_the_limit_of_what_is_sent") else { return };
    way.client.sh("ip link set right mtu 1300");
    for target in TARGET {
        let to = SocketAddr::new(target.parse().unwrap(), 0);
        let asked = PathMtuProbe { to, from_bytes: Some(1_500), tries: 2, source_port: None };
        let attempt = way.attempt(Probe::PathMtu(asked));
        let report = report!(attempt, PathMtu);
        assert_eq!(
            (report.path_mtu, report.device_mtu, report.black_hole),
            (Some(1_300), Some(1_300), false),
            "{attempt:?}"
        );
        assert_eq!(report.steps[0].words, "local: message too long (device MTU 1300)");
    }
}

#[test]
fn target_that_never_answers_has_no_path_mtu() {
    let Some(way) = Way::new("target_that_never_answers_has_no_path_mtu") else { return };
    way.silence_target();
    for to in targets() {
        let attempt = probe(&way, to, 1);
        let report = report!(attempt, PathMtu);
        assert_eq!(facts(report), (None, false, None), "{to}: {attempt:?}");
        assert_eq!(attempt.failure.unwrap().class, FailureClass::Silence);
    }
}

#[test]
fn target_that_is_prohibited_is_no_matter_of_size() {
    let Some(way) = Way::new("target_that_is_prohibited_is_no_matter_of_size") else { return };
    way.second.sh("ip route add prohibit 10.77.3.2/32");
    let attempt = probe(&way, SocketAddr::new(TARGET[0].parse().unwrap(), 0), 2);
    let failure = attempt.failure.unwrap();
    assert_eq!(
        (failure.class, failure.icmp.unwrap().words.as_str()),
        (FailureClass::Unreachable, "administratively prohibited")
    );
}

#[test]
fn errors_about_packets_of_others_change_nothing() {
    let Some(way) = Way::new("errors_about_packets_of_others_change_nothing") else { return };
    for (family, target) in TARGET.iter().enumerate() {
        answer(&way, family, |request| {
            for wrong in [Wrong::TooBig { mtu: 1_280 }, Wrong::TimeExceeded] {
                for message in request.errors_about_others(wrong) {
                    request.send(&message);
                }
            }
            request.send(&request.reply());
        });
        let attempt = probe(&way, SocketAddr::new(target.parse().unwrap(), 0), 3);
        let report = report!(attempt, PathMtu);
        assert_eq!((attempt.failure.as_ref(), facts(report)), (None, (Some(1_500), false, None)), "{attempt:?}");
        assert_eq!(report.said, None);
    }
}

#[test]
fn mtu_that_cannot_be_is_told_and_does_not_move_the_limit() {
    const LIMIT: u32 = 1_399;
    let Some(way) = Way::new("mtu_that_cannot_be_is_told_and_does_not_move_the_limit") else { return };
    // None, below what every link takes (RFC 791 §3.2, RFC 8200 §5), as much as was sent, and more.
    let lies = [[0, 1, 67, 1_500, 65_535], [0, 1, 1_279, 1_500, u32::MAX]];
    for (family, target) in TARGET.iter().enumerate() {
        let mtu = Arc::new(AtomicU32::new(0));
        let told = Arc::clone(&mtu);
        answer(&way, family, move |request| {
            if request.packet_bytes() > LIMIT as usize {
                request.send(&request.error(Wrong::TooBig { mtu: told.load(Ordering::Relaxed) }));
            } else {
                request.send(&request.reply());
            }
        });
        for lie in lies[family] {
            mtu.store(lie, Ordering::Relaxed);
            let attempt = probe(&way, SocketAddr::new(target.parse().unwrap(), 0), 3);
            let report = report!(attempt, PathMtu);
            let expected = (Some(LIMIT), false, Some((*target).to_owned()));
            assert_eq!((attempt.failure.as_ref(), facts(report)), (None, expected), "{lie}: {attempt:?}");
            assert_eq!(report.said.as_ref().unwrap().mtu, (lie != 0).then_some(lie), "{attempt:?}");
            let says = if lie == 0 { "names no MTU".to_owned() } else { format!("says {lie}") };
            assert_eq!(report.steps[0].words, format!("too big ({target} {says})"));
        }
    }
}
