//! Series of probes: attempts of one kind on a schedule, sent from inside one network namespace, counted exactly.
//!
//! A series has a thread (two where many attempts go at the same time), which enters the namespace, takes the
//! owner that was asked for, and drives all its sockets itself: an attempt costs no hop to another thread.

mod caps;
mod context;
mod dns;
mod endpoint;
mod enter;
mod errqueue;
mod flow;
mod http;
mod icmp;
mod icmp_error;
mod path;
mod path_mtu;
mod raw;
mod ready;
mod request;
mod schedule;
mod single;
pub mod sockets;
mod tally;
mod tcp;
mod tcp_info;
mod throughput;
mod tls;
mod udp;

use std::sync::Arc;
use std::time::{Duration, Instant};

use netdiag_common::observation::resolver::Resolver;
use netdiag_common::observation::series::{MAX_SERIES_MS, Probe, SeriesRequest, SeriesResult};
use tokio::time::timeout_at;
use tokio_util::sync::CancellationToken;

use caps::Caps;
pub use caps::{AllowList, AllowListError, MAX_CONCURRENT, MAX_SERIES, PACKETS_PER_S};
use context::{Context, Ending};
use enter::Threads;
use schedule::Series;
pub(crate) use single::{Shares, Single, Tried, check_http, check_tls};
use sockets::Maker;
pub use sockets::{Group, Joins};
use tally::Tally;

use crate::gap::Failure;
use crate::netns::NetnsHandle;

/// From so many attempts at the same time on, a series has two threads.
const PARALLEL_OF_TWO_THREADS: u16 = 64;
/// How long connections that were closed with FIN may take to say goodbye after the last attempt.
const FAREWELL_WITHIN: Duration = Duration::from_millis(600);

/// Makes the series of one agent, within what the agent may do as a whole.
pub struct Engine {
    caps: Arc<Caps>,
    threads: Threads,
}

/// Where a series is sent from.
#[derive(Debug, Clone)]
pub struct Place {
    pub netns: NetnsHandle,
    /// The node's own namespace: its connection tracking knows which endpoint stands behind a Service's address.
    pub node: NetnsHandle,
    /// The place's resolv.conf; none where it could not be read, and `unseen` says why.
    pub resolver: Option<Arc<Resolver>>,
    /// The control group that the sockets are to be of, where that makes a difference.
    pub group: Option<Group>,
    /// What could not be seen of the place, in words with a remedy.
    pub unseen: Vec<String>,
}

impl Engine {
    /// `throughput`: whether probes that fill a link are made at all.
    pub fn new(allowed: AllowList, throughput: bool) -> Self {
        Self { caps: Arc::new(Caps::new(allowed, throughput)), threads: Threads::default() }
    }

    /// For attempts that are made elsewhere: what the agent sends as a whole stays within its limits.
    pub(crate) fn shares(&self) -> Shares {
        Shares(Arc::clone(&self.caps))
    }

    /// Makes the attempts until all are made or `until` comes, whichever is first. What the network did to them is the result;
    /// an error is a request beyond the limits, a destination that is not allowed, or a namespace that cannot be entered.
    /// Dropping the future ends the series.
    pub async fn run(&self, place: Place, request: &SeriesRequest, until: Instant) -> Result<SeriesResult, Failure> {
        request::check(request)?;
        self.caps.allow_kind(&request.probe)?;
        if let Some(to) = request::target(&request.probe) {
            self.caps.allow(to).map_err(|failure| Caps::refused(&failure))?;
        }
        let asked = Instant::now();
        let until = until.min(asked + Duration::from_millis(MAX_SERIES_MS));
        // Half of the time at most is spent waiting for others, so that there is some left for the series.
        let patience = asked + until.saturating_duration_since(asked) / 2;
        let turn = timeout_at(patience.into(), self.caps.series()).await.map_err(|_| Caps::crowded())?;
        let turn = Arc::new(turn);

        let over = CancellationToken::new();
        let _ends_with_this = over.clone().drop_guard();
        let mut finder = endpoint::Finder::new(&place, &request.probe);
        // One in a group: all its sockets pass the same programs, or none does.
        let threads = if request.parallel >= PARALLEL_OF_TWO_THREADS && place.group.is_none() { 2 } else { 1 };
        let lanes = request.parallel.min(u16::try_from(request.count).unwrap_or(u16::MAX)).div_ceil(threads);
        let series = Arc::new(Series::new(request.clone(), Arc::clone(&self.caps), asked, until, finder.asker()));
        let mut workers = Vec::with_capacity(threads.into());
        for _ in 0..threads {
            let (series, caps, over) = (Arc::clone(&series), Arc::clone(&self.caps), over.clone());
            let (identity, resolver, turn) = (request.identity, place.resolver.clone(), Arc::clone(&turn));
            let (opener, group) = (finder.opener(), place.group.clone());
            let open = move || {
                if let Some(opener) = opener {
                    opener.open();
                }
            };
            let work = async move || {
                let mut context = Context::new(identity, resolver, caps, asked);
                let bypassed = match group {
                    Some(group) => join(&mut context, group, identity.uid).await,
                    None => Vec::new(),
                };
                let tally = tokio::select! {
                    tally = schedule::run(&context, &series, lanes) => tally,
                    () = over.cancelled() => Tally::default(),
                };
                context.farewell(FAREWELL_WITHIN).await;
                drop(turn);
                (tally, bypassed)
            };
            workers.push(self.threads.start(place.netns.clone(), request.identity, open, work)?);
        }
        finder.start();
        let mut tally = Tally::default();
        let mut bypassed = Vec::new();
        for worker in workers {
            let (made, passed_by) = worker.await.map_err(|_| Failure::Panicked)??;
            tally.merge(made);
            bypassed.extend(passed_by);
        }
        drop(series);
        let (endpoints, unseen) = finder.finish().await;
        let mut result = tally.result(request.count, &endpoints);
        result.unseen.extend(place.unseen);
        result.unseen.extend(bypassed);
        result.unseen.extend(unseen);
        Ok(result)
    }
}

/// Where the group cannot be joined, sockets are the agent's own; what they do not pass is returned, with the reason.
async fn join(context: &mut Context, group: Group, uid: Option<u32>) -> Vec<String> {
    match Maker::start(&group, uid).await {
        Ok(maker) => {
            context.make_sockets_by(maker);
            Vec::new()
        }
        Err(why) => {
            let mut bypassed = group.programs;
            bypassed.push(why);
            bypassed
        }
    }
}

/// One attempt of any kind. The large ones are boxed, so that those that go by the ten thousand stay small.
async fn attempt(context: &Context, probe: &Probe, within: Duration) -> Ending {
    match probe {
        Probe::Tcp(probe) => tcp::attempt(context, probe, within).await,
        Probe::Dns(probe) => Box::pin(dns::attempt(context, probe, within)).await,
        Probe::Http(probe) => Box::pin(http::attempt(context, probe, within)).await,
        Probe::Tls(probe) => Box::pin(tls::attempt(context, probe, within)).await,
        Probe::Udp(probe) => Box::pin(udp::attempt(context, probe, within)).await,
        Probe::Icmp(probe) => Box::pin(icmp::attempt(context, probe, within)).await,
        Probe::PathMtu(probe) => Box::pin(path_mtu::attempt(context, probe, within)).await,
        Probe::Path(probe) => Box::pin(path::attempt(context, probe, within)).await,
        Probe::Throughput(probe) => Box::pin(throughput::attempt(context, probe, within)).await,
        Probe::Raw(probe) => Box::pin(raw::attempt(context, probe, within)).await,
    }
}
