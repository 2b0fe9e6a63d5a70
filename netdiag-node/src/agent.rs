//! The agent's life: start, answer, stop.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::api;
use crate::config::Config;
use crate::host::{Host, ReadError, file};
use crate::memory;
use crate::netns::NetnsHandle;
use crate::readings::Readings;
use crate::serve;
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
}

/// Runs until `stop`. Nothing of the agent outlives its process: no file, no rule, no pinned program.
pub async fn run(config: Config, stop: CancellationToken) -> Result<(), StartError> {
    let tls = Arc::new(Tls::load(&config.tls_dir)?);
    let netns = NetnsHandle::open(&config.host_netns).map_err(StartError::Netns)?;
    let host = Host { proc: config.proc, netns, cgroup_root: config.cgroup_root };
    let boot_id = boot_id(&host.proc);
    let listener = TcpListener::bind(config.listen)
        .await
        .map_err(|source| StartError::Listen { address: config.listen, source })?;
    let listen = listener.local_addr().unwrap_or(config.listen);
    let readings = Readings::new(config.node_name.clone(), host);
    tracing::info!(node = config.node_name, %listen, version = env!("CARGO_PKG_VERSION"), "listening");

    let follow = {
        let tls = Arc::clone(&tls);
        tokio::spawn(async move { tls.follow().await })
    };
    let harvest = tokio::spawn(harvest(readings.watch()));
    let tick = tokio::spawn(tick(readings.watch()));
    serve::run(listener, api::router(readings, Arc::clone(&tls), boot_id), tls, stop).await;
    follow.abort();
    harvest.abort();
    tick.abort();
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

fn boot_id(proc: &Path) -> String {
    const BOOT_ID_BYTES: u64 = 128;
    let text = file::text(&proc.join("sys/kernel/random/boot_id"), BOOT_ID_BYTES).unwrap_or_default();
    text.trim().to_owned()
}
