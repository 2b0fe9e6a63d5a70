//! The agent's clocks.

use std::time::Duration;

use jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};

/// The node's wall clock.
#[expect(clippy::disallowed_methods, reason = "this is the agent's one door to the wall clock")]
pub fn now() -> Timestamp {
    Timestamp::now()
}

/// `CLOCK_BOOTTIME`, nanoseconds: the one clock that two reports of one boot can be compared by.
pub fn boottime_ns() -> u64 {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(since_boot.as_nanos()).unwrap_or(u64::MAX)
}
