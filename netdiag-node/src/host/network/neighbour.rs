//! Neighbours (ARP and NDP entries) out of `RTM_NEWNEIGH`.

use std::fmt::Write as _;

use netdiag_common::observation::network::Neighbour;

use super::{address, attributes, family_name, int, short};

/// `struct ndmsg` and its attributes. None for entries that stand for no host: multicast and loopback (`NUD_NOARP`), bridges.
pub(crate) fn parse(payload: &[u8]) -> Option<Neighbour> {
    let link_index = int(payload, 4)?;
    let state = state(payload)?;
    let mut host = None;
    let mut mac = None;
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            libc::NDA_DST => host = address(value),
            libc::NDA_LLADDR => mac = Some(mac_text(value)),
            _ => {}
        }
    }
    Some(Neighbour { link_index, address: host?, state: state.to_owned(), mac })
}

/// The state in an `RTM_NEWNEIGH` about a host; none as in [`parse`].
pub(crate) fn state(payload: &[u8]) -> Option<&'static str> {
    family_name(*payload.first()?)?;
    state_name(short(payload, 8)?)
}

/// `NUD_*` of linux/neighbour.h, as `ip neighbour` prints them in lower case. None for `NUD_NOARP`.
fn state_name(state: u16) -> Option<&'static str> {
    Some(match state {
        0x01 => "incomplete",
        0x02 => "reachable",
        0x04 => "stale",
        0x08 => "delay",
        0x10 => "probe",
        0x20 => "failed",
        0x40 => return None,
        0x80 => "permanent",
        _ => "none",
    })
}

pub(super) fn mac_text(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 3);
    for (position, byte) in bytes.iter().enumerate() {
        let colon = if position == 0 { "" } else { ":" };
        write!(text, "{colon}{byte:02x}").expect("writing to a String cannot fail");
    }
    text
}
