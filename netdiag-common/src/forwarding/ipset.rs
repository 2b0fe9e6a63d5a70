//! Sets of `ipset`, of which the kernel is asked for one element at a time.

use std::net::IpAddr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::packet::Protocol;

/// An ipset as far as it tells what of a packet is looked up in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IpSet {
    pub name: Arc<str>,
    /// `hash:ip,port`
    pub kind: Arc<str>,
    /// None for sets that take both.
    pub protocol: Option<Protocol>,
}

/// What `IPSET_CMD_TEST` is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct IpSetQuery {
    pub set: Arc<str>,
    /// In the order of the set's type.
    pub parts: Vec<IpSetPart>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IpSetPart {
    Address(IpAddr),
    Port {
        /// None for sets of ports of any protocol.
        protocol: Option<u8>,
        number: u16,
    },
    Interface(Arc<str>),
    Mark(u32),
    Hardware([u8; 6]),
}
