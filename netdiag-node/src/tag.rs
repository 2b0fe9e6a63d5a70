//! Tags of this agent: which are armed, within which limits, and what became of their packets.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use netdiag_common::GapReason;
use netdiag_common::observation::tag::{MAX_TAG_ALTERNATIVES, MAX_TAG_SECONDS, TagRequest, TagTuple, Tagged};
use netdiag_common::observation::{Owner, Protocol};
use netdiag_common::record::tag::TAGS;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::attribution::Attribution;
use crate::clock;
use crate::gap::{Failure, OtherFailure};
use crate::host::{Host, ReadError, forwarding};
use crate::kernel::KernelTags;
use crate::kernel::tag::{ArmError, Caught};
use crate::owners::Owners;

/// How often the ring is read while a tag is armed.
const READ_EVERY: Duration = Duration::from_millis(20);

/// Who asked is a name, and ends up in a log.
const MAX_ASKED_BY: usize = 128;

/// Where all requests meet.
pub(crate) struct Tags {
    owners: Arc<Owners>,
    places: Arc<Semaphore>,
    /// None until the first tag is armed.
    kernel: Mutex<Option<KernelTags>>,
    /// By number. Apart, because loading the programs takes a second.
    armed: Mutex<BTreeMap<usize, TagTuple>>,
}

/// A tag that is armed until this is dropped.
struct Armed<'a> {
    tags: &'a Tags,
    number: usize,
}

impl Tags {
    pub(crate) fn new(owners: Arc<Owners>) -> Self {
        let places = Arc::new(Semaphore::new(TAGS as usize));
        Self { owners, places, kernel: Mutex::default(), armed: Mutex::default() }
    }

    /// What is followed now.
    pub(crate) fn armed(&self) -> Vec<TagTuple> {
        self.armed.lock().unwrap_or_else(PoisonError::into_inner).values().copied().collect()
    }

    /// A place on the node for a request that may be made at all.
    pub(crate) fn admit(&self, request: &TagRequest) -> Result<OwnedSemaphorePermit, Failure> {
        check(request)?;
        Arc::clone(&self.places).try_acquire_owned().map_err(|_| full())
    }

    /// Follows the packets until `until`, the request's own time, or `is_over`. Blocks as long.
    pub(crate) fn run(
        &self,
        host: &Host,
        attribution: &Attribution,
        request: &TagRequest,
        until: Instant,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Tagged, Failure> {
        let armed = self.arm(request)?;
        let since = clock::now();
        let (tuple, seconds) = (request.tuple, request.seconds);
        let asked_by: String = request.asked_by.iter().flat_map(|name| name.chars()).take(MAX_ASKED_BY).collect();
        tracing::info!(%tuple, others = request.alternatives.len(), seconds, ?asked_by, "tag armed");
        let until = until.min(Instant::now() + Duration::from_secs(seconds.into()));
        while Instant::now() < until && !is_over() {
            std::thread::sleep(READ_EVERY.min(until.saturating_duration_since(Instant::now())));
            if let Some(kernel) = self.kernel().as_mut() {
                kernel.drain();
            }
        }
        let caught = armed.disarm();
        let disarmed = clock::now();
        // A pod of the last seconds is not known yet; what is known stays when pods cannot be seen.
        if let Err(error) = self.owners.refresh() {
            tracing::debug!(%error, "pods not seen after a tag");
        }
        let mut tagged = self.tell(caught, (since, disarmed));
        name_interfaces(&mut tagged, host, attribution);
        let (kept, lost) = (tagged.accounts.kept, tagged.accounts.lost());
        tracing::info!(%tuple, kept, lost, "tag disarmed");
        Ok(tagged)
    }

    fn arm(&self, request: &TagRequest) -> Result<Armed<'_>, Failure> {
        let mut kernel = self.kernel();
        let loaded = match kernel.as_mut() {
            Some(loaded) => loaded,
            None => kernel.insert(KernelTags::load().map_err(|error| Failure::from(&error))?),
        };
        let number = loaded.arm(request).map_err(|error| match error {
            ArmError::Full => full(),
            ArmError::Taken(_) => refused(&error.to_string(), "ask again when it has ended, after 30 seconds at most"),
            ArmError::Kernel(error) => Failure::from(&error),
        })?;
        self.armed.lock().unwrap_or_else(PoisonError::into_inner).insert(number, request.tuple);
        Ok(Armed { tags: self, number })
    }

