//! Which reader answers which topic, in which namespace.

use std::sync::Arc;

use netdiag_common::observation::Observation;
use netdiag_common::{Need, Netns, Topic};

use crate::attribution::{Attribution, Pod, enter_cgroup_root};
use crate::beyond::Beyond;
use crate::flows::FlowWatch;
use crate::gap::Failure;
use crate::host::device::Scope;
use crate::host::socket::Limits;
use crate::host::{
    Host, ReadError, cilium, cni, conntrack, forwarding, kube_proxy, kubelet, listener, network, networkd, process,
    resolver, rules, service_rules, sysctl,
};
use crate::mesh::Mesh;
use crate::netns::NetnsHandle;
use crate::samples::Samples;
use crate::watch::Watch;
use crate::{neighbours, reader};

/// One need, with what its thread must own.
pub(super) struct Job {
    pub(super) host: Host,
    pub(super) attribution: Arc<Attribution>,
    pub(super) watch: Arc<Watch>,
    pub(super) samples: Arc<Samples>,
    pub(super) flows: Arc<FlowWatch>,
    pub(super) mesh: Arc<Mesh>,
    pub(super) need: Need,
}

impl Job {
    pub(super) fn read(&self) -> Result<Option<Observation>, Failure> {
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
    pub(super) fn pod(&self) -> Result<Option<Pod>, Failure> {
        match &self.need.netns {
            Netns::Host => Ok(None),
            Netns::Pod(uid) => find(&self.attribution, uid, &self.need.node).map(Some),
        }
    }

    pub(super) fn beyond(&self) -> Beyond<'_> {
        Beyond::new(&self.host, &self.attribution, &self.need.netns)
    }

    pub(super) fn enter(&self, pod: Option<&Pod>) -> Result<NetnsHandle, Failure> {
        let netns = match pod {
            None => self.host.netns.clone(),
            Some(pod) => self.attribution.open(pod)?,
        };
        netns.enter()?;
        Ok(netns)
    }

    pub(super) fn resolver(
        &self,
        pod: Option<&Pod>,
    ) -> Result<Option<netdiag_common::observation::resolver::Resolver>, ReadError> {
        match pod {
            Some(pod) => resolver::read(&self.host.proc, &pod.pids),
            None => resolver::read_node(&self.host.proc),
        }
    }
}

pub(super) fn find(attribution: &Attribution, uid: &str, node: &str) -> Result<Pod, Failure> {
    attribution.find(uid)?.ok_or_else(|| Failure::NoSuchPod { uid: uid.to_owned(), node: node.to_owned() })
}
