//! Which addresses a cluster uses. Nodes get a /24 of 172.30.0.0/16 that no other cluster has, since the machine's own
//! namespace reaches them; pods and Services use the same ranges in every cluster, since only the cluster's nodes do.

use serde::{Deserialize, Serialize};

pub(super) const POD_RANGE: &str = "10.244.0.0/16";
pub(super) const POD_RANGE_V6: &str = "fd00:244::/32";
pub(super) const SERVICE_RANGE: &str = "10.96.0.0/16";
pub(super) const SERVICE_RANGE_V6: &str = "fd00:96::/112";
/// The first address of the Service range is always the API server's.
pub(super) const API_SERVICE: &str = "10.96.0.1";
pub(super) const DNS_SERVICE: &str = "10.96.0.10";

/// 172.30.N.0/24, shown as "172.30.N".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subnet(u8);

impl Subnet {
    /// The first free subnet, counted from one that the name decides: a cluster's addresses usually stay the same.
    pub(super) fn choose(name: &str, routes: &str) -> Option<Self> {
        // FNV-1a, since the standard library's hash may differ between releases.
        let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        let [first, ..] = hash.to_le_bytes();
        (0..=u8::MAX).map(|step| Self(first.wrapping_add(step))).find(|subnet| !subnet.is_in(routes))
    }

    /// The machine itself.
    pub(super) fn machine(self) -> String {
        format!("172.30.{}.1", self.0)
    }

    pub(super) fn control_plane(self) -> String {
        format!("172.30.{}.10", self.0)
    }

    pub(super) fn node(self, index: u8) -> String {
        format!("172.30.{}.{}", self.0, 10 + index)
    }

    fn is_in(self, routes: &str) -> bool {
        let prefix = format!("172.30.{}.", self.0);
        routes.split_whitespace().any(|word| word.starts_with(&prefix))
    }
}

/// Node addresses of the second family, the same in every cluster: only its own wire carries them.
pub(super) fn node_v6(index: u8) -> String {
    format!("fd00:30::{:x}", 0x10 + index)
}

pub(super) const CONTROL_PLANE_V6: &str = "fd00:30::10";

pub(super) fn pods(index: u8) -> String {
    format!("10.244.{index}.0/24")
}

pub(super) fn pods_v6(index: u8) -> String {
    format!("fd00:244:{index:x}::/64")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &str = "default via 192.0.2.1 dev eth0\n172.30.7.0/24 dev b-root proto kernel scope link src 172.30.7.1\n\
                          broadcast 172.30.9.255 dev c-root table local\n";

    #[test]
    fn a_name_keeps_its_subnet() {
        assert_eq!(Subnet::choose("netdiag", ""), Subnet::choose("netdiag", ROUTES));
        assert_ne!(Subnet::choose("a", ""), Subnet::choose("b", ""));
    }

    #[test]
    fn a_taken_subnet_is_passed_over() {
        let Subnet(first) = Subnet::choose("netdiag", "").unwrap();
        let taken = format!("172.30.{first}.0/24 dev other-root");
        assert_eq!(Subnet::choose("netdiag", &taken), Some(Subnet(first.wrapping_add(1))));
    }

    #[test]
    fn seven_is_not_seventy() {
        assert!(Subnet(7).is_in(ROUTES) && Subnet(9).is_in(ROUTES));
        assert!(!Subnet(70).is_in(ROUTES) && !Subnet(0).is_in(ROUTES));
    }

    #[test]
    fn no_free_subnet_is_none() {
        use std::fmt::Write;
        let all = (0..=255).fold(String::new(), |mut text, index| {
            writeln!(text, "172.30.{index}.0/24 dev x").unwrap();
            text
        });
        assert_eq!(Subnet::choose("netdiag", &all), None);
    }
}
