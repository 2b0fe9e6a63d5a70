//! Network devices of one namespace and what lies below the sockets there: queues, drivers, softirq backlog, IPsec,
//! WireGuard.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::counter::Counter;

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Devices {
    /// As in [`Counters::since`](super::counter::Counters::since).
    #[serde(default)]
    pub since: Option<Timestamp>,
    #[serde(default)]
    pub window_s: f64,
    pub devices: Vec<Device>,
    /// Per CPU, of the whole machine: told for the node only, since pods have no backlog of their own.
    #[serde(default)]
    pub softnet: Vec<Softnet>,
    /// `/proc/net/xfrm_stat` by its names, those that are not 0. None when this kernel does not count (no
    /// `CONFIG_XFRM_STATISTICS`).
    #[serde(default)]
    pub xfrm: Option<BTreeMap<String, Counter>>,
    #[serde(default)]
    pub wireguard: Vec<Wireguard>,
    /// What was not read or not listed, and why; empty when complete.
    #[serde(default)]
    pub left_out: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Device {
    pub index: u32,
    pub name: String,
    /// `veth`, `bridge`, `vxlan`, …; empty for hardware and loopback.
    #[serde(default)]
    pub kind: String,
    /// Name of the kernel's driver as ethtool tells it; none for devices without one.
    #[serde(default)]
    pub driver: Option<String>,
    pub mtu: u32,
    /// `IFF_UP`: set up by the administrator.
    pub up: bool,
    /// `IFF_LOWER_UP`: the other end is there.
    pub carrier: bool,
    /// RFC 2863 as iproute2 spells it: `up`, `down`, `lowerlayerdown`, `dormant`, `unknown`, …
    #[serde(default)]
    pub operational: String,
    /// Times that the carrier came and went (`IFLA_CARRIER_UP_COUNT`, Linux 4.16).
    #[serde(default)]
    pub carrier_up: Counter,
    #[serde(default)]
    pub carrier_down: Counter,
    #[serde(default)]
    pub master_index: Option<u32>,
    /// `struct rtnl_link_stats64` by its names, those that are not 0: `rx_dropped`, `tx_errors`, …
    #[serde(default)]
    pub statistics: BTreeMap<String, Counter>,
    /// Queueing disciplines, the root's first. `noqueue` is left out: it cannot hold or drop anything.
    #[serde(default)]
    pub queues: Vec<Qdisc>,
    /// The driver's own numbers (`ethtool -S`) that are not 0.
    #[serde(default)]
    pub driver_statistics: Vec<DriverStatistic>,
}

/// One queueing discipline, as `tc -s qdisc` lists it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Qdisc {
    pub kind: String,
    /// `8001:`; `0:` for one that the kernel made.
    pub handle: String,
    /// `root`, `ingress`, or the class it hangs on: `8001:2`.
    pub parent: String,
    pub bytes: Counter,
    pub packets: Counter,
    pub drops: Counter,
    /// Times that a packet had to wait because of a rate limit.
    pub overlimits: Counter,
    pub requeues: Counter,
    /// Waiting now.
    pub backlog_bytes: u32,
    pub backlog_packets: u32,
}

/// One line of `/proc/net/softnet_stat`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Softnet {
    pub cpu: u32,
    pub processed: Counter,
    /// Packets dropped because the CPU's backlog was full (`net.core.netdev_max_backlog`).
    pub dropped: Counter,
    /// Times that work was left when the budget or the time was used up (`net.core.netdev_budget`).
    pub time_squeeze: Counter,
    /// Wake-ups by another CPU (RPS).
    pub received_rps: Counter,
    /// Packets dropped to protect small flows (`net.core.flow_limit_cpu_bitmap`).
    pub flow_limit: Counter,
    /// Packets waiting now; none before Linux 5.10.
    #[serde(default)]
    pub backlog: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DriverStatistic {
    /// As the driver calls it.
    pub name: String,
    pub counter: Counter,
    /// None for a name that the agent does not know.
    #[serde(default)]
    pub meaning: Option<DriverMeaning>,
}

/// What a driver's number says, whatever the driver calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriverMeaning {
    /// Packets lost because the host had no free receive buffer: the ring is too small or the CPU too slow.
    ReceiveNoBuffer,
    /// Frames that arrived broken (checksum of the frame, length, symbol).
    ReceiveDamaged,
    /// Frames that a filter of the device refused (address, VLAN).
    ReceiveFiltered,
    /// Packets whose IP, TCP or UDP checksum the device found wrong.
    ReceiveChecksum,
    /// Packets that were given up because memory could not be had.
    NoMemory,
    /// Packets that the device or driver gave up to send.
    TransmitDropped,
    /// Times that the send queue was full and had to stop.
    TransmitQueueFull,
    /// Times that the device did not finish sending in time.
    TransmitTimeout,
    /// Packets that an XDP program dropped or that could not be redirected.
    XdpDropped,
    /// Pause frames: the other end or this one asked to be sent less.
    Paused,
    /// Errors of the cable, the optics or the port.
    LinkFault,
    /// Packets that the cloud's limit held back or dropped: bandwidth in and out, packets per second, tracked
    /// connections, services at link-local addresses (DNS, metadata, time).
    AllowanceBandwidthIn,
    AllowanceBandwidthOut,
    AllowancePackets,
    AllowanceConntrack,
    AllowanceLinkLocal,
    /// The device was reset.
    DeviceReset,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wireguard {
    pub index: u32,
    pub name: String,
    pub listen_port: u16,
    pub peers: Vec<WireguardPeer>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WireguardPeer {
    /// As `wg show` prints it.
    pub public_key: String,
    #[serde(default)]
    pub endpoint: Option<SocketAddr>,
    /// None when there was no handshake yet.
    #[serde(default)]
    pub last_handshake: Option<Timestamp>,
    /// 0: off.
    #[serde(default)]
    pub keepalive_s: u16,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}
