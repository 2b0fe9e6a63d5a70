//! `resolv.conf` and `hosts` as one pod or node sees them.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Resolver {
    pub nameservers: Vec<IpAddr>,
    /// The interfaces of link-local name servers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<Zone>,
    pub search: Vec<String>,
    /// `options ndots:N`; 1 when not given (resolv.conf(5)).
    pub ndots: u8,
    /// The other options as written.
    #[serde(default)]
    pub options: Vec<String>,
    /// `/etc/hosts`, which programs ask before any server (nsswitch.conf(5), `hosts: files dns`).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<HostsEntry>,
    /// Why `hosts` is not all of the file; empty when it is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub hosts_unseen: String,
}

/// The interface that a name server is asked by: `eth0` of `fe80::1%eth0` (RFC 4007 §11).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zone {
    /// Place of the server in [`Resolver::nameservers`], 0 for the first.
    pub nameserver: usize,
    /// As written: a name, or an index.
    pub name: String,
}

/// A line of `/etc/hosts`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostsEntry {
    pub address: IpAddr,
    /// The canonical name and the aliases, as written.
    pub names: Vec<String>,
}

impl Resolver {
    /// The interface that stands behind the name server at this place, where one does.
    pub fn zone(&self, nameserver: usize) -> Option<&str> {
        self.zones.iter().find(|zone| zone.nameserver == nameserver).map(|zone| zone.name.as_str())
    }

    /// The addresses that `/etc/hosts` has for a name; case does not matter (hosts(5)).
    pub fn in_hosts(&self, name: &str) -> Vec<IpAddr> {
        let has = |entry: &&HostsEntry| entry.names.iter().any(|own| own.eq_ignore_ascii_case(name));
        self.hosts.iter().filter(has).map(|entry| entry.address).collect()
    }
}
