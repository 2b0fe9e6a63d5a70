//! Installing what this machine lacks: Debian packages, one cargo program, and Python packages in a folder of our own.
//! Everything that is there is left alone, so a second run is instant.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::command;
use crate::ebpf::{self, Compiler, Toolchain};
use crate::parts;
use crate::place;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What to prepare this machine for; all of it when nothing is named
    #[arg(value_enum)]
    purposes: Vec<Purpose>,
}

/// What a machine can be prepared for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Purpose {
    /// Building the kernel programs
    Ebpf,
    /// Running the demo
    Demo,
    /// Running a cluster
    Cluster,
    /// Running a cluster whose NetworkPolicy Cilium enforces
    Cilium,
    /// Booting other kernels
    Kernels,
    /// Running every test
    Tests,
}

/// A Debian package, and a file that is there when it is installed.
struct Package {
    name: String,
    proof: PathBuf,
}

/// The independent MCP client, and the checker of skills.
const PYTHON_PACKAGES: [&str; 2] = ["mcp==2.3.0", "skills-ref==0.1.1"];

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let all = [Purpose::Ebpf, Purpose::Demo, Purpose::Cluster, Purpose::Cilium, Purpose::Kernels, Purpose::Tests];
    let purposes = if arguments.purposes.is_empty() { &all[..] } else { &arguments.purposes };
    for &purpose in purposes {
        prepare(purpose)?;
        println!("ready: {}", format!("{purpose:?}").to_lowercase());
    }
    Ok(())
}

/// Installs what `purpose` needs and this machine lacks.
pub(crate) fn prepare(purpose: Purpose) -> Result<()> {
    match purpose {
        Purpose::Ebpf => prepare_ebpf(),
        Purpose::Demo => install(&[
            package("nftables", "/usr/sbin/nft"),
            package("iproute2", "/usr/bin/ip"),
            package("procps", "/usr/sbin/sysctl"),
        ]),
        Purpose::Cluster => {
            parts::go()?;
            install(&[
                package("runc", "/usr/sbin/runc"),
                package("iptables", "/usr/sbin/iptables"),
                package("nftables", "/usr/sbin/nft"),
                package("conntrack", "/usr/sbin/conntrack"),
                package("ipset", "/usr/sbin/ipset"),
                package("iproute2", "/usr/bin/ip"),
                package("procps", "/usr/sbin/sysctl"),
                // A case starts its systemd-networkd.
                package("systemd", "/usr/lib/systemd/systemd-networkd"),
                // The dynamic busybox has the same files apart from this one, and does not run in an image.
                package("busybox-static", "/usr/share/doc/busybox-static"),
            ])
        }
        Purpose::Cilium => install(&[
            // Cilium compiles its programs when it starts, with the version its own image has.
            package("clang-19", "/usr/bin/clang-19"),
            package("llvm-19", "/usr/bin/llc-19"),
        ]),
        Purpose::Kernels => install(&[
            package("qemu-system-x86", "/usr/bin/qemu-system-x86_64"),
            package("busybox-static", "/usr/share/doc/busybox-static"),
            package("curl", "/usr/bin/curl"),
            package("gpgv", "/usr/bin/gpgv"),
            package("debian-archive-keyring", "/usr/share/keyrings/debian-archive-keyring.gpg"),
            package("xz-utils", "/usr/bin/xz"),
            package("zstd", "/usr/bin/zstd"),
            // What tests in a guest call, with their libraries.
            package("iproute2", "/usr/bin/ip"),
            package("nftables", "/usr/sbin/nft"),
            package("iptables", "/usr/sbin/iptables"),
            package("conntrack", "/usr/sbin/conntrack"),
        ]),
        Purpose::Tests => {
            prepare(Purpose::Cluster)?;
            install(&[package("python3", "/usr/bin/python3"), package("python3-venv", "/usr/share/doc/python3-venv")])?;
            python_venv().map(drop)
        }
    }
}

