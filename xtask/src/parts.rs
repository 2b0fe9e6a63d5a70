//! The cluster's programs, and one that benchmarks compare with, built from Go modules whose versions `xtask/parts/NAME/go.{mod,sum}` pin.
//!
//! The `tool` lines of a part's go.mod say what is built; a part without them is a program of our own. A built part lies in
//! the cache under a hash of everything that decides its content, so it is built once for all checkouts.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use ring::digest;

use crate::command;
use crate::place;

/// A set of programs that one Go module pins.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) name: &'static str,
    /// Go names a program after its package's last element: (that name, the program's usual name).
    rename: Option<(&'static str, &'static str)>,
    linker_flags: &'static str,
}

impl Part {
    const fn new(name: &'static str) -> Self {
        Self { name, rename: None, linker_flags: "" }
    }
}

/// Kubernetes says its version in Node objects and to clients, who refuse to talk to "v0.0.0".
const KUBERNETES_VERSION_FLAGS: &str = "-X k8s.io/component-base/version.gitVersion=v1.36.3 \
    -X k8s.io/client-go/pkg/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1 \
    -X k8s.io/component-base/version.gitMinor=36";

/// What every cluster needs.
pub(crate) const CLUSTER: [Part; 6] = [
    Part { linker_flags: KUBERNETES_VERSION_FLAGS, ..Part::new("kubernetes") },
    Part::new("containerd"),
    Part { rename: Some(("server", "etcd")), ..Part::new("etcd") },
    Part::new("cni"),
    Part::new("coredns"),
    Part::new("pause"),
];

/// Pod network and policy engine of eBPF programs, for clusters that want it.
pub(crate) const CILIUM: Part = Part {
    rename: Some(("daemon", "cilium-agent")),
    linker_flags: "-X github.com/cilium/cilium/pkg/version.ciliumVersion=1.20.1",
    ..Part::new("cilium")
};

/// A policy engine of iptables rules and ipsets, for clusters that want it.
pub(crate) const KUBE_ROUTER: Part = Part::new("kube-router");

/// What probes are compared with.
pub(crate) const BLACKBOX: Part = Part::new("blackbox");

/// Builds what the cache lacks and returns the part's folder of programs.
pub(crate) fn ensure(part: &Part) -> Result<PathBuf> {
    let source = place::workspace().join("xtask/parts").join(part.name);
    let folder = place::cache()?.join("parts").join(format!("{}-{}", part.name, key(part, &source)?));
    if folder.is_dir() {
        return Ok(folder);
    }
    let go = go()?;
    println!("building {} from Go modules (once; kept in {})", part.name, folder.display());
    let started = Instant::now();
    // Built beside its final place and renamed: an interrupted build leaves nothing that looks finished.
    let building = folder.with_extension(format!("building-{}", std::process::id()));
    std::fs::create_dir_all(&building).with_context(|| format!("cannot create {}", building.display()))?;
    let built = build(part, &go, &source, &building);
    if let Err(error) = built {
        let _ = std::fs::remove_dir_all(&building);
        return Err(error.context(format!("cannot build {}", part.name)));
    }
    if let Err(error) = std::fs::rename(&building, &folder) {
        let _ = std::fs::remove_dir_all(&building);
        if !folder.is_dir() {
            return Err(error).with_context(|| format!("cannot rename {} to {}", building.display(), folder.display()));
        }
    }
    println!("built {} in {:.0} s", part.name, started.elapsed().as_secs_f64());
    Ok(folder)
}

