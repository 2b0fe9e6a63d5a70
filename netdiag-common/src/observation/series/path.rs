//! Probes of the way itself: path MTU, hops, throughput.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::IcmpError;

/// The largest packet that reaches the target with DF, by binary search.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PathMtuProbe {
    /// Port 0: ICMP echo. Else UDP to this port: any answer counts, an ICMP port unreachable too.
    pub to: SocketAddr,
    /// Where the search begins, bytes of the IP packet; none: the MTU of the route's device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from_bytes: Option<u16>,
    /// Packets of each size before it counts as lost; 1 to 5.
    pub tries: u8,
    /// Every packet from this port; of ICMP the echoes' identifier (RFC 792). None: another one each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PathMtuReport {
    /// The largest packet that was answered, bytes with the IP header. None: not even the smallest was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_mtu: Option<u32>,
    /// Of the device that the route leaves by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_mtu: Option<u32>,
    /// Larger packets vanish and nobody says so: a black hole. Only where smaller ones before and after were answered.
    pub black_hole: bool,
    /// Who said "too big", and which MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said_by: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<IcmpError>,
    /// The last hop before the black hole that still answers to packets of that size with a small TTL, where one does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_hop: Option<IpAddr>,
    pub steps: Vec<SizeStep>,
}

/// What one size came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SizeStep {
    pub bytes: u32,
    pub sent: u32,
    pub answered: u32,
    /// `answered`, `too big (10.0.0.1 says 1400)`, `no answer`, `local: message too long (device MTU 1500)`.
    pub words: String,
}

/// The hops to a target, by TTL. The tuple is the same for all hops, so that equal-cost paths are not mixed (Paris).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PathProbe {
    /// Port 0 for ICMP.
    pub to: SocketAddr,
    pub by: PathBy,
    /// 1 to 32.
    pub max_hops: u8,
    /// Packets for each hop; 1 to 5.
    pub tries: u8,
    /// Every packet from this port; of ICMP the echoes' identifier (RFC 792). None: another one each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PathBy {
    Udp,
    Tcp,
    Icmp,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct PathReport {
    pub hops: Vec<Hop>,
    /// The target itself answered.
    pub reached: bool,
    /// Hops of the way back, guessed from the answer's TTL (64, 128 or 255 at its start). Counted as on the way there: where
    /// both are the same it is the last hop's TTL. None by TCP: a connected socket does not tell.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub back_hops: Option<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hop {
    pub ttl: u8,
    /// More than one where answers differ.
    pub addresses: Vec<IpAddr>,
    pub sent: u32,
    pub answered: u32,
    /// The shortest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
    /// `time exceeded`, `port unreachable`, `SYN ACK`, `RST`, `echo reply`, `datagram`, `host prohibited`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub said: Option<String>,
}

/// Bytes for a short time over one TCP connection, to a server that takes them (`discard`) or sends them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ThroughputProbe {
    pub to: SocketAddr,
    /// At most 10 000.
    pub duration_ms: u32,
    /// At most 256 MiB.
    pub max_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ThroughputReport {
    /// Acknowledged by the far side (tcpi_bytes_acked).
    pub bytes: u64,
    /// Sent by the far side, and thrown away here.
    #[serde(default)]
    pub received_bytes: u64,
    pub elapsed_us: u64,
    pub retransmits: u32,
    /// RTT before, and the median under load, microseconds.
    pub idle_rtt_us: u32,
    pub loaded_rtt_us: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_mss: Option<u32>,
}