/// A Python with the packages that the tests use, in a folder of the cache; returns its folder of programs.
pub(crate) fn python_venv() -> Result<PathBuf> {
    let wanted: Vec<String> = PYTHON_PACKAGES.iter().map(|&package| package.to_owned()).collect();
    let folder = place::cache()?.join(format!("python-{}", parts::short_hash(&wanted)));
    let programs = folder.join("bin");
    // Written last: a folder without it is what an interrupted installation left.
    let complete = folder.join("complete");
    if complete.is_file() {
        return Ok(programs);
    }
    println!("installing {} into {}", PYTHON_PACKAGES.join(" and "), folder.display());
    command::output(command::tool("/usr/bin/python3").args(["-m", "venv", "--clear"]).arg(&folder))
        .context("cannot make a Python environment: `cargo xtask setup tests` installs python3-venv")?;
    command::output(
        command::tool(programs.join("pip"))
            .args(["install", "--quiet", "--disable-pip-version-check"])
            .args(PYTHON_PACKAGES),
    )
    .context("cannot install the Python packages of the tests")?;
    std::fs::write(&complete, "").with_context(|| format!("cannot write {}", complete.display()))?;
    Ok(programs)
}

fn prepare_ebpf() -> Result<()> {
    if Toolchain::find()?.is_some() {
        return Ok(());
    }
    if command::find("apt-get").is_none() {
        bail!(
            "eBPF programs need a compiler with `core` for the bpf target, and bpf-linker:\n  \
             rustup toolchain install nightly --component rust-src\n  \
             cargo binstall bpf-linker"
        );
    }
    install(&[
        package("rustc-web", "/usr/share/doc/rustc-web"),
        package("libstd-rust-web-dev-bpf", "/usr/lib/rustlib/bpfel-unknown-none"),
    ])?;
    // Only the compiler says which LLVM it was built with.
    let llvm = Compiler::Debian.llvm()?;
    install(&[
        package(&format!("llvm-{llvm}-dev"), &format!("/usr/lib/llvm-{llvm}/include/llvm-c")),
        package(&format!("libpolly-{llvm}-dev"), &format!("/usr/share/doc/libpolly-{llvm}-dev")),
        package("zlib1g-dev", "/usr/include/zlib.h"),
        package("libzstd-dev", "/usr/include/zstd.h"),
        package("libxml2-dev", "/usr/include/libxml2"),
    ])?;
    if Toolchain::find()?.is_some() {
        return Ok(());
    }
    let folder = ebpf::own_linker(llvm)?;
    println!("installing bpf-linker {} into {}", ebpf::LINKER_VERSION, folder.display());
    let prefix = format!("/usr/lib/llvm-{llvm}");
    command::run(
        command::tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["install", "--quiet", "--locked", "bpf-linker", "--version", ebpf::LINKER_VERSION])
            .args(["--no-default-features", "--features", &format!("llvm-{llvm}"), "--root"])
            .arg(&folder)
            .env("LLVM_PREFIX", &prefix)
            .env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix)
            .env_remove("CARGO_TARGET_DIR"),
    )?;
    if Toolchain::find()?.is_none() {
        bail!("bpf-linker is installed, but does not fit the compiler's LLVM {llvm}");
    }
    Ok(())
}

fn package(name: &str, proof: &str) -> Package {
    Package { name: name.to_owned(), proof: PathBuf::from(proof) }
}

/// Installs the packages whose proof is missing. Without the right to, fails with the command that does.
fn install(packages: &[Package]) -> Result<()> {
    let missing: Vec<&str> =
        packages.iter().filter(|package| !is_there(&package.proof)).map(|package| package.name.as_str()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let wanted = missing.join(" ");
    if command::find("apt-get").is_none() {
        bail!("not installed: {wanted} (Debian's names), and this machine has no apt-get: install them by hand");
    }
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "not installed: {wanted}; run as root:\n  apt-get update && apt-get install --no-install-recommends {wanted}"
        );
    }
    println!("installing Debian packages: {wanted}");
    let apt =
        |words: &[&str]| command::output(command::tool("apt-get").args(words).env("DEBIAN_FRONTEND", "noninteractive"));
    apt(&["update", "--quiet"])?;
    let mut words = vec!["install", "--quiet", "--yes", "--no-install-recommends"];
    words.extend(&missing);
    apt(&words).map(drop)
}

/// A program may also lie where another distribution, or an older Debian, puts it.
fn is_there(proof: &Path) -> bool {
    proof.exists()
        || proof
            .file_name()
            .filter(|_| proof.parent().is_some_and(|folder| folder.ends_with("bin") || folder.ends_with("sbin")))
            .is_some_and(|program| command::find(&program.to_string_lossy()).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_elsewhere_in_the_path_counts_and_a_missing_folder_does_not() {
        assert!(is_there(Path::new("/no/such/bin/sh")));
        assert!(!is_there(Path::new("/usr/share/doc/sh")));
        assert!(!is_there(Path::new("/usr/bin/no-such-program")));
    }
}
