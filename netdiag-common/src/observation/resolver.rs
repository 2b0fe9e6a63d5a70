//! `resolv.conf` as one pod or node sees it.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resolver {
    pub nameservers: Vec<IpAddr>,
    pub search: Vec<String>,
    /// `options ndots:N`; 1 when not given (resolv.conf(5)).
    pub ndots: u8,
    /// The other options as written.
    #[serde(default)]
    pub options: Vec<String>,
}
