//! Flowtables (`nf_tables_api.c`, `nf_flow_table_core.c`, Linux 6.18): a rule of hook forward hands a connection to one, and its
//! later packets are forwarded at the device that they come in on, past all rules.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::state::{Family, Key, RuleState};

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flowtable {
    pub family: Family,
    pub table: Arc<str>,
    pub name: Arc<str>,
    /// At hook ingress of its devices, the only one that the kernel has for it.
    pub priority: i32,
    pub devices: Vec<FlowDevice>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FlowDevice {
    pub name: Arc<str>,
    /// All devices whose names begin like this (since Linux 6.16).
    pub is_prefix: bool,
}

impl Flowtable {
    /// Whether it sees what comes in on the device with this name.
    pub(super) fn is_at(&self, interface: &str) -> bool {
        self.devices.iter().any(|device| {
            if device.is_prefix { interface.starts_with(&*device.name) } else { interface == &*device.name }
        })
    }

    /// Its devices, as nft writes them.
    pub(super) fn device_words(&self) -> Vec<String> {
        self.devices.iter().map(ToString::to_string).collect()
    }
}

impl std::fmt::Display for Flowtable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {} {}", self.family, self.table, self.name)
    }
}

impl std::fmt::Display for FlowDevice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.name, if self.is_prefix { "*" } else { "" })
    }
}

impl RuleState {
    pub(super) fn flowtables(&self) -> Result<&[Flowtable], Key> {
        self.flowtables.as_deref().ok_or(Key::Flowtables)
    }
}
