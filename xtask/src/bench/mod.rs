//! `cargo xtask bench`: measured on a real cluster, never guessed.

mod answer;
mod observe;
mod probe;
mod programmed;
mod space;
mod table;

use anyhow::Result;

#[derive(clap::Subcommand)]
pub(crate) enum Task {
    /// How long an answer takes, from the command line to its last byte, and what the agents need for it
    Answer(answer::Arguments),
    /// What seeing costs: packets dropped in a storm with the agent and without
    Observe(observe::Arguments),
    /// What probes add to a round trip, how many an agent sustains, and what they cost
    Probe(probe::Arguments),
    /// What a question about one packet costs with very many Services: time, memory, and what listing all rules takes
    Programmed(programmed::Arguments),
}

pub(crate) fn run(task: &Task) -> Result<()> {
    match task {
        Task::Answer(arguments) => answer::run(arguments),
        Task::Observe(arguments) => observe::run(arguments),
        Task::Probe(arguments) => probe::run(arguments),
        Task::Programmed(arguments) => programmed::run(arguments),
    }
}

/// The running kernel's release.
fn kernel() -> String {
    nix::sys::utsname::uname().map_or_else(|_| "?".to_owned(), |name| name.release().to_string_lossy().into_owned())
}
