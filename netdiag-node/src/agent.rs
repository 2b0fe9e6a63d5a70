//! The agent's life: start, answer, stop.

use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::api::{self, Life};
use crate::clock;
use crate::config::Config;
use crate::host::{Host, ReadError, file};
use crate::memory;
use crate::metrics::otlp::{Otlp, OtlpError};
use crate::metrics::{self, Gather};
use crate::netns::NetnsHandle;
use crate::probe::series::Joins;
use crate::readings::Readings;
use crate::samples::{ROUND_EVERY, Samples};
use crate::serve::{self, Door};
use crate::tls::{Tls, TlsError};
use crate::watch::{HARVEST_EVERY, TICK_EVERY, Watch};

/// Why the agent cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("cannot use the certificates: {0}")]
    Tls(#[from] TlsError),
    #[error("cannot open the node's network namespace: {0}")]
    Netns(ReadError),
    #[error("cannot listen on {address}: {source}")]
    Listen { address: SocketAddr, source: io::Error },
    #[error("cannot export metrics: {0}")]
    Otlp(#[from] OtlpError),
}

/// Runs until `stop`. Nothing of the agent outlives its process: no file, no rule, no pinned program.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), StartError> {
    let tls = Arc::new(Tls::load(&config.tls_dir)?);
    let netns = NetnsHandle::open(&config.host_netns).map_err(StartError::Netns)?;
    let host = Host { proc: config.proc, netns, cgroup_root: config.cgroup_root };
    let life = Life { boot_id: boot_id(&host.proc), instance: random_instance() };
    let started = clock::now();
    let listener = bind(config.listen).await?;
    let metrics = match config.metrics_listen {
        Some(address) => Some(bind(address).await?),
        None => None,
    };
    let otlp = Otlp::new(&config.otlp)?;
    let listen = listener.local_addr().unwrap_or(config.listen);
    let readings = Readings::new(config.node_name.clone(), host, config.budget, &config.dns_ports, config.uprobes);
    let readings = readings.allow_trace(config.allow_trace).allow_probes(config.probe_allow, config.probe_throughput);
    let readings = readings.join_groups(if config.probe_join_cgroup { Joins::WhereNeeded } else { Joins::Never });
    let readings = Arc::new(readings);
    let (version, instance) = (env!("CARGO_PKG_VERSION"), life.instance.as_str());
    tracing::info!(node = config.node_name, %listen, version, instance, "listening");

    // Dropping the set ends them.
    let mut tasks = JoinSet::new();
    let follow = Arc::clone(&tls);
    tasks.spawn(async move { follow.follow().await });
    tasks.spawn(harvest(readings.watch()));
    tasks.spawn(tick(readings.watch()));
    tasks.spawn(look_around(readings.samples()));
    let gather = Arc::new(Gather::new(Arc::clone(&readings), life.instance.clone(), started));
    if let Some(listener) = metrics {
        tracing::info!(listen = ?listener.local_addr().ok(), "serving metrics");
        tasks.spawn(metrics::serve(listener, Arc::clone(&gather), stop.clone()));
    }
    if let Some(otlp) = otlp {
        tasks.spawn(otlp.run(gather));
    }
    serve::run(listener, api::router(readings, Arc::clone(&tls), life), Door::Server(tls), stop).await;
    drop(tasks);
    tracing::info!("stopped");
    Ok(())
}

/// For ever. Harvests block, so they leave the reactor's threads.
async fn harvest(watch: Arc<Watch>) {
    loop {
        tokio::time::sleep(HARVEST_EVERY).await;
        let watch = Arc::clone(&watch);
        let work = move || {
            watch.harvest();
            memory::give_back();
        };
        if tokio::task::spawn_blocking(work).await.is_err() {
            tracing::error!("a harvest panicked");
        }
    }
}

/// For ever: what cannot wait for a harvest.
async fn tick(watch: Arc<Watch>) {
    loop {
        tokio::time::sleep(TICK_EVERY).await;
        let watch = Arc::clone(&watch);
        if tokio::task::spawn_blocking(move || watch.tick()).await.is_err() {
            tracing::error!("reading names of DNS queries panicked");
        }
    }
}

/// For ever, from now on: what is asked in a minute is answered from this first look.
async fn look_around(samples: Arc<Samples>) {
    loop {
        let round = Arc::clone(&samples);
        match tokio::task::spawn_blocking(move || round.round()).await {
            Ok(Ok(round)) if round.late > 0 => tracing::debug!(?round, "not all pods were looked at in time"),
            Ok(Ok(_)) => {}
            Ok(Err(error)) => tracing::debug!(%error, "counters not looked at"),
            Err(_) => tracing::error!("a look at counters panicked"),
        }
        tokio::time::sleep(ROUND_EVERY).await;
    }
}

async fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { address, source })
}

/// Counts begin anew with each start of the agent: 64 random bits tell two starts apart where clocks and process ids may not.
fn random_instance() -> String {
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}

fn boot_id(proc: &Path) -> String {
    const BOOT_ID_BYTES: u64 = 128;
    let text = file::text(&proc.join("sys/kernel/random/boot_id"), BOOT_ID_BYTES).unwrap_or_default();
    text.trim().to_owned()
}
