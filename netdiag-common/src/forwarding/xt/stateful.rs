//! Matches that decide by what the kernel does not show, or by what is not read: both ways are followed, and these are the
//! words for what would have to be known.

use super::Blob;

/// What has to hold for the rule to go on.
pub(super) fn words(name: &str, revision: u32, blob: Blob<'_>) -> String {
    let detail = match name {
        "limit" => blob.u32(0).zip(blob.u32(4)).map(|(cost, burst)| format!("one in {} ms, burst {burst}", cost / 10)),
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
