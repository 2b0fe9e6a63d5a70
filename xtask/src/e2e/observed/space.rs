//! Sockets in a pod's or a node's network namespace, so that a test knows exactly what was sent.

use std::fs::File;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{Backlog, listen, setsockopt, sockopt};

use crate::cluster::Cluster;
use crate::command;

/// Whether an unanswered SYN is sent again before we give up: the kernel does so after 1 s, and then after 3 s.
pub(super) const ONE_RETRY: Duration = Duration::from_millis(1_500);

/// A network namespace.
pub(in crate::e2e) struct Space {
    handle: OwnedFd,
    /// A pod's, in the cgroup v2 tree: agents hear DNS only from sockets that were made in it.
    group: Option<PathBuf>,
}

/// Where cgroup v2 is mounted: alone, or beside v1.
const TREES: [&str; 2] = ["/sys/fs/cgroup/unified", "/sys/fs/cgroup"];

impl Space {
    pub(in crate::e2e) fn of_pod(cluster: &Cluster, namespace: &str, pod: &str) -> Result<Self> {
        let pid = cluster.pod_pid(namespace, pod)?;
        Ok(Self { group: Some(group_of(&pid)?), ..Self::open(Path::new(&format!("/proc/{pid}/ns/net")))? })
    }

    pub(in crate::e2e) fn of_node(cluster: &Cluster, node: &str) -> Result<Self> {
        Self::open(&cluster.netns_of(node))
    }

    fn open(path: &Path) -> Result<Self> {
        let handle = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self { handle: handle.into(), group: None })
    }

    /// Does the work on a thread that is in this namespace; sockets stay in it.
    pub(in crate::e2e) fn run<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(self.handle.as_fd(), CloneFlags::CLONE_NEWNET).context("cannot enter a network namespace")?;
                work()
            });
            inside.join().map_err(|_| anyhow!("work in a namespace panicked"))?
        })
    }

    /// The same in the pod's control group. All of this process is in it meanwhile: v2 moves no single threads.
    pub(super) fn run_in_group<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let group = self.group.as_deref().context("only pods have a control group")?;
        let own = group_of("self")?;
        enter(group)?;
        let done = self.run(work);
        enter(&own)?;
        done
    }

    pub(in crate::e2e) fn sh(&self, script: &str) -> Result<String> {
        self.run(|| command::output(command::tool("sh").args(["-ec", script])))
    }

    /// Connects that end as they may.
    pub(super) fn connects(&self, to: SocketAddr, times: usize) -> Result<Vec<io::Result<TcpStream>>> {
        self.run(|| Ok((0..times).map(|_| TcpStream::connect_timeout(&to, ONE_RETRY)).collect()))
    }

    /// From one connected socket, a moment apart: an answer to one is there before the next.
    pub(super) fn datagrams(&self, to: SocketAddr, payload: &[u8], times: usize, apart: Duration) -> Result<()> {
        let run = |work: &(dyn Fn() -> Result<()> + Sync)| match self.group {
            Some(_) => self.run_in_group(work),
            None => self.run(work),
        };
        run(&|| {
            let socket = UdpSocket::bind("0.0.0.0:0").context("cannot open a socket")?;
            socket.connect(to).with_context(|| format!("cannot connect to {to}"))?;
            for _ in 0..times {
                // What a closed port answered to the datagram before is told here.
                let _ = socket.send(payload);
                thread::sleep(apart);
            }
            Ok(())
        })
    }

    /// A socket that nobody reads, with the smallest receive buffer there is.
    pub(super) fn deaf_socket(&self, port: u16) -> Result<UdpSocket> {
        self.run(|| {
            let socket = UdpSocket::bind(("0.0.0.0", port)).with_context(|| format!("cannot bind UDP port {port}"))?;
            setsockopt(&socket, sockopt::RcvBuf, &1).context("cannot shrink a receive buffer")?;
            socket.set_nonblocking(true).context("cannot make a socket non-blocking")?;
            Ok(socket)
        })
    }

    /// A listener that never accepts and has room for one connection more than `backlog`.
    pub(super) fn deaf_listener(&self, port: u16, backlog: i32) -> Result<TcpListener> {
        self.run(|| {
            let listener = TcpListener::bind(("0.0.0.0", port)).with_context(|| format!("cannot bind port {port}"))?;
            let backlog = Backlog::new(backlog).context("not a backlog")?;
            listen(&listener, backlog).context("cannot change a backlog")?;
            Ok(listener)
        })
    }
}

/// Of a process, in the cgroup v2 tree.
pub(in crate::e2e) fn group_of(pid: &str) -> Result<PathBuf> {
    let path = format!("/proc/{pid}/cgroup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let group = text.lines().find_map(|line| line.strip_prefix("0::/"));
    let group = group.with_context(|| format!("{path} has no line for cgroup v2"))?;
    let found = TREES.iter().map(|tree| Path::new(tree).join(group)).find(|path| path.join("cgroup.procs").exists());
    found.with_context(|| format!("no cgroup v2 tree has {group}"))
}

fn enter(group: &Path) -> Result<()> {
    let path = group.join("cgroup.procs");
    std::fs::write(&path, std::process::id().to_string()).with_context(|| format!("cannot write {}", path.display()))
}
