//! Routing rules out of `RTM_NEWRULE`, with all their selectors.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use netdiag_common::forwarding::routing::table::action;
use netdiag_common::forwarding::routing::{Ports, RoutingRule};

use super::super::super::netlink::{IPV4, IPV6, address, attributes, int, short, string};

const INVERTED: u32 = 2;

// `FRA_*` of linux/fib_rules.h.
const DESTINATION: u16 = 1;
const SOURCE: u16 = 2;
const INPUT: u16 = 3;
const GOTO: u16 = 4;
const PRIORITY: u16 = 6;
const MARK: u16 = 10;
const FLOW: u16 = 11;
const TUNNEL: u16 = 12;
const SUPPRESSED_GROUP: u16 = 13;
const SUPPRESSED_LENGTH: u16 = 14;
const TABLE: u16 = 15;
const MASK: u16 = 16;
const OUTPUT: u16 = 17;
const PADDING: u16 = 18;
const L3MDEV: u16 = 19;
const USERS: u16 = 20;
const ORIGIN: u16 = 21;
const PROTOCOL: u16 = 22;
const SOURCE_PORTS: u16 = 23;
const DESTINATION_PORTS: u16 = 24;
const DSCP: u16 = 25;
const FLOW_LABEL: u16 = 26;
const FLOW_LABEL_MASK: u16 = 27;
const SOURCE_PORT_MASK: u16 = 28;
const DESTINATION_PORT_MASK: u16 = 29;
const DSCP_MASK: u16 = 30;

/// Suppressing nothing, which the kernel writes for every rule.
const NOTHING: u32 = u32::MAX;

/// `struct fib_rule_hdr` and its attributes, with the family.
pub(super) fn parse(payload: &[u8]) -> Option<(u8, RoutingRule)> {
    let header: &[u8; 12] = payload.get(..12)?.try_into().ok()?;
    let [family, destination_bits, source_bits, service, table, _, _, action, ..] = *header;
    if !matches!(family, IPV4 | IPV6) {
        return None;
    }
    let flags = int(payload, 8)?;
    let mut rule =
        RoutingRule { action, table: table.into(), inverted: flags & INVERTED != 0, service, ..RoutingRule::default() };
    let mut differentiated = None;
    let mut differentiated_mask = 0x3f;
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            DESTINATION => rule.destination = Some(prefix(address(value)?, destination_bits)?),
            SOURCE => rule.source = Some(prefix(address(value)?, source_bits)?),
            INPUT => rule.input = Some(Arc::from(string(value))),
            OUTPUT => rule.output = Some(Arc::from(string(value))),
            GOTO => rule.goto = int(value, 0),
            PRIORITY => rule.priority = int(value, 0)?,
            MARK => rule.mark = int(value, 0)?,
            MASK => rule.mask = int(value, 0)?,
            TABLE => rule.table = int(value, 0)?,
            SUPPRESSED_LENGTH => rule.suppressed_length = int(value, 0).filter(|length| *length != NOTHING),
            SUPPRESSED_GROUP => rule.suppressed_group = int(value, 0).filter(|group| *group != NOTHING),
            L3MDEV => rule.vrf = value.first() == Some(&1),
            USERS => rule.users = Some((int(value, 0)?, int(value, 4)?)),
            PROTOCOL => rule.protocol = *value.first()?,
            SOURCE_PORTS => rule.source_ports = Some(ports(value)?),
            DESTINATION_PORTS => rule.destination_ports = Some(ports(value)?),
            SOURCE_PORT_MASK => mask(&mut rule.source_ports, value)?,
            DESTINATION_PORT_MASK => mask(&mut rule.destination_ports, value)?,
            DSCP => differentiated = value.first().copied(),
            DSCP_MASK => differentiated_mask = *value.first()?,
            TUNNEL => rule.others.push(format!("tun_id {}", u64::from_be_bytes(value.try_into().ok()?))),
            FLOW_LABEL => rule.others.push(format!("flowlabel {:#x}", u32::from_be_bytes(value.try_into().ok()?))),
            // Who made it, and the realm that its packets belong to.
            ORIGIN | FLOW | FLOW_LABEL_MASK | PADDING => {}
            other => rule.others.push(format!("attribute {other}")),
        }
    }
    rule.differentiated = differentiated.map(|value| (value, differentiated_mask));
    if rule.action != action::TO_TABLE {
        rule.table = 0;
    }
    Some((family, rule))
}

fn prefix(address: IpAddr, bits: u8) -> Option<IpNet> {
    IpNet::new(address, bits).ok().map(|net| net.trunc())
}

/// `struct fib_rule_port_range`
fn ports(value: &[u8]) -> Option<Ports> {
    Some(Ports { first: short(value, 0)?, last: short(value, 2)?, mask: u16::MAX })
}

/// Comes behind the ports; of a range it is 0 or left out.
fn mask(ports: &mut Option<Ports>, value: &[u8]) -> Option<()> {
    let mask = short(value, 0)?;
    if let Some(ports) = ports.as_mut().filter(|_| mask != 0) {
        ports.mask = mask;
    }
    Some(())
}
