//! The sysctls that decide about forwarding, by their path with dots, as sysctl(8) prints them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A missing key means that this kernel or namespace does not have it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sysctls {
    pub values: BTreeMap<String, String>,
}
