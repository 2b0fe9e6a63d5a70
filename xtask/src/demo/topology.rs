//! Two nodes, three pods, one wire: network namespaces, veth pairs, routes, rules, processes and agents. All of it goes with
//! the value.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::command;

/// Every namespace's name starts with it.
const PREFIX: &str = "netdiag-demo-";
const RULES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/demo/rules.nft");

/// The question of the demo.
pub(super) const QUESTION: [&str; 5] = ["diagnose", "--from", "pod/shop/client", "--to", "service/shop/web:80"];

struct Node {
    name: &'static str,
    address: &'static str,
    /// The other node's pods and address.
    route: (&'static str, &'static str),
}

const NODES: [Node; 2] = [
    Node { name: "n1", address: "10.99.0.11", route: ("10.98.2.0/24", "10.99.0.12") },
    Node { name: "n2", address: "10.99.0.12", route: ("10.98.1.0/24", "10.99.0.11") },
];

struct Pod {
    name: &'static str,
    uid: &'static str,
    node: &'static str,
    address: &'static str,
    gateway: &'static str,
    serves: Option<&'static str>,
}

const PODS: [Pod; 3] = [
    Pod {
        name: "client",
        uid: "00000000-0000-4000-8000-0000000000c1",
        node: "n1",
        address: "10.98.1.2",
        gateway: "10.98.1.1",
        serves: None,
    },
    Pod {
        name: "web-1",
        uid: "00000000-0000-4000-8000-0000000000b1",
        node: "n1",
        address: "10.98.1.3",
        gateway: "10.98.1.1",
        serves: Some("0.0.0.0:8080"),
    },
    Pod {
        name: "web-2",
        uid: "00000000-0000-4000-8000-0000000000b2",
        node: "n2",
        address: "10.98.2.3",
        gateway: "10.98.2.1",
        serves: Some("0.0.0.0:8080"),
    },
];

pub(super) struct Topology {
    /// Certificates and logs.
    folder: tempfile::TempDir,
    server: PathBuf,
    /// One process per pod, in the pod's namespace and cgroup.
    pods: RefCell<BTreeMap<&'static str, Child>>,
    agents: Vec<Child>,
}

impl Topology {
    pub(super) fn up(agent: &Path, server: &Path) -> Result<Self> {
        remove_namespaces()?;
        remove_cgroups();
        let mut topology = Self {
            folder: tempfile::tempdir().context("cannot create a folder for certificates")?,
            server: server.to_owned(),
            pods: RefCell::default(),
            agents: Vec::new(),
        };
        wire_nodes()?;
        for pod in &PODS {
            wire_pod(pod)?;
            topology.start(pod, pod.serves)?;
        }
        for node in &NODES {
            topology.run(&[&format!("@{} nft -f RULES", node.name)])?;
        }
        command::output(Command::new(server).args(["certs", "--out"]).arg(topology.certificates()))?;
        for node in &NODES {
            topology.agents.push(topology.start_agent(agent, node)?);
        }
        topology.wait_for_agents()?;
        Ok(topology)
    }

    pub(super) fn certificates(&self) -> PathBuf {
        self.folder.path().join("tls")
    }

    /// Runs the lines of a fault.
    pub(super) fn run(&self, lines: &[&str]) -> Result<()> {
        for line in lines {
            let line = line.replace("RULES", RULES);
            if let Some(rest) = line.strip_prefix("serve ") {
                let (name, address) = rest.split_once(' ').context("serve POD ADDRESS")?;
                let pod = PODS.iter().find(|pod| pod.name == name).with_context(|| format!("no pod {name}"))?;
                self.start(pod, Some(address))?;
                continue;
            }
            let (place, words) = line.strip_prefix('@').and_then(|l| l.split_once(' ')).context("@PLACE COMMAND")?;
            let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
            command::output(in_netns(place).args(words))?;
        }
        Ok(())
    }

    /// What a connect of the client's meets.
    pub(super) fn connect() -> String {
        let script = "exec 3<>/dev/tcp/10.97.0.80/80";
        let started = Instant::now();
        let output = in_netns("client").args(["timeout", "2", "bash", "-c", script]).output();
        let milliseconds = started.elapsed().as_millis();
        match output {
            Ok(output) if output.status.success() => format!("connected to 10.97.0.80:80 after {milliseconds} ms"),
            Ok(output) if output.status.code() == Some(124) => "no answer from 10.97.0.80:80 within 2 s".to_owned(),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                let last = said.trim().rsplit(": ").next().unwrap_or_default().to_lowercase();
                format!("{last} by 10.97.0.80:80 after {milliseconds} ms")
            }
            Err(error) => format!("could not try: {error}"),
        }
    }

    /// The question, asked where the agents can be reached.
    pub(super) fn netdiag(&self) -> Command {
        let mut ask = in_netns("n1");
        ask.arg(&self.server).args(QUESTION);
        ask
    }

    /// Starts the pod's process, after ending the one that runs.
    fn start(&self, pod: &Pod, serves: Option<&str>) -> Result<()> {
        if let Some(mut old) = self.pods.borrow_mut().remove(pod.name) {
            old.kill().with_context(|| format!("cannot end the process of pod {}", pod.name))?;
            old.wait().with_context(|| format!("cannot wait for the process of pod {}", pod.name))?;
        }
        let own = std::env::current_exe().context("cannot find the own program")?;
        let mut process = in_netns(pod.name);
        process.arg(own).arg("demo-pod").args(serves).stdin(Stdio::null()).stdout(Stdio::null());
        let child = process.spawn().with_context(|| format!("cannot start the process of pod {}", pod.name))?;
        enter_cgroup(pod, child.id())?;
        self.pods.borrow_mut().insert(pod.name, child);
        if serves.is_some() {
            let listens = || in_netns(pod.name).args(["ss", "-Hltn", "sport = :8080"]).output();
            wait(&format!("pod {} to listen", pod.name), || listens().is_ok_and(|output| !output.stdout.is_empty()))?;
        }
        Ok(())
    }

    fn start_agent(&self, agent: &Path, node: &Node) -> Result<Child> {
        let path = self.folder.path().join(format!("{}.log", node.name));
        let log = std::fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
        in_netns(node.name)
            .arg(agent)
            .args(["--node-name", node.name, "--listen", &format!("{}:9443", node.address), "--tls-dir"])
            .arg(self.certificates())
            .args(["--cgroup-root", &format!("/{PREFIX}{}", node.name)])
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("cannot share the agent's log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {}", agent.display()))
    }

    fn wait_for_agents(&self) -> Result<()> {
        for node in &NODES {
            let listens = || in_netns(node.name).args(["ss", "-Hltn", "sport = :9443"]).output();
            let ready = wait(&format!("the agent of {}", node.name), || {
                listens().is_ok_and(|output| !output.stdout.is_empty())
            });
            if let Err(error) = ready {
                let log = std::fs::read_to_string(self.folder.path().join(format!("{}.log", node.name)));
                bail!("{error}; its log:\n{}", command::tail(&log.unwrap_or_default(), 10));
            }
        }
        Ok(())
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for child in self.agents.iter_mut().chain(self.pods.get_mut().values_mut()) {
            // One that has ended already is as good as one that ends now.
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Err(error) = remove_namespaces() {
            eprintln!("cannot remove the demo's network namespaces: {error:#}");
        }
        remove_cgroups();
    }
}

