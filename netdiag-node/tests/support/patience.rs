//! How long tests wait: limits fit an ordinary machine, and stretch on an emulated one.

use std::time::Duration;

/// `limit` times [`slowness`].
pub fn patient(limit: Duration) -> Duration {
    limit * slowness()
}

/// `NETDIAG_PATIENCE`, which whoever runs the tests on a slow machine sets; else 1.
pub fn slowness() -> u32 {
    std::env::var("NETDIAG_PATIENCE").ok().and_then(|times| times.parse().ok()).unwrap_or(1)
}
