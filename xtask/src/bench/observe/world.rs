//! Pods as an agent finds them: processes that sleep, in cgroups as a kubelet makes them, each in a namespace of its own that a
//! veth pair joins to the node's.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::process::NODE;
use crate::bench::space::Space;

pub(in crate::bench) struct World {
    pub(in crate::bench) node: Space,
    pub(in crate::bench) pods: Vec<Pod>,
    /// The kubelet's cgroupRoot, as the agent is told it.
    pub(in crate::bench) root: String,
    folder: PathBuf,
}

pub(in crate::bench) struct Pod {
    pub(in crate::bench) space: Space,
    uid: String,
    child: Child,
    group: PathBuf,
}

/// Pods before one that does not fit into 10.76.0.0/16 any more are far more than a node has.
const MAX_PODS: u16 = 1000;

impl World {
    pub(in crate::bench) fn new(pods: u16) -> Result<Self> {
        assert!(pods <= MAX_PODS, "addresses are given to {MAX_PODS} pods");
        let root = format!("/netdiag-bench-{}", std::process::id());
        let hierarchies = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new);
        let hierarchy = hierarchies.into_iter().find(|path| path.join("cgroup.procs").exists());
        let folder = hierarchy.context("no cgroup hierarchy is mounted")?.join(&root[1..]);
        let mut world = Self { node: Space::new()?, pods: Vec::new(), root, folder };
        world.node.sh("ip link set lo up")?;
        for number in 1..=pods {
            let pod = world.start(number).with_context(|| format!("cannot make pod {number} of {pods}"))?;
            world.pods.push(pod);
        }
        Ok(world)
    }

    fn start(&self, number: u16) -> Result<Pod> {
        let space = Space::new()?;
        let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 76, 1, 0)) + u32::from(number));
        self.node.sh(&format!(
            "ip link add pod{number} type veth peer name eth0 netns {}
             ip link set pod{number} up; ip route add {address} dev pod{number}",
            space.path()
        ))?;
        space.sh(&format!("ip link set lo up; ip addr add {address}/16 dev eth0; ip link set eth0 up"))?;
        let uid = format!("0f6d6c5e-2a5f-4f43-9b0c-{number:012x}");
        let container = format!("{number:064x}");
        let group = self.folder.join(format!("kubepods/burstable/pod{uid}/{container}"));
        std::fs::create_dir_all(&group).with_context(|| format!("cannot create {}", group.display()))?;
        // A child is in the namespace of the thread that starts it.
        let child = space.run(|| {
            let mut command = Command::new("sleep");
            command.arg("3600").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().context("cannot start sleep")
        })?;
        let pod = Pod { space, uid, child, group };
        let procs = pod.group.join("cgroup.procs");
        std::fs::write(&procs, pod.child.id().to_string())
            .with_context(|| format!("cannot write {}", procs.display()))?;
        Ok(pod)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.pods.clear();
        for path in ["kubepods/burstable", "kubepods", ""] {
            remove(&self.folder.join(path));
        }
    }
}

impl Pod {
    /// What an agent is asked about this pod.
    pub(super) fn need(&self, topic: &str) -> Value {
        self.need_of(topic.into())
    }

    /// As [`Pod::need`], of a topic with words of its own.
    pub(in crate::bench) fn need_of(&self, topic: Value) -> Value {
        json!({ "node": NODE, "netns": { "pod": self.uid }, "topic": topic })
    }

    /// Fills the namespace's table of connections with datagrams that nobody answers.
    pub(super) fn track(&self, entries: u32) -> Result<()> {
        /// Each address gets so many ports.
        const PORTS: u16 = 60_000;
        // Tracked on its way out, dropped on its way in: nobody answers, not even that nobody listens.
        self.space.sh("nft 'table ip bench {
               chain out { type filter hook output priority 0; ct state new accept; }
               chain pre { type filter hook prerouting priority -300; iif lo udp dport >= 1024 drop; }
             }'
             echo 3600 > /proc/sys/net/netfilter/nf_conntrack_udp_timeout")?;
        self.space.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").context("cannot open a socket")?;
            for n in 0..entries {
                let address = Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 75, 1, 0)) + n / u32::from(PORTS));
                let port = 1024 + u16::try_from(n % u32::from(PORTS)).expect("a remainder of a u16");
                socket.send_to(b"n", (address, port)).context("cannot send a datagram")?;
            }
            let number = |name: &str| -> Result<u32> {
                let path = format!("/proc/sys/net/netfilter/{name}");
                let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
                text.trim().parse().with_context(|| format!("{path} holds no number"))
            };
            let (tracked, limit) = (number("nf_conntrack_count")?, number("nf_conntrack_max")?);
            if tracked < entries {
                bail!("{tracked} of {entries} flows are tracked; net.netfilter.nf_conntrack_max is {limit}");
            }
            Ok(())
        })
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.group.ancestors().take(2).for_each(remove);
    }
}

/// A cgroup is busy for a moment after its last process has ended.
pub(super) fn remove(group: &Path) {
    for _ in 0..50 {
        if std::fs::remove_dir(group).is_ok() {
            return;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
