//! A client, two routers and a target, each in its own namespace, in a row; and one attempt sent from the client.

use std::time::{Duration, Instant};

use netdiag_common::observation::series::{Identity, Probe, SeriesAttempt, SeriesRequest, SeriesResult};
use netdiag_node::gap::Failure;
use netdiag_node::netns::NetnsHandle;
use netdiag_node::probe::series::{AllowList, Engine, Place};

use crate::support::{Namespace, patient, skipped};

pub const TARGET: [&str; 2] = ["10.77.3.2", "fd77:3::2"];
/// Of the first router, as the client meets it.
pub const FIRST: [&str; 2] = ["10.77.1.2", "fd77:1::2"];
pub const SECOND: [&str; 2] = ["10.77.2.2", "fd77:2::2"];

pub struct Way {
    pub client: Namespace,
    pub first: Namespace,
    pub second: Namespace,
    pub target: Namespace,
}

impl Way {
    /// None, said loudly, when this machine cannot do it.
    pub fn new(test: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skipped(test, "not root");
            return None;
        }
        let way = Self {
            client: Namespace::new(),
            first: Namespace::new(),
            second: Namespace::new(),
            target: Namespace::new(),
        };
        // A router asks for neighbours from its link-local address, which is not usable while it is checked for duplicates.
        for namespace in [&way.client, &way.first, &way.second, &way.target] {
            namespace.sh("sysctl -qw net.ipv6.conf.default.accept_dad=0 net.ipv6.conf.default.dad_transmits=0");
        }
        way.client.connect("right", &way.first, "left");
        way.first.connect("right", &way.second, "left");
        way.second.connect("right", &way.target, "left");
        way.client.sh(&addresses(&[("right", "1", 1)]));
        way.first.sh(&addresses(&[("left", "1", 2), ("right", "2", 1)]));
        way.second.sh(&addresses(&[("left", "2", 2), ("right", "3", 1)]));
        way.target.sh(&addresses(&[("left", "3", 2)]));
        // Every error is sent: how routers limit them is not what the tests are about.
        let router = "sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1 net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0";
        way.first
            .sh(&format!("{router}\nip route add 10.77.3.0/24 via 10.77.2.2\nip route add fd77:3::/64 via fd77:2::2"));
        way.second
            .sh(&format!("{router}\nip route add 10.77.1.0/24 via 10.77.2.1\nip route add fd77:1::/64 via fd77:2::1"));
        way.client.sh("ip route add default via 10.77.1.2\nip route add default via fd77:1::2");
        way.target.sh("sysctl -qw net.ipv4.icmp_ratelimit=0 net.ipv6.icmp.ratelimit=0\nip route add default via 10.77.3.1\nip route add default via fd77:3::1");
        Some(way)
    }

    /// The link between the routers takes no more.
    pub fn narrow(&self, mtu: u32) {
        self.first.sh(&format!("ip link set right mtu {mtu}"));
        self.second.sh(&format!("ip link set left mtu {mtu}"));
    }

    /// The first router says nothing of packets that are too big.
    pub fn silence_too_big(&self) {
        self.first.sh("nft -f - <<'END'
table inet quiet {
    chain output {
        type filter hook output priority 0;
        icmp type destination-unreachable drop
        icmpv6 type packet-too-big drop
    }
}
END");
    }

    /// The target says nothing at all.
    pub fn silence_target(&self) {
        self.target.sh("nft 'add table inet quiet; add chain inet quiet input { type filter hook input priority 0; }; add rule inet quiet input meta l4proto { tcp, udp, icmp } drop; add rule inet quiet input icmpv6 type echo-request drop'");
    }

    pub fn attempt(&self, probe: Probe) -> SeriesAttempt {
        let mut result = self.series(probe, false).unwrap();
        assert_eq!((result.made, result.attempts.len()), (1, 1), "{result:?}");
        result.attempts.remove(0)
    }

    /// One attempt of the client, of an agent that may or may not fill links.
    pub fn series(&self, probe: Probe, throughput: bool) -> Result<SeriesResult, Failure> {
        let netns = self.client.run(|| NetnsHandle::open("/proc/thread-self/ns/net".as_ref()).unwrap());
        let place = Place { node: netns.clone(), netns, resolver: None, group: None, unseen: Vec::new() };
        let request = SeriesRequest {
            probe,
            count: 1,
            interval_us: 0,
            timeout_ms: 20_000,
            parallel: 1,
            identity: Identity::default(),
            asked_by: None,
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let until = Instant::now() + patient(Duration::from_secs(25));
        runtime.block_on(Engine::new(AllowList::default(), throughput).run(place, &request, until))
    }
}

/// Devices with the number of their network and their own.
fn addresses(devices: &[(&str, &str, u8)]) -> String {
    let lines = devices.iter().map(|(device, network, own)| {
        format!("ip addr add 10.77.{network}.{own}/24 dev {device}\nip addr add fd77:{network}::{own}/64 dev {device} nodad\n")
    });
    lines.collect()
}

/// A report of the kind that was asked for.
macro_rules! report {
    ($attempt:expr, $kind:ident) => {
        match &$attempt.report {
            netdiag_common::observation::series::ProbeReport::$kind(report) => report,
            other => panic!("{other:?}"),
        }
    };
}
pub(crate) use report;
