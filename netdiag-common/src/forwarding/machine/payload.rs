//! Bytes of the packet into registers, and back.

use super::Run;
use crate::forwarding::expression::{Base, Verdict};
use crate::forwarding::packet::{TCP, UDP};
use crate::forwarding::register::{KNOWN, Reason};

/// Behind the bytes that are held of a packet.
const NOT_HELD: &str = "this part of the packet was not kept";

impl Run<'_> {
    /// `nft_payload_eval`
    pub(super) fn payload(&mut self, base: Base, offset: u32, bytes: u32, to: u32) -> Verdict {
        let (offset, bytes) = (offset as usize, (bytes as usize).min(64));
        if base == Base::Link {
            return match self.packet.link.get(offset..offset + bytes) {
                Some(value) => {
                    self.registers.store(to, value);
                    Verdict::Continue
                }
                // Headers that are known end with the Ethernet header; what follows it is the network header.
                None if self.packet.link.is_empty() => Verdict::Break,
                None => self.load_bytes(offset.saturating_sub(self.packet.link.len()), bytes, to),
            };
        }
        match self.start(base) {
            Some(start) => self.load_bytes(start + offset, bytes, to),
            None => Verdict::Break,
        }
    }

    /// `nft_payload_set_eval`. Checksums are not kept.
    pub(super) fn write_payload(&mut self, base: Base, offset: u32, bytes: u32, from: u32) -> Verdict {
        let Some(start) = self.start(base) else {
            return if base == Base::Link { Verdict::Continue } else { Verdict::Break };
        };
        let at = start + offset as usize;
        let loaded = self.registers.load(from, bytes as usize);
        let value = loaded.bytes.to_vec();
        let unknown = loaded.known().err();
        if at + value.len() > self.packet.length as usize {
            return Verdict::Break;
        }
        self.packet.write(at, &value);
        if let Some(reason) = unknown {
            let why = self.words(reason).to_string();
            self.packet.unknown.push(crate::forwarding::packet::UnknownBytes { offset: at, bytes: value.len(), why });
        }
        Verdict::Continue
    }

    /// Where a header begins, from the network header; none when the packet does not have it.
    fn start(&self, base: Base) -> Option<usize> {
        let transport = || self.packet.transport().filter(|transport| transport.fragment == 0);
        match base {
            Base::Link => None,
            Base::Network => Some(0),
            Base::Transport => transport().map(|transport| transport.offset),
            Base::Inner => {
                let transport = transport()?;
                match transport.protocol {
                    UDP => Some(transport.offset + 8),
                    TCP => {
                        let words = self.packet.bytes.get(transport.offset + 12)? >> 4;
                        Some(transport.offset + usize::from(words) * 4)
                    }
                    _ => None,
                }
            }
        }
    }

    fn load_bytes(&mut self, at: usize, bytes: usize, to: u32) -> Verdict {
        // As `skb_copy_bits`: what reaches behind the packet fails as a whole.
        if at + bytes > self.packet.length as usize {
            return Verdict::Break;
        }
        let mut value = [0; 64];
        let mut reasons = [KNOWN; 64];
        let held = self.packet.bytes.get(at..).unwrap_or_default();
        let available = held.len().min(bytes);
        value[..available].copy_from_slice(&held[..available]);
        if available < bytes {
            let reason = self.reason(NOT_HELD);
            reasons[available..bytes].fill(reason);
        }
        if !self.packet.unknown.is_empty() {
            self.mark_unknown(at, &mut reasons[..bytes]);
        }
        if reasons[..bytes].iter().all(|reason| *reason == KNOWN) {
            self.registers.store(to, &value[..bytes]);
        } else {
            self.registers.store_partly(to, &value[..bytes], &reasons[..bytes]);
        }
        Verdict::Continue
    }

    fn mark_unknown(&mut self, at: usize, reasons: &mut [Reason]) {
        for unknown in self.packet.unknown.clone() {
            for (byte, reason) in reasons.iter_mut().enumerate() {
                if (unknown.offset..unknown.offset + unknown.bytes).contains(&(at + byte)) {
                    *reason = self.reason(&unknown.why);
                }
            }
        }
    }
}