    fn tell(&self, caught: Caught, times: (Timestamp, Timestamp)) -> Tagged {
        let kernel = self.kernel();
        let loaded = kernel.as_ref().expect("what was caught was armed, and what was loaded stays");
        loaded.tell(caught, times, &|number| self.owners.of(number))
    }

    fn kernel(&self) -> MutexGuard<'_, Option<KernelTags>> {
        self.kernel.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Armed<'_> {
    fn disarm(self) -> Caught {
        self.end().expect("nobody else disarms it")
    }

    fn end(&self) -> Option<Caught> {
        self.tags.armed.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number)?;
        self.tags.kernel().as_mut()?.disarm(self.number)
    }
}

impl Drop for Armed<'_> {
    fn drop(&mut self) {
        self.end();
    }
}

/// Names what has an index. A namespace that is gone keeps its numbers.
fn name_interfaces(tagged: &mut Tagged, host: &Host, attribution: &Attribution) {
    let mut indexes: BTreeMap<Owner, BTreeSet<u32>> = BTreeMap::new();
    for event in tagged.events.iter().filter(|event| event.ifindex != 0) {
        indexes.entry(event.netns.clone()).or_default().insert(event.ifindex);
    }
    for (owner, indexes) in indexes {
        let names = match names_in(&owner, &indexes, host, attribution) {
            Ok(names) => names,
            Err(error) => {
                tracing::debug!(?owner, %error, "interfaces of a tag not named");
                continue;
            }
        };
        for event in tagged.events.iter_mut().filter(|event| event.netns == owner) {
            event.interface = names.get(&event.ifindex).cloned();
        }
    }
}

fn names_in(
    owner: &Owner,
    indexes: &BTreeSet<u32>,
    host: &Host,
    attribution: &Attribution,
) -> Result<BTreeMap<u32, String>, ReadError> {
    let netns = match owner {
        Owner::Host => host.netns.clone(),
        Owner::Pod { uid } => match attribution.find(uid)? {
            Some(pod) => attribution.open(&pod)?,
            None => return Err(ReadError::Gone { what: format!("pod {uid}") }),
        },
        Owner::Unknown { .. } => return Ok(BTreeMap::new()),
    };
    let found = netns.run(|| forwarding::interfaces(indexes, &mut |_| None))?;
    Ok(found.into_iter().map(|interface| (interface.index, interface.name)).collect())
}

fn check(request: &TagRequest) -> Result<(), Failure> {
    let limits = "ask within the limits";
    if !(1..=MAX_TAG_SECONDS).contains(&request.seconds) {
        let why = format!(
            "a tag of {} seconds was asked, an agent follows one for 1 to {MAX_TAG_SECONDS} seconds",
            request.seconds
        );
        return Err(refused(&why, limits));
    }
    let others = request.alternatives.len();
    if others > MAX_TAG_ALTERNATIVES {
        let why = format!("{others} other tuples were asked for, an agent follows {MAX_TAG_ALTERNATIVES} at most");
        return Err(refused(&why, limits));
    }
    let is_v4 = request.tuple.destination.is_ipv4();
    for tuple in request.tuples() {
        check_tuple(tuple, is_v4).map_err(|why| refused(&format!("{tuple}: {why}"), limits))?;
    }
    Ok(())
}

