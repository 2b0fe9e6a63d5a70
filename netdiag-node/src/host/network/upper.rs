//! Devices that stand for what comes over others, out of `IFLA_LINKINFO`: VLANs and VRFs.

use netdiag_common::observation::network::Vlan;

use super::{attributes, int, short};

/// Attributes below `IFLA_INFO_DATA` of a VLAN, and of a VRF (linux/if_link.h).
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
const IFLA_VRF_TABLE: u16 = 1;

/// 802.1Q. Kernels before 3.10 know no other tag, and do not tell it.
const USUAL_TAG: u16 = 0x8100;

/// None when a link of this kind is no VLAN. The device below is not in here.
pub(super) fn vlan(kind: &str, link_info: &[u8]) -> Option<Vlan> {
    let settings = settings(link_info).filter(|_| kind == "vlan")?;
    let id = short(find(settings, IFLA_VLAN_ID)?, 0)?;
    // In network order.
    let protocol = find(settings, IFLA_VLAN_PROTOCOL).and_then(|value| value.first_chunk().copied());
    Some(Vlan { id, protocol: protocol.map_or(USUAL_TAG, u16::from_be_bytes), lower_index: None })
}

/// The routing table of a VRF; none when a link of this kind is none.
pub(super) fn vrf_table(kind: &str, link_info: &[u8]) -> Option<u32> {
    let settings = settings(link_info).filter(|_| kind == "vrf")?;
    int(find(settings, IFLA_VRF_TABLE)?, 0)
}

fn settings(link_info: &[u8]) -> Option<&[u8]> {
    find(link_info, libc::IFLA_INFO_DATA)
}

fn find(list: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(list).find(|(found, _)| *found == wanted).map(|(_, value)| value)
}
