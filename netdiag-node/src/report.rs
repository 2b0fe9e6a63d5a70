//! `netdiag-node preflight`: prints what this kernel and these rights allow, and the remedy for what they do not.

use std::path::Path;

use netdiag_common::observation::preflight::{Check, Preflight};

use crate::attribution::kubelet_root;
use crate::host::{Host, ReadError};
use crate::kernel::{Kernel, Sizes};
use crate::netns::NetnsHandle;
use crate::preflight::{Fixed, resident_bytes};

#[derive(Debug, Clone, clap::Args)]
pub struct Arguments {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    #[default]
    Table,
    Json,
}

/// Attaches every program for a moment, as an agent with the same rights would, and prints what became of it.
pub fn print(arguments: &Arguments) -> Result<(), ReadError> {
    let report = look()?;
    match arguments.output {
        Output::Table => print!("{}", table(&report)),
        Output::Json => println!("{}", serde_json::json!(report)),
    }
    Ok(())
}

fn look() -> Result<Preflight, ReadError> {
    let netns = NetnsHandle::open(Path::new("/proc/self/ns/net"))?;
    let host = Host { proc: "/proc".into(), netns, cgroup_root: None };
    let kernel = Kernel::load(Sizes::for_this_machine(), &kubelet_root(&host));
    let report = Preflight::from(Fixed::read(&host, kernel.checks()));
    Ok(Preflight { resident_bytes: resident_bytes(&host.proc), ..report })
}

/// One line for each check; what is missing has two more, with what is lost and the remedy.
fn table(report: &Preflight) -> String {
    let width = report.checks.iter().map(|check| check.name.len()).max().unwrap_or(0);
    let mut text = format!("{:width$}  {}\n", "kernel", report.kernel);
    for Check { name, ok, detail, lost, remedy } in &report.checks {
        let mark = if *ok { "" } else { "MISSING: " };
        text.push_str(&format!("{name:width$}  {mark}{detail}\n"));
        for (title, line) in [("lost", lost), ("remedy", remedy)] {
            if !line.is_empty() {
                text.push_str(&format!("{:width$}  {title}: {line}\n", ""));
            }
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_has_what_is_lost_and_the_remedy() {
        let check = |name: &str, ok: bool, words: [&str; 3]| {
            let [detail, lost, remedy] = words.map(str::to_owned);
            Check { name: name.to_owned(), ok, detail, lost, remedy }
        };
        let report = Preflight {
            kernel: "5.10.0-46".to_owned(),
            checks: vec![
                check("program kfree_skb", true, ["tp_btf", "", ""]),
                check("btf", false, ["cannot read", "drops", "mount /sys"]),
            ],
            ..Preflight::default()
        };
        let expected = "\
kernel             5.10.0-46
program kfree_skb  tp_btf
btf                MISSING: cannot read
                   lost: drops
                   remedy: mount /sys
";
        assert_eq!(table(&report), expected);
    }
}
