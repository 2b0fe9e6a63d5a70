//! The image of netdiag itself: the agent and the server, each one static program.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::image::{self, Image};
use crate::{command, ebpf, place};

/// How the programs are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Build {
    /// As users get them.
    Release,
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

/// Compiles the programs without any shared library: they run in an image without files.
pub(crate) fn compile(build: Build) -> Result<Programs> {
    let object = ebpf::build(false)?;
    let host = host_target()?;
    let target = place::target().join("static");
    let mut cargo = command::tool(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(place::workspace())
        .args(["build", "--quiet", "--locked", "--package", "netdiag-node", "--package", "netdiag-server", "--bins"])
        // Named, though it is the machine's own: else the flags below would break procedural macros.
        .args(["--target", &host, "--target-dir"])
        .arg(&target)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env("NETDIAG_EBPF_OBJECT", &object);
    let profile = match build {
        Build::Release => {
            cargo.arg("--release");
            "release"
        }
        Build::Debug => "debug",
    };
    command::run(&mut cargo)?;
    let folder = target.join(&host).join(profile);
    Ok(Programs { server: folder.join("netdiag"), agent: folder.join("netdiag-node") })
}

/// Packs the programs. The tag is a hash of them, so that a cluster sees when they have changed.
pub(crate) fn pack(programs: &Programs) -> Result<Packed> {
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
