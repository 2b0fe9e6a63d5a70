//! Virtual servers of IPVS and their real servers, in the calling thread's network namespace (generic netlink, `ip_vs_ctl.c`).
//!
//! Asked only where IPVS has servers: asking for a family that is not there would load its module.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use netdiag_common::forwarding::packet::{Protocol, octets};
use netdiag_common::forwarding::virtual_server::{
    ForwardingMethod, RealServer, VirtualServer, VirtualServerKey, VirtualSettings,
};
use nix::sys::socket::SockProtocol;

use super::netlink::{IPV4, IPV6, Netlink, address, attribute, attributes, int, short, string};
use super::{ReadError, file, genetlink, own_net};

// Of linux/ip_vs.h.
const FAMILY: &str = "IPVS";
const VERSION: u8 = 1;
const GET_SERVICE: u8 = 4;
const GET_DESTINATION: u8 = 8;
const SERVICE: u16 = 1;
const DESTINATION: u16 = 2;
const SERVICE_FAMILY: u16 = 1;
const SERVICE_PROTOCOL: u16 = 2;
const SERVICE_ADDRESS: u16 = 3;
const SERVICE_PORT: u16 = 4;
const SERVICE_MARK: u16 = 5;
const SERVICE_SCHEDULER: u16 = 6;
const SERVICE_FLAGS: u16 = 7;
const DESTINATION_ADDRESS: u16 = 1;
const DESTINATION_PORT: u16 = 2;
const DESTINATION_METHOD: u16 = 3;
const DESTINATION_WEIGHT: u16 = 4;
const DESTINATION_UPPER_THRESHOLD: u16 = 5;
const DESTINATION_FAMILY: u16 = 11;
/// `IP_VS_SVC_F_PERSISTENT`: clients stay with their real server.
const PERSISTENT: u32 = 1;
/// `IP_VS_SVC_F_ONEPACKET`: each packet of UDP is a connection.
const ONE_PACKET: u32 = 4;
/// `IP_VS_CONN_F_FWD_MASK`
const METHOD: u32 = 7;

/// Shows the network namespace of the thread that opens it.
const SETTINGS: &str = "/proc/sys/net/ipv4/vs";
const SETTING_BYTES: u64 = 64;

/// Length of `struct genlmsghdr`.
const HEADER_BYTES: usize = 4;

/// What a virtual server is known by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) address: IpAddr,
    /// IANA protocol number.
    pub(crate) protocol: u8,
    pub(crate) port: u16,
}

/// A virtual server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Virtual {
    pub(crate) key: Key,
    /// `rr`, `wrr`, `sh`, …
    pub(crate) scheduler: String,
    pub(crate) is_persistent: bool,
}

/// A real server behind a virtual one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Real {
    pub(crate) address: SocketAddr,
    /// `IP_VS_CONN_F_MASQ` and its siblings, in the low three bits.
    pub(crate) method: u32,
    /// 0: gets no new connection.
    pub(crate) weight: u32,
    /// It has an upper threshold of connections.
    pub(crate) limited: bool,
}

/// The tables of IPVS, open.
pub(crate) struct Tables {
    netlink: Netlink,
    family: u16,
}

/// Whether IPVS has anything to do here. The file has three lines of headings, and is there with the module.
pub(crate) fn has_servers() -> Result<bool, ReadError> {
    const HEADINGS: usize = 3;
    const LIMIT: u64 = 64 << 10;
    match file::text_if_there(&own_net().join("ip_vs"), LIMIT) {
        Ok(text) => Ok(text.is_some_and(|text| text.lines().count() > HEADINGS)),
        // Longer than the limit.
        Err(ReadError::Malformed { .. }) => Ok(true),
        Err(error) => Err(error),
    }
}

/// The virtual server with its real servers, as packets meet it; none when there is none.
pub(crate) fn virtual_server(key: VirtualServerKey) -> Result<Option<VirtualServer>, ReadError> {
    match Tables::open()? {
        Some(mut tables) => tables.server(key),
        None => Ok(None),
    }
}

/// The folder is not there in namespaces whose user namespace is not the host's; they have what IPVS begins with
/// (`ip_vs_control_net_init_sysctl`).
pub(crate) fn settings() -> Result<VirtualSettings, ReadError> {
    Ok(VirtualSettings {
        conntrack: is_on("conntrack", false)?,
        sloppy_tcp: is_on("sloppy_tcp", false)?,
        snat_reroute: is_on("snat_reroute", true)?,
    })
}

fn is_on(setting: &str, initially: bool) -> Result<bool, ReadError> {
    let text = file::text_if_there(&Path::new(SETTINGS).join(setting), SETTING_BYTES)?;
    Ok(text.map_or(initially, |text| text.trim() != "0"))
}

impl Tables {
    /// None where this kernel has no IPVS. Asked without [`has_servers`], this may load its module.
    pub(crate) fn open() -> Result<Option<Self>, ReadError> {
        let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
        let family = genetlink::family(&mut netlink, FAMILY)?;
        Ok(family.map(|family| Self { netlink, family }))
    }

