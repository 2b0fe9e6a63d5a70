//! One need in, one reading out: which reader answers which topic, in which namespace, on which thread.
//!
//! Every reader runs on a thread of its own, which may enter a namespace and is not used again. Their number is bounded,
//! also when some hang: a thread gives its place back only when it ends.

mod active;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use netdiag_common::observation::Observation;
use netdiag_common::observation::preflight::Preflight;
use netdiag_common::{Need, Netns, Reading, Topic};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};

use crate::attribution::{Attribution, Pod, enter_cgroup_root, kubelet_root};
use crate::beyond::Beyond;
use crate::flows::FlowWatch;
use crate::gap::{Failure, gap};
use crate::host::device::Scope;
use crate::host::socket::Limits;
use crate::host::{
    Host, ReadError, cilium, cni, conntrack, forwarding, kube_proxy, kubelet, listener, network, networkd, process,
    resolver, rules, service_rules, sysctl,
};
use crate::kernel::{Kernel, Sizes, Uprobes};
use crate::libraries::LibraryWatch;
use crate::mesh::Mesh;
use crate::netns::NetnsHandle;
use crate::owners::Owners;
use crate::probe::series::{AllowList, Engine, Joins};
use crate::reader::{self, on_thread};
use crate::samples::Samples;
use crate::shed::{Budget, Shedding};
use crate::tag::Tags;
use crate::trace::Traces;
use crate::watch::Watch;
use crate::{clock, neighbours, preflight};

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
        Self {
            node,
            attribution: Arc::clone(&attribution),
            watch,
            samples: Arc::new(Samples::new(host.clone(), attribution)),
            flows,
            mesh: Arc::new(Mesh::new(host.netns.clone(), AllowList::default())),
            host,
            checks,
            shed: AtomicU64::new(0),
            readers: Arc::new(Semaphore::new(MAX_READERS)),
            probes: Arc::new(Semaphore::new(MAX_PROBES)),
            engine: Engine::new(AllowList::default(), false),
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
        let mesh = Arc::new(Mesh::new(self.host.netns.clone(), allowed.clone()));
        Self { engine: Engine::new(allowed, throughput), mesh, ..self }
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

/// One need, with what its thread must own.
struct Job {
    host: Host,
    attribution: Arc<Attribution>,
    watch: Arc<Watch>,
    samples: Arc<Samples>,
    flows: Arc<FlowWatch>,
    mesh: Arc<Mesh>,
    need: Need,
}

impl Job {
    fn read(&self) -> Result<Option<Observation>, Failure> {
        let proc = &self.host.proc;
        if self.need.topic == Topic::Pods {
            return Ok(Some(Observation::Pods(self.attribution.pods()?.as_ref().into())));
        }
        if self.need.topic == Topic::Drops {
            return Ok(Some(Observation::Drops(self.watch.drops.observe(self.need.window)?)));
        }
        if let Some(found) = self.counted()? {
            return Ok(Some(found));
        }
        if self.need.topic == Topic::Dns {
            return Ok(Some(Observation::Dns(self.watch.dns.observe(self.need.window)?)));
        }
        if self.need.topic == Topic::Libraries {
            return Ok(Some(Observation::Libraries(self.watch.libraries.observe(self.need.window)?)));
        }
        if let Topic::Mesh(request) = &self.need.topic {
            return Ok(self.mesh.ask(request)?.map(Observation::Mesh));
        }
        let pod = self.pod()?;
        if self.need.topic == Topic::Resolver {
            return Ok(self.resolver(pod.as_ref())?.map(Observation::Resolver));
        }
        // A pod's namespace does not show them.
        let limits = if self.need.topic == Topic::Sockets { Limits::read(proc)? } else { Limits::default() };
        let netns = self.enter(pod.as_ref())?;
        let found = match &self.need.topic {
            Topic::Network => Some(Observation::Network(network::read()?)),
            Topic::Sysctls => Some(Observation::Sysctls(sysctl::read(proc)?)),
            Topic::Listeners => Some(Observation::Listeners(listener::read(proc, netns.inode)?)),
            Topic::Conntrack => conntrack::read(proc)?
                .map(|found| match &pod {
                    None => self.flows.with_growth(found, self.need.window),
                    Some(_) => found,
                })
                .map(Observation::Conntrack),
            Topic::Flows => match &pod {
                None => self.flows.of_node(proc, self.need.window)?,
                Some(pod) => self.flows.of_pod(proc, &pod.observed.uid)?,
            }
            .map(Observation::Flows),
            Topic::FindFlows(query) => self.flows.find(proc, query)?.map(Observation::FoundFlows),
            Topic::KubeProxy => {
                process::sees_whole_node(proc)?;
                kube_proxy::read(proc, netns.inode)?.map(Observation::KubeProxy)
            }
            Topic::Kubelet => kubelet::read(proc, netns.inode)?.map(Observation::Kubelet),
            Topic::PolicyMap(query) => cilium::read(proc, netns.inode, query)?.map(Observation::PolicyMap),
            Topic::Cni => cni::read(proc, netns.inode)?.map(Observation::Cni),
            Topic::Networkd => networkd::read(proc, netns.inode)?.map(Observation::Networkd),
            Topic::Rules => {
                reader::step_back();
                let found = rules::read()?;
                let is_empty = found.tables.is_empty() && found.left_out.is_empty();
                (!is_empty).then_some(Observation::Rules(found))
            }
            Topic::Fate(request) => {
                let mut beyond = self.beyond();
                // Groups of processes are looked for by their paths. This thread does nothing else.
                enter_cgroup_root(&self.host.proc);
                let mut around = forwarding::Surroundings {
                    proc: &self.host.proc,
                    netns: netns.inode,
                    is_pod: pod.is_some(),
                    is_own: &|id| self.watch.program(id).is_some(),
                    owner: &mut |number| beyond.owner(number),
                };
                let mut fate = forwarding::fate(request, &mut around)?;
                for gap in &mut fate.unseen {
                    gap.node = Some(self.need.node.clone());
                }
                Some(Observation::Fate(Arc::new(fate)))
            }
            Topic::ServiceRules => {
                reader::step_back();
                Some(Observation::ServiceRules(service_rules::read()?))
            }
            Topic::Devices => {
                let scope = if pod.is_some() { Scope::Pod } else { Scope::Node };
                Some(Observation::Devices(self.samples.devices(&netns, scope, self.need.window)?))
            }
            Topic::Neighbours => {
                let found = self.samples.neighbours(&netns, self.need.window)?;
                Some(Observation::Neighbours(neighbours::with_failures(found, &self.watch, &self.need, pod.as_ref())?))
            }
            Topic::Counters => Some(Observation::Counters(self.samples.counters(&netns, self.need.window)?)),
            Topic::Sockets => {
                let found = self.samples.sockets(&netns, pod.as_ref(), &limits, self.need.window)?;
                Some(Observation::Sockets(found))
            }
            Topic::Preflight
            | Topic::Pods
            | Topic::Resolver
            | Topic::Drops
            | Topic::Rejects
            | Topic::Tcp
            | Topic::Udp
            | Topic::Dns
            | Topic::Libraries
            | Topic::Probe(_)
            | Topic::Series(_)
            | Topic::Mesh(_)
            | Topic::Trace(_)
            | Topic::Tagged(_)
            | Topic::Tags => {
                unreachable!("{} is answered before a namespace is entered", self.need.topic.name())
            }
        };
        Ok(found)
    }

    /// What the kernel programs counted; none for other topics.
    fn counted(&self) -> Result<Option<Observation>, Failure> {
        let window = self.need.window;
        let mut found = match &self.need.topic {
            Topic::Rejects => Observation::Rejects(self.watch.rejects.observe(window)?),
            Topic::Tcp => Observation::Tcp(self.watch.tcp.observe(window)?),
            Topic::Udp => Observation::Udp(self.watch.udp.observe(window)?),
            _ => return Ok(None),
        };
        let unseen = match &mut found {
            Observation::Rejects(rejects) => &mut rejects.unseen,
            Observation::Tcp(tcp) => &mut tcp.unseen,
            Observation::Udp(udp) => &mut udp.unseen,
            _ => return Ok(Some(found)),
        };
        for gap in unseen {
            gap.node = Some(self.need.node.clone());
        }
        Ok(Some(found))
    }

    /// The pod that is asked about; none for the node.
    fn pod(&self) -> Result<Option<Pod>, Failure> {
        match &self.need.netns {
            Netns::Host => Ok(None),
            Netns::Pod(uid) => find(&self.attribution, uid, &self.need.node).map(Some),
        }
    }

    fn beyond(&self) -> Beyond<'_> {
        Beyond::new(&self.host, &self.attribution, &self.need.netns)
    }

    fn enter(&self, pod: Option<&Pod>) -> Result<NetnsHandle, Failure> {
        let netns = match pod {
            None => self.host.netns.clone(),
            Some(pod) => self.attribution.open(pod)?,
        };
        netns.enter()?;
        Ok(netns)
    }

    fn resolver(
        &self,
        pod: Option<&Pod>,
    ) -> Result<Option<netdiag_common::observation::resolver::Resolver>, ReadError> {
        match pod {
            Some(pod) => resolver::read(&self.host.proc, &pod.pids),
            // Process 1 is the node's with hostPID. Where it may not be looked at, the agent's own file is the node's too.
            None => match resolver::read(&self.host.proc, &[1]) {
                Ok(Some(found)) => Ok(Some(found)),
                Ok(None) | Err(_) => resolver::read_own(),
            },
        }
    }
}

fn find(attribution: &Attribution, uid: &str, node: &str) -> Result<Pod, Failure> {
    attribution.find(uid)?.ok_or_else(|| Failure::NoSuchPod { uid: uid.to_owned(), node: node.to_owned() })
}

fn late(budget: Duration) -> Failure {
    Failure::Late { budget_ms: budget.as_millis() }
}
