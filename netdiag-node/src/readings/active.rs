//! Needs that do more than look: single probes, series of them, armed traces, tags that follow packets.

use std::sync::Arc;
use std::time::Duration;

use netdiag_common::observation::Observation;
use netdiag_common::observation::probe::ProbeRequest;
use netdiag_common::observation::series::dns::DnsAsking;
use netdiag_common::observation::series::{Probe, SeriesRequest};
use netdiag_common::observation::tag::TagRequest;
use netdiag_common::observation::trace::TraceRequest;
use netdiag_common::{Need, Netns};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Instant, timeout_at};
use tokio_util::sync::CancellationToken;

use super::job::{Job, find};
use super::{Readings, late};
use crate::attribution::enter_cgroup_root;
use crate::gap::Failure;
use crate::host::ReadError;
use crate::host::forwarding::{self, Bypassed};
use crate::probe;
use crate::probe::series::{Group, Joins, Place};
use crate::reader::on_thread;

/// How long before its deadline a series ends: connections say goodbye, and the result has to be put together and sent. Of
/// shorter deadlines it is a third.
const SERIES_MARGIN: Duration = Duration::from_secs(1);
/// How long before its deadline a trace or a tag ends: its packets have to be put together and sent.
const TRACE_MARGIN: Duration = Duration::from_millis(500);
/// Names end up in a log.
const MAX_LOGGED: usize = 128;

impl Readings {
    pub(super) async fn probe(&self, need: &Need, request: &ProbeRequest) -> Result<Option<Observation>, Failure> {
        let _place = self.probes.acquire().await.expect("the semaphore is never closed");
        let netns = match &need.netns {
            Netns::Host => self.host.netns.clone(),
            Netns::Pod(_) => self.with_job(need, Job::open).await?,
        };
        Ok(Some(Observation::Probe(probe::run(&netns, request).await?)))
    }

    /// Ends early enough to tell what was seen before `deadline`, and with its request when nobody waits any more.
    pub(super) async fn series(
        &self,
        need: &Need,
        request: &SeriesRequest,
        deadline: Instant,
        budget: Duration,
    ) -> Result<Option<Observation>, Failure> {
        let (probe, joins) = (request.probe.clone(), self.joins);
        let place = timeout_at(deadline, self.with_job(need, move |job| job.place(&probe, joins)));
        let place = place.await.map_err(|_| late(budget))??;
        let (kind, count, netns) = (request.probe.name(), request.count, place.netns.inode);
        let asked_by = logged(request.asked_by.as_deref().unwrap_or_default());
        let to = logged(&request.probe.target());
        tracing::info!(kind, ?to, count, netns, ?asked_by, "series of probes");
        let margin = SERIES_MARGIN.min(budget / 3);
        let until = deadline.into_std().checked_sub(margin).unwrap_or_else(std::time::Instant::now);
        let result = timeout_at(deadline, self.engine.run(place, request, until)).await;
        let mut result = result.map_err(|_| late(budget))??;
        if let Netns::Pod(uid) = &need.netns
            && result.failed > 0
            && self.has_ended(need).await
        {
            result.unseen.push(format!(
                "pod {uid} ended while the series ran: what failed says nothing about the network; ask from the pod that \
                 took its place"
            ));
        }
        Ok(Some(Observation::Series(result)))
    }

    pub(super) async fn trace(
        &self,
        need: &Need,
        request: &TraceRequest,
        deadline: Instant,
        budget: Duration,
    ) -> Result<Option<Observation>, Failure> {
        let place = self.traces.admit(request)?;
        let job = self.job(need);
        let (traces, request) = (Arc::clone(&self.traces), request.clone());
        let record = attend(place, deadline, budget, move |until, is_over| {
            let pod = job.pod()?;
            let netns = job.enter(pod.as_ref())?;
            let mut beyond = job.beyond();
            let owner = &mut |number| beyond.owner(number);
            traces.run(&netns, &request, until, is_over, owner)
        });
        Ok(Some(Observation::Trace(record.await?)))
    }

    /// Follows the packets of one connection.
    pub(super) async fn tagged(
        &self,
        request: &TagRequest,
        deadline: Instant,
        budget: Duration,
    ) -> Result<Option<Observation>, Failure> {
        let place = self.tags.admit(request)?;
        let (tags, host, attribution) = (Arc::clone(&self.tags), self.host.clone(), Arc::clone(&self.attribution));
        let request = request.clone();
        let tagged = attend(place, deadline, budget, move |until, is_over| {
            tags.run(&host, &attribution, &request, until, is_over)
        });
        Ok(Some(Observation::Tagged(tagged.await?)))
    }

    /// Whether the namespace that was asked about is no pod's any more.
    async fn has_ended(&self, need: &Need) -> bool {
        let opened = self.with_job(need, Job::open).await;
        matches!(opened, Err(Failure::NoSuchPod { .. } | Failure::Read(ReadError::Gone { .. })))
    }

