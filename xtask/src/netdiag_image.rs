//! The image of netdiag itself: the agent and the server, each one static program.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::image::{self, Image};
use crate::setup::{self, Purpose};
use crate::{command, ebpf, place};

/// How the programs are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// As users get them.
    Release,
    /// As users get them, but for our own code, which is optimized less: for tests, where minutes of optimizing are lost.
    Tests,
    /// Quicker to compile; bigger and slower.
    Debug,
}

/// Static programs of this checkout.
pub(crate) struct Programs {
    pub(crate) server: PathBuf,
    pub(crate) agent: PathBuf,
}

/// A packed image.
pub(crate) struct Packed {
    pub(crate) reference: String,
    pub(crate) archive: PathBuf,
}

/// Test programs of the agent that run on another kernel than this machine's.
pub(crate) struct Tests {
    pub(crate) programs: Vec<TestProgram>,
    /// The agent that they start, by this very path.
    pub(crate) agent: PathBuf,
}

pub(crate) struct TestProgram {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    /// Which of its tests; all when it is empty.
    pub(crate) filter: &'static str,
}

/// `cargo xtask image`: what users install, for a registry of theirs, and the programs for their own machine.
pub(crate) fn run() -> Result<()> {
    setup::prepare(Purpose::Ebpf)?;
    let (programs, packed) = packed(Build::Release)?;
    println!("image   {} (OCI layout of {})", packed.archive.display(), packed.reference);
    println!("server  {}\nagent   {}", programs.server.display(), programs.agent.display());
    Ok(())
}

/// Compiles and packs the programs. Clusters that are made side by side wait for each other here.
pub(crate) fn packed(build: Build) -> Result<(Programs, Packed)> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let programs = compile(build)?;
    let packed = pack(&programs)?;
    Ok((programs, packed))
}

/// Compiles the programs without any shared library: they run in an image without files.
pub(crate) fn compile(build: Build) -> Result<Programs> {
    let (mut cargo, host) = static_cargo("build")?;
    cargo.args(["--package", "netdiag-node", "--package", "netdiag-server", "--bins"]);
    let profile = match build {
        Build::Release => {
            cargo.arg("--release");
            "release"
        }
        Build::Tests => {
            cargo.arg("--release").args(own_code_less_optimized());
            "release"
        }
        Build::Debug => "debug",
    };
    command::run(&mut cargo)?;
    let folder = static_target().join(&host).join(profile);
    Ok(Programs { server: folder.join("netdiag"), agent: folder.join("netdiag-node") })
}

/// Compiles the agent's tests in the same way: all that need a kernel, and of the unit tests those about it.
pub(crate) fn compile_tests() -> Result<Tests> {
    let (mut cargo, _) = static_cargo("test")?;
    cargo.args(["--no-run", "--package", "netdiag-node", "--release", "--message-format", "json-render-diagnostics"]);
    // As the image of tests, compiled once for both.
    cargo.args(own_code_less_optimized());
    cargo.arg("--lib").args(ON_KERNELS.iter().flat_map(|name| ["--test", name]));
    let messages = command::output(&mut cargo)?;
    let mut tests = Tests { programs: Vec::new(), agent: PathBuf::new() };
    for line in messages.lines() {
        let message: Value = serde_json::from_str(line).context("cannot parse what cargo says of its artifacts")?;
        let (target, Some(file)) = (&message["target"], message["executable"].as_str()) else { continue };
        let (kind, name) =
            (target["kind"][0].as_str().unwrap_or_default(), target["name"].as_str().unwrap_or_default());
        let file = PathBuf::from(file);
        match (kind, message["profile"]["test"].as_bool() == Some(true)) {
            ("bin", false) => tests.agent = file,
            ("lib", true) => {
                tests.programs.push(TestProgram { name: "unit".to_owned(), file, filter: "kernel::" });
            }
            ("test", true) => {
                // Of rules, those that this machine's own kernel may lack: emulated, all would take the time of a dozen programs.
                let filter = if name == "evaluator" { "flowtables queues" } else { "" };
                tests.programs.push(TestProgram { name: name.to_owned(), file, filter });
            }
            _ => {}
        }
    }
    tests.programs.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(tests)
}

fn own_code_less_optimized() -> impl Iterator<Item = String> {
    let option = |package: &str| ["--config".to_owned(), format!("profile.release.package.{package}.opt-level=1")];
    ["netdiag-common", "netdiag-node", "netdiag-server"].into_iter().flat_map(option)
}

/// Patterns of the agent's test programs that ask something of the kernel.
const ON_KERNELS: [&str; 5] = ["kernel_*", "evaluator", "ipvs", "namespaces", "rules"];

/// A cargo command whose programs need no shared library, and the machine's own target.
fn static_cargo(task: &str) -> Result<(Command, String)> {
    let object = ebpf::build(false)?;
    let host = host_target()?;
    let mut cargo = command::tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(place::workspace())
        .args([task, "--quiet", "--locked"])
        // Named, though it is the machine's own: else the flags below would break procedural macros.
        .args(["--target", &host, "--target-dir"])
        .arg(static_target())
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("NETDIAG_EBPF_OBJECT", &object);
    Ok((cargo, host))
}

fn static_target() -> PathBuf {
    place::target().join("static")
}

/// Packs the programs. The tag is a hash of them, so that a cluster sees when they have changed.
fn pack(programs: &Programs) -> Result<Packed> {
    let files = [(programs.agent.clone(), "netdiag-node"), (programs.server.clone(), "netdiag")];
    let reference = format!("docker.io/netdiag/netdiag:{}", image::tag_of(&files)?);
    let folder = place::target().join("image");
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let archive = folder.join("netdiag.tar");
    image::pack(&Image { reference: &reference, entrypoint: &["/netdiag"], programs: &files, links: &[] }, &archive)?;
    Ok(Packed { reference, archive })
}

fn host_target() -> Result<String> {
    let text = command::output(command::tool("rustc").arg("-vV"))?;
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).with_context(|| format!("`rustc -vV` names no host:\n{text}"))
}
