//! Policy routing rules out of `RTM_NEWRULE`.

use std::net::IpAddr;

use netdiag_common::observation::network::PolicyRule;

use super::{address, attributes, family_name, int, short, string};

/// `FR_ACT_TO_TBL` of linux/fib_rules.h: look the destination up in the rule's table.
const TO_TABLE: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;

// `FRA_*` of linux/fib_rules.h.
const FRA_DST: u16 = 1;
const FRA_SRC: u16 = 2;
const FRA_IIFNAME: u16 = 3;
const FRA_GOTO: u16 = 4;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FRA_FWMASK: u16 = 16;
const FRA_OIFNAME: u16 = 17;
const FRA_L3MDEV: u16 = 19;
const FRA_UID_RANGE: u16 = 20;
const FRA_IP_PROTO: u16 = 22;
const FRA_SPORT_RANGE: u16 = 23;
const FRA_DPORT_RANGE: u16 = 24;

/// Suppressing nothing, which the kernel writes for every rule.
const NO_SUPPRESSION: u32 = u32::MAX;

/// `struct fib_rule_hdr` and its attributes.
pub(super) fn parse(payload: &[u8]) -> Option<PolicyRule> {
    let family = family_name(*payload.first()?)?;
    let destination_length = *payload.get(1)?;
    let source_length = *payload.get(2)?;
    let service_type = *payload.get(3)?;
    let mut table = u32::from(*payload.get(4)?);
    let action = *payload.get(7)?;
    let flags = int(payload, 8)?;
    let mut priority = 0;
    let mut firewall_mark = None;
    let mut mask = u32::MAX;
    let mut words = Vec::new();
    if flags & FIB_RULE_INVERT != 0 {
        words.push("not".to_owned());
    }
    for (kind, value) in attributes(payload.get(12..)?) {
        match kind {
            FRA_PRIORITY => priority = int(value, 0)?,
            FRA_TABLE => table = int(value, 0)?,
            FRA_SRC => words.push(format!("from {}", prefix(address(value)?, source_length))),
            FRA_DST => words.push(format!("to {}", prefix(address(value)?, destination_length))),
            FRA_IIFNAME => words.push(format!("iif {}", string(value))),
            FRA_OIFNAME => words.push(format!("oif {}", string(value))),
            FRA_FWMARK => firewall_mark = int(value, 0),
            FRA_FWMASK => mask = int(value, 0)?,
            FRA_GOTO => words.push(format!("goto {}", int(value, 0)?)),
            FRA_SUPPRESS_PREFIXLEN => {
                let length = int(value, 0)?;
                if length != NO_SUPPRESSION {
                    words.push(format!("suppress_prefixlength {length}"));
                }
            }
            FRA_L3MDEV if value.first() == Some(&1) => words.push("lookup [l3mdev-table]".to_owned()),
            FRA_UID_RANGE => words.push(format!("uidrange {}-{}", int(value, 0)?, int(value, 4)?)),
            FRA_IP_PROTO => words.push(format!("ipproto {}", value.first()?)),
            FRA_SPORT_RANGE => words.push(format!("sport {}-{}", short(value, 0)?, short(value, 2)?)),
            FRA_DPORT_RANGE => words.push(format!("dport {}-{}", short(value, 0)?, short(value, 2)?)),
            _ => {}
        }
    }
    if service_type != 0 {
        words.push(format!("tos {service_type:#x}"));
    }
    if let Some(mark) = firewall_mark {
        words.push(if mask == u32::MAX { format!("fwmark {mark:#x}") } else { format!("fwmark {mark:#x}/{mask:#x}") });
    }
    words.extend(action_word(action).map(str::to_owned));
    Some(PolicyRule { priority, table, family: family.to_owned(), selector: words.join(" ") })
}

/// What the rule does when it does not look into a table; `goto` is told by its attribute.
fn action_word(action: u8) -> Option<&'static str> {
    match action {
        TO_TABLE | 2 => None,
        3 => Some("nop"),
        6 => Some("blackhole"),
        7 => Some("unreachable"),
        8 => Some("prohibit"),
        _ => Some("unknown action"),
    }
}

fn prefix(address: IpAddr, length: u8) -> String {
    format!("{address}/{length}")
}