    /// Runs `work` on a reader's thread.
    async fn with_job<T: Send + 'static>(
        &self,
        need: &Need,
        work: impl FnOnce(&Job) -> Result<T, Failure> + Send + 'static,
    ) -> Result<T, Failure> {
        let place = Arc::clone(&self.readers).acquire_owned().await.expect("the semaphore is never closed");
        let job = self.job(need);
        on_thread(place, move || work(&job))?.await.map_err(|_| Failure::Panicked)?
    }
}

impl Job {
    /// The namespace that is asked about, without entering it.
    fn open(&self) -> Result<crate::netns::NetnsHandle, Failure> {
        match &self.need.netns {
            Netns::Host => Ok(self.host.netns.clone()),
            Netns::Pod(uid) => Ok(self.attribution.open(&find(&self.attribution, uid, &self.need.node)?)?),
        }
    }

    /// For series. This thread does nothing else.
    fn place(&self, probe: &Probe, joins: Joins) -> Result<Place, Failure> {
        let (mut resolver, mut unseen, mut group) = (None, Vec::new(), None);
        let pod = self.pod()?;
        if let Some(pod) = &pod {
            // Groups of processes are looked for by their paths.
            enter_cgroup_root(&self.host.proc);
            let is_own = &|id| self.watch.program(id).is_some();
            match forwarding::bypassed(&self.host.proc, &pod.pids, has_ports(probe), is_own) {
                Ok(found) => group = self.group(found, joins, &mut unseen),
                Err(error) => unseen.push(format!(
                    "BPF programs of the pod's control groups, which its own packets pass: {error}; netdiag status lists \
                     what the agent lacks"
                )),
            }
        }
        if needs_names(probe) {
            match self.resolver(pod.as_ref()) {
                Ok(Some(found)) => {
                    if !found.hosts_unseen.is_empty() {
                        unseen.push(format!("names of the place's own file: {}", found.hosts_unseen));
                    }
                    resolver = Some(Arc::new(found));
                }
                Ok(None) => unseen.push("there is no resolv.conf: name the server to ask".to_owned()),
                Err(error) => unseen.push(format!("resolv.conf: {error}; name the server to ask")),
            }
        }
        Ok(Place { netns: self.open()?, node: self.host.netns.clone(), resolver, group, unseen })
    }

    /// The control group whose sockets pass what the agent's own do not, where this agent joins any.
    fn group(&self, found: Bypassed, joins: Joins, unseen: &mut Vec<String>) -> Option<Group> {
        unseen.extend(found.elsewhere);
        let folder = found.group?;
        if joins == Joins::Never {
            unseen.extend(found.at_group);
            unseen.push(format!(
                "what the programs of control group {} do to the pod's packets: agents with --probe-join-cgroup (in the \
                 DaemonSet: NETDIAG_PROBE_JOIN_CGROUP=true) make the sockets of probes there",
                folder.display()
            ));
            return None;
        }
        Some(Group { folder, proc: self.host.proc.clone(), programs: found.at_group })
    }
}

/// Runs what waits for packets on a thread of its own: until it is early enough before `deadline` to tell what was seen, or until
/// nobody waits for the answer any more.
async fn attend<T: Send + 'static>(
    place: OwnedSemaphorePermit,
    deadline: Instant,
    budget: Duration,
    work: impl FnOnce(std::time::Instant, &dyn Fn() -> bool) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let over = CancellationToken::new();
    let _ends_with_this = over.clone().drop_guard();
    let until = deadline.into_std().checked_sub(TRACE_MARGIN).unwrap_or_else(std::time::Instant::now);
    let answer = on_thread(place, move || work(until, &|| over.is_cancelled()))?;
    match timeout_at(deadline, answer).await {
        Err(_) => Err(late(budget)),
        Ok(Err(_)) => Err(Failure::Panicked),
        Ok(Ok(found)) => found,
    }
}

/// Whether a probe looks names up as a program in the namespace does.
fn needs_names(probe: &Probe) -> bool {
    match probe {
        Probe::Dns(probe) => matches!(probe.asking, DnsAsking::Lookup { .. }),
        Probe::Http(probe) => probe.to.is_none(),
        _ => false,
    }
}

/// Whether it sends TCP or UDP.
fn has_ports(probe: &Probe) -> bool {
    match probe {
        Probe::Icmp(_) | Probe::Raw(_) => false,
        Probe::PathMtu(probe) => probe.to.port() != 0,
        Probe::Path(probe) => probe.to.port() != 0,
        Probe::Tcp(_) | Probe::Dns(_) | Probe::Http(_) | Probe::Tls(_) | Probe::Udp(_) | Probe::Throughput(_) => true,
    }
}

fn logged(text: &str) -> String {
    text.chars().take(MAX_LOGGED).collect()
}
