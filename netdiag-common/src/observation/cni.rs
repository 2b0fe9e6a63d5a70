//! How a node's container runtime is told to connect pods: its folder of CNI network configurations.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// The folder as it is now. The runtime gives new pods what it has read of it; older pods keep what they were given.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cni {
    /// As the runtime sees it: `/etc/cni/net.d`.
    pub folder: String,
    /// The program that reads it: `containerd`, `crio`. None when none was found: then the folder is the usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub runtime: Option<String>,
    /// Files that may hold a configuration, in the order in which the runtime looks at them: by name.
    pub files: Vec<CniFile>,
    /// Files beyond the agent's limit, which come later in that order.
    #[serde(default)]
    pub omitted: u64,
}

/// One file of the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniFile {
    /// Without its folder: `10-pods.conflist`.
    pub name: String,
    pub content: CniContent,
}

/// What is in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CniContent {
    Network(CniNetwork),
    /// It could not be read, or is no configuration.
    Unusable {
        why: String,
    },
}

/// A network that pods can be given (CNI specification 1.1, section 1).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CniNetwork {
    pub name: String,
    /// `cniVersion`; empty when the file has none.
    #[serde(default)]
    pub version: String,
    /// In the order in which they are called for a new pod.
    pub plugins: Vec<CniPlugin>,
}

/// One step of connecting a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CniPlugin {
    /// The program's name: `bridge`, `ptp`, `calico`, `portmap`.
    pub kind: String,
    /// The bridge (`bridge`) or parent device (`master`) that it uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Bytes, when the configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipam: Option<CniIpam>,
}

/// Who gives pods their addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct CniIpam {
    /// `host-local`, `calico-ipam`, `dhcp`.
    pub kind: String,
    /// Of which networks; empty when the configuration does not say.
    #[serde(default)]
    pub subnets: Vec<IpNet>,
}

impl Cni {
    /// The network that new pods get: the first file by name. containerd refuses the whole folder when that file cannot be used
    /// (go-cni 1.1, `loadFromConfDir`), CRI-O goes on to the next one (ocicni, `loadNetworks`).
    pub fn taken(&self) -> Option<(&CniFile, &CniNetwork)> {
        let skips = self.runtime.as_deref() == Some("crio");
        let file = self.files.iter().find(|file| !skips || file.network().is_some())?;
        Some((file, file.network()?))
    }
}

impl CniFile {
    /// None when the file cannot be used.
    pub fn network(&self) -> Option<&CniNetwork> {
        match &self.content {
            CniContent::Network(network) => Some(network),
            CniContent::Unusable { .. } => None,
        }
    }
}

impl CniNetwork {
    /// The program that makes the pod's interface: the first.
    pub fn main_plugin(&self) -> Option<&CniPlugin> {
        self.plugins.first()
    }

    /// Networks that addresses are given of; empty when the configuration does not say.
    pub fn subnets(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.plugins.iter().filter_map(|plugin| plugin.ipam.as_ref()).flat_map(|ipam| ipam.subnets.iter().copied())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(runtime: &str, usable: &[bool]) -> Cni {
        let file = |(index, usable): (usize, &bool)| CniFile {
            name: format!("{index}.conf"),
            content: match usable {
                true => CniContent::Network(CniNetwork::default()),
                false => CniContent::Unusable { why: "no name".to_owned() },
            },
        };
        let files = usable.iter().enumerate().map(file).collect();
        Cni { folder: "/etc/cni/net.d".to_owned(), runtime: Some(runtime.to_owned()), files, omitted: 0 }
    }

    #[test]
    fn only_crio_goes_past_a_file_that_it_cannot_use() {
        let taken = |runtime, usable: &[bool]| folder(runtime, usable).taken().map(|(file, _)| file.name.clone());
        assert_eq!(taken("containerd", &[true, true]).as_deref(), Some("0.conf"));
        assert_eq!(taken("containerd", &[false, true]), None);
        assert_eq!(taken("crio", &[false, true]).as_deref(), Some("1.conf"));
        assert_eq!(taken("crio", &[]), None);
    }
}
