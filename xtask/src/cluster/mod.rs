//! A real Kubernetes cluster on one machine, without Docker and without a registry.
//!
//! A node is a network, mount and UTS namespace with its own /run, kubelet and containerd folders; a bridge in a further
//! network namespace is the wire between nodes. All nodes share one kernel, one clock and one PID space.

mod address;
mod cgroup;
mod cilium;
pub(crate) mod cli;
mod container;
mod control_plane;
mod images;
pub(crate) mod kind;
mod kube_proxy;
mod kube_router;
mod kubelet;
mod node;
mod options;
mod overlay;
mod pki;
mod process;
mod teardown;
mod underlay;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::command;
use crate::parts;
use address::Subnet;
pub(crate) use options::{Cni, Options, ProxyMode};

/// Every cluster has a folder of its own below this one.
const LAB: &str = "/var/lib/netdiag-lab";

/// Each poll is a kubectl or a connection attempt, about 0.1 s of one core.
const POLL_INTERVAL: Duration = Duration::from_millis(200);

/// The controller that creates them needs a second; on a machine that also compiles, several.
const SERVICE_ACCOUNT_LIMIT: Duration = Duration::from_secs(30);

/// Programs of the machine that the cluster runs; `cargo xtask setup cluster` installs them.
const TOOLS: [&str; 13] = [
    "ip",
    "bridge",
    "nsenter",
    "unshare",
    "setsid",
    "mount",
    "hostname",
    "sysctl",
    "runc",
    "iptables",
    "nft",
    "conntrack",
    "busybox",
];

/// A running cluster.
pub(crate) struct Cluster {
    pub(crate) options: Options,
    folder: PathBuf,
    subnet: Subnet,
}

/// Builds what clusters with these plugins are made of, where it is not there yet: the folders of programs, and the images.
pub(crate) fn ensure_parts(plugins: impl IntoIterator<Item = Cni>) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let mut programs = Vec::new();
    for part in &parts::CLUSTER {
        programs.push(parts::ensure(part)?);
    }
    let plugins: Vec<Cni> = plugins.into_iter().collect();
    if plugins.contains(&Cni::Cilium) {
        programs.push(cilium::ensure()?);
    }
    if plugins.contains(&Cni::KubeRouter) {
        programs.push(kube_router::ensure()?);
    }
    Ok((programs, images::ensure()?))
}

/// What [`Cluster::attach`] must know of a cluster that another process started.
#[derive(Serialize, Deserialize)]
struct State {
    options: Options,
    subnet: Subnet,
}

impl Cluster {
    /// Starts a cluster and returns when its nodes are Ready and cluster DNS is deployed. What a failed start leaves is removed.
    pub(crate) fn up(options: &Options) -> Result<Self> {
        options.check()?;
        check_machine()?;
        let folder = Path::new(LAB).join(&options.name);
        if folder.exists() {
            bail!(
                "cluster {0} is already there: `cargo xtask cluster down --name {0}` stops it, --name starts another",
                options.name
            );
        }
        let (programs, images) = ensure_parts([options.cni])?;

        let started = Instant::now();
        let (cluster, lock) = Self::reserve(options, folder)?;
        let guard = Unfinished(Some(cluster));
        let cluster = guard.cluster();
        underlay::create(cluster)?;
        drop(lock);
        cluster.link_programs(&programs)?;
        pki::create(cluster)?;
        std::thread::scope(|scope| -> Result<()> {
            // containerd and the images do not need the API server: both start side by side.
            let preparing: Vec<_> = cluster
                .node_names()
                .map(|node| {
                    let images = &images;
                    scope.spawn(move || node::prepare(cluster, &node, images))
                })
                .collect();
            control_plane::start(cluster)?;
            println!("{:5.1} s  API server ready", started.elapsed().as_secs_f64());
            for thread in preparing {
                thread.join().expect("preparing a node does not panic")?;
            }
            Ok(())
        })?;
        if options.cni == Cni::Cilium {
            cilium::install(cluster)?;
        }
        for node in cluster.node_names() {
            node::join(cluster, &node)?;
        }
        cluster.apply(include_str!("coredns.yaml"))?;
        node::wait_ready(cluster)?;
        println!("{:5.1} s  {} nodes Ready", started.elapsed().as_secs_f64(), cluster.options.nodes);
        Ok(guard.finished())
    }

