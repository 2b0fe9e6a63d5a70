//! `netdiag explain CODE`: what a condition means, how we know, when we stay silent, what to do.

use super::output::{self, ShortFormat};
use super::{EXIT_HEALTHY, Failure};
use crate::answer::explain;

/// Says what a cause's code means; without one, lists all codes
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// As in an answer: service_selects_no_pods
    code: Option<String>,
    #[arg(short, long, value_enum, default_value = "text")]
    output: ShortFormat,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    let page = match (&args.code, args.output) {
        (None, ShortFormat::Json) => output::json(&explain::all())?,
        (None, ShortFormat::Text) => explain::all()
            .iter()
            .map(|entry| format!("{:32} {}", entry.code, entry.means))
            .collect::<Vec<_>>()
            .join("\n"),
        (Some(code), format) => {
            let entry = explain::explain(code).map_err(|error| Failure(error.to_string()))?;
            match format {
                ShortFormat::Json => output::json(&entry)?,
                ShortFormat::Text => entry.text(output::paint()),
            }
        }
    };
    output::print(&page)?;
    Ok(EXIT_HEALTHY)
}
