//! One need in, one reading out: which reader answers which topic, in which namespace, on which thread.
//!
//! Every reader runs on a thread of its own, which may enter a namespace and is not used again. Their number is bounded,
//! also when some hang: a thread gives its place back only when it ends.

mod active;
mod job;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netdiag_common::observation::Observation;
use netdiag_common::observation::preflight::Preflight;
use netdiag_common::{Need, Netns, Reading, Topic};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use self::job::Job;
use crate::attribution::{Attribution, kubelet_root};
use crate::flows::FlowWatch;
use crate::gap::{Failure, gap};
use crate::host::Host;
use crate::kernel::{Kernel, Sizes, Uprobes};
use crate::libraries::LibraryWatch;
use crate::mesh::Mesh;
use crate::owners::Owners;
use crate::probe::series::{AllowList, Engine, Joins};
use crate::reader::on_thread;
use crate::samples::Samples;
use crate::shed::{Budget, Shedding};
use crate::tag::Tags;
use crate::trace::Traces;
use crate::watch::Watch;
use crate::{clock, preflight};

/// Readers at work at one time: two CPUs' worth, since most wait for the kernel.
const MAX_READERS: usize = 4;
/// Probes at work at one time: they wait, and cost two descriptors each.
const MAX_PROBES: usize = 16;

/// Everything that answers needs, shared by all requests.
pub struct Readings {
    node: String,
    host: Host,
    attribution: Arc<Attribution>,
    watch: Arc<Watch>,
    samples: Arc<Samples>,
    flows: Arc<FlowWatch>,
    checks: preflight::Fixed,
    pub shed: AtomicU64,
    readers: Arc<Semaphore>,
    probes: Arc<Semaphore>,
    engine: Engine,
    joins: Joins,
    traces: Arc<Traces>,
    mesh: Arc<Mesh>,
    tags: Arc<Tags>,
}

impl Readings {
    pub fn new(node: String, host: Host, budget: Budget, dns_ports: &[u16], uprobes: Uprobes) -> Self {
        let attribution = Arc::new(Attribution::new(host.clone()));
        let mut sizes = Sizes::within(budget.memory_bytes());
        sizes.dns = sizes.dns.with_ports(dns_ports);
        sizes.libraries = uprobes;
        let mut kernel = Kernel::load(sizes, &kubelet_root(&host));
        let flows = Arc::new(FlowWatch::start(&host, Arc::clone(&attribution)));
        let owners = Arc::new(Owners::new(Arc::clone(&attribution), kernel.netns_id));
        let probed = std::mem::replace(&mut kernel.libraries, Ok(None));
        let libraries =
            LibraryWatch::new(Arc::clone(&owners), Arc::clone(&attribution), host.proc.clone(), uprobes, probed);
        let mut programs = kernel.checks();
        programs.extend(libraries.check());
        for program in &programs {
            tracing::info!(name = program.name, ok = program.ok, detail = program.detail, "kernel program");
        }
        programs.push(kernel.tag_check());
        programs.push(flows.check.clone());
        let checks = preflight::Fixed::read(&host, programs);
        let tags = Arc::new(Tags::new(Arc::clone(&owners)));
        let shedding = Arc::new(Shedding::new(budget, host.proc.clone()));
        let watch = Arc::new(Watch::new(owners, kernel, libraries, shedding));
        let engine = Engine::new(AllowList::default(), false);
        Self {
            node,
            attribution: Arc::clone(&attribution),
            watch,
            samples: Arc::new(Samples::new(host.clone(), attribution)),
            flows,
            mesh: Arc::new(Mesh::new(&host, AllowList::default(), engine.shares())),
            host,
            checks,
            shed: AtomicU64::new(0),
            readers: Arc::new(Semaphore::new(MAX_READERS)),
            probes: Arc::new(Semaphore::new(MAX_PROBES)),
            engine,
            joins: Joins::Never,
            traces: Arc::new(Traces::new(false)),
            tags,
        }
    }

    /// Lets the server arm traces, or not; not unless this is called.
    #[must_use]
    pub fn allow_trace(self, allowed: bool) -> Self {
        Self { traces: Arc::new(Traces::new(allowed)), ..self }
    }

