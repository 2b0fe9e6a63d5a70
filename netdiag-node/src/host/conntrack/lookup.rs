//! One entry by its tuple (`ctnetlink_get_conntrack`, net/netfilter/nf_conntrack_netlink.c): a look into the hash table, however
//! large it is.

use std::io;
use std::net::{IpAddr, SocketAddr};

use netdiag_common::forwarding::packet::octets;
use netdiag_common::observation::Protocol;
use nix::sys::socket::SockProtocol;

use super::entry::{
    DESTINATION_PORT, Entry, PROTO_NUMBER, SOURCE_PORT, TUPLE_IP, TUPLE_ORIGINAL, TUPLE_PROTO, V4_DESTINATION,
    V4_SOURCE, V6_DESTINATION, V6_SOURCE, parse,
};
use super::table::{GET, NESTED};
use crate::host::ReadError;
use crate::host::netlink::{IPV4, IPV6, Netlink, attribute};

/// A socket in the namespace of the thread that opened it.
pub(crate) struct Lookup(Netlink);

impl Lookup {
    pub(crate) fn open() -> Result<Self, ReadError> {
        Netlink::open(SockProtocol::NetlinkNetFilter).map(Self)
    }

    /// The entry whose first packet went from `source` to `to`, in the default zone. None: there is none.
    pub(crate) fn find(
        &mut self,
        protocol: Protocol,
        source: SocketAddr,
        to: SocketAddr,
    ) -> Result<Option<Entry>, ReadError> {
        let step = "look for a tracked flow";
        let Some(request) = request(protocol, source, to) else { return Ok(None) };
        match self.0.get(GET, &request, step, parse) {
            Err(ReadError::Call { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            found => found,
        }
    }
}

/// None for addresses of two families.
fn request(protocol: Protocol, source: SocketAddr, to: SocketAddr) -> Option<Vec<u8>> {
    let family = match (source.ip(), to.ip()) {
        (IpAddr::V4(_), IpAddr::V4(_)) => IPV4,
        (IpAddr::V6(_), IpAddr::V6(_)) => IPV6,
        _ => return None,
    };
    let mut ip = Vec::new();
    for (address, v4, v6) in [(source.ip(), V4_SOURCE, V6_SOURCE), (to.ip(), V4_DESTINATION, V6_DESTINATION)] {
        ip.extend(attribute(if address.is_ipv4() { v4 } else { v6 }, &octets(address)));
    }
    let mut proto = attribute(PROTO_NUMBER, &[protocol.number()]);
    proto.extend(attribute(SOURCE_PORT, &source.port().to_be_bytes()));
    proto.extend(attribute(DESTINATION_PORT, &to.port().to_be_bytes()));
    let mut tuple = attribute(TUPLE_IP | NESTED, &ip);
    tuple.extend(attribute(TUPLE_PROTO | NESTED, &proto));
    let mut bytes = vec![family, 0, 0, 0];
    bytes.extend(attribute(TUPLE_ORIGINAL | NESTED, &tuple));
    Some(bytes)
}
