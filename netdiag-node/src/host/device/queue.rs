//! Queueing disciplines out of `RTM_NEWQDISC` (`tc_fill_qdisc` in `net/sched/sch_api.c`).

use netdiag_common::observation::counter::Counter;
use netdiag_common::observation::device::Qdisc;

use crate::host::ReadError;
use crate::host::netlink::{Netlink, attributes, int, long, string};

// `TCA_*` of linux/rtnetlink.h.
const TCA_KIND: u16 = 1;
const TCA_STATS2: u16 = 7;
// `TCA_STATS_*` of linux/gen_stats.h. `PKT64` came with Linux 5.6; before, packets have 32 bits.
const BASIC: u16 = 1;
const QUEUE: u16 = 3;
const PACKETS_64: u16 = 8;
/// Length of `struct tcmsg`.
const MESSAGE_BYTES: usize = 20;
// `TC_H_*` of linux/pkt_sched.h.
const ROOT: u32 = 0xffff_ffff;
const INGRESS: u32 = 0xffff_fff1;

pub(super) struct Found {
    pub(super) link_index: u32,
    pub(super) qdisc: Qdisc,
}

pub(super) fn read(netlink: &mut Netlink) -> Result<Vec<Found>, ReadError> {
    netlink.dump(libc::RTM_GETQDISC, &[0; MESSAGE_BYTES], "list queueing disciplines", parse)
}

/// None for `noqueue`, which holds nothing.
fn parse(payload: &[u8]) -> Option<Found> {
    let (fixed, rest) = payload.split_at_checked(MESSAGE_BYTES)?;
    let (link_index, handle, parent) = (int(fixed, 4)?, int(fixed, 8)?, int(fixed, 12)?);
    let mut qdisc = Qdisc { handle: handle_name(handle), parent: parent_name(parent), ..Qdisc::default() };
    for (kind, value) in attributes(rest) {
        match kind {
            TCA_KIND => qdisc.kind = string(value),
            TCA_STATS2 => statistics(value, &mut qdisc),
            _ => {}
        }
    }
    (qdisc.kind != "noqueue").then_some(Found { link_index, qdisc })
}

fn statistics(nested: &[u8], qdisc: &mut Qdisc) {
    let counter = |value: Option<u64>| Counter { value: value.unwrap_or(0), ..Counter::default() };
    let short = |value: &[u8], at| counter(int(value, at).map(u64::from));
    for (kind, value) in attributes(nested) {
        match kind {
            // `struct gnet_stats_basic`: bytes, packets.
            BASIC => {
                qdisc.bytes = counter(long(value, 0));
                qdisc.packets = short(value, 8);
            }
            // `struct gnet_stats_queue`: qlen, backlog, drops, requeues, overlimits.
            QUEUE => {
                qdisc.backlog_packets = int(value, 0).unwrap_or(0);
                qdisc.backlog_bytes = int(value, 4).unwrap_or(0);
                qdisc.drops = short(value, 8);
                qdisc.requeues = short(value, 12);
                qdisc.overlimits = short(value, 16);
            }
            // Follows the one above.
            PACKETS_64 => qdisc.packets = counter(long(value, 0)),
            _ => {}
        }
    }
}

fn handle_name(handle: u32) -> String {
    format!("{:x}:", handle >> 16)
}

fn parent_name(parent: u32) -> String {
    match parent {
        ROOT => "root".to_owned(),
        INGRESS => "ingress".to_owned(),
        class => format!("{:x}:{:x}", class >> 16, class & 0xffff),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::netlink::attribute;

    /// `RTM_NEWQDISC` of a tbf that overflowed, as Linux 6.18 wrote it, without the netlink header.
    const TBF: &[u8] = include_bytes!("../../../tests/fixtures/host/newqdisc-tbf");

    #[test]
    fn dump_of_linux_6_18() {
        let found = parse(TBF).unwrap().qdisc;
        assert_eq!((found.kind.as_str(), found.handle.as_str(), found.parent.as_str()), ("tbf", "1:", "root"));
        assert_eq!((found.drops.value, found.backlog_packets), (37, 2));
        assert!(found.packets.value > 0 && found.overlimits.value > 0, "{found:?}");
    }

    #[test]
    fn queue_that_holds_nothing_is_left_out() {
        let mut bytes = vec![0; MESSAGE_BYTES];
        bytes.extend(attribute(TCA_KIND, b"noqueue\0"));
        assert!(parse(&bytes).is_none());
    }

    #[test]
    fn names_are_those_of_tc() {
        let names = [0xffff_fff1, 0xffff_ffff, 0x8001_0002].map(parent_name);
        assert_eq!(names, ["ingress", "root", "8001:2"]);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
