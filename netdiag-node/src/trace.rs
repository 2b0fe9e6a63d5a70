//! Armed traces of this agent: whether any is allowed, within which limits, and how many at one time.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netdiag_common::GapReason;
use netdiag_common::forwarding::conntrack::Direction;
use netdiag_common::observation::Owner;
use netdiag_common::observation::trace::{
    MAX_TRACE_ALTERNATIVES, MAX_TRACE_PACKETS, MAX_TRACE_SECONDS, TraceRecord, TraceRequest, TraceTuple,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::gap::{Failure, OtherFailure};
use crate::host::{ReadError, trace};
use crate::netns::NetnsHandle;

/// Traces armed at one time on a node. Each adds two to four chains to one namespace.
const MAX_ARMED: usize = 16;

/// Who asked is a name, and ends up in a log.
const MAX_ASKED_BY: usize = 128;

/// Where all requests meet.
pub(crate) struct Traces {
    /// The operator's word: `--allow-trace`.
    allowed: bool,
    places: Arc<Semaphore>,
    /// Namespaces with an armed trace, by inode.
    armed: Mutex<BTreeSet<u64>>,
}

/// One namespace's only place.
struct Place<'a> {
    traces: &'a Traces,
    inode: u64,
}

impl Traces {
    pub(crate) fn new(allowed: bool) -> Self {
        Self { allowed, places: Arc::new(Semaphore::new(MAX_ARMED)), armed: Mutex::default() }
    }

    /// A place on the node for a request that may be made at all.
    pub(crate) fn admit(&self, request: &TraceRequest) -> Result<OwnedSemaphorePermit, Failure> {
        if !self.allowed {
            return Err(refused(
                "this agent may not trace: a trace adds rules to a namespace's packet filter",
                "start the agents with --allow-trace (in the DaemonSet: NETDIAG_ALLOW_TRACE=true)",
            ));
        }
        check(request)?;
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| {
            let why = format!("{MAX_ARMED} traces are armed on this node, which is the limit");
            refused(&why, "ask again when one of them has ended")
        })
    }

    /// Traces in the calling thread's namespace until `until` or `is_over`. `owner` as for a fate.
    pub(crate) fn run(
        &self,
        netns: &NetnsHandle,
        request: &TraceRequest,
        until: Instant,
        is_over: &dyn Fn() -> bool,
        owner: &mut dyn FnMut(Option<i32>) -> Option<Owner>,
    ) -> Result<TraceRecord, Failure> {
        let _place = self.place(netns.inode)?;
        let armed = match trace::arm(request) {
            Err(ReadError::Call { source, .. }) if source.raw_os_error() == Some(libc::EEXIST) => {
                return Err(armed_already());
            }
            armed => armed?,
        };
        let (tuple, seconds, packets) = (request.tuple, request.seconds, request.packets);
        let asked_by: String = request.asked_by.iter().flat_map(|name| name.chars()).take(MAX_ASKED_BY).collect();
        tracing::info!(%tuple, netns = netns.inode, seconds, packets, ?asked_by, "trace armed");
        let until = until.min(Instant::now() + Duration::from_secs(seconds.into()));
        let record = armed.collect(until, is_over, owner)?;
        let (traced, matched) = (record.packets.len(), record.matched);
        tracing::info!(%tuple, netns = netns.inode, traced, ?matched, lost = record.lost, "trace disarmed");
        Ok(record)
    }

    fn place(&self, inode: u64) -> Result<Place<'_>, Failure> {
        let mut armed = self.armed.lock().unwrap_or_else(PoisonError::into_inner);
        if armed.insert(inode) { Ok(Place { traces: self, inode }) } else { Err(armed_already()) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.traces.armed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.inode);
    }
}

fn armed_already() -> Failure {
    refused("another trace is armed in this namespace", "ask again when it has ended, after 30 seconds at most")
}

