//! Sockets of one network namespace and the limits they and their processes live under.

use std::net::{IpAddr, SocketAddr};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::Protocol;
use super::counter::Counter;
use super::listener::Process;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Sockets {
    /// As in [`Counters::since`](super::counter::Counters::since).
    #[serde(default)]
    pub since: Option<Timestamp>,
    #[serde(default)]
    pub window_s: f64,
    pub states: Vec<SocketState>,
    /// TCP sockets that listen, the fullest first.
    pub listeners: Vec<ListenQueue>,
    /// Other sockets with bytes waiting or packets dropped, the most first.
    #[serde(default)]
    pub queues: Vec<SocketQueue>,
    pub memory: SocketMemory,
    #[serde(default)]
    pub ports: LocalPorts,
    /// Processes of the pod, or those in the node's own namespace, by share of their limit used, the highest first.
    #[serde(default)]
    pub descriptors: Vec<DescriptorUse>,
    /// Open files of the whole machine; told for the node only.
    #[serde(default)]
    pub files: Option<Files>,
    /// Groups of the pod: its own and one per container. Empty for the node.
    #[serde(default)]
    pub groups: Vec<ControlGroup>,
    /// What was not read or not listed, and why; empty when complete.
    #[serde(default)]
    pub left_out: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketState {
    pub protocol: Protocol,
    /// As ss(8) spells it: `established`, `syn-sent`, `time-wait`, `close-wait`, `listen`, …; for UDP `unconnected` and
    /// `established`.
    pub state: String,
    pub count: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenQueue {
    pub address: SocketAddr,
    /// Connections waiting for accept.
    pub queue: u32,
    /// The kernel refuses when `queue` is above this.
    pub limit: u32,
    /// Connections and packets that the socket dropped since it was made (`sk_drops`).
    #[serde(default)]
    pub drops: u64,
    /// Connections in their handshake.
    #[serde(default)]
    pub half_open: u64,
    #[serde(default)]
    pub process: Option<Process>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketQueue {
    pub protocol: Protocol,
    pub state: String,
    pub local: SocketAddr,
    /// None for a UDP socket that is not connected.
    #[serde(default)]
    pub remote: Option<SocketAddr>,
    /// Bytes that wait for the process.
    pub receive_queue_bytes: u32,
    /// Bytes that wait for the network or for the other end's acknowledgement.
    pub send_queue_bytes: u32,
    /// `SO_RCVBUF` in force, and what the queue takes of it with the kernel's own overhead.
    #[serde(default)]
    pub receive_buffer_bytes: u32,
    #[serde(default)]
    pub receive_memory_bytes: u32,
    /// Packets that the socket dropped since it was made (`sk_drops`).
    #[serde(default)]
    pub drops: u64,
    #[serde(default)]
    pub process: Option<Process>,
}

/// From `/proc/net/sockstat` and its limits. Memory is in pages and, like the count of orphans, of the whole kernel.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SocketMemory {
    /// Bytes of a page.
    pub page_bytes: u64,
    pub tcp_pages: u64,
    /// `net.ipv4.tcp_mem`: low, pressure, high.
    #[serde(default)]
    pub tcp_limit_pages: Option<[u64; 3]>,
    pub udp_pages: u64,
    #[serde(default)]
    pub udp_limit_pages: Option<[u64; 3]>,
    /// TCP sockets without a process.
    pub orphans: u64,
    #[serde(default)]
    pub orphan_limit: Option<u64>,
    /// Of this namespace.
    pub time_wait: u64,
    /// `net.ipv4.tcp_max_tw_buckets` of this namespace (of the whole kernel before Linux 4.1).
    #[serde(default)]
    pub time_wait_limit: Option<u64>,
    /// Bytes of fragments waiting for the rest, of this namespace, both families.
    #[serde(default)]
    pub fragment_bytes: u64,
}

/// Ports for outgoing TCP connections. One is taken per (source, destination, destination port).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct LocalPorts {
    /// `net.ipv4.ip_local_port_range`; 0 and 0 when it could not be read.
    pub first: u16,
    pub last: u16,
    /// Different ports of the range in use, whatever they lead to.
    pub in_use: u32,
    /// Destinations that use most of the range, the most first.
    #[serde(default)]
    pub busiest: Vec<PortUse>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortUse {
    pub source: IpAddr,
    pub destination: SocketAddr,
    /// Connections from ports of the range, those in `time-wait` included.
    pub ports: u32,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorUse {
    pub process: Process,
    pub open: u64,
    /// `RLIMIT_NOFILE`, soft. None: unlimited.
    #[serde(default)]
    pub limit: Option<u64>,
}

/// `/proc/sys/fs/file-nr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Files {
    pub open: u64,
    pub limit: u64,
}

/// What a control group did to its processes: a network look-alike.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ControlGroup {
    /// None for the pod's own group.
    #[serde(default)]
    pub container_id: Option<String>,
    /// None when the controller is not there.
    #[serde(default)]
    pub cpu: Option<CpuGroup>,
    #[serde(default)]
    pub memory: Option<MemoryGroup>,
}

/// `cpu.stat`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CpuGroup {
    /// Microseconds of CPU time a period. None: no limit.
    #[serde(default)]
    pub quota_us: Option<u64>,
    #[serde(default)]
    pub period_us: Option<u64>,
    pub periods: Counter,
    /// Periods in which the quota was used up.
    pub throttled_periods: Counter,
    /// How long processes were kept from running, summed over CPUs.
    pub throttled_us: Counter,
}

/// `memory.events` and `memory.current`, or their like on cgroup v1.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MemoryGroup {
    pub used_bytes: u64,
    /// None: no limit.
    #[serde(default)]
    pub limit_bytes: Option<u64>,
    /// Times that usage met `memory.high`; processes were slowed down. None on cgroup v1.
    #[serde(default)]
    pub high: Option<Counter>,
    /// Times that usage met the limit.
    pub limit_hits: Counter,
    /// Processes killed for memory.
    pub oom_kills: Counter,
}
