//! Random rules, routes, next hops, links and settings.

use crate::lab::{LINKS, Setup};
use crate::random::Random;

const V4: [&str; 12] = [
    "default",
    "0.0.0.0/1",
    "10.0.0.0/8",
    "10.1.0.0/16",
    "10.1.0.0/24",
    "10.1.0.128/25",
    "10.9.0.0/16",
    "10.9.1.0/24",
    "10.9.1.7/32",
    "192.0.2.0/24",
    "192.0.2.7/32",
    "127.5.0.0/16",
];
const V6: [&str; 9] = [
    "default",
    "2000::/3",
    "2001:db8::/32",
    "2001:db8:1::/48",
    "2001:db8:1::7/128",
    "fd01::/64",
    "fd09::/16",
    "fd09::7/128",
    "fe80::/64",
];
const TABLES: [&str; 6] = ["main", "main", "100", "101", "102", "default"];

pub fn make(random: &mut Random) -> Setup {
    let mut setup = Setup::default();
    settings(random, &mut setup);
    for link in 0..LINKS {
        if random.percent(12) {
            setup.lines.push(format!("link set p{link} down"));
        }
        if random.percent(20) {
            setup.lines.push(format!("link set v{link} group 7"));
        }
        // Routers that do not answer, which hosts pass over.
        if random.percent(15) {
            setup.lines.push(format!("neigh replace fd0{link}::fe dev v{link} nud failed"));
        }
    }
    objects(random, &mut setup);
    // Both families in one setup, since they share nothing.
    for v6 in [false, true] {
        if random.percent(60) {
            let family = if v6 { "-6" } else { "-4" };
            let hop = hops(random, v6);
            setup.lines.push(format!("{family} route add default metric 2000{hop}"));
        }
        for _ in 0..6 + random.below(14) {
            let line = route(random, v6);
            setup.lines.push(line);
        }
        // Without any, the tables local and main are one.
        let rules = if random.percent(15) { 0 } else { 1 + random.below(8) };
        for _ in 0..rules {
            let line = rule(random, v6);
            setup.lines.push(line);
        }
    }
    if random.percent(25) {
        setup.lines.push(format!("link set v{} down", random.below(LINKS as usize)));
    }
    setup
}

fn settings(random: &mut Random, setup: &mut Setup) {
    let mut add = |setting: String, value: &str| setup.settings.push((setting, value.into()));
    for setting in ["rp_filter", "accept_local", "route_localnet", "src_valid_mark", "send_redirects", "bc_forwarding"]
    {
        for of in ["all", "v0", "v1", "v2", "v3", "v4"] {
            let value = match setting {
                "rp_filter" => random.pick(&["0", "0", "0", "1", "2"]),
                "send_redirects" => random.pick(&["0", "1"]),
                // What is forwarded to everybody is not followed.
                "bc_forwarding" => "0",
                _ => random.pick(&["0", "0", "0", "0", "0", "1"]),
            };
            add(format!("ipv4/conf/{of}/{setting}"), value);
        }
    }
    for link in 0..LINKS {
        add(format!("ipv4/conf/v{link}/forwarding"), if random.percent(90) { "1" } else { "0" });
        for family in ["ipv4", "ipv6"] {
            let value = if random.percent(50) { "1" } else { "0" };
            add(format!("{family}/conf/v{link}/ignore_routes_with_linkdown"), value);
        }
    }
    add("ipv6/conf/all/forwarding".into(), random.pick(&["0", "1", "1"]));
    add("ipv4/fib_multipath_hash_policy".into(), random.pick(&["0", "1"]));
    add("ipv6/fib_multipath_hash_policy".into(), random.pick(&["0", "1"]));
    add("ipv4/nexthop_compat_mode".into(), random.pick(&["0", "1"]));
}

/// Next-hop objects 1 to 4 and the group 10 of IPv4, 21 to 24 and 30 of IPv6; 5 and 25 drop everything.
fn objects(random: &mut Random, setup: &mut Setup) {
    for link in 1..LINKS {
        setup.lines.push(format!("nexthop add id {link} via 10.{link}.0.254 dev v{link}"));
        setup.lines.push(format!("nexthop add id {} via fd0{link}::fe dev v{link}", 20 + link));
    }
    setup.lines.push("nexthop add id 5 blackhole".into());
    setup.lines.push("-6 nexthop add id 25 blackhole".into());
    let weight = 1 + random.below(300);
    setup.lines.push(format!("nexthop add id 10 group 1,{weight}/2/3"));
    setup.lines.push(format!("nexthop add id 30 group 21,{weight}/22"));
}

