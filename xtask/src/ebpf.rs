//! Building the eBPF programs with whichever toolchain is there.
//!
//! Rust programs for the bpf target need a `core` for it and a linker that understands LLVM bitcode. Two toolchains have
//! both: a rustup nightly with rust-src, which builds `core` itself, and Debian's rustc-web, which brings it prebuilt. The
//! linker's LLVM must not be older than the compiler's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::command;
use crate::place;

/// The release of bpf-linker that is proven with both toolchains.
pub(crate) const LINKER_VERSION: &str = "0.13.0";

const TARGET: &str = "bpfel-unknown-none";
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
const DEBIAN_CORE: &str = "/usr/lib/rustlib/bpfel-unknown-none/lib";

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Let the programs print what they see; slow, for debugging a hook
    #[arg(long)]
    debug: bool,
}

/// A compiler with a `core` for the bpf target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    Nightly,
    Debian,
}

impl Compiler {
    /// The compilers of this machine that have a `core` for the bpf target, the preferred first.
    fn all() -> Vec<Self> {
        let mut found = Vec::new();
        let sysroot = Self::Nightly.version_command().ok().and_then(|mut rustc| {
            rustc.args(["--print", "sysroot"]);
            command::output(&mut rustc).ok()
        });
        // A nightly without rust-src is common, and of no use here.
        if sysroot.is_some_and(|root| Path::new(root.trim()).join("lib/rustlib/src/rust/library/core").is_dir()) {
            found.push(Self::Nightly);
        }
        if Path::new(DEBIAN_CORE).is_dir() && Path::new(DEBIAN_RUSTC).is_file() {
            found.push(Self::Debian);
        }
        found
    }

    /// The major version of the compiler's LLVM.
    pub(crate) fn llvm(self) -> Result<u32> {
        let mut rustc = self.version_command()?;
        let text = command::output(rustc.arg("-vV"))?;
        parse_llvm_of_rustc(&text).with_context(|| format!("`rustc -vV` names no LLVM version:\n{text}"))
    }

    fn version_command(self) -> Result<Command> {
        Ok(match self {
            Self::Debian => command::tool(DEBIAN_RUSTC),
            Self::Nightly => {
                let rustup = command::find("rustup").context("rustup is not installed")?;
                let mut rustc = command::tool(rustup);
                rustc.args(["run", "nightly", "rustc"]);
                rustc
            }
        })
    }
}

/// A compiler and a linker that fit.
pub(crate) struct Toolchain {
    compiler: Compiler,
    linker: PathBuf,
}

impl Toolchain {
    /// `None`: nothing on this machine builds eBPF programs.
    pub(crate) fn find() -> Result<Option<Self>> {
        for compiler in Compiler::all() {
            let llvm = compiler.llvm()?;
            let own = own_linker(llvm)?.join("bin/bpf-linker");
            let usual = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo/bin/bpf-linker"));
            let candidates = [Some(own), command::find("bpf-linker"), usual].into_iter().flatten();
            if let Some(linker) = candidates.filter(|file| file.is_file()).find(|file| understands(file, llvm)) {
                return Ok(Some(Self { compiler, linker }));
            }
        }
        Ok(None)
    }
}

/// Where `cargo xtask setup ebpf` installs the linker for this LLVM: beside, not over, one the user has.
pub(crate) fn own_linker(llvm: u32) -> Result<PathBuf> {
    Ok(place::cache()?.join(format!("bpf-linker-{LINKER_VERSION}-llvm{llvm}")))
}

/// Builds the programs and returns the object's path, which netdiag-node embeds.
pub(crate) fn build(debug: bool) -> Result<PathBuf> {
    let Some(Toolchain { compiler, linker }) = Toolchain::find()? else {
        bail!("no toolchain of this machine builds eBPF programs: `cargo xtask setup ebpf` installs one");
    };
    let started = Instant::now();
    let source = place::workspace().join("netdiag-ebpf");
    let target = place::target().join("ebpf-build");
    let mut cargo = match compiler {
        Compiler::Nightly => {
            let mut rustup = command::tool("rustup");
            rustup.args(["run", "nightly", "cargo", "build", "-Z", "build-std=core"]);
            rustup
        }
        Compiler::Debian => {
            let mut cargo = command::tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
            // The prebuilt core was made by exactly this stable compiler; aya-ebpf asks for unstable features.
            cargo.env("RUSTC", DEBIAN_RUSTC).env("RUSTC_BOOTSTRAP", "1").arg("build");
            cargo
        }
    };
    cargo
        .current_dir(&source)
        .args(["--quiet", "--release", "--locked", "--target", TARGET, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", format!("-C linker={} -C linker-plugin-lto -C link-arg=--btf", linker.display()))
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("CARGO_TARGET_DIR")
        // The lints of the main workspace's .clippy.toml are not this one's.
        .env_remove("RUSTC_WORKSPACE_WRAPPER");
    if debug {
        cargo.args(["--features", "debug"]);
    }
    command::run(&mut cargo)?;

    let built = target.join(TARGET).join("release/netdiag-ebpf");
    let object = place::target().join("ebpf/netdiag-ebpf");
    let bytes = std::fs::read(&built).with_context(|| format!("cannot read {}", built.display()))?;
    // The same bytes are not written again: the agent, which embeds them, would be rebuilt for nothing.
    if std::fs::read(&object).ok().as_ref() != Some(&bytes) {
        let folder = object.parent().expect("the object lies in a folder of the target folder");
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
        std::fs::write(&object, &bytes).with_context(|| format!("cannot write {}", object.display()))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("{seconds:5.1} s  {} ({} KiB) by {compiler:?}'s compiler", object.display(), bytes.len() / 1024);
    Ok(object)
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    build(arguments.debug).map(drop)
}

/// Whether the linker reads this LLVM's bitcode: any LLVM reads what is not newer than itself.
fn understands(linker: &Path, llvm: u32) -> bool {
    let Ok(libraries) = command::output(command::tool("ldd").arg(linker)) else {
        // ldd fails on a static program: a release build of the linker, made with the newest LLVM.
        return true;
    };
    parse_llvm_of_linker(&libraries).is_none_or(|linked| linked >= llvm)
}

fn parse_llvm_of_rustc(text: &str) -> Option<u32> {
    let version = text.lines().find_map(|line| line.strip_prefix("LLVM version: "))?;
    version.split('.').next()?.parse().ok()
}

/// `None`: linked without the shared library.
fn parse_llvm_of_linker(ldd: &str) -> Option<u32> {
    let (_, rest) = ldd.split_once("libLLVM")?;
    let digits = rest.trim_start_matches(|letter: char| !letter.is_ascii_digit());
    digits.split(|letter: char| !letter.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_compiler_says_its_llvm() {
        let text = "rustc 1.96.0 (ac68faa20 2026-05-25)\nbinary: rustc\nrelease: 1.96.0\nLLVM version: 22.1.8\n";
        assert_eq!(parse_llvm_of_rustc(text), Some(22));
        assert_eq!(parse_llvm_of_rustc("rustc 1.96.0\n"), None);
    }

    #[test]
    fn a_shared_linker_shows_its_llvm_and_a_static_one_does_not() {
        let text = "\tlibLLVM.so.22.1 => /usr/lib/llvm-22/lib/libLLVM.so.22.1 (0x00007f066d400000)\n";
        assert_eq!(parse_llvm_of_linker(text), Some(22));
        assert_eq!(parse_llvm_of_linker("\tlibLLVM-19.so.1 => /usr/lib/x (0x0)"), Some(19));
        assert_eq!(parse_llvm_of_linker("\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x0)"), None);
    }
}
