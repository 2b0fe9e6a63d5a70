//! The routing decision of one packet, with the kernel's own answer as the second opinion.

use std::net::IpAddr;

use crate::forwarding::fact::Fact;
use crate::forwarding::machine::{Result, Run};
use crate::forwarding::packet::Origin;
use crate::forwarding::path::{Assumption, Decision};
use crate::forwarding::routing::{self, Answer, Assumed, Discard};
use crate::forwarding::state::{Route, RouteQuery};

pub(super) enum Routed {
    To(Route),
    Discarded(Discard),
}

/// `input` is the interface that the packet came in on; none for packets of this host.
pub(super) fn route(run: &mut Run<'_>, input: Option<u32>) -> Result<Routed> {
    let query = query(run, input)?;
    answer(run, &query)
}

/// As IPVS looks for the way to a real server: by its address and nothing else (`do_output_route4`,
/// `__ip_vs_route_output_v6`).
pub(super) fn route_to(run: &mut Run<'_>, destination: IpAddr) -> Result<Routed> {
    answer(run, &to(destination))
}

/// Whether this host itself would send there by this interface. Nothing is decided by that.
pub(super) fn is_behind(run: &Run<'_>, destination: IpAddr, interface: u32) -> Result<bool> {
    let ways = ways_to(run, destination)?;
    Ok(ways.iter().any(|way| matches!(way.route, Route::Forward { interface: by, .. } if by == interface)))
}

/// Whether it is an address of this host. Nothing is decided by that, either.
pub(super) fn is_own(run: &Run<'_>, destination: IpAddr) -> Result<bool> {
    let ways = ways_to(run, destination)?;
    Ok(ways.iter().all(|way| matches!(way.route, Route::Local { .. })))
}

fn ways_to(run: &Run<'_>, destination: IpAddr) -> Result<Vec<Answer>> {
    // With a source, none is chosen.
    let query = RouteQuery { source: Some(run.packet.source()), ..to(destination) };
    Ok(routing::answers(run.state, &query)?)
}

/// By the address and nothing else.
fn to(destination: IpAddr) -> RouteQuery {
    RouteQuery {
        destination,
        source: None,
        input: None,
        output: None,
        mark: 0,
        service: 0,
        protocol: 0,
        ports: None,
        uid: Some(0),
    }
}

fn answer(run: &mut Run<'_>, query: &RouteQuery) -> Result<Routed> {
    let state = run.state;
    let mut answers = routing::answers(state, query)?;
    answers.retain(|answer| fits(run, answer));
    let kernel =
        if state.routing.live && routing::is_askable(state, query)? { Some(state.route(query)?) } else { None };
    let chosen = match kernel {
        None => choose(run, answers),
        Some(kernel) => match answers.iter().position(|answer| routing::agrees(answer, kernel)) {
            // It is the kernel that knows which one of several holds.
            Some(at) => Some(answers.swap_remove(at)),
            None => {
                if let Some(answer) = answers.first() {
                    run.gaps.push(difference(query, answer, kernel));
                }
                run.decisions.push(Decision::Routed { hook: run.hook, route: kernel.clone(), why: None });
                return Ok(Routed::To(kernel.clone()));
            }
        },
    };
    let Some(answer) = chosen else { return Err(run.unknown("no route fits what was assumed before")) };
    if let Some(kind) = answer.why.route.as_ref().and_then(|route| route.encapsulation) {
        run.gaps.push(format!("the route encapsulates packets (type {kind}), which is not evaluated"));
    }
    let why = Some(Box::new(answer.why));
    run.decisions.push(Decision::Routed { hook: run.hook, route: answer.route.clone(), why });
    Ok(answer.discarded.map_or(Routed::To(answer.route), Routed::Discarded))
}

fn query(run: &mut Run<'_>, input: Option<u32>) -> Result<RouteQuery> {
    let rules = run.state.routing_rules(run.packet.protocol)?;
    let mark = match run.packet.mark.clone() {
        Fact::Known(mark) => mark,
        Fact::Unknown(_) if rules.iter().all(|rule| rule.mask == 0) => 0,
        Fact::Unknown(why) => {
            if !run.decide("no routing rule matches the packet by its mark") {
                return Err(run.unknown(format!("the route may depend on the mark, and {why}")));
            }
            0
        }
    };
    let uid = match &run.packet.socket {
        Fact::Known(Some(socket)) if input.is_none() => socket.uid.known().copied(),
        // Received packets, and answers of the kernel itself, are nobody's.
        Fact::Known(None) if input.is_none() && run.packet.origin != Origin::Sent => Some(0),
        _ => None,
    };
    Ok(RouteQuery {
        destination: run.packet.destination(),
        source: Some(run.packet.source()),
        input,
        output: None,
        mark,
        service: run.packet.service() & 0xfc,
        protocol: run.packet.transport().map_or(0, |transport| transport.protocol),
        ports: run.packet.ports(),
        uid,
    })
}

/// Whether nothing was assumed before that the answer contradicts.
fn fits(run: &Run<'_>, answer: &Answer) -> bool {
    answer.assumptions.iter().all(|assumed| match assumed {
        Assumed::Chance { .. } => true,
        Assumed::Unknown { what, holds } => run.assumptions.iter().all(|before| match before {
            Assumption::Unknown { what: other, holds: held, .. } => other != what || held == holds,
            Assumption::Chance { .. } => true,
        }),
    })
}

/// One of the answers, with what it rests on.
fn choose(run: &mut Run<'_>, mut answers: Vec<Answer>) -> Option<Answer> {
    let alternatives = u32::try_from(answers.len()).ok().filter(|count| *count > 0)?;
    let taken = if alternatives == 1 { 0 } else { run.choices.choose(alternatives) };
    let answer = answers.swap_remove(taken as usize);
    for assumed in &answer.assumptions {
        let at = run.place();
        run.assumptions.push(match assumed.clone() {
            Assumed::Chance { what, value, chance } => Assumption::Chance { at, what, values: vec![value], chance },
            Assumed::Unknown { what, holds } => Assumption::Unknown { at, what, holds },
        });
    }
    Some(answer)
}

fn difference(query: &RouteQuery, answer: &Answer, kernel: &Route) -> String {
    if let Route::Unfollowed { why } = &answer.route {
        return format!("why {} is routed as it is was not evaluated: {why}", query.destination);
    }
    format!(
        "{} is routed to {} by the kernel, and to {} by its rules and tables as they were read",
        query.destination,
        words(kernel),
        words(&answer.route)
    )
}

fn words(route: &Route) -> String {
    match route {
        Route::Local { .. } => "this host".into(),
        Route::Forward { interface, gateway: Some(gateway), .. } => format!("{gateway} at interface {interface}"),
        Route::Forward { interface, gateway: None, .. } => format!("interface {interface}"),
        Route::Refused { why } => format!("nowhere ({why})"),
        Route::Unfollowed { why } => format!("what is not followed ({why})"),
    }
}
