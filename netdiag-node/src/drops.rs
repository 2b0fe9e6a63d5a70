//! Dropped packets over time: harvests the kernel's counters now and then.

use std::sync::{Arc, Mutex, PoisonError};

use netdiag_common::Window;
use netdiag_common::observation::kfree_skb::Drops;

use crate::clock;
use crate::gap::Failure;
use crate::kernel::{KernelDrops, LoadError};
use crate::metrics::{Export, Families};
use crate::owners::Owners;

/// The loaded program, or why there is none.
pub struct DropWatch {
    owners: Arc<Owners>,
    state: Mutex<Result<KernelDrops, LoadError>>,
}

impl DropWatch {
    pub fn new(owners: Arc<Owners>, drops: Result<KernelDrops, LoadError>) -> Self {
        Self { owners, state: Mutex::new(drops) }
    }

    /// To be called after the owners were refreshed. Blocks for some 20 ms.
    pub fn harvest(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(drops) = state.as_mut() {
            drops.harvest(clock::now());
        }
    }

    /// What was dropped in the window, up to now.
    pub fn observe(&self, window: Window) -> Result<Drops, Failure> {
        self.owners.refresh()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let drops = state.as_mut().map_err(|error| Failure::from(&*error))?;
        drops.harvest(clock::now());
        Ok(drops.observe(clock::now(), window, &|id| self.owners.of(id)))
    }
}

impl Export for DropWatch {
    fn export(&self, into: &mut Families) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(drops) = state.as_mut() {
            drops.harvest(clock::now());
            drops.export(into);
        }
    }
}
