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

pub const CASES: [Case; 6] = [
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
        fact: "a node with routes for other sources is passed over with its routes for all sources",
        setup: "-6 route add 2001:db8::/32 from 3001::/16 via fd01::5
            -6 route add 2001:db8::/32 via fd01::6
            -6 route add default via fd02::7",
        queries: || vec![sent("2001:db8::9", Some("fd01::1")), sent("2001:db8::9", None)],
    },
];

fn sent(destination: &str, source: Option<&str>) -> RouteQuery {
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

fn received(destination: &str, source: &str, link: &str) -> RouteQuery {
    RouteQuery { input: Some(index(link)), ..sent(destination, Some(source)) }
}
