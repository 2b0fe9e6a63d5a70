//! Dropped packets over time: harvests the kernel's counters now and then.

use std::sync::{Arc, Mutex, PoisonError};

use netdiag_common::Window;
use netdiag_common::observation::kfree_skb::Drops;

use crate::clock;
use crate::gap::Failure;
use crate::kernel::{Detail, KernelDrops, LoadError};
use crate::metrics::{Export, Families};
use crate::owners::Owners;
use crate::shed::{Shedding, Step};

/// The loaded program, or why there is none.
pub struct DropWatch {
    owners: Arc<Owners>,
    shedding: Arc<Shedding>,
    state: Mutex<Result<KernelDrops, LoadError>>,
}

impl DropWatch {
    pub fn new(owners: Arc<Owners>, shedding: Arc<Shedding>, drops: Result<KernelDrops, LoadError>) -> Self {
        Self { owners, shedding, state: Mutex::new(drops) }
    }

    /// To be called after the owners were refreshed. Blocks for some 20 ms.
    pub fn harvest(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(drops) = state.as_mut() {
            self.take(drops);
        }
    }

    /// What was dropped in the window, up to now.
    pub fn observe(&self, window: Window) -> Result<Drops, Failure> {
        self.owners.refresh()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let drops = state.as_mut().map_err(|error| Failure::from(&*error))?;
        self.take(drops);
        let mut found = drops.observe(clock::now(), window, &|id| self.owners.of(id));
        found.unseen.extend(Step::ALL.into_iter().filter_map(|step| self.shedding.gap(step)));
        Ok(found)
    }
}

impl DropWatch {
    /// Takes what the kernel counted, in as much detail as the agent can afford now: an answer never has more than its gaps say.
    fn take(&self, drops: &mut KernelDrops) {
        drops.keep(Detail {
            exemplars: !self.shedding.gives_up(Step::Exemplars),
            tuples: !self.shedding.gives_up(Step::Tuples),
        });
        drops.harvest(clock::now());
    }
}

impl Export for DropWatch {
    fn export(&self, into: &mut Families) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(drops) = state.as_mut() {
            self.take(drops);
            drops.export(into);
        }
    }
}