fn wire_nodes() -> Result<()> {
    let [one, two] = [&NODES[0], &NODES[1]];
    for name in NODES.iter().map(|node| node.name).chain(PODS.iter().map(|pod| pod.name)) {
        ip(&format!("netns add {PREFIX}{name}"))?;
        ip(&format!("-n {PREFIX}{name} link set lo up"))?;
    }
    ip(&format!("-n {PREFIX}{} link add eth0 type veth peer name eth0 netns {PREFIX}{}", one.name, two.name))?;
    for node in &NODES {
        let at = format!("-n {PREFIX}{}", node.name);
        ip(&format!("{at} addr add {}/24 dev eth0", node.address))?;
        ip(&format!("{at} link set eth0 up"))?;
        ip(&format!("{at} route add {} via {}", node.route.0, node.route.1))?;
        command::output(in_netns(node.name).args(["sysctl", "-qw", "net.ipv4.ip_forward=1"]))?;
    }
    Ok(())
}

fn wire_pod(pod: &Pod) -> Result<()> {
    let (node, own) = (format!("-n {PREFIX}{}", pod.node), format!("-n {PREFIX}{}", pod.name));
    ip(&format!("{node} link add v-{} type veth peer name eth0 netns {PREFIX}{}", pod.name, pod.name))?;
    ip(&format!("{node} addr add {}/32 dev v-{}", pod.gateway, pod.name))?;
    ip(&format!("{node} link set v-{} up", pod.name))?;
    ip(&format!("{node} route add {}/32 dev v-{}", pod.address, pod.name))?;
    ip(&format!("{own} addr add {}/32 dev eth0", pod.address))?;
    ip(&format!("{own} link set eth0 up"))?;
    ip(&format!("{own} route add {}/32 dev eth0", pod.gateway))?;
    ip(&format!("{own} route add default via {}", pod.gateway))
}

fn ip(words: &str) -> Result<()> {
    let words: Vec<&str> = words.split_whitespace().collect();
    command::output(command::tool("ip").args(words)).map(drop)
}

/// A command that will run in one of the demo's namespaces. Not `ip netns exec`: that would hide the cgroups below /sys.
fn in_netns(place: &str) -> Command {
    let mut command = command::tool("nsenter");
    command.arg(format!("--net=/run/netns/{PREFIX}{place}")).arg("--");
    command
}

fn remove_namespaces() -> Result<()> {
    let listed = command::output(command::tool("ip").args(["netns", "list"]))?;
    let own = listed.lines().filter_map(|line| line.split_whitespace().next()).filter(|name| name.starts_with(PREFIX));
    own.into_iter().try_for_each(|name| ip(&format!("netns delete {name}")))
}

/// Puts the process where a kubelet would: the agent finds pods by their cgroups.
fn enter_cgroup(pod: &Pod, pid: u32) -> Result<()> {
    let container = format!("{:0>64}", pod.uid.replace('-', ""));
    let below = format!("{PREFIX}{}/kubepods/besteffort/pod{}/{container}", pod.node, pod.uid);
    let folder = hierarchy().join(below);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let file = folder.join("cgroup.procs");
    std::fs::write(&file, pid.to_string()).with_context(|| format!("cannot write {}", file.display()))
}

/// Empty groups only: a group whose process still ends goes with the next run.
fn remove_cgroups() {
    for node in &NODES {
        let top = hierarchy().join(format!("{PREFIX}{}", node.name));
        let _ = Command::new("find").arg(&top).args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]).output();
    }
}

/// Any hierarchy does: no resource is limited.
fn hierarchy() -> &'static Path {
    let v2 = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    Path::new(if v2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" })
}

fn wait(what: &str, mut ready: impl FnMut() -> bool) -> Result<()> {
    let started = Instant::now();
    while !ready() {
        if started.elapsed() > Duration::from_secs(10) {
            bail!("waited 10 s for {what}");
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}