    /// Finds a cluster that is up.
    pub(crate) fn attach(name: &str) -> Result<Self> {
        let folder = Path::new(LAB).join(name);
        let file = folder.join("cluster.json");
        let Ok(text) = std::fs::read_to_string(&file) else {
            let names = Self::names();
            let there = if names.is_empty() { "none is up".to_owned() } else { format!("up: {}", names.join(", ")) };
            bail!("no cluster named {name} ({there}; `cargo xtask cluster up --name {name}` starts it)");
        };
        let state: State = serde_json::from_str(&text).with_context(|| format!("cannot parse {}", file.display()))?;
        Ok(Self { options: state.options, folder, subnet: state.subnet })
    }

    /// Names of the clusters that are up.
    pub(crate) fn names() -> Vec<String> {
        let entries = std::fs::read_dir(LAB).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries
            .filter(|entry| entry.path().join("cluster.json").is_file())
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// Stops the cluster's processes and removes its namespaces, mounts and files; nothing of any other cluster.
    pub(crate) fn down(&self) -> Result<()> {
        teardown::down(self)
    }

    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("admin.conf")
    }

    pub(crate) fn kubectl_command(&self) -> Command {
        let mut command = command::tool(self.program("kubectl"));
        command
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--cache-dir")
            .arg(self.folder.join("kubectl"))
            .arg("--request-timeout=20s");
        command
    }

