//! Asks the kernel about ipsets, by netlink (`include/uapi/linux/netfilter/ipset/ip_set.h`): the name of a set by its
//! number, its type, and whether it has an element. Sets are not read as a whole.

use std::net::IpAddr;

use netdiag_common::forwarding::ipset::{IpSet, IpSetPart, IpSetQuery};
use netdiag_common::forwarding::packet::Protocol;
use nix::sys::socket::SockProtocol;

use crate::host::ReadError;
use crate::host::netlink::{IPV4, IPV6, Netlink, attribute, attributes, string};

/// `IPSET_CMD_*`
const TEST: u16 = 11;
const HEADER: u16 = 12;
const GET_BY_INDEX: u16 = 15;

/// `IPSET_ERR_EXIST`: in answer to a test, that the set does not have the element.
const NOT_THERE: i32 = 4103;

/// The version that numbers can be asked by, since Linux 5.0 (`IPSET_PROTOCOL`).
const PROTOCOL: u8 = 7;

/// `NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`
const NESTED: u16 = 0x8000;
const NETWORK_ORDER: u16 = 0x4000;

/// `IPSET_ATTR_*` of commands.
mod command {
    pub const PROTOCOL: u16 = 1;
    pub const NAME: u16 = 2;
    pub const TYPE: u16 = 3;
    pub const FAMILY: u16 = 5;
    pub const ELEMENT: u16 = 7;
    pub const INDEX: u16 = 11;
}

/// `IPSET_ATTR_*` of elements.
mod element {
    pub const ADDRESS: u16 = 1;
    pub const PORT: u16 = 4;
    pub const PROTOCOL: u16 = 7;
    pub const MARK: u16 = 10;
    pub const HARDWARE: u16 = 17;
    pub const SECOND_ADDRESS: u16 = 20;
    pub const INTERFACE: u16 = 23;
}

/// The set that a rule knows by this number; none when there is none.
pub(super) fn set(index: u16) -> Result<Option<IpSet>, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
    let step = format!("look for ipset number {index}");
    let by_index = request(&[attribute(command::INDEX | NETWORK_ORDER, &index.to_be_bytes())]);
    let name =
        absent(netlink.get(kind(GET_BY_INDEX), &by_index, &step, |payload| find(payload, command::NAME).map(string)))?;
    let Some(name) = name else { return Ok(None) };
    let by_name = request(&[name_attribute(&name)]);
    absent(netlink.get(kind(HEADER), &by_name, &format!("read the type of ipset {name}"), |payload| {
        let protocol = match *find(payload, command::FAMILY)?.first()? {
            IPV4 => Some(Protocol::Ipv4),
            IPV6 => Some(Protocol::Ipv6),
            _ => None,
        };
        let kind = string(find(payload, command::TYPE)?);
        Some(IpSet { name: name.as_str().into(), kind: kind.into(), protocol })
    }))
}

/// Whether a set has an element; none when the kernel does not say.
pub(super) fn has(query: &IpSetQuery) -> Result<Option<bool>, ReadError> {
    let mut netlink = Netlink::open(SockProtocol::NetlinkNetFilter)?;
    let request = request(&[
        name_attribute(&query.set),
        attribute(command::ELEMENT | NESTED, &element_attributes(&query.parts).concat()),
    ]);
    match netlink.get(kind(TEST), &request, &format!("look into ipset {}", query.set), |_| Some(())) {
        Ok(_) => Ok(Some(true)),
        Err(ReadError::Call { source, .. }) => Ok((source.raw_os_error() == Some(NOT_THERE)).then_some(false)),
        Err(error) => Err(error),
    }
}

fn element_attributes(parts: &[IpSetPart]) -> Vec<Vec<u8>> {
    let mut addresses = 0;
    let mut attributes = Vec::new();
    for part in parts {
        match part {
            IpSetPart::Address(address) => {
                // `IPSET_ATTR_IPADDR_IPV4`, `IPSET_ATTR_IPADDR_IPV6`
                let inner = match address {
                    IpAddr::V4(address) => attribute(1 | NETWORK_ORDER, &address.octets()),
                    IpAddr::V6(address) => attribute(2 | NETWORK_ORDER, &address.octets()),
                };
                let kind = if addresses == 0 { element::ADDRESS } else { element::SECOND_ADDRESS };
                attributes.push(attribute(kind | NESTED, &inner));
                addresses += 1;
            }
            IpSetPart::Port { protocol, number } => {
                attributes.push(attribute(element::PORT | NETWORK_ORDER, &number.to_be_bytes()));
                attributes.extend(protocol.map(|protocol| attribute(element::PROTOCOL, &[protocol])));
            }
            IpSetPart::Interface(name) => {
                attributes.push(attribute(element::INTERFACE, &[name.as_bytes(), b"\0"].concat()));
            }
            IpSetPart::Mark(mark) => attributes.push(attribute(element::MARK | NETWORK_ORDER, &mark.to_be_bytes())),
            IpSetPart::Hardware(address) => attributes.push(attribute(element::HARDWARE, address)),
        }
    }
    attributes
}

fn kind(command: u16) -> u16 {
    u16::try_from(libc::NFNL_SUBSYS_IPSET << 8).expect("subsystems are below 256") | command
}

/// `struct nfgenmsg`, the version, and what is asked.
fn request(parts: &[Vec<u8>]) -> Vec<u8> {
    let mut request = vec![IPV4, 0, 0, 0];
    request.extend(attribute(command::PROTOCOL, &[PROTOCOL]));
    request.extend(parts.concat());
    request
}

fn name_attribute(name: &str) -> Vec<u8> {
    attribute(command::NAME, &[name.as_bytes(), b"\0"].concat())
}

fn find(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(payload.get(4..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// Kernels without ipset do not know the subsystem.
fn absent<T>(answer: Result<Option<T>, ReadError>) -> Result<Option<T>, ReadError> {
    match answer {
        Err(ReadError::Call { source, .. })
            if matches!(source.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP)) =>
        {
            Ok(None)
        }
        answer => answer,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_part() -> impl Strategy<Value = IpSetPart> {
        prop_oneof![
            any::<IpAddr>().prop_map(IpSetPart::Address),
            (any::<Option<u8>>(), any::<u16>()).prop_map(|(protocol, number)| IpSetPart::Port { protocol, number }),
            "[a-z0-9.]{0,15}".prop_map(|name| IpSetPart::Interface(name.into())),
            any::<u32>().prop_map(IpSetPart::Mark),
            any::<[u8; 6]>().prop_map(IpSetPart::Hardware),
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let name = find(&bytes, command::NAME).map(string).unwrap_or_default();
            // A byte that is no text is shown by a character of three.
            assert!(name.len() <= 3 * bytes.len(), "{name}");
        }

        #[test]
        fn any_parts_are_asked_for_one_by_one(parts in prop::collection::vec(any_part(), 0..6)) {
            let protocols = parts.iter().filter(|part| matches!(part, IpSetPart::Port { protocol: Some(_), .. }));
            let expected = parts.len() + protocols.count();
            prop_assert_eq!(attributes(&element_attributes(&parts).concat()).count(), expected);
        }
    }
}
