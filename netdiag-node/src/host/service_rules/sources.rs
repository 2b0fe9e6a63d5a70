//! Who may use addresses of load balancers in IPVS mode (`loadBalancerSourceRanges`): kube-proxy writes that to ipsets, which its chains
//! KUBE-PROXY-FIREWALL and KUBE-SOURCE-RANGES-FIREWALL ask (`pkg/proxy/ipvs/proxier.go`, Kubernetes 1.36). Sets are listed as
//! `ip_set_hash_ipport.c` and `ip_set_hash_ipportnet.c` write them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use netdiag_common::observation::Protocol;
use nix::sys::socket::SockProtocol;

use super::Key;
use crate::host::ReadError;
use crate::host::netlink::{IPV4, Netlink, address, attribute, attributes, string};

/// Addresses and ports that are not open to everybody. The second name is that of IPv6, cut to what a name can have.
const LIMITED: [&str; 2] = ["KUBE-LOAD-BALANCER-FW", "KUBE-6-LOAD-BALANCER-FW"];
/// The same with a network that is let in.
const LET_IN: [&str; 2] = ["KUBE-LOAD-BALANCER-SOURCE-CIDR", "KUBE-6-LOAD-BALANCER-SOURCE-CID"];

/// `IPSET_CMD_LIST`, and the version that sets are listed by (`IPSET_PROTOCOL_MIN` of every kernel with ipsets).
const LIST: u16 = 7;
const PROTOCOL: u8 = 6;

/// `IPSET_ATTR_*` of commands.
mod command {
    pub const PROTOCOL: u16 = 1;
    pub const NAME: u16 = 2;
    pub const ELEMENT: u16 = 7;
    pub const ELEMENTS: u16 = 8;
}

/// `IPSET_ATTR_*` of elements.
mod element {
    pub const ADDRESS: u16 = 1;
    pub const PORT: u16 = 4;
    pub const PROTOCOL: u16 = 7;
    pub const SECOND_ADDRESS: u16 = 20;
    pub const SECOND_PREFIX: u16 = 21;
}

/// The networks that each limited address and port is open to.
pub(super) type Sources = BTreeMap<Key, BTreeSet<IpNet>>;

pub(super) fn read() -> Result<Sources, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
    let kind = u16::try_from(libc::NFNL_SUBSYS_IPSET << 8).expect("subsystems are below 256") | LIST;
    // `struct nfgenmsg`, then what is asked.
    let mut request = vec![IPV4, 0, 0, 0];
    request.extend(attribute(command::PROTOCOL, &[PROTOCOL]));
    let mut sources = Sources::new();
    netlink.stream(kind, &request, "list ipsets", |payload| take(payload, &mut sources))?;
    Ok(sources)
}

/// One message: a set, or the next part of one.
fn take(payload: &[u8], sources: &mut Sources) {
    let part = payload.get(4..).unwrap_or_default();
    let Some(name) = value(part, command::NAME).map(string) else { return };
    let (is_limited, is_let_in) = (LIMITED.contains(&name.as_str()), LET_IN.contains(&name.as_str()));
    if !is_limited && !is_let_in {
        return;
    }
    let elements = attributes(value(part, command::ELEMENTS).unwrap_or_default());
    for (_, element) in elements.filter(|(kind, _)| *kind == command::ELEMENT) {
        let Some(key) = key(element) else { continue };
        let nets = sources.entry(key).or_default();
        nets.extend(net(element).filter(|_| is_let_in));
    }
}

fn key(element: &[u8]) -> Option<Key> {
    let port = u16::from_be_bytes(value(element, element::PORT)?.try_into().ok()?);
    let protocol = Protocol::from_number(*value(element, element::PROTOCOL)?.first()?)?;
    Some((ip(element, element::ADDRESS)?, protocol, port))
}

fn net(element: &[u8]) -> Option<IpNet> {
    let prefix = *value(element, element::SECOND_PREFIX)?.first()?;
    IpNet::new(ip(element, element::SECOND_ADDRESS)?, prefix).ok().map(|net| net.trunc())
}

/// Inside of it is the address, as `IPSET_ATTR_IPADDR_IPV4` or `_IPV6`.
fn ip(element: &[u8], kind: u16) -> Option<IpAddr> {
    attributes(value(element, kind)?).find_map(|(_, bytes)| address(bytes))
}

fn value(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(name: &str, elements: &[Vec<u8>]) -> Vec<u8> {
        let listed: Vec<Vec<u8>> = elements.iter().map(|one| attribute(command::ELEMENT | 0x8000, one)).collect();
        [
            vec![IPV4, 0, 0, 0],
            attribute(command::NAME, &[name.as_bytes(), b"\0"].concat()),
            attribute(command::ELEMENTS | 0x8000, &listed.concat()),
        ]
        .concat()
    }

    /// As the kernel lists it, with the network where there is one.
    fn element(balancer: [u8; 4], port: u16, net: Option<([u8; 4], u8)>) -> Vec<u8> {
        let inner = |address: [u8; 4]| attribute(1 | 0x4000, &address);
        let mut bytes = attribute(element::ADDRESS | 0x8000, &inner(balancer));
        if let Some((address, prefix)) = net {
            bytes.extend(attribute(element::SECOND_ADDRESS | 0x8000, &inner(address)));
            bytes.extend(attribute(element::SECOND_PREFIX, &[prefix]));
        }
        bytes.extend(attribute(element::PORT | 0x4000, &port.to_be_bytes()));
        bytes.extend(attribute(element::PROTOCOL, &[6]));
        bytes
    }

    #[test]
    fn networks_are_collected_by_address_and_port() {
        let mut sources = Sources::new();
        let balancer = [192, 0, 2, 10];
        let limited = [80, 443].map(|port| element(balancer, port, None));
        take(&message("KUBE-LOAD-BALANCER-FW", &limited), &mut sources);
        for net in [([198, 51, 100, 0], 24), ([192, 0, 2, 128], 25)] {
            take(&message("KUBE-LOAD-BALANCER-SOURCE-CIDR", &[element(balancer, 80, Some(net))]), &mut sources);
        }
        take(&message("KUBE-LOOP-BACK", &[element([10, 0, 0, 1], 80, None)]), &mut sources);
        let of = |port| sources.get(&(IpAddr::from(balancer), Protocol::Tcp, port));
        let nets = ["192.0.2.128/25", "198.51.100.0/24"].map(|net| net.parse().unwrap());
        assert_eq!(of(80), Some(&BTreeSet::from(nets)));
        assert_eq!(of(443), Some(&BTreeSet::new()), "nobody is let in");
        assert_eq!(sources.len(), 2);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            take(&bytes, &mut Sources::new());
        }
    }
}
