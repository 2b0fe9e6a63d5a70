//! A subject that kernel programs count: harvested now and then, and asked about.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::reject::Rejects;
use netdiag_common::observation::tcp::Tcp;
use netdiag_common::observation::udp::Udp;

use crate::clock;
use crate::gap::Failure;
use crate::kernel::{KernelNeighbours, KernelRejects, KernelTcp, KernelUdp, LoadError, NodeFailures};
use crate::metrics::{Export, Families};
use crate::owners::Owners;

/// Programs that count, with what they counted lately.
pub trait Counting {
    type Observation;
    /// Takes what was counted since the last harvest.
    fn harvest(&mut self, now: Timestamp);
    /// What was harvested in the window. `resolve` says whose namespace a number is.
    fn observe(&self, now: Timestamp, window: Window, resolve: &dyn Fn(u64) -> Owner) -> Self::Observation;
}

/// The loaded programs, or why there are none.
pub struct Subject<T> {
    owners: Arc<Owners>,
    state: Mutex<Result<T, LoadError>>,
}

impl<T: Counting> Subject<T> {
    pub fn new(owners: Arc<Owners>, loaded: Result<T, LoadError>) -> Self {
        Self { owners, state: Mutex::new(loaded) }
    }

    /// To be called after the owners were refreshed. Blocks for some 20 ms.
    pub fn harvest(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(counting) = state.as_mut() {
            counting.harvest(clock::now());
        }
    }

    /// What happened in the window, up to now.
    pub fn observe(&self, window: Window) -> Result<T::Observation, Failure> {
        self.owners.refresh()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let counting = state.as_mut().map_err(|error| Failure::from(&*error))?;
        counting.harvest(clock::now());
        Ok(counting.observe(clock::now(), window, &|id| self.owners.of(id)))
    }
}

impl<T: Counting + Export> Export for Subject<T> {
    fn export(&self, into: &mut Families) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(counting) = state.as_mut() {
            counting.harvest(clock::now());
            counting.export(into);
        }
    }
}

macro_rules! counting {
    ($programs:ty, $observation:ty) => {
        impl Counting for $programs {
            type Observation = $observation;

            fn harvest(&mut self, now: Timestamp) {
                self.harvest(now);
            }

            fn observe(&self, now: Timestamp, window: Window, resolve: &dyn Fn(u64) -> Owner) -> $observation {
                self.observe(now, window, resolve)
            }
        }
    };
}

counting!(KernelTcp, Tcp);
counting!(KernelRejects, Rejects);
counting!(KernelUdp, Udp);
counting!(KernelNeighbours, NodeFailures);
