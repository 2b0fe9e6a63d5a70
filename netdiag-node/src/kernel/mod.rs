//! The kernel programs from the agent's side: loading them on this kernel, reading their tables, naming what they saw.
//!
//! Nothing is pinned: when the agent ends, however it ends, the kernel removes the programs and their tables.

use std::collections::BTreeMap;
use std::sync::Arc;

use netdiag_common::GapReason;
use netdiag_common::observation::preflight::Check;

use crate::host::{self, ReadError};
use object::Object;
use plan::Plan;

/// A hook's ways to attach, best first.
macro_rules! ways {
    ($tracepoint:literal, $typed:literal, $raw:literal) => {
        [
            Way::TpBtf { program: $typed, tracepoint: $tracepoint },
            Way::RawTracepoint { program: $raw, tracepoint: $tracepoint },
        ]
    };
}

pub mod btf;
pub mod dns;
mod event;
mod failure;
pub mod kfree_skb;
mod layout;
pub mod library;
pub mod neighbour;
mod newest;
mod object;
mod plan;
mod program_info;
pub mod reject;
pub mod symbols;
mod table;
pub mod tag;
pub mod tcp;
pub mod udp;

pub use dns::{DnsSize, KernelDns};
pub use event::EventSize;
pub use kfree_skb::{Detail, KernelDrops, TableSize};
pub use library::{KernelLibraries, Uprobes};
pub use neighbour::{KernelNeighbours, NodeFailures};
pub use reject::KernelRejects;
pub use tag::KernelTags;
pub use tcp::{KernelTcp, TcpSize};
pub use udp::KernelUdp;

/// All programs: each runs or says why not, whatever becomes of the others. Nothing remains when the last is dropped.
pub struct Kernel {
    /// How the programs number namespaces.
    pub netns_id: NetnsId,
    /// Names of the programs that run, by the kernel's ids.
    pub programs: BTreeMap<u32, String>,
    pub drops: Result<KernelDrops, LoadError>,
    pub dns: Result<KernelDns, LoadError>,
    pub tcp: Result<KernelTcp, LoadError>,
    pub rejects: Result<KernelRejects, LoadError>,
    pub udp: Result<KernelUdp, LoadError>,
    pub neighbours: Result<KernelNeighbours, LoadError>,
    /// None unless somebody asked for uprobes.
    pub libraries: Result<Option<KernelLibraries>, LoadError>,
    /// Whether tags can be armed, as far as this kernel's types tell: nothing of them is loaded until somebody asks.
    pub tags: Result<(), LoadError>,
}

/// What the agent may use unless it is told otherwise.
const DEFAULT_MEMORY_BYTES: u64 = 100 << 20;

/// How large the programs' tables are.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    pub drops: TableSize,
    pub dns: DnsSize,
    pub tcp: TcpSize,
    pub rejects: EventSize,
    pub udp: EventSize,
    pub neighbours: EventSize,
    pub libraries: Uprobes,
}

/// How the kernel programs name a namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NetnsId {
    /// `SO_NETNS_COOKIE`, never used twice.
    Cookie,
    /// Inode of `/proc/PID/ns/net`, on kernels before 5.14.
    Inode,
}

impl Kernel {
    /// Loads and attaches everything. Takes about half a second. `kubelet_root` is the cgroup root of the kubelet whose pods
    /// are watched, empty for one that has none.
    pub fn load(sizes: Sizes, kubelet_root: &str) -> Self {
        Self::try_load(sizes, kubelet_root).unwrap_or_else(|error| Self {
            netns_id: NetnsId::Cookie,
            programs: BTreeMap::new(),
            drops: Err(error.clone()),
            dns: Err(error.clone()),
            tcp: Err(error.clone()),
            rejects: Err(error.clone()),
            udp: Err(error.clone()),
            neighbours: Err(error.clone()),
            libraries: Err(error.clone()),
            tags: Err(error),
        })
    }

