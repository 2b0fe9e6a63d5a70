//! One boot: what the guest is made of, how it is started, and what it said.

use std::fs::File;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::cpio::Archive;
use super::kit::Kit;
use crate::netdiag_image::Tests;
use crate::{command, place};

const INIT: &str = include_str!("init.sh");

/// What tests call, beside busybox's own tools. A shell too: busybox's prefers its own `ip` to any other.
const TOOLS: [&str; 11] = [
    "sh",
    "ip",
    "bridge",
    "nft",
    "ss",
    "tc",
    "conntrack",
    "iptables-nft-restore",
    "ip6tables-nft-restore",
    "iptables-legacy-restore",
    "ip6tables-legacy-restore",
];

/// iptables finds its matches and targets here.
const XTABLES: &str = "/usr/lib/x86_64-linux-gnu/xtables";

/// nft and iptables look names of protocols up.
const TABLES: [&str; 2] = ["/etc/protocols", "/etc/services"];

/// A guest that needs longer hangs: the slowest needed a quarter of it.
const LIMIT_S: &str = "1200";

/// What a guest said from its start to its end.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Said {
    /// What `netdiag-node preflight` prints.
    pub(super) preflight: Option<Value>,
    pub(super) runs: Vec<Run>,
    /// First runs of those that ran once more.
    pub(super) failed_first: Vec<Run>,
    /// It said that it had done everything. Without that it panicked or hung.
    pub(super) ended: bool,
}

/// One test program.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Run {
    pub(super) name: String,
    pub(super) text: String,
    /// None: it did not come to an end.
    pub(super) exit: Option<i32>,
}

/// Boots the kernel with everything and waits for its end. The logs stay in `folder`.
pub(super) fn boot(kit: &Kit, tests: &Tests, folder: &Path) -> Result<Said> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let initramfs = folder.join("initramfs");
    pack(kit, tests, &initramfs).with_context(|| format!("cannot write {}", initramfs.display()))?;
    let (console, results) = (folder.join("console.log"), folder.join("results.log"));
    // Emulated, since a machine may have no KVM; without cmpxchg16b, whose emulation has crashed guests.
    let mut qemu = command::tool("timeout");
    qemu.args(["--kill-after=5", LIMIT_S, "qemu-system-x86_64"])
        .args(["-accel", "tcg,thread=multi", "-cpu", "max,-cx16", "-smp", "2", "-m", "1024"])
        .args(["-display", "none", "-monitor", "none", "-nic", "none", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-serial")
        .arg(format!("file:{}", results.display()))
        .arg("-kernel")
        .arg(kit.image())
        .arg("-initrd")
        .arg(&initramfs)
        .args(["-append", "console=ttyS0 loglevel=5 oops=panic panic=-1 rdinit=/init"])
        .stdin(Stdio::null());
    let started = Instant::now();
    let ended = qemu.output().context("cannot start qemu-system-x86_64")?;
    // A panic and a proper end both give 0.
    if !ended.status.success() {
        let error = String::from_utf8_lossy(&ended.stderr);
        bail!("QEMU ended with {} after {} s: {}", ended.status, started.elapsed().as_secs(), error.trim());
    }
    let _ = std::fs::remove_file(&initramfs);
    let text = std::fs::read(&results).with_context(|| format!("cannot read {}", results.display()))?;
    Ok(parse(&String::from_utf8_lossy(&text)))
}

/// The last lines that the kernel wrote, for a guest that did not come to its end.
pub(super) fn last_words(folder: &Path) -> String {
    const LINES: usize = 30;
    let console = std::fs::read(folder.join("console.log")).unwrap_or_default();
    command::tail(&String::from_utf8_lossy(&console), LINES)
}

fn pack(kit: &Kit, tests: &Tests, to: &Path) -> Result<()> {
    let file = File::create(to).context("cannot create it")?;
    let mut archive = Archive::new(BufWriter::new(file));
    for folder in ["/proc", "/sys", "/dev", "/run", "/tmp", "/etc"] {
        archive.folder(folder)?;
    }
    archive.file("/init", INIT.as_bytes())?;
    archive.copy("/bin/busybox", Path::new("/bin/busybox"))?;
    let mut libraries = Vec::new();
    for tool in TOOLS {
        // Those of iptables are links to a program of many names.
        let program = command::find(tool).with_context(|| format!("{tool} is not installed"))?;
        archive.copy(&format!("/usr/bin/{tool}"), &program)?;
        libraries.extend(libraries_of(&program)?);
    }
    for plugin in std::fs::read_dir(XTABLES).with_context(|| format!("cannot list {XTABLES}"))?.flatten() {
        archive.copy(&plugin.path().to_string_lossy(), &plugin.path())?;
    }
    libraries.sort_unstable();
    libraries.dedup();
    for library in libraries {
        archive.copy(&library, Path::new(&library))?;
    }
    for table in TABLES.iter().filter(|table| Path::new(table).is_file()) {
        archive.copy(table, Path::new(table))?;
    }
    let mut order = String::new();
    for module in kit.modules()? {
        let name = module.file_name().and_then(|name| name.to_str()).context("a module's name is text")?;
        archive.copy(&format!("/modules/{name}"), &module)?;
        order.push_str(&format!("{name}\n"));
    }
    archive.file("/modules/order", order.as_bytes())?;
    // Tests know the agent by the path it was built at.
    let agent = tests.agent.to_string_lossy();
    archive.copy(&agent, &tests.agent)?;
    archive.link("/netdiag-node", &agent)?;
    let mut list = String::new();
    for test in &tests.programs {
        let path = format!("/test/{}", test.name);
        archive.copy(&path, &test.file)?;
        list.push_str(&format!("{} {path} {}\n", test.name, test.filter));
    }
    archive.file("/tests", list.as_bytes())?;
    archive.finish()?;
    Ok(())
}

/// The shared libraries of a program, the loader among them.
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let text = command::output(command::tool("ldd").arg(program))?;
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(str::to_owned).collect())
}

