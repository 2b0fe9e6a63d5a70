//! `cargo xtask e2e`: real faults in a real cluster, felt by a real client, named by netdiag.
//!
//! Each case: the world is well → inject → the client feels it → ask netdiag with all views and with each taken away → restore
//! → the world is well again.

mod asker;
mod case;
mod client;
mod verdict;
mod world;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cluster::{Cluster, Cni, Options, ProxyMode};
use crate::netdiag_image::Build;
use asker::Asker;
use case::Case;
use verdict::{View, Way};

#[derive(Args)]
pub(crate) struct Arguments {
    /// How kube-proxy programs Services.
    #[arg(long, default_value = "both")]
    mode: Modes,
    /// Also the variants of cases that run by name only.
    #[arg(long)]
    extra: bool,
    /// Leave the last cluster up, for looking around.
    #[arg(long)]
    keep: bool,
    /// Cases by name; all when none is given.
    cases: Vec<String>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { mode: Modes::Both, extra: false, keep: false, cases: Vec::new() }
    }
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum Modes {
    Nftables,
    Iptables,
    Both,
}

/// How many answers were right.
pub(crate) struct Score {
    pub(crate) right: usize,
    pub(crate) wrong: usize,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let score = score(arguments)?;
    if score.wrong > 0 {
        bail!("{} of {} cases are wrong", score.wrong, score.wrong + score.right);
    }
    Ok(())
}

/// Runs the chosen cases in the chosen modes.
pub(crate) fn score(arguments: &Arguments) -> Result<Score> {
    let modes: &[ProxyMode] = match arguments.mode {
        Modes::Nftables => &[ProxyMode::Nftables],
        Modes::Iptables => &[ProxyMode::Iptables],
        Modes::Both => &[ProxyMode::Nftables, ProxyMode::Iptables],
    };
    let cases = case::load(&arguments.cases, arguments.extra)?;
    let mut total = Score { right: 0, wrong: 0 };
    for mode in modes {
        let mut right = 0;
        for cni in [Cni::Ptp, Cni::Cilium] {
            let chosen: Vec<&Case> = cases.iter().filter(|case| case.cni == cni).collect();
            if !chosen.is_empty() {
                right += in_cluster(*mode, cni, &chosen, arguments.keep)?;
            }
        }
        println!("{}: {right} of {} right", mode.name(), cases.len());
        total.right += right;
        total.wrong += cases.len() - right;
    }
    Ok(total)
}

/// The healthy world, for others who need something to ask about.
pub(crate) fn deploy_world(cluster: &Cluster) -> Result<()> {
    world::deploy(cluster)
}

fn in_cluster(mode: ProxyMode, cni: Cni, cases: &[&Case], keep: bool) -> Result<usize> {
    let options = Options { name: format!("e2e{}", &mode.name()[..3]), mode, cni, ..Options::default() };
    if let Ok(left) = Cluster::attach(&options.name) {
        left.down()?;
    }
    let cluster = Cluster::up(&options)?;
    let result = with_world(&cluster, cases);
    if !keep {
        cluster.down()?;
    }
    result
}

fn with_world(cluster: &Cluster, cases: &[&Case]) -> Result<usize> {
    world::deploy(cluster)?;
    // The server goes to n1, so that every run asks from the same place. From n2 it would lose n1's agent together with n1's
    // route to the pods of n2: it is a pod, and its questions come from a pod's address.
    cluster.kubectl(&["cordon", "n2"])?;
    let installed = crate::install::install(cluster, Build::Release);
    cluster.kubectl(&["uncordon", "n2"])?;
    let asker = Asker::new(cluster, &installed?)?;
    client::is_well(cluster)?;
    let mut right = 0;
    for case in cases {
        let started = Instant::now();
        let wrong = match one(cluster, &asker, case) {
            Ok(wrong) => wrong,
            Err(error) => vec![format!("{error:#}")],
        };
        let mark = if wrong.is_empty() { "right" } else { "WRONG" };
        let fault = case.fault.as_deref().unwrap_or("no fault");
        println!("{mark} {:5.1} s  {} [{fault}]: {}", started.elapsed().as_secs_f64(), case.name, case.about);
        for line in &wrong {
            println!("               {line}");
        }
        right += usize::from(wrong.is_empty());
    }
    Ok(right)
}

/// One case; what is wrong with the answers.
fn one(cluster: &Cluster, asker: &Asker, case: &Case) -> Result<Vec<String>> {
    client::is_well(cluster).context("before the fault")?;
    let outcome = world::inject(cluster, case).context("injecting").and_then(|()| under_fault(cluster, asker, case));
    world::restore(cluster, case).context("restoring")?;
    client::is_well(cluster).context("after the restore")?;
    outcome
}

fn under_fault(cluster: &Cluster, asker: &Asker, case: &Case) -> Result<Vec<String>> {
    client::feels(cluster, case)?;
    let full = verdict::ask(cluster, asker, case, Way::Server)?;
    let mut wrong = verdict::compare(case, &full);
    if !wrong.is_empty() {
        wrong.push(format!("answer: {}", full.json));
    }
    println!(
        "        {:5.2} s  {} {} ({:.2})",
        full.seconds,
        full.status,
        full.codes.first().map_or("no cause", String::as_str),
        full.confidence
    );
    if case.expect.code.is_some() && !case.extra {
        for view in View::ALL {
            let answer = verdict::ask(cluster, asker, case, Way::Without(view))?;
            let differences = verdict::compare_without(case, &full, &answer);
            wrong.extend(differences.into_iter().map(|line| format!("{}: {line}", view.name())));
        }
    }
    Ok(wrong)
}