    /// Where series of probes and the mesh may send to, and whether series may fill a link; only to the cluster networks, and
    /// not, unless this is called.
    #[must_use]
    pub fn allow_probes(self, allowed: AllowList, throughput: bool) -> Self {
        let engine = Engine::new(allowed.clone(), throughput);
        let mesh = Arc::new(Mesh::new(&self.host, allowed, engine.shares()));
        Self { engine, mesh, ..self }
    }

    /// Whether series are sent from pods' control groups; not unless this is called.
    #[must_use]
    pub fn join_groups(self, joins: Joins) -> Self {
        Self { joins, ..self }
    }

    pub fn node(&self) -> &str {
        &self.node
    }

    pub(crate) fn host(&self) -> &Host {
        &self.host
    }

    pub(crate) fn attribution(&self) -> &Attribution {
        &self.attribution
    }

    /// For the task that harvests.
    pub fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    /// For the task that looks around.
    pub fn samples(&self) -> Arc<Samples> {
        Arc::clone(&self.samples)
    }

    /// Always an answer: whatever goes wrong, or takes longer than until `deadline`, is a gap.
    pub async fn read(
        &self,
        need: &Need,
        budget: Duration,
        certificate_expires: Option<String>,
    ) -> Reading<Observation> {
        let deadline = Instant::now() + budget;
        let found = match self.check(need) {
            Err(failure) => Err(failure),
            Ok(()) => match &need.topic {
                Topic::Probe(request) => {
                    timeout_at(deadline, self.probe(need, request)).await.unwrap_or(Err(late(budget)))
                }
                Topic::Series(request) => self.series(need, request, deadline, budget).await,
                Topic::Trace(request) => self.trace(need, request, deadline, budget).await,
                Topic::Tagged(request) => self.tagged(request, deadline, budget).await,
                Topic::Tags => Ok(Some(Observation::Tags(self.tags.armed()))),
                _ => self.passive(need, deadline, budget, certificate_expires).await,
            },
        };
        match found {
            Ok(Some(value)) => Reading::Seen { value, at: clock::now() },
            Ok(None) => Reading::Absent { at: clock::now() },
            Err(failure) => {
                tracing::debug!(topic = need.topic.name(), netns = ?need.netns, %failure, "not read");
                Reading::Unavailable { gap: gap(need, &failure) }
            }
        }
    }

    fn check(&self, need: &Need) -> Result<(), Failure> {
        if need.node != self.node {
            return Err(Failure::OtherNode { own: self.node.clone(), asked: need.node.clone() });
        }
        if need.netns != Netns::Host && need.topic.is_host_only() {
            return Err(Failure::HostOnly { topic: need.topic.name() });
        }
        Ok(())
    }

    async fn passive(
        &self,
        need: &Need,
        deadline: Instant,
        budget: Duration,
        certificate_expires: Option<String>,
    ) -> Result<Option<Observation>, Failure> {
        if need.topic == Topic::Preflight {
            let shed_requests = self.shed.load(Ordering::Relaxed);
            let resident_bytes = preflight::resident_bytes(&self.host.proc);
            let checks = self.checks.clone();
            let mut preflight = Preflight { resident_bytes, shed_requests, certificate_expires, ..checks.into() };
            preflight.checks.push(self.watch.check());
            return Ok(Some(Observation::Preflight(preflight)));
        }
        let place = timeout_at(deadline, Arc::clone(&self.readers).acquire_owned()).await.map_err(|_| late(budget))?;
        // A place that is free is given without a look at the clock.
        if Instant::now() >= deadline {
            return Err(late(budget));
        }
        let job = self.job(need);
        let answer = on_thread(place.expect("the semaphore is never closed"), move || job.read())?;
        match timeout_at(deadline, answer).await {
            Err(_) => Err(late(budget)),
            Ok(Err(_)) => Err(Failure::Panicked),
            Ok(Ok(result)) => result,
        }
    }

    fn job(&self, need: &Need) -> Job {
        Job {
            host: self.host.clone(),
            attribution: Arc::clone(&self.attribution),
            watch: Arc::clone(&self.watch),
            samples: Arc::clone(&self.samples),
            flows: Arc::clone(&self.flows),
            mesh: Arc::clone(&self.mesh),
            need: need.clone(),
        }
    }
}

fn late(budget: Duration) -> Failure {
    Failure::Late { budget_ms: budget.as_millis() }
}
