//! Next-hop objects (`RTM_GETNEXTHOP`, Linux 5.3), which routes may name instead of next hops of their own.
//!
//! The kernel writes the next hops of an object into the routes that use it, unless `net.ipv4.nexthop_compat_mode` is 0.

use netdiag_common::forwarding::routing::table::kind;
use netdiag_common::forwarding::routing::{NextHop, TableRoute};

use super::super::super::ReadError;
use super::super::super::netlink::{Netlink, address, attribute, attributes, int};
use super::route::hop;

const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;

/// Length of `struct nhmsg`, and of `struct nexthop_grp`.
const HEADER_BYTES: usize = 8;
const MEMBER_BYTES: usize = 8;

#[derive(Debug, Default, PartialEq)]
pub(super) struct Object {
    blackhole: bool,
    pub(super) single: Option<NextHop>,
    /// Objects of a group, with their weights.
    pub(super) members: Vec<(u32, u32)>,
}

/// Gives a route that only names an object the next hops of that object.
pub(super) fn resolve(netlink: &mut Netlink, route: &mut TableRoute) -> Result<(), ReadError> {
    let Some(id) = route.object.filter(|_| route.hops.is_empty()) else { return Ok(()) };
    let Some(object) = read(netlink, id)? else { return Ok(()) };
    if object.blackhole {
        route.kind = kind::BLACKHOLE;
    }
    route.hops.extend(object.single);
    // Groups are of objects that are no groups.
    for (member, weight) in object.members {
        let next = read(netlink, member)?.and_then(|object| object.single);
        route.hops.extend(next.map(|next| NextHop { weight, ..next }));
    }
    Ok(())
}

fn read(netlink: &mut Netlink, id: u32) -> Result<Option<Object>, ReadError> {
    let mut request = vec![0; HEADER_BYTES];
    request.extend(attribute(NHA_ID, &id.to_ne_bytes()));
    netlink.get(RTM_GETNEXTHOP, &request, &format!("read next hop {id}"), parse)
}

/// `struct nhmsg` and its attributes.
pub(super) fn parse(payload: &[u8]) -> Option<Object> {
    let mut single = hop(int(payload, 4)?);
    let mut object = Object::default();
    for (kind, value) in attributes(payload.get(HEADER_BYTES..)?) {
        match kind {
            NHA_GROUP => object.members = value.chunks_exact(MEMBER_BYTES).filter_map(member).collect(),
            NHA_BLACKHOLE => object.blackhole = true,
            NHA_OIF => single.interface = int(value, 0),
            NHA_GATEWAY => single.gateway = address(value),
            _ => {}
        }
    }
    object.single = Some(single).filter(|single| single.interface.is_some());
    Some(object)
}

/// The identifier and the weight, which is written less one; its upper byte since Linux 6.12.
fn member(bytes: &[u8]) -> Option<(u32, u32)> {
    let (low, high) = (*bytes.get(4)?, *bytes.get(5)?);
    Some((int(bytes, 0)?, u32::from(u16::from_le_bytes([low, high])) + 1))
}
