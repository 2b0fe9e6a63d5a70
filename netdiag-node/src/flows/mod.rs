//! What connection tracking knows, at a bounded cost: changes by listening within a budget, the table by one pass when
//! somebody asks.
//!
//! # Why not listen all the time
//! As long as one socket is a member of ctnetlink's groups, the kernel allocates and fills a message for each flow that
//! begins or ends, read or not. Linux 6.18, 2 CPUs, short TCP connections through nft DNAT and two veth pairs, CPU time of
//! client, server and reader per connection (mean of 6 interleaved rounds of 5 000):
//!
//! | listener | connection | + end of its entry | together, over none |
//! |---|---|---|---|
//! | none | 22.5 µs | 0.8 µs | 1 |
//! | a socket filter drops every message | 23.7 µs | 1.6 µs | 0.92 |
//! | messages read and thrown away | 24.7 µs | 2.6 µs | 0.85 |
//!
//! So 2 µs per announcement, half of them in the packet's path: listening all the time would cost more than the 3 % that
//! netdiag allows itself for everything. A node that tracks a few hundred flows a second does not notice; one with 20 000
//! does. Therefore announcements are heard within a budget of 1 000 a second (0.2 % of a core): a quiet node is heard all
//! the time, a busy one in samples, and the answer says for how many of its seconds it listened.
//!
//! Periodic passes over the table instead (250 000 entries: 0.4 s of CPU time in the kernel, in 1 482 datagrams) would cost
//! 4 % of a core every 10 s on a node with a full table, and see no flow that lives shorter than the time between two. A
//! pass is made on request, reused for a few seconds, and counted while it is read: no entry is kept. One flow is found by
//! the kernel's filter in 65 ms of the same table.

mod changes;
mod listening;
mod rules;
mod snapshot;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use netdiag_common::observation::conntrack::Conntrack;
use netdiag_common::observation::flow::{FlowChanges, FlowQuery, FlowSnapshot, FlowTable, Flows, FoundFlows};
use netdiag_common::observation::preflight::Check;
use netdiag_common::{Gap, GapReason, Netns, Window};

use crate::attribution::{Attribution, Pod};
use crate::clock;
use crate::host::conntrack::listen::Listener;
use crate::host::conntrack::table::{self, Filter};
use crate::host::conntrack::timeout::Timeouts;
use crate::host::conntrack::{is_there, settings, usage};
use crate::host::{Host, ReadError, service_rules};

use changes::Changes;
use listening::{Listening, WAIT};
use rules::Index;
use snapshot::Counting;

/// A pass over the node's table is reused this long: several questions come within seconds.
const REUSE_FOR: Duration = Duration::from_secs(5);
/// And this many times as long as it took, so that passes take at most 5 % of a core however often somebody asks.
const REUSE_TIMES: u32 = 20;
/// Pods whose tables are listed. A node has 110 by default, a few hundred at most.
const MAX_TABLES: usize = 256;
/// Looking into all pods' namespaces takes about 0.1 ms each; what takes longer than this is not worth waiting for.
const TABLES_WITHIN: Duration = Duration::from_secs(2);

/// Listens for the life of this value, and reads on request.
pub struct FlowWatch {
    attribution: Arc<Attribution>,
    shared: Arc<Shared>,
    latest: Mutex<Option<Latest>>,
    /// The preflight's line about listening.
    pub check: Check,
}

struct Shared {
    changes: Mutex<Changes>,
    stop: AtomicBool,
    started: Instant,
}

struct Latest {
    made: Instant,
    reuse_for: Duration,
    snapshot: FlowSnapshot,
}

impl FlowWatch {
    /// Starts to listen in the node's own namespace. Never fails: without the right to listen, the table can still be read.
    pub fn start(host: &Host, attribution: Arc<Attribution>) -> Self {
        let shared =
            Arc::new(Shared { changes: Mutex::default(), stop: AtomicBool::new(false), started: Instant::now() });
        let check = match host.netns.run(|| first_try(&host.proc)) {
            Ok(detail) => passed(detail),
            Err(error) => {
                tracing::warn!(%error, "flows that begin and end are not heard");
                missed(&error)
            }
        };
        let spawned = {
            let (shared, host) = (Arc::clone(&shared), host.clone());
            std::thread::Builder::new().name("flows".to_owned()).spawn(move || {
                if let Err(error) = host.netns.enter() {
                    tracing::warn!(%error, "flows that begin and end are not heard");
                    return shared.say(&error);
                }
                let Shared { changes, stop, started } = &*shared;
                Listening { proc: &host.proc, changes, stop, started: *started }.run();
            })
        };
        if let Err(source) = spawned {
            shared.say(&ReadError::Call { step: "start a thread".to_owned(), source });
        }
        Self { attribution, shared, latest: Mutex::new(None), check }
    }

