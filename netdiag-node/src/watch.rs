//! Everything that counts over time: harvested now and then, whether or not anybody asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use netdiag_common::observation::preflight::Check;

use crate::dns::DnsWatch;
use crate::drops::DropWatch;
use crate::kernel::{Kernel, KernelNeighbours, KernelRejects, KernelTcp, KernelUdp};
use crate::libraries::LibraryWatch;
use crate::metrics::{Export, Families};
use crate::owners::Owners;
use crate::shed::{Shedding, Step};
use crate::subject::Subject;

/// The kernel's tables are sized for this long between two harvests.
pub const HARVEST_EVERY: Duration = Duration::from_secs(10);

/// Samples of DNS queries would fill their ring, and a new pod's namespace is learnt while the pod lives.
pub const TICK_EVERY: Duration = Duration::from_secs(1);

pub struct Watch {
    owners: Arc<Owners>,
    /// Names of the kernel programs by their ids.
    programs: BTreeMap<u32, String>,
    shedding: Arc<Shedding>,
    pub drops: DropWatch,
    pub dns: DnsWatch,
    pub tcp: Subject<KernelTcp>,
    pub rejects: Subject<KernelRejects>,
    pub udp: Subject<KernelUdp>,
    pub neighbours: Subject<KernelNeighbours>,
    pub libraries: LibraryWatch,
}

impl Watch {
    pub fn new(owners: Arc<Owners>, kernel: Kernel, libraries: LibraryWatch, shedding: Arc<Shedding>) -> Self {
        Self {
            drops: DropWatch::new(Arc::clone(&owners), Arc::clone(&shedding), kernel.drops),
            dns: DnsWatch::new(Arc::clone(&owners), Arc::clone(&shedding), kernel.dns),
            shedding,
            programs: kernel.programs,
            tcp: Subject::new(Arc::clone(&owners), kernel.tcp),
            rejects: Subject::new(Arc::clone(&owners), kernel.rejects),
            udp: Subject::new(Arc::clone(&owners), kernel.udp),
            neighbours: Subject::new(Arc::clone(&owners), kernel.neighbours),
            libraries,
            owners,
        }
    }

    /// The name of the kernel program with this id, when it is one of ours.
    pub fn program(&self, id: u32) -> Option<&str> {
        self.programs.get(&id).map(String::as_str)
    }

    /// To be called every [`TICK_EVERY`]. Costs microseconds while nobody asks.
    pub fn tick(&self) {
        // Names of queries are exemplars: unread, the ring fills, and the programs count what they cannot put there.
        if !self.shedding.gives_up(Step::Exemplars) {
            self.dns.tick();
            self.libraries.tick();
        }
    }

    /// The preflight's line about the budget.
    pub fn check(&self) -> Check {
        self.shedding.check()
    }

    /// To be called every [`HARVEST_EVERY`]. Blocks for some 20 ms for each subject.
    pub fn harvest(&self) {
        if let Err(error) = self.owners.refresh() {
            tracing::debug!(%error, "pods not seen at a harvest");
        }
        self.drops.harvest();
        self.dns.harvest();
        self.tcp.harvest();
        self.rejects.harvest();
        self.udp.harvest();
        self.neighbours.harvest();
        self.libraries.harvest();
        self.shedding.look();
    }
}

impl Export for Watch {
    fn export(&self, into: &mut Families) {
        self.drops.export(into);
        self.dns.export(into);
        self.tcp.export(into);
        self.rejects.export(into);
        self.udp.export(into);
        self.shedding.export(into);
    }
}
