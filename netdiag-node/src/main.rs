//! Starts the agent, and stops it on SIGTERM or SIGINT; or runs another of its tasks.

use std::io::IsTerminal as _;

use anyhow::Context as _;
use netdiag_node::config::{Config, Task};
use netdiag_node::probe::series::sockets;
use netdiag_node::{agent, memory, report};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::EnvFilter;

/// The agent waits more than it works; the second worker keeps one large report from delaying the others.
const WORKERS: usize = 2;
/// Threads that make probes' sockets.
const BLOCKING_THREADS: usize = 4;

fn main() -> anyhow::Result<()> {
    match Task::of(std::env::args_os()).unwrap_or_else(|error| error.exit()) {
        Task::Agent(config) => start(*config),
        Task::Preflight(arguments) => Ok(report::print(&arguments)?),
        Task::Sockets(arguments) => {
            sockets::serve(&arguments);
            Ok(())
        }
    }
}

fn start(config: Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    let colours = std::io::stderr().is_terminal();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(colours)
        .with_writer(std::io::stderr)
        .init();
    memory::bound_arenas();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_THREADS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let result = runtime.block_on(run(config));
    // A reader that hangs in the kernel must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn run(config: Config) -> anyhow::Result<()> {
    let stop = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    let on_signal = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        on_signal.cancel();
    });
    Ok(agent::run(config, stop).await?)
}