    /// The node's flows. The calling thread is in the node's namespace, and in another one afterwards: it must end with this
    /// work. None when this kernel does no connection tracking.
    pub fn of_node(&self, proc: &Path, window: Window) -> Result<Option<Flows>, ReadError> {
        let Some((entries, limit)) = usage(proc)? else { return Ok(None) };
        let snapshot = self.snapshot(proc)?;
        let mut changes = self.changes(window);
        changes.gaps.extend(unexplained(&changes, &settings(proc)?));
        let mut flows = Flows {
            tables: vec![FlowTable { netns: Netns::Host, entries, limit }],
            pods_without_entries: 0,
            pods_left_out: 0,
            changes: Some(changes),
            snapshot,
        };
        self.add_pods(proc, &mut flows);
        Ok(Some(flows))
    }

    /// The flows of one pod, in whose namespace the calling thread is.
    pub fn of_pod(&self, proc: &Path, uid: &str) -> Result<Option<Flows>, ReadError> {
        let Some((entries, limit)) = usage(proc)? else { return Ok(None) };
        let timeouts = Timeouts::new(&settings(proc)?);
        let snapshot = pass(Counting::new(&timeouts, None), |counting| counting.finish(None))?;
        Ok(Some(Flows {
            tables: vec![FlowTable { netns: Netns::Pod(uid.to_owned()), entries, limit }],
            pods_without_entries: 0,
            pods_left_out: 0,
            changes: None,
            snapshot,
        }))
    }

    /// The node's statistics with their growth in the window: costs nothing, however full the table is.
    pub fn with_growth(&self, found: Conntrack, window: Window) -> Conntrack {
        let FlowChanges { window_s, failures, .. } = self.changes(window);
        Conntrack { window_s, failures, ..found }
    }

    /// Single entries of the calling thread's namespace.
    pub fn find(&self, proc: &Path, query: &FlowQuery) -> Result<Option<FoundFlows>, ReadError> {
        if !is_there(proc)? {
            return Ok(None);
        }
        table::find(query, &Timeouts::new(&settings(proc)?)).map(Some)
    }

    fn changes(&self, window: Window) -> FlowChanges {
        let span_ns = window.seconds() * 1_000_000_000;
        let now_ns = u64::try_from(self.shared.started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.shared.lock().view(span_ns, now_ns, clock::now())
    }

    fn snapshot(&self, proc: &Path) -> Result<FlowSnapshot, ReadError> {
        // Held during the pass on purpose: whoever comes meanwhile wants its result, not one more pass.
        let mut latest = self.latest.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(latest) = latest.as_ref()
            && latest.made.elapsed() < latest.reuse_for
        {
            return Ok(latest.snapshot.clone());
        }
        let started = Instant::now();
        let snapshot = read_node(proc)?;
        let reuse_for = REUSE_FOR.max(started.elapsed() * REUSE_TIMES);
        *latest = Some(Latest { made: Instant::now(), reuse_for, snapshot: snapshot.clone() });
        Ok(snapshot)
    }

    /// Adds the tables of the pods on the node. Pods without any entry are most: the kernel tracks in a namespace only when
    /// something in it asks for it.
    fn add_pods(&self, proc: &Path, flows: &mut Flows) {
        let started = Instant::now();
        let pods = match self.attribution.pods() {
            Ok(pods) => pods,
            Err(error) => {
                flows.snapshot.limits.push(format!("the tables of pods were not looked at: {error}"));
                return;
            }
        };
        let mut tables = Vec::new();
        for pod in pods.pods.iter().filter(|pod| !pod.observed.host_network) {
            match (started.elapsed() < TABLES_WITHIN).then(|| self.pod_usage(proc, pod)) {
                Some(Ok(Some((0, _)) | None)) => flows.pods_without_entries += 1,
                Some(Ok(Some((entries, limit)))) => {
                    tables.push(FlowTable { netns: Netns::Pod(pod.observed.uid.clone()), entries, limit });
                }
                Some(Err(_)) | None => flows.pods_left_out += 1,
            }
        }
        tables.sort_by_key(|table| std::cmp::Reverse(table.entries));
        flows.pods_left_out += tables.len().saturating_sub(MAX_TABLES) as u64;
        tables.truncate(MAX_TABLES);
        flows.tables.append(&mut tables);
    }

    fn pod_usage(&self, proc: &Path, pod: &Pod) -> Result<Option<(u64, u64)>, ReadError> {
        self.attribution.open(pod)?.enter()?;
        usage(proc)
    }
}

impl Drop for FlowWatch {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
    }
}