    /// All that have an address; those for firewall marks have none.
    pub(crate) fn servers(&mut self) -> Result<Vec<Virtual>, ReadError> {
        let request = [GET_SERVICE, VERSION, 0, 0];
        self.netlink.dump(self.family, &request, "list virtual servers", server)
    }

    /// None when this is no virtual server. A kernel without `CONFIG_IP_VS_IPV6` has none of that family.
    fn server(&mut self, key: VirtualServerKey) -> Result<Option<VirtualServer>, ReadError> {
        let (known_by, v4) = match key {
            VirtualServerKey::Mark { protocol, mark } => (of_mark(protocol, mark), protocol == Protocol::Ipv4),
            VirtualServerKey::Address { address, protocol, port } => {
                (of_address(Key { address, protocol, port }), address.is_ipv4())
            }
        };
        let request = request(GET_SERVICE, &known_by);
        let found = match self.netlink.get(self.family, &request, "look up a virtual server", terms) {
            Err(ReadError::Call { source, .. })
                if matches!(
                    source.raw_os_error(),
                    Some(libc::ESRCH | libc::ENOENT | libc::ENOMSG | libc::EAFNOSUPPORT)
                ) =>
            {
                None
            }
            found => found?,
        };
        let Some((scheduler, flags)) = found else { return Ok(None) };
        let reals = self.reals_of(&known_by, v4)?;
        let destinations = reals.iter().map(destination).collect::<Result<_, _>>()?;
        let (persistent, one_packet) = (flags & PERSISTENT != 0, flags & ONE_PACKET != 0);
        Ok(Some(VirtualServer { scheduler, persistent, one_packet, destinations }))
    }

    pub(crate) fn reals(&mut self, key: Key) -> Result<Vec<Real>, ReadError> {
        self.reals_of(&of_address(key), key.address.is_ipv4())
    }

    fn reals_of(&mut self, known_by: &[u8], v4: bool) -> Result<Vec<Real>, ReadError> {
        let request = request(GET_DESTINATION, known_by);
        self.netlink.dump(self.family, &request, "list real servers", |payload| real(payload, v4))
    }
}

/// A command about the virtual server that is known by these attributes.
fn request(command: u8, known_by: &[u8]) -> Vec<u8> {
    let mut bytes = vec![command, VERSION, 0, 0];
    bytes.extend(attribute(SERVICE, known_by));
    bytes
}

fn of_address(key: Key) -> Vec<u8> {
    let family = u16::from(if key.address.is_ipv4() { IPV4 } else { IPV6 });
    let mut address = octets(key.address);
    address.resize(16, 0);
    let fields = [
        attribute(SERVICE_FAMILY, &family.to_ne_bytes()),
        attribute(SERVICE_PROTOCOL, &u16::from(key.protocol).to_ne_bytes()),
        attribute(SERVICE_ADDRESS, &address),
        attribute(SERVICE_PORT, &key.port.to_be_bytes()),
    ];
    fields.concat()
}

fn of_mark(protocol: Protocol, mark: u32) -> Vec<u8> {
    let family = u16::from(if protocol == Protocol::Ipv4 { IPV4 } else { IPV6 });
    let fields = [attribute(SERVICE_FAMILY, &family.to_ne_bytes()), attribute(SERVICE_MARK, &mark.to_ne_bytes())];
    fields.concat()
}

/// Scheduler and flags of a virtual server.
fn terms(payload: &[u8]) -> Option<(String, u32)> {
    let (mut scheduler, mut flags) = (None, 0);
    for (kind, value) in attributes(nested(payload, SERVICE)?) {
        match kind {
            SERVICE_SCHEDULER => scheduler = Some(string(value)),
            SERVICE_FLAGS => flags = int(value, 0)?,
            _ => {}
        }
    }
    Some((scheduler?, flags))
}

fn destination(real: &Real) -> Result<RealServer, ReadError> {
    let Real { address, method, weight, limited } = *real;
    let method = ForwardingMethod::from_bits(method & METHOD).ok_or_else(|| ReadError::Malformed {
        what: format!("real server {address}"),
        why: format!("forwarding method {}", method & METHOD),
    })?;
    Ok(RealServer { address: address.ip(), port: address.port(), weight, method, limited })
}

