//! `cargo xtask bench observe`: what it costs to see, side by side with not looking.

mod bpf;
mod dns;
mod flood;
mod storm;
mod table;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::netdiag_image::{self, Build};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Rounds of each measurement
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Measure this agent instead of building one
    #[arg(long)]
    agent: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("kernel programs and network namespaces need root");
    }
    let agent = match &arguments.agent {
        Some(agent) => agent.clone(),
        None => netdiag_image::compile(Build::Release)?.agent,
    };
    println!("Linux {}, load average {}", kernel(), load_average());
    // Each table as soon as it is there: what cannot be measured must not hide what was.
    let mut missed = table::print(&storm::Storm::new(&agent)?.measure(arguments.rounds)?);
    missed += table::print(&dns::Dns::new(&agent)?.measure(arguments.rounds)?);
    if missed > 0 {
        bail!("{missed} targets were not met");
    }
    Ok(())
}

fn kernel() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "?".to_owned(), |name| name.release().to_string_lossy().into_owned())
}

/// A busy machine measures others' work.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
