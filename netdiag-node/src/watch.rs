//! Everything that counts over time: harvested now and then, whether or not anybody asks.

use std::sync::Arc;
use std::time::Duration;

use crate::dns::DnsWatch;
use crate::drops::DropWatch;
use crate::kernel::Kernel;
use crate::owners::Owners;

/// The kernel's tables are sized for this long between two harvests.
pub const HARVEST_EVERY: Duration = Duration::from_secs(10);

/// Samples of DNS queries would fill their ring, and a new pod's namespace is learnt while the pod lives.
pub const TICK_EVERY: Duration = Duration::from_secs(1);

pub struct Watch {
    owners: Arc<Owners>,
    pub drops: DropWatch,
    pub dns: DnsWatch,
}

impl Watch {
    pub fn new(owners: Arc<Owners>, kernel: Kernel) -> Self {
        Self {
            drops: DropWatch::new(Arc::clone(&owners), kernel.drops),
            dns: DnsWatch::new(Arc::clone(&owners), kernel.dns),
            owners,
        }
    }

    /// To be called every [`TICK_EVERY`]. Costs microseconds while nobody asks.
    pub fn tick(&self) {
        self.dns.tick();
    }

    /// To be called every [`HARVEST_EVERY`]. Blocks for some 20 ms.
    pub fn harvest(&self) {
        if let Err(error) = self.owners.refresh() {
            tracing::debug!(%error, "pods not seen at a harvest");
        }
        self.drops.harvest();
        self.dns.harvest();
    }
}
