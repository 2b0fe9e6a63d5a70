//! Cases in which the evaluator once differed from the kernel, and ones that random setups meet too rarely.

use netdiag_common::forwarding::state::RouteQuery;

use crate::lab::index;
use crate::query::address;

pub struct Case {
    pub fact: &'static str,
    /// Lines of ip(8), and settings.
    pub setup: &'static str,
    pub queries: fn() -> Vec<RouteQuery>,
}

pub const CASES: [Case; 10] = [
    Case {
        fact: "before the first rule, a longer prefix of main goes before a shorter one of local",
        setup: "-4 route add 127.5.0.0/16 dev v0",
        queries: || vec![sent("127.5.0.1", None), sent("127.6.0.1", None)],
    },
    Case {
        fact: "before the first rule, a throw of local leads past main",
        setup: "ipv4/conf/v0/forwarding=1
            -4 route add throw 10.9.1.0/24 table local
            -4 route add 10.0.0.0/8 dev v2
            -4 route add 10.9.0.0/16 dev v1 table default",
        queries: || vec![sent("10.9.1.1", None), received("10.9.1.1", "10.0.0.9", "v0"), sent("10.9.2.1", None)],
    },
    Case {
        fact: "a packet of IPv6 that has no source yet is of no prefix",
        setup: "-6 rule add from fd01::/64 priority 10 blackhole
            -6 rule add not from 2001:db8::/32 priority 20 prohibit",
        queries: || vec![sent("2001:db8::9", None), sent("fd01::77", Some("fd01::1"))],
    },
    Case {
        fact: "a next-hop object that drops everything goes before other routes of its prefix and metric",
        setup: "-6 nexthop add id 25 blackhole
            -6 nexthop add id 21 via fd01::fe dev v1
            -6 route add 2001:db8::/32 via fd01::6
            -6 route append 2001:db8::/32 nhid 25
            -6 route add 2001:db8:1::/48 nhid 25
            -6 route add fd09::/16 via fd01::6 metric 10
            -6 route add fd09::/16 nhid 25 metric 20",
        queries: || vec![sent("2001:db8::9", None), sent("2001:db8:1::9", None), sent("fd09::9", None)],
    },
    Case {
        fact: "the root of a table is not passed over for its routes for other sources",
        setup: "-6 route add default from fd02::1/128 via fd01::5
            -6 route add default via fd01::6",
        queries: || vec![sent("2001:db8::9", None), sent("2001:db8::9", Some("fd01::1"))],
    },
    Case {
        fact: "a next-hop object of IPv4 without a usable next hop ends the search in its leaf",
        setup: "-4 nexthop add id 2 via 10.2.0.254 dev v2
            -4 route add 192.0.2.0/24 nhid 2
            -4 route add unreachable 192.0.2.0/24 metric 20
            -4 route add 192.0.2.0/23 via 10.3.0.253 dev v3
            -4 route add default via 10.3.0.254 dev v3",
        queries: || vec![bound("192.0.2.7", "v3"), bound("192.0.2.7", "v2"), bound("192.0.3.7", "v3")],
    },
    Case {
        fact: "a group of next-hop objects of IPv6 is used whatever the interface that was asked for",
        setup: "-6 nexthop add id 21 via fd01::fe dev v1
            -6 nexthop add id 22 via fd02::fe dev v2
            -6 nexthop add id 30 group 21,100/22
            -6 route add 2001:db8::/32 nhid 30",
        queries: || vec![bound("2001:db8::1", "v2"), bound("2001:db8::2", "v1"), bound("2001:db8::2", "v3")],
    },
    Case {
        fact: "a router that is an address of this host is none",
        setup: "-4 route add local 10.2.0.0/16 dev v2 table 100
            -4 route add 10.9.0.0/16 via 10.2.0.254 dev v2 table 100
            -4 route add 10.8.0.0/16 via 10.1.0.5 dev v1
            -4 rule add to 10.9.0.0/16 priority 10 table 100",
        queries: || vec![sent("10.9.0.1", None), sent("10.8.0.1", None)],
    },
    Case {
        fact: "IPv6 suppresses by the interface group of the next hop that was chosen",
        setup: "link set v1 group 7
            -6 route add 2001:db8::/32 table 100 nexthop via fd01::fe dev v1 nexthop via fd02::fe dev v2
            -6 rule add priority 10 table 100 suppress_ifgroup 7
            -6 route add default via fd03::fe dev v3",
        queries: || (1..=8).map(|host| sent(&format!("2001:db8::{host}"), None)).collect(),
    },
    Case {
        fact: "a node with routes for other sources is passed over with its routes for all sources",
        setup: "-6 route add 2001:db8::/32 from 3001::/16 via fd01::5
            -6 route add 2001:db8::/32 via fd01::6
            -6 route add default via fd02::7",
        queries: || vec![sent("2001:db8::9", Some("fd01::1")), sent("2001:db8::9", None)],
    },
];

pub fn sent(destination: &str, source: Option<&str>) -> RouteQuery {
    RouteQuery {
        destination: address(destination),
        source: source.map(address),
        input: None,
        output: None,
        mark: 0,
        service: 0,
        protocol: 17,
        ports: Some((1000, 53)),
        uid: Some(0),
    }
}

fn bound(destination: &str, link: &str) -> RouteQuery {
    RouteQuery { output: Some(index(link)), ..sent(destination, None) }
}

fn received(destination: &str, source: &str, link: &str) -> RouteQuery {
    RouteQuery { input: Some(index(link)), ..sent(destination, Some(source)) }
}
