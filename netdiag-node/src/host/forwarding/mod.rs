//! Evaluates a packet against the calling thread's network namespace: steps the evaluator, reads what it misses, and
//! steps again, so that only what is on the packet's way is read.

mod bridge;
mod delivery;
mod fate;
mod filters;
mod ipset;
mod next_hop;
#[cfg(test)]
pub(crate) mod open;
mod queue;
mod recent;
mod route;
mod routing;
mod socket;
mod tracking;
mod unevaluated;
mod without;

use std::sync::Arc;

use netdiag_common::forwarding::routing::{self as evaluated, Answer};
use netdiag_common::forwarding::set::{Element, Elements, Set};
use netdiag_common::forwarding::state::{Hooks, RouteQuery, SetKey};
use netdiag_common::forwarding::{Key, Outcome, Packet, RuleState, Step, Without, step_without};
use netdiag_common::observation::fate::{FateRule, LeftOut};

pub use self::fate::fate;
pub(crate) use self::fate::interfaces;
use self::filters::Filters;
use self::route::Routes;
use self::routing::Routing;
pub use self::unevaluated::{Bypassed, Surroundings, bypassed};
use super::{ReadError, ipvs, trace};

/// Times that the rules may change under a reading before it is given up. Writers such as kube-proxy commit in bursts of
/// a few.
const MAX_ATTEMPTS: u32 = 4;

/// Steps of one evaluation. Each reads everything that the paths so far run into; 16 jumps in each of five hooks, with a
/// set and an element between them, are fewer.
const MAX_STEPS: u32 = 400;

/// Things read for one packet. More than this is no question about one packet.
const MAX_READ: usize = 20_000;

/// An answer, and what of the namespace it is about.
#[derive(Debug, Clone)]
pub struct Evaluation {
    pub outcome: Outcome,
    pub state: RuleState,
    /// Rules of legacy tables on the paths, and of those left out, in words. Tables are read whole, so these come with them.
    pub legacy_rules: Vec<FateRule>,
    /// One for each rule that was taken not to be there.
    pub left_out: Vec<LeftOut>,
}

/// Reads lazily, and again when the rules changed meanwhile.
pub fn evaluate(packet: &Packet) -> Result<Evaluation, ReadError> {
    evaluate_without(packet, &Without::new())
}

/// The same as if these rules were not there. They stay where they are.
pub fn evaluate_without(packet: &Packet, without: &Without) -> Result<Evaluation, ReadError> {
    let mut tables = Filters::open()?;
    let mut routes = Routes::open()?;
    let mut routing = Routing::open()?;
    for _ in 0..MAX_ATTEMPTS {
        let before = tables.nftables.generation()?;
        let mut state = RuleState { generation: before, ..RuleState::default() };
        state.routing.live = true;
        let told = without::told(without, &mut state, packet, (&mut tables, &mut routes, &mut routing));
        // An error while the rules changed may be that of a half-seen ruleset.
        if tables.nftables.generation()? == before {
            let (outcome, left_out) = told?;
            let legacy_rules = tables.legacy_rules(&fate::rules_of(&outcome, &left_out));
            return Ok(Evaluation { outcome, state, legacy_rules, left_out });
        }
    }
    Err(malformed(format!("the rules changed during each of {MAX_ATTEMPTS} readings")))
}

/// Evaluates a packet with what has been read, and reads the rest into `state`.
fn complete(
    without: &Without,
    state: &mut RuleState,
    packet: &Packet,
    tables: &mut Filters,
    routes: &mut Routes,
    routing: &mut Routing,
) -> Result<Outcome, ReadError> {
    let mut read = 0;
    for _ in 0..MAX_STEPS {
        let keys = match step_without(state, packet, without) {
            Step::Done(outcome) => return Ok(outcome),
            Step::Missing { keys } => keys,
        };
        read += keys.len();
        if read > MAX_READ {
            return Err(malformed(format!("more than {MAX_READ} chains, elements and routes for one packet")));
        }
        for key in keys {
            fill(state, key, tables, routes, routing)?;
        }
    }
    Err(malformed(format!("more than {MAX_STEPS} steps for one packet")))
}

