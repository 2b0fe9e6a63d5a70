//! One question, evaluated and asked of the kernel: one of the answers has to be the kernel's in every field.

use ipnet::IpNet;
use netdiag_common::forwarding::routing::Answer;
use netdiag_common::forwarding::state::{Route, RouteQuery};
use netdiag_node::host::forwarding::routes;
use nix::errno::Errno;

use crate::kernel::{self, MATCH, ask};

/// `RT_TABLE_LOCAL`, `RT_TABLE_MAIN`
const LOCAL: u32 = 255;
const MAIN: u32 = 254;

pub enum Compared {
    Same { answers: usize, refused: bool, discarded: bool },
    Differs(String),
}

pub fn compare(query: &RouteQuery) -> Compared {
    let answers = match routes(query) {
        Ok(answers) => answers,
        Err(error) => return Compared::Differs(format!("{query:?} was not evaluated: {error}")),
    };
    let (packet, matched) = (ask(query, 0), ask(query, MATCH));
    let mut complaints = Vec::new();
    for answer in &answers {
        match difference(query, answer, &packet, &matched) {
            None => {
                return Compared::Same {
                    answers: answers.len(),
                    refused: packet.is_err(),
                    discarded: answer.discarded.is_some(),
                };
            }
            Some(what) => complaints.push(format!("  not {what}: {answer:?}\n")),
        }
    }
    let shown = std::process::Command::new("sh")
        .args(["-c", "ip rule; ip -6 rule; ip -d route show table all; ip -d -6 route show table all; ip -br addr"])
        .output()
        .unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    Compared::Differs(format!(
        "{query:?}\n  kernel: {packet:?}\n  kernel's route: {matched:?}\n{}{shown}",
        complaints.concat()
    ))
}

/// The first field that differs.
fn difference(
    query: &RouteQuery,
    answer: &Answer,
    packet: &Result<kernel::Answer, Errno>,
    matched: &Result<kernel::Answer, Errno>,
) -> Option<String> {
    let packet = match packet {
        Ok(packet) => packet,
        Err(errno) if refuses(answer, *errno) => return None,
        Err(errno) => return Some(format!("refused with {errno}")),
    };
    let interface = packet.interface.unwrap_or(0);
    let route = match packet.kind {
        2..=4 => Route::Local { interface },
        _ => Route::Forward { interface, gateway: packet.gateway, source: None },
    };
    let same = match (&answer.route, &route) {
        (
            Route::Forward { interface, gateway, .. },
            Route::Forward { interface: other, gateway: other_gateway, .. },
        ) => (interface, gateway) == (other, other_gateway),
        (answer, route) => answer == route,
    };
    if !same {
        return Some(format!("{route:?}"));
    }
    // Routes of IPv6 by one next-hop object share what is cached of it per processor (`rt6i_pcpu`), and the kernel names
    // any of them.
    if query.destination.is_ipv6() && answer.why.route.as_ref().is_some_and(|route| route.object.is_some()) {
        return None;
    }
    if let (Route::Forward { source: Some(source), .. }, None) = (&answer.route, query.source)
        && packet.own != Some(*source)
    {
        return Some(format!("from {:?}", packet.own));
    }
    let (Some(found), Ok(matched)) = (&answer.why.route, matched) else { return None };
    // Before the first rule, what the table local has is in the table main.
    let one = answer.why.rules.is_empty() || (answer.why.table == Some(LOCAL) && matched.table == MAIN);
    if answer.why.table != Some(matched.table) && !one {
        return Some(format!("table {}", matched.table));
    }
    let unspecified = if query.destination.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
    let destination = IpNet::new(matched.destination.unwrap_or(unspecified), matched.destination_bits).unwrap();
    if destination != found.destination {
        return Some(format!("by {destination}"));
    }
    let fields = (matched.kind, matched.service, matched.metric);
    ((found.kind, found.service, found.metric) != fields).then(|| format!("by a route with {fields:?}"))
}

fn refuses(answer: &Answer, errno: Errno) -> bool {
    let Route::Refused { why } = &answer.route else { return false };
    let wanted = match &answer.discarded {
        Some(discard) if discard.reason == "IP_INADDRERRORS" => Errno::EHOSTUNREACH,
        Some(_) => Errno::EINVAL,
        None if why.starts_with("no route") => Errno::ENETUNREACH,
        None if why.starts_with("unreachable") => Errno::EHOSTUNREACH,
        None if why.starts_with("prohibited") => Errno::EACCES,
        None => Errno::EINVAL,
    };
    wanted == errno
}