/// Sorts what came over the second serial port.
fn parse(text: &str) -> Said {
    let mut said = Said::default();
    let mut preflight = String::new();
    let mut in_preflight = false;
    for line in text.lines().map(|line| line.trim_end_matches('\r')) {
        match line.strip_prefix("@@ ").map(|mark| mark.split_once(' ').unwrap_or((mark, ""))) {
            Some(("preflight", _)) => in_preflight = true,
            Some(("run", name)) => {
                // The second run of what failed stands for both.
                said.failed_first.extend(said.runs.pop_if(|run| run.name == name));
                said.runs.push(Run { name: name.to_owned(), ..Run::default() });
            }
            Some(("exit", code)) if in_preflight => {
                in_preflight = false;
                said.preflight = serde_json::from_str(&preflight).ok().filter(|_| code == "0");
            }
            Some(("exit", code)) => {
                if let Some(run) = said.runs.last_mut() {
                    run.exit = code.parse().ok();
                }
            }
            Some(("end", _)) => said.ended = true,
            Some(("refused", module)) => println!("  module {module} does not load"),
            Some(_) => {}
            None if in_preflight => preflight.push_str(line),
            None => {
                if let Some(run) = said.runs.last_mut() {
                    run.text.push_str(line);
                    run.text.push('\n');
                }
            }
        }
    }
    said
}

/// Where the logs of a line's boot lie.
pub(super) fn folder(line: &str) -> PathBuf {
    place::target().join("kernels").join(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "@@ ready 5.10.0-46-cloud-amd64\r
@@ preflight\r
{\"kernel\":\"5.10\",\r
\"checks\":[]}\r
@@ exit 0\r
@@ run kernel_x\r
test a ... ok\r
test result: ok. 1 passed; 0 failed\r
@@ exit 0\r
@@ run kernel_y\r
test b ... ";

    #[test]
    fn what_a_guest_said_is_sorted_by_program() {
        let said = parse(TEXT);
        assert_eq!(said.preflight.unwrap()["kernel"], "5.10");
        assert_eq!(said.runs.len(), 2);
        assert_eq!((said.runs[0].name.as_str(), said.runs[0].exit), ("kernel_x", Some(0)));
        assert_eq!(said.runs[0].text, "test a ... ok\ntest result: ok. 1 passed; 0 failed\n");
    }

    #[test]
    fn the_second_run_of_what_failed_stands_for_both() {
        let said = parse("@@ run x\ntest a ... FAILED\n@@ exit 101\n@@ run x\ntest a ... ok\n@@ exit 0\n@@ end\n");
        assert_eq!((said.runs.len(), said.runs[0].exit, said.failed_first[0].exit), (1, Some(0), Some(101)));
        assert_eq!(said.failed_first[0].text, "test a ... FAILED\n");
    }

    #[test]
    fn a_guest_that_panics_has_no_end() {
        let said = parse(TEXT);
        assert!(!said.ended && said.runs[1].exit.is_none());
        assert!(parse(&format!("{TEXT}ok\n@@ exit 0\n@@ end\n")).ended);
    }

    #[test]
    fn an_agent_that_fails_gives_no_preflight() {
        assert_eq!(parse("@@ preflight\n{\"checks\":[]}\n@@ exit 1\n").preflight, None);
        assert_eq!(parse("@@ preflight\nerror: unknown\n@@ exit 0\n").preflight, None);
    }
}
