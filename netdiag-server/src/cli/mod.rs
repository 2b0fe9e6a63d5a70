//! The command line: one file per command, a few lines each over the library.

use std::ffi::OsStr;
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::answer::{Answer, StatusName};
use crate::ask::{AskError, SourceError};
use crate::observed::SelectError;

mod bundle;
mod certs;
mod diagnose;
mod drift;
mod explain;
mod mcp;
mod mesh;
mod observe;
mod output;
mod probe;
mod request;
mod scan;
mod screen;
mod serve;
mod source;
mod status;
mod stop;
mod trace;

/// Nothing is wrong.
pub const EXIT_HEALTHY: u8 = 0;
/// A cause was found.
pub const EXIT_CAUSE: u8 = 1;
/// Wrong usage, or no answer at all.
pub const EXIT_FAILED: u8 = 2;
/// Something fails, or could not be seen, and no cause was found.
pub const EXIT_UNEXPLAINED: u8 = 3;

/// Why does this packet, connection or name fail, and what should be changed?
#[derive(Debug, Parser)]
#[command(name = "netdiag", version, propagate_version = true, max_term_width = 110)]
#[command(
    after_help = "Exit codes: 0 healthy, 1 a cause was found, 2 usage or failure, 3 a symptom or gaps without a cause."
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Diagnose(diagnose::Args),
    Scan(scan::Args),
    Observe(observe::Args),
    Trace(trace::Args),
    Drift(drift::Args),
    Probe(probe::Args),
    Explain(explain::Args),
    Status(status::Args),
    Bundle(bundle::Args),
    Certs(certs::Args),
    Mcp(mcp::Args),
    Serve(serve::Args),
}

impl Cli {
    /// Understands the process's arguments, or prints help and ends the process.
    pub fn from_process() -> Self {
        let mut command = Self::command();
        let called = std::env::args_os().next();
        if called.as_deref().is_some_and(is_plugin) {
            command = command.bin_name("kubectl netdiag");
        }
        let matches = command.get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

/// kubectl runs `netdiag` as a plugin under the name `kubectl-netdiag`.
fn is_plugin(called: &OsStr) -> bool {
    Path::new(called).file_stem().is_some_and(|name| name == "kubectl-netdiag" || name == "kubectl_netdiag")
}

/// No answer: one sentence with the thing and the way out.
#[derive(Debug)]
struct Failure(String);

impl From<SourceError> for Failure {
    fn from(error: SourceError) -> Self {
        Self(error.message)
    }
}

impl From<AskError> for Failure {
    fn from(error: AskError) -> Self {
        Self(error.to_string())
    }
}

impl From<SelectError> for Failure {
    fn from(error: SelectError) -> Self {
        Self(error.to_string())
    }
}

/// Runs one command to its end.
pub async fn run(cli: Cli) -> ExitCode {
    let result = match cli.command {
        Command::Diagnose(args) => diagnose::run(args).await,
        Command::Scan(args) => scan::run(args).await,
        Command::Observe(args) => observe::run(args).await,
        Command::Trace(args) => trace::run(args).await,
        Command::Drift(args) => drift::run(args).await,
        Command::Probe(args) => Box::pin(probe::run(args)).await,
        Command::Explain(args) => explain::run(&args),
        Command::Status(args) => status::run(args).await,
        Command::Bundle(args) => bundle::run(args).await,
        Command::Certs(args) => certs::run(args).await,
        Command::Mcp(args) => mcp::run(args).await,
        Command::Serve(args) => serve::run(args).await,
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(Failure(message)) => {
            eprintln!("netdiag: {message}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

fn exit_code(answer: &Answer) -> u8 {
    match answer.status {
        _ if !answer.causes.is_empty() => EXIT_CAUSE,
        StatusName::Healthy => EXIT_HEALTHY,
        StatusName::Broken | StatusName::Degraded | StatusName::Unknown => EXIT_UNEXPLAINED,
    }
}