    fn try_load(sizes: Sizes, kubelet_root: &str) -> Result<Self, LoadError> {
        let (plan, (drops, dns, tcp, rejects, udp, neighbours, libraries, tags)) = plan_with_types(|btf, plan| {
            (
                KernelDrops::plan(btf, sizes.drops, plan),
                KernelDns::plan(btf, sizes.dns, plan),
                KernelTcp::plan(btf, sizes.tcp, plan),
                KernelRejects::plan(btf, sizes.rejects, plan),
                KernelUdp::plan(btf, sizes.udp, plan),
                KernelNeighbours::plan(btf, sizes.neighbours, plan),
                KernelLibraries::plan(btf, sizes.libraries, plan),
                KernelTags::look(btf),
            )
        })?;
        let netns_id = if plan.has("NETNS_IS_COOKIE", 1_u32) { NetnsId::Cookie } else { NetnsId::Inode };
        let object = Object::create(&plan)?.below(kubelet_root.to_owned());
        let drops = drops.and_then(|planned| KernelDrops::attach(&object, planned));
        let dns = dns.and_then(|planned| KernelDns::attach(&object, planned));
        let tcp = tcp.and_then(|planned| KernelTcp::attach(&object, planned));
        let rejects = rejects.and_then(|planned| KernelRejects::attach(&object, planned));
        let udp = udp.and_then(|planned| KernelUdp::attach(&object, planned));
        let neighbours = neighbours.and_then(|planned| KernelNeighbours::attach(&object, planned));
        let libraries = libraries.and_then(|planned| KernelLibraries::attach(&object, planned));
        let programs = object.running().names();
        Ok(Self { netns_id, programs, drops, dns, tcp, rejects, udp, neighbours, libraries, tags })
    }

    /// The preflight's lines about the programs.
    pub fn checks(&self) -> Vec<Check> {
        let lost = "packets dropped by the kernel: how many, why, where";
        let mut checks = vec![check("kfree_skb", lost, self.drops.as_ref().map(KernelDrops::tier))];
        let lost = "DNS queries: who asks what, whether and how fast it is answered";
        checks.push(check("dns", lost, self.dns.as_ref().map(KernelDns::tier)));
        checks.extend(subject_checks(&self.tcp, KernelTcp::checks, "tcp", "TCP connections by result"));
        checks.extend(subject_checks(&self.rejects, KernelRejects::checks, "rejects", "ICMP errors and TCP resets"));
        checks.extend(subject_checks(&self.udp, KernelUdp::checks, "udp", "datagrams that found their socket full"));
        let lost = "how often and since when a neighbour does not answer";
        checks.extend(subject_checks(&self.neighbours, KernelNeighbours::checks, "neighbours", lost));
        checks
    }

    /// The preflight's line about tags, whose programs do not run unless somebody follows a packet.
    pub fn tag_check(&self) -> Check {
        let lost = "the way of a probe's packets through this node";
        check("tag", lost, self.tags.as_ref().map(|()| "loaded when asked for"))
    }
}

/// Each subject can be loaded without the others, for whoever needs no more than one: in an emulated guest the verifier walks
/// through all programs for a minute.
macro_rules! loads_alone {
    ($($subject:ident: $size:ident),*) => {$(
        impl $subject {
            /// Loads and attaches this subject alone.
            pub fn load(sizes: Sizes) -> Result<Self, LoadError> {
                alone(|btf, plan| Self::plan(btf, sizes.$size, plan), Self::attach)
            }
        }
    )*};
}

loads_alone!(
    KernelDrops: drops,
    KernelDns: dns,
    KernelTcp: tcp,
    KernelRejects: rejects,
    KernelUdp: udp,
    KernelNeighbours: neighbours
);

