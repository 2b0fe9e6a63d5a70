//! Pods: where they run, the ports they name, and what keeps them from being ready.

use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;
use netdiag_common::observation::Protocol;
use serde::{Deserialize, Deserializer};

use super::{KubeProtocol, Meta, Object, ObjectCondition, ObjectRef, null_default};

/// What tells the API server which addresses Services have: one range of each address family.
pub const SERVICE_RANGE_FLAG: &str = "--service-cluster-ip-range";

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
pub struct Pod {
    pub metadata: Meta,
    #[serde(default)]
    pub spec: PodSpec,
    #[serde(default)]
    pub status: PodStatus,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    pub node_name: String,
    pub host_network: bool,
    pub dns_policy: String,
    pub containers: Vec<Container>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    pub name: String,
    pub ports: Vec<ContainerPort>,
    /// Set when the container has one; its content is kept as JSON for messages.
    pub readiness_probe: Option<serde_json::Value>,
    /// Of these words only those with [`SERVICE_RANGE_FLAG`]: the others are long, and may be secret.
    #[serde(deserialize_with = "of_ranges")]
    pub command: Vec<String>,
    #[serde(deserialize_with = "of_ranges")]
    pub args: Vec<String>,
}

fn of_ranges<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    let words: Vec<String> = null_default(deserializer)?;
    Ok(words.into_iter().filter(|word| word.starts_with(SERVICE_RANGE_FLAG)).collect())
}

impl Container {
    /// The ranges of Services that it is started with.
    pub fn service_ranges(&self) -> impl Iterator<Item = IpNet> {
        let words = self.command.iter().chain(&self.args);
        let lists = words.filter_map(|word| word.strip_prefix(SERVICE_RANGE_FLAG)?.strip_prefix('='));
        lists.flat_map(|list| list.split(',')).filter_map(|net| net.parse().ok())
    }
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerPort {
    pub name: String,
    pub container_port: u16,
    pub protocol: KubeProtocol,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    pub phase: String,
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    #[serde(rename = "podIPs", deserialize_with = "null_default")]
    pub pod_ips: Vec<PodIp>,
    pub conditions: Vec<ObjectCondition>,
    pub container_statuses: Vec<ContainerStatus>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    pub ip: String,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ContainerStatus {
    pub name: String,
    pub ready: bool,
    pub restart_count: u32,
    #[serde(rename = "containerID")]
    pub container_id: String,
    pub state: ContainerState,
    pub last_state: ContainerState,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default)]
pub struct ContainerState {
    pub running: Option<serde_json::Value>,
    pub waiting: Option<StateDetail>,
    pub terminated: Option<StateDetail>,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct StateDetail {
    pub reason: String,
    pub message: String,
    pub exit_code: i32,
}

impl ContainerStatus {
    /// Since when the container runs, by its node's clock; none when it does not.
    pub fn started_at(&self) -> Option<Timestamp> {
        self.state.running.as_ref()?.get("startedAt")?.as_str()?.parse().ok()
    }
}

impl Object for Pod {
    const KIND: &'static str = "Pod";
    fn meta(&self) -> &Meta {
        &self.metadata
    }
    fn reference(&self) -> ObjectRef {
        ObjectRef::new(Self::KIND, &self.metadata).on_node(&self.spec.node_name)
    }
}

impl Pod {
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        let listed = self.status.pod_ips.iter().map(|ip| ip.ip.as_str());
        let single = Some(self.status.pod_ip.as_str()).filter(|_| self.status.pod_ips.is_empty());
        listed.chain(single).filter_map(|ip| ip.parse().ok())
    }

    pub fn condition(&self, kind: &str) -> Option<&ObjectCondition> {
        self.status.conditions.iter().find(|c| c.kind == kind)
    }

    pub fn is_ready(&self) -> bool {
        self.condition("Ready").is_some_and(|c| c.status == "True")
    }

    /// Succeeded or Failed: holds no address and serves nothing.
    pub fn is_finished(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// The number a named port has in this pod.
    pub fn named_port(&self, name: &str, protocol: Protocol) -> Option<u16> {
        let ports = self.spec.containers.iter().flat_map(|c| &c.ports);
        ports.filter(|p| p.name == name && p.protocol.0 == protocol).map(|p| p.container_port).next()
    }
}
