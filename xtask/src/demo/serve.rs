//! A server to connect to, or with no address a pod that only exists. Ends when its parent does.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    address: Option<SocketAddr>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).context("cannot ask to end with the parent")?;
    let Some(address) = arguments.address else {
        loop {
            std::thread::park();
        }
    };
    let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
    for connection in listener.incoming() {
        // A client that is gone again is no reason to stop serving.
        drop(connection);
    }
    Ok(())
}
