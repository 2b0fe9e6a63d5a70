//! Matches that decide by what the kernel does not show, or by what is not read: both ways are followed, and these are the
//! words for what would have to be known.

use super::{Blob, Matched};

/// What has to hold for the rule to go on.
pub(super) fn words(name: &str, revision: u32, blob: Blob<'_>) -> String {
    let detail = match name {
        "limit" => blob.u32(0).zip(blob.u32(4)).map(|(cost, burst)| format!("one in {} ms, burst {burst}", cost / 10)),
        "recent" => blob.text(10, 200).map(|list| format!("list {list}")),
        // `xt_bpf_info_v1`, with a program that something else loaded.
        "bpf" if revision == 1 => match (blob.u16(0), blob.text(8, 512)) {
            (Some(1), Some(path)) if !path.is_empty() => Some(format!("eBPF program at {path}, not evaluated")),
            (Some(1 | 2), _) => Some("eBPF program by its descriptor, not evaluated".to_owned()),
            _ => None,
        },
        "set" => blob.u16(0).map(|index| format!("ipset number {index}")),
        "helper" => blob.text(4, 30).map(|name| format!("helper {name}")),
        "nfacct" => blob.text(0, 32).map(|counter| format!("counter {counter}")),
        _ => None,
    };
    match detail {
        Some(detail) => format!("match {name} ({detail})"),
        None => format!("match {name} (revision {revision}, not evaluated)"),
    }
}

/// `recent_mt` (net/netfilter/xt_recent.c): what writes the sender into a list holds for everybody, or for nobody where it is inverted.
/// None for what asks whether the sender is in a list, which is not read.
pub(super) fn recent(blob: Blob<'_>) -> Option<Matched> {
    const SET: u8 = 1 << 1;
    let (asked, inverted) = (blob.byte(8)?, blob.byte(9)?);
    (asked & SET != 0).then(|| Matched::from(inverted == 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `struct xt_recent_mtinfo`, as far as it is read.
    fn told(asked: u8, inverted: u8) -> Option<bool> {
        let mut info = [0; 216];
        (info[8], info[9]) = (asked, inverted);
        recent(Blob(&info)).map(|matched| matches!(matched, Matched::Yes))
    }

    #[test]
    fn writing_an_address_down_holds_whoever_it_is() {
        assert_eq!(told(1 << 1, 0), Some(true));
        assert_eq!(told(1 << 1, 1), Some(false));
        // --rcheck --reap, --update: by a list.
        assert_eq!(told(1 | (1 << 5), 0), None);
        assert_eq!(told(1 << 2, 0), None);
    }
}
