//! The same with kind, where Docker is there: kind makes the nodes, the images come from us.
//!
//! Known drift: the machines that run our tests have no Docker, so nothing here is tested.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::{Cni, Options, images};
use crate::{command, template};

/// Creates a cluster and gives it the image of the sample application.
pub(super) fn up(options: &Options) -> Result<()> {
    if command::output(&mut command::words(&["docker", "info"])).is_err() {
        bail!("--kind needs Docker, and `docker info` fails here: without --kind no Docker is needed");
    }
    match options.cni {
        Cni::Ptp => {}
        Cni::Bridge | Cni::Vxlan => {
            bail!(
                "--kind goes together with neither --cni bridge nor --cni vxlan: kind's own network plugin routes pods"
            )
        }
        Cni::KubeRouter => {
            bail!("--kind and --cni kube-router do not go together: kind's own network plugin enforces NetworkPolicy")
        }
        Cni::Cilium => {
            bail!("--kind and --cni cilium do not go together: install Cilium into a kind cluster by its own chart")
        }
    }
    let family = if options.dual_stack { "dual" } else { "ipv4" };
    let workers = "- role: worker\n".repeat(usize::from(options.nodes));
    let values = [("mode", options.mode.name()), ("family", family), ("workers", &workers)];
    let configuration = template::fill(include_str!("kind.yaml"), &values)?;
    let mut create = command::words(&["kind", "create", "cluster", "--name", &options.name, "--config", "-"]);
    command::output_with_input(&mut create, &configuration)?;
    for image in images::ensure()? {
        load(&options.name, &image)?;
    }
    Ok(())
}

pub(super) fn down(name: &str) -> Result<()> {
    command::run(&mut command::words(&["kind", "delete", "cluster", "--name", name]))
}

pub(crate) fn load(name: &str, archive: &Path) -> Result<()> {
    let mut load = command::words(&["kind", "load", "image-archive", "--name", name]);
    command::output(load.arg(archive))
        .map(drop)
        .with_context(|| format!("kind cluster {name} does not take the image {}", archive.display()))
}

/// kubectl of the machine, in the context that kind wrote.
pub(crate) fn kubectl(name: &str) -> Command {
    command::words(&["kubectl", "--context", &format!("kind-{name}")])
}

/// The kubeconfig of the cluster's administrator.
pub(crate) fn kubeconfig(name: &str) -> Result<String> {
    command::output(&mut command::words(&["kind", "get", "kubeconfig", "--name", name]))
}
