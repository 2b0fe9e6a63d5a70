//! Matches and targets of iptables, of legacy tables and of rules of iptables-nft (`nft_compat.c`), read from the kernel's
//! own structures (`include/uapi/linux/netfilter/xt_*.h`, Linux 6.18, as a 64-bit kernel lays them out).

mod bpf;
mod bridge;
mod change;
mod entry;
mod extension;
mod header;
mod host;
mod ipset;
mod matches;
mod recent;
mod socket;
mod stateful;
mod target;

/// How a match came out.
enum Matched {
    Yes,
    No,
    /// The packet is malformed, and is dropped for it (`hotdrop`).
    Drop,
    /// What decides is not known.
    Unknown(String),
}

impl From<bool> for Matched {
    fn from(holds: bool) -> Self {
        if holds { Self::Yes } else { Self::No }
    }
}

/// Whether a match asks for what tracking finds invalid (`XT_CONNTRACK_STATE_INVALID`, `XT_STATE_INVALID`).
pub(super) fn asks_for_invalid(name: &str, revision: u32, info: &[u8]) -> bool {
    /// `XT_CONNTRACK_STATE`
    const STATE: u16 = 1;
    const INVALID: u32 = 1;
    let blob = Blob(info);
    let asks_for_states = || blob.u16(146).is_some_and(|wanted| wanted & STATE != 0);
    let mask = match (name, revision) {
        ("state", _) => blob.u32(0),
        ("conntrack", 1) if asks_for_states() => blob.byte(150).map(u32::from),
        ("conntrack", _) if asks_for_states() => blob.u16(150).map(u32::from),
        _ => None,
    };
    mask.is_some_and(|mask| mask & INVALID != 0)
}

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

    /// A NUL-terminated text in a field of so many bytes.
    fn text(&self, at: usize, bytes: usize) -> Option<String> {
        let field = self.0.get(at..self.0.len().min(at + bytes))?;
        let text = field.split(|byte| *byte == 0).next()?;
        Some(String::from_utf8_lossy(text).into_owned())
    }

    fn array<const N: usize>(self, at: usize) -> Option<[u8; N]> {
        self.0.get(at..at + N)?.try_into().ok()
    }
}
