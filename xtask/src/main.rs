//! The project's own commands: `cargo xtask help`. Each subcommand is one module.

#![expect(clippy::disallowed_methods, reason = "xtask sets up and tests the project: files and clocks are its work")]

mod bench;
mod cluster;
mod command;
mod demo;
mod e2e;
mod ebpf;
mod image;
mod install;
mod kernels;
mod netdiag_image;
mod parts;
mod place;
mod setup;
mod template;
mod test;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Sets up, builds, runs and tests netdiag")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing on this machine, or print the commands that do
    Setup(setup::Arguments),
    /// Build the eBPF programs with whichever toolchain is there
    Ebpf(ebpf::Arguments),
    /// Build netdiag's image and the two static programs in it, as users install them
    Image,
    /// Run a real Kubernetes cluster on this machine, without Docker
    #[command(subcommand)]
    Cluster(cluster::cli::Task),
    /// Break a small topology of network namespaces three times and show netdiag's answers
    Demo(demo::Arguments),
    /// The process of a pod of the demo
    #[command(hide = true)]
    DemoPod(demo::ServeArguments),
    /// Break a real cluster in many ways and compare netdiag's answers with the truth
    E2e(e2e::Arguments),
    /// Boot the kernels that users run, load every program, make each event happen; needs neither KVM nor root
    Kernels(kernels::Arguments),
    /// Run all tests; the last line counts them
    Test(test::Arguments),
    /// Measure
    #[command(subcommand)]
    Bench(bench::Task),
}

fn main() -> std::process::ExitCode {
    let result = match Arguments::parse().task {
        Task::Setup(arguments) => setup::run(&arguments),
        Task::Ebpf(arguments) => ebpf::run(&arguments),
        Task::Image => netdiag_image::run(),
        Task::Cluster(task) => cluster::cli::run(task),
        Task::Demo(arguments) => demo::run(&arguments),
        Task::DemoPod(arguments) => demo::serve(&arguments),
        Task::E2e(arguments) => e2e::run(&arguments),
        Task::Kernels(arguments) => kernels::run(&arguments),
        Task::Test(arguments) => test::run(&arguments),
        Task::Bench(task) => bench::run(&task),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
