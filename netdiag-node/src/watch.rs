//! Everything that counts over time: harvested now and then, whether or not anybody asks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::dns::DnsWatch;
use crate::drops::DropWatch;
use crate::kernel::{Kernel, KernelRejects, KernelTcp, KernelUdp};
use crate::metrics::{Export, Families};
use crate::owners::Owners;
use crate::subject::Subject;

/// The kernel's tables are sized for this long between two harvests.
pub const HARVEST_EVERY: Duration = Duration::from_secs(10);

/// Samples of DNS queries would fill their ring, and a new pod's namespace is learnt while the pod lives.
pub const TICK_EVERY: Duration = Duration::from_secs(1);

pub struct Watch {
    owners: Arc<Owners>,
    /// Names of the kernel programs by their ids.
    programs: BTreeMap<u32, String>,
    pub drops: DropWatch,
    pub dns: DnsWatch,
    pub tcp: Subject<KernelTcp>,
    pub rejects: Subject<KernelRejects>,
    pub udp: Subject<KernelUdp>,
}

impl Watch {
    pub fn new(owners: Arc<Owners>, kernel: Kernel) -> Self {
        Self {
            drops: DropWatch::new(Arc::clone(&owners), kernel.drops),
            dns: DnsWatch::new(Arc::clone(&owners), kernel.dns),
            programs: kernel.programs,
            tcp: Subject::new(Arc::clone(&owners), kernel.tcp),
            rejects: Subject::new(Arc::clone(&owners), kernel.rejects),
            udp: Subject::new(Arc::clone(&owners), kernel.udp),
            owners,
        }
    }

    /// The name of the kernel program with this id, when it is one of ours.
    pub fn program(&self, id: u32) -> Option<&str> {
        self.programs.get(&id).map(String::as_str)
    }

    /// To be called every [`TICK_EVERY`]. Costs microseconds while nobody asks.
    pub fn tick(&self) {
        self.dns.tick();
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
    }
}

impl Export for Watch {
    fn export(&self, into: &mut Families) {
        self.drops.export(into);
        self.dns.export(into);
    }
}