fn check(request: &TraceRequest) -> Result<(), Failure> {
    let limits = "ask within the limits";
    if !(1..=MAX_TRACE_SECONDS).contains(&request.seconds) || !(1..=MAX_TRACE_PACKETS).contains(&request.packets) {
        let why = format!(
            "a trace of {} seconds and {} packets was asked, an agent traces for 1 to {MAX_TRACE_SECONDS} seconds and \
             1 to {MAX_TRACE_PACKETS} packets",
            request.seconds, request.packets
        );
        return Err(refused(&why, limits));
    }
    // IFNAMSIZ, of which the last byte is a zero.
    if request.interface.as_ref().is_some_and(|name| name.is_empty() || name.len() > 15) {
        return Err(refused("an interface's name has 1 to 15 bytes", limits));
    }
    let is_v4 = request.tuple.source.is_ipv4();
    if request.alternatives.len() > MAX_TRACE_ALTERNATIVES {
        let why = format!(
            "{} other tuples were asked for, an agent traces {MAX_TRACE_ALTERNATIVES} at most",
            request.alternatives.len()
        );
        return Err(refused(&why, limits));
    }
    let directions = [Direction::Original, Direction::Reply];
    for tuple in directions.into_iter().flat_map(|direction| request.tuples(direction)) {
        check_tuple(&tuple, is_v4).map_err(|why| refused(&format!("{tuple}: {why}"), limits))?;
    }
    Ok(())
}

fn check_tuple(tuple: &TraceTuple, is_v4: bool) -> Result<(), &'static str> {
    use netdiag_common::observation::Protocol;
    if tuple.source.is_ipv4() != is_v4 || tuple.destination.is_ipv4() != is_v4 {
        return Err("its addresses are of two families");
    }
    let has_ports = tuple.source_port.is_some() || tuple.destination_port.is_some();
    if has_ports && matches!(tuple.protocol, Protocol::Icmp | Protocol::Icmpv6) {
        return Err("ICMP has no ports");
    }
    Ok(())
}

fn refused(why: &str, remedy: &str) -> Failure {
    Failure::Other(OtherFailure { reason: GapReason::NotAllowed, why: why.to_owned(), remedy: remedy.to_owned() })
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::Protocol;
    use netdiag_common::observation::trace::TraceAlternative;

    use super::*;

    fn request() -> TraceRequest {
        let tuple = TraceTuple {
            protocol: Protocol::Udp,
            source: "10.0.0.1".parse().unwrap(),
            destination: "10.0.0.2".parse().unwrap(),
            source_port: None,
            destination_port: Some(53),
        };
        TraceRequest {
            tuple,
            reply: None,
            alternatives: Vec::new(),
            interface: None,
            seconds: 1,
            packets: 1,
            asked_by: None,
        }
    }

    fn why(traces: &Traces, request: &TraceRequest) -> String {
        traces.admit(request).unwrap_err().to_string()
    }

    #[test]
    fn nothing_is_traced_unless_allowed() {
        let Failure::Other(refused) = Traces::new(false).admit(&request()).unwrap_err() else { panic!() };
        assert!(refused.remedy.contains("--allow-trace"), "{}", refused.remedy);
        assert!(Traces::new(true).admit(&request()).is_ok());
    }

    #[test]
    fn what_is_over_a_limit_is_refused() {
        let traces = Traces::new(true);
        assert!(why(&traces, &TraceRequest { seconds: 31, ..request() }).contains("31 seconds"));
        assert!(why(&traces, &TraceRequest { packets: 0, ..request() }).contains("0 packets"));
        assert!(why(&traces, &TraceRequest { interface: Some("x".repeat(16)), ..request() }).contains("15 bytes"));
        let mixed = TraceTuple { destination: "fd00::1".parse().unwrap(), ..request().tuple };
        assert!(why(&traces, &TraceRequest { tuple: mixed, ..request() }).contains("two families"));
        assert!(why(&traces, &TraceRequest { reply: Some(mixed), ..request() }).contains("two families"));
        let alternatives = vec![TraceAlternative { tuple: request().tuple, reply: Some(mixed) }];
        assert!(
            why(&traces, &TraceRequest { alternatives: alternatives.clone(), ..request() }).contains("two families")
        );
        let alternatives = alternatives.repeat(MAX_TRACE_ALTERNATIVES + 1);
        assert!(why(&traces, &TraceRequest { alternatives, ..request() }).contains("17 other tuples"));
        let echo = TraceTuple { protocol: Protocol::Icmp, ..request().tuple };
        assert!(why(&traces, &TraceRequest { tuple: echo, ..request() }).contains("no ports"));
    }

    #[test]
    fn places_come_back() {
        let traces = Traces::new(true);
        let held: Vec<_> = (0..MAX_ARMED).map(|_| traces.admit(&request()).unwrap()).collect();
        assert!(why(&traces, &request()).contains("16 traces"));
        drop(held);
        assert!(traces.admit(&request()).is_ok());
        let place = traces.place(7).unwrap();
        assert!(traces.place(7).is_err());
        assert!(traces.place(8).is_ok());
        drop(place);
        assert!(traces.place(7).is_ok());
    }
}