impl Shared {
    fn say(&self, error: &ReadError) {
        self.lock().not_listening = Some(error.to_string());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Changes> {
        self.changes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One pass over the table of the node, beside its Service rules.
fn read_node(proc: &Path) -> Result<FlowSnapshot, ReadError> {
    let timeouts = Timeouts::new(&settings(proc)?);
    let mut rules_limit = None;
    let before = index(&mut rules_limit);
    let mut snapshot = pass(Counting::new(&timeouts, before.as_ref()), |counting| {
        if counting.has_outdated() {
            counting.finish(index(&mut rules_limit).as_ref())
        } else {
            counting.finish(before.as_ref())
        }
    })?;
    snapshot.limits.extend(rules_limit);
    Ok(snapshot)
}

fn pass<'a>(
    mut counting: Counting<'a>,
    finish: impl FnOnce(Counting<'a>) -> FlowSnapshot,
) -> Result<FlowSnapshot, ReadError> {
    let (at, started) = (clock::now(), Instant::now());
    let mut limits = table::pass(&mut table::open, &Filter::default(), &mut counting)?;
    let took_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    let mut snapshot = finish(counting);
    limits.append(&mut snapshot.limits);
    Ok(FlowSnapshot { at, took_ms, limits, ..snapshot })
}

/// The Service rules of the calling thread's namespace; `limit` says why there are none although there should be.
fn index(limit: &mut Option<String>) -> Option<Index> {
    match service_rules::read() {
        Ok(rules) => {
            let is_cut_off = !rules.hooked && !rules.entries.is_empty();
            *limit =
                is_cut_off.then(|| "no packet reaches the Service rules: nothing was compared with them".to_owned());
            Index::new(rules)
        }
        Err(error) => {
            *limit = Some(format!("nothing was compared with Service rules: {error}"));
            None
        }
    }
}

/// Packets were called invalid, and nobody says why.
fn unexplained(changes: &FlowChanges, settings: &BTreeMap<String, String>) -> Option<Gap> {
    let invalid = changes.failures.get("invalid")?.delta.filter(|invalid| *invalid > 0)?;
    let is_off = settings.get("nf_conntrack_log_invalid").is_some_and(|value| value == "0");
    is_off.then(|| Gap {
        what: format!("why connection tracking called {invalid} packets invalid"),
        node: None,
        reason: GapReason::NotAllowed,
        why: "net.netfilter.nf_conntrack_log_invalid is 0, and the agent changes no setting of its node".to_owned(),
        remedy:
            "set net.netfilter.nf_conntrack_log_invalid=255 on the node for a minute: the kernel's log then names the \
                 packet and the reason (with net.netfilter.nf_log.2=nfnetlink_log: NFLOG group 0)"
                .to_owned(),
    })
}

/// Whether listening works, found out by doing it once.
fn first_try(proc: &Path) -> Result<&'static str, ReadError> {
    if !is_there(proc)? {
        return Ok("this kernel does no connection tracking");
    }
    let listener = Listener::open(WAIT)?;
    listener.join()?;
    listener.leave()?;
    Ok("ctnetlink groups NEW and DESTROY, within a budget of 1000 announcements a second")
}

const CHECK: &str = "flow announcements";

fn passed(detail: &str) -> Check {
    Check { name: CHECK.to_owned(), ok: true, detail: detail.to_owned(), lost: String::new(), remedy: String::new() }
}

fn missed(error: &ReadError) -> Check {
    Check {
        name: CHECK.to_owned(),
        ok: false,
        detail: error.to_string(),
        lost: "how many tracked flows begin and end; the table itself is read all the same".to_owned(),
        remedy: "give the agent NET_ADMIN, and use a kernel with CONFIG_NF_CT_NETLINK and CONFIG_NF_CONNTRACK_EVENTS"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::counter::Counter;

    use super::*;

    #[test]
    fn invalid_packets_without_a_reason_leave_a_gap_with_its_remedy() {
        let settings = |value: &str| [("nf_conntrack_log_invalid".to_owned(), value.to_owned())].into();
        let invalid = |delta| FlowChanges {
            failures: [("invalid".to_owned(), Counter { value: 9, delta, ..Counter::default() })].into(),
            ..FlowChanges::default()
        };
        let gap = unexplained(&invalid(Some(3)), &settings("0")).unwrap();
        assert_eq!(gap.what, "why connection tracking called 3 packets invalid");
        assert!(gap.remedy.contains("nf_conntrack_log_invalid=255"));
        assert_eq!(unexplained(&invalid(Some(3)), &settings("255")), None, "the kernel's log says why");
        assert_eq!(unexplained(&invalid(Some(0)), &settings("0")), None);
    }
}
