//! Everything that counts over time: harvested now and then, whether or not anybody asks.

use std::sync::Arc;
use std::time::Duration;

use crate::drops::DropWatch;
use crate::kernel::Kernel;
use crate::owners::Owners;

/// The kernel's tables are sized for this long between two harvests.
pub const HARVEST_EVERY: Duration = Duration::from_secs(10);

pub struct Watch {
    owners: Arc<Owners>,
    pub drops: DropWatch,
}

impl Watch {
    pub fn new(owners: Arc<Owners>, kernel: Kernel) -> Self {
        Self { drops: DropWatch::new(Arc::clone(&owners), kernel.drops), owners }
    }

    /// To be called every [`HARVEST_EVERY`]. Blocks for some 20 ms.
    pub fn harvest(&self) {
        if let Err(error) = self.owners.refresh() {
            tracing::debug!(%error, "pods not seen at a harvest");
        }
        self.drops.harvest();
    }
}
