//! A driver's name and its own counters, by `SIOCETHTOOL` (`net/ethtool/ioctl.c`): what `ethtool -i` and `ethtool -S` show.
//!
//! The netlink interface of ethtool has no message for these private counters.

use std::os::fd::{AsRawFd as _, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use crate::host::ReadError;
use crate::host::netlink::{int, long, string};

// Commands of linux/ethtool.h.
const GET_DRIVER: u32 = 0x03;
const GET_STRINGS: u32 = 0x1b;
const GET_STATISTICS: u32 = 0x1d;
/// `ETH_SS_STATS`
const SET_OF_STATISTICS: u32 = 1;
/// `ETH_GSTRING_LEN`
const NAME_BYTES: usize = 32;
/// Length of `struct ethtool_drvinfo`, and where its fields are.
const DRIVER_BYTES: usize = 196;
const DRIVER_NAME: usize = 4;
const DRIVER_STATISTICS: usize = 180;
/// Counters read of one device: mlx5 with 128 queues has some 5 000.
const MAX_STATISTICS: usize = 8_192;
/// The kernel writes as many counters as the driver has at that moment, whatever room there is. Queues may be added between
/// asking for the number and reading: room for that many more counters.
const SPARE_STATISTICS: usize = 4_096;

pub(super) struct Found {
    pub(super) driver: String,
    /// By the driver's names, in its order.
    pub(super) statistics: Vec<(String, u64)>,
    pub(super) omitted: usize,
}

/// Asks about devices of the namespace of the thread that opened it.
pub(super) struct Ethtool {
    socket: OwnedFd,
}

/// Whether the device can have numbers of a driver that say more than its link's. Loopback and bridges have none.
pub(super) fn may_count(kind: &str, name: &str) -> bool {
    name != "lo"
        && !matches!(kind, "bridge" | "vxlan" | "geneve" | "ipip" | "sit" | "gre" | "dummy" | "ifb" | "wireguard")
}

impl Ethtool {
    pub(super) fn open() -> Result<Self, ReadError> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)
            .map_err(|errno| ReadError::Call { step: "open a socket for ethtool".to_owned(), source: errno.into() })?;
        Ok(Self { socket })
    }

    /// None for a device without a driver that answers, or one that went away.
    pub(super) fn read(&mut self, device: &str) -> Result<Option<Found>, ReadError> {
        let mut info = command(GET_DRIVER, DRIVER_BYTES);
        if !self.ask(device, &mut info)? {
            return Ok(None);
        }
        let driver = string(&info[DRIVER_NAME..DRIVER_NAME + NAME_BYTES]);
        let total = int(&info, DRIVER_STATISTICS).unwrap_or(0) as usize;
        let mut found = Found { driver, statistics: Vec::new(), omitted: 0 };
        if total > MAX_STATISTICS {
            found.omitted = total;
            return Ok(Some(found));
        }
        if total == 0 {
            return Ok(Some(found));
        }
        let room = total + SPARE_STATISTICS;
        // `struct ethtool_gstrings`: command, set, length; then the names.
        let mut names = command(GET_STRINGS, 12 + room * NAME_BYTES);
        names[4..8].copy_from_slice(&SET_OF_STATISTICS.to_ne_bytes());
        // `struct ethtool_stats`: command, number; then the values.
        let mut values = command(GET_STATISTICS, 8 + room * 8);
        values[4..8].copy_from_slice(&u32::try_from(total).unwrap_or(0).to_ne_bytes());
        if self.ask(device, &mut names)? && self.ask(device, &mut values)? {
            found.statistics = parse(&names, &values);
        }
        Ok(Some(found))
    }

    /// False when the device has no such thing, or is gone.
    fn ask(&self, device: &str, request: &mut [u8]) -> Result<bool, ReadError> {
        // SAFETY: zero is a valid value for every field of this C struct.
        let mut interface: libc::ifreq = unsafe { std::mem::zeroed() };
        // The last byte stays 0: it ends the name.
        for (place, byte) in interface.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(device.bytes()) {
            *place = byte.cast_signed();
        }
        interface.ifr_ifru.ifru_data = request.as_mut_ptr().cast();
        // SAFETY: the kernel reads `interface`, and reads and writes behind `ifru_data` no more than the command's structure:
        // fixed for the driver, and for the lists less than `request` holds (see `SPARE_STATISTICS`).
        let result = unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut interface) };
        match Errno::result(result) {
            Ok(_) => Ok(true),
            Err(Errno::EOPNOTSUPP | Errno::ENODEV | Errno::EINVAL) => Ok(false),
            Err(errno) => Err(ReadError::Call { step: format!("ask the driver of {device}"), source: errno.into() }),
        }
    }
}

fn command(number: u32, bytes: usize) -> Vec<u8> {
    let mut request = vec![0; bytes];
    request[..4].copy_from_slice(&number.to_ne_bytes());
    request
}

/// Both answers, with their headers: as many pairs as both have.
fn parse(names: &[u8], values: &[u8]) -> Vec<(String, u64)> {
    let names_count = int(names, 8).unwrap_or(0) as usize;
    let values_count = int(values, 4).unwrap_or(0) as usize;
    let pair = |position: usize| {
        let start = 12 + position * NAME_BYTES;
        let name = string(names.get(start..start + NAME_BYTES)?);
        Some((name.trim().to_owned(), long(values, 8 + position * 8)?))
    };
    (0..names_count.min(values_count)).map_while(pair).filter(|(name, _)| !name.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_values_are_paired() {
        let mut names = command(GET_STRINGS, 12 + 2 * NAME_BYTES);
        names[8] = 2;
        names[12..17].copy_from_slice(b"  a_b");
        names[44..47].copy_from_slice(b"c d");
        let mut values = command(GET_STATISTICS, 8 + 16);
        values[4] = 2;
        values[8] = 7;
        assert_eq!(parse(&names, &values), [("a_b".to_owned(), 7), ("c d".to_owned(), 0)]);
        // The driver lost a counter in between.
        values[4] = 1;
        assert_eq!(parse(&names, &values).len(), 1);
    }

    #[test]
    fn device_that_is_gone_has_no_driver() {
        assert!(Ethtool::open().unwrap().read("netdiag-nosuch").unwrap().is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_end(
            names in proptest::collection::vec(proptest::num::u8::ANY, 0..200),
            values in proptest::collection::vec(proptest::num::u8::ANY, 0..100),
        ) {
            let _ = parse(&names, &values);
        }
    }
}
