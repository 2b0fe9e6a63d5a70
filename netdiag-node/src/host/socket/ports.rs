//! Ports for outgoing connections: how many of the range are taken, and by which destinations.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;

use netdiag_common::observation::socket::{LocalPorts, PortUse};

use crate::host::{ReadError, file};

/// Destinations told.
const MAX_BUSIEST: usize = 16;
/// Destinations counted.
const MAX_DESTINATIONS: usize = 16_384;
const RANGE_BYTES: u64 = 64;

/// `net.ipv4.ip_local_port_range`, both ends included; it holds for IPv6 too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) first: u16,
    pub(super) last: u16,
}

/// The calling thread's namespace.
pub(super) fn range(proc: &Path) -> Result<Range, ReadError> {
    let path = proc.join("sys/net/ipv4/ip_local_port_range");
    let text = file::text(&path, RANGE_BYTES)?;
    parse_range(&text).ok_or_else(|| ReadError::Malformed {
        what: path.display().to_string(),
        why: format!("expected two ports, found {:?}", text.trim()),
    })
}

fn parse_range(text: &str) -> Option<Range> {
    let mut words = text.split_ascii_whitespace();
    Some(Range { first: words.next()?.parse().ok()?, last: words.next()?.parse().ok()? })
}

pub(super) struct PortTally {
    range: Range,
    /// One bit per port.
    taken: Vec<u64>,
    by_destination: HashMap<(IpAddr, SocketAddr), u32>,
    uncounted: u64,
}

impl PortTally {
    pub(super) fn new(range: Range) -> Self {
        Self { range, taken: vec![0; 1024], by_destination: HashMap::new(), uncounted: 0 }
    }

    /// A connection; those from outside the range (this end is the server's) do not count.
    pub(super) fn add(&mut self, local: SocketAddr, remote: SocketAddr) {
        let port = local.port();
        if !(self.range.first..=self.range.last).contains(&port) {
            return;
        }
        self.taken[usize::from(port / 64)] |= 1 << (port % 64);
        let key = (plain(local.ip()), SocketAddr::new(plain(remote.ip()), remote.port()));
        if self.by_destination.len() >= MAX_DESTINATIONS && !self.by_destination.contains_key(&key) {
            self.uncounted += 1;
            return;
        }
        *self.by_destination.entry(key).or_default() += 1;
    }

    pub(super) fn finish(self, left_out: &mut Vec<String>) -> LocalPorts {
        if self.uncounted > 0 {
            left_out.push(format!(
                "{} connections to destinations after the first {MAX_DESTINATIONS}, in the use of ports",
                self.uncounted
            ));
        }
        let mut busiest: Vec<PortUse> = self
            .by_destination
            .into_iter()
            .map(|((source, destination), ports)| PortUse { source, destination, ports })
            .collect();
        busiest.sort_by_key(|usage| (Reverse(usage.ports), usage.destination, usage.source));
        busiest.truncate(MAX_BUSIEST);
        LocalPorts {
            first: self.range.first,
            last: self.range.last,
            in_use: self.taken.iter().map(|bits| bits.count_ones()).sum(),
            busiest,
        }
    }
}

/// A dual-stack socket shows IPv4 as `::ffff:10.0.0.1`; the ports are the same ones.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_counted_per_destination() {
        let mut tally = PortTally::new(parse_range("32768\t60999\n").unwrap());
        let to = |local: &str, remote: &str| (local.parse().unwrap(), remote.parse().unwrap());
        for (local, remote) in [
            to("10.0.0.1:40000", "10.96.0.1:443"),
            to("[::ffff:10.0.0.1]:40001", "[::ffff:10.96.0.1]:443"),
            to("10.0.0.1:40000", "10.96.0.9:80"),
            to("10.0.0.1:8080", "10.0.0.7:50000"),
        ] {
            tally.add(local, remote);
        }
        let found = tally.finish(&mut Vec::new());
        assert_eq!((found.first, found.last, found.in_use), (32_768, 60_999, 2));
        let busiest: Vec<_> = found.busiest.iter().map(|usage| (usage.destination.to_string(), usage.ports)).collect();
        assert_eq!(busiest, [("10.96.0.1:443".to_owned(), 2), ("10.96.0.9:80".to_owned(), 1)]);
    }

    #[test]
    fn destinations_beyond_the_limit_are_counted_together() {
        let mut tally = PortTally::new(Range { first: 1, last: 65_535 });
        for n in 0..=u32::try_from(MAX_DESTINATIONS).unwrap() {
            tally.add(([10, 0, 0, 1], 40_000).into(), (std::net::Ipv4Addr::from(n), 80).into());
        }
        let mut left_out = Vec::new();
        assert_eq!(tally.finish(&mut left_out).busiest.len(), MAX_BUSIEST);
        assert!(left_out[0].starts_with("1 connections"), "{left_out:?}");
    }

    #[test]
    fn range_that_is_none_is_not_guessed() {
        for text in ["", "1", "a b", "70000 1"] {
            assert_eq!(parse_range(text), None, "{text}");
        }
    }
}
