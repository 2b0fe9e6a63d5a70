//! Matches and targets of iptables, of legacy tables and of rules of iptables-nft (`nft_compat.c`), read from the kernel's
//! own structures (`include/uapi/linux/netfilter/xt_*.h`, Linux 6.18, as a 64-bit kernel lays them out).

mod entry;
mod matches;
mod target;

/// A structure of the kernel.
#[derive(Clone, Copy)]
struct Blob<'a>(&'a [u8]);

impl Blob<'_> {
    fn byte(self, at: usize) -> Option<u8> {
        self.0.get(at).copied()
    }

    /// Of the host.
    fn u16(self, at: usize) -> Option<u16> {
        Some(u16::from_ne_bytes(self.array(at)?))
    }

    fn u32(self, at: usize) -> Option<u32> {
        Some(u32::from_ne_bytes(self.array(at)?))
    }

    /// In network byte order.
    fn port(self, at: usize) -> Option<u16> {
        Some(u16::from_be_bytes(self.array(at)?))
    }

    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }
}
