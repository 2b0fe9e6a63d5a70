//! `netdiag explain CODE`: what a condition means, how we know, when we stay silent, what to do.

use super::{EXIT_HEALTHY, Failure};
use crate::condition::{self, Condition};

/// Prints what a cause's code means; without one, all codes
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// As in an answer: service_selects_no_pods
    code: Option<String>,
}

pub(super) fn run(args: &Args) -> Result<u8, Failure> {
    match &args.code {
        None => {
            for condition in condition::ALL {
                println!("{:34} {}", condition.code, condition.words.means);
            }
        }
        Some(code) => print!("{}", in_words(find(code)?)),
    }
    Ok(EXIT_HEALTHY)
}

fn find(code: &str) -> Result<&'static Condition, Failure> {
    condition::find(code).ok_or_else(|| {
        let codes: Vec<&str> = condition::ALL.iter().map(|condition| condition.code).collect();
        Failure(format!("there is no condition {code:?}; there is {}", codes.join(", ")))
    })
}

fn in_words(condition: &Condition) -> String {
    let words = &condition.words;
    let mut text = format!("{} (severity {})\n", condition.code, condition.severity.name());
    for (title, body) in [
        ("means", words.means),
        ("how we know", words.how_we_know),
        ("silent when", words.silent_when),
        ("what to do", words.what_to_do),
    ] {
        text.push_str(&format!("\n{title}\n  {body}\n"));
    }
    if !words.sources.is_empty() {
        text.push_str(&format!("\nsources\n  {}\n", words.sources.join("\n  ")));
    }
    text
}