fn check_tuple(tuple: &TagTuple, is_v4: bool) -> Result<(), &'static str> {
    let is_given = |port: Option<u16>| port.is_some_and(|port| port != 0);
    if [tuple.source, Some(tuple.destination)].into_iter().flatten().any(|address| address.is_ipv4() != is_v4) {
        return Err("its addresses are of two families");
    }
    match tuple.protocol {
        Protocol::Ipip => return Err("IPIP carries packets of other connections, and has none of its own"),
        Protocol::Icmp | Protocol::Icmpv6 => {
            if tuple.source.is_none() || !is_given(tuple.source_port) || tuple.destination_port.is_some() {
                return Err("of ICMP one echo is followed, by its source and its identifier in place of a source port");
            }
        }
        Protocol::Tcp | Protocol::Udp | Protocol::Sctp => {
            if !is_given(tuple.destination_port) {
                return Err("it has no destination port");
            }
            if tuple.source.is_some() != is_given(tuple.source_port) {
                return Err("it needs a source with its port, or neither");
            }
            if tuple.source.is_none() && tuple.protocol == Protocol::Sctp {
                return Err("of SCTP nothing tells whose a packet is when its source is translated");
            }
        }
    }
    if tuple.source.is_some_and(is_any) || is_any(tuple.destination) {
        return Err("an unspecified address is nobody's");
    }
    Ok(())
}

fn is_any(address: IpAddr) -> bool {
    address.is_unspecified()
}

fn full() -> Failure {
    refused(&ArmError::Full.to_string(), "ask again when one of them has ended")
}

fn refused(why: &str, remedy: &str) -> Failure {
    Failure::Other(OtherFailure { reason: GapReason::NotAllowed, why: why.to_owned(), remedy: remedy.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> TagRequest {
        let tuple = TagTuple {
            protocol: Protocol::Tcp,
            source: Some("10.0.0.1".parse().unwrap()),
            source_port: Some(40_000),
            destination: "10.0.0.2".parse().unwrap(),
            destination_port: Some(80),
        };
        TagRequest { tuple, alternatives: Vec::new(), seconds: 1, asked_by: None }
    }

    fn why(request: &TagRequest) -> String {
        check(request).unwrap_err().to_string()
    }

    #[test]
    fn what_is_over_a_limit_is_refused() {
        assert!(check(&request()).is_ok());
        assert!(why(&TagRequest { seconds: 31, ..request() }).contains("31 seconds"));
        assert!(why(&TagRequest { seconds: 0, ..request() }).contains("0 seconds"));
        let alternatives = vec![request().tuple; MAX_TAG_ALTERNATIVES + 1];
        assert!(why(&TagRequest { alternatives, ..request() }).contains("17 other tuples"));
    }

    #[test]
    fn a_tuple_must_tell_its_packets_from_others() {
        let of = |change: &dyn Fn(&mut TagTuple)| {
            let mut changed = request();
            change(&mut changed.tuple);
            changed
        };
        assert!(why(&of(&|tuple| tuple.source_port = None)).contains("neither"));
        assert!(why(&of(&|tuple| tuple.source = None)).contains("neither"));
        assert!(why(&of(&|tuple| tuple.source_port = Some(0))).contains("neither"));
        assert!(why(&of(&|tuple| tuple.destination_port = None)).contains("no destination port"));
        assert!(why(&of(&|tuple| tuple.destination = "fd00::1".parse().unwrap())).contains("two families"));
        assert!(why(&of(&|tuple| tuple.destination = "0.0.0.0".parse().unwrap())).contains("nobody's"));
        assert!(why(&of(&|tuple| tuple.protocol = Protocol::Icmp)).contains("identifier"));
        let anywhere = of(&|tuple| (tuple.source, tuple.source_port) = (None, None));
        assert!(check(&anywhere).is_ok());
        let mixed = TagTuple { destination: "fd00::1".parse().unwrap(), ..anywhere.tuple };
        assert!(why(&TagRequest { alternatives: vec![mixed], ..request() }).contains("two families"));
    }
}
