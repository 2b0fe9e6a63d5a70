//! Names for kernel addresses, from /proc/kallsyms.
//!
//! The kernel programs keep the low half of an address, so a lookup tries it behind each high half that kernel code has.

use std::fmt::Write as _;
use std::io::BufRead;

/// Bytes behind the last symbol of a region that still count as part of it. No kernel function is larger.
const MAX_FUNCTION_BYTES: u64 = 256 << 10;

/// Kernel functions by address. Empty when the addresses are hidden (no `CAP_SYSLOG`).
#[derive(Debug, Default)]
pub struct Symbols {
    /// Address, and where the name starts in `names`; ordered by address.
    starts: Vec<(u64, u32)>,
    /// Names, each ended by a line feed.
    names: String,
    /// High halves of the addresses, few: kernel text, modules.
    halves: Vec<u32>,
}

impl Symbols {
    /// Keeps functions (types t and w) with an address. Lines that are none are passed over.
    pub fn parse(lines: impl BufRead) -> Self {
        let mut symbols = Self::default();
        for line in lines.lines().map_while(Result::ok) {
            let mut words = line.split_ascii_whitespace();
            let (Some(address), Some(kind), Some(name)) = (words.next(), words.next(), words.next()) else { continue };
            let Ok(address) = u64::from_str_radix(address, 16) else { continue };
            let Ok(start) = u32::try_from(symbols.names.len()) else { break };
            if address == 0 || !matches!(kind, "t" | "T" | "w" | "W") {
                continue;
            }
            symbols.starts.push((address, start));
            symbols.names.push_str(plain(name));
            symbols.names.push('\n');
        }
        // Stable: of several names for one address the first in the file stays first.
        symbols.starts.sort_by_key(|(address, _)| *address);
        symbols.starts.dedup_by_key(|(address, _)| *address);
        symbols.starts.shrink_to_fit();
        symbols.names.shrink_to_fit();
        symbols.halves = symbols.starts.iter().map(|(address, _)| (address >> 32) as u32).collect();
        symbols.halves.dedup();
        symbols
    }

    pub fn is_empty(&self) -> bool {
        self.starts.is_empty()
    }

    /// The function that the return address `address` lies in.
    pub fn name(&self, address: u64) -> Option<&str> {
        // A return address lies behind its call, which may be the function's last instruction.
        let inside = address.checked_sub(1)?;
        let after = self.starts.partition_point(|(start, _)| *start <= inside);
        let (start, name) = *self.starts.get(after.checked_sub(1)?)?;
        if inside - start > MAX_FUNCTION_BYTES {
            return None;
        }
        self.names.get(name as usize..)?.split('\n').next()
    }

    /// The function that a return address with this low half lies in.
    pub fn name_by_low_half(&self, low: u32) -> Option<&str> {
        self.halves.iter().find_map(|high| self.name((u64::from(*high) << 32) | u64::from(low)))
    }
}

/// `0xffffffff81a2b3c4`, for an address without a name.
pub fn hex(address: u64) -> String {
    let mut text = String::with_capacity(18);
    // Writing to a string cannot fail.
    let _ = write!(text, "{address:#x}");
    text
}

/// The name in the source: the compiler's copies (`.constprop.0`, `.isra.0`, `.part.0`, `.cold`) lose their suffix, so
/// that a function has one name on all kernels.
fn plain(name: &str) -> &str {
    match name.find('.') {
        Some(0) | None => name,
        Some(dot) => &name[..dot],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
0000000000000000 A fixed_percpu_data
ffffffff81000000 T _stext
ffffffff81a00000 T nft_trace_init
ffffffff81a00100 t tcp_v4_rcv.isra.0
ffffffff81a00900 D some_table
ffffffff81a01000 T tcp_v4_err
ffffffffc0401000 t nft_do_chain\t[nf_tables]
ffffffffc0401000 t an_alias\t[nf_tables]
";

    #[test]
    fn return_addresses_find_their_function() {
        let symbols = Symbols::parse(TEXT.as_bytes());
        assert_eq!(symbols.name(0xffff_ffff_81a0_0180), Some("tcp_v4_rcv"));
        // The call was tcp_v4_rcv's last instruction, data is passed over.
        assert_eq!(symbols.name(0xffff_ffff_81a0_1000), Some("tcp_v4_rcv"));
        assert_eq!(symbols.name(0xffff_ffff_81a0_1001), Some("tcp_v4_err"));
        assert_eq!(symbols.name_by_low_half(0xc040_13e8), Some("nft_do_chain"));
        assert_eq!(symbols.name(0xffff_ffff_c050_0000), None, "too far behind the last function");
        assert_eq!(symbols.name(0), None);
        assert_eq!(symbols.name(u64::MAX), None);
    }

    #[test]
    fn hidden_addresses_give_no_names() {
        let symbols = Symbols::parse("0000000000000000 T tcp_v4_rcv\n0000000000000000 T udp_rcv\n".as_bytes());
        assert!(symbols.is_empty());
        assert_eq!(symbols.name_by_low_half(0x81a0_0180), None);
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        let symbols =
            Symbols::parse("\n\u{1}garbage\nzz T name\nffffffff81000000 T\nffffffff81000010 T f\n".as_bytes());
        assert_eq!(symbols.name(0xffff_ffff_8100_0011), Some("f"));
    }
}
