//! Installing netdiag as users do: from `charts/`, with an image of this checkout's programs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::cluster::{Cluster, kind};
use crate::netdiag_image::{self, Build, Packed};
use crate::{command, place};

const NAMESPACE: &str = "netdiag-system";

const SECRET: &str = "netdiag-tls";
const CERTIFICATES: [&str; 5] = ["ca.crt", "node.crt", "node.key", "server.crt", "server.key"];

/// The image that the manifests name; replaced by the one just packed.
const RELEASED_IMAGE: &str = "docker.io/netdiag/netdiag:0.1.0";

/// An agent compiles nothing and attaches in a second; a server first reads the whole cluster.
const ROLLOUT_LIMIT: &str = "--timeout=120s";

/// The namespace comes first, and the Secret before the pods that mount it.
const AFTER_CERTIFICATES: [&str; 3] = ["rbac.yaml", "agent.yaml", "server.yaml"];

/// What a caller needs to use netdiag from outside of the cluster.
pub(crate) struct Installed {
    /// The static `netdiag`.
    pub(crate) server: PathBuf,
    /// The static `netdiag-node`.
    pub(crate) agent: PathBuf,
    /// A folder with the cluster's ca.crt, node.crt, node.key, server.crt and server.key.
    pub(crate) tls: PathBuf,
}

/// Asks as users do, through the server in the cluster: what `netdiag WORDS -o json` prints.
pub(crate) fn ask(netdiag: &Path, cluster: &Cluster, words: &[&str]) -> Result<Value> {
    let mut asking = Command::new(netdiag);
    asking.args(words).args(["-o", "json", "--kubeconfig"]).arg(cluster.kubeconfig());
    let output = asking.output().with_context(|| format!("cannot start {}", netdiag.display()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).with_context(|| {
        format!("netdiag {} printed no JSON ({}): {}", words.join(" "), output.status, command::tail(&said, 5))
    })
}

/// Builds and packs netdiag, loads it into every node, makes the certificates, applies the manifests, waits until ready.
pub(crate) fn install(cluster: &Cluster, build: Build) -> Result<Installed> {
    install_into(&Destination::Lab(cluster), build)
}

/// As [`install`], for the kind cluster of this name.
pub(crate) fn install_with_kind(name: &str, build: Build) -> Result<Installed> {
    install_into(&Destination::Kind(name), build)
}

/// Where to install.
enum Destination<'a> {
    Lab(&'a Cluster),
    /// A kind cluster by this name.
    Kind(&'a str),
}

fn install_into(destination: &Destination<'_>, build: Build) -> Result<Installed> {
    let started = Instant::now();
    let (programs, packed) = netdiag_image::packed(build)?;
    println!("{:5.1} s  built {}", started.elapsed().as_secs_f64(), packed.reference);
    destination.load(&packed.archive)?;
    destination.apply(&manifest("namespace.yaml")?)?;
    let kubeconfig = destination.kubeconfig()?;
    command::output(command::tool(&programs.server).args(["certs", "--kubeconfig"]).arg(&kubeconfig))
        .context("cannot make netdiag's certificates")?;
    for name in AFTER_CERTIFICATES {
        destination.apply(&with_image(&manifest(name)?, &packed))?;
    }
    for workload in ["daemonset/netdiag-node", "deployment/netdiag"] {
        let mut rollout = destination.kubectl();
        rollout.args(["--namespace", NAMESPACE, "rollout", "status", workload, ROLLOUT_LIMIT]);
        if let Err(error) = command::output(&mut rollout) {
            bail!("{workload} did not become ready: {error:#}\n{}", destination.what_pods_say());
        }
    }
    let tls = destination.copy_certificates()?;
    println!("{:5.1} s  netdiag is ready in namespace {NAMESPACE}", started.elapsed().as_secs_f64());
    Ok(Installed { server: programs.server, agent: programs.agent, tls })
}

impl Destination<'_> {
    fn kubectl(&self) -> Command {
        match self {
            Self::Lab(cluster) => cluster.kubectl_command(),
            Self::Kind(name) => kind::kubectl(name),
        }
    }

    fn load(&self, archive: &Path) -> Result<()> {
        match self {
            Self::Lab(cluster) => cluster.load_image(archive),
            Self::Kind(name) => kind::load(name, archive),
        }
    }

    fn apply(&self, yaml: &str) -> Result<()> {
        command::output_with_input(self.kubectl().args(["apply", "--filename", "-"]), yaml).map(drop)
    }

    fn kubeconfig(&self) -> Result<PathBuf> {
        match self {
            Self::Lab(cluster) => Ok(cluster.kubeconfig()),
            Self::Kind(name) => {
                let path = self.scratch()?.join("kubeconfig");
                std::fs::write(&path, kind::kubeconfig(name)?)
                    .with_context(|| format!("cannot write {}", path.display()))?;
                Ok(path)
            }
        }
    }

    fn scratch(&self) -> Result<PathBuf> {
        match self {
            Self::Lab(cluster) => cluster.scratch("netdiag"),
            Self::Kind(name) => {
                let folder = place::target().join("kind").join(name);
                std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
                Ok(folder)
            }
        }
    }

    /// The Secret's files, for asking the agents from outside of the cluster.
    fn copy_certificates(&self) -> Result<PathBuf> {
        let folder = self.scratch()?.join("tls");
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        for file in CERTIFICATES {
            let template = format!("go-template={{{{index .data \"{file}\" | base64decode}}}}");
            let mut get = self.kubectl();
            get.args(["--namespace", NAMESPACE, "get", "secret", SECRET, "--output", &template]);
            let path = folder.join(file);
            std::fs::write(&path, command::output(&mut get)?)
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(folder)
    }

    /// States, events and last words of netdiag's pods, for the message of a failed installation.
    fn what_pods_say(&self) -> String {
        let asked: [&[&str]; 3] = [
            &["get", "pods", "--output", "wide"],
            &["get", "events", "--field-selector", "type=Warning"],
            &["logs", "--selector", "app.kubernetes.io/name in (netdiag, netdiag-node)", "--tail=10", "--prefix"],
        ];
        let answers = asked.iter().map(|words| {
            let answer = command::output(self.kubectl().args(["--namespace", NAMESPACE]).args(*words));
            answer.unwrap_or_else(|error| format!("{error:#}\n"))
        });
        answers.collect()
    }
}

fn manifest(name: &str) -> Result<String> {
    of_chart(&format!("manifests/{name}"))
}

/// What is off unless it is applied.
pub(crate) fn optional(name: &str) -> Result<String> {
    of_chart(&format!("optional/{name}"))
}

fn of_chart(name: &str) -> Result<String> {
    let path = place::workspace().join("charts/netdiag").join(name);
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn with_image(manifest: &str, packed: &Packed) -> String {
    manifest.replace(RELEASED_IMAGE, &packed.reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_workloads_get_the_packed_image() {
        let packed = Packed { reference: "docker.io/netdiag/netdiag:abc".to_owned(), archive: PathBuf::new() };
        for name in ["agent.yaml", "server.yaml"] {
            let filled = with_image(&manifest(name).unwrap(), &packed);
            assert_eq!(filled.matches("image: docker.io/netdiag/netdiag:abc\n").count(), 1, "{name}");
        }
    }
}
