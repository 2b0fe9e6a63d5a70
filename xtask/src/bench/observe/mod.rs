//! `cargo xtask bench observe`: what it costs to see, side by side with not looking.

mod agent;
mod bpf;
mod compare;
mod costs;
mod dns;
mod empty;
mod flood;
mod peer;
mod pods;
pub(super) mod process;
mod storm;
mod tcp;
pub(super) mod world;

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::kernel;
use crate::bench::table::Table;
use crate::netdiag_image::{self, Build};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to measure; everything without
    subjects: Vec<Subject>,
    /// Rounds of each measurement
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Measure this agent instead of building one
    #[arg(long)]
    agent: Option<PathBuf>,
    /// Write the tables to netdiag-node/docs/costs.md; with all subjects only, because it replaces the page
    #[arg(long, conflicts_with = "subjects")]
    write: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Subject {
    /// Packets dropped as fast as one processor sends them
    Storm,
    /// Queries through CoreDNS and through a bare responder
    Dns,
    /// Short connections through a translated address
    Tcp,
    /// CPU time, memory and start of the agent itself
    Agent,
}

const ALL: [Subject; 4] = [Subject::Storm, Subject::Dns, Subject::Tcp, Subject::Agent];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("kernel programs and network namespaces need root");
    }
    let agent = match &arguments.agent {
        Some(agent) => agent.clone(),
        None => netdiag_image::compile(Build::Release)?.agent,
    };
    let load = load_average();
    println!("Linux {}, load average {load}", kernel());
    let subjects = if arguments.subjects.is_empty() { &ALL[..] } else { &arguments.subjects };
    let mut tables = Vec::new();
    let mut failed = 0;
    for subject in subjects {
        // Each table as soon as it is there: what cannot be measured must not hide what was.
        let table = subject.measure(&agent, arguments.rounds).unwrap_or_else(|error| {
            failed += 1;
            let how = format!("not measured: {error:#}");
            Table { title: subject.title(), how, missing: Vec::new(), rows: Vec::new() }
        });
        table.print();
        tables.push(table);
    }
    if arguments.write {
        let command = format!("cargo xtask bench observe --write --rounds {}", arguments.rounds);
        costs::write(&command, &load, &tables)?;
    }
    let missed: usize = tables.iter().map(Table::missed).sum();
    if missed + failed > 0 {
        bail!("{missed} targets were not met, {failed} subjects could not be measured");
    }
    Ok(())
}

impl Subject {
    fn measure(self, agent: &Path, rounds: usize) -> Result<Table> {
        match self {
            Self::Storm => storm::Storm::new(agent)?.measure(rounds),
            Self::Dns => dns::Dns::new(agent)?.measure(rounds),
            Self::Tcp => tcp::Tcp::new(agent)?.measure(rounds),
            Self::Agent => agent::measure(agent, rounds),
        }
    }

    fn title(self) -> &'static str {
        match self {
            Self::Storm => storm::TITLE,
            Self::Dns => dns::TITLE,
            Self::Tcp => tcp::TITLE,
            Self::Agent => agent::TITLE,
        }
    }
}

/// A busy machine measures others' work.
fn load_average() -> String {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}