/// Where Go keeps the source of a module that the part pins, downloaded if it is not there.
pub(crate) fn module_folder(part: &Part, module: &str) -> Result<PathBuf> {
    let source = place::workspace().join("xtask/parts").join(part.name);
    let mut list = command::tool(go()?);
    list.current_dir(&source).args(["list", "-mod=readonly", "-m", "-f", "{{.Path}}@{{.Version}}", module]);
    let version = command::output(&mut list)?;
    let mut download = command::tool(go()?);
    download.current_dir(&source).args(["mod", "download", "-json", version.trim()]);
    let answer: serde_json::Value = serde_json::from_str(&command::output(&mut download)?)
        .with_context(|| format!("cannot parse what `go mod download` says of {module}"))?;
    let folder = answer["Dir"].as_str().with_context(|| format!("`go mod download` names no folder for {module}"))?;
    Ok(PathBuf::from(folder))
}

fn build(part: &Part, go: &Path, source: &Path, folder: &Path) -> Result<()> {
    let go_build = |output: &Path, package: &str| {
        let mut command = command::tool(go);
        command
            .current_dir(source)
            .env("CGO_ENABLED", "0")
            .args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false"])
            .arg("-ldflags")
            .arg(format!("-s -w {}", part.linker_flags))
            .arg("-o")
            .arg(output)
            .arg(package);
        command::run(&mut command)
    };
    // A trailing slash makes Go treat the output as a folder.
    let package = if read(&source.join("go.mod"))?.contains("\ntool ") { "tool" } else { "." };
    go_build(&folder.join(""), package)?;
    if let Some((from, to)) = part.rename {
        std::fs::rename(folder.join(from), folder.join(to))
            .with_context(|| format!("{} was built without a program named {from}", part.name))?;
    }
    Ok(())
}

/// A name for exactly this content: the pinned versions, our own sources, and how they are built.
fn key(part: &Part, source: &Path) -> Result<String> {
    let mut inputs = vec![read(&source.join("go.mod"))?, read(&source.join("go.sum"))?, part.linker_flags.to_owned()];
    inputs.extend(part.rename.map(|(from, to)| format!("{from} {to}")));
    let own = source.join("main.go");
    if own.exists() {
        inputs.push(read(&own)?);
    }
    Ok(short_hash(&inputs))
}

/// Twelve hexadecimal digits over the inputs, each with its length, so that moving text between two inputs changes it.
pub(crate) fn short_hash(inputs: &[String]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    for input in inputs {
        context.update(&(input.len() as u64).to_le_bytes());
        context.update(input.as_bytes());
    }
    crate::image::hexadecimal(&context.finish().as_ref()[..6])
}

/// The Go toolchain, which cannot be installed from Debian 12: its version is too old.
pub(crate) fn go() -> Result<PathBuf> {
    let usual = PathBuf::from("/usr/local/go/bin/go");
    match command::find("go") {
        Some(go) => Ok(go),
        None if usual.is_file() => Ok(usual),
        None => {
            bail!("programs of others are built with Go, which is not installed: see https://go.dev/doc/install")
        }
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(inputs: &[&str]) -> String {
        short_hash(&inputs.iter().map(|&input| input.to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn the_key_follows_every_input() {
        assert_eq!(hash(&["require x v1"]), hash(&["require x v1"]));
        assert_ne!(hash(&["require x v1"]), hash(&["require x v2"]));
        assert_ne!(hash(&["ab", "c"]), hash(&["a", "bc"]));
        assert_eq!(hash(&["a"]).len(), 12);
    }

    #[test]
    fn every_part_pins_its_modules() {
        for part in CLUSTER.iter().chain([&CILIUM, &KUBE_ROUTER, &BLACKBOX]) {
            let source = place::workspace().join("xtask/parts").join(part.name);
            assert_eq!(key(part, &source).unwrap().len(), 12, "{}", part.name);
        }
    }

    #[test]
    fn kubernetes_calls_itself_by_its_pinned_version() {
        let modules = read(&place::workspace().join("xtask/parts/kubernetes/go.mod")).unwrap();
        let pinned = modules.lines().find_map(|line| line.strip_prefix("require k8s.io/kubernetes ")).unwrap();
        assert!(KUBERNETES_VERSION_FLAGS.contains(&format!("version.gitVersion={pinned} ")), "{pinned}");
    }
}
