//! Counters that IEEE 802.3 and RFC 2819 name, by ethtool's netlink family (`net/ethtool/stats.c`, Linux 5.13): newer drivers
//! give these here, and no longer among their own names.

use nix::sys::socket::SockProtocol;

use crate::host::ReadError;
use crate::host::genetlink;
use crate::host::netlink::{Netlink, attribute, attributes, int, long};

// Commands and attributes of linux/ethtool_netlink_generated.h.
const STATS_GET: u8 = 32;
const VERSION: u8 = 1;
const STATS_HEADER: u16 = 2;
const STATS_GROUPS: u16 = 3;
const STATS_GROUP: u16 = 4;
const HEADER_INDEX: u16 = 1;
const BITSET_NO_MASK: u16 = 1;
const BITSET_SIZE: u16 = 2;
const BITSET_VALUE: u16 = 4;
const GROUP_ID: u16 = 2;
const GROUP_STATISTIC: u16 = 4;
/// A nested attribute says so since Linux 5.2.
const NESTED: u16 = 0x8000;

/// By group and number, as `ethtool -S --all-groups` prints them.
const NAMES: [(&str, &[&str]); 4] = [
    ("eth-phy", &["SymbolErrorDuringCarrier"]),
    (
        "eth-mac",
        &[
            "FramesTransmittedOK",
            "SingleCollisionFrames",
            "MultipleCollisionFrames",
            "FramesReceivedOK",
            "FrameCheckSequenceErrors",
            "AlignmentErrors",
            "OctetsTransmittedOK",
            "FramesWithDeferredXmissions",
            "LateCollisions",
            "FramesAbortedDueToXSColls",
            "FramesLostDueToIntMACXmitError",
            "CarrierSenseErrors",
            "OctetsReceivedOK",
            "FramesLostDueToIntMACRcvError",
            "MulticastFramesXmittedOK",
            "BroadcastFramesXmittedOK",
            "FramesWithExcessiveDeferral",
            "MulticastFramesReceivedOK",
            "BroadcastFramesReceivedOK",
            "InRangeLengthErrors",
            "OutOfRangeLengthField",
            "FrameTooLongErrors",
        ],
    ),
    ("eth-ctrl", &["MACControlFramesTransmitted", "MACControlFramesReceived", "UnsupportedOpcodesReceived"]),
    ("rmon", &["etherStatsUndersizePkts", "etherStatsOversizePkts", "etherStatsFragments", "etherStatsJabbers"]),
];

pub(super) struct Standard {
    netlink: Netlink,
    family: u16,
}

impl Standard {
    /// None on kernels without the family.
    pub(super) fn open() -> Result<Option<Self>, ReadError> {
        let mut netlink = Netlink::open(SockProtocol::NetlinkGeneric)?;
        let family = genetlink::family(&mut netlink, "ethtool")?;
        Ok(family.map(|family| Self { netlink, family }))
    }

    /// Empty for drivers that have none of them, and for devices that went away.
    pub(super) fn read(&mut self, index: u32, device: &str) -> Result<Vec<(String, u64)>, ReadError> {
        let all: u32 = (1 << NAMES.len()) - 1;
        let size = u32::try_from(NAMES.len()).expect("four groups");
        let groups = [
            attribute(BITSET_NO_MASK, &[]),
            attribute(BITSET_SIZE, &size.to_ne_bytes()),
            attribute(BITSET_VALUE, &all.to_ne_bytes()),
        ];
        let mut request = vec![STATS_GET, VERSION, 0, 0];
        request.extend(attribute(STATS_HEADER | NESTED, &attribute(HEADER_INDEX, &index.to_ne_bytes())));
        request.extend(attribute(STATS_GROUPS | NESTED, &groups.concat()));
        let step = format!("read standard counters of {device}");
        match self.netlink.get(self.family, &request, &step, |payload| Some(parse(payload))) {
            Ok(found) => Ok(found.unwrap_or_default()),
            Err(ReadError::Call { source, .. }) if is_none(&source) => Ok(Vec::new()),
            Err(error) => Err(error),
        }
    }
}

/// The driver has no such counters, the kernel no such command, or the machine no such device any more.
fn is_none(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::ENODEV | libc::EINVAL))
}

/// Counters that the driver does not have are not in the message.
fn parse(payload: &[u8]) -> Vec<(String, u64)> {
    let mut found = Vec::new();
    let groups = attributes(payload.get(4..).unwrap_or_default()).filter(|(kind, _)| *kind == STATS_GROUP);
    for (_, group) in groups {
        let id = attributes(group).find(|(kind, _)| *kind == GROUP_ID).and_then(|(_, id)| int(id, 0));
        let Some((group_name, names)) = id.and_then(|id| NAMES.get(usize::try_from(id).ok()?)) else { continue };
        for (_, statistic) in attributes(group).filter(|(kind, _)| *kind == GROUP_STATISTIC) {
            for (number, value) in attributes(statistic) {
                if let (Some(name), Some(value)) = (names.get(usize::from(number)), long(value, 0)) {
                    found.push((format!("{group_name}-{name}"), value));
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(group: u32, statistics: &[(u16, u64)]) -> Vec<u8> {
        let mut nested = attribute(GROUP_ID, &group.to_ne_bytes());
        for (number, value) in statistics {
            nested.extend(attribute(GROUP_STATISTIC | NESTED, &attribute(*number, &value.to_ne_bytes())));
        }
        let mut bytes = vec![STATS_GET, VERSION, 0, 0];
        bytes.extend(attribute(STATS_GROUP | NESTED, &nested));
        bytes
    }

    #[test]
    fn counters_have_the_names_of_ethtool() {
        let found = parse(&message(1, &[(4, 7), (3, 9), (200, 1)]));
        let expected = [("eth-mac-FrameCheckSequenceErrors".to_owned(), 7), ("eth-mac-FramesReceivedOK".to_owned(), 9)];
        assert_eq!(found, expected);
        assert_eq!(parse(&message(99, &[(0, 1)])), []);
    }

    #[test]
    fn device_without_them_has_none() {
        let Some(mut standard) = Standard::open().unwrap() else {
            println!("netdiag-skip: device_without_them_has_none: this kernel has no netlink family ethtool");
            return;
        };
        // Loopback, and a device that does not exist.
        assert_eq!(standard.read(1, "lo").unwrap(), []);
        assert_eq!(standard.read(u32::MAX >> 1, "none").unwrap(), []);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            let _ = parse(&bytes);
        }
    }
}
