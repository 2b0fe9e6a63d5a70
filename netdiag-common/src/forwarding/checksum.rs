//! Checksums of the headers that this crate builds (RFC 1071): rules do not read them, receivers do.

use super::packet::{ICMP, ICMPV6, Packet, Protocol, TCP, UDP, octets};

impl Packet {
    /// Fills in the checksums of the IPv4 header and of TCP, UDP and ICMP. What is cut off counts as zeros.
    pub fn fill_checksums(&mut self) {
        if let Some(transport) = self.transport().filter(|transport| transport.fragment == 0) {
            let place = match transport.protocol {
                TCP => Some(16),
                UDP => Some(6),
                ICMP | ICMPV6 => Some(2),
                _ => None,
            };
            if let Some(place) = place {
                self.fill_transport(transport.protocol, transport.offset, transport.offset + place);
            }
        }
        if self.protocol == Protocol::Ipv4 {
            let header = self.bytes.first().map_or(0, |first| usize::from(first & 0xf) * 4);
            self.put(10, [0, 0]);
            let sum = checksum(self.bytes.get(..header).unwrap_or_default());
            self.put(10, sum.to_be_bytes());
        }
    }

    fn fill_transport(&mut self, protocol: u8, from: usize, place: usize) {
        self.put(place, [0, 0]);
        let mut data = Vec::new();
        // ICMP of IPv4 has no pseudo header.
        if protocol != ICMP {
            data.extend(octets(self.source()));
            data.extend(octets(self.destination()));
            let held = self.bytes.len().saturating_sub(from);
            let whole = (self.length as usize).saturating_sub(from).max(held);
            data.extend(u32::try_from(whole).unwrap_or(u32::MAX).to_be_bytes());
            data.extend([0, 0, 0, protocol]);
        }
        data.extend(self.bytes.get(from..).unwrap_or_default());
        let sum = match checksum(&data) {
            // Zero means that there is none (RFC 768).
            0 if protocol == UDP => 0xffff,
            sum => sum,
        };
        self.put(place, sum.to_be_bytes());
    }

    fn put(&mut self, at: usize, value: [u8; 2]) {
        if let Some(place) = self.bytes.get_mut(at..at + 2) {
            place.copy_from_slice(&value);
        }
    }
}

fn checksum(data: &[u8]) -> u16 {
    // 64 KiB of 0xffff stay below u32::MAX.
    let mut sum: u32 = data
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
        .fold(0, u32::saturating_add);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::packet::{Origin, udp};
    use super::*;

    fn packet(source: &str, destination: &str, protocol: u8, transport: &[u8]) -> Packet {
        let ends = (source.parse().unwrap(), destination.parse().unwrap());
        Packet::between(Origin::Sent, ends.0, ends.1, protocol, transport).unwrap()
    }

    #[test]
    fn a_header_with_its_checksum_sums_up_to_zero() {
        let mut packet = packet("10.0.0.1", "10.0.0.2", UDP, &udp(1, 2, b"odd"));
        packet.fill_checksums();
        assert_eq!(checksum(&packet.bytes[..20]), 0);
        let mut pseudo = [packet.bytes[12..20].to_vec(), vec![0, 17, 0, 11]].concat();
        pseudo.extend(&packet.bytes[20..]);
        assert_eq!(checksum(&pseudo), 0);
    }

    #[test]
    fn headers_that_are_cut_off_do_not_matter() {
        for length in 0..60 {
            let mut packet = packet("fd00::1", "fd00::2", UDP, &udp(1, 2, b"1234"));
            packet.bytes.truncate(length);
            packet.fill_checksums();
        }
        let mut packet = packet("10.0.0.1", "10.0.0.2", ICMP, &[8]);
        packet.bytes[0] = 0x4f;
        packet.fill_checksums();
    }
}