fn route(random: &mut Random, v6: bool) -> String {
    let verb = random.pick(&["add", "add", "add", "append"]);
    let table = if random.percent(4) { "local" } else { random.pick(&TABLES) };
    let prefix = if v6 { random.pick(&V6) } else { random.pick(&V4) };
    let kind = if random.percent(75) {
        "unicast"
    } else {
        random.pick(&["blackhole", "unreachable", "prohibit", "throw", "local"])
    };
    let mut line = format!("{} route {verb} {kind} {prefix}", if v6 { "-6" } else { "-4" });
    if v6 && random.percent(15) {
        line += random.pick(&[" from fd01::/64", " from fd00::/8", " from fd02::1/128"]);
    }
    line += &format!(" table {table}");
    if random.percent(40) {
        line += random.pick(&[" metric 10", " metric 20", " metric 1024"]);
    }
    if !v6 && random.percent(20) {
        line += random.pick(&[" tos 0x10", " tos 0x08", " tos 0x04"]);
    }
    match kind {
        "unicast" => line += &hops(random, v6),
        "local" => line += random.pick(&[" dev lo", " dev v1", " dev v2"]),
        _ => {}
    }
    if kind == "unicast" && random.percent(12) {
        let link = random.below(LINKS as usize);
        line += &if v6 { format!(" src fd0{link}::1") } else { format!(" src 10.{link}.0.5") };
    }
    if v6 && kind == "unicast" && random.percent(15) {
        line += random.pick(&[" pref low", " pref high"]);
    }
    // ip(8) wants what it hangs next hops on at the end.
    match line.find(" nexthop ") {
        Some(at) => {
            let (head, hops) = line.split_at(at);
            let end = hops.find(" src ").unwrap_or(hops.len());
            let (hops, source) = hops.split_at(end);
            format!("{head}{source}{hops}")
        }
        None => line,
    }
}

fn hops(random: &mut Random, v6: bool) -> String {
    let one = |random: &mut Random| {
        let link = random.below(LINKS as usize);
        match (random.below(10), v6) {
            (0..=2, _) => format!(" dev v{link}"),
            (3, false) => format!(" via inet6 fd0{link}::fe dev v{link}"),
            (_, false) => format!(" via 10.{link}.0.{} dev v{link}", random.pick_value(&[254, 253])),
            (_, true) => format!(" via fd0{link}::{} dev v{link}", random.pick(&["fe", "fd"])),
        }
    };
    if random.percent(15) {
        return format!(" nhid {}", random.pick_value(&[1, 2, 3, 4, 5, 10]) + if v6 { 20 } else { 0 });
    }
    if random.percent(75) {
        return one(random);
    }
    let hops: Vec<String> =
        (0..2 + random.below(3)).map(|_| format!(" nexthop{} weight {}", one(random), 1 + random.below(4))).collect();
    hops.concat()
}

fn rule(random: &mut Random, v6: bool) -> String {
    let mut line = format!("{} rule add", if v6 { "-6" } else { "-4" });
    let priority = 1 + random.below(60);
    if random.percent(20) {
        line += " not";
    }
    line += &format!(" priority {priority}");
    for _ in 0..=random.below(2) {
        line += &selector(random, v6);
    }
    line += match random.below(20) {
        0 => " blackhole",
        1 => " unreachable",
        2 => " prohibit",
        3 => " nop",
        4 => return format!("{line} goto {}", priority + 1 + random.below(40)),
        5 => " table 4000",
        6 => " table main suppress_prefixlength 0",
        7 => " table main suppress_prefixlength 16",
        8 => " table 100 suppress_ifgroup 7",
        9..=11 => " table main",
        12..=14 => " table 100",
        15..=17 => " table 101",
        _ => " table 102",
    };
    line
}

fn selector(random: &mut Random, v6: bool) -> String {
    let networks: [&str; 3] =
        if v6 { ["fd01::/64", "fd00::/8", "2001:db8::/32"] } else { ["10.1.0.0/24", "10.0.0.0/8", "192.0.2.0/24"] };
    match random.below(12) {
        0 | 1 => format!(" from {}", random.pick(&networks)),
        2 => format!(" to {}", random.pick(&networks)),
        3 | 4 => format!(" fwmark {}", random.pick(&["1", "2", "7", "0x10/0x10", "0/0x1"])),
        5 => format!(" iif {}", random.pick(&["v0", "v1", "lo", "lo", "gone"])),
        6 => format!(" oif {}", random.pick(&["v1", "v2"])),
        7 => format!(" uidrange {}", random.pick(&["0-0", "1000-2000"])),
        8 => format!(" ipproto {}", random.pick(&["tcp", "udp", "17"])),
        9 => format!(" ipproto tcp dport {}", random.pick(&["80", "80-90", "443"])),
        10 => format!(" ipproto udp sport {}", random.pick(&["53", "1000-2000"])),
        _ if v6 => format!(" dsfield {}", random.pick(&["0x10", "0xb8"])),
        _ => format!(" {}", random.pick(&["tos 0x10", "tos 0x08", "dscp 0x2e", "dscp 4"])),
    }
}
