//! Bridges of the calling thread's network namespace, and whether what they switch passes the hooks of IP.

use std::path::Path;

use netdiag_common::forwarding::bridge::{Bridge, Port};
use netdiag_common::observation::network::Link;
use nix::sys::socket::SockProtocol;

use crate::host::netlink::{Netlink, attribute, attributes};
use crate::host::{ReadError, file, network};

/// There only while `br_netfilter` is loaded (`brnf_sysctl_net_init_net`, of each namespace since Linux 5.3).
const SETTINGS: &str = "/proc/sys/net/bridge";
const VALUE_BYTES: u64 = 256;

/// None when there is no bridge with this index.
pub(super) fn bridge(index: u32) -> Result<Option<Bridge>, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkRoute)?;
    let mut request = vec![0; 16];
    request.extend(attribute(libc::IFLA_EXT_MASK, &network::SKIP_STATISTICS.to_ne_bytes()));
    let links = netlink.dump(libc::RTM_GETLINK, &request, "list links", parse)?;
    let calls = [calls("bridge-nf-call-iptables")?, calls("bridge-nf-call-ip6tables")?];
    Ok(bridge_of(index, &links, calls))
}

/// `calls`: what the sysctls say of IPv4 and of IPv6; none without `br_netfilter`, which bridges' own settings need, too.
fn bridge_of(index: u32, links: &[(Link, Option<[u8; 6]>)], calls: [Option<bool>; 2]) -> Option<Bridge> {
    let (bridge, _) = links.iter().find(|(link, _)| link.index == index && link.kind == "bridge")?;
    let ports = links.iter().filter(|(link, _)| link.master_index == Some(index));
    let own = links.iter().filter(|(link, _)| link.index == index || link.master_index == Some(index));
    let settings = bridge.bridge;
    let is_on = |all: Option<bool>, own: Option<bool>| all.is_some_and(|all| all || own == Some(true));
    Some(Bridge {
        index,
        name: bridge.name.as_str().into(),
        ports: ports.map(|(link, _)| Port { index: link.index, name: link.name.as_str().into() }).collect(),
        own: own.filter_map(|(_, address)| *address).collect(),
        calls_iptables: is_on(calls[0], settings.and_then(|settings| settings.nf_call_iptables)),
        calls_ip6tables: is_on(calls[1], settings.and_then(|settings| settings.nf_call_ip6tables)),
    })
}

fn calls(setting: &str) -> Result<Option<bool>, ReadError> {
    let text = file::text_if_there(&Path::new(SETTINGS).join(setting), VALUE_BYTES)?;
    Ok(text.map(|text| text.trim() != "0"))
}

/// A link with its Ethernet address.
fn parse(payload: &[u8]) -> Option<(Link, Option<[u8; 6]>)> {
    let found = network::parse_link(payload)?;
    let mut attributes = attributes(payload.get(16..)?);
    let address = attributes.find(|(kind, _)| *kind == libc::IFLA_ADDRESS).and_then(|(_, value)| value.try_into().ok());
    Some((found.link, address))
}

#[cfg(test)]
mod tests {
    use netdiag_common::observation::network;

    use super::*;

    fn link(index: u32, name: &str, master_index: Option<u32>, bridge: Option<network::Bridge>) -> Link {
        Link {
            index,
            name: name.into(),
            kind: if bridge.is_some() { "bridge" } else { "veth" }.into(),
            mtu: 1500,
            up: true,
            carrier: true,
            master_index,
            bridge,
            ..Link::default()
        }
    }

    /// With a setting of its own for IPv6.
    fn links() -> [(Link, Option<[u8; 6]>); 4] {
        let own = network::Bridge { nf_call_iptables: Some(false), nf_call_ip6tables: Some(true), promiscuous: false };
        [
            (link(4, "br0", None, Some(own)), Some([2, 0, 0, 0, 0, 4])),
            (link(5, "veth5", Some(4), None), Some([2, 0, 0, 0, 0, 5])),
            (link(6, "veth6", Some(4), None), Some([2, 0, 0, 0, 0, 6])),
            (link(7, "eth0", Some(8), None), Some([2, 0, 0, 0, 0, 7])),
        ]
    }

    #[test]
    fn frames_to_a_bridge_or_to_one_of_its_ports_are_for_this_host() {
        let bridge = bridge_of(4, &links(), [None, None]).unwrap();
        assert_eq!(bridge.own, [[2, 0, 0, 0, 0, 4], [2, 0, 0, 0, 0, 5], [2, 0, 0, 0, 0, 6]]);
        let ports: Vec<&str> = bridge.ports.iter().map(|port| &*port.name).collect();
        assert_eq!(ports, ["veth5", "veth6"]);
        assert_eq!(bridge_of(5, &links(), [None, None]), None);
    }

    #[test]
    fn hooks_are_passed_by_either_setting_and_only_with_the_module() {
        let of = |calls| {
            let bridge = bridge_of(4, &links(), calls).unwrap();
            (bridge.calls_iptables, bridge.calls_ip6tables)
        };
        assert_eq!(of([None, None]), (false, false));
        assert_eq!(of([Some(false), Some(false)]), (false, true));
        assert_eq!(of([Some(true), Some(false)]), (true, true));
    }
}
