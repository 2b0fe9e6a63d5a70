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

pub const CASES: [Case; 2] = [
    Case {
        fact: "before the first rule, a longer prefix of main goes before a shorter one of local",
        setup: "-4 route add 127.5.0.0/16 dev v0",
        queries: || vec![sent("127.5.0.1", None), sent("127.6.0.1", None)],
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

#[expect(dead_code, reason = "until a case needs it")]
fn received(destination: &str, source: &str, link: &str) -> RouteQuery {
    RouteQuery { input: Some(index(link)), uid: None, ..sent(destination, Some(source)) }
}
