//! `cargo xtask kernels`: boots the kernels that users run, with every kernel program, and makes each event happen.
//!
//! Emulated, so it needs neither KVM nor root. The newest release of each line is fetched from its distribution.

mod archive;
mod cpio;
mod guest;
mod index;
mod kit;
mod line;
mod matrix;
mod version;

use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::netdiag_image::{self, Tests};
use crate::test::outcome::{self, Tally};
use crate::{command, place};
use guest::Said;
use kit::Kit;
use line::LINES;
use matrix::Matrix;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write what was found into the documentation; of kernels that are not named it keeps what it says
    #[arg(long)]
    write: bool,
    /// 5.10, 5.15, 6.1, 6.12, 6.18 or 7; all when none is named
    kernels: Vec<String>,
}

impl Arguments {
    pub(crate) fn only(kernels: &[&str]) -> Self {
        Self { write: false, kernels: kernels.iter().map(|name| (*name).to_owned()).collect() }
    }
}

/// Guests at one time: QEMU uses a thread for each of a guest's CPUs, and tests of what the kernel does in time need theirs.
const AT_ONCE: usize = 2;

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let tally = score(arguments)?;
    for skip in &tally.skips {
        println!("skipped: {skip}");
    }
    println!("{tally}");
    if tally.has_failed() {
        bail!("checks failed:\n{}", tally.failures.join("\n"));
    }
    Ok(())
}

/// Boots the chosen kernels, and compares what was found with the documentation.
pub(crate) fn score(arguments: &Arguments) -> Result<Tally> {
    let chosen = choose(&arguments.kernels)?;
    let mut tally = Tally::default();
    if command::find("qemu-system-x86_64").is_none() {
        tally.skips.push("kernels: qemu-system-x86_64 is not installed: `cargo xtask setup kernels`".to_owned());
        return Ok(tally);
    }
    let tests = netdiag_image::compile_tests()?;
    let mut kits = Vec::new();
    for column in chosen {
        match kit::ensure(&LINES[column]) {
            Ok(kit) => kits.push((column, kit)),
            Err(error) => tally.skips.push(format!("kernel {}: {error:#}", LINES[column].name)),
        }
    }
    let mut matrix = Matrix::new(LINES.iter().map(|line| line.name).collect());
    let mut ran = Vec::new();
    for (column, kit, said) in boot_all(&kits, &tests) {
        match said {
            Ok(said) => {
                tally.add(&judge(LINES[column].name, &said));
                matrix.add(column, &format!("{} ({})", kit.release, kit.origin), said.preflight.as_ref(), &said.runs);
                ran.push(column);
            }
            Err(error) => {
                tally.add(&Tally::failed(format!("kernel {}: {error:#}", LINES[column].name)));
            }
        }
    }
    println!("{}", matrix.render());
    if arguments.write && tally.has_failed() {
        bail!("the documentation stays as it is, since checks failed:\n{}", tally.failures.join("\n"));
    }
    tally.add(&document(arguments.write, &matrix, &ran)?);
    Ok(tally)
}

fn choose(names: &[String]) -> Result<Vec<usize>> {
    if names.is_empty() {
        return Ok((0..LINES.len()).collect());
    }
    let column = |name: &String| {
        let known = || LINES.iter().map(|line| line.name).collect::<Vec<_>>().join(", ");
        LINES
            .iter()
            .position(|line| line.name == name)
            .with_context(|| format!("no kernel {name}; there are {}", known()))
    };
    names.iter().map(column).collect()
}

/// Results in the order of `kits`.
fn boot_all<'a>(kits: &'a [(usize, Kit)], tests: &Tests) -> Vec<(usize, &'a Kit, Result<Said>)> {
    let waiting = Mutex::new(kits.iter());
    let done = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let next = waiting.lock().expect("taking the next one does not panic").next();
                    let Some((column, kit)) = next else { return };
                    let name = LINES[*column].name;
                    let started = Instant::now();
                    let said = guest::boot(kit, tests, &guest::folder(name));
                    println!(
                        "{:5.1} s  kernel {name}: {} ({})",
                        started.elapsed().as_secs_f64(),
                        kit.release,
                        kit.origin
                    );
                    done.lock().expect("adding one does not panic").push((*column, kit, said));
                }
            });
        }
    });
    let mut done = done.into_inner().expect("adding one does not panic");
    done.sort_by_key(|(column, ..)| *column);
    done
}

/// Counts what a guest's tests said, and shows what went wrong.
fn judge(line: &str, said: &Said) -> Tally {
    let mut tally = Tally::default();
    for run in &said.failed_first {
        println!("kernel {line}: {} failed and ran once more\n{}", run.name, outcome::without_successes(&run.text));
    }
    for run in &said.runs {
        let mut of_run = outcome::of_cargo(&run.text);
        if run.exit != Some(0) && !of_run.has_failed() {
            of_run.add(&Tally::failed("it did not end well"));
        }
        if of_run.has_failed() {
            let exit = run.exit.map_or("did not end".to_owned(), |code| format!("exit code {code}"));
            println!("kernel {line}: {} ({exit})\n{}", run.name, outcome::without_successes(&run.text));
        }
        tally.passed += of_run.passed;
        tally.failures.extend(of_run.failures.iter().map(|what| format!("kernel {line}: {}: {what}", run.name)));
        tally.skips.extend(of_run.skips.iter().map(|skip| format!("kernel {line}: {skip}")));
    }
    if said.preflight.is_none() {
        tally.add(&Tally::failed(format!("kernel {line}: the agent printed no preflight report")));
    }
    if said.ended {
        tally.add(&Tally::passed());
    } else {
        println!("kernel {line} did not come to its end:\n{}", guest::last_words(&guest::folder(line)));
        tally.add(&Tally::failed(format!("kernel {line}: it did not come to its end")));
    }
    tally
}

/// Writes the documentation, or compares it with what was found.
fn document(write: bool, matrix: &Matrix, ran: &[usize]) -> Result<Tally> {
    let path: PathBuf = place::workspace().join("netdiag-node/docs/kernels.md");
    let mut written = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    if write {
        written = matrix.with_others_of(&written).render();
        std::fs::write(&path, &written).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let (same, moved): (Vec<usize>, Vec<usize>) = ran.iter().partition(|column| matrix.is_about(&written, **column));
    for difference in matrix.differences(&written, &moved) {
        // A distribution's update may bring a tracepoint; what it breaks fails its own test.
        println!("a newer release than the documented one: {difference}");
    }
    let differences = matrix.differences(&written, &same);
    if differences.is_empty() {
        return Ok(Tally::passed());
    }
    let failures = differences.iter().map(|difference| {
        format!("{} says otherwise (`cargo xtask kernels --write` writes what was found): {difference}", path.display())
    });
    Ok(Tally { failures: failures.collect(), ..Tally::default() })
}
