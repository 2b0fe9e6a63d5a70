//! The agent's clocks.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// The node's wall clock.
#[expect(clippy::disallowed_methods, reason = "this is the agent's one door to the wall clock")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// The clock of the kernel programs' records (`bpf_ktime_get_ns`), nanoseconds.
pub fn monotonic_ns() -> u64 {
    let since_boot = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from);
    u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX)
}

/// How long ago the kernel noted a time of `CLOCK_REALTIME`. None where that clock was set back since.
pub(crate) fn since(noted: TimeSpec) -> Option<Duration> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).ok()?;
    Duration::from(now).checked_sub(noted.into())
}

/// One moment on both clocks: tells the wall time of a kernel program's record.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    pub wall: Timestamp,
    pub monotonic_ns: u64,
}

impl Moment {
    pub fn at(self, ns: u64) -> Timestamp {
        let past = self.monotonic_ns.cast_signed().saturating_sub(ns.cast_signed());
        self.wall.checked_sub(SignedDuration::from_nanos(past)).unwrap_or(self.wall)
    }
}

/// `CLOCK_BOOTTIME`, nanoseconds: the one clock that two reports of one boot can be compared by.
pub fn boottime_ns() -> u64 {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX)
}
