//! Filters of tc(8) at the ingress and egress of a device (`sch_ingress`, `sch_clsact`), by rtnetlink.

use crate::host::ReadError;
use crate::host::netlink::{Netlink, attributes, int, string};

/// `TC_H_INGRESS`, and below it the two blocks of clsact (`TC_H_MIN_INGRESS`, `TC_H_MIN_EGRESS`).
const QDISC: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Length of `struct tcmsg`.
const HEADER_BYTES: usize = 20;
// Of linux/rtnetlink.h, linux/pkt_cls.h and linux/tc_act/*.h.
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const BPF_NAME: u16 = 7;
const BPF_ID: u16 = 11;
const ACTION_KIND: u16 = 1;
const ACTION_OPTIONS: u16 = 2;
const ACTION_PARAMETERS: u16 = 2;
/// `TC_ACT_SHOT`
const SHOT: u32 = 2;

/// Filters of one block that are told apart.
const MAX_FILTERS: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Ingress,
    Egress,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Filter {
    Program {
        /// None for classic programs, which have none.
        id: Option<u32>,
        /// What whoever attached it called it.
        name: String,
    },
    /// `u32`, `flower`, …, and what it does in words; empty when it only sorts packets.
    Other { kind: String, actions: Vec<String> },
}

/// What runs at this side of a device, in the kernel's order.
pub(super) fn filters(netlink: &mut Netlink, index: u32, side: Side) -> Result<Vec<Filter>, ReadError> {
    // `ingress` has one block only, which the kernel shows for either side.
    match qdisc(netlink, index)?.as_deref() {
        Some("clsact") => {}
        Some("ingress") if side == Side::Ingress => {}
        _ => return Ok(Vec::new()),
    }
    let parent = if side == Side::Ingress { INGRESS } else { EGRESS };
    let step = format!("list the tc filters of interface {index}");
    let mut found = netlink.dump(libc::RTM_GETTFILTER, &request(index, parent), &step, parse)?;
    found.truncate(MAX_FILTERS);
    Ok(found)
}

/// The kind of the device's qdisc for what comes in. All are listed: the answer to a request for one goes to those who listen
/// to changes (`qdisc_notify`).
fn qdisc(netlink: &mut Netlink, index: u32) -> Result<Option<String>, ReadError> {
    let decode = |payload: &[u8]| {
        if (int(payload, 4), int(payload, 12)) != (Some(index), Some(QDISC)) {
            return None;
        }
        attributes(payload.get(HEADER_BYTES..)?).find(|(kind, _)| *kind == TCA_KIND).map(|(_, name)| string(name))
    };
    Ok(netlink.dump(libc::RTM_GETQDISC, &request(0, 0), "list qdiscs", decode)?.pop())
}

/// `struct tcmsg`
fn request(index: u32, parent: u32) -> Vec<u8> {
    let mut bytes = vec![0; HEADER_BYTES];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[12..16].copy_from_slice(&parent.to_ne_bytes());
    bytes
}

/// One filter. The kernel also sends its classifier, and tables that classifiers keep, which do nothing.
fn parse(payload: &[u8]) -> Option<Filter> {
    let (mut kind, mut options) = (String::new(), None);
    for (attribute, value) in attributes(payload.get(HEADER_BYTES..)?) {
        match attribute {
            TCA_KIND => kind = string(value),
            TCA_OPTIONS => options = Some(value),
            _ => {}
        }
    }
    let options = options?;
    if kind == "bpf" {
        let find =
            |wanted: u16| attributes(options).find(|(attribute, _)| *attribute == wanted).map(|(_, value)| value);
        let name = find(BPF_NAME).map(string).unwrap_or_default();
        return Some(Filter::Program { id: find(BPF_ID).and_then(|id| int(id, 0)), name });
    }
    let actions = attributes(options).find(|(attribute, _)| Some(*attribute) == actions_of(&kind));
    let actions: Vec<String> =
        actions.map(|(_, list)| attributes(list).filter_map(|(_, one)| action(one)).collect())?;
    Some(Filter::Other { kind, actions })
}

/// The attribute of a classifier that holds its actions (`TCA_*_ACT`).
fn actions_of(kind: &str) -> Option<u16> {
    match kind {
        "matchall" => Some(2),
        "flower" | "basic" | "cgroup" => Some(if kind == "cgroup" { 1 } else { 3 }),
        "fw" => Some(4),
        "route" => Some(6),
        "u32" => Some(7),
        "flow" => Some(9),
        _ => None,
    }
}

/// `drop`, `redirected to interface 5`, or the action's kind.
fn action(bytes: &[u8]) -> Option<String> {
    let (mut kind, mut parameters) = (String::new(), None);
    for (attribute, value) in attributes(bytes) {
        match attribute {
            ACTION_KIND => kind = string(value),
            ACTION_OPTIONS => {
                parameters = attributes(value).find(|(attribute, _)| *attribute == ACTION_PARAMETERS);
            }
            _ => {}
        }
    }
    let number = |at: usize| parameters.and_then(|(_, value)| int(value, at));
    Some(match (&*kind, number(8)) {
        ("", _) => return None,
        ("gact", Some(SHOT)) => "drop".to_owned(),
        // `struct tc_mirred`: what is done (1 and 3 take the packet away, 2 and 4 copy it), and the device.
        ("mirred", _) => match (number(20), number(24)) {
            (Some(1 | 3), Some(to)) => format!("redirected to interface {to}"),
            (Some(2 | 4), Some(to)) => format!("copied to interface {to}"),
            _ => kind,
        },
        _ => kind,
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::num::u8::ANY;

    use super::*;
    use crate::host::netlink::attribute;

    fn message(kind: &str, options: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER_BYTES];
        bytes.extend(attribute(TCA_KIND, format!("{kind}\0").as_bytes()));
        bytes.extend(attribute(TCA_OPTIONS, options));
        bytes
    }

    fn action_of(kind: &str, parameters: &[u8]) -> Vec<u8> {
        let options = attribute(ACTION_OPTIONS, &attribute(ACTION_PARAMETERS, parameters));
        [attribute(ACTION_KIND, format!("{kind}\0").as_bytes()), options].concat()
    }

    #[test]
    fn what_a_filter_does_is_told() {
        let shot: Vec<u8> = [0_u32, 0, 2, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let redirect: Vec<u8> = [0_u32, 0, 4, 0, 0, 1, 9].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let list = [attribute(1, &action_of("gact", &shot)), attribute(2, &action_of("mirred", &redirect))].concat();
        let found = parse(&message("matchall", &attribute(2, &list))).unwrap();
        let actions = vec!["drop".to_owned(), "redirected to interface 9".to_owned()];
        assert_eq!(found, Filter::Other { kind: "matchall".into(), actions });
        let program = [attribute(BPF_NAME, b"cil_from_netdev\0"), attribute(BPF_ID, &7_u32.to_ne_bytes())].concat();
        let found = parse(&message("bpf", &program)).unwrap();
        assert_eq!(found, Filter::Program { id: Some(7), name: "cil_from_netdev".into() });
    }

    #[test]
    fn a_classifier_without_actions_does_nothing() {
        assert_eq!(parse(&message("u32", &attribute(3, &[0; 4]))), None);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_a_filter_or_none(bytes in vec(ANY, 0..200)) {
            let _ = parse(&bytes);
            let _ = parse(&message("u32", &bytes));
            let _ = parse(&message("bpf", &bytes));
        }
    }
}
