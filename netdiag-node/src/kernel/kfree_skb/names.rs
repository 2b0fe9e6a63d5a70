//! Names of the functions that dropped packets.

use std::collections::HashMap;

use crate::host;
use crate::kernel::symbols::{Symbols, hex};

/// Reading /proc/kallsyms takes 0.1 s; a module that was just loaded can wait this long for its names.
const SYMBOLS_AGE_NS: u64 = 60_000_000_000;
/// A kernel has a few hundred places that drop packets.
const MAX_LOCATIONS: usize = 4096;

pub(super) struct Names {
    symbols: Symbols,
    read_ns: u64,
    /// High half of kernel addresses, from the last exemplar: completes a location that has no name.
    high_half: u32,
    /// Names of the low halves seen, so that an observation does not search again.
    locations: HashMap<u32, String>,
}

impl Names {
    pub(super) fn read(now_ns: u64) -> Self {
        Self { symbols: read_symbols(), read_ns: now_ns, high_half: u32::MAX, locations: HashMap::new() }
    }

    /// False without the right to read kernel symbols.
    pub(super) fn are_known(&self) -> bool {
        !self.symbols.is_empty()
    }

    /// Looks up the names of locations not seen before, in fresh symbols when one is missing.
    pub(super) fn learn(&mut self, locations: impl Iterator<Item = u32>, now_ns: u64) {
        let mut unknown: Vec<u32> = locations.filter(|low| !self.locations.contains_key(low)).collect();
        unknown.sort_unstable();
        unknown.dedup();
        let missing = unknown.iter().any(|low| self.symbols.name_by_low_half(*low).is_none());
        if missing && now_ns.saturating_sub(self.read_ns) > SYMBOLS_AGE_NS {
            self.symbols = read_symbols();
            self.read_ns = now_ns;
        }
        for low in unknown {
            if self.locations.len() < MAX_LOCATIONS
                && let Some(name) = self.symbols.name_by_low_half(low)
            {
                self.locations.insert(low, name.to_owned());
            }
        }
    }

    /// Takes the high half of kernel addresses from a whole one.
    pub(super) fn complete(&mut self, address: u64) {
        self.high_half = (address >> 32) as u32;
    }

    pub(super) fn location(&self, low: u32) -> String {
        match self.locations.get(&low) {
            Some(name) => name.clone(),
            None => hex((u64::from(self.high_half) << 32) | u64::from(low)),
        }
    }

    pub(super) fn function(&self, address: u64) -> String {
        self.known(address).map_or_else(|| hex(address), str::to_owned)
    }

    pub(super) fn known(&self, address: u64) -> Option<&str> {
        self.symbols.name(address)
    }
}

/// Names are a help, not a need: without them locations stay numbers.
fn read_symbols() -> Symbols {
    host::kernel::symbols().map(Symbols::parse).unwrap_or_default()
}
