//! Sockets that accept packets in one network namespace: TCP in LISTEN, UDP bound and unconnected.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use super::Protocol;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub protocol: Protocol,
    /// `::` also takes IPv4 unless `v6_only`.
    pub address: IpAddr,
    pub port: u16,
    #[serde(default)]
    pub v6_only: bool,
    /// Interface the socket is bound to, 0 for any.
    #[serde(default)]
    pub ifindex: u32,
    /// TCP: connections waiting for accept. UDP: bytes waiting.
    #[serde(default)]
    pub receive_queue: u32,
    /// TCP: the accept queue's limit.
    #[serde(default)]
    pub backlog: u32,
    /// Who holds it; none when it could not be found (no rights to `/proc/PID/fd`, or held by the kernel).
    #[serde(default)]
    pub process: Option<Process>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// In the agent's PID namespace (the node's, with hostPID).
    pub pid: u32,
    /// `/proc/PID/comm`, at most 15 bytes.
    pub name: String,
    /// Container id from the cgroup path, when the process runs in one.
    #[serde(default)]
    pub container_id: Option<String>,
}

impl Listener {
    /// Whether a packet to `address` of the pod or node could reach this socket.
    pub fn accepts(&self, address: IpAddr) -> bool {
        if self.address == address {
            return true;
        }
        match (self.address, address) {
            (IpAddr::V4(own), IpAddr::V4(_)) => own.is_unspecified(),
            (IpAddr::V6(own), IpAddr::V6(_)) => own.is_unspecified(),
            (IpAddr::V6(own), IpAddr::V4(_)) => own.is_unspecified() && !self.v6_only,
            (IpAddr::V4(_), IpAddr::V6(_)) => false,
        }
    }
}
