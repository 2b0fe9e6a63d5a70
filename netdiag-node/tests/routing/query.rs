//! Random questions, as `RTM_GETROUTE` can be asked.

use std::net::IpAddr;

use netdiag_common::forwarding::state::RouteQuery;

use crate::lab::{LINKS, index};
use crate::random::Random;

pub fn make(random: &mut Random) -> RouteQuery {
    let v6 = random.percent(45);
    let input = random.percent(45).then(|| link(random));
    let destination = if v6 {
        random.pick(&[
            "2001:db8::1",
            "2001:db8:1::1",
            "2001:db8:1::7",
            "3fff::1",
            "fd01::1",
            "fd01::77",
            "fd02::5",
            "fd09::1",
            "fd09::7",
            "fd03::1",
            "9000::1",
        ])
    } else {
        random.pick(&[
            "10.1.0.1",
            "10.1.0.77",
            "10.1.0.200",
            "10.2.0.9",
            "10.3.0.1",
            "10.9.0.1",
            "10.9.1.1",
            "10.9.1.7",
            "192.0.2.1",
            "192.0.2.7",
            "198.51.100.1",
            "10.1.0.255",
            "127.5.0.1",
            "127.0.0.1",
            "8.8.8.8",
        ])
    };
    let own: Vec<String> =
        (0..LINKS).map(|link| if v6 { format!("fd0{link}::1") } else { format!("10.{link}.0.1") }).collect();
    let source: Option<String> = match input {
        None if random.percent(50) => None,
        None => Some(own[random.below(own.len())].clone()),
        Some(_) if v6 => Some(random.pick(&["fd01::9", "fd02::1", "2001:db8::9", "fd01::1", "9000::9"]).into()),
        Some(_) => {
            let others = [
                "10.0.0.9",
                "10.1.0.9",
                "10.2.0.9",
                "10.3.0.9",
                "10.4.0.9",
                "192.0.2.9",
                "8.8.4.4",
                "10.1.0.1",
                "127.0.0.2",
                "10.1.0.255",
                "0.0.0.0",
            ];
            Some(random.pick(&others).into())
        }
    };
    let protocol = random.pick_value(&[6, 17, if v6 { 58 } else { 1 }]);
    let port = |random: &mut Random| random.pick_value(&[53_u16, 80, 85, 443, 1500, 40_000]);
    let ports = (protocol != 1 && protocol != 58).then(|| (port(random), port(random)));
    RouteQuery {
        destination: address(destination),
        source: source.map(|source| address(&source)),
        input,
        output: (input.is_none() && random.percent(20)).then(|| link(random)),
        mark: random.pick_value(&[0, 0, 1, 2, 7, 0x10]),
        service: random.pick_value(&[0, 0, 0, 0x10, 0x08, 0x04, 0xb8, 0x30]),
        protocol,
        ports,
        // Received packets are routed as the superuser's.
        uid: Some(if input.is_some() { 0 } else { random.pick_value(&[0, 1500]) }),
    }
}

pub fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn link(random: &mut Random) -> u32 {
    index(&format!("v{}", random.below(LINKS as usize)))
}