fn nested(payload: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(payload.get(HEADER_BYTES..)?).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

fn server(payload: &[u8]) -> Option<Virtual> {
    let (mut family, mut protocol, mut bytes, mut port) = (None, None, None, None);
    let (mut scheduler, mut flags) = (String::new(), 0);
    for (kind, value) in attributes(nested(payload, SERVICE)?) {
        match kind {
            SERVICE_FAMILY => family = short(value, 0),
            SERVICE_PROTOCOL => protocol = short(value, 0),
            SERVICE_ADDRESS => bytes = Some(value),
            SERVICE_PORT => port = short(value, 0).map(u16::from_be),
            SERVICE_SCHEDULER => scheduler = string(value),
            SERVICE_FLAGS => flags = int(value, 0)?,
            _ => {}
        }
    }
    let key = Key { address: sized(bytes?, family?)?, protocol: u8::try_from(protocol?).ok()?, port: port? };
    Some(Virtual { key, scheduler, is_persistent: flags & PERSISTENT != 0 })
}

/// One real server. Its family is the virtual one's on kernels that do not say (before Linux 3.18).
fn real(payload: &[u8], v4: bool) -> Option<Real> {
    let (mut bytes, mut family, mut port) = (None, u16::from(if v4 { IPV4 } else { IPV6 }), 0);
    let (mut method, mut weight, mut limited) = (0, 0, false);
    for (kind, value) in attributes(nested(payload, DESTINATION)?) {
        match kind {
            DESTINATION_ADDRESS => bytes = Some(value),
            DESTINATION_FAMILY => family = short(value, 0)?,
            DESTINATION_PORT => port = u16::from_be(short(value, 0)?),
            DESTINATION_METHOD => method = int(value, 0)?,
            DESTINATION_WEIGHT => weight = int(value, 0)?,
            DESTINATION_UPPER_THRESHOLD => limited = int(value, 0)? != 0,
            _ => {}
        }
    }
    Some(Real { address: SocketAddr::new(sized(bytes?, family)?, port), method, weight, limited })
}

/// Addresses are unions of 16 bytes.
fn sized(bytes: &[u8], family: u16) -> Option<IpAddr> {
    address(bytes.get(..if family == u16::from(IPV4) { 4 } else { 16 })?)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn union(address: &[u8]) -> Vec<u8> {
        let mut bytes = address.to_vec();
        bytes.resize(16, 0);
        bytes
    }

    #[test]
    fn real_servers_have_address_and_weight() {
        let fields = [
            attribute(DESTINATION_ADDRESS, &union(&[10, 0, 0, 1])),
            attribute(DESTINATION_PORT, &6443_u16.to_be_bytes()),
            attribute(DESTINATION_METHOD, &0_u32.to_ne_bytes()),
            attribute(DESTINATION_WEIGHT, &7_u32.to_ne_bytes()),
        ];
        let message = [vec![GET_DESTINATION, VERSION, 0, 0], attribute(DESTINATION, &fields.concat())].concat();
        let expected = Real { address: "10.0.0.1:6443".parse().unwrap(), method: 0, weight: 7, limited: false };
        assert_eq!(real(&message, true), Some(expected.clone()));
        let method = ForwardingMethod::Masquerading;
        let evaluated = RealServer { address: expected.address.ip(), port: 6443, weight: 7, method, limited: false };
        assert_eq!(destination(&expected).unwrap(), evaluated);
    }

    #[test]
    fn what_is_asked_for_is_what_a_server_is_known_by() {
        let key = Key { address: "fd00::1".parse().unwrap(), protocol: 6, port: 443 };
        let expected = Virtual { key, scheduler: String::new(), is_persistent: false };
        assert_eq!(server(&request(GET_SERVICE, &of_address(key))), Some(expected));
    }

    #[test]
    fn a_server_of_a_firewall_mark_has_no_address() {
        let mut known_by = of_mark(Protocol::Ipv4, 7);
        assert_eq!(server(&request(GET_SERVICE, &known_by)), None);
        known_by.extend(attribute(SERVICE_SCHEDULER, b"wrr\0"));
        known_by.extend(attribute(SERVICE_FLAGS, &[5_u32.to_ne_bytes(), u32::MAX.to_ne_bytes()].concat()));
        assert_eq!(terms(&request(GET_SERVICE, &known_by)), Some(("wrr".to_owned(), PERSISTENT | ONE_PACKET)));
    }

    /// Attributes of any number that is looked at, with numbers, addresses and what is neither.
    fn any_attributes() -> impl Strategy<Value = Vec<u8>> {
        let bytes = |count: std::ops::Range<usize>| prop::collection::vec(any::<u8>(), count);
        let value = prop_oneof![bytes(2..3), bytes(4..5), bytes(16..17), bytes(0..20)];
        prop::collection::vec((1_u16..12, value), 0..16)
            .prop_map(|list| list.iter().flat_map(|(kind, value)| attribute(*kind, value)).collect::<Vec<u8>>())
    }

    proptest! {
        #[test]
        fn any_attributes_are_a_server_or_none(list in any_attributes(), cut in 0_usize..8, v4 in any::<bool>()) {
            let list = &list[..list.len().saturating_sub(cut)];
            for kind in [SERVICE, DESTINATION] {
                let message = [vec![0; 4], attribute(kind, list)].concat();
                let scheduler = server(&message).map(|found| found.scheduler).unwrap_or_default();
                // A byte that is no text is shown by a character of three.
                assert!(scheduler.len() <= 3 * message.len(), "{scheduler}");
                let _ = (real(&message, v4).map(|found| destination(&found)), terms(&message));
            }
        }

        #[test]
        fn any_bytes_are_a_server_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = (real(&bytes, true), server(&bytes), terms(&bytes));
            for kind in [SERVICE, DESTINATION] {
                let message = [vec![0; 4], attribute(kind, &bytes)].concat();
                let _ = (real(&message, false), server(&message), terms(&message));
            }
        }
    }
}