/// Every way in which the namespace may route such a packet, evaluated without the kernel's own answer.
pub fn routes(query: &RouteQuery) -> Result<Vec<Answer>, ReadError> {
    let (mut routes, mut routing) = (Routes::open()?, Routing::open()?);
    let mut state = RuleState::default();
    for _ in 0..MAX_STEPS {
        match evaluated::answers(&state, query) {
            Ok(answers) => return Ok(answers),
            Err(key) => fill_routing(&mut state, key, &mut routes, &mut routing)?,
        }
    }
    Err(malformed(format!("more than {MAX_STEPS} steps for one route")))
}

fn malformed(why: String) -> ReadError {
    ReadError::Malformed { what: "the packet filter".into(), why }
}

fn fill(
    state: &mut RuleState,
    key: Key,
    tables: &mut Filters,
    routes: &mut Routes,
    routing: &mut Routing,
) -> Result<(), ReadError> {
    match key {
        Key::Hooks => {
            let (mut chains, foreign) = tables.base_chains()?;
            // An armed trace decides nothing, and would split every path in two at its limit.
            chains.retain(|chain| &*chain.key.table != trace::TABLE);
            state.hooks = Some(Hooks { chains, foreign, balanced: ipvs::has_servers()? });
        }
        Key::Chain(key) => {
            let chain = tables.chain(&key)?;
            state.chains.0.insert(key, chain);
        }
        Key::Set(key) => {
            let set = tables.nftables.set(&key)?;
            state.sets.0.insert(key, set);
        }
        Key::Element { set, key } => {
            let element = tables.nftables.element(&set, &key)?;
            keep(state, &set, key, element);
        }
        Key::CatchAll { set } => {
            let element = tables.nftables.catch_all(&set)?;
            keep(state, &set, Vec::new(), element);
        }
        Key::Queues => state.queues = Some(queue::listened()?),
        Key::Flowtables => state.flowtables = Some(tables.nftables.flowtables()?),
        Key::Tracking(protocol) => {
            let tracked = tracking::is_tracked(protocol, state, tables)?;
            state.tracking.0.insert(protocol, tracked);
        }
        Key::TrackingSettings => state.tracking_settings = Some(tracking::settings()?),
        Key::Route(query) => {
            let route = routes.route(&query)?;
            state.routes.0.insert(query, route);
        }
        Key::AddressType(query) => {
            let kind = routes.address_type(&query)?;
            state.address_types.0.insert(query, kind);
        }
        Key::Fib(query) => {
            let entry = routes.fib(&query)?;
            state.fib.0.insert(query, entry);
        }
        Key::IpSet { index } => {
            state.ip_sets.0.insert(index, ipset::set(index)?);
        }
        Key::IpSetElement(query) => {
            let holds = ipset::has(&query)?;
            state.ip_set_elements.0.insert(query, holds);
        }
        Key::Sockets(query) => {
            let found = socket::found(&query);
            state.sockets.0.insert(query, found);
        }
        Key::Recent { list } => {
            let found = recent::found(&list);
            state.recent.0.insert(list, found);
        }
        Key::VirtualServer(key) => {
            let server = ipvs::virtual_server(key)?;
            state.balancer.servers.0.insert(key, server);
        }
        Key::Bridge { index } => {
            let bridge = bridge::bridge(index)?;
            state.bridges.0.insert(index, bridge);
        }
        Key::VirtualSettings => state.balancer.settings = Some(ipvs::settings()?),
        key => fill_routing(state, key, routes, routing)?,
    }
    Ok(())
}

/// Rules, routes and interfaces.
fn fill_routing(state: &mut RuleState, key: Key, routes: &mut Routes, routing: &mut Routing) -> Result<(), ReadError> {
    match key {
        Key::Interface { index } => {
            let interface = routes.interface(index)?;
            state.interfaces.0.insert(index, interface);
        }
        Key::Addresses => state.addresses = Some(routes.all_addresses()?),
        key => routing.fill(&mut state.routing, key)?,
    }
    Ok(())
}

/// Keeps what a single lookup found; the element for all other keys by the empty key.
fn keep(state: &mut RuleState, set: &SetKey, key: Vec<u8>, element: Option<Arc<Element>>) {
    if let Some(Some(Set { elements: Elements::Asked(found), .. })) = state.sets.0.get_mut(set) {
        found.0.insert(key, element);
    }
}
