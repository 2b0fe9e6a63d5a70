//! `cargo xtask e2e`: real faults in a real cluster, felt by a real client, named by netdiag.
//!
//! Each mode of kube-proxy has its clusters, one after the other; the two modes run side by side.
//! Each case: the world is well → inject → the client feels it → ask netdiag with all views and with each taken away → restore
//! → the world is well again.

mod asker;
#[path = "../../../netdiag-node/tests/signatures/attach.rs"]
mod attach;
mod case;
mod client;
mod drifted;
mod fault;
mod followed;
mod meshed;
mod observed;
mod patterned;
mod policed;
mod probed;
mod symptoms;
mod traced;
mod verdict;
mod world;

use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::cluster::{self, Cluster, Cni, Options, ProxyMode};
use crate::install::{self, Installed};
use crate::netdiag_image::{self, Build};
use asker::Asker;
use case::Case;
use verdict::{View, Way};

const PREFIX: &str = "e2e";

/// What is tried in a cluster of its own, beside the cases that share one.
struct Subject {
    name: &'static str,
    about: &'static str,
    /// The one mode of kube-proxy in which it runs unless told otherwise; both without.
    home: Option<ProxyMode>,
    /// Given the cluster's prefix, kube-proxy's mode and whether the cluster is to be kept; what is wrong.
    run: fn(&str, ProxyMode, bool) -> Result<Vec<String>>,
}

const SUBJECTS: [Subject; 7] = [
    traced::SUBJECT,
    drifted::SUBJECT,
    probed::SUBJECT,
    followed::SUBJECT,
    patterned::SUBJECT,
    policed::SUBJECT,
    meshed::SUBJECT,
];

#[derive(Args)]
pub(crate) struct Arguments {
    /// All cases in this mode of kube-proxy; without it, each fault in one of the two, always the same, and controls in both.
    #[arg(long, value_enum, conflicts_with = "all")]
    mode: Option<ProxyMode>,
    /// All cases in both modes.
    #[arg(long)]
    all: bool,
    /// Also the variants and long cases that run by name only.
    #[arg(long)]
    extra: bool,
    /// Leave the last cluster up, for looking around.
    #[arg(long)]
    keep: bool,
    /// What the clusters' names begin with: another word lets two runs go side by side.
    #[arg(long, default_value = PREFIX)]
    prefix: String,
    /// Cases by name; all when none is given.
    cases: Vec<String>,
}

impl Default for Arguments {
    fn default() -> Self {
        Self { mode: None, all: false, extra: false, keep: false, prefix: PREFIX.to_owned(), cases: Vec::new() }
    }
}

impl Arguments {
    /// Whether a case that is at home in `home`, or in both modes, runs in this one.
    fn chooses(&self, mode: ProxyMode, home: Option<ProxyMode>) -> bool {
        match self.mode {
            Some(only) => only == mode,
            None => self.all || home.is_none_or(|home| home == mode),
        }
    }
}

/// Which answers were right.
#[derive(Default)]
pub(crate) struct Score {
    pub(crate) right: usize,
    /// Each with the mode, the case and the first of what is wrong with its answers.
    pub(crate) wrong: Vec<String>,
}

impl Score {
    fn add(&mut self, other: Self) {
        self.right += other.right;
        self.wrong.extend(other.wrong);
    }

    fn asked(&self) -> usize {
        self.right + self.wrong.len()
    }

