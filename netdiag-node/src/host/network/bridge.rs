//! Bridges and their ports, out of `IFLA_LINKINFO`.

use netdiag_common::observation::network::{Bridge, BridgePort, PortState};

use super::{attributes, string};

/// Attributes below `IFLA_INFO_DATA` of a bridge (linux/if_link.h).
const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;
/// Below `IFLA_INFO_SLAVE_DATA` of a port; `MODE` is hairpin mode.
const IFLA_BRPORT_STATE: u16 = 1;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_GUARD: u16 = 5;
const IFLA_BRPORT_LEARNING: u16 = 8;
const IFLA_BRPORT_UNICAST_FLOOD: u16 = 9;
const IFLA_BRPORT_NEIGH_SUPPRESS: u16 = 32;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRPORT_LOCKED: u16 = 39;

/// None when the link is no bridge. Whether it is promiscuous is not in here.
pub(super) fn bridge(link_info: &[u8]) -> Option<Bridge> {
    let settings = settings(link_info, libc::IFLA_INFO_KIND, libc::IFLA_INFO_DATA)?;
    Some(Bridge {
        nf_call_iptables: is_on(settings, IFLA_BR_NF_CALL_IPTABLES),
        nf_call_ip6tables: is_on(settings, IFLA_BR_NF_CALL_IP6TABLES),
        promiscuous: false,
    })
}

/// None when the link is no port of a bridge.
pub(super) fn port(link_info: &[u8]) -> Option<BridgePort> {
    let settings = settings(link_info, libc::IFLA_INFO_SLAVE_KIND, libc::IFLA_INFO_SLAVE_DATA)?;
    Some(BridgePort {
        hairpin: is_on(settings, IFLA_BRPORT_MODE)?,
        state: byte(settings, IFLA_BRPORT_STATE).and_then(state),
        isolated: is_on(settings, IFLA_BRPORT_ISOLATED),
        guard: is_on(settings, IFLA_BRPORT_GUARD),
        learning: is_on(settings, IFLA_BRPORT_LEARNING),
        unicast_flood: is_on(settings, IFLA_BRPORT_UNICAST_FLOOD),
        neigh_suppress: is_on(settings, IFLA_BRPORT_NEIGH_SUPPRESS),
        locked: is_on(settings, IFLA_BRPORT_LOCKED),
    })
}

/// `BR_STATE_*` of linux/if_bridge.h.
fn state(number: u8) -> Option<PortState> {
    Some(match number {
        0 => PortState::Disabled,
        1 => PortState::Listening,
        2 => PortState::Learning,
        3 => PortState::Forwarding,
        4 => PortState::Blocking,
        _ => return None,
    })
}

/// The settings of a link, as itself or as a port, when that is of kind `bridge`.
fn settings(link_info: &[u8], kind: u16, settings: u16) -> Option<&[u8]> {
    let find = |wanted| attributes(link_info).find(|(found, _)| *found == wanted).map(|(_, value)| value);
    find(kind).filter(|name| string(name) == "bridge").and_then(|_| find(settings))
}

fn is_on(settings: &[u8], wanted: u16) -> Option<bool> {
    byte(settings, wanted).map(|value| value != 0)
}

fn byte(settings: &[u8], wanted: u16) -> Option<u8> {
    let (_, value) = attributes(settings).find(|(found, _)| *found == wanted)?;
    value.first().copied()
}
