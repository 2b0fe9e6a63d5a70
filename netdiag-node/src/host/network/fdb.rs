//! Forwarding databases of bridges and VXLAN devices, out of `RTM_NEWNEIGH` of the family of bridges.

use netdiag_common::observation::network::FdbEntry;

use super::neighbour::mac_text;
use super::{Netlink, ReadError, address, attributes, int, short};

/// linux/neighbour.h.
const NDA_VLAN: u16 = 5;
const NDA_PORT: u16 = 6;
const NDA_VNI: u16 = 7;
const NDA_MASTER: u16 = 9;
const NDA_NH_ID: u16 = 13;
const FAMILY_BRIDGE: u8 = 7;
/// `NUD_NOARP | NUD_PERMANENT`: not learned, does not age.
const STATIC_STATES: u16 = 0x40 | 0x80;

/// Of the calling thread's network namespace.
pub(super) fn read(netlink: &mut Netlink) -> Result<Vec<FdbEntry>, ReadError> {
    // `struct ndmsg`: what `valid_fdb_dump_legacy` of net/core/rtnetlink.c still takes for "of all devices".
    let request = [FAMILY_BRIDGE, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    netlink.dump(libc::RTM_GETNEIGH, &request, "list forwarding databases", parse)
}

/// `struct ndmsg` and its attributes. None for what a device receives for itself: multicast groups and its own address.
pub(super) fn parse(payload: &[u8]) -> Option<FdbEntry> {
    (*payload.first()? == FAMILY_BRIDGE).then_some(())?;
    let mut entry = FdbEntry {
        link_index: int(payload, 4)?,
        is_static: short(payload, 8)? & STATIC_STATES != 0,
        ..FdbEntry::default()
    };
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::NDA_LLADDR => entry.mac = mac_text(value),
            libc::NDA_DST => entry.destination = address(value).filter(|address| !address.is_unspecified()),
            NDA_NH_ID => entry.next_hop_id = int(value, 0),
            NDA_VLAN => entry.vlan = short(value, 0),
            NDA_PORT => entry.port = value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)),
            NDA_VNI => entry.id = int(value, 0),
            NDA_MASTER => entry.master_index = int(value, 0),
            _ => {}
        }
    }
    let leads = entry.destination.is_some() || entry.next_hop_id.is_some() || entry.master_index.is_some();
    (!entry.mac.is_empty() && leads).then_some(entry)
}