    /// Runs one case, prints what became of it and counts it.
    fn judge(&mut self, mode: ProxyMode, title: &str, run: impl FnOnce() -> Result<Vec<String>>) {
        let started = Instant::now();
        let wrong = run().unwrap_or_else(|error| vec![format!("{error:#}")]);
        let mark = if wrong.is_empty() { "right" } else { "WRONG" };
        println!("{mark} {:5.1} s  {} {title}", started.elapsed().as_secs_f64(), mode.name());
        for line in &wrong {
            println!("               {line}");
        }
        match wrong.first() {
            None => self.right += 1,
            Some(first) => self.wrong.push(format!("{} {title}: {first}", mode.name())),
        }
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let score = score(arguments)?;
    if !score.wrong.is_empty() {
        bail!("{} of {} cases are wrong:\n{}", score.wrong.len(), score.asked(), score.wrong.join("\n"));
    }
    Ok(())
}

/// Runs the chosen cases in the chosen modes.
pub(crate) fn score(arguments: &Arguments) -> Result<Score> {
    let is_special = |name: &String| name == observed::NAME || SUBJECTS.iter().any(|subject| subject.name == name);
    let (special, named): (Vec<String>, Vec<String>) = arguments.cases.iter().cloned().partition(is_special);
    let all = arguments.cases.is_empty();
    let is_meant = |name: &str| all || special.iter().any(|special| special == name);
    let cases = if all || !named.is_empty() { case::load(&named, arguments.extra)? } else { Vec::new() };
    let shares: Vec<Share> = [ProxyMode::Nftables, ProxyMode::Iptables]
        .into_iter()
        .map(|mode| Share {
            mode,
            cases: cases.iter().filter(|case| arguments.chooses(mode, case.home())).collect(),
            // What the kernels see does not depend on kube-proxy's mode.
            observes: is_meant(observed::NAME) && arguments.chooses(mode, Some(ProxyMode::Nftables)),
            subjects: SUBJECTS
                .iter()
                .filter(|subject| is_meant(subject.name) && arguments.chooses(mode, subject.home))
                .collect(),
        })
        .filter(|share| share.asked() > 0)
        .collect();
    // Whatever has to be built is built once, before both need it.
    let plugins = shares.iter().flat_map(|share| share.cases.iter().map(|case| case.cni));
    cluster::ensure_parts(plugins)?;
    netdiag_image::packed(Build::Tests)?;
    // Most of a case is waiting, so that the modes share the processors well.
    let scores: Vec<Score> = std::thread::scope(|scope| {
        let running: Vec<_> = shares.iter().map(|share| scope.spawn(move || in_mode(arguments, share))).collect();
        running.into_iter().map(|mode| mode.join().expect("a mode's run does not panic")).collect()
    });
    let mut total = Score::default();
    for (share, score) in shares.iter().zip(scores) {
        println!("{}: {} of {} right", share.mode.name(), score.right, share.asked());
        total.add(score);
    }
    Ok(total)
}

/// What runs in one mode of kube-proxy.
struct Share<'c> {
    mode: ProxyMode,
    cases: Vec<&'c Case>,
    observes: bool,
    subjects: Vec<&'static Subject>,
}

impl Share<'_> {
    fn asked(&self) -> usize {
        self.cases.len() + usize::from(self.observes) + self.subjects.len()
    }
}

/// One cluster after the other.
fn in_mode(arguments: &Arguments, share: &Share<'_>) -> Score {
    let mode = share.mode;
    let mut score = Score::default();
    for cni in [Cni::Ptp, Cni::Bridge, Cni::Vxlan, Cni::KubeRouter, Cni::Cilium] {
        let chosen: Vec<&Case> = share.cases.iter().copied().filter(|case| case.cni == cni).collect();
        let observes = share.observes && cni == Cni::Ptp;
        if !chosen.is_empty() || observes {
            let asked = chosen.len() + usize::from(observes);
            // One cluster that fails says nothing about the next one.
            score.add(in_cluster(arguments, mode, cni, &chosen, observes).unwrap_or_else(|error| {
                println!("WRONG         {} the cluster with {cni:?}: {error:#}", mode.name());
                let wrong = format!("{} a case of the cluster with {cni:?}: {error:#}", mode.name());
                Score { right: 0, wrong: vec![wrong; asked] }
            }));
        }
    }
    for Subject { name, about, run, .. } in &share.subjects {
        let title = format!("{name}: {about}");
        score.judge(mode, &title, || run(&arguments.prefix, mode, arguments.keep));
    }
    score
}

/// The healthy world, for others who need something to ask about.
pub(crate) fn deploy_world(cluster: &Cluster) -> Result<()> {
    world::deploy(cluster)
}

