//! DNS queries over time: empties the kernel's tables now and then, and learns whose a namespace is soon after its first query.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use netdiag_common::Window;
use netdiag_common::observation::Owner;
use netdiag_common::observation::dns::Dns;

use crate::clock;
use crate::gap::Failure;
use crate::kernel::{KernelDns, LoadError};
use crate::metrics::{Export, Families};
use crate::owners::Owners;
use crate::shed::{Shedding, Step};

/// Namespaces of nobody that the pods were looked through for: those of other nodes on this kernel, and of ended pods.
const MAX_STRANGERS: usize = 1024;

/// The loaded programs, or why there are none.
pub struct DnsWatch {
    owners: Arc<Owners>,
    shedding: Arc<Shedding>,
    state: Mutex<Result<KernelDns, LoadError>>,
    strangers: Mutex<HashSet<u64>>,
}

impl DnsWatch {
    pub fn new(owners: Arc<Owners>, shedding: Arc<Shedding>, dns: Result<KernelDns, LoadError>) -> Self {
        Self { owners, shedding, state: Mutex::new(dns), strangers: Mutex::default() }
    }

    /// To be called every second. A pod that asks its first question is looked for at once: it may end before the next harvest.
    pub fn tick(&self) {
        let seen = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.as_mut().map(KernelDns::tick).unwrap_or_default()
        };
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if strangers.len() > MAX_STRANGERS {
            strangers.clear();
        }
        let is_new = |id: u64| matches!(self.owners.of(id), Owner::Unknown { .. }) && strangers.insert(id);
        if seen.into_iter().filter(|id| *id != 0).map(is_new).fold(false, |any, new| any | new)
            && let Err(error) = self.owners.refresh()
        {
            tracing::debug!(%error, "pods not seen after a first DNS query");
        }
    }

    /// To be called after the owners were refreshed. Blocks for some 20 ms.
    pub fn harvest(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(dns) = state.as_mut() {
            dns.harvest(clock::now());
        }
    }

    /// What was asked and answered in the window, up to now.
    pub fn observe(&self, window: Window) -> Result<Dns, Failure> {
        self.owners.refresh()?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let dns = state.as_mut().map_err(|error| Failure::from(&*error))?;
        dns.harvest(clock::now());
        let mut found = dns.observe(clock::now(), window.seconds() * 1_000_000_000, &|id| self.owners.of(id));
        found.unseen.extend(self.shedding.gap(Step::Exemplars));
        Ok(found)
    }
}

impl Export for DnsWatch {
    fn export(&self, into: &mut Families) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let Ok(dns) = state.as_mut() {
            dns.harvest(clock::now());
            dns.export(into);
        }
    }
}
