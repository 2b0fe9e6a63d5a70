//! State and counters of links out of `RTM_NEWLINK` (`rtnl_fill_ifinfo` in `net/core/rtnetlink.c`).

use std::collections::BTreeMap;

use netdiag_common::observation::counter::Counter;
use netdiag_common::observation::device::Device;

use crate::host::ReadError;
use crate::host::netlink::{Netlink, attribute, attributes, int, long};
use crate::host::network::{SKIP_STATISTICS, parse_link};

/// Attributes that libc does not name, from linux/if_link.h.
const IFLA_CARRIER_UP_COUNT: u16 = 47;
const IFLA_CARRIER_DOWN_COUNT: u16 = 48;

/// `struct rtnl_link_stats64`, in its order. `rx_otherhost_dropped` came with Linux 5.19.
const STATISTICS: [&str; 25] = [
    "rx_packets",
    "tx_packets",
    "rx_bytes",
    "tx_bytes",
    "rx_errors",
    "tx_errors",
    "rx_dropped",
    "tx_dropped",
    "multicast",
    "collisions",
    "rx_length_errors",
    "rx_over_errors",
    "rx_crc_errors",
    "rx_frame_errors",
    "rx_fifo_errors",
    "rx_missed_errors",
    "tx_aborted_errors",
    "tx_carrier_errors",
    "tx_fifo_errors",
    "tx_heartbeat_errors",
    "tx_window_errors",
    "rx_compressed",
    "tx_compressed",
    "rx_nohandler",
    "rx_otherhost_dropped",
];

/// By index, ascending.
pub(super) fn read(netlink: &mut Netlink) -> Result<Vec<Device>, ReadError> {
    let mut request = vec![0; 16];
    // Leaves out the statistics of address families only.
    request.extend(attribute(libc::IFLA_EXT_MASK, &SKIP_STATISTICS.to_ne_bytes()));
    let mut devices = netlink.dump(libc::RTM_GETLINK, &request, "list links", parse)?;
    devices.sort_unstable_by_key(|device| device.index);
    Ok(devices)
}

pub(super) fn parse(payload: &[u8]) -> Option<Device> {
    let link = parse_link(payload)?.link;
    let mut device = Device {
        index: link.index,
        name: link.name,
        kind: link.kind,
        mtu: link.mtu,
        up: link.up,
        carrier: link.carrier,
        master_index: link.master_index,
        ..Device::default()
    };
    for (kind, value) in attributes(payload.get(16..)?) {
        match kind {
            libc::IFLA_OPERSTATE => operational(*value.first()?).clone_into(&mut device.operational),
            libc::IFLA_STATS64 => device.statistics = statistics(value),
            IFLA_CARRIER_UP_COUNT => device.carrier_up.value = u64::from(int(value, 0)?),
            IFLA_CARRIER_DOWN_COUNT => device.carrier_down.value = u64::from(int(value, 0)?),
            _ => {}
        }
    }
    Some(device)
}

/// As many as this kernel has.
fn statistics(value: &[u8]) -> BTreeMap<String, Counter> {
    let numbers = (0..STATISTICS.len()).map_while(|position| long(value, position * 8));
    let named = STATISTICS.iter().zip(numbers);
    named.map(|(name, value)| ((*name).to_owned(), Counter { value, ..Counter::default() })).collect()
}

/// `IF_OPER_*` of linux/if.h, as `ip link` prints them in lower case.
fn operational(state: u8) -> &'static str {
    match state {
        1 => "notpresent",
        2 => "down",
        3 => "lowerlayerdown",
        4 => "testing",
        5 => "dormant",
        6 => "up",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `RTM_NEWLINK` of a veth, as Linux 6.18 wrote it, without the netlink header.
    const VETH: &[u8] = include_bytes!("../../../tests/fixtures/host/newlink-veth");

    #[test]
    fn dump_of_linux_6_18() {
        let device = parse(VETH).unwrap();
        assert_eq!((device.kind.as_str(), device.mtu, device.up, device.carrier), ("veth", 1_380, true, false));
        // The kernel brings this up to date only once a second.
        assert_eq!(device.operational, "up");
        assert_eq!((device.carrier_up.value, device.carrier_down.value), (2, 3));
        assert_eq!(device.statistics.len(), STATISTICS.len());
        assert!(device.statistics["tx_packets"].value > 0);
    }

    #[test]
    fn older_kernels_have_fewer_statistics() {
        let bytes: Vec<u8> = (1..=23u64).flat_map(u64::to_ne_bytes).collect();
        let found = statistics(&bytes);
        assert_eq!((found.len(), found["tx_compressed"].value), (23, 23));
        assert!(!found.contains_key("rx_nohandler"));
    }

    #[test]
    fn truncated_message_never_panics() {
        for length in 0..VETH.len() {
            let _ = parse(&VETH[..length]);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = parse(&bytes);
        }
    }
}
