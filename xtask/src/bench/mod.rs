//! `cargo xtask bench`: measured on a real cluster, never guessed.

mod answer;

use anyhow::Result;

#[derive(clap::Subcommand)]
pub(crate) enum Task {
    /// How long an answer takes, from the command line to its last byte, and what the agents need for it
    Answer(answer::Arguments),
}

pub(crate) fn run(task: &Task) -> Result<()> {
    match task {
        Task::Answer(arguments) => answer::run(arguments),
    }
}
