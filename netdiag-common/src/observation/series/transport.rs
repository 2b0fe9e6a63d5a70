//! Probes below the application: TCP, UDP, ICMP and crafted packets.

use std::net::{IpAddr, SocketAddr};

use serde::{Deserialize, Serialize};

/// A TCP handshake, closed without payload.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TcpProbe {
    pub to: SocketAddr,
    /// Every attempt from this port: finds entries of connection tracking that a new port hides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    #[serde(default)]
    pub close: TcpClose,
}

/// How a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TcpClose {
    /// FIN, and the far side's bytes and FIN are awaited for a moment.
    #[default]
    Orderly,
    /// FIN, and the attempt succeeds only when the far side still answers it with bytes or FIN: half-close.
    HalfClose,
    /// RST: no port is left in TIME_WAIT. For high rates.
    Reset,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TcpReport {
    /// The handshake, as the socket's user sees it, microseconds.
    pub handshake_us: u64,
    /// The kernel's smoothed RTT (tcpi_rtt), microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u32>,
    /// What this side may send in one segment (tcpi_snd_mss), bytes: from the route's and the far side's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub send_mss: Option<u32>,
    /// SYNs that were sent (1 + tcpi_total_retrans), also where nobody answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub syns: Option<u32>,
    /// Half-close: what came after our FIN, bytes; its FIN.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_close_bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_by_peer: Option<bool>,
}

/// Datagrams, and what comes back.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UdpProbe {
    pub to: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    /// Bytes of payload, 0 to 65 507. An echo's payload begins with a number, so that order and doubles are known.
    pub bytes: u16,
    /// What to send instead, as it is: for servers that are no echo. At most 1 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Vec<u8>>,
    /// Datagrams of one attempt, from one socket; 1 to 1 000.
    pub datagrams: u16,
    /// Between the datagrams of one attempt, microseconds.
    pub gap_us: u32,
}

/// Identity: `sent = answered + lost`; doubles are counted beside.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct UdpReport {
    pub sent: u32,
    pub answered: u32,
    pub lost: u32,
    /// Answers that came after a later one's.
    pub reordered: u32,
    pub doubled: u32,
    /// Answers that were none of ours, or whose bytes differ.
    pub strange: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_us: Option<u64>,
    /// Interarrival jitter (RFC 3550, 6.4.1), microseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter_us: Option<u64>,
    /// Who answered, where it is not the one we asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<SocketAddr>,
}

/// ICMP echo (RFC 792, RFC 4443).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct IcmpProbe {
    pub to: IpAddr,
    /// Bytes after the ICMP header; 56 as ping has it.
    pub bytes: u16,
    /// TTL or hop limit of the request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// With DF, so that nothing on the way fragments it.
    #[serde(default)]
    pub dont_fragment: bool,
    /// An interface's index, for link-local addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<u32>,
    /// Of every request (RFC 792); none: another one each time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub identifier: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct IcmpReport {
    /// Until the kernel had the answer, as ping has it, microseconds.
    pub rtt_us: u64,
    /// Of the answer, where the kernel told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    pub bytes: u16,
}

/// One crafted packet, for proofs only.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RawProbe {
    pub to: SocketAddr,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
    pub segment: RawSegment,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u8>,
    /// Bytes of payload after the header; at most 8 000.
    #[serde(default)]
    pub bytes: u16,
    /// Cut into fragments of so many bytes of IP payload each (a multiple of 8, at least 8).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fragment_bytes: Option<u16>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RawSegment {
    /// Flags as in the header's 13th byte, low six bits: FIN 1, SYN 2, RST 4, PSH 8, ACK 16, URG 32.
    Tcp {
        flags: u8,
    },
    Udp,
    Echo,
}

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RawReport {
    /// Packets or fragments that were sent.
    pub sent: u32,
    /// What came back first: `RST`, `SYN ACK`, `echo reply`, `port unreachable`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answered_by: Option<IpAddr>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rtt_us: Option<u64>,
}