fn alone<P, T>(
    plan: impl FnOnce(&btf::Btf<'_>, &mut Plan) -> Result<P, LoadError>,
    attach: impl FnOnce(&Object, P) -> Result<T, LoadError>,
) -> Result<T, LoadError> {
    let (plan, planned) = plan_with_types(plan)?;
    let planned = planned?;
    attach(&Object::create(&plan)?, planned)
}

/// The plan, and what `parts` made of it with this kernel's types. They are some MiB: gone before anything is loaded.
fn plan_with_types<P>(parts: impl FnOnce(&btf::Btf<'_>, &mut Plan) -> P) -> Result<(Plan, P), LoadError> {
    let bytes = host::kernel::btf().map_err(|error| LoadError::NoBtf(Arc::new(error)))?;
    let btf = btf::parse(&bytes).map_err(LoadError::DamagedBtf)?;
    let mut plan = Plan::for_this_machine();
    let planned = parts(&btf, &mut plan);
    Ok((plan, planned))
}

impl Sizes {
    /// As the agent has them unless it is told otherwise.
    pub fn for_this_machine() -> Self {
        Self::within(DEFAULT_MEMORY_BYTES)
    }

    /// For an agent that may use this much memory altogether: less than half of it is for tables, most of that for dropped packets.
    pub fn within(memory_bytes: u64) -> Self {
        let cpus = plan::cpus();
        let part = |of: u64| usize::try_from(memory_bytes / of).unwrap_or(usize::MAX);
        let events = |sets| EventSize::within(sets, cpus, part(24));
        Self {
            drops: TableSize::within(cpus, part(4)),
            dns: DnsSize::within(part(10)),
            tcp: TcpSize { events: events(512), attempts: tcp::attempts_within(part(24)) },
            rejects: events(512),
            udp: events(64),
            neighbours: events(64),
            libraries: Uprobes::default(),
        }
    }
}

/// Why the kernel programs do not run. None of it is worth a retry: report a gap, with [`LoadError::remedy`].
#[derive(Debug, Clone, thiserror::Error)]
pub enum LoadError {
    #[error("this binary was built without kernel programs")]
    NotBuilt,
    #[error("the kernel's type information is not readable: {0}")]
    NoBtf(Arc<ReadError>),
    #[error("the kernel's type information in /sys/kernel/btf/vmlinux is damaged: {0}")]
    DamagedBtf(btf::BtfError),
    #[error("this kernel's struct {structure} has no member {member} of the expected size")]
    Member { structure: &'static str, member: &'static str },
    #[error("this kernel has no tracepoint {tracepoint}")]
    NoTracepoint { tracepoint: &'static str },
    #[error("cannot {step}: operation not permitted")]
    NotPermitted { step: String },
    #[error("cannot {step}: {why}")]
    Failed { step: String, why: String },
}

impl LoadError {
    /// What to do so that the program can run.
    pub fn remedy(&self) -> &'static str {
        match self {
            Self::NotBuilt => "run cargo xtask ebpf first, then build the agent again",
            Self::NoBtf(_) => "use a kernel with CONFIG_DEBUG_INFO_BTF=y, and mount /sys",
            Self::DamagedBtf(_) | Self::Member { .. } => {
                "report this kernel's version and its /sys/kernel/btf/vmlinux to the netdiag project"
            }
            Self::NoTracepoint { .. } => {
                "use a kernel with this tracepoint; until then ask for what each namespace counts and lists by itself"
            }
            Self::NotPermitted { .. } => {
                "give the agent the capabilities BPF and PERFMON (SYS_ADMIN before Linux 5.8), and check that neither a \
                 seccomp profile nor lockdown=confidentiality forbids bpf()"
            }
            Self::Failed { .. } => "use Linux 5.10 or newer with CONFIG_BPF_SYSCALL=y; the message says what failed",
        }
    }

    pub fn gap_reason(&self) -> GapReason {
        match self {
            Self::NotBuilt | Self::Failed { .. } => GapReason::Failed,
            Self::NoBtf(_) | Self::Member { .. } | Self::NoTracepoint { .. } => GapReason::Kernel,
            Self::DamagedBtf(_) => GapReason::Malformed,
            Self::NotPermitted { .. } => GapReason::Rights,
        }
    }
}

/// One line for each hook of a subject; one for all when none of it runs.
fn subject_checks<T>(
    loaded: &Result<T, LoadError>,
    checks: impl Fn(&T) -> Vec<Check>,
    name: &str,
    lost: &str,
) -> Vec<Check> {
    loaded.as_ref().map_or_else(|error| vec![check(name, lost, Err(error))], checks)
}

fn check(hook: &str, lost: &str, tier: Result<&'static str, &LoadError>) -> Check {
    let name = format!("program {hook}");
    match tier {
        Ok(tier) => Check { name, ok: true, detail: tier.to_owned(), ..Check::default() },
        Err(error) => Check {
            name,
            ok: false,
            detail: error.to_string(),
            lost: lost.to_owned(),
            remedy: error.remedy().to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_follow_the_memory_that_the_agent_may_use() {
        let (little, usual) = (Sizes::within(8 << 20), Sizes::for_this_machine());
        assert!(little.drops.ipv4 < usual.drops.ipv4);
        assert!(little.dns.open < usual.dns.open && little.dns.groups < usual.dns.groups);
        assert!(little.tcp.attempts < usual.tcp.attempts && little.tcp.events.ipv4 <= usual.tcp.events.ipv4);
        assert_eq!((usual.dns, usual.tcp.attempts), (DnsSize::default(), 32_768));
    }

    #[test]
    fn a_binary_without_programs_says_how_to_get_them() {
        let check = check("kfree_skb", "packets dropped by the kernel", Err(&LoadError::NotBuilt));
        assert!(!check.ok);
        assert_eq!(check.detail, "this binary was built without kernel programs");
        assert_eq!(check.remedy, "run cargo xtask ebpf first, then build the agent again");
    }
}