/// Runs `work` in a new cluster, which is gone afterwards unless it is to be kept. One of that name that was left is taken down first.
fn in_own_cluster<T>(options: &Options, keep: bool, work: impl FnOnce(&Cluster) -> Result<T>) -> Result<T> {
    if let Ok(left) = Cluster::attach(&options.name) {
        left.down()?;
    }
    // Of some hundred starts on a busy machine one fails: it took its cluster down again, and says nothing about what is tried here.
    let cluster = Cluster::up(options).or_else(|error| {
        println!("cluster {} is started once more: {error:#}", options.name);
        Cluster::up(options)
    })?;
    let result = work(&cluster);
    if !keep {
        cluster.down()?;
    }
    result
}

/// The server goes to n1, so that every run asks from the same place. From n2 it would lose n1's agent together with n1's
/// route to the pods of n2: it is a pod, and its questions come from a pod's address.
fn install_on_n1(cluster: &Cluster) -> Result<Installed> {
    on_n1(cluster, || install::install(cluster, Build::Tests))
}

/// What is scheduled meanwhile goes to n1.
fn on_n1<T>(cluster: &Cluster, work: impl FnOnce() -> Result<T>) -> Result<T> {
    on_node(cluster, "n1", work)
}

/// What is scheduled meanwhile goes to this node.
fn on_node<T>(cluster: &Cluster, node: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let others: Vec<String> = cluster.node_names().filter(|other| other != node).collect();
    let others: Vec<&str> = others.iter().map(String::as_str).collect();
    cluster.kubectl(&[&["cordon"], &others[..]].concat())?;
    let result = work();
    cluster.kubectl(&[&["uncordon"], &others[..]].concat())?;
    result
}

fn in_cluster(arguments: &Arguments, mode: ProxyMode, cni: Cni, cases: &[&Case], observes: bool) -> Result<Score> {
    let options =
        Options { name: format!("{}{}", arguments.prefix, &mode.name()[..3]), mode, cni, ..Options::default() };
    in_own_cluster(&options, arguments.keep, |cluster| with_world(cluster, cases, observes))
}

fn with_world(cluster: &Cluster, cases: &[&Case], observes: bool) -> Result<Score> {
    world::deploy(cluster)?;
    let asker = Asker::new(cluster, &install_on_n1(cluster)?)?;
    client::is_well(cluster)?;
    let mut score = Score::default();
    for case in cases {
        let title = format!("{} [{}]: {}", case.name, case.fault.as_deref().unwrap_or("no fault"), case.about);
        score.judge(cluster.options.mode, &title, || one(cluster, &asker, case));
    }
    if observes {
        // The last, since it ends with an agent that starts anew.
        let title = format!("{}: {}", observed::NAME, observed::ABOUT);
        score.judge(cluster.options.mode, &title, || observed::run(cluster, &asker));
    }
    Ok(score)
}

/// One case; what is wrong with the answers.
fn one(cluster: &Cluster, asker: &Asker, case: &Case) -> Result<Vec<String>> {
    client::is_well(cluster).context("before the fault")?;
    let outcome = world::inject(cluster, &case.inject).and_then(|()| under_fault(cluster, asker, case));
    world::restore(cluster, &case.restore)?;
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
        "        {:5.2} s  {} {} {} ({:.2})",
        full.seconds,
        cluster.options.mode.name(),
        full.status,
        full.codes.first().map_or("no cause", String::as_str),
        full.confidence
    );
    if case.expect.code.is_some() && !case.extra {
        for view in View::ALL {
            // A flow that is not used for half a minute concerns nobody any more, and each question takes a while.
            if case.symptom.udp_from.is_some() {
                client::feels(cluster, case)?;
            }
            let answer = verdict::ask(cluster, asker, case, Way::Without(view))?;
            let differences = verdict::compare_without(case, &full, &answer);
            wrong.extend(differences.into_iter().map(|line| format!("{}: {line}", view.name())));
        }
    }
    Ok(wrong)
}
