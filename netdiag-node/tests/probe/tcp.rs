//! TCP: what each way of failing looks like, and who is named.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, SocketAddrV6, TcpListener};

use netdiag_common::observation::series::FailureClass::{Local, Refused, Reset, Silence, Unreachable};
use netdiag_common::observation::series::ProbeStage::{Close, Connect};
use netdiag_common::observation::series::transport::TcpClose;
use netdiag_common::observation::series::{SeriesAttempt, SeriesRequest};

use crate::ask::{ask, request, tcp};
use crate::host::{Host, LOCAL, failure, reset, why};
use crate::support::Namespace;
use crate::way::{FIRST, TARGET, Way, report};

const SHORT_MS: u32 = 500;

fn one(namespace: &Namespace, request: &SeriesRequest) -> SeriesAttempt {
    ask(namespace, request).unwrap().attempts.remove(0)
}

fn to(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

#[test]
fn handshake_is_told_with_its_segment_size_in_both_families() {
    let Some(way) = Way::new("handshake_is_told_with_its_segment_size_in_both_families") else { return };
    for (address, any, mss) in [(TARGET[0], "0.0.0.0:80", 1_448), (TARGET[1], "[::]:80", 1_428)] {
        let _listens = way.target.run(|| TcpListener::bind(any).unwrap());
        let attempt = one(&way.client, &request(tcp(&to(address, 80).to_string(), TcpClose::Reset)));
        let found = report!(attempt, Tcp);
        assert_eq!((failure(&attempt), found.syns, found.send_mss), (None, Some(1), Some(mss)), "{attempt:?}");
        assert!(found.handshake_us > 0 && found.rtt_us > Some(0), "{attempt:?}");
        let source = attempt.source.unwrap();
        assert!(source.port() != 0 && !source.ip().is_unspecified(), "{source}");
    }
}

#[test]
fn closed_port_is_refused_by_the_target() {
    let Some(way) = Way::new("closed_port_is_refused_by_the_target") else { return };
    for address in TARGET {
        let attempt = one(&way.client, &request(tcp(&to(address, 81).to_string(), TcpClose::Orderly)));
        assert_eq!(failure(&attempt), Some((Refused, Connect, Some("ECONNREFUSED"))), "{attempt:?}");
        let failure = attempt.failure.as_ref().unwrap();
        assert_eq!((failure.said_by, failure.icmp.as_ref()), (Some(address.parse().unwrap()), None));
        assert!(
            attempt.source.is_some_and(|source| source.port() != 0),
            "known although the connect failed: {attempt:?}"
        );
    }
}

#[test]
fn router_that_prohibits_is_named() {
    let Some(way) = Way::new("router_that_prohibits_is_named") else { return };
    way.first.sh("nft -f - <<'END'
table inet wall {
    chain forward {
        type filter hook forward priority 0;
        tcp dport 82 reject with icmpx admin-prohibited
        tcp dport 83 reject with icmpx port-unreachable
    }
}
END");
    for (family, address) in TARGET.iter().enumerate() {
        let prohibited = one(&way.client, &request(tcp(&to(address, 82).to_string(), TcpClose::Orderly)));
        let errno = if family == 0 { "EHOSTUNREACH" } else { "EACCES" };
        assert_eq!(failure(&prohibited), Some((Unreachable, Connect, Some(errno))), "{prohibited:?}");
        let unreachable = one(&way.client, &request(tcp(&to(address, 83).to_string(), TcpClose::Orderly)));
        assert_eq!(failure(&unreachable), Some((Refused, Connect, Some("ECONNREFUSED"))), "{unreachable:?}");
        for (attempt, words) in [(prohibited, "administratively prohibited"), (unreachable, "port unreachable")] {
            let failure = attempt.failure.unwrap();
            assert_eq!(failure.said_by, Some(FIRST[family].parse().unwrap()), "{failure:?}");
            assert_eq!(failure.icmp.unwrap().words, words);
        }
    }
}

#[test]
fn silence_counts_its_syns() {
    let Some(way) = Way::new("silence_counts_its_syns") else { return };
    way.silence_target();
    for address in TARGET {
        let probe = tcp(&to(address, 80).to_string(), TcpClose::Orderly);
        let attempt = one(&way.client, &SeriesRequest { timeout_ms: 1_500, ..request(probe) });
        assert_eq!(failure(&attempt), Some((Silence, Connect, None)), "{attempt:?}");
        // The second SYN goes after a second (RFC 6298).
        let syns = report!(attempt, Tcp).syns;
        assert_eq!(syns, Some(2), "{attempt:?}");
        assert!(why(&attempt).contains("2 SYNs"), "{attempt:?}");
    }
}

#[test]
fn no_route_is_this_nodes_own_word() {
    let Some(host) = Host::new("no_route_is_this_nodes_own_word") else { return };
    let attempt = one(&host.namespace, &request(tcp("10.9.9.9:80", TcpClose::Orderly)));
    assert_eq!(failure(&attempt), Some((Unreachable, Connect, Some("ENETUNREACH"))), "{attempt:?}");
    assert_eq!(attempt.failure.unwrap().said_by, None);
}

#[test]
fn link_local_address_leads_somewhere_by_its_interface_alone() {
    let Some(host) = Host::new("link_local_address_leads_somewhere_by_its_interface_alone") else { return };
    host.namespace.sh("ip link add near0 type veth peer name near1
        ip link set near0 up; ip link set near1 up
        ip addr add fe80::53/64 dev near0 nodad");
    let scope = host.namespace.run(|| nix::net::if_::if_nametoindex("near0").unwrap());
    let by = |scope, port| SocketAddr::from(SocketAddrV6::new("fe80::53".parse().unwrap(), port, 0, scope));
    let port = host.serve_at(by(scope, 0), drop).port();
    let attempt = one(&host.namespace, &request(tcp(&by(scope, port).to_string(), TcpClose::Orderly)));
    assert_eq!(failure(&attempt), None, "{attempt:?}");
    // tcp_v6_connect, net/ipv6/tcp_ipv6.c
    let attempt = one(&host.namespace, &request(tcp(&by(0, port).to_string(), TcpClose::Orderly)));
    assert_eq!(failure(&attempt), Some((Local, Connect, Some("EINVAL"))), "{attempt:?}");
}

#[test]
fn half_close_succeeds_when_the_far_side_still_speaks() {
    let Some(host) = Host::new("half_close_succeeds_when_the_far_side_still_speaks") else { return };
    let after_fin = host.serve(LOCAL[0], |mut stream| {
        while stream.read(&mut [0; 16]).is_ok_and(|read| read > 0) {}
        let _ = stream.write_all(b"still here");
    });
    let attempt = one(&host.namespace, &request(tcp(&after_fin.to_string(), TcpClose::HalfClose)));
    let found = report!(attempt, Tcp);
    assert_eq!((failure(&attempt), found.after_close_bytes, found.closed_by_peer), (None, Some(10), Some(true)));

    let deaf = host.serve(LOCAL[1], |stream| {
        std::thread::sleep(std::time::Duration::from_secs(30));
        drop(stream);
    });
    let probe = tcp(&deaf.to_string(), TcpClose::HalfClose);
    let attempt = one(&host.namespace, &SeriesRequest { timeout_ms: SHORT_MS, ..request(probe) });
    assert_eq!(failure(&attempt), Some((Silence, Close, None)), "{attempt:?}");

    let resets = host.serve(LOCAL[0], |mut stream| {
        while stream.read(&mut [0; 16]).is_ok_and(|read| read > 0) {}
        reset(stream);
    });
    let attempt = one(&host.namespace, &request(tcp(&resets.to_string(), TcpClose::HalfClose)));
    assert_eq!(failure(&attempt), Some((Reset, Close, Some("ECONNRESET"))), "{attempt:?}");
    assert_eq!(attempt.failure.unwrap().said_by, Some(resets.ip()));
}

#[test]
fn server_that_greets_sees_an_orderly_end() {
    let Some(host) = Host::new("server_that_greets_sees_an_orderly_end") else { return };
    let (sender, ended) = std::sync::mpsc::channel();
    let to = host.serve(LOCAL[0], move |mut stream| {
        let _ = stream.write_all(b"220 hello\r\n");
        let _ = sender.send(stream.read(&mut [0; 16]).map_err(|error| error.kind()));
    });
    one(&host.namespace, &request(tcp(&to.to_string(), TcpClose::Orderly)));
    assert_eq!(ended.recv().unwrap(), Ok(0), "ECONNRESET would be our RST");
}
