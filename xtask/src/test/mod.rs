//! `cargo xtask test`: everything, from format to faults in a real cluster. The last line is `N passed, N failed, N skipped`.

mod evaluator;
pub(crate) mod outcome;

use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result};

use crate::setup::Purpose;
use crate::{command, e2e, ebpf, kernels, place, setup};
use outcome::Tally;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these stages, in this order
    #[arg(value_enum)]
    stages: Vec<Stage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Stage {
    /// Install what is missing
    Setup,
    /// Build the kernel programs, which the agent embeds
    Ebpf,
    /// rustfmt
    Format,
    /// clippy, warnings denied
    Lint,
    /// Unit, fixture, property, kernel and agent tests, and the MCP server with an independent client
    Cargo,
    /// What the evaluators predict against what the kernel does: 2000 random cases of each kind of rules
    Evaluator,
    /// The kernel tests on the oldest kernel that users run
    Kernels,
    /// The skills' checker
    Skills,
    /// What may depend on what
    Tree,
    /// Faults in real clusters, each in one of kube-proxy's two modes
    E2e,
}

/// What runs without being named.
const ALL: [Stage; 10] = [
    Stage::Setup,
    Stage::Ebpf,
    Stage::Format,
    Stage::Lint,
    Stage::Cargo,
    Stage::Evaluator,
    Stage::Skills,
    Stage::Tree,
    Stage::Kernels,
    Stage::E2e,
];

/// The oldest, which knows least; the machine's own is a new one, and runs the same tests before. All six take half an hour more than
/// these tests may (`cargo xtask kernels`).
const KERNELS: [&str; 1] = ["5.10"];

/// More failures than these are no accident.
const MOST_ONCE_MORE: usize = 3;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let stages = if arguments.stages.is_empty() { &ALL[..] } else { &arguments.stages };
    let mut total = Tally::default();
    let mut times = Vec::new();
    for stage in stages {
        println!("== {stage:?}");
        let started = Instant::now();
        let mut tally = match take(*stage) {
            Ok(tally) => tally,
            Err(error) => {
                println!("{stage:?} failed: {error:#}");
                Tally::failed(format!("{error:#}"))
            }
        };
        let seconds = started.elapsed().as_secs();
        println!("== {stage:?}: {tally} in {seconds} s");
        times.push(format!("{stage:?} {seconds} s"));
        for failure in &mut tally.failures {
            failure.insert_str(0, &format!("{stage:?}: "));
        }
        total.add(&tally);
        // Nothing later can be right without these.
        if tally.has_failed() && matches!(stage, Stage::Setup | Stage::Ebpf) {
            break;
        }
    }
    let summary = summary(&total, &times);
    print!("{summary}");
    // What prints a hundred thousand lines is often kept in part only.
    let kept = place::cache()?.join("test-summary.txt");
    std::fs::write(&kept, &summary).with_context(|| format!("cannot write {}", kept.display()))?;
    if total.has_failed() { std::process::exit(1) } else { Ok(()) }
}

/// What did not run, what did not pass at once, what failed, how long each stage took, and the counts, which are the last line.
fn summary(total: &Tally, times: &[String]) -> String {
    let skips = total.skips.iter().map(|skip| format!("skipped: {skip}\n"));
    let unsteady = total.unsteady.iter().map(|name| format!("passed only when it ran again: {name}\n"));
    let in_one_line = |text: &String| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let failures = total.failures.iter().map(|failure| format!("FAILED: {}\n", in_one_line(failure)));
    let lines: String = skips.chain(unsteady).chain(failures).collect();
    format!("{lines}{}\n{total}\n", times.join(", "))
}

fn take(stage: Stage) -> Result<Tally> {
    match stage {
        Stage::Setup => {
            for purpose in [Purpose::Ebpf, Purpose::Cluster, Purpose::Cilium, Purpose::Tests] {
                setup::prepare(purpose)?;
            }
            Ok(Tally::default())
        }
        Stage::Ebpf => ebpf::build(false).map(|_| Tally::passed()),
        Stage::Format => check(cargo(&["fmt", "--all", "--check"])),
        Stage::Lint => check(cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])),
        Stage::Cargo => {
            // What a passing test printed holds the reasons of skips.
            let mut test = cargo(&["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
            match setup::python_venv() {
                Ok(programs) => {
                    test.env("NETDIAG_PYTHON", programs.join("python"));
                }
                Err(error) => println!("no Python for the MCP client: {error:#}"),
            }
            let (_, tally) = tests(test)?;
            once_more(tally)
        }
        Stage::Evaluator => evaluator::run(cargo(&[]), tests),
        Stage::Kernels => {
            setup::prepare(Purpose::Kernels)?;
            kernels::score(&kernels::Arguments::only(&KERNELS))
        }
        Stage::Skills => skills(),
        Stage::Tree => tree(),
        Stage::E2e => {
            let score = e2e::score(&e2e::Arguments::default())?;
            Ok(Tally { passed: score.right, failures: score.wrong, ..Tally::default() })
        }
    }
}

/// Many tests at one time make a slow machine: few that failed run again by themselves. What passes then is told apart.
fn once_more(mut tally: Tally) -> Result<Tally> {
    if (1..=MOST_ONCE_MORE).contains(&tally.failures.len()) {
        let mut again = cargo(&["test", "--workspace", "--no-fail-fast", "--", "--exact", "--test-threads", "1"]);
        again.args(&tally.failures);
        let (text, _) = tests(again)?;
        tally.forgive(&text);
    }
    Ok(tally)
}

/// Each skill, by the checker of the Agent Skills specification.
fn skills() -> Result<Tally> {
    let checker = setup::python_venv()?.join("agentskills");
    let mut tally = Tally::default();
    for skill in std::fs::read_dir(place::workspace().join("skills")).context("cannot list skills/")? {
        let mut validate = command::tool(&checker);
        validate.arg("validate").arg(skill.context("cannot list skills/")?.path());
        tally.add(&check(validate)?);
    }
    Ok(tally)
}

/// The server never pulls in aya, the agent never kube.
fn tree() -> Result<Tally> {
    let mut tally = Tally::default();
    for (package, foreign) in [("netdiag-server", "aya"), ("netdiag-node", "kube")] {
        let tree =
            command::output(&mut cargo(&["tree", "--package", package, "--edges", "normal", "--prefix", "none"]))?;
        let found: Vec<&str> = tree.lines().filter(|line| line.split([' ', '-']).next() == Some(foreign)).collect();
        if found.is_empty() {
            tally.add(&Tally::passed());
        } else {
            tally.add(&Tally::failed(format!("{package} depends on {foreign}: {}", found.join(", "))));
        }
    }
    Ok(tally)
}

fn cargo(words: &[&str]) -> Command {
    let mut cargo = command::tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(place::workspace()).args(words);
    cargo
}

/// One check: it passes when the command does.
fn check(mut command: Command) -> Result<Tally> {
    let status = command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    Ok(if status.success() { Tally::passed() } else { Tally::failed(format!("{command:?}")) })
}

/// A run of cargo's tests, counted from what it prints. Everything it prints is shown, too.
fn tests(mut command: Command) -> Result<(String, Tally)> {
    let output = command
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .context("cannot start cargo")?
        .wait_with_output()
        .context("cannot wait for cargo")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    print!("{}", outcome::without_successes(&text));
    let mut tally = outcome::of_cargo(&text);
    if !output.status.success() && !tally.has_failed() {
        // It did not even compile.
        tally.add(&Tally::failed(format!("{command:?}")));
    }
    Ok((text, tally))
}
