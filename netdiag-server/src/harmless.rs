//! Drops that are part of a healthy network: the kernel frees packets on its way through normal work too, and calls it a drop.
//!
//! The agents count them like all others; whoever lists drops says beside them why they mean nothing.

use std::net::IpAddr;

use netdiag_common::observation::kfree_skb::DropGroup;

/// One kind of harmless drop. All of its conditions hold, else the drop is taken seriously.
#[derive(Debug)]
pub struct Harmless {
    /// What a list of drops says.
    pub label: &'static str,
    /// Why it means nothing.
    pub because: &'static str,
    reasons: &'static [&'static str],
    functions: &'static [&'static str],
    condition: Condition,
}

/// What the packets must look like.
#[derive(Debug)]
enum Condition {
    /// Nothing more to ask: reason and function say it all.
    Any,
    Protocols(&'static [u8]),
    /// To a multicast group or to everybody.
    ToMany,
    /// Without payload: at most this many bytes each.
    Empty(u8, u64),
    EtherTypes(&'static [u16]),
}

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;

/// IPv6 and TCP headers with all the options that a segment without data carries.
const EMPTY_SEGMENT_BYTES: u64 = 40 + 20 + 40;

/// Functions are those of Linux 5.10 to 7.2; reasons are `UNREPORTED` before 5.17 and then prove nothing.
pub static HARMLESS: [Harmless; 12] = [
    Harmless {
        label: "echo reply",
        because: "ping reads replies from a raw socket; the kernel then frees its own copy, for which there is no other socket",
        reasons: &["NO_SOCKET"],
        functions: &["ping_rcv"],
        condition: Condition::Protocols(&[ICMP, ICMPV6]),
    },
    Harmless {
        label: "normal close",
        because: "the last segments of a connection that both sides have closed are freed without a reason of their own",
        reasons: &["NOT_SPECIFIED"],
        functions: &["tcp_v4_rcv", "tcp_v6_rcv"],
        condition: Condition::Empty(TCP, EMPTY_SEGMENT_BYTES),
    },
    Harmless {
        label: "keepalive or window probe",
        because: "these repeat an old sequence number on purpose; the kernel answers them and frees the packet",
        reasons: &["TCP_OLD_SEQUENCE"],
        functions: &["tcp_validate_incoming"],
        condition: Condition::Empty(TCP, EMPTY_SEGMENT_BYTES),
    },
    Harmless {
        label: "multicast nobody joined",
        because: "switches and bridges flood multicast; a host that has not joined the group frees its copy",
        reasons: &["NOT_SPECIFIED", "IPV6DISABLED", "IP_INADDRERRORS", "IP_INNOROUTES"],
        functions: &["ip_rcv_finish_core", "ip6_rcv_core", "ip_error", "ip6_pkt_discard"],
        condition: Condition::ToMany,
    },
    Harmless {
        label: "multicast nobody joined",
        because: "only multicast reaches this function, and it frees what no socket of the host has joined",
        reasons: &["NOT_SPECIFIED"],
        functions: &["ip6_mc_input"],
        condition: Condition::Any,
    },
    Harmless {
        label: "data received before",
        because: "the sender did not wait for an acknowledgement that was under way, and sent again; retransmits are counted apart",
        reasons: &["TCP_OLD_DATA"],
        functions: &["tcp_rcv_established", "tcp_data_queue"],
        condition: Condition::Any,
    },
    Harmless {
        label: "data after close",
        because: "the application had closed its socket when more data came; the reset that answered is among the refusals",
        reasons: &["TCP_ABORT_ON_DATA"],
        functions: &["tcp_v4_do_rcv", "tcp_v6_do_rcv"],
        condition: Condition::Any,
    },
    Harmless {
        label: "normal close",
        because: "a last segment met a socket that was being closed at that moment",
        reasons: &["TCP_CLOSE"],
        functions: &["tcp_rcv_state_process"],
        condition: Condition::Any,
    },
    Harmless {
        label: "broadcast nobody wanted",
        because: "a broadcast or multicast datagram reached a host without a socket for it",
        reasons: &["NOT_SPECIFIED"],
        functions: &["__udp4_lib_rcv", "__udp6_lib_rcv", "__udp4_lib_mcast_deliver", "__udp6_lib_mcast_deliver"],
        condition: Condition::Protocols(&[UDP]),
    },
    Harmless {
        label: "socket teardown",
        because: "the socket was closed while packets still waited to be read or to be acknowledged",
        reasons: &["NOT_SPECIFIED", "QUEUE_PURGE", "SOCKET_CLOSE"],
        functions: &[
            "skb_queue_purge_reason",
            "tcp_disconnect",
            "inet_sock_destruct",
            "inet_csk_destroy_sock",
            "sk_stream_kill_queues",
            "udp_destruct_common",
            "udp_destruct_sock",
            "udp_destroy_sock",
            "unix_release_sock",
        ],
        condition: Condition::Any,
    },
    Harmless {
        label: "device teardown",
        because: "the program behind a tun or tap device closed it while packets still waited for it",
        reasons: &["NOT_SPECIFIED", "QUEUE_PURGE"],
        functions: &["tun_queue_purge", "__tun_detach"],
        condition: Condition::Any,
    },
    Harmless {
        label: "switch protocol",
        because: "switches announce themselves (LLDP, STP, loop detection); a host that does not take part frees the frame",
        reasons: &["UNHANDLED_PROTO"],
        functions: &["__netif_receive_skb_core"],
        // ETH_P_802_2, ETH_P_LLDP, Realtek's loop detection, ECTP (include/uapi/linux/if_ether.h and the IEEE registry).
        condition: Condition::EtherTypes(&[0x0004, 0x88cc, 0x8899, 0x9000]),
    },
];

/// What a drop is called that means nothing; none for all others.
pub fn harmless(group: &DropGroup) -> Option<&'static str> {
    HARMLESS.iter().find(|kind| kind.covers(group)).map(|kind| kind.label)
}

impl Harmless {
    fn covers(&self, group: &DropGroup) -> bool {
        self.reasons.contains(&group.reason.as_str())
            && self.functions.contains(&group.location.as_str())
            && self.condition.holds(group)
    }
}

impl Condition {
    fn holds(&self, group: &DropGroup) -> bool {
        let protocol = group.tuple.as_ref().map(|tuple| tuple.protocol_number);
        match self {
            Self::Any => true,
            Self::Protocols(protocols) => protocol.is_some_and(|protocol| protocols.contains(&protocol)),
            Self::ToMany => group.tuple.as_ref().is_some_and(|tuple| is_to_many(tuple.destination)),
            Self::Empty(of, bytes) => protocol == Some(*of) && group.bytes <= group.packets.saturating_mul(*bytes),
            Self::EtherTypes(types) => group.ether_type.is_some_and(|found| types.contains(&found)),
        }
    }
}

fn is_to_many(destination: IpAddr) -> bool {
    destination.is_multicast() || matches!(destination, IpAddr::V4(address) if address.is_broadcast())
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::kfree_skb::DropTuple;
    use netdiag_common::observation::{Owner, Protocol};

    use super::*;

    /// `REASON @ FUNCTION`, and the tuple's protocol and destination when there is one.
    fn group(signature: &str, tuple: Option<(u8, &str)>) -> DropGroup {
        let (reason, location) = signature.split_once(" @ ").unwrap();
        let at = "2026-01-01T00:00:00Z".parse().unwrap();
        DropGroup {
            netns: Owner::Host,
            reason: reason.to_owned(),
            location: location.to_owned(),
            ifindex: 2,
            direction: None,
            hook: None,
            tuple: tuple.map(|(protocol, destination)| DropTuple {
                source: "10.0.0.1".parse().unwrap(),
                destination: destination.parse().unwrap(),
                protocol: Protocol::from_number(protocol),
                protocol_number: protocol,
                service_port: 0,
                port_is_destination: false,
            }),
            ether_type: None,
            tracked: None,
            translation: None,
            packets: 10,
            bytes: 520,
            first_at: at,
            last_at: at,
            since: None,
        }
    }

    #[test]
    fn drops_of_a_healthy_network_are_named() {
        let label = |signature: &str, tuple| harmless(&group(signature, tuple));
        assert_eq!(label("NO_SOCKET @ ping_rcv", Some((ICMP, "10.0.0.2"))), Some("echo reply"));
        assert_eq!(label("NO_SOCKET @ ping_rcv", Some((ICMPV6, "fd00::2"))), Some("echo reply"));
        assert_eq!(label("NOT_SPECIFIED @ tcp_v4_rcv", Some((TCP, "10.0.0.2"))), Some("normal close"));
        assert_eq!(
            label("TCP_OLD_SEQUENCE @ tcp_validate_incoming", Some((TCP, "10.0.0.2"))),
            Some("keepalive or window probe")
        );
        assert_eq!(label("NOT_SPECIFIED @ ip6_mc_input", Some((ICMPV6, "ff02::16"))), Some("multicast nobody joined"));
        assert_eq!(
            label("NOT_SPECIFIED @ ip_rcv_finish_core", Some((2, "224.0.0.22"))),
            Some("multicast nobody joined")
        );
        assert_eq!(label("NOT_SPECIFIED @ __udp4_lib_rcv", Some((UDP, "10.0.0.255"))), Some("broadcast nobody wanted"));
        assert_eq!(label("TCP_ABORT_ON_DATA @ tcp_v4_do_rcv", Some((TCP, "10.0.0.2"))), Some("data after close"));
        let again = label("TCP_OLD_DATA @ tcp_rcv_established", Some((TCP, "10.0.0.2")));
        assert_eq!(again, Some("data received before"));
        assert_eq!(label("TCP_CLOSE @ tcp_rcv_state_process", None), Some("normal close"));
        assert_eq!(label("QUEUE_PURGE @ tcp_disconnect", Some((TCP, "10.0.0.2"))), Some("socket teardown"));
        let lldp = DropGroup { ether_type: Some(0x88cc), ..group("UNHANDLED_PROTO @ __netif_receive_skb_core", None) };
        assert_eq!(harmless(&lldp), Some("switch protocol"));
    }

    #[test]
    fn look_alikes_are_taken_seriously() {
        let label = |signature: &str, tuple| harmless(&group(signature, tuple));
        assert_eq!(label("NO_SOCKET @ tcp_v4_rcv", Some((TCP, "10.0.0.2"))), None, "a port nobody listens on");
        assert_eq!(label("NOT_SPECIFIED @ ip_rcv_finish_core", Some((UDP, "10.0.0.2"))), None, "a bad option");
        assert_eq!(label("NOT_SPECIFIED @ ip_error", Some((TCP, "10.0.0.2"))), None, "a blackhole route");
        assert_eq!(label("IPV6DISABLED @ ip6_rcv_core", Some((TCP, "fd00::2"))), None, "somebody wants to use IPv6");
        assert_eq!(label("QUEUE_PURGE @ neigh_destroy", Some((UDP, "10.0.0.2"))), None, "an unresolved neighbour");
        assert_eq!(label("NOT_SPECIFIED @ tcp_v4_rcv", None), None, "a coarse group shows too little");
        let unknown =
            DropGroup { ether_type: Some(0x88b5), ..group("UNHANDLED_PROTO @ __netif_receive_skb_core", None) };
        assert_eq!(harmless(&unknown), None);
        // Retransmissions that carry data again.
        let large =
            DropGroup { bytes: 14_000, ..group("TCP_OLD_SEQUENCE @ tcp_validate_incoming", Some((TCP, "10.0.0.2"))) };
        assert_eq!(harmless(&large), None);
    }

    #[test]
    fn every_kind_says_why() {
        for kind in &HARMLESS {
            assert!(kind.because.len() > 40 && !kind.because.ends_with('.'), "{}", kind.label);
            assert!(!kind.reasons.is_empty() && !kind.functions.is_empty(), "{}", kind.label);
        }
    }
}