    /// Runs kubectl as the cluster's administrator and returns what it printed.
    pub(crate) fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        command::output(self.kubectl_command().args(arguments))
    }

    /// Applies manifests. A pod in a namespace that is a moment old is refused until its ServiceAccount is there: tried again.
    pub(crate) fn apply(&self, yaml: &str) -> Result<String> {
        let started = Instant::now();
        loop {
            let applied = command::output_with_input(self.kubectl_command().args(["apply", "-f", "-"]), yaml);
            match applied {
                Err(error)
                    if error.to_string().contains("error looking up service account")
                        && started.elapsed() < SERVICE_ACCOUNT_LIMIT => {}
                result => return result,
            }
            std::thread::sleep(POLL_INTERVAL);
        }
    }

    /// n1, n2, …
    pub(crate) fn node_names(&self) -> impl Iterator<Item = String> + use<> {
        (1..=self.options.nodes).map(|index| format!("n{index}"))
    }

    /// The node's network namespace.
    pub(crate) fn netns_of(&self, node: &str) -> PathBuf {
        Path::new("/run/netns").join(self.netns_name(node))
    }

    /// A command that will run in the node's mount, network and UTS namespaces.
    pub(crate) fn node_command(&self, node: &str) -> Result<Command> {
        if !self.node_names().any(|name| name == node) {
            let names: Vec<_> = self.node_names().collect();
            bail!("cluster {} has no node {node}: its nodes are {}", self.options.name, names.join(", "));
        }
        let Some(pid) = self.pid_of(&format!("{node}-init")) else {
            bail!("node {node} of cluster {} is not running: down and up start it afresh", self.options.name);
        };
        let mut entry = command::words(&["nsenter", "--mount", "--net", "--uts", "--target", &pid.to_string(), "--"]);
        entry.env("PATH", self.search_path());
        Ok(entry)
    }

    /// Runs a command on a node and returns what it printed.
    pub(crate) fn node_exec(&self, node: &str, words: &[&str]) -> Result<String> {
        command::output(self.node_command(node)?.args(words))
    }

    /// Runs a shell script in the namespace of the wire between the hosts.
    pub(crate) fn wire_exec(&self, script: &str) -> Result<String> {
        let netns = self.netns_name(underlay::SWITCH);
        command::output(command::tool("ip").args(["netns", "exec", &netns, "sh", "-ec", script]))
    }

    /// The node's InternalIP.
    pub(crate) fn node_address(&self, node: &str) -> String {
        self.subnet.node(node::index_of(node))
    }

    /// The cgroup below which the node's kubelet puts all pods.
    pub(crate) fn cgroup_root(&self, node: &str) -> String {
        cgroup::path(&self.options.name, node)
    }

    /// Gives every node an image, so that pods need not pull it.
    pub(crate) fn load_image(&self, archive: &Path) -> Result<()> {
        self.node_names().try_for_each(|name| node::import(self, &name, archive))
    }

    /// A folder for files that belong to this cluster; it goes with the cluster.
    pub(crate) fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
        Ok(folder)
    }

    /// Polls until `ready`; fails with `what` was waited for.
    pub(crate) fn wait_until(&self, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            if started.elapsed() > limit {
                bail!("cluster {}: no {what} within {} s", self.options.name, limit.as_secs());
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    fn netns_name(&self, host: &str) -> String {
        format!("{}-{host}", self.options.name)
    }

    /// The cluster's programs (ctr, hubble, …) before the machine's.
    fn search_path(&self) -> String {
        format!("{}:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.folder.join("bin").display())
    }

    /// One of the programs the cluster was built from.
    fn program(&self, name: &str) -> PathBuf {
        self.folder.join("bin").join(name)
    }

    /// Takes a free subnet and writes the cluster's state. The lock is held until the subnet shows in the routing table, so
    /// that two clusters that start at once do not choose the same.
    fn reserve(options: &Options, folder: PathBuf) -> Result<(Self, nix::fcntl::Flock<std::fs::File>)> {
        std::fs::create_dir_all(LAB).with_context(|| format!("cannot create {LAB}"))?;
        let path = Path::new(LAB).join(".lock");
        let file = std::fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        let lock = nix::fcntl::Flock::lock(file, nix::fcntl::FlockArg::LockExclusive)
            .map_err(|(_, errno)| errno)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        let routes = command::output(&mut command::words(&["ip", "-4", "route", "show", "table", "all"]))?;
        let Some(subnet) = Subnet::choose(&options.name, &routes) else {
            bail!("no subnet of 172.30.0.0/16 is free on this machine: stop another cluster first");
        };
        let cluster = Self { options: options.clone(), folder, subnet };
        // The state first: whatever is interrupted from here on, `down` finds and removes.
        std::fs::create_dir_all(&cluster.folder)
            .with_context(|| format!("cannot create {}", cluster.folder.display()))?;
        let state = serde_json::to_string_pretty(&State { options: options.clone(), subnet })?;
        cluster.write("cluster.json", &state)?;
        for sub in ["bin", "log", "pid", "pki", "etcd"] {
            let path = cluster.folder.join(sub);
            std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        Ok((cluster, lock))
    }

    /// One folder with every program: containerd looks for its shim and the CNI plugins by name.
    fn link_programs(&self, folders: &[PathBuf]) -> Result<()> {
        for folder in folders {
            let entries = std::fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))?;
            for entry in entries {
                let file = entry.with_context(|| format!("cannot list {}", folder.display()))?;
                let link = self.folder.join("bin").join(file.file_name());
                std::os::unix::fs::symlink(file.path(), &link)
                    .with_context(|| format!("cannot create {}", link.display()))?;
            }
        }
        Ok(())
    }

    fn write(&self, name: &str, content: &str) -> Result<()> {
        let path = self.folder.join(name);
        std::fs::write(&path, content).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Polls until `ready`. Ends early when `component` is no longer running; a failure shows the end of its log.
    fn wait(&self, component: &str, what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            let problem = if self.pid_of(component).is_none() {
                format!("{component} stopped before {what}")
            } else if started.elapsed() > limit {
                format!("no {what} within {} s", limit.as_secs())
            } else {
                std::thread::sleep(POLL_INTERVAL);
                continue;
            };
            bail!("{problem}; the end of {}:\n{}", self.log_path(component).display(), self.log_tail(component));
        }
        Ok(())
    }
}

/// Takes a cluster down again unless its start was finished.
struct Unfinished(Option<Cluster>);

impl Unfinished {
    fn cluster(&self) -> &Cluster {
        self.0.as_ref().expect("only finished() takes the cluster, and it consumes self")
    }

    fn finished(mut self) -> Cluster {
        self.0.take().expect("only finished() takes the cluster, and it consumes self")
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if let Some(cluster) = &self.0
            && let Err(error) = cluster.down()
        {
            eprintln!("cannot remove what is left of cluster {}: {error:#}", cluster.options.name);
        }
    }
}

fn check_machine() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a cluster needs root, for its namespaces: run this as root");
    }
    let missing: Vec<_> = TOOLS.into_iter().filter(|tool| command::find(tool).is_none()).collect();
    if !missing.is_empty() {
        bail!("not installed: {}; `cargo xtask setup cluster` installs them", missing.join(", "));
    }
    Ok(())
}
