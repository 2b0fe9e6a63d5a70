//! What the agent writes into the programs before the kernel sees them: frozen globals and the tables' sizes.

use std::collections::BTreeMap;

use aya::EbpfLoader;

/// A program's global. The verifier treats it as a constant and removes the branches it makes unreachable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    U32(u32),
    U64(u64),
}

impl From<u32> for Global {
    fn from(value: u32) -> Self {
        Self::U32(value)
    }
}

impl From<u64> for Global {
    fn from(value: u64) -> Self {
        Self::U64(value)
    }
}

/// Each subject adds its part; a subject whose part fails is not attached, and its globals do not matter.
#[derive(Debug, Clone, Default)]
pub(super) struct Plan {
    globals: BTreeMap<&'static str, Global>,
    rows: BTreeMap<&'static str, u32>,
}

impl Plan {
    /// What every program may want to know of this machine.
    pub(super) fn for_this_machine() -> Self {
        let mut plan = Self::default();
        plan.set("CPUS", cpus_u32());
        plan.set("SEED", random());
        plan.set("TICK_NS", tick_ns());
        plan
    }

    pub(super) fn set(&mut self, global: &'static str, value: impl Into<Global>) {
        self.globals.insert(global, value.into());
    }

    /// The number of rows of a map; of bytes for a ring buffer.
    pub(super) fn size(&mut self, map: &'static str, rows: u32) {
        self.rows.insert(map, rows);
    }

    pub(super) fn has(&self, global: &str, value: impl Into<Global>) -> bool {
        self.globals.get(global) == Some(&value.into())
    }

    /// A global of the plan that the object lacks is an error: it would silently stay 0.
    pub(super) fn apply<'a>(&'a self, loader: &mut EbpfLoader<'a>) {
        for (name, value) in &self.globals {
            match value {
                Global::U32(value) => loader.override_global(name, value, true),
                Global::U64(value) => loader.override_global(name, value, true),
            };
        }
        for (name, rows) in &self.rows {
            loader.map_max_entries(name, *rows);
        }
    }
}

/// Possible CPUs: tables have a row for each. 1 when the kernel does not say.
pub(super) fn cpus() -> usize {
    aya::util::nr_cpus().unwrap_or(1)
}

pub(super) fn cpus_u32() -> u32 {
    u32::try_from(cpus()).expect("a kernel has fewer than 2^32 CPUs")
}

/// Length of a jiffy: the resolution of the clock that only moves with them.
pub(super) fn tick_ns() -> u64 {
    /// `CONFIG_HZ=250`, the most common.
    const COMMON: u64 = 4_000_000;
    nix::time::clock_getres(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)
        .ok()
        .and_then(|tick| u64::try_from(tick.tv_nsec()).ok())
        .filter(|tick| *tick > 0)
        .unwrap_or(COMMON)
}

/// Who sends packets chooses the keys, and must not be able to choose their hash.
fn random() -> u64 {
    let mut seed = [0_u8; 8];
    // SAFETY: the buffer has the length that is passed. Without entropy the seed stays 0, and only the hash is guessable.
    unsafe { libc::getrandom(seed.as_mut_ptr().cast(), seed.len(), 0) };
    u64::from_ne_bytes(seed)
}
