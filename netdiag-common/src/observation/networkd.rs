//! systemd-networkd of a node: since when it runs, and what it removes that others wrote.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::kubelet::Setting;

/// When it is started and configures a link, it removes what its files do not name, unless it is told to leave that alone
/// (networkd.conf(5)). Settings are those that its files have now: it has read them when it was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Networkd {
    /// Start of its process, by the node's clock.
    pub started: Timestamp,
    /// `ManageForeignRoutes`: routes of links that it manages; yes by default.
    pub removes_routes: Setting<bool>,
    /// `ManageForeignRoutingPolicyRules`: all routing rules but the kernel's; yes by default. The setting is of systemd 249, which
    /// older ones do not know.
    pub removes_rules: Setting<bool>,
    /// Indexes of links that one of its `.network` files is for.
    pub links: Vec<u32>,
}
