//! The settings below /proc/sys/net that routing asks for.
//!
//! A file that is not there is a setting that this kernel does not have, and behaves as 0; so does that of an interface
//! without IPv4 or IPv6.

use std::path::Path;
use std::sync::Arc;

use netdiag_common::forwarding::routing::{HostSettings, Ipv4Settings, Ipv6Settings, RoutedInterface, Settings};

use super::super::super::netlink::{Netlink, attribute, attributes, int, string};
use super::super::super::{ReadError, file};

/// Shows the network namespace of the thread that opens it.
const SETTINGS: &str = "/proc/sys/net";
const VALUE_BYTES: u64 = 256;

const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_TARGET_NETNSID: u16 = 46;

pub(super) fn host() -> Result<HostSettings, ReadError> {
    Ok(HostSettings {
        all: of("all")?,
        hash_policy: [value("ipv4/fib_multipath_hash_policy")?, value("ipv6/fib_multipath_hash_policy")?],
        use_neighbours: value("ipv4/fib_multipath_use_neigh")? != 0,
    })
}

/// `all`, or the name of an interface.
fn of(name: &str) -> Result<Settings, ReadError> {
    let v4 = |setting: &str| value(&format!("ipv4/conf/{name}/{setting}"));
    let v6 = |setting: &str| value(&format!("ipv6/conf/{name}/{setting}"));
    Ok(Settings {
        ipv4: Ipv4Settings {
            forwarding: v4("forwarding")? != 0,
            rp_filter: v4("rp_filter")?,
            accept_local: v4("accept_local")? != 0,
            route_localnet: v4("route_localnet")? != 0,
            src_valid_mark: v4("src_valid_mark")? != 0,
            send_redirects: v4("send_redirects")? != 0,
            bc_forwarding: v4("bc_forwarding")? != 0,
        },
        ipv6: Ipv6Settings {
            forwarding: v6("forwarding")? != 0,
            force_forwarding: v6("force_forwarding")? != 0,
            disabled: v6("disable_ipv6")? != 0,
        },
    })
}

fn value(setting: &str) -> Result<u8, ReadError> {
    let text = file::text_if_there(&Path::new(SETTINGS).join(setting), VALUE_BYTES)?;
    Ok(text.map_or(0, |text| parse(&text)))
}

/// All of these are small numbers, or switches that anything but 0 turns on.
fn parse(text: &str) -> u8 {
    let number = text.trim().parse::<i64>().unwrap_or(0);
    u8::try_from(number).unwrap_or(1)
}

struct Link {
    name: String,
    up: bool,
    kind: String,
    master: Option<u32>,
    mtu: u32,
    /// Of a veth pair: the other end, and the number of its namespace unless it is this one.
    peer: Option<(u32, Option<u32>)>,
}

pub(super) fn interface(netlink: &mut Netlink, index: u32) -> Result<Option<RoutedInterface>, ReadError> {
    let Some(link) = link(netlink, index)? else { return Ok(None) };
    let master = match link.master {
        Some(index) => self::link(netlink, index)?.map(|master| (index, master)),
        None => None,
    };
    let bridge = master.as_ref().filter(|(_, master)| master.kind == "bridge").map(|(index, _)| *index);
    let vrf = match master {
        _ if link.kind == "vrf" => Some(link.name.clone()),
        Some((_, master)) if master.kind == "vrf" => Some(master.name),
        _ => None,
    };
    let mtu6 = file::text_if_there(&Path::new(SETTINGS).join(format!("ipv6/conf/{}/mtu", link.name)), VALUE_BYTES)?;
    Ok(Some(RoutedInterface {
        settings: of(&link.name)?,
        up: link.up,
        mtu: link.mtu,
        mtu6: mtu6.and_then(|text| text.trim().parse().ok()),
        peer_mtu: peer_mtu(netlink, &link),
        bridge,
        vrf: vrf.map(Arc::from),
    }))
}

/// None where nobody can look into the other namespace.
fn peer_mtu(netlink: &mut Netlink, link: &Link) -> Option<u32> {
    let (index, netns) = link.peer.filter(|_| link.kind == "veth")?;
    link_in(netlink, index, netns).ok().flatten().map(|peer| peer.mtu)
}

fn link(netlink: &mut Netlink, index: u32) -> Result<Option<Link>, ReadError> {
    link_in(netlink, index, None)
}

/// In the namespace that this one has a number for (Linux 4.16).
fn link_in(netlink: &mut Netlink, index: u32, netns: Option<u32>) -> Result<Option<Link>, ReadError> {
    let mut request = vec![0; 16];
    request[4..8].copy_from_slice(&index.to_ne_bytes());
    if let Some(netns) = netns {
        request.extend(attribute(IFLA_TARGET_NETNSID, &netns.to_ne_bytes()));
    }
    match netlink.get(libc::RTM_GETLINK, &request, &format!("read link {index}"), parse_link) {
        Err(ReadError::Call { source, .. }) if source.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        found => found,
    }
}

/// `struct ifinfomsg` and its attributes.
fn parse_link(payload: &[u8]) -> Option<Link> {
    let up = int(payload, 8)?.cast_signed() & libc::IFF_UP != 0;
    let mut link = Link { name: String::new(), up, kind: String::new(), master: None, mtu: 0, peer: None };
    let mut netns = None;
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_IFNAME => link.name = string(value),
            libc::IFLA_MASTER => link.master = int(value, 0),
            libc::IFLA_MTU => link.mtu = int(value, 0)?,
            libc::IFLA_LINK => link.peer = int(value, 0).map(|index| (index, None)),
            IFLA_LINK_NETNSID => netns = int(value, 0),
            libc::IFLA_LINKINFO => {
                let name = attributes(value).find(|(kind, _)| *kind == libc::IFLA_INFO_KIND);
                link.kind = name.map(|(_, name)| string(name)).unwrap_or_default();
            }
            _ => {}
        }
    }
    link.peer = link.peer.map(|(index, _)| (index, netns));
    Some(link)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn switches_are_on_with_anything_but_zero() {
        assert_eq!((parse("0\n"), parse("2\n"), parse("-1\n"), parse("nonsense")), (0, 2, 1, 0));
    }
}
