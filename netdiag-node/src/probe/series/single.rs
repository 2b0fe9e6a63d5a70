//! Attempts one at a time, for whoever has a schedule of their own: in the calling thread, which is in the namespace already.

use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::http::HttpProbe;
use netdiag_common::observation::series::tls::TlsProbe;
use netdiag_common::observation::series::{Identity, Probe, ProbeFailure, ProbeReport};
use tokio::time::timeout;

use super::caps::Caps;
use super::context::{Context, Ending};
use super::schedule::{GRACE, unended};
use super::{attempt, http, tls};

/// How long connections may take to say goodbye.
const FAREWELL_WITHIN: Duration = Duration::from_millis(100);

/// What the agent may send as a whole, shared with its series.
#[derive(Clone)]
pub(crate) struct Shares(pub(super) Arc<Caps>);

/// Makes attempts from the calling thread's namespace.
pub(crate) struct Single {
    context: Context,
}

/// How an attempt ended.
#[derive(Debug)]
pub(crate) struct Tried {
    pub failure: Option<ProbeFailure>,
    /// Until the answer was read; closing the connection is not in it.
    pub took: Duration,
    /// Each part that was got through, microseconds: `lookup`, `connect`, …
    pub phases: Vec<(&'static str, u64)>,
}

impl Shares {
    /// `resolver`: whom names are looked up with.
    pub(crate) fn single(&self, resolver: Option<Arc<Resolver>>) -> Single {
        Single { context: Context::new(Identity::default(), resolver, Arc::clone(&self.0), Instant::now()) }
    }
}

impl Single {
    pub(crate) async fn attempt(&self, probe: &Probe, within: Duration) -> Tried {
        let start = Instant::now();
        // A kind ends its attempts itself; this is for what does not.
        let ended = timeout(within + GRACE, attempt(&self.context, probe, within)).await;
        let ending = ended.unwrap_or_else(|_| unended(within));
        let took = took(&ending).map_or_else(|| start.elapsed(), Duration::from_micros);
        Tried { failure: ending.failure, took, phases: ending.phases }
    }

    /// Waits a moment for connections that are being closed.
    pub(crate) async fn farewell(&self) {
        self.context.farewell(FAREWELL_WITHIN).await;
    }
}

/// Without what comes after the answer.
fn took(ending: &Ending) -> Option<u64> {
    match &ending.report {
        ProbeReport::Http(report) => report.exchanges.iter().map(|exchange| exchange.phases.total_us).sum(),
        ProbeReport::Tls(_) => Some(ending.phases.iter().map(|(_, us)| us).sum()),
        _ => None,
    }
}

/// Whether such a request can be sent at all; an error says in words why not.
pub(crate) fn check_http(probe: &HttpProbe) -> Result<(), String> {
    http::check(probe)?;
    // Its own host's name is found by the client.
    tls::Wanted::new(&probe.tls).map(drop)
}

/// As [`check_http`].
pub(crate) fn check_tls(probe: &TlsProbe) -> Result<(), String> {
    tls::Wanted::new(&probe.words).map(drop)
}
