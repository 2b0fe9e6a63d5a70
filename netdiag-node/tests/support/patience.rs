//! How long tests wait: limits fit an ordinary machine, and stretch on an emulated one.

use std::time::Duration;

/// `limit` times `NETDIAG_PATIENCE`, which whoever runs the tests on a slow machine sets.
pub fn patient(limit: Duration) -> Duration {
    let times = std::env::var("NETDIAG_PATIENCE").ok().and_then(|times| times.parse().ok());
    limit * times.unwrap_or(1)
}
