//! `cargo xtask bench`: measured on a real cluster, never guessed.

mod answer;
mod observe;

use anyhow::Result;

#[derive(clap::Subcommand)]
pub(crate) enum Task {
    /// How long an answer takes, from the command line to its last byte, and what the agents need for it
    Answer(answer::Arguments),
    /// What seeing costs: packets dropped in a storm with the agent and without
    Observe(observe::Arguments),
}

pub(crate) fn run(task: &Task) -> Result<()> {
    match task {
        Task::Answer(arguments) => answer::run(arguments),
        Task::Observe(arguments) => observe::run(arguments),
    }
}
